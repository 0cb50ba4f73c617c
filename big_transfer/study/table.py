"""Run folders to one tidy table, and from that table the points that laws are fitted to.

`gather` writes `rows.parquet`: one line a measured value, with the identity of its run beside it
(`COLUMNS`). `points` reads that file: one line a run and cell, its accuracy upstream and
downstream (`POINT_COLUMNS`). A cell is an (upstream, task, variant, setting, shots). Column types
are stated, never inferred from the data.
"""
import collections
import contextlib
import dataclasses
import glob
import json
import math
import pathlib
import tempfile
import warnings

import duckdb
import pyarrow as pa
from pyarrow import csv, parquet

from big_transfer.runs import records

RUN_COLUMNS = {
    "run_id": ("VARCHAR", "the run's identity: a hash of its config, but for logging and saving"),
    "run_name": ("VARCHAR", "the run's name"),
    "run_folder": ("VARCHAR", "the folder that was read, as it was given"),
    "family": ("VARCHAR", "architecture: vit, mixer, resnet"),
    "model": ("VARCHAR", "the model's label, such as 'ViT 64x4/8'"),
    "parameters": ("BIGINT", "parameters of the model"),
    "flops_per_example": ("DOUBLE", "floating-point operations of one example's forward pass"),
    "upstream": ("VARCHAR", "the dataset pre-trained on"),
    "upstream_classes": ("BIGINT", "classes upstream"),
    "upstream_train_examples": ("BIGINT", "examples trained on"),
    "upstream_test_examples": ("BIGINT", "examples that upstream accuracy is measured on"),
    "total_steps": ("BIGINT", "optimiser steps of the whole run"),
    "batch_size": ("BIGINT", "examples a step"),
    "examples_seen": ("BIGINT", "training examples seen by the end, repeats counted"),
    "run_seed": ("BIGINT", "the run's seed"),
    "config_name": ("VARCHAR", "the base config"),
    "overrides": ("VARCHAR", "what the run changed of it, as JSON"),
    "learning_rate": ("DOUBLE", "the peak learning rate, from the overrides or the config"),
    "wall_seconds": ("DOUBLE", "time the run took, in seconds"),
}
COLUMNS = RUN_COLUMNS | {name: (column.duckdb, column.meaning)
                         for name, column in records.ROW_COLUMNS.items()}

CELL = ("upstream", "task", "variant", "setting", "shots")
POINT_COLUMNS = {
    "run_id": RUN_COLUMNS["run_id"],
    "run_name": RUN_COLUMNS["run_name"],
    "run_folder": RUN_COLUMNS["run_folder"],
    "family": RUN_COLUMNS["family"],
    "model": RUN_COLUMNS["model"],
    "parameters": RUN_COLUMNS["parameters"],
    "learning_rate": RUN_COLUMNS["learning_rate"],
    "overrides": RUN_COLUMNS["overrides"],
    "step": ("BIGINT", "optimiser steps taken when both accuracies were measured"),
    "last": ("BOOLEAN", "whether that is the run's last evaluation"),
    "upstream": RUN_COLUMNS["upstream"],
    "task": ("VARCHAR", "the downstream task"),
    "variant": COLUMNS["variant"],
    "setting": COLUMNS["setting"],
    "shots": COLUMNS["shots"],
    "us_accuracy": ("DOUBLE", "accuracy upstream, a fraction of held-out examples"),
    "ds_accuracy": ("DOUBLE", "accuracy downstream, a fraction, the mean over probe seeds"),
    "ds_std": ("DOUBLE", "standard deviation over probe seeds (n - 1); null with one seed"),
    "ds_seeds": ("BIGINT", "probe seeds in that mean"),
    "examples_used": ("BIGINT", "fewest training examples that one of the probes got"),
}

L2 = 1024.0  # 2^10, the protocol's ridge strength


@dataclasses.dataclass(frozen=True)
class Census:
  """What was found where the runs were looked for.

  Attributes:
    patterns: the globs, as given.
    finished: runs whose rows are in the table.
    left_out: reason -> number of folders, such as "running" -> 2.
    rows: lines of the table.
    warnings: one sentence each.
  """
  patterns: tuple[str, ...]
  finished: int
  left_out: dict[str, int]
  rows: int
  warnings: tuple[str, ...]


