"""Where downstream accuracy saturates: Eq. 1 per cell, on the upper hull and on all points.

The saturation value is downstream accuracy as upstream accuracy goes to 1: `1 - e_IR`
(Abnar et al., arXiv:2110.02095, definition 2.2). It is stated twice, for two questions: on the
upper hull (what the best mixtures of runs reach) and on all points (what the average run does).

The hull is fitted along its edges, at evenly spaced upstream accuracies, so that the fit is the
nearest law to the hull as a curve, not to its three to ten vertices. The runs with the lowest and
the highest upstream accuracy are vertices whatever their downstream accuracy, which pulls a fit
down; so the first and the last edge are left out where they are short (a tenth of the range) and
there are others. A long one stays: without it a fit would see but a part of the range.

Intervals come from subsampling (Politis, Romano and Wolf, "Subsampling", 1999, symmetric
intervals, section 2.5): the estimate on m < n runs, drawn without replacement, deviates from the
one on all n as that one does from the truth, but for the factor (m / n)^rate; the rate is 1/2 for
all points and 0.4 for the hull. Runs are drawn, not points: the evaluations of one run aren't
independent.

What a nominal 90 % covered, on five planted frontiers, 40 data sets each (in brackets the worst
frontier), and median widths; `python tests/bench/coverage.py` on 2026-11-21, standard error 2 % (of
the worst: 5 %):

    runs                                    24                  50                 200
    hull, exponential shortfalls  96 % ( 90) 0.069    99 % ( 95) 0.049   100 % (100) 0.021
    hull, half-normal and noise   89 % ( 78) 0.081    96 % ( 88) 0.060    84 % ( 65) 0.033
    hull, few runs in the middle  96 % ( 90) 0.064    98 % ( 95) 0.049   100 % (100) 0.019
    all points, normal scatter    92 % ( 85) 0.049    94 % ( 90) 0.036    90 % ( 88) 0.015
    plain bootstrap, exponential  24 % (  8) 0.030    14 % (  2) 0.015     6 % (  2) 0.004
    plain bootstrap, half-normal  46 % ( 28) 0.040    57 % ( 50) 0.027    52 % ( 15) 0.015

With 1,000 runs (`--runs 1000`) exponential shortfalls were covered in 99 %, all points in 86 %, but
half-normal ones with noise in 30 %: noise in the accuracies (there of standard deviation 0.01)
lifts the hull, by 0.013 at 1,000 runs, and no resampling of the runs can tell. More probe seeds and
test examples lower it.

Shape legend: N points, R resamples, G upstream accuracies on the hull, U runs.
"""
import dataclasses

import numpy as np
from scipy import stats

from big_transfer.study import fitting, hull, laws, methods, table

METHODS = methods.METHODS
MIN_RUNS = 10  # subsamples have at least 8: fewer runs leave them nothing to differ in
MIN_SPAN = 0.05  # of upstream accuracy: within less, the three parameters trade off freely
# Below this a noisy hull bends over by itself, though the runs lie along a straight line. (The
# paper's reach 0.59.)
MIN_REACH = 0.4
# A hull that moves by less, in accuracy, is called flat: a saturation value is then where it lies.
FLAT = 0.03
_MIN_SUBSAMPLE = 8
_SIZE_EXPONENT = 0.6  # m = n^0.6
# Estimates from all points approach the truth as n^-1/2. Those from a hull do so faster, but for
# noise, which lifts it the more the more runs there are; see the table above for what 0.4 gives.
_RATE = {"hull": 0.4, "all": 0.5}
_GRID = 64
_INNER_FROM = 5  # vertices: with fewer, three parameters need the outer edges too
SHORT = 0.1  # of the runs' upstream range: an outer edge longer than this is always fitted

