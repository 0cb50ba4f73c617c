"""Nested subsets of a labelled data set, so that runs differ in how much data they had and nothing
else (Abnar et al. 2021, sec. 2.3: 2 % to 100 % of the upstream data).
"""
import math

import numpy as np


def nested(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
  """Chooses a share of the examples of every class; a smaller share lies within a larger one.

  Each class is put into a random order by the seed, and the first `ceil(fraction · n_c)` of its
  n_c examples are taken. So no class is ever lost, the subsets of one seed are nested, and the
  share taken is `fraction` or, by at most an example a class, more. Labels are all it reads: no
  image is decoded, and training reads the labels in any case.

  Args:
    labels: (N,) int.
    fraction: share of each class, in (0, 1].
    seed: which order, non-negative; not a run's own seed, so that runs of several seeds can
      train on the same examples.

  Returns:
    Indices in ascending order, int64; of all examples for a fraction of 1.

  Raises:
    ValueError: see `check`.
  """
  check(fraction, seed)
  labels = np.asarray(labels)
  # Raw bits, as for the order of the epochs: NumPy promises them for all its versions (NEP 19).
  # The 1 keeps them apart from the bits of that order, of which the seeds are pairs too.
  bits = np.random.PCG64(np.random.SeedSequence((seed, 0, 1))).random_raw(len(labels))
  order = np.lexsort((bits, labels))
  counts = np.unique(labels, return_counts=True)[1]
  # Half a billionth off, lest 0.07 · 100 = 7.000000000000001 make it 8.
  taken = [math.ceil(fraction * count - 5e-10 * count) for count in counts.tolist()]
  place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
  return np.sort(order[place_in_class < np.repeat(np.maximum(taken, 1), counts)])


def check(fraction: float, seed: int) -> None:
  """Raises ValueError unless there can be a subset of this fraction and seed; see `nested`."""
  number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
  if not number or not 0 < fraction <= 1:
    raise ValueError(f"config key 'upstream.fraction' is {fraction!r}: expected a number above 0 "
                     "and at most 1, the share of the training examples of each class")
  if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
    raise ValueError(f"config key 'upstream.fraction_seed' is {seed!r}: expected a whole number, "
                     "at least 0")
