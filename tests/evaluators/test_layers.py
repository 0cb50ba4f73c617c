"""Few-shot probes of every layer: which, in what order, and that each is told from the others."""
import functools

import jax
import jax.numpy as jnp
import pytest

from big_transfer import evaluators
from big_transfer import models
from big_transfer.data import pipeline
from big_transfer.evaluators import fewshot

SIZE = 8
MODELS = {
    "vit": dict(width=16, depth=3, heads=2, mlp_dim=16, patch=4, pool="gap"),
    "mixer": dict(width=16, depth=3, tokens_mlp_dim=8, channels_mlp_dim=16, patch=4),
    "resnet": dict(depths=(1, 2), width=0.0625, root_kernel=3, root_stride=1, root_pool=False)}
LAYERS = ["stem", "block_00", "block_01", "block_02", "pre_logits"]


@functools.cache
def _model(name):
  module = models.build(name, num_classes=4, **MODELS[name])
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  return module, params


def _context(apply, batch_size=64):
  return evaluators.Context(  # on one device: eight fake ones take longer to compile for
      apply=apply, put=jax.device_put, check=lambda: None,
      prepare=lambda source: pipeline.prepare(source, SIZE), upstream=None, batch_size=batch_size)


def _rows(apply, params, layers, batch_size=64, **kwargs):
  settings = {"tasks": ["digits"], "shots": (5,), "seeds": (0, 1), **kwargs}
  probe = fewshot.FewShot(_context(apply, batch_size), layers=layers, **settings)
  return list(probe.rows(params))


def test_layers_are_ordered_by_depth_whatever_the_order_of_keys():
  names = ["pre_logits", "block_101", "logits", "block_99", "stem", "block_00"]
  expected = ["stem", "block_00", "block_99", "block_101", "pre_logits", "logits"]
  assert fewshot.by_depth(names) == expected
  assert fewshot.resolve("all", names) == expected[:-1]
  assert fewshot.resolve((-1, "stem", -2, "pre_logits", 4, 0), names) == [
      "stem", "block_101", "pre_logits"]
  assert fewshot.resolve(("logits", 1), names) == ["block_00", "logits"]


@pytest.mark.parametrize("name", MODELS)
def test_all_layers_of_every_family_have_the_same_keys(name):
  module, params = _model(name)
  rows = _rows(module.apply, params, "all")
  assert [r["layer"] for r in rows] == [layer for layer in LAYERS for _ in range(2)]
  assert len({r["value"] for r in rows[::2]}) > 2  # not one layer's accuracies over and over


def test_rows_of_a_layer_are_by_shots_seeds_and_strengths():
  module, params = _model("mixer")
  rows = _rows(module.apply, params, [-1, 1], shots=(5, 1), l2=(1.0, 1024.0))
  assert [(r["layer"], r["shots"], r["seed"], r["l2"]) for r in rows] == [
      (layer, shots, seed, l2) for layer in ("block_00", "pre_logits") for shots in (1, 5)
      for seed in (0, 1) for l2 in (1.0, 1024.0)]


def test_a_layer_is_measured_alike_whatever_else_is_asked_for():
  module, params = _model("vit")
  everything = _rows(module.apply, params, "all")
  for row in _rows(module.apply, params, ("logits", -3, "pre_logits")):
    assert row in everything or row["layer"] == "logits"
  assert _rows(module.apply, params, (-1,)) == everything[-2:]
  shallow = _rows(module.apply, params, (-3, 0))  # deeper blocks are not computed
  assert [r["layer"] for r in shallow[::2]] == ["stem", "block_01"]
  assert shallow == [r for r in everything if r["layer"] in ("stem", "block_01")]


def test_a_layer_is_measured_alike_whatever_the_batch():
  module, params = _model("vit")
  small, large = (_rows(module.apply, params, "all", batch_size=n) for n in (24, 64))
  for a, b in zip(small, large, strict=True):
    # Sums over another shape round otherwise: one of 599 scores may fall beyond a tie.
    assert a["layer"] == b["layer"] and abs(a["value"] - b["value"]) < 1.1 / 599


@pytest.mark.parametrize("layers, message", [
    (("block_3",), r"'block_3'.*did you mean 'block_0\d'\?.*expected some of stem, block_00, "
                   r"block_01, block_02, pre_logits, logits, indices from -5 to 4, or \"all\""),
    (("stem", 5), "few-shot layer 5 is not"), ((-6,), "few-shot layer -6 is not")])
def test_layers_that_the_model_has_not(layers, message):
  with pytest.raises(ValueError, match=message):
    fewshot.resolve(layers, [*LAYERS, "logits"])


@pytest.mark.parametrize("layers, message", [
    ("stem", "expected a list of at least one"), ((), "at least one"),
    ((1.5,), "1.5: expected a name"), ((True,), "True: expected a name")])
def test_layers_that_no_model_has(layers, message):
  with pytest.raises(ValueError, match=message):
    fewshot.FewShot(_context(None), tasks=["digits"], layers=layers)
