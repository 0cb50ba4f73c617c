"""What one task's ranking of the runs says of another's: correlations, overlays, best runs.

Everything here compares tasks measured alike, on the runs that both have: tasks are grouped by
upstream, variant, setting and shots. A run counts once, at its last evaluation.

Shape legend: N points of one cell, M runs two cells share, B runs of a bin, T tasks, V vertices.
"""
import math

import numpy as np
from scipy import stats

from big_transfer.study import hull, table

UPSTREAM = "upstream"
MIN_RUNS = 5  # fewer have so few orders that a correlation says next to nothing
# Lower-case names; a task that starts with one of them and goes on ("imagenet-a") isn't it.
_IMAGENET = ("imagenet", "imagenet1k", "imagenet2012", "imagenet_1k", "ilsvrc2012")

GROUP = ("upstream", "variant", "setting", "shots")
_GROUP_COLUMNS = {name: table.CELL_COLUMNS[name] for name in GROUP}
_STATUS_COLUMNS = {
    "status": ("VARCHAR", "'ok', or 'left out' where it can't be computed"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
SPEARMAN_COLUMNS = _GROUP_COLUMNS | {
    "row": ("VARCHAR", "a task"),
    "column": ("VARCHAR", "a task, or 'upstream' for upstream accuracy"),
    "runs": ("BIGINT", "runs that have both accuracies"),
    "correlation": ("DOUBLE", "Spearman's rank correlation over these runs"),
    "low": ("DOUBLE", "low end of its interval"),
    "high": ("DOUBLE", "high end of its interval"),
    "level": ("DOUBLE", "nominal coverage of the interval"),
} | _STATUS_COLUMNS
OVERLAY_COLUMNS = table.CELL_COLUMNS | {
    "reference": ("VARCHAR", "the task on whose upper hull the runs lie"),
    "run_id": table.RUN_COLUMNS["run_id"],
    "order": ("BIGINT", "place along the reference's hull, 1 the lowest upstream accuracy"),
    "us": ("DOUBLE", "accuracy upstream"),
    "ds": ("DOUBLE", "accuracy on the task"),
    "gap": ("DOUBLE", "the task's own upper hull at that upstream accuracy, less ds"),
} | _STATUS_COLUMNS
PEERS_COLUMNS = _GROUP_COLUMNS | {
    "us_low": ("DOUBLE", "lowest upstream accuracy of the bin"),
    "us_high": ("DOUBLE", "highest upstream accuracy of the bin"),
    "runs": ("BIGINT", "runs of the bin measured on `on_task`"),
    "task": ("VARCHAR", "the task that run_id is the bin's best run on"),
    "run_id": table.RUN_COLUMNS["run_id"],
    "on_task": ("VARCHAR", "the task it is ranked on"),
    "rank": ("BIGINT", "its rank there, 1 the best; equals share the better rank"),
    "percentile": ("DOUBLE", "share of the bin's other runs that are strictly worse there"),
    "ds": ("DOUBLE", "its accuracy there"),
} | _STATUS_COLUMNS


def groups(points):
  """Views to compare: {(upstream, variant, setting, shots): {task: View}}, last evaluations only.

  Args:
    points: `table.Points`.

  Returns:
    A dict of dicts, in the order of the cells.
  """
  found = {}
  for view in points:
    cell = view.cell
    key = (cell.upstream, cell.variant, cell.setting, cell.shots)
    found.setdefault(key, {})[cell.task] = view.take(view.last)
  return found


def correlation_interval(correlation, runs, level):
  """An interval of Spearman's correlation: Fisher's z with the variance of Bonett and Wright.

  Args:
    correlation: in [-1, 1].
    runs: pairs it is made of, at least 4.
    level: nominal coverage.

  Returns:
    (low, high). A perfect order has an infinite z; it counts as halfway to the next order.

  Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
  correlations", Psychometrika 65 (2000): the variance of z is (1 + r^2 / 2) / (n - 3).
  """
  most = 1.0 - 6.0 / (runs * (runs * runs - 1.0))
  inner = min(max(correlation, -most), most)
  reach = (stats.norm.ppf(0.5 + level / 2.0)
           * math.sqrt((1.0 + inner * inner / 2.0) / (runs - 3.0)))
  low, high = math.tanh(math.atanh(inner) - reach), math.tanh(math.atanh(inner) + reach)
  return min(low, correlation), max(high, correlation)


class _Ranked:
  """Values of runs and their ranks, computed once."""

  def __init__(self, run_N, values_N):
    self.run, self.values = run_N, values_N
    self.ranks = stats.rankdata(values_N)

  def correlation(self, other):
    """(runs in common, Spearman's correlation or None where one of the two is constant)."""
    mine, theirs, runs = self.ranks, other.ranks, self.run.size
    if not np.array_equal(self.run, other.run):
      shared, at, there = np.intersect1d(self.run, other.run, assume_unique=True,
                                         return_indices=True)
      mine, theirs = stats.rankdata(self.values[at]), stats.rankdata(other.values[there])
      runs = shared.size
    mine, theirs = mine - mine.mean() if runs else mine, theirs - theirs.mean() if runs else theirs
    scale = math.sqrt((mine @ mine) * (theirs @ theirs))
    return runs, float(np.clip(mine @ theirs / scale, -1.0, 1.0)) if scale > 0 else None


def rank_correlation(x_N, y_N):
  """Spearman's rank correlation of two arrays, None where one of them is constant."""
  places = np.arange(len(x_N))
  return _Ranked(places, x_N).correlation(_Ranked(places, y_N))[1]


def spearman(points, *, level=0.9):
  """Rank correlations between tasks, and of each task with upstream accuracy (Figs F.20, F.21).

  Args:
    points: `table.Points`.
    level: nominal coverage of the intervals, in (0, 1).

  Returns:
    A list of dicts with `SPEARMAN_COLUMNS`: for each group all pairs of tasks, both ways and with
    themselves, and each task with "upstream".

  Raises:
    ValueError: a level out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  lines = []
  for group, views in groups(points).items():
    ranked = {task: _Ranked(view.run, view.ds) for task, view in views.items()}
    known = {}
    for row, view in views.items():
      for column, other in ranked.items():
        if (column, row) not in known:
          known[row, column] = _line(ranked[row].correlation(other), level, row == column)
        line = known.get((row, column)) or known[column, row]
        lines.append(dict(zip(GROUP, group)) | {"row": row, "column": column} | line)
      upstream = _line(ranked[row].correlation(_Ranked(view.run, view.us)), level, False)
      lines.append(dict(zip(GROUP, group)) | {"row": row, "column": UPSTREAM} | upstream)
  return lines


def _line(found, level, itself):
  runs, correlation = found
  line = {"runs": runs, "correlation": None, "low": None, "high": None, "level": level,
          "status": "left out", "reason": None}
  if runs < MIN_RUNS:
    return line | {"reason": f"{runs} runs have both accuracies; at least {MIN_RUNS} are needed"}
  if correlation is None:
    return line | {"reason": "one of the two accuracies is the same in all runs"}
  low, high = (1.0, 1.0) if itself else correlation_interval(correlation, runs, level)
  return line | {"correlation": correlation, "low": low, "high": high, "status": "ok"}


def reference_task(points):
  """The task whose best runs are followed on the others, and why it is this one.

  ImageNet, as in the paper, where a task has that name; else the task whose accuracy is rank
  correlated most with upstream accuracy, on average over the groups it is in, among those in the
  most groups: what a reader who sees one task would look at.

  Args:
    points: `table.Points`.

  Returns:
    (task, reason); the reason is a clause for "the reference, because …".
  """
  tasks = list(dict.fromkeys(cell.task for cell in points.cells))
  for task in tasks:
    if str(task).lower() in _IMAGENET:
      return task, "it is ImageNet"
  # Variants of a task are tasks of their own: no mean is over both.
  found = {(cell.task, cell.variant): [] for cell in points.cells}
  for (_, variant, _, _), views in groups(points).items():
    for task, view in views.items():
      runs, value = _Ranked(view.run, view.ds).correlation(_Ranked(view.run, view.us))
      if value is not None and runs >= MIN_RUNS:
        found[task, variant].append(value)
  most = max(map(len, found.values()))
  if not most:
    return tasks[0], "it is the first, and no task has a correlation with upstream accuracy"
  means = {task: sum(values) / most for task, values in found.items() if len(values) == most}
  best = max(means, key=means.get)
  return best[0], (f"of all tasks its accuracy goes most with upstream accuracy (mean rank "
                f"correlation {means[best]:.2f})")


def overlay(points, reference=None):
  """The runs on one task's upper hull, seen on every other task (Fig. 5).

  Args:
    points: `table.Points`.
    reference: the task; None chooses by `reference_task`.

  Returns:
    A list of dicts with `OVERLAY_COLUMNS`, by cell and along the reference's hull. A gap of 0 is a
    run on the task's own hull.

  Raises:
    ValueError: no task of that name.
  """
  tasks = list(dict.fromkeys(cell.task for cell in points.cells))
  reference = reference_task(points)[0] if reference is None else reference
  if reference not in tasks:
    raise ValueError(f"reference: expected one of the tasks, {', '.join(map(str, tasks))}; got "
                     f"{reference!r}")
  names = points.of_runs("run_id")
  lines = []
  for views in groups(points).values():
    base = views.pop(reference, None)
    on_hull = None if base is None else base.run[hull.upper_hull(base.us, base.ds)]
    for view in views.values():
      lines += _overlaid(view, reference, on_hull, names)
  return lines


def _overlaid(view, reference, on_hull_V, names):
  common = dict.fromkeys(OVERLAY_COLUMNS) | view.cell._asdict() | {"reference": reference}
  if on_hull_V is None:
    return [common | {"status": "left out", "reason": f"{reference} wasn't measured in this way"}]
  at_V = np.minimum(np.searchsorted(view.run, on_hull_V), view.run.size - 1)
  order = np.flatnonzero(view.run[at_V] == on_hull_V)
  if not order.size:
    return [common | {"status": "left out",
                      "reason": f"no run on the hull of {reference} was measured on this task"}]
  at = at_V[order]
  gap = hull.hull_at(view.us, view.ds, view.us[at]) - view.ds[at]
  return [common | {"run_id": names[view.run[i]], "order": int(place) + 1,
                    "us": float(view.us[i]), "ds": float(view.ds[i]),
                    "gap": max(float(short), 0.0), "status": "ok"}
          for i, place, short in zip(at, order, gap)]


def peers(points, *, bins=5):
  """For runs of like upstream accuracy: each task's best run, and how it ranks on the others.

  Args:
    points: `table.Points`.
    bins: bins of upstream accuracy with equally many runs each; fewer where a bin would have
      fewer than `MIN_RUNS`.

  Returns:
    A list of dicts with `PEERS_COLUMNS`. A tie for the best goes to the higher upstream accuracy,
    then to the first run_id.

  Raises:
    ValueError: bins below 1.
  """
  if bins < 1:
    raise ValueError(f"bins: expected at least 1 bin of upstream accuracy, got {bins}")
  names = points.of_runs("run_id")
  lines = []
  for group, views in groups(points).items():
    run = np.concatenate([view.run for view in views.values()])
    us = np.concatenate([view.us for view in views.values()])
    run, first = np.unique(run, return_index=True)
    us = us[first]
    tasks = list(views)
    ds_TN = np.full((len(tasks), run.size), np.nan)
    for t, view in enumerate(views.values()):
      ds_TN[t, np.searchsorted(run, view.run)] = view.ds
    order = np.argsort(-us, kind="stable")
    common = dict.fromkeys(PEERS_COLUMNS) | dict(zip(GROUP, group))
    if run.size < MIN_RUNS:
      lines.append(common | {"runs": run.size, "status": "left out", "reason":
                             f"{run.size} runs; at least {MIN_RUNS} are needed"})
      continue
    for chosen in reversed(np.array_split(order, min(bins, run.size // MIN_RUNS))):
      ends = {"us_low": float(us[chosen].min()), "us_high": float(us[chosen].max())}
      lines += [common | ends | line
                for line in _bin(tasks, ds_TN[:, chosen], names[run[chosen]])]
  return lines


def _bin(tasks, ds_TB, names_B):
  """Lines of one bin, without what is common to them."""
  lines = []
  for t, task in enumerate(tasks):
    if np.isnan(ds_TB[t]).all():
      continue
    best = int(np.nanargmax(ds_TB[t]))
    for on_task, ds_B in zip(tasks, ds_TB):
      known_B = ds_B[~np.isnan(ds_B)]
      line = {"task": task, "run_id": names_B[best], "on_task": on_task, "runs": known_B.size}
      if np.isnan(ds_B[best]):
        lines.append(line | {"status": "left out", "reason": f"it wasn't measured on {on_task}"})
        continue
      worse = int((known_B < ds_B[best]).sum()) / (known_B.size - 1) if known_B.size > 1 else None
      lines.append(line | {"rank": 1 + int((known_B > ds_B[best]).sum()), "percentile": worse,
                           "ds": float(ds_B[best]), "status": "ok"})
  return lines
