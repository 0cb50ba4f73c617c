"""Intervals of parameters fitted at a frontier: subsampling, and noise in the accuracies taken out.

Estimates on m < n runs, drawn without replacement, deviate from the one on all n as that one does
from the truth, but for a factor of m / n (Politis, Romano and Wolf, "Subsampling", 1999). Those
from all points scatter about the truth, by n^-1/2. Those from a hull near the frontier from one
side: the median deviation is a bias that vanishes like n^-2/5 or faster, the rest scatters. Runs
are drawn, not points: the evaluations of one run aren't independent.

Noise in the accuracies lifts a hull, the more the more runs there are, and blurs a curve to all
points, and no resampling of the runs can tell. Where standard errors are known, the fits are
repeated with more noise than there is and followed back to none (Cook and Stefanski, "Simulation-
extrapolation estimation in parametric measurement error models", 1994). The interval is centred on
the estimate less what noise adds, made wider by what is doubtful about that, and stretched to hold
the estimate itself; that of a frontier's saturation value begins no lower than the best run, less
luck (`saturation`). The standard errors must be of noise that is independent between runs; where
they aren't known none is allowed for, and with many runs that shows, below.

What nominal 90 % intervals covered, in percent, for k / alpha / e_IR, on five planted frontiers, 40
data sets each; in brackets the worst of a frontier's; and the median width for e_IR.
`python tests/bench/coverage.py --seed 1`, which says what the designs are, on 2026-11-22; standard
error 2 (of the worst: 5). The noise has standard deviation 0.01 on both accuracies.

    runs                                          20                   200                  1000
    hull, exponential             99/98/94 (92) .090  99/100/100 (98) .026  100/98/100 (88) .009
    hull, exponential, noise      99/98/95 (92) .077  98/100/100 (92) .050    98/98/99 (95) .038
    hull, half-normal             99/98/92 (85) .110    98/95/98 (80) .031    99/96/99 (80) .011
    hull, half-normal, noise      99/99/94 (88) .097    98/98/99 (95) .057    94/96/99 (88) .044
    hull, lumped                  97/96/97 (92) .097  100/98/100 (90) .023  100/99/100 (95) .008
    hull, lumped, noise           98/97/97 (95) .076    99/98/99 (95) .047   95/95/100 (85) .038
    hull, few-near                96/99/86 (78) .100   100/99/92 (90) .031    98/92/96 (70) .014
    hull, few-near, noise         98/99/89 (82) .080    99/98/94 (88) .052    96/94/99 (80) .041
    all, scatter                  96/94/91 (85) .045    97/90/90 (82) .010    94/89/92 (82) .004
    all, scatter, noise           99/97/97 (92) .058    97/94/94 (90) .014    98/98/96 (90) .007
    half-normal, noise not told   99/98/94 (88) .119    98/94/98 (85) .041     66/65/44 (0) .024
    bootstrap, exponential        76/84/34 (15) .035      78/80/5 (0) .005      74/77/0 (0) .001

Shape legend: N points, U runs, R subsamples, B noisy copies, M points of a subsample, P
parameters.
"""
import dataclasses
import functools
import math

import numpy as np
from scipy import stats

_MIN_SUBSAMPLE = 8
_SIZE_EXPONENT = 0.6  # m = n^0.6
# Noise of these times the known variance is added to see what noise does.
_EXTRA = (1.0, 2.0)
# What noise adds to a hull grows as the standard deviation to this power: it would be 1 with many
# runs within the noise of the frontier and 2 with few.
_HULL_POWER = 4.0 / 3.0
# A hull nears its frontier from one side, at n^-2/3 where as many runs are close to the frontier as
# a little below it, and at n^-2/5 where ever fewer are (a density that vanishes linearly).
_HULL_RATE = 0.4
# Noise moves the correction and the estimate that is corrected, not quite independently.
_NOISE_REACH = 1.2
# What noise adds is known no better than this share of it: it is followed back beyond what was
# seen, and the standard errors are estimates too.
_LIFT_DOUBT = 0.25


