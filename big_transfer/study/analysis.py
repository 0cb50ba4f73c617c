"""All that a study finds in its points: the order of the analyses, and the tables they make."""
import contextlib
import pathlib
import sys
import time

from big_transfer.study import (
    by_setting, controlled, explain, external, families, protocols, ranks, robust, saturation,
    shots, table)

TABLES = {
    "fits": saturation.FIT_COLUMNS,
    "hull_runs": families.RUN_COLUMNS,
    "hull_families": families.FAMILY_COLUMNS,
    "robust": robust.ROBUST_COLUMNS,
    "robust_curves": robust.CURVE_COLUMNS,
    "prediction": protocols.PREDICTION_COLUMNS,
    "sample_size": protocols.SAMPLE_SIZE_COLUMNS,
    "shots": shots.SHOT_COLUMNS,
    "controlled": controlled.CONTROLLED_COLUMNS,
    "controlled_tests": controlled.TEST_COLUMNS,
    "spearman": ranks.SPEARMAN_COLUMNS,
    "overlay": ranks.OVERLAY_COLUMNS,
    "peers": ranks.PEERS_COLUMNS,
    **by_setting.COLUMNS,
    **explain.COLUMNS,
    "left_out": external.LEFT_OUT_COLUMNS,
}
OPTIONAL = ("robust", "prediction", "sample-size", "controlled", "ranks", "explain")


class Progress:
  """Says on stderr what takes its time: a stage of a large study before it, else after a second."""

  def __init__(self, say=True):
    self.large = False
    self._say = say

  @contextlib.contextmanager
  def __call__(self, stage):
    start = time.monotonic()
    if self._say and self.large:
      print(f"{stage} …", end="", file=sys.stderr, flush=True)
    yield
    seconds = time.monotonic() - start
    if self._say and (self.large or seconds >= 1.0):
      print(f"{'' if self.large else stage + ':'} {seconds:.1f} s", file=sys.stderr, flush=True)


def analyse(points, rows, *, l2, level, resamples, held_out, skip, jobs, progress):
  """The tables of a study.

  Args:
    points: `table.Points`.
    rows: the Parquet file that `gather.gather` wrote, of run folders among the points; None: there
      are none, and no tables of layers and of the head.
    l2: ridge strength of the probes.
    level: nominal coverage of the intervals.
    resamples: subsamples for an interval of a fit.
    held_out: share of the runs, those highest upstream, that predictions are tested on.
    skip: analyses of `OPTIONAL` to leave out.
    jobs: processes that share the fits of a large study.
    progress: a `Progress`.

  Returns:
    {name: dicts, or an Arrow table} with the columns that `TABLES` documents; the tables of an
    analysis that was skipped are absent, and those of `explain` and of `by_setting` that the rows
    say nothing of.

  Raises:
    ValueError: an argument out of range.
  """
  unknown = sorted(set(skip) - set(OPTIONAL))
  if unknown:
    raise ValueError(f"--skip: expected some of {', '.join(OPTIONAL)}, got {unknown[0]!r}")
  tables = {}
  with progress(f"fits of {len(points.cells)} cells"):
    tables["fits"] = saturation.fits(points, level=level, resamples=resamples, jobs=jobs)
    tables["hull_runs"] = families.hull_runs(points)
    tables["hull_families"] = families.hull_families(points)
    tables["shots"] = shots.trends(tables["fits"])
    tables |= by_setting.tables(points, tables["fits"], level=level)
  if "robust" not in skip:
    with progress("robust fits"):
      tables["robust"], tables["robust_curves"] = robust.fits(points, level=level)
  if "prediction" not in skip:
    with progress("prediction of the runs held out"):
      tables["prediction"] = protocols.prediction(points, held_out=held_out)
  if "sample-size" not in skip:
    with progress("sensitivity to the number of runs"):
      tables["sample_size"] = protocols.sample_sizes(points, held_out=held_out)
  if "controlled" not in skip:
    with progress("controlled scaling"):
      tables["controlled"] = controlled.series(points, tables["fits"])
      tables["controlled_tests"] = controlled.tests(points, level=level)
  if "ranks" not in skip:
    with progress("ranks"):
      tables["spearman"] = ranks.spearman(points, level=level)
      tables["overlay"] = ranks.overlay(points)
      tables["peers"] = ranks.peers(points)
  if rows is not None and "explain" not in skip:
    with progress("layers and heads"):
      tables |= explain.tables(points, rows, tables["fits"], tables.get("spearman", ()), l2=l2,
                               level=level)
  return tables


def without_fit(fits):
  """Lines of the table of what was left out, for tasks after an upstream that have no fit at all.

  Args:
    fits: dicts with `saturation.FIT_COLUMNS`.

  Returns:
    Dicts with `external.LEFT_OUT_COLUMNS`.
  """
  by_task = {}
  for fit in fits:
    key = tuple(fit[name] for name in ("upstream", "task", "variant", "setting"))
    by_task.setdefault(key, []).append(fit)
  several = len({upstream for upstream, *_ in by_task}) > 1
  return [{"source": "fits", "task": table.name_of(*task),
           "points": sum(line["points"] for line in lines if line["fit"] == "hull"),
           "reason": "no fit" + (f" after {upstream}" if several else "") + ": "
                     + lines[0]["reason"]}
          for (upstream, *task), lines in by_task.items()
          if all(line["status"] == "no fit" for line in lines)]


def several_variants(points):
  """Warnings of tasks that were measured in several variants: one sentence a task."""
  variants = {}
  for cell in points.cells:
    variants.setdefault(cell.task, {})[cell.variant or "one not named"] = None
  return tuple(f"task {task} was measured in {len(names)} variants, {', '.join(names)}: they are "
               "kept apart, as if they were different tasks"
               for task, names in variants.items() if len(names) > 1)


def check_apart(folder, files):
  """Raises ValueError where `write` would put a table of its own in the place of an input."""
  for file in files:
    path = pathlib.Path(file).expanduser().resolve()
    if path.parent == folder.resolve() and path.suffix in (".parquet", ".csv") and (
        path.stem in ("rows", "points", *TABLES)):
      raise ValueError(f"--out: {folder} holds {file}, which a table of the study would replace; "
                       "name another folder")


def write(folder, points, tables):
  """Writes `points` and the tables as FOLDER/NAME.parquet and .csv; returns {name: path}.

  Tables of an earlier study in the folder go, so that none stays beside newer ones.
  """
  for name in ("points", *TABLES):
    for ending in ("parquet", "csv"):
      (folder / f"{name}.{ending}").unlink(missing_ok=True)
  table.write(folder / "points", points.table(), table.POINT_COLUMNS)
  for name, lines in tables.items():
    table.write(folder / name, lines, TABLES[name])
  return {name: folder / f"{name}.parquet" for name in ("points", *tables)}
