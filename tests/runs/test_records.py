"""Records: nothing written is lost, nothing read is guessed."""
import json
import os
import signal
import subprocess
import sys

import duckdb
import numpy as np
import pytest

from big_transfer.runs import records

ROW = {"step": 1, "evaluator": "upstream", "metric": "accuracy", "value": 0.5}


def rows(*steps):
  return [ROW | {"step": step} for step in steps]


def steps(folder):
  return [row["step"] for row in records.read_rows(folder)]


def test_rows_come_back_with_every_column(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with records.Record("a/run") as record:
    record.append([ROW | {"seed": np.int64(3), "l2": np.float32(1024), "value": 1, "task": None}])
  assert record.folder == tmp_path / "a" / "run"
  row, = records.read_rows("a/run")
  assert row == dict.fromkeys(records.ROW_COLUMNS) | {
      "step": 1, "evaluator": "upstream", "metric": "accuracy", "value": 1.0, "seed": 3,
      "l2": 1024.0}
  assert isinstance(row["value"], float)


@pytest.mark.parametrize("value, said", [
    (float("nan"), "value is nan"), (np.float32("-inf"), "value is -inf")])
def test_non_finite_values_are_null_in_valid_json(tmp_path, value, said):
  with records.Record(tmp_path) as record:
    record.append([ROW | {"value": value}, ROW | {"value": value, "reason": "diverged"}])
  first, second = [json.loads(line, parse_constant=pytest.fail)
                   for line in (tmp_path / records.METRICS).read_text().splitlines()]
  assert first == {"step": 1, "evaluator": "upstream", "metric": "accuracy",
                   "status": "non-finite", "reason": said}
  assert second["reason"] == "diverged" and "value" not in second


@pytest.mark.parametrize("bad, words", [
    ({"stp": 1}, "unknown column 'stp'"), ({"step": 1.5}, "'step' expects int"),
    ({"step": True}, "'step' expects int"), ({"value": "high"}, "'value' expects float"),
    ({"l2": float("nan")}, "row.l2")])
def test_a_bad_row_is_refused_with_all_that_come_with_it(tmp_path, bad, words):
  with records.Record(tmp_path) as record:
    record.append(rows(1))
    with pytest.raises(ValueError, match=words):
      record.append([ROW, ROW | bad])
  assert steps(tmp_path) == [1]


def test_duckdb_reads_the_rows_with_the_given_types(tmp_path):
  with records.Record(tmp_path) as record:
    record.append([ROW | {"value": 1}, ROW | {"value": 0.7, "group": "a"}])
  columns = {name: column.duckdb for name, column in records.ROW_COLUMNS.items()}
  read = duckdb.sql(f"select value, \"group\", shots from read_json("
                    f"'{tmp_path / records.METRICS}', format='newline_delimited', "
                    f"columns={columns})").fetchall()
  assert read == [(1.0, None, None), (0.7, "a", None)]


def test_truncate_moves_what_lies_beyond(tmp_path):
  with records.Record(tmp_path) as record:
    record.append(rows(1, 2))
    length = record.length()
    record.append(rows(3, 4))
    assert record.truncate(length) == 2
    assert record.truncate(length) == 0
    record.append(rows(5))
    assert record.length() == os.path.getsize(tmp_path / records.METRICS)
  assert steps(tmp_path) == [1, 2, 5]
  discarded = (tmp_path / records.DISCARDED).read_text().splitlines()
  assert [json.loads(line)["step"] for line in discarded] == [3, 4]


@pytest.mark.parametrize("moment", ["replace", "truncate"])
def test_truncate_cut_short_loses_and_doubles_nothing(tmp_path, monkeypatch, moment):
  """Stops the work before or after the rows are safe, as a kill would, and does it again."""
  record = records.Record(tmp_path)
  record.append(rows(1))
  length = record.length()
  record.append(rows(2))

  class Killed(BaseException):
    pass

  def die(*_):
    raise Killed

  if moment == "replace":
    monkeypatch.setattr(os, "replace", die)
  else:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    real, record._metrics = record._metrics, type("File", (), {"truncate": die})()
  with pytest.raises(Killed):
    record.truncate(length)
  monkeypatch.undo()
  if moment == "truncate":
    record._metrics = real
  record.close()
  with records.Record(tmp_path) as record:
    assert record.truncate(length) == 1
  assert steps(tmp_path) == [1]
  assert (tmp_path / records.DISCARDED).read_text().count("\n") == 1


def test_truncate_refuses_a_file_that_lost_rows_or_was_altered(tmp_path):
  with records.Record(tmp_path) as record:
    record.append(rows(1, 2))
    length = record.length()
    with pytest.raises(records.RecordError, match=f"holds {length} bytes.*{length + 9}"):
      record.truncate(length + 9)
    with pytest.raises(records.RecordError, match="altered"):
      record.truncate(length - 1)
  assert steps(tmp_path) == [1, 2]


def test_a_cut_last_line_warns_when_read_and_is_moved_away_when_written(tmp_path):
  with records.Record(tmp_path) as record:
    record.append(rows(1, 2))
  path = tmp_path / records.METRICS
  path.write_text(path.read_text()[:-5])
  with pytest.warns(UserWarning, match="metrics.jsonl' is cut off"):
    assert steps(tmp_path) == [1]
  with records.Record(tmp_path) as record:
    record.append(rows(3))
  assert steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("line", ["{", "[]", '{"value": NaN}', '{"stp": 1}', ""])
def test_a_bad_line_elsewhere_is_an_error_with_file_and_line(tmp_path, line):
  path = tmp_path / records.METRICS
  path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
  with pytest.raises(records.RecordError, match=r"metrics.jsonl', line 2"):
    records.read_rows(tmp_path)


def test_run_json_is_merged_and_config_comes_back(tmp_path):
  with records.Record(tmp_path) as record:
    assert record.read_config() is None
    record.write_config({"shots": (1, 5)})
    record.update_run(status="running", loss=float("nan"))
    record.update_run(status="finished", wall_seconds=np.float64(2.5))
    assert record.read_config() == records.read_config(tmp_path) == {"shots": [1, 5]}
  assert records.read_run(tmp_path) == {"status": "finished", "loss": None, "wall_seconds": 2.5}
  (tmp_path / records.RUN).write_text("{")
  with pytest.raises(records.RecordError, match="run.json' is no JSON"):
    records.read_run(tmp_path)
  with pytest.raises(records.RecordError, match="No such file"):
    records.read_run(tmp_path / "other")


def test_write_atomic_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  records.write_atomic(path, "old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(records.RecordError, match="x.json': No space left"):
    records.write_atomic(path, "new")
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_whole_rows(tmp_path):
  """A limit on file size stands for the disk: the second append gets part of its bytes down."""
  code = f"""
import resource, signal
from big_transfer.runs import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
record = records.Record({str(tmp_path)!r})
record.append([{ROW!r}])
resource.setrlimit(resource.RLIMIT_FSIZE, (record.length() + 10,) * 2)
try:
  record.append([{ROW!r}])
except records.RecordError as error:
  print(error)
"""
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert "can't append to" in out.stdout and "File too large" in out.stdout
  assert steps(tmp_path) == [1]


def test_one_process_at_a_time(tmp_path):
  code = f"""
import time
from big_transfer.runs import records
record = records.Record({str(tmp_path)!r})
print("held", flush=True)
time.sleep(60)
"""
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == "held\n"
    with pytest.raises(records.RecordError, match=rf"another process \(id {other.pid}\)"):
      records.Record(tmp_path)
    other.send_signal(signal.SIGKILL)
  with records.Record(tmp_path):
    with pytest.raises(records.RecordError, match="close that one first"):
      records.Record(tmp_path)


def test_a_folder_made_for_nothing_is_removed_and_no_other(tmp_path):
  with pytest.raises(ValueError, match="refused"):
    with records.Record(tmp_path / "refused"):
      raise ValueError("refused")
  assert not list(tmp_path.iterdir())
  records.Record(tmp_path).close()  # was there before
  with records.Record(tmp_path / "run") as record:
    record.update_run(status="failed")
  with records.Record(tmp_path / "rows") as record:
    record.append([{"step": 1}])
  with records.Record(tmp_path / "others") as record:
    (record.folder / "log.txt").touch()
  record.close()
  for name in ("run", "rows", "others"):
    assert (tmp_path / name / records.METRICS).exists()


def test_a_folder_that_can_t_be_written(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(records.RecordError, match="can't create the run folder"):
    records.Record(tmp_path / "file" / "run")
