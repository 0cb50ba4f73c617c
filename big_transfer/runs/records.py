"""What a run leaves behind in its folder, written so that a kill at any moment loses nothing.

    config.json               the config of the run, as plain JSON
    run.json                  identity, model, versions, status, wall seconds; rewritten atomically
    metrics.jsonl             one JSON object a measured value: ROW_COLUMNS, absent keys are null
    metrics.discarded.jsonl   rows that a resumed run measured again, from after its checkpoint
    checkpoints/              one folder a step, see `training.checkpoint`
    checkpoints.bad/          those found damaged, kept for a look
    checkpoints.discarded/    good ones that a run of a population had beyond their common step
    evaluations/              records of evaluations made afterwards, each a folder as this one
    .lock                     held by the process that writes here

Rows are read with the column types given here, never with inferred ones.
"""
import contextlib
import fcntl
import json
import math
import numbers
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from big_transfer.runs import configuring


class RecordError(ValueError):
  """A run folder that can't be written or read; the message names the file and the fix."""


class Column(NamedTuple):
  """A column of the rows: its Python type, its DuckDB type and what it holds."""
  python: type
  duckdb: str
  meaning: str


ROW_COLUMNS = {
    "step": Column(int, "BIGINT", "optimiser steps taken when the value was measured"),
    "examples": Column(int, "BIGINT", "training examples seen by then, repeats counted"),
    "evaluator": Column(str, "VARCHAR", "what measured: 'upstream', 'fewshot', 'finetune', …"),
    "task": Column(str, "VARCHAR", "the dataset it was measured on"),
    "variant": Column(str, "VARCHAR", "the task's variant: 'full', 'vtab1k', an altered test set"),
    "setting": Column(str, "VARCHAR",
                      "how the task was learnt: 'upstream', 'fewshot', 'linear', 'finetune'"),
    "split": Column(str, "VARCHAR", "the split measured on: 'train', 'test', 'validation'"),
    "shots": Column(int, "BIGINT", "examples a class asked for by a few-shot probe"),
    "examples_used": Column(int, "BIGINT", "training examples the probe got, all classes together"),
    "seed": Column(int, "BIGINT", "the seed that drew the probe's examples, or of fine-tuning"),
    "layer": Column(str, "VARCHAR", "the representation probed: 'pre_logits', 'block_03', …"),
    "group": Column(str, "VARCHAR", "the part of the data or the parameters a value is about"),
    "quantile": Column(float, "DOUBLE", "the quantile a value is, in [0, 1]"),
    "l2": Column(float, "DOUBLE", "the probe's ridge strength"),
    "metric": Column(str, "VARCHAR", "what the value is: 'accuracy', 'loss', …"),
    "value": Column(float, "DOUBLE", "the value; accuracies are fractions, not percent"),
    "status": Column(str, "VARCHAR",
                     "'ok' or null where the value is good; else 'non-finite', 'skipped', …"),
    "reason": Column(str, "VARCHAR", "why the status is what it is"),
}

CONFIG, RUN, METRICS = "config.json", "run.json", "metrics.jsonl"
DISCARDED, LOCK, EVALUATIONS = "metrics.discarded.jsonl", ".lock", "evaluations"


def write_atomic(path: str | os.PathLike, text: str) -> None:
  """Replaces a file's content: a reader, or a kill, meets the old content or the new, whole.

  Raises:
    RecordError: the folder can't be written or the disk is full; the old content stays.
  """
  _replace_bytes(pathlib.Path(path), text.encode())


