"""Estimators of scaling curves side by side, on curves of which the larger sizes are held out.

    python -m big_transfer.study.benchmark --data FILE.csv --out DIR

The file has one row a measurement, in the schema of Alabdulmohsin et al., arXiv:2209.06640:
Domain, Task, Model, Seen Examples, Loss, Training. A curve is the rows of one domain, task and
model. Each method is fitted to those with Training = 1 and scored on those with Training = 0 by
sqrt(mean((log predicted - log measured)^2)). Writes to --out:

    benchmark.csv          a line a domain and method, and for all domains if there are several
    curves.csv             a line a curve and method, with the reason where there is no score
    benchmark.png, .svg    errors by method, and how some of the curves were continued

Seconds are those of the processor, for the fit alone, with one thread; a first fit that loads and
compiles what a method needs isn't counted.
"""
import argparse
import csv
import dataclasses
import pathlib
import sys
import time

import numpy as np

METHODS = ("m1", "m2", "m3", "m4", "bnsl", "mean3", "big_transfer")
COLUMNS = {"domain": "Domain", "task": "Task", "model": "Model", "x": "Seen Examples", "y": "Loss",
           "training": "Training"}
LEVEL = 0.9  # nominal coverage of the intervals, which the name of a column repeats
# Of benchmark.csv: curves is the number scored; the errors are over curves, of log loss;
# coverage is the mean over curves of the share of test points within the interval.
SUMMARY_COLUMNS = ("domain", "method", "curves", "mean_log_rmse", "median_log_rmse", "coverage_90",
                   "cpu_seconds_per_fit")
# Of curves.csv: points is the number fitted, covered the share of test points within the
# interval, status "ok" or "failed".
CURVE_COLUMNS = ("domain", "task", "model", "method", "points", "log_rmse", "covered",
                 "cpu_seconds", "status", "reason")
_TRAINING = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclasses.dataclass(frozen=True)
class MeasuredCurve:
  """One curve of the file, in order of size.

  Attributes:
    domain: what its rows say; so `task` and `model`.
    x_N: (N,) sizes to fit; y_N: (N,) losses there.
    x_Q: (Q,) sizes held out; y_Q: (Q,) losses there.
    fault: why it can be neither fitted nor scored, or None.
  """
  domain: str
  task: str
  model: str
  x_N: np.ndarray
  y_N: np.ndarray
  x_Q: np.ndarray
  y_Q: np.ndarray
  fault: str | None

  @property
  def group(self):
    """The task's dataset: what its name has before an underscore."""
    return self.task.split("_")[0]


@dataclasses.dataclass(frozen=True)
class Example:
  """A curve to show, and the fitted curve of each method that could be fitted to it."""
  curve: MeasuredCurve
  fits: dict


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """What a benchmark found.

  Attributes:
    summary: dicts with `SUMMARY_COLUMNS`.
    scores: dicts with `CURVE_COLUMNS`.
    figure: paths of the PNG and the SVG.
  """
  summary: list
  scores: list
  figure: tuple


