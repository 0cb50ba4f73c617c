"""What a factor says of downstream accuracy beyond what upstream accuracy says, in one regression.

Downstream accuracy is regressed by least squares on a cubic spline in upstream accuracy (its knots
at quantiles, up to ten with the number of runs), a constant for each group of runs, and the
factor's logarithm. Since the constants take up what differs between groups, runs are compared
within them, along one curve.

Shape legend: N runs, D columns of the spline.
"""
import typing

import numpy as np
from scipy import interpolate

_MOST_KNOTS = 10
_SPARE = 5  # residual degrees of freedom below which no scatter is known
_LEAST_FREE = 0.05  # 1 - leverage: a run that fixes its own fitted value weighs no more than this


class Effect(typing.NamedTuple):
  """The effect of a factor, given upstream accuracy.

  Attributes:
    slope: accuracy downstream per doubling of the factor.
    error: its standard error, for scatter that may differ between runs (HC2; MacKinnon and White,
      "Some heteroskedasticity-consistent covariance matrix estimators", 1985).
    free: degrees of freedom of that error.
    share: partial R^2, over the runs that the factor differs in.
    from_noise: the slope that errors of upstream accuracy make by themselves; None: unknown.
    drowned: whether those errors are so large that `from_noise` says too little of it.
  """
  slope: float
  error: float
  free: int
  share: float
  from_noise: float | None
  drowned: bool


def _spline(us_N):
  """Columns (N, D), the constant among what they span."""
  inner = int(np.clip(round(us_N.size ** 0.3) - 3, 0, _MOST_KNOTS))
  low, high = us_N.min(), us_N.max()
  knots = np.unique(np.quantile(us_N, np.arange(1, inner + 1) / (inner + 1)))
  knots = knots[(knots > low) & (knots < high)]
  padded = np.concatenate([[low] * 4, knots, [high] * 4])
  return interpolate.BSpline.design_matrix(us_N, padded, 3).toarray()


class Design:
  """The runs of a regression; downstream accuracies of any number of tasks can follow.

  Attributes:
    enough: whether the runs suffice for the curve, the constants and a slope with an error.
    problem: why there is no slope though there are enough runs, in words, or None.
  """

  def __init__(self, us_N, label_N, value_N):
    """Prepares what doesn't depend on the task.

    Args:
      us_N: upstream accuracies.
      label_N: the group of each run, an integer. Those of a negative label have a constant but no
        part in the slope: they only help to say what the curve is.
      value_N: the factor, > 0 where the label isn't negative.
    """
    _, group_N, size_G = np.unique(label_N, return_inverse=True, return_counts=True)
    self._kept = size_G[group_N] > 1  # a group of one is explained by its own constant
    us_N, value_N = us_N[self._kept], value_N[self._kept]
    self._inside = label_N[self._kept] >= 0
    _, self._group, self._size = np.unique(label_N[self._kept], return_inverse=True,
                                           return_counts=True)
    self.enough, self.problem = False, None
    within = self._inside.sum() - np.unique(self._group[self._inside]).size
    if within < 2:
      return
    if np.ptp(us_N) == 0:
      self.enough, self.problem = True, "upstream accuracy is the same in all runs"
      return
    self._basis, scale, _ = np.linalg.svd(
        np.stack([self._centred(column) for column in _spline(us_N).T], 1), full_matrices=False)
    self._basis = self._basis[:, scale > 1e-8 * scale[0]]
    spare = us_N.size - self._size.size - self._basis.shape[1] - 1
    self.enough, self._free = spare >= _SPARE, int(min(spare, within - 1))
    self._raw, self._us = us_N, self._centred(us_N)
    self._factor = self._centred(np.log2(np.where(self._inside, value_N, 1.0)))
    self._left = self._without_curve(self._factor)
    if self._left @ self._left < 1e-6 * (self._factor @ self._factor):
      self.problem = "the factor can't be told from upstream accuracy: one follows the other"

  def _centred(self, column_N):
    """The column less its mean in each group."""
    return column_N - (np.bincount(self._group, column_N) / self._size)[self._group]

  def _without_curve(self, column_N):
    """A centred column less what the curve explains of it."""
    return column_N - self._basis @ (self._basis.T @ column_N)

  def effect(self, ds_N, us_error_N):
    """The factor's effect on one task.

    Args:
      ds_N: downstream accuracies of the runs, in their order.
      us_error_N: standard errors of their upstream accuracies, NaN where unknown.

    Returns:
      An `Effect`. Only where there are enough runs and no problem.
    """
    ds_N = self._centred(ds_N[self._kept])
    y_N, x_N = self._without_curve(ds_N), self._left
    power = x_N @ x_N
    slope = float(x_N @ y_N / power)
    rest_N = y_N - slope * x_N
    leverage_N = (1.0 / self._size[self._group] + np.square(self._basis).sum(1)
                  + np.square(x_N) / power)
    variance = (np.square(x_N * rest_N) / np.maximum(1.0 - leverage_N, _LEAST_FREE)).sum()
    before = np.square(y_N[self._inside]).sum()
    share = 1.0 - np.square(rest_N[self._inside]).sum() / before if before > 0 else 0.0
    return Effect(slope, float(np.sqrt(variance) / power), self._free, float(max(share, 0.0)),
                  *self._from_noise(ds_N, us_error_N[self._kept]))

  def _from_noise(self, ds_N, us_error_N):
    """(slope that noise upstream makes, to first order, were the curve a parabola; drowned).

    Of what the factor leaves of upstream accuracy, a share (noise over variance) is noise, which
    moves a run along the upstream axis but not downstream: off the curve, by the curve's slope.
    Regressing that on the factor gives the slope; least squares sees the curve flatter by the same
    share, which is undone.
    """
    gain = self._us @ self._factor / (self._factor @ self._factor)
    rest_N = self._us - gain * self._factor
    variance = rest_N @ rest_N / (rest_N.size - self._size.size - 1)
    if not np.isfinite(us_error_N).any() or variance < 1e-12:
      return None, False
    # Were noise the most of what is left, no correction would hold; this caps it at a half.
    known = np.nanmean(np.square(us_error_N)) / variance
    share = min(known, 0.5)
    columns = [self._us, self._centred(np.square(self._raw)), self._factor]
    linear, bend, _ = np.linalg.lstsq(np.stack(columns, 1), ds_N, rcond=None)[0]
    off_N = (linear + 2.0 * bend * self._raw) * share / (1.0 - share) * rest_N
    return float(-self._left @ off_N / (self._left @ self._left)), bool(known > 0.5)