def _folders(patterns):
  """The folders that hold a run.json, each once, and how many matches hold none."""
  found, others = {}, 0
  for pattern in patterns:
    matches = sorted(glob.glob(str(pathlib.Path(pattern).expanduser())))
    if not matches:
      raise ValueError(f"--runs: nothing matches {pattern!r}; expected a quoted glob of run "
                       "folders, such as --runs 'DIR/*'")
    for match in map(pathlib.Path, matches):
      if (match / records.RUN).is_file():
        found.setdefault(match.resolve(), match)
      else:
        others += 1
  if not found:
    inside = next((match for pattern in patterns for match in sorted(glob.glob(str(pattern)))
                   if any(pathlib.Path(match).glob("*/" + records.RUN))), None)
    hint = f"did you mean '{inside}/*'?" if inside else "a run folder is what a training leaves"
    raise ValueError(f"--runs: none of the {others} matches of {', '.join(patterns)} holds a "
                     f"{records.RUN}, which marks a run folder; {hint}")
  return list(found.values()), others


def _load(path):
  try:
    content = json.loads(path.read_text())
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path}: expected a JSON object, but {error}; restore the file, or leave "
                     "its folder out of --runs") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}; restore the "
                     "file, or leave its folder out of --runs")
  return content


def _leaves(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _learning_rate(run, folder):
  """The peak rate: the shallowest number called lr or learning_rate, overrides first."""
  config = folder / records.CONFIG
  for tree in (run.get("overrides"), _load(config) if config.is_file() else None):
    rates = [(key.count("."), value) for key, value in _leaves(tree or {})
             if key.rsplit(".", 1)[-1] in ("lr", "learning_rate") and "[" not in key
             and isinstance(value, (int, float)) and not isinstance(value, bool)]
    if rates:
      return float(min(rates)[1])
  return None


def _identity(run, folder):
  model, upstream = run.get("model") or {}, run.get("upstream") or {}
  values = {
      "run_id": run["id"], "run_name": run.get("name"), "run_folder": str(folder),
      "family": model.get("family"), "model": model.get("label"),
      "upstream": upstream.get("name"), "upstream_classes": upstream.get("classes"),
      "upstream_train_examples": upstream.get("train_examples"),
      "upstream_test_examples": upstream.get("test_examples"), "run_seed": run.get("seed"),
      "overrides": json.dumps(run.get("overrides") or {}, sort_keys=True),
      "learning_rate": _learning_rate(run, folder)}
  same = ("parameters", "flops_per_example", "total_steps", "batch_size", "examples_seen",
          "config_name", "wall_seconds")
  return values | {name: run.get(name) for name in same}


_ARROW = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(),
          "BOOLEAN": pa.bool_()}


