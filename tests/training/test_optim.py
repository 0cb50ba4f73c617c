"""The weight-decay equation, rules and schedules."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_transfer import trees
from big_transfer.training import optim
from big_transfer.training import program
from big_transfer.training import schedules
from big_transfer.training import step as step_lib

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


def _adafactor_oracle(theta, gradients, lr, wd, momentum, cap, factored):
  """1804.04235, algorithm 4, with the changes of 2106.04560, section 3.4, in float64."""
  rows, columns, v, mean = 0.0, 0.0, 0.0, 0.0
  for t, g in enumerate(gradients):
    beta2 = min(cap, 1 - (t + 1) ** -0.8)
    square = g ** 2 + 1e-30
    if factored:
      rows = beta2 * rows + (1 - beta2) * square.mean(axis=1)
      columns = beta2 * columns + (1 - beta2) * square.mean(axis=0)
      v = np.outer(rows, columns) / rows.mean()
    else:
      v = beta2 * v + (1 - beta2) * square
    mean = momentum * mean + (1 - momentum) * g / np.sqrt(v)
    theta = theta - lr * (mean + wd * theta)
  return theta


@pytest.mark.parametrize("cap", [0.999, 0.3])  # the second is reached within the four steps
def test_adafactor_is_its_papers(cap):
  rng = np.random.default_rng(0)
  shapes = {"large": {"kernel": (40, 33)}, "small": {"kernel": (40, 31)}}
  params = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes,
                        is_leaf=lambda x: isinstance(x, tuple))
  gradients = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
               for _ in range(4)]
  opt = optim.build(["large/kernel", "small/kernel"], [(".*", {"wd": 0.1})], lr=0.01, clip=None,
                    name="adafactor", beta2_cap=cap, mu_dtype="float32")
  after, state = params, opt.tx.init(params)
  for g in gradients:
    updates, state = opt.tx.update(g, state, after, hparams=opt.hparams)
    after = optax.apply_updates(after, updates)
  for name, factored in (("large", True), ("small", False)):
    expected = _adafactor_oracle(
        np.float64(params[name]["kernel"]), [np.float64(g[name]["kernel"]) for g in gradients],
        lr=0.01, wd=0.1, momentum=0.9, cap=cap, factored=factored)
    np.testing.assert_allclose(after[name]["kernel"], expected, atol=1e-6)


def _bytes(state):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_what_the_moments_of_a_large_matrix_take():
  params, elements = {"kernel": jnp.zeros((256, 128))}, 256 * 128
  def state(**kwargs):
    return optim.build(["kernel"], [(".*", {})], lr=1.0, **kwargs).tx.init(params)
  assert _bytes(state(name="adamw")) == 8 * elements
  assert _bytes(state(name="adamw", mu_dtype="bfloat16")) == 6 * elements
  # Two bytes an element, a row and a column of float32, and the place of a v that isn't kept.
  assert _bytes(state(name="adafactor")) == 2 * elements + 4 * (256 + 128 + 1)


def test_clip_update_bounds_a_tensors_root_mean_square():
  opt = _build([(".*", {})], name="adafactor", clip=None, clip_update=0.5, momentum=None)
  updates, _ = opt.tx.update(GRADS, opt.tx.init(PARAMS), PARAMS, hparams=opt.hparams)
  for u in jax.tree.leaves(updates):  # the first step's g / √v̂ is ±1; lr is 0.1
    assert np.sqrt(np.mean(np.square(u))) == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("kwargs", [dict(name="adafactor", min_dim_size_to_factor=2),
                                    dict(name="adamw", mu_dtype="bfloat16")])
def test_members_of_a_population_get_the_updates_that_they_get_alone(kwargs):
  opt = _build([(".*", {"wd": 0.1})], **kwargs)
  members = [jax.tree.map(lambda p, i=i: p * (1 + i), PARAMS) for i in range(3)]
  def updates(params, hparams):
    state = opt.tx.init(params)
    _, state = opt.tx.update(GRADS, state, params, hparams=hparams)
    return opt.tx.update(jax.tree.map(jnp.sin, params), state, params, hparams=hparams)
  hparams_M = jax.tree.map(lambda x: np.stack([x, 2 * x, 3 * x]), opt.hparams)
  stacked = jax.vmap(updates)(jax.tree.map(lambda *p: jnp.stack(p), *members), hparams_M)
  for i, params in enumerate(members):
    alone = updates(params, jax.tree.map(lambda x, i=i: x[i], hparams_M))
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-6, atol=1e-7),
                 jax.tree.map(np.float32, alone), jax.tree.map(np.float32, stacked))


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
    (".*", {}, "rules are '.*': expected a list of pairs such as"),
    ([(".*", 0.1)], {}, "a rule is .'.*', 0.1.: expected a list of pairs"),
    ([(".*", {"decay": 1})], {}, "sets .'decay'.: expected 'lr' or 'wd'"),
    ([(".*", {})], {"name": "adam"}, "'adam' is unknown"),
    ([(".*", {})], {"mu_dtype": "float16"}, "mu_dtype is 'float16'"),
    ([(".*", {})], {"clip": -1.0}, "clip is -1.0: expected a number above 0"),  # uphill, it were
    ([(".*", {})], {"lr": "1e-3"}, "lr is '1e-3': expected a number"),
    ([(".*", {})], {"b2": 1.0}, "b2 is 1.0"),
    ([(".*", {})], {"name": "sgd", "momentum": 1.5}, "momentum is 1.5")])
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
    (dict(cooldown_steps=5), "ends by itself"), (dict(drops=0.3), "drops are 0.3"),
    (dict(drops=("a",)), "drops are .'a',."), (dict(drops=(0.6, 0.3)), "expected rising")])
def test_bad_schedules(kwargs, message):
  with pytest.raises(ValueError, match=message):
    schedules.unit_schedule(100, **kwargs)


# ---- frozen parts, and layers that are slower the deeper they lie ----


def _model(name, **arguments):
  return program.network(model=dict(name=name, **arguments), classes=3, image_size=16).shapes


MODELS = {
    "vit": dict(width=8, depth=3, heads=2, mlp_dim=16, patch=8, pool="tok",
                representation_size=8),
    "mixer": dict(width=8, depth=2, tokens_mlp_dim=4, channels_mlp_dim=16, patch=8),
    "resnet": dict(width=0.125, depths=(1, 2), root_kernel=3, root_stride=2)}


@pytest.mark.parametrize("family, expected", [
    ("vit", {"cls": 4, "embedding/kernel": 4, "pos_embedding": 4,
             "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": 3,
             "Transformer/encoderblock_2/LayerNorm_0/scale": 1,
             "Transformer/encoder_norm/scale": 0, "pre_logits/kernel": 0, "head/kernel": 0}),
    ("mixer", {"stem/kernel": 3, "MixerBlock_0/token_mixing/Dense_0/kernel": 2,
               "MixerBlock_1/LayerNorm_0/scale": 1, "head/bias": 0}),
    ("resnet", {"root_block/conv_root/kernel": 4, "block1/unit01/conv1/kernel": 3,
                "block2/unit01/conv1/kernel": 2, "block2/unit02/conv1/kernel": 1,
                "head/kernel": 0})])
def test_layers_are_counted_from_the_top(family, expected):
  """As BEiT numbers them: the head and its norm 0, blocks 1 to L from above, the stem L + 1."""
  found = optim.from_top(list(trees.flatten(_model(family, **MODELS[family]))))
  assert {name: found[name] for name in expected} == expected


def test_layer_decay_slows_the_whole_step_of_a_layer():
  shapes = _model("vit", **MODELS["vit"])
  rng = np.random.default_rng(0)
  params, grads = (jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
                   for _ in range(2))
  names = list(trees.flatten(shapes))
  rules = [("head/.*", {"lr": 3.0, "wd": 0.5}), (".*", {"wd": 0.2})]
  opt = optim.build(names, rules, lr=0.1, name="sgd", clip=None, momentum=None, layer_decay=0.7)
  updates, _ = opt.tx.update(grads, opt.tx.init(params), params, hparams=opt.hparams)
  flat = {key: trees.flatten(tree) for key, tree in (("u", updates), ("p", params), ("g", grads))}
  for name, distance in optim.from_top(names).items():
    m, wd = (3.0, 0.5) if name.startswith("head/") else (1.0, 0.2)
    p, g = (np.float64(flat[key][name]) for key in "pg")
    np.testing.assert_allclose(flat["u"][name], -0.7**distance * 0.1 * (m * g + wd * p),
                               rtol=1e-5, atol=1e-7, err_msg=name)
  assert opt.table.splitlines()[-1].startswith("of rate and decay, by layer (0.7 a layer): stem 0.24")


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_what_is_frozen_has_no_moments(name):
  rules = [("body/.*", {"frozen": True, "wd": 0.5}), (".*", {"wd": 0.1})]
  opt = _build(rules, name=name)
  assert opt.frozen == {"body/kernel"} and opt.head_alone
  state = step_lib.start(PARAMS, opt.tx, opt.frozen).opt_state
  alone = optim.build(["head/kernel"], [(".*", {"wd": 0.1})], lr=0.1, name=name)
  assert trees.shapes(state) == trees.shapes(alone.tx.init({"head": PARAMS["head"]}))
  assert "frozen" in opt.table


def test_the_clipped_norm_is_that_of_what_is_trained():
  rules = [("body/.*", {"frozen": True}), (".*", {})]
  opt = _build(rules, name="sgd", clip=0.1, momentum=None)
  grads = {"head": GRADS["head"]}
  updates, _ = opt.tx.update(grads, opt.tx.init({"head": PARAMS["head"]}),
                             {"head": PARAMS["head"]}, hparams=opt.hparams)
  assert float(optim.global_norm(updates)) == pytest.approx(0.1 * 0.1, rel=1e-5)


@pytest.mark.parametrize("rules, kwargs, message", [
    ([(".*", {"frozen": True})], {}, "every parameter is frozen"),
    ([(".*", {"frozen": 1})], {}, "frozen of rule '.*' is 1"),
    ([(".*", {})], {"layer_decay": 0}, "layer_decay is 0"),
    ([(".*", {})], {"layer_decay": 1.5}, "layer_decay is 1.5")])
def test_bad_parts(rules, kwargs, message):
  with pytest.raises(ValueError, match=message):
    _build(rules, **kwargs)


def test_a_staircase_drops_where_bits_does():
  s = schedules.unit_schedule(500, name="staircase", warmup_steps=100, drops=(0.4, 0.6, 0.8))
  np.testing.assert_allclose(s[[0, 50, 100, 199, 200, 299, 300, 399, 400, 499]],
                             [0, .5, 1, 1, .1, .1, .01, .01, .001, .001], rtol=1e-5)
  s = schedules.unit_schedule(10, name="staircase")
  np.testing.assert_allclose(s, [1] * 3 + [.1] * 3 + [.01] * 3 + [.001], rtol=1e-5)
  with pytest.raises(ValueError, match="drops are .* expected rising"):
    schedules.unit_schedule(10, name="staircase", drops=(0.6, 0.3))