FIT_COLUMNS = {name: table.POINT_COLUMNS[name] for name in table.CELL} | {
    "steps": ("VARCHAR", "'last' or 'all': which evaluations of a run are points"),
    "fit": ("VARCHAR", "'hull': the upper hull; 'all': all points"),
    "data": ("VARCHAR", "what the law was fitted to, in words"),
    "runs": ("BIGINT", "runs in the cell"),
    "points": ("BIGINT", "points in the cell"),
    "hull_vertices": ("BIGINT", "vertices of the upper hull"),
    "hull_rise": ("DOUBLE", "highest less lowest downstream accuracy on the upper hull"),
    "us_low": ("DOUBLE", "lowest upstream accuracy"),
    "us_high": ("DOUBLE", "highest upstream accuracy"),
    "ds_best": ("DOUBLE", "highest downstream accuracy"),
    "k": ("DOUBLE", "Eq. 1: factor"),
    "alpha": ("DOUBLE", "Eq. 1: exponent"),
    "e_IR": ("DOUBLE", "Eq. 1: irreducible error"),
    "rms": ("DOUBLE", "Eq. 1: root mean squared residual, in accuracy"),
    "loglinear_a": ("DOUBLE", "the model without saturation, e_DS = a e_US^b: factor"),
    "loglinear_b": ("DOUBLE", "the same: exponent"),
    "loglinear_rms": ("DOUBLE", "the same: root mean squared residual, in accuracy"),
    "saturation": ("DOUBLE", "saturation value, 1 - e_IR"),
    "saturation_low": ("DOUBLE", "low end of its interval"),
    "saturation_high": ("DOUBLE", "high end of its interval"),
    "level": ("DOUBLE", "nominal coverage of the interval"),
    "subsample": ("BIGINT", "runs in a subsample"),
    "resamples": ("BIGINT", "subsamples drawn"),
    "status": ("VARCHAR", "'ok', 'not identified' or 'no fit'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}


@dataclasses.dataclass(frozen=True)
class Interval:
  """A saturation value with its interval; accuracies, fractions."""
  value: float
  low: float
  high: float
  subsample: int


def _on_all(us_N, ds_N, mask_RN):
  return 1.0 - us_N, 1.0 - ds_N, mask_RN.astype(float)


def _fitted_range(at_V):
  """The ends of what is fitted of a hull with these upstream accuracies, rising, as vertices."""
  if at_V.size < _INNER_FROM:
    return at_V[0], at_V[-1]
  short = SHORT * (at_V[-1] - at_V[0])
  return (at_V[1] if at_V[1] - at_V[0] <= short else at_V[0],
          at_V[-2] if at_V[-1] - at_V[-2] <= short else at_V[-1])


def _on_hull(us_N, ds_N, mask_RN):
  """The upper hull of each resample, sampled along its edges on one grid."""
  us_G = us_N.min() + np.ptp(us_N) * (np.arange(_GRID) + 0.5) / _GRID
  weight_RG, error_RG = np.zeros((len(mask_RN), _GRID)), np.zeros((len(mask_RN), _GRID))
  for r, mask_N in enumerate(mask_RN):
    members = np.flatnonzero(mask_N)
    vertices = members[hull.upper_hull(us_N[members], ds_N[members])]
    at = us_N[vertices]
    low, high = _fitted_range(at)
    inside_G = (us_G >= low) & (us_G <= high)
    # A subsample so narrow that it falls between two places of the grid counts at the nearest.
    inside_G[np.abs(us_G - at.mean()).argmin()] |= not inside_G.any()
    weight_RG[r] = inside_G
    error_RG[r] = 1.0 - np.interp(us_G, at, ds_N[vertices])
  return 1.0 - us_G, error_RG, weight_RG


_DATA = {"hull": _on_hull, "all": _on_all}
_DATA_WORDS = {"hull": f"the hull at {_GRID} evenly spaced upstream accuracies, without its first "
                       f"and last edge where short (at most {SHORT:g} of the upstream range)",
               "all": "all points"}


def fit_points(kind, us_N, ds_N, mask_RN=None, *, law=laws.SATURATING, steps=40):
  """Fits a law to the upper hull or to all points, for each of R subsets of them.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies.
    ds_N: downstream accuracies.
    mask_RN: which points belong to which subset; None is one subset with all.
    law: the law, in errors.
    steps: see `fitting.fit`.

  Returns:
    A `fitting.Fit` of R fits, in errors.

  Raises:
    ValueError: an unknown kind, or points that can't be fitted.
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  mask_RN = np.ones((1, us_N.size), bool) if mask_RN is None else mask_RN
  return fitting.fit(law, *_known(kind)(us_N, ds_N, mask_RN), steps=steps)


def fitted_points(kind, us_N, ds_N):
  """What is fitted, as points: all of them, or places along the upper hull.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies.
    ds_N: downstream accuracies.

  Returns:
    (us_M, ds_M), accuracies, each of weight 1 in a fit.

  Raises:
    ValueError: an unknown kind.
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  error_us_M, error_ds_1M, weight_1M = _known(kind)(us_N, ds_N, np.ones((1, us_N.size), bool))
  chosen_M = weight_1M[0] > 0
  return 1.0 - error_us_M[chosen_M], 1.0 - np.atleast_2d(error_ds_1M)[0][chosen_M]


def _known(kind):
  if kind not in _DATA:
    raise ValueError(f"kind: expected one of {', '.join(_DATA)}, got {kind!r}")
  return _DATA[kind]


def subsample_size(runs):
  """Runs in a subsample of so many: n^0.6, but at least 8."""
  return max(_MIN_SUBSAMPLE, round(runs ** _SIZE_EXPONENT))


def _subsamples(run_N, size, resamples, seed):
  """Masks (R, N) of the points that belong to `size` runs drawn without replacement."""
  names_U, run_N = np.unique(run_N, return_inverse=True)
  order_RU = np.random.default_rng(seed).random((resamples, names_U.size)).argsort(1)
  chosen_RU = np.zeros((resamples, names_U.size), bool)
  np.put_along_axis(chosen_RU, order_RU[:, :size], True, 1)
  return chosen_RU[:, run_N], names_U.size


def interval(kind, us_N, ds_N, run_N=None, *, value=None, level=0.9, resamples=200, seed=0):
  """The saturation value with a symmetric subsampling interval.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies.
    ds_N: downstream accuracies.
    run_N: the run each point is of; None: each of its own.
    value: the saturation value on all points, if it is already known.
    level: nominal coverage; for what it is in fact see the top of this file.
    resamples: subsamples to draw.
    seed: of the subsamples.

  Returns:
    An `Interval`, clipped to [0, 1].

  Raises:
    ValueError: fewer than `MIN_RUNS` runs, or points that can't be fitted.

  Source: Politis, Romano and Wolf, "Subsampling" (1999), section 2.5, with the finite-population
  factor (1 - m / n)^-1/2 for subsamples that share many runs.
  """
  run_N = np.arange(len(us_N)) if run_N is None else np.asarray(run_N)
  runs = np.unique(run_N).size
  if runs < MIN_RUNS:
    raise ValueError(f"expected at least {MIN_RUNS} runs for an interval, got {runs}; add runs")
  size = subsample_size(runs)
  mask_RN, _ = _subsamples(run_N, size, resamples, seed)
  if value is None:
    value = 1.0 - fit_points(kind, us_N, ds_N).params[0, 2]
  values_R = 1.0 - fit_points(kind, us_N, ds_N, mask_RN, steps=8).params[:, 2]
  factor = (size / runs) ** _RATE[kind] / np.sqrt(1.0 - size / runs)
  reach = factor * np.quantile(np.abs(values_R - value), level)
  return Interval(float(value), float(max(value - reach, 0.0)), float(min(value + reach, 1.0)),
                  size)


def _doubt(found, worst, best, us_high):
  """Why the interval doesn't identify a saturation value, in words, or None if it does.

  It covers most of what lies above the best run, or all that was seen, or it is an extrapolation
  that no interval from these runs can vouch for. One narrower than 0.05 is of use wherever it is.
  """
  if us_high < MIN_REACH:
    return (f"the best run upstream has {us_high:.2f}; at least {MIN_REACH} is needed to speak "
            "of 1")
  if found.high - found.low <= 0.05:
    return None
  if found.value > 1.0 - 1e-6:
    return "the law fits best with no irreducible error, so no saturation is seen"
  ends = f"the interval, {found.low:.2f} to {found.high:.2f}, covers "
  if min(found.high, 1.0) - max(found.low, best) >= 0.75 * (1.0 - best):
    return ends + f"most of what lies above the best run ({best:.2f})"
  if found.low <= worst + 0.1 * (best - worst) and found.high >= best:
    return ends + f"all that the runs reached ({worst:.2f} to {best:.2f})"
  return None


def _cell_fit(kind, us_N, ds_N, run_N, level, resamples):
  """One line of the table of fits, without the cell."""
  runs = int(np.unique(run_N).size)
  vertices = hull.upper_hull(us_N, ds_N)
  line = dict.fromkeys(FIT_COLUMNS) | {
      "fit": kind, "data": _DATA_WORDS[kind], "runs": runs, "points": int(us_N.size),
      "hull_vertices": int(vertices.size), "hull_rise": float(np.ptp(ds_N[vertices])),
      "us_low": float(us_N.min()), "us_high": float(us_N.max()), "ds_best": float(ds_N.max()),
      "level": level}
  span = us_N.max() - us_N.min()
  if runs < MIN_RUNS or span < MIN_SPAN:
    reason = (f"{runs} run{'s' if runs != 1 else ''}; at least {MIN_RUNS} are needed"
              if runs < MIN_RUNS else
              f"upstream accuracies span {span:.3f}; at least {MIN_SPAN} is needed")
    return line | {"status": "no fit", "reason": reason}
  fitted = fit_points(kind, us_N, ds_N)
  straight = fit_points(kind, us_N, ds_N, law=laws.LOG_LINEAR)
  line |= fitted.law.named(fitted.params[0]) | {"rms": float(fitted.rms[0])}
  line |= {f"loglinear_{name}": value
           for name, value in straight.law.named(straight.params[0]).items()}
  found = interval(kind, us_N, ds_N, run_N, value=1.0 - line["e_IR"], level=level,
                   resamples=resamples)
  line |= {"loglinear_rms": float(straight.rms[0]), "saturation": found.value,
           "saturation_low": found.low, "saturation_high": found.high,
           "subsample": found.subsample, "resamples": resamples, "status": "ok"}
  doubt = _doubt(found, float(ds_N.min()), line["ds_best"], line["us_high"])
  return line | ({"status": "not identified", "reason": doubt} if doubt else {})


def fits(points, *, level=0.9, resamples=200):
  """Two lines a cell: Eq. 1 on the upper hull and on all points.

  Args:
    points: a `table.Points`.
    level: nominal coverage of the intervals, in (0, 1).
    resamples: subsamples for an interval, at least 20.

  Returns:
    A list of dicts with `FIT_COLUMNS`; what isn't known is None, never NaN.

  Raises:
    ValueError: a level or a number of resamples out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"--level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  if resamples < 20:
    raise ValueError(f"--resamples: expected at least 20 subsamples, got {resamples}")
  lines = []
  for view in points:
    steps = "last" if view.last.all() else "all"
    for kind in _DATA:
      lines.append(_cell_fit(kind, view.us, view.ds, view.run, level, resamples)
                   | view.cell._asdict() | {"steps": steps})
  return lines


def summary(points, fits):
  """One dict a cell, for reading: range upstream, best downstream, rank correlation, saturation.

  Args:
    points: a `table.Points`.
    fits: dicts with `FIT_COLUMNS`.

  Returns:
    Dicts with the cell's columns, `name`, `runs`, `us_low`, `us_high`, `ds_best`, `spearman`
    (family -> Spearman's correlation of downstream with upstream accuracy over the runs' last
    evaluations, where there are at least 4 and neither accuracy is constant) and `saturation`
    (of the hull, in words; "flat" where it moves by less than `FLAT`).
  """
  on_hull = {tuple(fit[name] for name in table.CELL): fit for fit in fits if fit["fit"] == "hull"}
  family_U = np.array([name or "unknown" for name in points.of_runs("family")], object)
  lines = []
  for view in points:
    fit, last = on_hull[view.cell], view.take(view.last)
    family_N = family_U[last.run]
    ranks = {family: _spearman(last.us[family_N == family], last.ds[family_N == family])
             for family in sorted(set(family_N))}
    words = f"no fit: {fit['reason']}" if fit["status"] == "no fit" else fit["status"]
    if words == "ok":
      words = (f"{fit['saturation']:.3f} [{fit['saturation_low']:.3f}, "
               f"{fit['saturation_high']:.3f}]" + (", flat" if fit["hull_rise"] < FLAT else ""))
    extra = [part for part in (view.cell.variant, view.cell.setting) if part and part != "fewshot"]
    lines.append(view.cell._asdict() | {
        "name": " ".join(str(part) for part in [view.cell.task, *extra]),
        "spearman": {family: rank for family, rank in ranks.items() if rank is not None},
        "saturation": words} | {name: fit[name] for name in ("runs", "us_low", "us_high",
                                                             "ds_best")})
  return lines


def _spearman(us_N, ds_N):
  """Spearman's rank correlation, None where it says nothing."""
  if us_N.size < 4 or not np.ptp(us_N) or not np.ptp(ds_N):
    return None
  return float(stats.spearmanr(us_N, ds_N).statistic)
