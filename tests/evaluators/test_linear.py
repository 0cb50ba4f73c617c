"""Linear probes on all training examples, against a ridge in float64 that holds everything."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer import models
from big_transfer.data import pipeline
from big_transfer.data import sources
from big_transfer.evaluators import linear
from big_transfer.runs import configuring

SIZE = 8


def _apply(variables, images, train=False):
  """Features are pixels, far from zero and of very different spreads."""
  del train
  pixels = images.reshape(len(images), -1)
  spread = jnp.geomspace(1, 1e-2, pixels.shape[1])
  out = pixels * spread[None] * variables["params"]["scale"][None] + 30
  return out, {"stem": out[:, :12], "pre_logits": out, "logits": out}


PARAMS = {"scale": jnp.ones(SIZE * SIZE * 3)}


def _context(batch_size=64, apply=_apply):
  return evaluators.Context(
      apply=apply, put=jax.device_put, check=lambda: None, upstream=None, batch_size=batch_size,
      prepare=lambda source: pipeline.prepare(source, SIZE),
      layers=("stem", "pre_logits", "logits"))


def _linear(context=None, **kwargs):
  return linear.Linear(context or _context(), **{"tasks": ["digits"], **kwargs})


def _features(split, width=None):
  source = sources.open_source("digits", split)
  images = pipeline.prepare(source, SIZE).images(np.arange(len(source)))
  x, _ = _apply({"params": PARAMS}, jnp.asarray(images / 127.5 - 1, jnp.float32))
  return np.asarray(x, np.float64)[:, :width], source.labels


def _oracle(x, y, tests, l2):
  """Scores of a ridge that holds all its examples, an unregularised bias among its columns."""
  mean, scale = x.mean(0), x.std(0) + 1e-5
  a = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], 1)
  penalty = l2 * np.eye(a.shape[1])
  penalty[-1, -1] = 0
  w = np.linalg.solve(a.T @ a + penalty, a.T @ (2 * np.eye(10)[y] - 1))
  return np.concatenate([(tests - mean) / scale, np.ones((len(tests), 1))], 1) @ w


@pytest.mark.parametrize("layer, width", [("stem", 12), ("pre_logits", None)])
def test_strength_and_accuracy_are_those_of_a_ridge_in_float64(layer, width):
  x, y = _features("train", width)
  tests, labels = _features("test", width)
  [row] = _linear(layers=(layer,), seed=3).rows(PARAMS)
  held = linear.hold_out(y, 10, 3)
  fitted = np.setdiff1d(np.arange(len(y)), held)
  right = {s: (_oracle(x[fitted], y[fitted], x[held], s * len(fitted)).argmax(1) == y[held]).sum()
           for s in linear.STRENGTHS}
  best = max(s for s in right if right[s] == max(right.values()))
  assert len(set(right.values())) > 2, "the strengths tried should matter here"
  assert row["l2"] == pytest.approx(best * len(y))
  accuracy = (_oracle(x, y, tests, best * len(y)).argmax(1) == labels).mean()
  assert row["value"] == pytest.approx(accuracy, abs=1.1 / len(labels))  # a score on a boundary
  assert {**row, "value": 0, "l2": 0, "reason": None} == {
      "evaluator": "linear", "task": "digits", "variant": "full", "setting": "linear",
      "split": "test", "examples_used": len(y), "seed": 3, "layer": layer, "metric": "accuracy",
      "value": 0, "l2": 0, "status": "ok", "reason": None}


def test_weights_are_the_oracles_though_means_are_large_beside_spreads(monkeypatch):
  kept = []
  original = linear.Linear._counted
  monkeypatch.setattr(linear.Linear, "_counted", lambda self, probe, params, passes, origins,
                      weights, stacked: (kept.append((origins, weights)), original(
                          self, probe, params, passes, origins, weights, stacked))[1])
  [row] = _linear().rows(PARAMS)
  [(origins, weights)] = kept
  x, y = _features("train")
  tests, _ = _features("test")
  expected = _oracle(x, y, tests, row["l2"])
  w_DC, b_C = (part[0].astype(np.float64) for part in weights["pre_logits"])
  scores = (tests - origins["pre_logits"][0]) @ w_DC + b_C
  # Sums in float32 over 64 examples at a time: some 1e-7 of features of unit size, times what the
  # weakest directions (1e-6 N and up) magnify.
  np.testing.assert_allclose(scores, expected, atol=3e-4)


def test_rows_do_not_depend_on_the_batch_nor_on_what_else_is_probed():
  alike = [list(_linear(_context(batch), layers="all").rows(PARAMS)) for batch in (24, 64, 600,
                                                                                   2000)]
  assert [row["layer"] for row in alike[0]] == ["stem", "pre_logits"]
  for rows in alike[1:]:
    for a, b in zip(alike[0], rows, strict=True):
      assert {**a, "value": 0} == {**b, "value": 0}
      assert abs(a["value"] - b["value"]) < 1.1 / 599  # rounding may move a score over a boundary
  assert list(_linear(layers=("stem",)).rows(PARAMS)) == [
      row for row in alike[1] if row["layer"] == "stem"]


def test_sums_are_handed_to_the_host_now_and_then_and_add_up_to_the_same(monkeypatch):
  whole = list(_linear().rows(PARAMS))
  moves = []
  original = linear.Linear._moved
  monkeypatch.setattr(linear.Linear, "_moved", lambda self, total, part: (
      moves.append(1), original(self, total, part))[1])
  monkeypatch.setattr(linear, "_ON_DEVICE", 200)
  assert list(_linear().rows(PARAMS)) == whole and len(moves) == 5  # 1,079 fitted, 4 × 64 at once


@pytest.mark.parametrize("labels, classes, held", [
    (np.repeat(np.arange(10), 100), 10, 100), (np.repeat(np.arange(4), [3, 30, 300, 2000]), 5, 233),
    (np.arange(20) % 10, 10, 2), (np.array([0, 1]), 2, 1), (np.array([0, 0, 0]), 1, 1)])
def test_the_held_out_part_is_a_tenth_of_each_class(labels, classes, held):
  index = linear.hold_out(labels, classes, 0)
  assert len(set(index)) == len(index) == held
  counts, drawn = (np.bincount(l, minlength=classes) for l in (labels, labels[index]))
  assert (np.abs(drawn - 0.1 * counts) <= 1).all()
  if (counts[counts > 0] > 1).any():
    assert (drawn < counts)[counts > 0].all()
  assert held < 3 or not np.array_equal(index, linear.hold_out(labels, classes, 1))
  np.testing.assert_array_equal(index, linear.hold_out(labels, classes, 0))


def test_no_more_than_ten_thousand_are_held_out():
  labels = np.random.default_rng(0).integers(0, 7, 300_000)
  drawn = np.bincount(labels[linear.hold_out(labels, 7, 0)], minlength=7)
  assert drawn.sum() == 10_000
  np.testing.assert_allclose(drawn, np.bincount(labels) / 30, atol=1)


def test_more_features_than_examples(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, SIZE, SIZE, 3), dtype=np.uint8)
  labels = (images[:, 0, 0, 0] > 127).astype(int)
  images[:, :2] = np.where(labels[:, None, None, None], 250, 5)  # an easy task
  np.savez(tmp_path / "few.npz", x_train=images[:30], y_train=labels[:30],
           x_test=images[30:], y_test=labels[30:])
  task = dict(name="few", source=f"npz:{tmp_path}/few.npz")
  [row] = _linear(tasks=[task]).rows(PARAMS)
  assert row["value"] == 1 and row["examples_used"] == 30 and row["status"] == "ok"


def test_where_rounding_is_as_large_as_a_strength_the_probe_is_the_one_that_was_chosen():
  """With fewer examples than features: rounding then takes directions of no variance below zero."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(700, 300))
  y = (x[:, :40] @ rng.normal(size=(40, 5))).argmax(1)
  sums = linear.Sums.of(x[:200], y[:200], 5)
  rounding = rng.normal(size=sums.gram.shape)
  rounding += rounding.T
  l2 = min(linear.STRENGTHS) * 200
  rounding *= l2 / np.abs(np.linalg.eigvalsh(rounding)).max()
  ridge = linear.Ridge(linear.Sums(sums.gram + rounding, sums.by_class, sums.counts))
  weights_DC, bias_C = ridge.solve(l2)
  right = ((x[200:] @ weights_DC + bias_C).argmax(1) == y[200:]).sum()
  assert ridge.right(x[200:], y[200:], [l2]) == right
  weights_DC, bias_C = linear.Ridge(sums).solve(l2)
  assert right == pytest.approx(((x[200:] @ weights_DC + bias_C).argmax(1) == y[200:]).sum(), abs=5)


