"""The weight-decay equation, rules and schedules."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_transfer import trees
from big_transfer.training import optim
from big_transfer.training import schedules

PARAMS = {"body": {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}, "head": {"kernel": jnp.ones((3,))}}
GRADS = jax.tree.map(lambda p: 0.1 * p - 0.2, PARAMS)


def _steps(optimiser, count=3, hparams=None):
  params, state = PARAMS, optimiser.tx.init(PARAMS)
  for _ in range(count):
    updates, state = optimiser.tx.update(GRADS, state, params, hparams=hparams or optimiser.hparams)
    params = optax.apply_updates(params, updates)
  return params


def _build(rules, **kwargs):
  return optim.build(list(trees.flatten(PARAMS)), rules, **{"lr": 0.1, **kwargs})


def test_adamw_is_optax_adamw():
  ours = _steps(_build([(".*", {"wd": 0.3})], clip=0.5))
  tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.3))
  theirs, state = PARAMS, tx.init(PARAMS)
  for _ in range(3):
    updates, state = tx.update(GRADS, state, theirs)
    theirs = optax.apply_updates(theirs, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_sgd_is_optax_sgd_without_decay():
  ours = _steps(_build([(".*", {})], name="sgd", clip=None, momentum=0.9))
  tx = optax.sgd(0.1, momentum=0.9)
  theirs, state = PARAMS, tx.init(PARAMS)
  for _ in range(3):
    updates, state = tx.update(GRADS, state, theirs)
    theirs = optax.apply_updates(theirs, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_the_equation_per_rule():
  rules = [("head/.*", {"lr": 0.5, "wd": 2.0}), (".*", {})]
  after = _steps(_build(rules, name="sgd", clip=None, momentum=0.0), count=1)
  for name, m, wd in (("head", 0.5, 2.0), ("body", 1.0, 0.0)):
    theta, g = PARAMS[name]["kernel"], GRADS[name]["kernel"]
    np.testing.assert_allclose(after[name]["kernel"], theta - 0.1 * (m * g + wd * theta), rtol=1e-6)


def test_no_rate_and_no_decay_is_frozen():
  after = _steps(_build([("body/.*", {"lr": 0.0}), (".*", {})]))
  np.testing.assert_array_equal(after["body"]["kernel"], PARAMS["body"]["kernel"])
  assert not np.allclose(after["head"]["kernel"], PARAMS["head"]["kernel"])


def test_values_of_rules_are_arrays_of_one_compiled_program():
  optimiser = _build([("head/.*", {"wd": 1.0}), (".*", {})])
  traces = []

  @jax.jit
  def update(hparams):
    traces.append(1)
    return optimiser.tx.update(GRADS, optimiser.tx.init(PARAMS), PARAMS, hparams=hparams)[0]

  first = update(optimiser.hparams)
  second = update({**optimiser.hparams, "rule_wd": np.array([5.0, 0.0], np.float32)})
  assert len(traces) == 1
  assert not np.allclose(first["head"]["kernel"], second["head"]["kernel"])


@pytest.mark.parametrize("rules, kwargs, message", [
    ([("heads/.*", {}), (".*", {})], {}, "first match of no parameter"),
    ([("head/.*", {})], {}, "no rule claims body/kernel"),
    ([(".*", {"decay": 1})], {}, "sets .'decay'.: expected 'lr' or 'wd'"),
    ([(".*", {})], {"name": "adam"}, "'adam' is unknown")])
def test_bad_rules(rules, kwargs, message):
  with pytest.raises(ValueError, match=message):
    _build(rules, **kwargs)


def test_table_prints_the_product_that_others_call_weight_decay():
  table = _build([("head/.*", {"wd": 3.0}), (".*", {"wd": 0.03})]).table
  assert table.splitlines()[1].split() == ["head/.*", "1", "0.1", "3", "0.3"]


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_schedules_rise_then_fall_within_the_unit(name):
  s = schedules.unit_schedule(100, name=name, warmup_steps=10, timescale=20)
  assert s.shape == (100,) and s.dtype == np.float32 and s[0] == 0
  np.testing.assert_allclose(s[:11], np.arange(11) / 10, atol=1e-6)
  assert (np.diff(s[10:]) <= 0).all() and s.min() >= 0 and s.max() == 1


def test_schedules_at_known_points():
  assert schedules.unit_schedule(100, name="cosine")[50] == pytest.approx(0.5, abs=1e-6)
  assert schedules.unit_schedule(100, name="linear", end=0.2)[50] == pytest.approx(0.6, abs=1e-6)
  s = schedules.unit_schedule(100, name="rsqrt", warmup_steps=10, timescale=30, cooldown_steps=20)
  assert s[40] == pytest.approx(np.sqrt(30 / 60), abs=1e-6)
  assert s[90] == pytest.approx(np.sqrt(30 / 110) / 2, abs=1e-6)


@pytest.mark.parametrize("kwargs, message", [
    (dict(name="cosin"), "expected one of"), (dict(warmup_steps=100), "do not fit"),
    (dict(name="rsqrt", warmup_steps=50, cooldown_steps=50), "do not fit"),
    (dict(cooldown_steps=5), "ends by itself")])
def test_bad_schedules(kwargs, message):
  with pytest.raises(ValueError, match=message):
    schedules.unit_schedule(100, **kwargs)