class Record:
  """The writing side of a run folder, held by one process at a time.

  Use it in a `with` statement, or call `close()`; a process that dies lets go by itself.

  Example:
    with Record("runs/first") as record:
      record.write_config({"total_steps": 10})
      record.append([{"step": 10, "evaluator": "upstream", "metric": "accuracy", "value": 0.5}])
      record.update_run(status="finished")

  Attributes:
    folder: the run's folder, an absolute path.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Creates the folder if need be and takes its lock.

    Raises:
      RecordError: the folder can't be written, or another process (or another Record in this one)
        writes there.
    """
    self.folder = pathlib.Path(workdir).expanduser().absolute()
    self._made = not self.folder.exists()
    with _told(f"create the run folder '{self.folder}'"):
      self.folder.mkdir(parents=True, exist_ok=True)
    self._lock = _locked(self.folder / LOCK)
    try:
      with _told(f"write to '{self._path(METRICS)}'"):
        self._metrics = open(self._path(METRICS), "ab", buffering=0)
      self._drop_cut_line()
    except BaseException:
      self._lock.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def close(self) -> None:
    """Lets go of the folder. Calling it again does nothing.

    A folder that was made for this, and in which nothing was written, is removed: a run that was
    refused leaves none.
    """
    if self._made and not self._metrics.closed:
      self._remove_empty()
    self._metrics.close()
    self._lock.close()

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json; `config` may hold what `configuring.plain` takes."""
    write_atomic(self._path(CONFIG), _pretty(configuring.plain(config)))

  def read_config(self) -> dict[str, Any] | None:
    """Returns the content of config.json, None if the run has none yet."""
    return read_config(self.folder) if self._path(CONFIG).exists() else None

  def update_run(self, **fields) -> dict[str, Any]:
    """Sets fields of run.json, leaving the others, and returns all of them.

    A nan or an infinity becomes null.
    """
    old = _read_json(self._path(RUN)) if self._path(RUN).exists() else {}
    run = old | configuring.plain(fields, where="run", finite=False)
    write_atomic(self._path(RUN), _pretty(run))
    return run

  def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to metrics.jsonl, all or none of them.

    A value that is nan or infinite is written as null with the status "non-finite" and, unless the
    row gives one, a reason that says which; null columns are left out.

    Args:
      rows: mappings with keys of ROW_COLUMNS and values of their types, or None.

    Raises:
      RecordError: an unknown column, a value of another type, or a full disk.
    """
    data = b"".join(_line(row) for row in rows)
    length = self._metrics.tell()
    with _told(f"append to '{self._path(METRICS)}'"):
      try:
        written = 0
        while written < len(data):
          written += self._metrics.write(data[written:])
      except OSError:
        self._metrics.truncate(length)
        raise

  def length(self) -> int:
    """Returns the bytes of metrics.jsonl, all of them on the disk: what a checkpoint stores."""
    with _told(f"write '{self._path(METRICS)}' to the disk"):
      os.fsync(self._metrics.fileno())
      return os.fstat(self._metrics.fileno()).st_size

  def truncate(self, length: int) -> int:
    """Moves the rows beyond `length` bytes to metrics.discarded.jsonl; returns how many.

    The rows are safe there before they leave metrics.jsonl. A kill in between leaves them in both,
    and the same call again then finds them moved already.

    Raises:
      RecordError: metrics.jsonl is shorter than `length`, or `length` isn't the end of a line.
    """
    path = self._path(METRICS)
    with _told(f"shorten '{path}'"):
      with open(path, "rb") as file:
        data = file.read()
      if length < 0 or len(data) < length:
        raise RecordError(f"'{path}' holds {len(data)} bytes, but the checkpoint was written with "
                          f"{length}: rows are lost; restore the file, or start in a new folder")
      if length and data[length - 1:length] != b"\n":
        raise RecordError(f"'{path}' has no line that ends at byte {length}, where the checkpoint "
                          "was written: it was altered; restore it, or start in a new folder")
      tail = data[length:]
      if not tail:
        return 0
      moved = tail if tail.endswith(b"\n") else tail + b"\n"
      discarded = self._path(DISCARDED)
      old = discarded.read_bytes() if discarded.exists() else b""
      if not old.endswith(moved):
        _replace_bytes(discarded, old + moved)
      self._metrics.truncate(length)
      self._metrics.seek(length)
      os.fsync(self._metrics.fileno())
    return moved.count(b"\n")

  def _path(self, name):
    return self.folder / name

  def _remove_empty(self):
    ours = {self._path(LOCK), self._path(METRICS)}
    with contextlib.suppress(OSError):  # then it stays, which does no harm
      if set(self.folder.iterdir()) == ours and not os.fstat(self._metrics.fileno()).st_size:
        for path in ours:
          path.unlink()
        self.folder.rmdir()

  def _drop_cut_line(self):
    """Moves away what a killed write left of a line, so that the next row starts a line."""
    data = self._path(METRICS).read_bytes()
    self._metrics.seek(len(data))
    if data and not data.endswith(b"\n"):
      self.truncate(data.rfind(b"\n") + 1)


