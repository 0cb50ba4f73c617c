"""Run folders to one tidy table of rows: one line a measured value, its run's identity beside it.

What was measured afterwards (`big_transfer.evaluate`), in RUN/evaluations/, is the run's too. So
is the accuracy that runs reached that were fine-tuned from it, see `joining`.

Column types are stated (`table.COLUMNS`), never inferred from the data.
"""
import collections
import contextlib
import dataclasses
import glob
import json
import pathlib
import re
import tempfile
import warnings

import duckdb
import pyarrow as pa

from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.study import joining, table, unused


@dataclasses.dataclass(frozen=True)
class Census:
  """What was found where the runs were looked for.

  Attributes:
    patterns: the globs, or the files of results, as given.
    finished: runs whose rows are in the table; those among them without an accuracy upstream or
      one downstream, and so without a point, are left out, too.
    left_out: reason -> number of folders (of files: of points), such as "running" -> 2.
    rows: lines of the table.
    warnings: one sentence each.
    joined: fine-tuning runs whose accuracy is among the rows of the run they began from.
  """
  patterns: tuple[str, ...]
  finished: int
  left_out: dict[str, int]
  rows: int
  warnings: tuple[str, ...]
  joined: int = 0

  def and_of(self, other):
    """The census of both."""
    left_out = collections.Counter(self.left_out) + collections.Counter(other.left_out)
    return Census(self.patterns + other.patterns, self.finished + other.finished, dict(left_out),
                  self.rows + other.rows, self.warnings + other.warnings,
                  self.joined + other.joined)


_ADVICE = {  # (what a run lacks, whether it is a record of `evaluate --init`) -> what to do
    (unused.NO_UPSTREAM, True): f"{unused.NO_UPSTREAM}: state or measure it by evaluate --upstream",
    (unused.NO_UPSTREAM, False): f"{unused.NO_UPSTREAM}: measure it by evaluate --workdir"}


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


def _learning_rate(run, config):
  """The peak rate: the shallowest number called lr or learning_rate, overrides first."""
  for tree in (run.get("overrides"), config):
    rates = [(key.count("."), value) for key, value in joining.leaves(tree or {})
             if key.rsplit(".", 1)[-1] in ("lr", "learning_rate") and "[" not in key
             and isinstance(value, (int, float)) and not isinstance(value, bool)]
    if rates:
      return float(min(rates)[1])
  return None


def head_settings(rules):
  """What an optimiser's rules say of the head, as a config holds them.

  Args:
    rules: ordered (regex, settings) pairs, `config.optim.rules`; the first that matches a
      parameter's whole name claims it.

  Returns:
    A dict of head_decay, head_rate and body_decay (`table.RUN_COLUMNS`), None where unknown; the
    last rule, that of all the rest, is the body's.
  """
  unknown = dict.fromkeys(("head_decay", "head_rate", "body_decay"))
  try:
    head = next(settings for pattern, settings in rules if re.fullmatch(pattern, "head/kernel"))
    body = rules[-1][1]
    (head_decay, head_rate), (body_decay, body_rate) = (
        (float(settings.get("wd", 0.0)), float(settings.get("lr", 1.0)))
        for settings in (head, body))
  except (TypeError, ValueError, AttributeError, LookupError, StopIteration, re.error):
    return unknown  # not the rules of our optimiser
  return {"head_decay": head_decay, "head_rate": head_rate / body_rate if body_rate else None,
          "body_decay": body_decay}


def recipe(config):
  """A hash of what a config says of training, but for the seed and what `head_settings` tells.

  Two runs of one recipe, one decay of the body and one rate of the head differ in the head's decay
  and in luck, whatever the configs they were written as.

  Args:
    config: as a run recorded it.

  Returns:
    12 hexadecimal digits, None where the rules are none of our optimiser.
  """
  rules = (config.get("optim") or {}).get("rules")
  if head_settings(rules)["head_decay"] is None:
    return None
  rules = [[pattern, {"lr": 1.0, "wd": 0.0} | of_rule] for pattern, of_rule in rules]
  head = next(of_rule for pattern, of_rule in rules if re.fullmatch(pattern, "head/kernel"))
  body = rules[-1][1]
  del body["wd"]
  if head is not body:
    del head["lr"], head["wd"]
  fixed = config | {"optim": config["optim"] | {"rules": rules}}
  return configuring.identity("recipe", fixed, configuring.HOUSEKEEPING + (
      "seed", "evals.*", "eval_batch_size"))


def _epochs(run, upstream):
  seen, examples = run.get("examples_seen"), upstream.get("train_examples")
  return seen / examples if seen is not None and examples else None


