"""Fits the laws over finished runs, or over any table of results, and shows them.

    python -m big_transfer.study --runs 'DIR/*' --out DIR
    python -m big_transfer.study --table FILE.csv --out DIR \\
        --columns us=top1,ds=accuracy,task=dataset,model=model,params=size:M,upstream:=imagenet

Writes to --out:

    rows.parquet               of run folders: a line a measured value, its run's identity beside it
    points.parquet, .csv       a line a run, task and number of shots: both accuracies
    fits.parquet, .csv         two lines a task and number of shots: the law and its saturation
    NAME.parquet, .csv         what else was found: predictions of the runs held out, effects of
                               shots, controlled scaling, rank correlations, layers, what the
                               head's settings do, what was left out, ...
    figures/*.png, *.svg       the overview and one figure a task; with --figures all all of them
    report.html                all of it on one page that works offline

--columns says what is in which column, as role=COLUMN with commas between: us and ds (accuracies
upstream and downstream), task, model, family, params, flops, upstream, fraction, examples, epochs,
lr, shots, variant, setting, step, seed, us_error, ds_error, ds_seeds, test_examples, run, us_task.
    role:=VALUE             one value for every row
    us=COLUMN:error         errors, not accuracies; `:percent` or `:fraction` says the scale
    ds=A:pets|B:cars@25     several columns, each a task: its name, and shots a class after an @
    params=COLUMN:M         in thousands K, millions M, billions B
    family=COLUMN:/REGEX/   the part of a text that matches
"""
import argparse
import collections
import dataclasses
import os
import pathlib
import sys
import warnings

FORMATS = "png,svg"


@dataclasses.dataclass(frozen=True)
class Study:
  """What a study found.

  Attributes:
    report: path of report.html.
    points: `table.Points`.
    tables: {name: dicts or an Arrow table}, with the columns of `analysis.TABLES`.
    summary: dicts, one a cell: what the printed table shows.
    census: what was found where it was looked for, a `gather.Census`.
  """
  report: pathlib.Path
  points: object
  tables: dict
  summary: list
  census: object


def study(runs, out, *, tables=None, columns=(), join=(), scale="auto", values="accuracy",
          steps="last", l2=1024.0, recipe="", shots=None, level=0.9, resamples=200, held_out=0.25,
          skip=(), reference=None, figures="main", formats=FORMATS, jobs=1, progress=False):
  """Reads runs or tables of results, fits the laws, writes tables, figures and the report.

  Args:
    runs: a glob of run folders, or several; None where there are only tables.
    out: the folder to write to; made if missing.
    tables: files of results, see `external.read`, as are `columns`, `join`, `scale`, `values`.
    steps: "last": a point is a run's last evaluation; "all": every evaluation is one.
    l2: ridge strength of the few-shot probes that count, in run folders.
    recipe: KEY=VALUE,...: the fine-tuning runs that count, by their configs, in run folders.
    shots: shots a class of the overview, and the report's first choice, or a setting without
      shots, such as "finetune"; None: the most probed.
    level: nominal coverage of the intervals.
    resamples: subsamples for an interval of a fit.
    held_out: share of the runs, those highest upstream, that predictions are tested on.
    skip: analyses to leave out, of `analysis.OPTIONAL`.
    reference: "paper" draws the published laws of tasks of the same name beside; None: none.
    figures: "main" (the overview and one a task), "all" or None: which to write to figures/; the
      report draws them all in any case.
    formats: of the figures' files, with commas between: png, svg, pdf.
    jobs: processes that share the fits of a large study, see `saturation.fits`.
    progress: whether to say on stderr what takes its time.

  Returns:
    A `Study`.

  Raises:
    ValueError: nothing to study, damaged files, or an argument out of range.
  """
  from big_transfer.study import analysis, report, saturation
  out = pathlib.Path(out).expanduser()
  if out.exists() and not out.is_dir():
    raise ValueError(f"--out: expected a folder, but {out} is a file; name another")
  formats = _checked(formats, figures)
  analysis.check_apart(out, [tables] if isinstance(tables, str) else tables or ())
  out.mkdir(parents=True, exist_ok=True)
  said = analysis.Progress(progress)
  with said("reading"):
    points, left_out, census = _read(runs, out, tables, columns, join, scale, values, steps, l2,
                                     recipe)
  said.large = len(points) > 50_000
  shots = _shown_shots(points, shots)
  found = analysis.analyse(points, out / "rows.parquet" if runs else None, l2=l2, level=level,
                           resamples=resamples, held_out=held_out, skip=skip, jobs=jobs,
                           progress=said)
  found["left_out"] = left_out + analysis.without_fit(found["fits"])
  with said("tables"):
    paths = analysis.write(out, points, found)
  if figures:
    with said("figures"):
      _write_figures(out / "figures", points, found, shots, figures, formats, reference)
  sources = {f"table of {name.replace('_', ' ')}": str(path) for name, path in paths.items()}
  if runs:
    sources = {"table of rows": str(out / "rows.parquet")} | sources
  with said("report"):
    page = report.write(out / "report.html", points, found, census, shots=shots, sources=sources,
                        reference=reference)
  return Study(page, points, found, saturation.summary(points, found["fits"]), census)