def _arrow(identities):
  columns = {}
  for name, (kind, _) in RUN_COLUMNS.items():
    values = [identity[name] for identity in identities]
    try:
      columns[name] = pa.array(values, _ARROW[kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
      raise ValueError(f"{records.RUN} files: {name} should be {kind} in every run, but {error}; "
                       "correct the file, or leave its folder out of --runs") from error
  return pa.table(columns | {"file": [identity["file"] for identity in identities]})


def _unparsable(line):
  """Why a line isn't a row, or None."""
  try:
    row = json.loads(line.rstrip())
  except (UnicodeDecodeError, ValueError) as error:
    return str(error)
  if not isinstance(row, dict):
    return f"it is {type(row).__name__}, not an object"
  for name, column in records.ROW_COLUMNS.items():
    kinds = (int, float) if column.python is float else (column.python,)
    value = row.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
      return f"{name} should be {column.python.__name__}, got {value!r}"
  return None


def _whole_lines(path, scratch):
  """The file to read for `path`: itself, or a copy without a last line cut off mid-write."""
  if not path.is_file():
    raise ValueError(f"{path}: a finished run should have this file; restore it, or leave its "
                     "folder out of --runs")
  with path.open("rb") as file:
    size = file.seek(0, 2)
    if not size:
      return path, None
    file.seek(size - 1)
    if file.read(1) == b"\n":
      return path, None
  whole, _, tail = path.read_bytes().rpartition(b"\n")
  if _unparsable(tail) is None:
    return path, None
  copy = scratch / f"{len(list(scratch.iterdir()))}.jsonl"
  copy.write_bytes(whole + b"\n" if whole else b"")
  return copy, f"{path}: its last line is cut off (the run was killed in mid-write?); left out"


def _raise_bad_line(identities, error):
  """Names the line that DuckDB would not read; its own message knows the file by another name."""
  for identity in identities:
    with open(identity["file"], "rb") as file:
      for number, line in enumerate(file, 1):
        reason = _unparsable(line) if line.strip() else None
        if reason:
          path = pathlib.Path(identity["run_folder"]) / records.METRICS
          raise ValueError(f"{path}, line {number}: expected a row as a JSON object, but {reason}; "
                           "correct or delete the line") from error
  raise ValueError(f"{records.METRICS} files can't be read: {error}") from error


def gather(patterns, out):
  """Writes the rows of all finished runs to one Parquet file, `COLUMNS` its schema.

  Args:
    patterns: globs of run folders. Matches that are no run folder are counted and left out, and
      so are runs whose status isn't "finished" and further copies of one run id.
    out: the Parquet file to write.

  Returns:
    A `Census`.

  Raises:
    ValueError: a pattern matches nothing, no run is finished, or a file is damaged; the message
      names the file and the line. Only a last line cut off mid-write is left out, with a warning.
  """
  folders, others = _folders(patterns)
  left_out = collections.Counter({"not a run folder": others} if others else {})
  identities, notes, seen = [], [], set()
  with contextlib.ExitStack() as stack:
    scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    for folder in folders:
      run = _load(folder / records.RUN)
      if not isinstance(run.get("id"), str) or not isinstance(run.get("status"), str):
        raise ValueError(f"{folder / records.RUN}: expected texts 'id' and 'status', got id "
                         f"{run.get('id')!r} and status {run.get('status')!r}; restore the file, "
                         "or leave its folder out of --runs")
      reason = run["status"] if run["status"] != "finished" else (
          "copy of a run already read" if run["id"] in seen else None)
      if reason:
        left_out[reason] += 1
        continue
      seen.add(run["id"])
      file, note = _whole_lines(folder / records.METRICS, scratch)
      notes += [note] if note else []
      identities.append(_identity(run, folder) | {"file": str(file)})
    if not identities:
      raise ValueError(f"--runs: expected at least one finished run under {', '.join(patterns)}, "
                       f"found {_counted(left_out)}; let the runs finish, or start them again")
    rows = _write_rows(identities, pathlib.Path(out))
  for note in notes:
    warnings.warn(note, stacklevel=2)
  return Census(tuple(patterns), len(identities), dict(left_out), rows, tuple(notes))


def _counted(left_out):
  return ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items())) or "none"


def _quoted(name):
  return '"' + name.replace('"', '""') + '"'


def _write_rows(identities, out):
  types = ", ".join(f"{_quoted(name)}: '{column.duckdb}'"
                    for name, column in records.ROW_COLUMNS.items())
  select = ", ".join([f"r.{_quoted(name)}" for name in RUN_COLUMNS]
                     + [f"m.{_quoted(name)}" for name in records.ROW_COLUMNS])
  out.parent.mkdir(parents=True, exist_ok=True)
  with duckdb.connect() as database:
    database.register("runs", _arrow(identities))
    # A path with brackets in it is a path here, not a glob.
    files = [glob.escape(identity["file"]) for identity in identities]
    try:
      database.execute(
          f"CREATE TABLE measured AS SELECT * FROM read_json($files, columns={{{types}}}, "
          "format='newline_delimited', filename='file')", {"files": files})
    except duckdb.Error as error:
      _raise_bad_line(identities, error)
    database.execute(
        f"COPY (SELECT {select} FROM measured m JOIN runs r USING (file) "
        "ORDER BY r.run_id, m.step) "
        f"TO '{str(out).replace(chr(39), 2 * chr(39))}' (FORMAT parquet, COMPRESSION zstd)")
    return database.execute("SELECT count(*) FROM measured").fetchone()[0]


