"""Evaluators against plain computations on a model that is easy to see through."""
import warnings

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer.data import pipeline
from big_transfer.data import sources
from big_transfer.evaluators import features
from big_transfer.evaluators import fewshot
from big_transfer.runs import configuring
from big_transfer.training import objectives
from big_transfer.training import sharding

SIZE = 8


def _apply(variables, images, train=False):
  """Features are the pixels, logits their first ten."""
  assert not train
  pixels = images.reshape(len(images), -1) * variables["params"]["scale"][None]
  return pixels[:, :10], {"stem": pixels[:, :5], "pre_logits": pixels, "logits": pixels[:, :10]}


PARAMS = {"scale": jnp.ones(SIZE * SIZE * 3)}


def _context(batch_size=64, apply=_apply, test=None):
  mesh = sharding.make_mesh()
  prepare = lambda source: pipeline.prepare(source, SIZE)
  return evaluators.Context(
      apply=apply, put=lambda batch: sharding.put_batch(batch, mesh), check=lambda: None,
      prepare=prepare, layers=("stem", "pre_logits", "logits"), batch_size=batch_size,
      upstream=evaluators.Upstream(
          "digits", prepare(sources.open_source("digits", "train")), None,
          prepare(test or sources.open_source("digits", "test")), objectives.softmax_xent))


def _fewshot(context=None, **kwargs):
  return fewshot.FewShot(context or _context(), **{"tasks": ["digits"], **kwargs})


def _digits(split):
  source = sources.open_source("digits", split)
  images = pipeline.prepare(source, SIZE).images(np.arange(len(source)))
  return images.reshape(len(images), -1) / 127.5 - 1, source.labels


@pytest.mark.parametrize("batch_size", [8, 64, 600, 1000])
def test_upstream_counts_every_example_once(batch_size):
  x, y = _digits("test")
  assert len(x) % 8  # the last batch is padded
  rows = {r["metric"]: r["value"] for r in
          evaluators.classification.Classification(_context(batch_size)).rows(PARAMS)}
  logits = x[:, :10]
  assert rows["accuracy"] == pytest.approx((logits.argmax(1) == y).mean(), abs=1e-7)
  picked = logits[np.arange(len(y)), y]
  expected = (np.log(np.exp(logits).sum(1)) - picked).mean()
  assert rows["loss"] == pytest.approx(expected, rel=1e-5)


def test_probe_equals_a_ridge_in_float64_on_the_same_draw():
  x, y = _digits("train")
  test, labels = _digits("test")
  rows = list(_fewshot(shots=(5,), seeds=(0, 3), l2=(1024.0, 1.0)).rows(PARAMS))
  assert [(r["seed"], r["l2"]) for r in rows] == [(0, 1024), (0, 1), (3, 1024), (3, 1)]
  for row in rows:
    index = np.concatenate(fewshot.draw(y, 10, 5, row["seed"]))
    mean, std = x[index].mean(0), x[index].std(0) + 1e-5
    a = np.concatenate([(x[index] - mean) / std, np.full((50, 1), 100)], 1)
    w = np.linalg.solve(a.T @ a + row["l2"] * np.eye(len(a.T)),
                        a.T @ (2 * np.eye(10)[y[index]] - 1))
    scores = np.concatenate([(test - mean) / std, np.full((len(test), 1), 100)], 1) @ w
    # One example in a thousand may lie on a boundary.
    assert row["value"] == pytest.approx((scores.argmax(1) == labels).mean(), abs=1.1e-3)
    assert row["examples_used"] == 50 and row["shots"] == 5 and row["layer"] == "pre_logits"
    assert row["status"] == "ok" and row["reason"] is None


def test_draws_are_random_by_seed_balanced_and_nested():
  labels = np.random.default_rng(0).integers(0, 4, 200)
  five, two = fewshot.draw(labels, 4, 5, seed=1), fewshot.draw(labels, 4, 2, seed=1)
  for label, (more, fewer) in enumerate(zip(five, two)):
    assert len(set(more)) == 5 and (labels[more] == label).all()
    np.testing.assert_array_equal(more[:2], fewer)
  assert not np.array_equal(five[0], fewshot.draw(labels, 4, 5, seed=2)[0])


