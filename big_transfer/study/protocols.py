"""The paper's tests of Eq. 1: predict the best runs upstream from the rest, and from fewer runs.

Abnar et al., arXiv:2110.02095, section 2.2, "Sample size sensitivity analysis", Fig. 3: the points
with the highest upstream accuracies are held out, the law is fitted to the others (the upper hull,
or all points), and two errors are stated, the fitting error on what was fitted and the prediction
error on what was held out. The share held out, the number of repeats and the unit of the errors
aren't in the paper; here they are a quarter, 20 and accuracy squared (the paper's values, near
0.001, agree with that unit).

What is compared, exactly. Runs are ranked by upstream accuracy; with n runs the round(share n)
highest are held out, and every run that ties with the lowest of these.

- fit 'all': the law is fitted to the points of the runs that remain. The fitting error is the mean
  squared difference between curve and points there; the prediction error the same over the points
  held out.
- fit 'hull': the law is fitted to the upper hull of the runs that remain, along its edges as in
  `targets`. The fitting error is the mean squared difference between curve and hull over the
  places fitted; the prediction error that between the curve and the upper hull of *all* runs, at
  `PLACES` evenly spaced upstream accuracies from the lowest to the highest that is held out. (The
  hull of the runs held out alone would not be what mixtures can reach there.)

A sample of runs is drawn without replacement from those that remain, and judged on the same runs
held out whatever its size, so that the errors of different sizes can be compared.

Shape legend: N points, M what is fitted, Q places or points compared, R repeats.
"""
import numpy as np

from big_transfer.study import hull, laws, methods, saturation, table, targets

HELD_OUT = 0.25
REPEATS = 20
PLACES = 64
_BAND = (0.1, 0.9)
# The search of a sample's exponent: to 0.1 %, far closer than a sample determines it.
_GRID, _STEPS = 41, 10
_PAPER_SIZES = tuple(range(100, 1001, 100))
_PAPER_FROM = 500  # runs to draw from: fewer have too few of the paper's sizes below them