def points(rows, *, steps="last", l2=L2):
  """The points of the study: per finished run and cell, accuracy upstream and downstream.

  A run's last evaluation is its last step with both an upstream accuracy and some probe. Only
  probes of `pre_logits` count; values that are skipped or not finite are left out.

  Args:
    rows: the Parquet file that `gather` wrote.
    steps: "last", or "all" for every step at which both accuracies were measured.
    l2: ridge strength of the probes.

  Returns:
    A table of `POINT_COLUMNS`, ordered by cell, run and step.

  Raises:
    ValueError: an unknown `steps`, no upstream accuracy, no probe, none at this strength, or
      several upstream accuracies of one run at one step.
  """
  if steps not in ("last", "all"):
    raise ValueError(f"--steps: expected 'last' or 'all', got {steps!r}")
  good = "metric = 'accuracy' AND isfinite(value) AND coalesce(status, 'ok') = 'ok'"
  with duckdb.connect() as database:
    database.register("rows", database.read_parquet(glob.escape(str(rows))))
    database.execute(
        "CREATE TABLE us AS SELECT run_id, step, value, count(*) OVER (PARTITION BY run_id, step) "
        f"AS n FROM rows WHERE evaluator = 'upstream' AND {good} "
        "AND coalesce(split, 'test') <> 'train'")
    database.execute(
        f"CREATE TABLE ds AS SELECT * FROM rows WHERE evaluator = 'fewshot' AND {good} "
        "AND coalesce(layer, 'pre_logits') = 'pre_logits' AND \"group\" IS NULL")
    _check_accuracies(database, l2)
    table = database.execute(_POINTS, {"l2": l2, "all": steps == "all"}).to_arrow_table()
  if not table.num_rows:
    raise ValueError("rows: no run has an upstream accuracy and a probe at the same step; evaluate "
                     "both at the last step (evaluators 'upstream' and 'fewshot')")
  return table


_POINTS = f"""
WITH probes AS (
  SELECT run_id, step, task, variant, setting, shots, avg(value) AS ds_accuracy,
         stddev_samp(value) AS ds_std, count(DISTINCT coalesce(seed, 0)) AS ds_seeds,
         min(examples_used) AS examples_used, any_value(run_name) AS run_name,
         any_value(run_folder) AS run_folder,
         any_value(family) AS family, any_value(model) AS model,
         any_value(parameters) AS parameters, any_value(learning_rate) AS learning_rate,
         any_value(overrides) AS overrides, any_value(upstream) AS upstream
  FROM ds WHERE coalesce(l2, $l2) = $l2
  GROUP BY run_id, step, task, variant, setting, shots
), joined AS (
  SELECT probes.*, us.value AS us_accuracy,
         step = max(step) OVER (PARTITION BY run_id) AS "last"
  FROM probes JOIN us USING (run_id, step)
)
SELECT {", ".join(_quoted(name) for name in POINT_COLUMNS)} FROM joined
WHERE "last" OR $all
ORDER BY {", ".join(CELL)}, run_id, step
"""


def _check_accuracies(database, l2):
  def one(query, **values):
    return database.execute(query, values or None).fetchone()
  if not one("SELECT count(*) FROM us")[0]:
    raise ValueError("rows: no upstream accuracy (evaluator 'upstream', metric 'accuracy') in any "
                     "finished run; add the upstream evaluator to the config")
  if not one("SELECT count(*) FROM ds")[0]:
    raise ValueError("rows: no few-shot accuracy (evaluator 'fewshot', metric 'accuracy', layer "
                     "'pre_logits') in any finished run; add the few-shot evaluator to the config")
  twice = one("SELECT run_id, step, n FROM us WHERE n > 1 ORDER BY ALL LIMIT 1")
  if twice:
    raise ValueError(f"rows: run {twice[0]} has {twice[2]} upstream accuracies at step {twice[1]}, "
                     "expected one on held-out examples; keep one such evaluator in the config")
  if not one("SELECT count(*) FROM ds WHERE coalesce(l2, $l2) = $l2", l2=l2)[0]:
    measured = database.execute("SELECT DISTINCT l2 FROM ds ORDER BY l2").fetchall()
    raise ValueError(f"--l2: no probe has ridge strength {l2:g}; measured were "
                     f"{', '.join(f'{value:g}' for value, in measured)}: choose one of these")


def as_records(table):
  """A table as a list of dicts, with NaN (which JSON lacks) as None."""
  return [{key: None if isinstance(value, float) and not math.isfinite(value) else value
           for key, value in row.items()} for row in table.to_pylist()]


def write(stem, lines, columns):
  """Writes dicts as STEM.parquet and STEM.csv.

  Args:
    stem: path without an ending.
    lines: dicts; a key that is absent is null.
    columns: name -> (type, meaning), such as `POINT_COLUMNS`.
  """
  schema = pa.schema([(name, _ARROW[kind]) for name, (kind, _) in columns.items()])
  content = pa.Table.from_pylist(lines, schema=schema)
  parquet.write_table(content, f"{stem}.parquet", compression="zstd")
  csv.write_csv(content, f"{stem}.csv")
