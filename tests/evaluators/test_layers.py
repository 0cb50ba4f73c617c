"""Few-shot probes of every layer: which, in what order, and that each is told from the others."""
import jax
import jax.numpy as jnp
import pytest

from big_transfer import evaluators
from big_transfer import models
from big_transfer.data import pipeline
from big_transfer.evaluators import fewshot
from big_transfer.training import sharding

SIZE = 8
MODELS = {
    "vit": dict(width=16, depth=3, heads=2, mlp_dim=16, patch=4, pool="gap"),
    "mixer": dict(width=16, depth=3, tokens_mlp_dim=8, channels_mlp_dim=16, patch=4),
    "resnet": dict(depths=(1, 2), width=0.0625, root_kernel=3, root_stride=1, root_pool=False)}
LAYERS = ["stem", "block_00", "block_01", "block_02", "pre_logits"]


def _model(name, **overrides):
  module = models.build(name, num_classes=4, **{**MODELS[name], **overrides})
  params = module.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  return module, params


def _context(apply, batch_size=64):
  mesh = sharding.make_mesh()
  return evaluators.Context(
      apply=apply, put=lambda batch: sharding.put_batch(batch, mesh), check=lambda: None,
      prepare=lambda source: pipeline.prepare(source, SIZE), upstream=None, batch_size=batch_size)


def _rows(apply, params, layers, batch_size=64, **kwargs):
  settings = {"tasks": ["digits"], "shots": (1, 5), "seeds": (0, 1), **kwargs}
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
  assert [r["layer"] for r in rows] == [layer for layer in LAYERS for _ in range(4)]
  assert [(r["shots"], r["seed"]) for r in rows[:4]] == [(1, 0), (1, 1), (5, 0), (5, 1)]
  assert len({r["value"] for r in rows}) > 5  # not one layer's accuracies over and over


def test_a_layer_is_measured_alike_whatever_else_is_asked_for():
  module, params = _model("vit", depth=4)
  everything = _rows(module.apply, params, "all")
  for layers in (("pre_logits",), (-1,), ["logits", -3, "pre_logits"]):
    for row in _rows(module.apply, params, layers):
      assert row in everything or row["layer"] == "logits"
  shallow = _rows(module.apply, params, (-4, 0))  # deeper blocks are not computed
  assert [r["layer"] for r in shallow[::4]] == ["stem", "block_01"]
  assert [r["value"] for r in shallow] == [
      r["value"] for r in everything if r["layer"] in ("stem", "block_01")]


def test_a_layer_is_measured_alike_whatever_the_batch():
  module, params = _model("vit")
  small, large = (_rows(module.apply, params, "all", batch_size=n) for n in (24, 600))
  for a, b in zip(small, large, strict=True):
    # Sums over another shape round otherwise: one of 599 scores may fall beyond a tie.
    assert a["layer"] == b["layer"] and abs(a["value"] - b["value"]) < 1.1 / 599


@pytest.mark.parametrize("layers, message", [
    (("block_3",), r"'block_3'.*did you mean 'block_0\d'\?.*expected some of stem, block_00, "
                   r"block_01, block_02, pre_logits, logits, indices from -5 to 4, or \"all\""),
    (("stem", 5), "few-shot layer 5 is not"), ((-6,), "few-shot layer -6 is not"),
    ("stem", "expected a list of at least one"), ((), "at least one"),
    ((1.5,), "1.5: expected a name"), ((True,), "True: expected a name")])
def test_layers_that_are_not_there(layers, message):
  module, params = _model("vit")
  with pytest.raises(ValueError, match=message):
    _rows(module.apply, params, layers)
