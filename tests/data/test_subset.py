"""Subsets of the training examples: nested, stratified, the same every time."""
import time

import numpy as np
import pytest

from big_transfer.data import pipeline, subset

FRACTIONS = (0.001, 0.02, 0.1, 1 / 3, 0.5, 0.999, 1.0)


def labels(seed=0, counts=(200, 1, 7, 50, 1000, 0, 3)):
  """A class of 1,000, one of a single example, one of none, in random order."""
  return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def test_a_smaller_share_lies_within_a_larger_one():
  subsets = [set(subset.nested(labels(), fraction)) for fraction in FRACTIONS]
  assert all(small <= large for small, large in zip(subsets, subsets[1:]))
  assert len(subsets[0]) < len(subsets[1]) and subsets[-1] == set(range(len(labels())))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_no_class_is_lost_and_each_gives_its_share(fraction):
  counts = np.bincount(labels())
  taken = np.bincount(labels()[subset.nested(labels(), fraction)], minlength=len(counts))
  assert (taken[counts > 0] >= 1).all()
  assert (taken >= fraction * counts - 1e-6).all() and (taken < fraction * counts + 1).all()


def test_a_whole_number_of_examples_is_not_rounded_up():
  """0.07 · 100 is 7.000000000000001 in floating point; 2 % of 200 are 4."""
  for fraction in np.arange(1, 101) / 100:
    assert len(subset.nested(np.zeros(100, int), float(fraction))) == round(100 * fraction)
  assert np.bincount(np.repeat(np.arange(60), 200)[
      subset.nested(np.repeat(np.arange(60), 200), 0.02)]).tolist() == [4] * 60


def test_seeds_choose_and_repeat():
  same, again, other = (subset.nested(labels(), 0.3, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(same, again)
  assert (np.diff(same) > 0).all() and same.dtype == np.int64
  # Of two independent thirds a third is shared: 125 of 379, with a standard deviation of 8.
  assert 80 < len(set(same) & set(other)) < 170


def test_every_example_is_taken_equally_often():
  taken = sum(np.isin(np.arange(40), subset.nested(np.arange(40) % 2, 0.25, seed))
              for seed in range(400))
  assert np.abs(taken - 100).max() < 45  # five standard deviations of a binomial


def test_the_subsets_of_old_runs_still_hold():
  """If this changes, runs stopped before can't be resumed alike: say so in the changelog."""
  assert subset.nested(np.zeros(20, int), 0.25).tolist() == [4, 5, 6, 7, 15]


def test_a_large_set_takes_seconds():
  many = np.random.default_rng(0).integers(0, 21_000, 1_000_000)
  begin = time.process_time()
  assert len(subset.nested(many, 0.02)) >= 20_000
  assert time.process_time() - begin < 3  # 0.3 where this was written; ImageNet-21k has 14 million


@pytest.mark.parametrize("fraction, seed, message", [
    (0, 0, "'upstream.fraction' is 0: expected a number above 0"), (-0.1, 0, "is -0.1"),
    (1.01, 0, "is 1.01"), (2, 0, "is 2"), (float("nan"), 0, "is nan"), ("0.5", 0, "is '0.5'"),
    (True, 0, "is True"), (None, 0, "is None"),
    (0.5, -1, "'upstream.fraction_seed' is -1"), (0.5, 0.5, "is 0.5: expected a whole number")])
def test_errors(fraction, seed, message):
  with pytest.raises(ValueError, match=message):
    subset.nested(labels(), fraction, seed)


# --- in the pipeline


def stream(prepared, batches, **options):
  iterator = pipeline.train_batches(prepared, **{"batch_size": 8, "seed": 3, **options})
  got = [next(iterator) for _ in range(batches)]
  iterator.close()
  return got


def test_all_examples_give_the_order_of_none_named(make_source):
  prepared = pipeline.prepare(make_source(20), 8)
  for a, b in zip(stream(prepared, 6), stream(prepared, 6, examples=np.arange(20)), strict=True):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_each_epoch_holds_the_subset_once_and_nothing_else(make_source):
  prepared = pipeline.prepare(make_source(20), 8)
  chosen = subset.nested(prepared.labels, 0.4)
  batches = stream(prepared, 9, examples=chosen)
  pixels = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
  epochs = pixels.reshape(-1, len(chosen))
  assert len(epochs) > 6 and len({tuple(epoch) for epoch in epochs}) > 6
  for epoch in epochs:
    assert sorted(epoch) == chosen.tolist()
  np.testing.assert_array_equal(  # labels are those of the same examples
      np.concatenate([batch["label"] for batch in batches]), pixels % 3)


def test_a_subset_resumes_from_the_step_on_any_number_of_processes(make_source):
  prepared = pipeline.prepare(make_source(20), 8)
  chosen = subset.nested(prepared.labels, 0.4)
  whole = stream(prepared, 12, examples=chosen)
  late = stream(prepared, 5, examples=chosen, step=7)
  parts = [stream(prepared, 5, examples=chosen, step=7, process=(p, 2)) for p in range(2)]
  for step in range(5):
    np.testing.assert_array_equal(whole[7 + step]["image"], late[step]["image"])
    np.testing.assert_array_equal(
        whole[7 + step]["image"], np.concatenate([part[step]["image"] for part in parts]))


@pytest.mark.parametrize("examples, message", [
    ([], "none given"), ([20], "expected 0 to 19"), ([-1], "from -1 to -1")])
def test_examples_that_are_not_there(make_source, examples, message):
  with pytest.raises(ValueError, match=message):
    stream(pipeline.prepare(make_source(20), 8), 1, examples=examples)
