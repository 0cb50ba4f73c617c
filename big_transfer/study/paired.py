"""Curves over the settings of a factor, measured with the same seeds at every setting.

What a seed changes (the order of the data, the initial weights) it changes at every setting alike.
So a slope, or a difference between settings, is taken within each seed, and its interval is
Student's t over seeds. Seeds may lack settings: NaN.

Shape legend: B seeds, A settings, K curves.
"""
import numpy as np
from scipy import stats

LEAST = 3  # settings that a slope takes: with two, no line can be missed
_ROUNDS = 100  # of backfitting; each at least halves the error, where most seeds have most settings


def mean(values, axis=0):
  """Means without what is NaN, and how many values are in them; NaN where there are none."""
  known = np.isfinite(values)
  number = known.sum(axis)
  total = np.where(known, values, 0.0).sum(axis)
  return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0), number


def standard_error(values, axis=0):
  """Standard errors of these means; NaN with fewer than two values."""
  centre, number = mean(values, axis)
  square, _ = mean(np.square(values - np.expand_dims(centre, axis)), axis)
  return np.sqrt(np.divide(square, number - 1, out=np.full(centre.shape, np.nan),
                           where=number > 1))


def interval(values, level, axis=0):
  """(mean, low, high, number of values): Student's t; low and high are NaN with fewer than two."""
  centre, number = mean(values, axis)
  reach = _quantile(number, level) * standard_error(values, axis)
  return centre, centre - reach, centre + reach, number


def _quantile(number, level):
  return stats.t.ppf(0.5 + level / 2.0, np.maximum(number - 1, 1))


def slopes(y_BAK, x_A):
  """Each seed's slope over the settings, by least squares.

  Args:
    y_BAK: values; NaN where not measured.
    x_A: settings, say their logarithms.

  Returns:
    (B, K) slopes; NaN for a seed with fewer than three settings. Where two seeds have all settings
    of a curve, also for those that don't: over a part of a curve that bends the slope is another.
  """
  known = np.isfinite(y_BAK)
  centre_BK, number_BK = mean(np.where(known, x_A[:, None], np.nan), 1)
  x_BAK = np.where(known, x_A[:, None] - centre_BK[:, None], 0.0)
  power_BK = np.square(x_BAK).sum(1)
  whole_BK = (known | ~known.any(0)).all(1)
  used_BK = (number_BK >= LEAST) & (whole_BK | (whole_BK.sum(0) < 2))
  return np.divide((x_BAK * np.where(known, y_BAK, 0.0)).sum(1), power_BK,
                   out=np.full(power_BK.shape, np.nan), where=used_BK)


def turns(y_BAK, level):
  """Which curves rise and then fall, or fall and then rise, beyond what seeds explain.

  A setting between the ends counts if it is above both (or below both), by intervals of the
  differences within seeds. Their level allows for its being picked among several (Bonferroni).

  Args:
    y_BAK: values; NaN where not measured. Of a curve the ends are the first and last setting that
      any seed has.
    level: nominal coverage.

  Returns:
    (sign_K, 1 where a curve has a peak, -1 a trough, 0 neither; at_K, the setting's index).
  """
  tried_AK, mean_AK = np.isfinite(y_BAK).any(0), means(y_BAK)
  number_A = np.arange(len(mean_AK))[:, None]
  low_K, high_K = tried_AK.argmax(0), len(mean_AK) - 1 - tried_AK[::-1].argmax(0)
  inner_AK = tried_AK & (number_A > low_K) & (number_A < high_K)
  strict_K = 1.0 - (1.0 - level) / np.maximum(inner_AK.sum(0), 1)
  sign_K, found_K = np.zeros(tried_AK.shape[1], int), np.zeros(tried_AK.shape[1], int)
  for sign in (-1, 1):
    at_K = np.where(inner_AK, sign * mean_AK, -np.inf).argmax(0)
    there_BK = _at(y_BAK, at_K)
    beyond_K = inner_AK.any(0)
    for end_K in (low_K, high_K):
      _, low, _, _ = interval(sign * (there_BK - _at(y_BAK, end_K)), strict_K)
      beyond_K = beyond_K & (low > 0)
    sign_K[beyond_K], found_K[beyond_K] = sign, at_K[beyond_K]
  return sign_K, found_K


def _at(y_BAK, at_K):
  """(B, K) values at one setting a curve."""
  return np.take_along_axis(y_BAK, at_K[None, None], axis=1)[:, 0]


def means(y_BAK):
  """Means of settings over seeds, as if all seeds had all settings.

  Where some are missing, a setting that the lucky seeds happen to have isn't better for it: means
  are those of the additive model, seed plus setting, by least squares (backfitting).

  Args:
    y_BAK: values; NaN where not measured.

  Returns:
    (A, K) means; NaN for settings that a curve lacks.
  """
  mean_AK, _ = mean(y_BAK)
  known = np.isfinite(y_BAK)
  gaps_K = (known.any(1)[:, None] & known.any(0) & ~known).any((0, 1))
  y_BAJ, found_AJ = y_BAK[..., gaps_K], mean_AK[:, gaps_K]
  for _ in range(_ROUNDS if gaps_K.any() else 0):
    luck_BJ, _ = mean(y_BAJ - found_AJ, 1)
    found_AJ, _ = mean(y_BAJ - luck_BJ[:, None])
    mean_AK[:, gaps_K] = found_AJ + mean(luck_BJ)[0]
  return mean_AK


def best(y_BAK, level):
  """The setting of the highest mean, and those that can't be told from it.

  Args:
    y_BAK: values; NaN where not measured.
    level: nominal coverage of the interval of a difference.

  Returns:
    (best_K, the setting's index; mean_AK, see `means`; near_AK, whether the interval of the best
    less the setting, paired over seeds, holds 0, or both are the best. With fewer than two seeds
    that have both, only the best is near).
  """
  tried_AK, mean_AK = np.isfinite(y_BAK).any(0), means(y_BAK)
  best_K = np.where(np.isfinite(mean_AK), mean_AK, -np.inf).argmax(0)
  behind_BAK = _at(y_BAK, best_K)[:, None] - y_BAK
  behind_AK, number_AK = mean(behind_BAK)
  reach_AK = _quantile(number_AK, level) * standard_error(behind_BAK)
  near_AK = (behind_AK <= np.where(number_AK > 1, reach_AK, -np.inf))
  near_AK |= np.arange(len(mean_AK))[:, None] == best_K
  return best_K, mean_AK, near_AK & tried_AK