_ERRORS = {
    "fit_error": ("DOUBLE", "mean squared residual on what was fitted, in accuracy squared"),
    "prediction_error": ("DOUBLE", "mean squared error on what was held out, the same unit"),
}
_STATUS_COLUMNS = {
    "status": ("VARCHAR", "'ok', or 'no fit' where it can't be computed"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
PREDICTION_COLUMNS = table.CELL_COLUMNS | {
    "fit": ("VARCHAR", "'hull': the upper hull; 'all': all points"),
    "method": ("VARCHAR", "Eq. 1 ('saturating') or a baseline, see `methods.METHODS`"),
    "held_out": ("DOUBLE", "share of the runs, those highest upstream, that was to be held out"),
    "us_from": ("DOUBLE", "lowest upstream accuracy held out"),
    "runs_fitted": ("BIGINT", "runs that remained"),
    "points_held_out": ("BIGINT", "runs held out, a point each"),
} | _ERRORS | {
    "fit_rmse": ("DOUBLE", "root of fit_error, in accuracy"),
    "prediction_rmse": ("DOUBLE", "root of prediction_error, in accuracy"),
    "bias": ("DOUBLE", "mean of predicted less observed accuracy on what was held out"),
} | _STATUS_COLUMNS
SAMPLE_SIZE_COLUMNS = table.CELL_COLUMNS | {
    "fit": PREDICTION_COLUMNS["fit"],
    "size": ("BIGINT", "runs drawn from those that aren't held out"),
    "all": ("BOOLEAN", "whether that is all of them, fitted once"),
    "repeats": ("BIGINT", "samples drawn"),
} | {f"{name}{end}": (kind, meaning + extra) for name, (kind, meaning) in _ERRORS.items()
     for end, extra in (("", "; mean over the repeats"), ("_low", "; their 10 % quantile"),
                        ("_high", "; their 90 % quantile"))} | _STATUS_COLUMNS


class _Split:
  """The points of a cell, those fitted apart from those held out."""

  def __init__(self, view, share):
    view = view.take(view.last)
    us_N = np.sort(view.us)
    number = min(max(round(share * us_N.size), 1), us_N.size)
    self.us_from = float(us_N[-number])
    low_N = view.us < self.us_from
    self.fitted, self.held_out, self._all = view.take(low_N), view.take(~low_N), view
    self.runs = int(low_N.sum())

  def problem(self):
    """Why no law can be fitted to what remains, in words, or None."""
    found = saturation.problem(self.runs, self.fitted.us)
    return found and f"below the upstream accuracies held out (from {self.us_from:.3f}): {found}"

  def target(self, kind):
    """(us_Q, ds_Q) that a prediction is compared with."""
    if kind == "all":
      return self.held_out.us, self.held_out.ds
    us_Q = np.linspace(self.us_from, self._all.us.max(), PLACES)
    return us_Q, hull.hull_at(self._all.us, self._all.ds, us_Q)


def _check(held_out):
  if not 0.0 < held_out < 1.0:
    raise ValueError("--held-out: expected a share of the runs between 0 and 1, such as "
                     f"{HELD_OUT}, got {held_out:g}")


def prediction(points, *, held_out=HELD_OUT):
  """Errors of Eq. 1 and its baselines on the runs that are best upstream (Figs F.8 to F.10, F.18).

  Args:
    points: `table.Points`; a run counts at its last evaluation.
    held_out: share of the runs, those highest upstream, that no method sees.

  Returns:
    A list of dicts with `PREDICTION_COLUMNS`: a line a cell, fit and method.

  Raises:
    ValueError: a share out of range.
  """
  _check(held_out)
  lines = []
  for view in points:
    split = _Split(view, held_out)
    problem = split.problem()
    for kind in targets.KINDS:
      common = dict.fromkeys(PREDICTION_COLUMNS) | view.cell._asdict() | {
          "fit": kind, "held_out": held_out, "us_from": split.us_from, "runs_fitted": split.runs,
          "points_held_out": split.held_out.us.size}
      if problem:
        lines += [common | {"method": name, "status": "no fit", "reason": problem}
                  for name in methods.METHODS]
        continue
      us_M, ds_M = targets.fitted_points(kind, split.fitted.us, split.fitted.ds)
      us_Q, ds_Q = split.target(kind)
      for name, method in methods.METHODS.items():
        predict = method(us_M, ds_M)
        off_Q = predict(us_Q) - ds_Q
        fit_error = float(np.mean(np.square(predict(us_M) - ds_M)))
        error = float(np.mean(np.square(off_Q)))
        lines.append(common | {
            "method": name, "fit_error": fit_error, "prediction_error": error,
            "fit_rmse": fit_error ** 0.5, "prediction_rmse": error ** 0.5,
            "bias": float(off_Q.mean()), "status": "ok"})
  return lines


def default_sizes(runs):
  """Sizes below so many runs: the paper's 100, 200, … 1000, or tenths of fewer than 500."""
  sizes = _PAPER_SIZES if runs >= _PAPER_FROM else [
      max(saturation.MIN_RUNS, round(runs * tenths / 10)) for tenths in range(1, 10)]
  return sorted({size for size in sizes if size < runs})


def sample_sizes(points, *, sizes=None, repeats=REPEATS, seed=0, held_out=HELD_OUT):
  """Errors of Eq. 1 fitted to samples of the runs, by their size (Figs 3 and F.11 to F.16).

  Args:
    points: `table.Points`; a run counts at its last evaluation.
    sizes: numbers of runs to draw; None: `default_sizes` of the upstream's largest cell, so that
      the tasks after one upstream can be averaged at each size. All runs are added in any case.
    repeats: samples drawn of each size.
    seed: of the draws. Cells with the same runs get the same samples.
    held_out: share of the runs, those highest upstream, that no sample contains.

  Returns:
    A list of dicts with `SAMPLE_SIZE_COLUMNS`: a line a cell, fit and size, sizes rising.

  Raises:
    ValueError: a share, a size or a number of repeats out of range.
  """
  _check(held_out)
  if repeats < 1:
    raise ValueError(f"repeats: expected at least 1 sample of each size, got {repeats}")
  if sizes is not None and min(sizes, default=0) < saturation.MIN_RUNS:
    raise ValueError(f"sizes: expected numbers of runs, each at least {saturation.MIN_RUNS}, got "
                     f"{list(sizes)}")
  largest = {}
  for view in points:
    runs = _Split(view, held_out).runs
    largest[view.cell.upstream] = max(largest.get(view.cell.upstream, 0), runs)
  lines = []
  for view in points:
    split = _Split(view, held_out)
    wanted = default_sizes(largest[view.cell.upstream]) if sizes is None else sizes
    below = sorted({size for size in wanted if size < split.runs})
    problem = split.problem()
    for kind in targets.KINDS:
      common = dict.fromkeys(SAMPLE_SIZE_COLUMNS) | view.cell._asdict() | {"fit": kind}
      if problem:
        lines.append(common | {"size": split.runs, "all": True, "repeats": 0, "status": "no fit",
                               "reason": problem})
        continue
      for size in [*below, split.runs]:
        number = repeats if size < split.runs else 1
        errors = _sampled(kind, split, _samples(split.runs, size, number, seed))
        lines.append(common | {"size": size, "all": size == split.runs, "repeats": number,
                               "status": "ok"} | _summary(errors))
  return lines


def _samples(runs, size, repeats, seed):
  """Indices (R, size) of runs drawn without replacement; they depend on the arguments alone."""
  order_RN = np.random.default_rng((seed, size)).random((repeats, runs)).argsort(1)
  return np.sort(order_RN[:, :size], 1)


def _sampled(kind, split, samples_RS):
  """(fit errors (R,), prediction errors (R,)) of Eq. 1 fitted to each sample."""
  fitted, (us_Q, ds_Q) = split.fitted, split.target(kind)
  found = targets.fit_points(kind, fitted.us[samples_RS], fitted.ds[samples_RS], grid=_GRID,
                             steps=_STEPS)
  predicted_RQ = 1.0 - laws.SATURATING.predict(found.params, 1.0 - us_Q)
  return np.square(found.rms), np.square(predicted_RQ - ds_Q).mean(1)


def _summary(errors):
  found = {}
  for name, values_R in zip(_ERRORS, errors):
    low, high = np.quantile(values_R, _BAND)
    found |= {name: float(values_R.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
  return found