@dataclasses.dataclass(frozen=True)
class Intervals:
  """Intervals of P parameters.

  Attributes:
    low, high: (P,) their ends.
    lift: (P,) what noise in the accuracies is estimated to add to each parameter; 0 where no noise
      is known.
    subsample: runs in a subsample.
  """
  low: np.ndarray
  high: np.ndarray
  lift: np.ndarray
  subsample: int


def subsample_size(runs):
  """Runs in a subsample of so many: n^0.6, but at least 8."""
  return max(_MIN_SUBSAMPLE, round(runs ** _SIZE_EXPONENT))


# The cells of a study mostly have the same runs, so that they share the draws.
@functools.lru_cache(maxsize=4)
def _drawn(runs, size, resamples, seed):
  """Runs (R, size) of each subsample, by number, drawn without replacement."""
  scores_RU = np.random.default_rng(seed).random((resamples, runs), np.float32)
  return np.sort(scores_RU.argpartition(size - 1, 1)[:, :size], 1)


@functools.lru_cache(maxsize=4)
def _normals(copies, points, seed):
  """Standard normal deviates (2, B, N), as each axis and copy wants them."""
  return np.random.default_rng((seed, 1)).standard_normal((2, copies, points), np.float32)


def subsamples(run_N, resamples, seed=0):
  """Points of subsamples of whole runs.

  Args:
    run_N: the run each point is of.
    resamples: R, how many.
    seed: of the draws.

  Returns:
    (index_RM, mask_RM): the points of each subsample, and which of them count: subsamples whose
    runs have fewer points than others' are filled up with points that don't.
  """
  names_U, number_N, counts_U = np.unique(run_N, return_inverse=True, return_counts=True)
  drawn_RU = _drawn(names_U.size, subsample_size(names_U.size), resamples, seed)
  order_N = number_N.argsort(kind="stable")
  if counts_U.max() == 1:
    return order_N[drawn_RU], np.ones(drawn_RU.shape, bool)
  first_U = np.cumsum(counts_U) - counts_U
  # Per drawn run a row of places, as long as the longest run; those beyond its own are dropped.
  place = np.arange(counts_U.max())
  real_RM = (place < counts_U[drawn_RU][:, :, None]).reshape(resamples, -1)
  index_RM = (first_U[drawn_RU][:, :, None] + place).reshape(resamples, -1) % len(run_N)
  longest = real_RM.sum(1).max()
  kept_RM = np.argsort(~real_RM, axis=1, kind="stable")[:, :longest]
  return (order_N[np.take_along_axis(index_RM, kept_RM, 1)],
          np.take_along_axis(real_RM, kept_RM, 1))


def errors_of(us_error_N, ds_error_N):
  """Standard errors as the correction takes them.

  Those upstream are taken as they are, the median for a point that has none. Those downstream come
  from a few probe seeds, and one of two or three seeds is itself off by half: each point is given
  their root mean square. Either axis counts as free of noise where none is known.

  Args:
    us_error_N, ds_error_N: (N,) standard errors, NaN where unknown.

  Returns:
    Standard errors (2, N), upstream first, or None where nothing is known.
  """
  known_2N = np.isfinite([us_error_N, ds_error_N])
  if not known_2N.any():
    return None
  errors_2N = np.zeros(known_2N.shape)
  if known_2N[0].any():
    errors_2N[0] = np.where(known_2N[0], us_error_N, np.median(us_error_N[known_2N[0]]))
  if known_2N[1].any():
    errors_2N[1] = math.sqrt(np.mean(np.square(ds_error_N[known_2N[1]])))
  return errors_2N


