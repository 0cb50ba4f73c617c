"""Fits the laws over finished runs and shows them.

    python -m big_transfer.study --runs 'DIR/*' --out DIR

Writes to --out:

    rows.parquet               one line a measured value, its run's identity beside it
    points.parquet, .csv       one line a run, task and number of shots: both accuracies
    fits.parquet, .csv         two lines a task and number of shots: the law and its saturation
    figures/*.png, *.svg       downstream against upstream accuracy, by task and all together
    report.html                all of it on one page that works offline
"""
import argparse
import dataclasses
import pathlib
import re
import sys
import warnings


@dataclasses.dataclass(frozen=True)
class Study:
  """What a study found.

  Attributes:
    report: path of report.html.
    points: dicts with `table.POINT_COLUMNS`.
    fits: dicts with `saturation.FIT_COLUMNS`.
    summary: dicts, one a cell: what the printed table shows.
    census: what was found where the runs were looked for, a `table.Census`.
  """
  report: pathlib.Path
  points: list
  fits: list
  summary: list
  census: object


def study(runs, out, *, steps="last", l2=1024.0, shots=None, level=0.9, resamples=200,
          figures=True):
  """Reads finished runs, fits the laws, writes tables, figures and the report.

  Args:
    runs: a glob of run folders, or several.
    out: the folder to write to; made if missing.
    steps: "last": a point is a run's last evaluation; "all": every evaluation is one.
    l2: ridge strength of the probes that count.
    shots: shots a class of the overview, and the report's first choice; None: the most probed.
    level: nominal coverage of the intervals.
    resamples: subsamples for an interval.
    figures: whether to write figures/; the report has its own in any case.

  Returns:
    A `Study`.

  Raises:
    ValueError: nothing to study, damaged files, or an argument out of range.
  """
  from big_transfer.study import report, saturation, table
  out = pathlib.Path(out).expanduser()
  if out.exists() and not out.is_dir():
    raise ValueError(f"--out: expected a folder, but {out} is a file; name another")
  out.mkdir(parents=True, exist_ok=True)
  rows = out / "rows.parquet"
  census = table.gather([runs] if isinstance(runs, str) else list(map(str, runs)), rows)
  points = table.as_records(table.points(rows, steps=steps, l2=l2))
  shots = _shown_shots(points, shots)
  fits = saturation.fits(points, level=level, resamples=resamples)
  table.write(out / "points", points, table.POINT_COLUMNS)
  table.write(out / "fits", fits, saturation.FIT_COLUMNS)
  if figures:
    _write_figures(out / "figures", points, fits, shots)
  sources = {"table of rows": str(rows), "table of points": str(out / "points.parquet"),
             "table of fits": str(out / "fits.parquet")}
  page = report.write(out / "report.html", points, fits, census, shots=shots, sources=sources)
  return Study(page, points, fits, saturation.summary(points, fits), census)


def _shown_shots(points, shots):
  """The number of shots to show first."""
  known = sorted({point["shots"] for point in points if point["shots"] is not None})
  if shots is None:
    return max(known, default=None)
  if shots not in known:
    raise ValueError(f"--shots: expected one that was probed, "
                     f"{', '.join(map(str, known)) or 'none was'}; got {shots}")
  return shots


def _write_figures(folder, points, fits, shots):
  from big_transfer.study import figures, saturation
  figures.save(figures.overview(points, fits, shots), folder / "overview")
  by_task = {}
  for cell, members in saturation.cells(points).items():
    by_task.setdefault(cell[:4], []).extend(members)
  several = len({cell[0] for cell in by_task}) > 1
  for (upstream, *rest), members in by_task.items():
    words = ([upstream] if several else []) + [part for part in rest if part != "fewshot"]
    name = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(str(word) for word in words if word))
    figures.save(figures.task_figure(members, fits), folder / (name or "task"))


def _printed(summary):
  """The table of the terminal, as text."""
  lines = [("task", "shots", "runs", "upstream", "best", "Spearman within", "saturation (hull)")]
  for cell in summary:
    ranks = " ".join(f"{name} {value:+.2f}" for name, value in cell["spearman"].items())
    lines.append((cell["name"], "" if cell["shots"] is None else str(cell["shots"]),
                  str(cell["runs"]), f"{cell['us_low']:.2f}–{cell['us_high']:.2f}",
                  f"{cell['ds_best']:.3f}", ranks or "–", cell["saturation"]))
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join("  ".join(word.ljust(width) if i in (0, 5, 6) else word.rjust(width)
                             for i, (word, width) in enumerate(zip(line, widths))).rstrip()
                   for line in lines)


def _parser():
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.study", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", action="append", nargs="+", required=True, metavar="GLOB",
                      help="run folders, as a quoted glob; several are allowed")
  parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
  parser.add_argument("--steps", default="last", choices=("last", "all"),
                      help="a point is a run's last evaluation, or every one (default: last)")
  parser.add_argument("--l2", type=float, default=1024.0,
                      help="ridge strength of the probes that count (default: 1024)")
  parser.add_argument("--shots", type=int, help="shots of the overview (default: the most)")
  parser.add_argument("--level", type=float, default=0.9,
                      help="nominal coverage of the intervals (default: 0.9)")
  parser.add_argument("--resamples", type=int, default=200,
                      help="subsamples for an interval (default: 200)")
  parser.add_argument("--no-figures", dest="figures", action="store_false",
                      help="write no PNG and SVG files")
  return parser


def main(argv=None):
  """The command; returns its exit status."""
  flags = vars(_parser().parse_args(argv))
  flags["runs"] = [pattern for group in flags["runs"] for pattern in group]
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      found = study(flags.pop("runs"), flags.pop("out"), **flags)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  for warning in caught:
    print(f"warning: {warning.message}", file=sys.stderr)
  print(_printed(found.summary))
  left_out = ", ".join(f"{n} {why}" for why, n in sorted(found.census.left_out.items()))
  print(f"\nfinished runs: {found.census.finished}; left out: {left_out or 'none'}")
  print(f"report: {found.report}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