def _identity(run, folder):
  model, upstream = run.get("model") or {}, run.get("upstream") or {}
  config = _load(folder / records.CONFIG) if (folder / records.CONFIG).is_file() else {}
  optim = config.get("optim")
  values = {
      "run_id": run["id"], "run_name": run.get("name"), "run_folder": str(folder),
      "family": model.get("family"), "model": model.get("label"),
      "upstream": upstream.get("name"), "upstream_classes": upstream.get("classes"),
      "upstream_fraction": upstream.get("fraction", 1.0),
      "upstream_train_examples": upstream.get("train_examples"),
      "epochs": _epochs(run, upstream),
      "upstream_test_examples": upstream.get("test_examples"),
      "us_stated": upstream.get("stated"), "run_seed": run.get("seed"),
      "overrides": json.dumps(run.get("overrides") or {}, sort_keys=True),
      "learning_rate": _learning_rate(run, config), "recipe": recipe(config),
      **head_settings(optim.get("rules") if isinstance(optim, dict) else None)}
  same = ("parameters", "flops_per_example", "total_steps", "batch_size", "examples_seen",
          "config_name", "wall_seconds")
  return values | {name: run.get(name) for name in same}


def _arrow(identities):
  columns = {}
  for name, (kind, _) in table.RUN_COLUMNS.items():
    values = [identity[name] for identity in identities]
    try:
      columns[name] = pa.array(values, table.ARROW[kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
      raise ValueError(f"{records.RUN} files: {name} should be {kind} in every run, but {error}; "
                       "correct the file, or leave its folder out of --runs") from error
  of_files = {"file": pa.string(), "measured_in": pa.string(), "place": pa.int64(),
              "final": pa.int64(), "tuned": pa.bool_()}
  return pa.table(columns | {name: pa.array([identity[name] for identity in identities], kind)
                             for name, kind in of_files.items()})


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
          source = pathlib.Path(identity["measured_in"]) / records.METRICS
          raise ValueError(f"{source}, line {number}: expected a row as a JSON object, "
                           f"but {reason}; correct or delete the line") from error
  raise ValueError(f"{records.METRICS} files can't be read: {error}") from error


def gather(patterns, out, recipe=""):
  """Writes the rows of all finished runs to one Parquet file, `table.COLUMNS` its schema.

  Args:
    patterns: globs of run folders. Matches that are no run folder are counted and left out, and
      so are runs whose status isn't "finished" and further copies of one run id; so are runs that
      no point can be of, but their rows are written. With a run its
      finished evaluations are read: a value that is in several of its files counts once,
      metrics.jsonl's first; what was measured of an earlier checkpoint and never of the last is
      left out. The accuracy of fine-tuning runs joins the rows of the run they began from.
    out: the Parquet file to write.
    recipe: KEY=VALUE,...: only fine-tuning runs whose config says so count, see `joining`.

  Returns:
    A `Census`.

  Raises:
    ValueError: a pattern matches nothing, no run is finished, or a file is damaged; the message
      names the file and the line. Only a last line cut off mid-write is left out, with a warning.
  """
  folders, others = _folders(patterns)
  left_out = collections.Counter({"not a run folder": others} if others else {})
  runs, unfinished = {}, set()
  for folder in folders:
    run = _read(folder)
    reason = ("evaluation, read with its run" if run.get("evaluates") else
              run["status"] if run["status"] != "finished" else
              "copy of a run already read" if run["id"] in runs else None)
    if reason:
      left_out[reason] += 1
      unfinished |= {run["id"]} if run["status"] != "finished" else set()
    else:
      runs[run["id"]] = (run, folder)
  tuned = {name: item for name, item in runs.items() if joining.is_tuned(item[0])}
  bases = {name: item for name, item in runs.items() if name not in tuned}
  if not bases:
    raise ValueError(f"--runs: expected at least one finished run under {', '.join(patterns)}, "
                     f"found {_counted(left_out, tuned)}; let the runs finish, or start them again")
  notes = []
  joins, lost = joining.joins(tuned, bases, unfinished, recipe)
  left_out += lost
  with contextlib.ExitStack() as stack:
    scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    identities = []

    def add(source, identity, place, tuned=False):
      file, note = _whole_lines(source / records.METRICS, scratch)
      notes.extend([note] if note else [])
      identities.append(identity | {"file": str(file), "place": place, "tuned": tuned,
                                    "measured_in": str(source)})

    of_run = {}
    for name, (run, folder) in bases.items():
      of_run[name] = _identity(run, folder) | {"final": run.get("step")}
      for place, source in enumerate([folder, *_evaluations(run, folder, left_out)]):
        add(source, of_run[name], place)
    for place, join in enumerate(joins, len(identities)):
      add(join.folder, of_run[join.base] | {"final": join.step}, place, tuned=True)
    rows, joined, lost, found = _write_rows(identities, joins, pathlib.Path(out))
  left_out += lost
  lacking = unused.runs(out, bases)
  left_out += collections.Counter(_ADVICE.get((reason, "parameters_from" in bases[name][0]), reason)
                                  for name, reason in lacking.items())
  notes += found + joining.twice({name: bases[name] for name in bases if name not in lacking})
  for note in notes:
    warnings.warn(note, stacklevel=2)
  return Census(tuple(patterns), len(bases), dict(left_out), rows, tuple(notes), joined)


def _read(folder):
  """The run.json of a run's folder, checked."""
  run = _load(folder / records.RUN)
  if not isinstance(run.get("id"), str) or not isinstance(run.get("status"), str):
    raise ValueError(f"{folder / records.RUN}: expected texts 'id' and 'status', got id "
                     f"{run.get('id')!r} and status {run.get('status')!r}; restore the file, "
                     "or leave its folder out of --runs")
  return run


def _evaluations(run, folder, left_out):
  """Folders of what was measured of a run afterwards, in a fixed order; counts what isn't whole."""
  found = []
  for path in sorted((folder / records.EVALUATIONS).glob("*/")):
    record = _load(path / records.RUN) if (path / records.RUN).is_file() else {}
    reason = ("evaluation that isn't finished" if record.get("status") != "finished" else
              # The run was trained anew, or made longer, in the same folder.
              "evaluation of another run" if record.get("evaluates") != run["id"] else None)
    if reason:
      left_out[reason] += 1
    else:
      found.append(path)
  return found


def _counted(left_out, tuned):
  counts = left_out + collections.Counter({"fine-tuned from a run that isn't here": len(tuned)})
  return ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "none"


def _write_rows(identities, joins, out):
  """Writes the Parquet file.

  Returns:
    (its lines, fine-tuning runs among its sources, counter of what was left out, warnings).
  """
  types = ", ".join(f"{table.quoted(name)}: '{column.duckdb}'"
                    for name, column in records.ROW_COLUMNS.items())
  select = ", ".join([f"r.{table.quoted(name)}" for name in table.RUN_COLUMNS]
                     + [f"m.{table.quoted(name)}" for name in records.ROW_COLUMNS]
                     + ["r.measured_in"])
  out.parent.mkdir(parents=True, exist_ok=True)
  with duckdb.connect() as database:
    database.register("runs", _arrow(identities))
    # A path with brackets in it is a path here, not a glob.
    files = [glob.escape(identity["file"]) for identity in identities]
    # Else DuckDB holds some 200 kB for each file: 25 GB for 5,000 runs fine-tuned on 25 tasks.
    database.execute("SET preserve_insertion_order = false")
    try:
      database.execute(
          f"CREATE TABLE measured AS SELECT * FROM read_json($files, columns={{{types}}}, "
          "format='newline_delimited', filename='file')", {"files": files})
    except duckdb.Error as error:
      _raise_bad_line(identities, error)
    lost, notes = joining.choose(database, joins) if joins else (collections.Counter(), [])
    early = _keep_once(database) if any(i["place"] for i in identities) else 0
    lost += collections.Counter({"evaluation of an earlier step alone": early})
    database.execute(
        f"COPY (SELECT {select} FROM measured m JOIN runs r USING (file) "
        "ORDER BY r.run_id, m.step, r.place, m.rowid) "
        f"TO '{str(out).replace(chr(39), 2 * chr(39))}' (FORMAT parquet, COMPRESSION zstd)")
    rows, joined = database.execute(
        "SELECT count(*), count(DISTINCT file) FILTER (tuned) FROM measured JOIN runs USING (file)"
        ).fetchone()
    return rows, joined, lost, notes


def _keep_once(database):
  """Takes out of `measured` what evaluations measured again, and what only they measured too early.

  A value that is in several files of a run counts once, metrics.jsonl's first. What was measured
  of a checkpoint before the run's last step is kept only where the like (evaluator, task, layer
  and metric) is known of its last: else it would pass for the run's last evaluation.

  Returns:
    The number of files of which rows were too early.
  """
  # A linear probe finds its strength, so that it is no part of what was asked for.
  key = ", ".join("nullif(m.l2, CASE evaluator WHEN 'linear' THEN m.l2 END)" if name == "l2" else
                  f"m.{table.quoted(name)}" for name in records.ROW_COLUMNS
                  if name not in ("value", "status", "reason"))
  database.execute(
      "DELETE FROM measured WHERE rowid IN (SELECT number FROM ("
      f"SELECT m.rowid AS number, place, min(place) OVER (PARTITION BY run_id, {key}) AS first "
      "FROM measured m JOIN runs USING (file) "
      "WHERE run_id IN (SELECT run_id FROM runs WHERE place > 0)) WHERE place > first)")
  like = ", ".join(f"m.{name}" for name in ("evaluator", "task", "layer", "metric"))
  database.execute(
      "CREATE TABLE early AS SELECT number, file FROM ("
      f"SELECT m.rowid AS number, file, place > 0 AND m.step < final AS before, max(m.step) OVER "
      f"(PARTITION BY run_id, {like}) AS latest, final FROM measured m JOIN runs USING (file) "
      "WHERE run_id IN (SELECT run_id FROM runs WHERE place > 0)) WHERE before AND latest < final")
  database.execute("DELETE FROM measured WHERE rowid IN (SELECT number FROM early)")
  return database.execute("SELECT count(DISTINCT file) FROM early").fetchone()[0]