def _checked(formats, figures):
  """The formats as a tuple; raises at what would else be found out after the fits."""
  from big_transfer.study import figures as drawing
  formats = tuple(formats.split(",")) if isinstance(formats, str) else tuple(formats)
  for flag, given, known in (("formats", formats, drawing.FORMATS),
                             ("figures", [figures] if figures else [], drawing.CHOICES)):
    unknown = [name for name in given if name not in known]
    if unknown:
      raise ValueError(f"--{flag}: expected one of {', '.join(known)}, got {unknown[0]!r}")
  return formats


def _read(runs, out, tables, columns, join, scale, values, steps, l2, recipe):
  """(points, what was left out, census) of run folders, of tables, or of both."""
  from big_transfer.study import analysis, external, gather, table, unused
  parts, left_out, census = [], [], None
  if runs:
    rows = out / "rows.parquet"
    census = gather.gather([runs] if isinstance(runs, str) else list(map(str, runs)), rows, recipe)
    parts.append(table.points(rows, steps=steps, l2=l2))
    left_out += [{"source": ", ".join(census.patterns), "task": None, "points": number,
                  "reason": reason} for reason, number in sorted(census.left_out.items())]
    left_out += unused.accuracies(rows)
  if tables:
    if not columns:
      raise ValueError("--columns: expected what is in which column of --table, such as "
                       "us=top1,ds=accuracy,task=dataset,model=model; add it")
    read = external.read(tables, columns, join=join, scale=scale, values=values, steps=steps)
    parts.append(read.points)
    left_out += read.left_out
    census = read.census if census is None else census.and_of(read.census)
  elif columns or join:
    raise ValueError("--columns and --join: they say how to read --table; add it")
  if not parts:
    raise ValueError("--runs: expected run folders, or a table of results (--table); got neither")
  points = table.together(parts)
  notes = analysis.several_variants(points)
  return points, left_out, dataclasses.replace(census, warnings=census.warnings + notes)


def _shown_shots(points, shots):
  """The number of shots, or the setting without shots, to show first (`table.measure`)."""
  from big_transfer.study import table
  known = table.measures(points.cells)
  if shots is None:
    return next((name for name in reversed(known) if isinstance(name, int)), known[-1])
  shots = int(shots) if str(shots).isdigit() else shots
  if shots not in known:
    raise ValueError(f"--shots: expected one that was probed, "
                     f"{', '.join(str(name) for name in known if name is not None) or 'none was'}"
                     f"; got {shots}")
  return shots


def _write_figures(folder, points, tables, shots, which, formats, reference):
  from big_transfer.study import figures
  taken = set()
  for name, spec in figures.catalogue(points, tables, shots=shots, which=which,
                                       reference=reference):
    while name.lower() in taken:  # a task may be called like a figure, or almost like another
      name += "_"
    taken.add(name.lower())
    figures.save(spec, folder / name, formats)


_MOST_LINES = 40  # of the terminal's table
_MOST_FAMILIES = 3
_MOST_DROPPED = 5


def _printed(study):
  """The table of the terminal, as text: a line a cell."""
  families = collections.Counter(name or "unknown" for name in study.points.of_runs("family"))
  predicted = {(line["upstream"], line["task"], line["variant"], line["setting"], line["shots"]):
               line["prediction_rmse"] for line in study.tables.get("prediction", ())
               if line["fit"] == "hull" and line["method"] == "saturating"}
  several = len({cell.upstream for cell in study.points.cells}) > 1
  lines = [("task", "shots", "runs", "upstream", "best", "Spearman within", "held out, rms",
            "saturation (hull)")]
  for view, cell in zip(study.points.cells, study.summary[:_MOST_LINES]):
    ranks = sorted(cell["spearman"], key=lambda name: (-families[name], name))
    words = " ".join(f"{name} {cell['spearman'][name]:+.2f}" for name in ranks[:_MOST_FAMILIES])
    lines.append((cell["name"] + (f" after {view.upstream}" if several else ""),
                  "" if view.shots is None else str(view.shots), str(cell["runs"]),
                  f"{cell['us_low']:.2f}–{cell['us_high']:.2f}", f"{cell['ds_best']:.3f}",
                  (words + (" …" if len(ranks) > _MOST_FAMILIES else "")) or "–",
                  "–" if predicted.get(view) is None else f"{predicted[view]:.4f}",
                  cell["saturation"]))
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  more = len(study.summary) - _MOST_LINES
  return "\n".join(["  ".join(word.ljust(width) if i in (0, 5, 7) else word.rjust(width)
                              for i, (word, width) in enumerate(zip(line, widths))).rstrip()
                    for line in lines]
                   + ([f"and {more} more in fits.csv"] if more > 0 else []))


