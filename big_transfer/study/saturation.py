"""Where downstream accuracy saturates: Eq. 1 per cell, on the upper hull and on all points.

The saturation value is downstream accuracy as upstream accuracy goes to 1: `1 - e_IR`
(Abnar et al., arXiv:2110.02095, definition 2.2). It is stated twice, for two questions: on the
upper hull (what the best mixtures of runs reach) and on all points (what the average run does).

What is fitted, and how, is in `targets` and `fitting`; where the intervals come from, and how
often they hold what was planted, in `intervals`; what Eq. 1 is measured against, in `methods`.

Shape legend: N points, R resamples, M points of a resample or of what is fitted.
"""
import concurrent.futures
import dataclasses
import functools
import multiprocessing

import numpy as np
from scipy import stats

from big_transfer.study import hull, intervals, laws, methods, table, targets

MIN_RUNS = 10  # subsamples have at least 8: fewer runs leave them nothing to differ in
MIN_SPAN = 0.05  # of upstream accuracy: within less, the three parameters trade off freely
# Below this a noisy hull bends over by itself, though the runs lie along a straight line. (The
# paper's reach 0.59.)
MIN_REACH = 0.4
# An edge longer than this share of a hull says that the runs bend the other way, if not of a hull
# that ends where there is nothing left to extrapolate to.
CHORD, SEEN = 0.75, 0.95
FARTHEST = 2.0  # spans of the runs that a saturation value may lie beyond them
# Where a falling line in logits leaves less than this of the residual, accuracy falls.
FALLING = 0.9
# A run that far above the saturation value of its own hull, in accuracy, belies the law.
MISFIT = 0.02
# A hull that moves by less, in accuracy, is called flat: a saturation value is then where it lies.
FLAT = 0.03
_MANY = 50_000  # points: fewer are fitted in the time that it takes to start another process