def test_only_drawn_images_and_the_test_split_are_extracted(monkeypatch):
  asked = []
  original = pipeline.batches

  def batches(examples, indices, *args):
    asked.append(np.asarray(indices))
    return original(examples, indices, *args)

  monkeypatch.setattr(pipeline, "batches", batches)
  evaluator = _fewshot(shots=(1, 3), seeds=(0, 1))
  rows = list(evaluator.rows(PARAMS))
  labels = sources.open_source("digits", "train").labels
  drawn = {i for seed in (0, 1) for d in fewshot.draw(labels, 10, 3, seed) for i in d}
  train, test = asked  # once each, whatever the shots and seeds
  assert set(train) == drawn and len(train) == len(drawn) <= 60
  np.testing.assert_array_equal(test, np.arange(599))
  assert len(rows) == 4


def test_fewer_examples_than_shots_is_said_in_the_row_and_warned_once(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (14, SIZE, SIZE, 3), dtype=np.uint8)
  labels = np.array([0] * 3 + [1] * 6 + [0, 1, 0, 1, 0])
  np.savez(tmp_path / "small.npz", x_train=images[:9], y_train=labels[:9],
           x_test=images[9:], y_test=labels[9:])
  task = dict(name="small", source=f"npz:{tmp_path}/small.npz")
  with pytest.warns(UserWarning, match="'small': its smallest class .0. has 3 examples.*5 shots"):
    evaluator = _fewshot(tasks=[task], shots=(2, 5), seeds=(0,))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    few, more = evaluator.rows(PARAMS)
  assert few["examples_used"] == 4 and few["reason"] is None
  assert more["examples_used"] == 8 and more["reason"] == "smallest class has 3 examples"
  assert more["shots"] == 5


def test_a_label_means_the_same_in_train_and_test(tmp_path):
  image = np.zeros((SIZE, SIZE, 3), np.uint8)
  for name in ("train/cat", "train/dog", "train/emu", "test/cat", "test/emu"):
    (tmp_path / name).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / name / "0.png"), image)
  task = dict(name="animals", source=f"folder:{tmp_path}")
  with pytest.raises(ValueError, match=r"in train alone: \['dog'\]"):
    _fewshot(tasks=[task], shots=(1,))


def test_any_named_layer_can_be_probed():
  rows = list(_fewshot(shots=(1,), seeds=(0,), layers=("stem", "pre_logits")).rows(PARAMS))
  assert [r["layer"] for r in rows] == ["stem", "pre_logits"]
  with pytest.raises(ValueError, match="'block_99'.*expected some of"):
    list(_fewshot(shots=(1,), layers=("block_99",)).rows(PARAMS))
  with pytest.raises(ValueError, match=r"""is 'stem,block_00': .*'\["stem", "block_00"\]'"""):
    features.resolve("stem,block_00", ("stem", "block_00", "pre_logits"))


@pytest.mark.parametrize("kwargs, message", [
    (dict(tasks=["digit"]), "digits"), (dict(tasks="digits"), "name of a suite .*or a list"),
    (dict(shots=()), "at least one"), (dict(shots=(0,)), "must be positive"),
    (dict(shots=2), r"shots is 2: .*typed on a command line as '\(2,\)'"),
    (dict(layers="stem"), r"""layers is 'stem': expected "all" or a list .* '\["stem"\]'"""),
    (dict(layers="stem, block_00"), r"""as '\["stem", "block_00"\]'"""),
    (dict(l2=(0.0,)), "must be positive")])
def test_bad_settings(kwargs, message):
  with pytest.raises(ValueError, match=message):
    _fewshot(**kwargs)


def test_tasks_share_one_compiled_extraction():
  traces = []

  def apply(*args, **kwargs):
    traces.append(1)
    return _apply(*args, **kwargs)

  context = _context(apply=apply)
  for evaluator in (_fewshot(context, tasks=["digits", "sprites_scale"], shots=(1,), seeds=(0,)),
                    _fewshot(context, shots=(1,), seeds=(4,))):
    list(evaluator.rows(PARAMS))
  assert len(traces) == 1


def test_schedule_of_evaluations():
  built = evaluators.build(
      {"up": {"kind": "classification", "every": 4, "first": True}}, _context(), configuring.build)
  assert [step for step in range(11) if built[0].due(step, 10)] == [0, 4, 8, 10]


def test_measures_batch_over_members():
  """What `rows` jits is pure, so that a population can be evaluated in one call."""
  extract = features.extraction(_apply, ("pre_logits",))
  members = {"scale": jnp.stack([PARAMS["scale"], 2 * PARAMS["scale"]])}
  images = np.full((8, SIZE, SIZE, 3), 255, np.uint8)
  out = jax.vmap(extract, in_axes=(0, None))(members, images)["pre_logits"]
  np.testing.assert_allclose(out[1], 2 * out[0])