def test_a_validation_split_chooses_the_strength_and_is_fitted_to_only_where_it_is_training_data(
    monkeypatch):
  kept = {}
  original = linear.Ridge.__init__
  monkeypatch.setattr(linear.Ridge, "__init__", lambda self, sums: (
      kept.setdefault("fitted", []).append(int(sums.counts.sum())), original(self, sums))[1])
  x, y = _features("train")
  opened = []

  class Split:
    """The digits' training examples in parts, by the expressions of TFDS."""
    parts = {"train[:800]+train[900:1000]": np.r_[:800, 900:1000],
             "train[900:1000]": np.r_[900:1000], "val": np.r_[1000:1100], "test": np.r_[1100:1198],
             "train[:800]": np.r_[:800]}

    def __init__(self, split):
      opened.append(split)
      source = sources.open_source("digits", "train")
      self.source, self.index = source, self.parts[split]
      self.spec = {"name": "parts", "split": split}
      self.name, self.num_classes, self.class_names = "parts", 10, None
      self.labels = source.labels[self.index]

    def __len__(self):
      return len(self.index)

    def images_at(self, indices):
      return self.source.images_at(self.index[np.asarray(indices)])

  monkeypatch.setattr("big_transfer.data.tasks.open_source",
                      lambda source, split, **options: Split(split))
  inside, apart = (dict(name=name, source="parts", train=train, validation=validation)
                   for name, train, validation in (
                       ("inside", "train[:800]+train[900:1000]", "train[900:1000]"),
                       ("apart", "train[:800]", "val")))
  evaluator = _linear(tasks=[inside, apart])
  rows = list(evaluator.rows(PARAMS))
  first, second = evaluator.probes
  np.testing.assert_array_equal(first.held, np.arange(800, 900))  # the validation part of train
  np.testing.assert_array_equal(first.held_labels, y[900:1000])
  np.testing.assert_array_equal(second.held_labels, y[1000:1100])
  assert kept["fitted"] == [800, 900, 800, 800]
  assert [row["examples_used"] for row in rows] == [900, 800] and "val" in opened
  for row, fitted in zip(rows, (np.r_[:800, 900:1000], np.r_[:800])):
    scores = _oracle(x[fitted], y[fitted], x[1100:1198], row["l2"])
    assert row["value"] == pytest.approx((scores.argmax(1) == y[1100:1198]).mean(), abs=1.1 / 98)