class Follower:
  """What a Record is to processes that write nothing: main writes the same run.

  Attributes:
    folder: the run's folder, an absolute path.
  """

  def __init__(self, workdir: str | os.PathLike):
    self.folder = pathlib.Path(workdir).expanduser().absolute()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    pass

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def update_run(self, **fields) -> None:
    """Writes nothing."""

  def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes nothing, but makes the rows, as others wait for the computations behind them."""
    for _ in rows:
      pass

  def length(self) -> int:
    """Returns 0: main's is what a checkpoint stores."""
    return 0

  def truncate(self, length: int) -> int:
    """Moves nothing; returns 0."""
    del length
    return 0


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns the content of a folder's config.json; raises as `read_run` does."""
  return _read_json(pathlib.Path(folder) / CONFIG)


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns the content of a folder's run.json.

  Raises:
    RecordError: there is none, or it isn't a JSON object.
  """
  return _read_json(pathlib.Path(folder) / RUN)


def read_rows(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of a folder's metrics.jsonl, every one with all of ROW_COLUMNS.

  A last line that a kill cut off is left out with a warning.

  Raises:
    RecordError: there is no such file, or a line that isn't a row, named by file and line.
  """
  path = pathlib.Path(folder) / METRICS
  with _told(f"read '{path}'"):
    data = path.read_bytes()
  *lines, cut = data.split(b"\n")
  if cut:
    warnings.warn(f"the last line of '{path}' is cut off and left out: the run was killed while it "
                  "wrote; resuming it measures those values again", stacklevel=2)
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line, parse_constant=_no_constant)
      _check(row)
    except ValueError as error:
      raise RecordError(f"'{path}', line {number}: not a row ({error}): {line[:80]!r}; "
                        "mend or remove the line") from None
    rows.append({name: None if row.get(name) is None else column.python(row[name])
                 for name, column in ROW_COLUMNS.items()})
  return rows


def _no_constant(token):
  raise ValueError(f"{token} is no JSON")


def _line(row):
  """Returns a row as a line of JSON, bytes."""
  kept = {column: value for column, value in row.items() if value is not None}
  value = kept.get("value")
  if isinstance(value, numbers.Real) and not math.isfinite(value):
    del kept["value"]
    kept["status"] = "non-finite"
    kept.setdefault("reason", f"value is {float(value)}")
  kept = configuring.plain(kept, where="row")
  _check(kept)
  return (json.dumps(kept, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _check(row):
  """Raises RecordError unless a plain row has known columns and values of their types."""
  if not isinstance(row, dict):
    raise RecordError(f"expected a JSON object, got {type(row).__name__}")
  for name, value in row.items():
    column = ROW_COLUMNS.get(name)
    if column is None:
      raise RecordError(f"row has the unknown column '{name}': expected some of "
                        f"{', '.join(ROW_COLUMNS)}")
    accepted = (int, float) if column.python is float else column.python
    if value is not None and (isinstance(value, bool) or not isinstance(value, accepted)):
      raise RecordError(f"row column '{name}' expects {column.python.__name__} ({column.meaning}); "
                        f"got {value!r}")


def _pretty(tree):
  return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _read_json(path):
  with _told(f"read '{path}'"):
    text = path.read_text()
  try:
    content = json.loads(text)
  except ValueError as error:
    raise RecordError(f"'{path}' is no JSON ({error}): restore it, or start in a new folder"
                      ) from None
  if not isinstance(content, dict):
    raise RecordError(f"'{path}' holds {type(content).__name__}: expected a JSON object")
  return content


def _replace_bytes(path, data):
  # One process at a time writes a folder, so a fixed name is enough, and a kill leaves one file.
  temporary = path.with_name(f"{path.name}.tmp")
  with _told(f"write '{path}'"):
    try:
      with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(folder)  # the new name itself, which a power cut would lose
    finally:
      os.close(folder)


def _locked(path):
  """Returns an open file that holds an exclusive lock until it is closed or the process dies."""
  with _told(f"open '{path}'"):
    file = open(path, "a+")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read().strip() or "unknown"
    file.close()
    if holder == str(os.getpid()):
      raise RecordError(f"this process has a Record of '{path.parent}' open: close that one first"
                        ) from None
    raise RecordError(f"another process (id {holder}) is writing to '{path.parent}': wait for it, "
                      "stop it, or use another folder") from None
  except OSError as error:
    warnings.warn(f"'{path.parent}' is on a file system without locks ({error}): make sure that "
                  "only one process writes there", stacklevel=3)
  try:
    with _told(f"write to '{path}'"):
      file.truncate(0)
      file.write(f"{os.getpid()}\n")
      file.flush()
  except BaseException:
    with contextlib.suppress(OSError):  # what couldn't be written, closing tries again
      file.close()
    raise
  return file


@contextlib.contextmanager
def _told(action):
  """Turns an OSError into a RecordError that says what couldn't be done."""
  try:
    yield
  except OSError as error:
    raise RecordError(f"can't {action}: {error.strerror or error}; check that the folder exists, "
                      "is yours to write and that its disk has space") from error