FIT_COLUMNS = {name: table.POINT_COLUMNS[name] for name in table.CELL} | {
    "steps": ("VARCHAR", "'last' or 'all': which evaluations of a run are points"),
    "fit": ("VARCHAR", "'hull': the upper hull; 'all': all points"),
    "data": ("VARCHAR", "what the law was fitted to, in words"),
    "runs": ("BIGINT", "runs in the cell"),
    "points": ("BIGINT", "points in the cell"),
    "hull_vertices": ("BIGINT", "vertices of the upper hull"),
    "hull_edge": ("DOUBLE", "its longest edge, as a share of the upstream range"),
    "hull_rise": ("DOUBLE", "highest less lowest downstream accuracy on the upper hull"),
    "us_low": ("DOUBLE", "lowest upstream accuracy"),
    "us_high": ("DOUBLE", "highest upstream accuracy"),
    "ds_worst": ("DOUBLE", "lowest downstream accuracy"),
    "ds_best": ("DOUBLE", "highest downstream accuracy"),
    "k": ("DOUBLE", "Eq. 1: factor"),
    "k_low": ("DOUBLE", "low end of its interval"),
    "k_high": ("DOUBLE", "high end of its interval"),
    "alpha": ("DOUBLE", "Eq. 1: exponent"),
    "alpha_low": ("DOUBLE", "low end of its interval"),
    "alpha_high": ("DOUBLE", "high end of its interval"),
    "e_IR": ("DOUBLE", "Eq. 1: irreducible error"),
    "rms": ("DOUBLE", "Eq. 1: root mean squared residual of what was fitted, in accuracy"),
    "loglinear_a": ("DOUBLE", "the model without saturation, e_DS = a e_US^b: factor"),
    "loglinear_b": ("DOUBLE", "the same: exponent"),
    "loglinear_rms": ("DOUBLE", "the same: root mean squared residual, in accuracy"),
    "logit_intercept": ("DOUBLE", "logit ds = intercept + slope logit us, least squares in logits"),
    "logit_slope": ("DOUBLE", "the same: slope"),
    "logit_rms": ("DOUBLE", "the same: root mean squared residual, in accuracy"),
    "logit2_c0": ("DOUBLE", "logit ds = c0 + c1 logit us + c2 (logit us)^2, likewise"),
    "logit2_c1": ("DOUBLE", "the same: linear coefficient"),
    "logit2_c2": ("DOUBLE", "the same: quadratic coefficient"),
    "logit2_rms": ("DOUBLE", "the same: root mean squared residual, in accuracy"),
    "residual_std": ("DOUBLE", "standard deviation of Eq. 1 less ds, over all points"),
    "ds_std": ("DOUBLE", "standard deviation of ds, over all points"),
    "residual_ratio": ("DOUBLE", "the first over the second; 1 is what predicting the mean gives"),
    "saturation": ("DOUBLE", "saturation value, 1 - e_IR"),
    "saturation_low": ("DOUBLE", "low end of its interval"),
    "saturation_high": ("DOUBLE", "high end of its interval"),
    "level": ("DOUBLE", "nominal coverage of the intervals"),
    "subsample": ("BIGINT", "runs in a subsample"),
    "resamples": ("BIGINT", "subsamples drawn"),
    "noise": ("DOUBLE", "typical standard error of a point, both accuracies together, that the "
                        "intervals allow for; null where none is known, and none allowed for"),
    "noise_lift": ("DOUBLE", "what that noise is estimated to add to the saturation value"),
    "status": ("VARCHAR", "'ok', 'not identified' or 'no fit'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
# Noise lifts a hull, at times above accuracy 1: what it adds must not be cut off there.
_FREE = dataclasses.replace(laws.SATURATING, name="saturating, e_IR free",
                            parameters={**laws.SATURATING.parameters, "e_IR": (-1.0, 1.0)})


@dataclasses.dataclass(frozen=True)
class Interval:
  """Intervals of Eq. 1's parameters.

  Attributes:
    ends: name -> (low, high), for k, alpha and e_IR.
    subsample: runs in a subsample.
    noise: typical standard error of a point, both accuracies together; None where unknown.
    lift: what that noise is estimated to add to e_IR (a hull's is lowered); None where unknown.
  """
  ends: dict
  subsample: int
  noise: float | None
  lift: float | None


def interval(kind, us_N, ds_N, run_N=None, *, us_error_N=None, ds_error_N=None, level=0.9,
             resamples=200, seed=0):
  """Intervals of the parameters of Eq. 1, at the frontier or through all points.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies.
    ds_N: downstream accuracies.
    run_N: the run each point is of; None: each of its own.
    us_error_N, ds_error_N: standard errors of the accuracies, NaN where unknown; None: unknown.
    level: nominal coverage; for what it is in fact see `intervals`.
    resamples: subsamples to draw.
    seed: of the subsamples and the noise.

  Returns:
    An `Interval`, clipped to what the parameters may be.

  Raises:
    ValueError: fewer than `MIN_RUNS` runs, or points that can't be fitted.
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  run_N = np.arange(us_N.size) if run_N is None else np.asarray(run_N)
  runs = np.unique(run_N).size
  if runs < MIN_RUNS:
    raise ValueError(f"expected at least {MIN_RUNS} runs for an interval, got {runs}; add runs")
  unknown_N = np.full(us_N.size, np.nan)
  errors_2N = intervals.errors_of(*(unknown_N if error_N is None else np.asarray(error_N, float)
                                    for error_N in (us_error_N, ds_error_N)))
  span = us_N.min(), us_N.max()

  def estimate(us_RM, ds_RM, mask_RM, free=False):
    found_R3 = targets.fit_points(kind, us_RM, ds_RM, mask_RM, span=span, steps=10, grid=41,
                                  law=_FREE if free else laws.SATURATING).params
    # The exponent's errors are even on a logarithmic scale.
    return np.stack([found_R3[:, 0], np.log(found_R3[:, 1]), found_R3[:, 2]], 1)

  found = intervals.intervals(kind, estimate, us_N, ds_N, run_N, errors_2N, level=level,
                              resamples=resamples, seed=seed)
  ends = {}
  for place, (name, bounds) in enumerate(laws.SATURATING.parameters.items()):
    pair = np.array([found.low[place], found.high[place]])
    ends[name] = tuple(np.clip(np.exp(pair) if name == "alpha" else pair, *bounds).tolist())
  if errors_2N is None:
    return Interval(ends, found.subsample, None, None)
  if kind == "hull" and ds_error_N is not None and np.isfinite(ds_error_N).any():
    low, high = ends["e_IR"]
    ends["e_IR"] = low, max(low, min(high, 1.0 - _reached(ds_N, errors_2N[1], level)))
  return Interval(ends, found.subsample, float(np.median(np.hypot(*errors_2N))),
                  float(found.lift[2]))


def _reached(ds_N, error_N, level):
  """A downstream accuracy that the best run has but for luck.

  A frontier lies above all runs and rises to its saturation value, which so is no lower. That no
  run of N is luckier than this allows for fails in a tenth of the cases that an interval may miss.
  """
  luck = stats.norm.isf((1.0 - level) / 10.0 / ds_N.size)
  return float(np.max(ds_N - luck * error_N))


def _doubt(line):
  """Why the interval doesn't identify a saturation value, in words, or None if it does.

  It covers most of what lies above the best run, or all that was seen, or it is an extrapolation
  that no interval from these runs can vouch for. One narrower than 0.05 is of use wherever it is.
  """
  low, high = line["saturation_low"], line["saturation_high"]
  worst, best = line["ds_worst"], line["ds_best"]
  if line["us_high"] < MIN_REACH:
    return (f"the best run upstream has {line['us_high']:.2f}; at least {MIN_REACH} is needed to "
            "speak of 1")
  if line["saturation"] > 1.0 - 1e-6 and best < 0.95:
    return "the law fits best with no irreducible error, so no saturation is seen"
  if line["fit"] == "hull" and best > line["saturation"] + max(MISFIT, 3.0 * (line["noise"] or 0)):
    return (f"the best run, {best:.3f}, lies above the law's saturation value, "
            f"{line['saturation']:.3f}: Eq. 1 does not describe this hull")
  if (line["fit"] == "hull" and line["hull_edge"] > CHORD
      and line["us_high"] < SEEN):
    return (f"one edge of the hull spans {100 * line['hull_edge']:.0f} % of its range: mixtures of "
            "the runs at its ends lie on it, and a straight line tells of no bend")
  span, beyond = line["us_high"] - line["us_low"], 1.0 - line["us_high"]
  if beyond > FARTHEST * span:
    return (f"upstream accuracies span {span:.3g}, and 1 lies {beyond:.3g} beyond: more than "
            f"{FARTHEST:g} times as far")
  if line["k"] < 1e-9 and line["logit_slope"] < 0 and line["logit_rms"] < FALLING * line["rms"]:
    return ("downstream accuracy falls as upstream accuracy rises, which Eq. 1 can't: the value is "
            "their mean")
  if line["alpha"] < 1.02 * laws.SATURATING.parameters["alpha"][0]:
    return (f"the law fits best with the least exponent allowed, {line['alpha']:.2g}: it rises "
            "with no end in sight")
  if high - low <= 0.05:
    return None
  ends = f"the interval, {low:.2f} to {high:.2f}, covers "
  if min(high, 1.0) - max(low, best) >= 0.75 * (1.0 - best):
    return ends + f"most of what lies above the best run ({best:.2f})"
  if low <= worst + 0.1 * (best - worst) and high >= best:
    return ends + f"all that the runs reached ({worst:.2f} to {best:.2f})"
  return None


def _longest_edge(us_V):
  span = us_V[-1] - us_V[0]
  return float(np.diff(us_V).max() / span) if span > 0 else None


def _described(view):
  """What a line of either kind says of the cell's points."""
  vertices = hull.upper_hull(view.us, view.ds)
  return view.cell._asdict() | {
      "steps": "last" if view.last.all() else "all", "runs": int(np.unique(view.run).size),
      "points": int(view.us.size), "hull_vertices": int(vertices.size),
      "hull_edge": _longest_edge(view.us[vertices]),
      "hull_rise": float(np.ptp(view.ds[vertices])), "us_low": float(view.us.min()),
      "us_high": float(view.us.max()), "ds_worst": float(view.ds.min()),
      "ds_best": float(view.ds.max()), "ds_std": float(view.ds.std())}


def _baselines(kind, us_N, ds_N):
  """The columns of what Eq. 1 is measured against."""
  us_M, ds_M = targets.fitted_points(kind, us_N, ds_N)
  straight = targets.fit_points(kind, us_N, ds_N, law=laws.LOG_LINEAR)
  line, first_D = methods.polynomial(us_M, ds_M), methods.polynomial(us_M, ds_M, degree=2)

  def rms(predicted_M):
    return float(np.sqrt(np.mean(np.square(predicted_M - ds_M))))
  named = straight.law.named(straight.params[0])
  return ({f"loglinear_{name}": value for name, value in named.items()}
          | {"loglinear_rms": float(straight.rms[0]), "logit_intercept": float(line[0]),
             "logit_slope": float(line[1]), "logit_rms": rms(methods.at_logits(line, us_M))}
          | {f"logit2_c{power}": float(first_D[power]) for power in range(3)}
          | {"logit2_rms": rms(methods.at_logits(first_D, us_M))})


def _fitted(kind, view, level, resamples):
  """What a line of one kind says of the fit."""
  fitted = targets.fit_points(kind, view.us, view.ds)
  named = fitted.law.named(fitted.params[0])
  found = interval(kind, view.us, view.ds, view.run, us_error_N=view.us_error,
                   ds_error_N=view.ds_error, level=level, resamples=resamples)
  # What is stated is the bounded fit, which the unbounded ones of the intervals may leave out.
  ends = {name: (min(low, named[name]), max(high, named[name]))
          for name, (low, high) in found.ends.items()}
  predicted_N = 1.0 - fitted.law.predict(fitted.params[0], 1.0 - view.us)
  residual, spread = float((predicted_N - view.ds).std()), float(view.ds.std())
  return named | _baselines(kind, view.us, view.ds) | {
      "rms": float(fitted.rms[0]), "k_low": ends["k"][0], "k_high": ends["k"][1],
      "alpha_low": ends["alpha"][0], "alpha_high": ends["alpha"][1],
      "residual_std": residual, "residual_ratio": residual / spread if spread > 0 else None,
      "saturation": 1.0 - named["e_IR"], "saturation_low": 1.0 - ends["e_IR"][1],
      "saturation_high": 1.0 - ends["e_IR"][0], "level": level, "subsample": found.subsample,
      "resamples": resamples, "noise": found.noise,
      "noise_lift": None if found.lift is None else -found.lift, "status": "ok"}


def problem(runs, us_N):
  """Why no law can be fitted to points of so many runs, in words, or None."""
  if runs < MIN_RUNS:
    return f"{runs} run{'s' * (runs != 1)}; at least {MIN_RUNS} are needed"
  if np.ptp(us_N) < MIN_SPAN:
    return f"upstream accuracies span {np.ptp(us_N):.3g}; at least {MIN_SPAN} is needed"
  if np.unique(us_N).size < 3:
    return "2 different upstream accuracies; Eq. 1, with three parameters, needs at least 3"
  return None


def _cell_fits(view, level, resamples):
  """The lines of one cell, one a kind."""
  described, reason, lines = _described(view), problem(np.unique(view.run).size, view.us), []
  for kind in targets.KINDS:
    line = dict.fromkeys(FIT_COLUMNS) | described | {"fit": kind, "data": targets.WORDS[kind]}
    if reason:
      line |= {"status": "no fit", "reason": reason}
    else:
      line |= _fitted(kind, view, level, resamples)
      doubt = _doubt(line)
      line |= {"status": "not identified", "reason": doubt} if doubt else {}
    lines.append(line)
  return lines


def fits(points, *, level=0.9, resamples=200, jobs=1):
  """Two lines a cell: Eq. 1 on the upper hull and on all points.

  Args:
    points: a `table.Points`.
    level: nominal coverage of the intervals, in (0, 1).
    resamples: subsamples for an interval, at least 20 and 1 / (1 - level).
    jobs: processes to share the cells; few points are fitted in this one whatever it says. They
      are spawned: a script that asks for several needs its `if __name__ == "__main__"`.

  Returns:
    A list of dicts with `FIT_COLUMNS`; what isn't known is None, never NaN.

  Raises:
    ValueError: a level or a number of resamples or jobs out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"--level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  least = max(20, round(1.0 / (1.0 - level)))
  if resamples < least:  # the quantile would be that of the farthest subsample, whatever the level
    raise ValueError(f"--resamples: expected at least {least} subsamples for level {level:g}, got "
                     f"{resamples}")
  if jobs < 1:
    raise ValueError(f"--jobs: expected at least 1 process, got {jobs}")
  jobs = min(jobs, len(points.cells)) if len(points) >= _MANY else 1
  task = functools.partial(_cell_fits, level=level, resamples=resamples)
  if jobs == 1:
    return [line for view in points for line in task(view)]
  with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
    return [line for lines in pool.map(task, points) for line in lines]


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
    ranks = within_families(last, family_U)
    words = f"no fit: {fit['reason']}" if fit["status"] == "no fit" else fit["status"]
    if words == "ok":
      words = (f"{fit['saturation']:.3f} [{fit['saturation_low']:.3f}, "
               f"{fit['saturation_high']:.3f}]" + (", flat" if fit["hull_rise"] < FLAT else ""))
    extra = [part for part in (view.cell.variant, view.cell.setting)
             if part and part not in table.USUAL]
    lines.append(view.cell._asdict() | {
        "name": " ".join(str(part) for part in [view.cell.task, *extra]),
        "spearman": ranks, "saturation": words} | {
            name: fit[name] for name in ("runs", "us_low", "us_high", "ds_best")})
  return lines


def within_families(view, family_U, least=4):
  """Spearman's correlation of downstream with upstream accuracy inside each family.

  Args:
    view: a `table.View`, a point a run.
    family_U: (U,) the runs' families; runs of None are left out.
    least: runs of a family that has one.

  Returns:
    {family: correlation}, without families in which either accuracy is constant.
  """
  family_N = family_U[view.run]
  ranks = {family: _spearman(view.us[family_N == family], view.ds[family_N == family], least)
           for family in sorted(set(family_N) - {None})}
  return {family: rank for family, rank in ranks.items() if rank is not None}


def _spearman(us_N, ds_N, least):
  """Spearman's rank correlation, None where it says nothing."""
  if us_N.size < least or not np.ptp(us_N) or not np.ptp(ds_N):
    return None
  return float(stats.spearmanr(us_N, ds_N).statistic)