def _noise(kind, estimate, us_N, ds_N, errors_2N, seed):
  """What noise adds to the estimates (P,), and the standard deviation of that (P,).

  The estimates with more noise than there is, of variance 2 and 3 times what is known, are followed
  back to none: for all points along a parabola in the variance; for a hull, from 3 times alone,
  along a line in the variance to the power 2/3.
  """
  if errors_2N is None or not errors_2N.any():
    return 0.0, 0.0
  copies = 32 if kind == "hull" else max(4, min(32, 20_000 // us_N.size))
  normal_2BN, mask_BN = _normals(copies, us_N.size, seed), np.ones((copies, us_N.size), bool)

  def noisier(extra):
    shift_2BN = normal_2BN * (math.sqrt(extra) * errors_2N)[:, None]
    return estimate(np.clip(us_N + shift_2BN[0], 0.0, 1.0), ds_N + shift_2BN[1], mask_BN, free=True)
  full_P = estimate(us_N[None], ds_N[None], mask_BN[:1], free=True)[0]
  most_BP = noisier(_EXTRA[1])
  if kind == "hull":
    lift_P = (most_BP.mean(0) - full_P) / ((1.0 + _EXTRA[1]) ** (_HULL_POWER / 2.0) - 1.0)
  else:
    # Of the parabola through its values at 0, 1 and 2, the one at -1 is 3 v0 - 3 v1 + v2.
    lift_P = 3.0 * (noisier(_EXTRA[0]).mean(0) - full_P) - (most_BP.mean(0) - full_P)
  return lift_P, most_BP.std(0, ddof=1)


def intervals(kind, estimate, us_N, ds_N, run_N, errors_2N=None, *, level=0.9, resamples=200,
              seed=0):
  """Intervals for what `estimate` estimates.

  Args:
    kind: "hull" or "all": whether the estimates approach the truth from one side, as a frontier's
      do, or scatter about it.
    estimate: (us_RM, ds_RM, mask_RM, free) -> estimates (R, P), one row a subset of the points.
      `free` asks for estimates without bounds, which what noise adds isn't cut off at.
    us_N, ds_N: accuracies.
    run_N: the run each point is of.
    errors_2N: standard errors of both accuracies, upstream first; None: they are unknown.
    level: nominal coverage.
    resamples: subsamples to draw.
    seed: of the subsamples and the noise.

  Returns:
    `Intervals`, in the scale of the estimates.

  Source: Politis, Romano and Wolf, "Subsampling" (1999), section 2.5, symmetric intervals; Cook and
  Stefanski, "Simulation-extrapolation estimation in parametric measurement error models" (1994).
  """
  runs = np.unique(run_N).size
  size = subsample_size(runs)
  full_P = estimate(us_N[None], ds_N[None], np.ones((1, us_N.size), bool))[0]
  index_RM, mask_RM = subsamples(run_N, resamples, seed)
  parts_RP = estimate(us_N[index_RM], ds_N[index_RM], mask_RM)
  away_RP = parts_RP - full_P
  share = size / runs
  middle_P, bias_P = np.zeros_like(full_P), np.zeros_like(full_P)
  if kind == "hull":
    middle_P = np.median(away_RP, axis=0)
    bias_P = np.abs(middle_P) * share ** _HULL_RATE / (1.0 - share ** _HULL_RATE)
  # Of an average over runs, so many drawn of so many vary by this less than new ones would.
  spread = math.sqrt(share / (1.0 - share))
  reach_P = bias_P + spread * np.quantile(np.abs(away_RP - middle_P), level, axis=0)
  lift_P, noise_P = _noise(kind, estimate, us_N, ds_N, errors_2N, seed)
  reach_P = np.hypot(reach_P, _NOISE_REACH * stats.norm.ppf((1.0 + level) / 2.0) * noise_P)
  reach_P += _LIFT_DOUBT * np.abs(lift_P)
  centre_P = full_P - lift_P
  # Stretched to the estimate itself: some of the noise may be common to all runs, as that of one
  # set of test examples is, and then lifts nothing.
  return Intervals(np.minimum(centre_P - reach_P, full_P), np.maximum(centre_P + reach_P, full_P),
                   np.broadcast_to(lift_P, full_P.shape), size)