def _explanation(tables):
  """What `explain` found, in one line on layers and one on the head, where there are any."""
  from big_transfer.study import ablations
  lines = []
  shares = [line["earliest_depth_share"] for line in tables.get("explained", ())
            if line["earliest_depth_share"] is not None]
  if shares:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    words = (f", the mean of {len(shares)} lines above" if len(shares) > 1 else "") + (
        f" ({low} to {high})" if low != high else "")
    lines.append("layers: the earliest layer not told from the best lies at "
                 f"{sum(shares) / len(shares):.0%} of the depth{words}")
  words = []
  for factor in ("decay", "rate"):
    verdicts = {"us": collections.Counter(), "ds": collections.Counter()}
    for line in tables.get("head_effects", ()):
      if (line["factor"], line["series"]) == (f"head_{factor}", ablations.ALL) and (
          line["quantity"] in verdicts):
        verdicts[line["quantity"]][line["verdict"]] += 1
    if verdicts["us"]:
      said = [", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts[name].items()))
              for name in ("us", "ds")]
      words.append(f"with its {factor} upstream accuracy: {said[0]}; downstream: {said[1]}")
  return lines + ([f"head: {'; '.join(words)}"] if words else [])


def _parser():
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.study", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--runs", action="extend", nargs="+", metavar="GLOB",
      help="run folders, as a quoted glob; several are allowed")
  add("--table", action="extend", nargs="+", metavar="FILE", dest="tables",
      help="tables of results: CSV, TSV, Parquet or JSONL; several are joined, or stacked")
  add("--columns", action="extend", nargs="+", metavar="ROLE=COLUMN,...", default=[],
      help="what is in which column of the tables, see above")
  add("--join", metavar="COLUMN,...", default="", help="columns that the tables are joined on")
  add("--scale", default="auto", help="of the tables' accuracies: auto, percent or fraction; auto "
      "is percent where a percent sign or a value above 1 says so (default: auto)")
  add("--values", default="accuracy",
      help="what the tables' accuracies are: accuracy or error (default: accuracy)")
  add("--out", required=True, metavar="DIR", help="folder to write to")
  add("--steps", default="last", choices=("last", "all"),
      help="a point is a run's last evaluation, or every one (default: last)")
  add("--l2", type=float, default=1024.0,
      help="ridge strength of the few-shot probes that count, in run folders (default: 1024)")
  add("--recipe", default="", metavar="KEY=VALUE,...", help="only fine-tuning runs whose config "
      "says so count (default: the recipe that most pre-trained runs have)")
  add("--shots", help="shots of the overview, or a setting without, such as finetune (default: "
      "the most)")
  add("--level", type=float, default=0.9, help="nominal coverage of the intervals (default: 0.9)")
  add("--resamples", type=int, default=200, help="subsamples for an interval (default: 200)")
  add("--held-out", type=float, default=0.25, metavar="SHARE", help="share of the runs, those "
      "highest upstream, that predictions are tested on (default: 0.25)")
  add("--skip", action="extend", nargs="+", default=[], metavar="ANALYSIS",
      help="leave out: robust, prediction, sample-size, controlled, ranks, explain")
  add("--reference", choices=("paper",),
      help="draw the published laws beside tasks of the same name")
  add("--figures", default="main", choices=("main", "all"), help="the overview and one a task, or "
      "all that the report has (default: main)")
  add("--no-figures", dest="figures", action="store_const", const=None,
      help="write no figures but those of the report")
  add("--jobs", type=int, default=min(os.cpu_count() or 1, 8),
      help="processes that share the fits of a large study (default: %(default)s, the cores)")
  add("--formats", default=FORMATS, help=f"of the figures: png, svg, pdf (default: {FORMATS})")
  return parser


def main(argv=None):
  """The command; returns its exit status."""
  flags = vars(_parser().parse_args(argv))
  flags["join"] = tuple(key.strip() for key in flags["join"].split(",") if key.strip())
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      found = study(flags.pop("runs"), flags.pop("out"), progress=True, **flags)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  said = dict.fromkeys([*(str(warning.message) for warning in caught), *found.census.warnings])
  for warning in said:
    print(f"warning: {warning}", file=sys.stderr)
  print(_printed(found))
  whole = [line for line in found.tables["left_out"] if not line["task"]]
  by_task = [line for line in found.tables["left_out"] if line["task"]]
  words = [f"{line['points']} {line['reason']}" for line in whole]
  words += ["points of some tasks, below"] if by_task else []
  joined, counted = found.census.joined, found.points.runs.num_rows
  print(f"\nruns: {found.census.finished}"
        + (f", {counted} with both accuracies" if counted != found.census.finished else "")
        + (f" and {joined} fine-tuned from them" if joined else "") + "; left out: "
        + (", ".join(words) or "none"))
  for line in by_task[:_MOST_DROPPED]:
    points = f"{line['points']} point{'s' * (line['points'] != 1)}"
    print(f"left out of {line['task']}: {points}: {line['reason']}")
  if len(by_task) > _MOST_DROPPED:
    print(f"and {len(by_task) - _MOST_DROPPED} more in left_out.csv")
  for line in _explanation(found.tables):
    print(line)
  print(f"report: {found.report}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
