"""Few-shot probes of every layer: which, in what order, and that each is told from the others."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer import models
from big_transfer import trees
from big_transfer.data import pipeline
from big_transfer.evaluators import features
from big_transfer.evaluators import fewshot
from big_transfer.models import shapes as shapes_lib

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
      prepare=lambda source: pipeline.prepare(source, SIZE), upstream=None,
      layers=(*sorted(LAYERS), "logits"), batch_size=batch_size)


def _rows(apply, params, layers, batch_size=64, **kwargs):
  settings = {"tasks": ["digits"], "shots": (5,), "seeds": (0, 1), **kwargs}
  probe = fewshot.FewShot(_context(apply, batch_size), layers=layers, **settings)
  return list(probe.rows(params))


def test_layers_are_ordered_by_depth_whatever_the_order_of_keys():
  names = ["pre_logits", "block_101", "logits", "block_99", "stem", "block_00"]
  expected = ["stem", "block_00", "block_99", "block_101", "pre_logits", "logits"]
  assert features.resolve("all", names) == expected[:-1]
  assert features.resolve((-1, "stem", -2, "pre_logits", 4, 0), names) == [
      "stem", "block_101", "pre_logits"]
  assert features.resolve(("logits", 1), names) == ["block_00", "logits"]


def _parity_task(folder):
  """Random images whose class is one pixel's grey level modulo 4: nothing linear tells it."""
  images = np.random.default_rng(0).integers(0, 256, (800, SIZE, SIZE, 3), dtype=np.uint8)
  labels = images[:, 0, 0, 0] % 4
  np.savez(folder / "parity.npz", x_train=images[:300], y_train=labels[:300],
           x_test=images[300:], y_test=labels[300:])
  return dict(name="parity", source=f"npz:{folder}/parity.npz")


def _planted(module, params):
  """The model, but block_01 writes the class into its output and block_02 takes it out again.

  By taps, which are added to the blocks' unpooled outputs. The branches of block_02 are zero, so
  that it answers to nothing it reads.
  """
  silent = re.compile(r"(encoderblock_2/.*/(out|Dense_1)|MixerBlock_2/.*/Dense_1"
                      r"|block2/unit02/conv3)/.*")
  flat = trees.flatten(params)
  assert any(map(silent.search, flat))
  params = trees.unflatten({name: 0 * p if silent.search(name) else p
                            for name, p in flat.items()})
  directions = 5 * np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)

  def apply(variables, images, train=False):
    classes = jnp.round((images[:, 0, 0, 0] + 1) * 127.5).astype(int) % 4
    shapes = shapes_lib.tap_shapes(module, images.shape)
    writes, erases = (
        sign * jnp.broadcast_to(
            jnp.asarray(directions)[classes, :shape[-1]].reshape(
                len(images), *[1] * (len(shape) - 2), shape[-1]), shape)
        for sign, shape in ((1, shapes["block_01"]), (-1, shapes["block_02"])))
    return module.apply(variables, images, train=train,
                        taps={"block_01": writes, "block_02": erases})

  return apply, params


@pytest.mark.parametrize("name", MODELS)
def test_a_feature_planted_in_a_middle_block_is_found_there_in_every_family(name, tmp_path):
  apply, params = _planted(*_model(name))
  rows = _rows(apply, params, "all", tasks=[_parity_task(tmp_path)], shots=(25,), seeds=(0,))
  accuracy = {r["layer"]: r["value"] for r in rows}
  assert list(accuracy) == LAYERS
  assert accuracy.pop("block_01") >= 0.95
  # Four standard errors above chance, of 500 test images.
  assert max(accuracy.values()) < 0.25 + 4 * (0.25 * 0.75 / 500) ** 0.5, accuracy


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
    (("block_03",), r"'block_03'.*did you mean 'block_0\d'\?.*expected some of stem, block_00, "
                    r"block_01, block_02, pre_logits, logits, indices from -5 to 4, or \"all\""),
    (("stem", 5), "layer 5 is not"), ((-6,), "layer -6 is not"),
    (("stem", "block_3"), "'block_3' is not"), ((1.5,), "1.5 is not"), ((True,), "True is not"),
    ("stem", "a list of at least one"), ((), "at least one")])
def test_layers_that_the_model_has_not_are_told_before_anything_is_measured(layers, message):
  with pytest.raises(ValueError, match=message):
    fewshot.FewShot(_context(None), tasks=["digits"], layers=layers)


def test_layers_solved_a_few_at_a_time_are_those_solved_at_once(monkeypatch):
  module, params = _model("vit")
  solved, correct = [], fewshot.ridge.correct
  monkeypatch.setattr(fewshot.ridge, "correct", lambda x_KPD, *rest, **kwargs: (
      solved.append(len(x_KPD)), correct(x_KPD, *rest, **kwargs))[1])
  at_once = _rows(module.apply, params, "all")
  monkeypatch.setattr(fewshot, "_AT_ONCE", 1)
  assert _rows(module.apply, params, "all") == at_once
  assert solved == [5] + 5 * [1]


@pytest.mark.slow
def test_layers_of_several_widths_are_padded_to_one_solve_where_that_is_quicker(monkeypatch):
  module, params = _model("resnet")
  shapes, correct = [], fewshot.ridge.correct
  monkeypatch.setattr(fewshot.ridge, "correct", lambda x_KPD, *rest, **kwargs: (
      shapes.append(x_KPD.shape[::2]), correct(x_KPD, *rest, **kwargs))[1])
  padded = _rows(module.apply, params, "all")
  monkeypatch.setattr(fewshot.ridge, "is_small", lambda *sizes: False)
  apart = _rows(module.apply, params, "all")
  assert shapes == [(5, 32), (1, 4), (1, 16), (3, 32)]
  for a, b in zip(padded, apart, strict=True):
    # Another shape may round otherwise: one of 599 scores may fall beyond a tie.
    assert a["layer"] == b["layer"] and abs(a["value"] - b["value"]) < 1.1 / 599


def test_features_that_are_not_finite_give_no_accuracy():
  def apply(variables, images, train=False):
    logits, out = module.apply(variables, images, train=train)
    return logits, out | {"block_01": out["block_01"] * jnp.inf}

  module, params = _model("mixer")
  for row in _rows(apply, params, ("block_01", "pre_logits")):
    if row["layer"] == "block_01":
      assert (row["value"], row["status"]) == (None, "non-finite") and "NaN" in row["reason"]
    else:
      assert row["status"] == "ok" and row["value"] > 0