def test_scores_that_are_not_finite_give_no_accuracy():
  [row] = _linear().rows({"scale": PARAMS["scale"].at[3].set(jnp.nan)})
  assert (row["value"], row["status"], row["l2"]) == (None, "non-finite", None)
  assert "NaN" in row["reason"]


@pytest.mark.parametrize("held", [
    10**9, pytest.param(1, marks=pytest.mark.slow)], ids=["at once", "one by one"])
def test_each_member_of_a_population_gets_the_rows_it_has_alone(held, monkeypatch):
  module = models.build("vit", num_classes=4, width=16, depth=1, heads=2, mlp_dim=16, patch=4,
                        pool="gap")
  init = jax.jit(module.init)
  each = [init(jax.random.key(i), jnp.zeros((1, SIZE, SIZE, 3)))["params"] for i in range(2)]
  each[1]["embedding"]["kernel"] = each[1]["embedding"]["kernel"].at[..., 2:].set(0)  # the worse
  context = evaluators.Context(
      apply=module.apply, put=jax.device_put, check=lambda: None, upstream=None, batch_size=200,
      prepare=lambda source: pipeline.prepare(source, SIZE),
      layers=("stem", "block_00", "pre_logits", "logits"))
  [item] = evaluators.build({"linear": dict(kind="linear", every=1, tasks=("digits",),
                                            layers=(0, -1))}, context, configuring.build)
  assert isinstance(item.evaluator, evaluators.ForMembers)
  monkeypatch.setattr(linear.features_lib, "HELD", held)
  alone = [item.run(params, 1) for params in each]
  together = item.run_members(jax.tree.map(lambda *p: jnp.stack(p), *each), 1, 2)
  for one, rows in zip(alone, together, strict=True):
    assert [row["layer"] for row in rows] == ["stem", "pre_logits"]
    for a, b in zip(one, rows, strict=True):
      changing = {"value": 0, "l2": 0, "reason": None}
      assert {**a, **changing} == {**b, **changing}
      # Rounding may choose another of two strengths that are alike on 119 held-out examples.
      assert abs(a["value"] - b["value"]) < 0.02
  assert abs(alone[0][-1]["value"] - alone[1][-1]["value"]) > 0.02, "else a mix-up wouldn't show"


@pytest.mark.parametrize("kwargs, message", [
    (dict(strengths=()), "strengths is .*a list"), (dict(strengths=(0.0, 1.0)), "positive"),
    (dict(strengths=1.0), r"as '\(1.0,\)'"), (dict(seed=-1), "seed is -1"),
    (dict(seed=True), "whole number"), (dict(layers=("block_7",)), "'block_7' is not of this"),
    (dict(tasks="digits"), "name of a suite"), (dict(missing="ignore"), "expected 'error', or")])
def test_bad_settings(kwargs, message):
  with pytest.raises(ValueError, match=message):
    _linear(**kwargs)