def read(path, columns=None):
  """Reads the curves of a CSV file.

  Args:
    path: the file.
    columns: what the file calls its columns, by role; those of `COLUMNS` where it isn't said.

  Returns:
    `MeasuredCurve`s, in order of domain, task and model. A row that can't be read is the fault of
    its curve alone.

  Raises:
    ValueError: no such file, a column that isn't there, or no row to fit or to score.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"--data: expected a CSV file; {path} is "
                     f"{'a folder' if path.is_dir() else 'not there'}")
  names = COLUMNS | (columns or {})
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      missing = [f"{name!r} ({role})" for role, name in names.items()
                 if name not in (reader.fieldnames or ())]
      if missing:
        raise ValueError(f"--data {path}: expected the columns {', '.join(missing)}; the file has "
                         f"{', '.join(map(repr, reader.fieldnames or ())) or 'none'}. Say what "
                         "it calls them: --columns x=tokens,y=loss")
      rows = {}
      for row in reader:
        key = tuple((row[names[role]] or "").strip() for role in ("domain", "task", "model"))
        rows.setdefault(key, []).append((reader.line_num, row))
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"--data {path}: expected a CSV file in UTF-8; {error}") from error
  found = [_curve(key, lines, names) for key, lines in sorted(rows.items())]
  for what, count in (("1, to fit", sum(curve.x_N.size for curve in found)),
                      ("0, to score", sum(curve.x_Q.size for curve in found))):
    if not count:
      raise ValueError(f"--data {path}: expected rows with {names['training']} = {what}; of "
                       f"{sum(map(len, rows.values()))} rows none that can be read is one")
  return found


def _curve(key, lines, names):
  points, faults = [], []
  for line, row in lines:
    cells = {role: (row[names[role]] or "").strip() for role in ("x", "y", "training")}
    training = _TRAINING.get(cells["training"].lower())
    if training is None:
      faults.append(f"line {line}: {names['training']}: expected 0 or 1, got "
                    f"{cells['training']!r}")
      continue
    values = []
    for role in ("x", "y"):
      try:
        values.append(float(cells[role]))
      except ValueError:
        values.append(np.nan)
      if not (np.isfinite(values[-1]) and values[-1] > 0):
        faults.append(f"line {line}: {names[role]}: expected a number above 0, got "
                      f"{cells[role]!r}")
    points.append((*values, training))
  points.sort()
  x, y, training = (np.array(column) for column in zip(*points)) if points else np.zeros((3, 0))
  training = training.astype(bool)
  if not faults:
    faults += [f"no rows with {names['training']} = {flag}"
               for flag, count in ((1, training.sum()), (0, (~training).sum())) if not count]
  return MeasuredCurve(*key, x[training], y[training], x[~training], y[~training],
                       faults[0] if faults else None)


def fitter(method):
  """The estimator of a name: (x_N, y_N, *, level) -> a curve with predict and interval.

  Raises:
    ValueError: a name that isn't one of `METHODS`.
  """
  from big_transfer.study import baselines, scale
  known = baselines.FITTERS | {"big_transfer": scale.fit}
  if method not in known:
    raise ValueError(f"--methods: expected some of {','.join(METHODS)}; got {method!r}")
  return known[method]


def score(curve, method):
  """Fits one method to a curve's training points and scores it on the others.

  Args:
    curve: a `MeasuredCurve`.
    method: one of `METHODS`.

  Returns:
    A dict with `CURVE_COLUMNS`. A curve that can't be fitted has status "failed" and the reason.
  """
  line = dict.fromkeys(CURVE_COLUMNS) | {
      "domain": curve.domain, "task": curve.task, "model": curve.model, "method": method,
      "points": curve.x_N.size, "status": "failed", "reason": curve.fault}
  if curve.fault:
    return line
  fit = fitter(method)
  try:
    start = time.process_time()
    fitted = fit(curve.x_N, curve.y_N, level=LEVEL)
    seconds = time.process_time() - start
    predicted_Q = fitted.predict(curve.x_Q)
    low_Q, high_Q = fitted.interval(curve.x_Q)
  except (ValueError, ArithmeticError, RuntimeError) as error:
    return line | {"reason": str(error)}
  if not (np.isfinite(predicted_Q).all() and np.min(predicted_Q) > 0):
    return line | {"reason": f"{method}: predicts losses that aren't finite and above 0 at the "
                             "sizes held out"}
  return line | {
      "log_rmse": float(np.sqrt(np.mean(np.log(predicted_Q / curve.y_Q) ** 2))),
      "covered": float(np.mean((low_Q <= curve.y_Q) & (curve.y_Q <= high_Q))),
      "cpu_seconds": seconds, "status": "ok"}


def summary(scores):
  """A line a domain and method, and a domain "all" where there are several.

  Args:
    scores: dicts with `CURVE_COLUMNS`.

  Returns:
    Dicts with `SUMMARY_COLUMNS`, over the curves that have a score; None where none has.
  """
  domains = list(dict.fromkeys(line["domain"] for line in scores))
  methods = list(dict.fromkeys(line["method"] for line in scores))
  out = []
  for domain in domains + (["all"] if len(domains) > 1 else []):
    for method in methods:
      own = [line for line in scores if line["method"] == method and line["status"] == "ok"
             and domain in (line["domain"], "all")]
      out.append({"domain": domain, "method": method, "curves": len(own),
                  "mean_log_rmse": _over(np.mean, own, "log_rmse"),
                  "median_log_rmse": _over(np.median, own, "log_rmse"),
                  "coverage_90": _over(np.mean, own, "covered"),
                  "cpu_seconds_per_fit": _over(np.mean, own, "cpu_seconds")})
  return out


def _over(statistic, lines, column):
  return float(statistic([line[column] for line in lines])) if lines else None


def examples(curves, scores, most=4):
  """Curves to show: of each group of tasks, up to `most` groups, that of the middle error.

  The middle one of each: the best would flatter the methods, and the worst slander them.

  Args:
    curves: `MeasuredCurve`s.
    scores: dicts with `CURVE_COLUMNS`.
    most: groups to show, spread over those there are.

  Returns:
    `Example`s.
  """
  errors = {}
  for line in scores:
    if line["status"] == "ok":
      key = (line["domain"], line["task"], line["model"])
      errors.setdefault(key, {})[line["method"]] = line["log_rmse"]
  groups = {}
  for i, curve in enumerate(curves):
    own = errors.get((curve.domain, curve.task, curve.model))
    if own:
      groups.setdefault((curve.domain, curve.group), []).append((sum(own.values()), i, curve, own))
  middles = [sorted(group, key=lambda part: part[:2])[len(group) // 2]
             for group in groups.values()]
  spread = np.unique(np.linspace(0, len(middles) - 1, most).round().astype(int))
  return [Example(curve, {method: fitter(method)(curve.x_N, curve.y_N, level=LEVEL)
                          for method in own})
          for _, _, curve, own in (middles[i] for i in spread)]


def benchmark(data, out, *, methods=METHODS, columns=None):
  """Scores methods on a file of curves; writes tables and the figure.

  Args:
    data: the CSV file.
    out: the folder to write to; made if missing.
    methods: some of `METHODS`.
    columns: see `read`.

  Returns:
    A `Benchmark`.

  Raises:
    ValueError: a method or a file that is of no use (see `read`), or not one curve scored.
  """
  import threadpoolctl

  from big_transfer.study import benchmark_figure
  from big_transfer.study.figures import style
  out = pathlib.Path(out).expanduser()
  if out.exists() and not out.is_dir():
    raise ValueError(f"--out: expected a folder, but {out} is a file; name another")
  if pathlib.Path(data).expanduser().resolve() in [
      (out / name).resolve() for name in ("benchmark.csv", "curves.csv")]:
    raise ValueError(f"--out: {out} holds {data}, which a table of the benchmark would replace; "
                     "name another folder")
  methods = list(dict.fromkeys(methods))
  for method in methods:
    fitter(method)
  curves = read(data, columns)
  # A second thread only waits on matrices this small, and its waiting is charged to the fit.
  with threadpoolctl.threadpool_limits(1):
    for method in methods:
      score(next((curve for curve in curves if not curve.fault), curves[0]), method)
    scores = [score(curve, method) for curve in curves for method in methods]
    if not any(line["status"] == "ok" for line in scores):
      raise ValueError(f"--data {data}: none of {len(curves)} curves could be scored; the first "
                       f"says: {scores[0]['reason']}")
    chart = benchmark_figure.benchmark_figure(scores, examples(curves, scores), methods, LEVEL,
                                              COLUMNS | (columns or {}))
  out.mkdir(parents=True, exist_ok=True)
  lines = summary(scores)
  _write(out / "benchmark.csv", lines, SUMMARY_COLUMNS)
  _write(out / "curves.csv", scores, CURVE_COLUMNS)
  return Benchmark(lines, scores, tuple(style.save(chart, out / "benchmark")))


def _write(path, lines, columns):
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value
                      for name, value in line.items()} for line in lines)


def _columned(lines):
  """Rows of words as text, the first two columns to the left."""
  widths = [max(map(len, words)) for words in zip(*lines)]
  return "\n".join("  ".join(word.ljust(width) if i < 2 else word.rjust(width)
                             for i, (word, width) in enumerate(zip(line, widths))).rstrip()
                   for line in lines)


def _number(value, form=".4f"):
  return "–" if value is None else format(value, form)


def printed(found):
  """The tables of the terminal, as text: by domain, and the mean errors by group of tasks."""
  lines = [("domain", "method", "curves", "mean log-RMSE", "median", "coverage of 90 %",
            "CPU s a fit")]
  lines += [(line["domain"], line["method"], str(line["curves"]), _number(line["mean_log_rmse"]),
             _number(line["median_log_rmse"]), _number(line["coverage_90"], ".3f"),
             _number(line["cpu_seconds_per_fit"])) for line in found.summary]
  text = _columned(lines)
  cells = {}
  for line in found.scores:
    group = (line["domain"], line["task"].split("_")[0])
    cells.setdefault(group, {}).setdefault(line["method"], []).append(line)
  if len(cells) > 1:
    methods = list(dict.fromkeys(line["method"] for line in found.scores))
    lines = [("domain", "tasks", *methods)]
    for (domain, group), by_method in cells.items():
      own = ([line for line in by_method[method] if line["status"] == "ok"] for method in methods)
      lines.append((domain, group, *(_number(_over(np.mean, part, "log_rmse")) for part in own)))
    text += "\n\nmean log-RMSE by tasks\n" + _columned(lines)
  failed = [line for line in found.scores if line["status"] != "ok"]
  if failed:
    first = failed[0]
    text += (f"\n\nno score: {len(failed)} of {len(found.scores)} fits, see curves.csv; the first "
             f"is {first['domain']}, {first['task']}, {first['model']}, {first['method']}: "
             f"{first['reason']}")
  return text


def _named_columns(text):
  names = {}
  for part in filter(None, text.split(",")):
    role, equals, name = part.partition("=")
    if role.strip() not in COLUMNS or not equals or not name.strip():
      raise ValueError(f"--columns: expected ROLE=NAME,… with roles {', '.join(COLUMNS)}; got "
                       f"{part!r}")
    names[role.strip()] = name.strip()
  return names


def _parser():
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.study.benchmark", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True, metavar="FILE", help="CSV file of curves")
  parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
  parser.add_argument("--methods", default=",".join(METHODS), metavar="NAME,…",
                      help=f"some of {','.join(METHODS)} (default: all); mean3 is the mean of "
                      "m3, m4 and bnsl")
  parser.add_argument("--columns", default="", metavar="ROLE=NAME,…",
                      help="what the file calls its columns, where not " + ",".join(
                          f"{role}={name}" for role, name in COLUMNS.items()))
  return parser


def main(argv=None):
  """The command; returns its exit status."""
  flags = _parser().parse_args(argv)
  try:
    methods = [name.strip() for name in flags.methods.split(",") if name.strip()]
    if not methods:
      raise ValueError(f"--methods: expected some of {','.join(METHODS)}; got none")
    found = benchmark(flags.data, flags.out, methods=methods,
                      columns=_named_columns(flags.columns))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(printed(found))
  print(f"\ntables: {pathlib.Path(flags.out) / 'benchmark.csv'}, curves.csv; figure: "
        f"{found.figure[0]}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
