"""Disks that are full or can't be written: told at once, and the last good checkpoint stays."""
import contextlib
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from big_transfer import train as train_lib
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import members
from big_transfer.training import silence
from tests import toy

ROOT = pathlib.Path(__file__).parents[1]
# A checkpoint of 10 MiB or so: large beside the few kB of rows, small beside any memory.
MODEL = dict(name="vit", width=256, depth=1, heads=2, mlp_dim=1024, patch=8, pool="gap")


def _config(**changes):
  return toy.config(**{**dict(model=MODEL, evals={}, log_every=1), **changes})


@pytest.fixture(name="mount")
def fixture_mount(tmp_path):
  """Returns `mount(MiB)`, which gives a folder that is a disk of that size."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(size):
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
    try:
      subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
      pytest.skip(f"mounting a small disk isn't allowed here: {e}")
    return folder

  yield mount
  subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _fill(folder, leave=0):
  """Fills a disk but for `leave` bytes; returns the file that does."""
  path = folder / "filling"
  with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
    while (free := shutil.disk_usage(folder).free - leave) > 0:
      file.write(b"\0" * min(free, 2**20))
  return path


def _params(folder):
  return checkpoint.read(folder / "checkpoints")


def _same_run(found, expected):
  jax.tree.map(np.testing.assert_array_equal, _params(found), _params(expected))
  assert (found / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "undisturbed"
  train_lib.train(_config(), folder)
  return folder


@pytest.mark.slow
def test_a_disk_for_no_checkpoint_is_refused_before_the_first_step(mount, monkeypatch):
  disk = mount(30)
  filling = _fill(disk, leave=2 * 2**20)
  toy.at_step(monkeypatch, 0, lambda: pytest.fail("a step was begun"))
  with pytest.raises(checkpoint.CheckpointError, match=r"has [\d.]+ MiB free, a checkpoint takes "
                     r"[\d.]+ MiB: no checkpoint could be written; free [\d.]+ MiB"):
    train_lib.train(_config(), disk / "run")
  monkeypatch.undo()
  filling.unlink()
  assert records.read_run(disk / "run")["status"] == "failed"
  assert not records.read_rows(disk / "run")


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_good_checkpoint(undisturbed, mount, capfd):
  """Room for two of the three that lie there while a third is written (the first is smaller)."""
  size = sum(p.stat().st_size for p in (undisturbed / "checkpoints/6").rglob("*") if p.is_file())
  disk = mount(round(1.9 * size / 2**20))
  with pytest.raises(checkpoint.CheckpointError,
                     match="checkpoint 6 could not be written.*No space left on device.*Free"):
    train_lib.train(_config(), disk / "run")
  assert "warning: the disk of" in capfd.readouterr().out
  assert _params(disk / "run").step == 4
  run = records.read_run(disk / "run")
  if run["status"] != "running":  # as it stays where not even run.json fits
    assert run["status"] == "failed" and "No space left" in run["error"]
  subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
  assert train_lib.train(_config(), disk / "run")["status"] == "finished"
  _same_run(disk / "run", undisturbed)


@pytest.mark.slow
def test_the_error_is_all_that_a_full_disk_prints(mount):
  """Room for one checkpoint of 2.5 MiB and the half of another, as a user would see it."""
  result = subprocess.run(
      [sys.executable, "-m", "big_transfer.train", "--workdir", mount(3) / "run",
       "--config", ROOT / "configs/pretrain/fractals.py:vit", "--config.upstream.options.classes=4",
       "--config.total_steps=30", "--config.evals={}", "--config.checkpoint.every=2",
       "--config.batch_size=8", "--config.accumulate=1"],
      capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
  assert result.returncode == 1 and "warning: the disk of" in result.stdout
  line, *more = result.stderr.splitlines()
  assert not more or len(more) == 1 and "run.json doesn't say so" in more[0]  # if not even that fits
  assert line.startswith("error: checkpoint") and "No space left on device. Free" in line
  assert len(line) < 300


def test_only_what_an_exception_tells_is_hushed(monkeypatch):
  told = []
  monkeypatch.setattr(sys, "unraisablehook", told.append)
  for name in ("absl", "asyncio"):
    monkeypatch.setattr(logging.getLogger(name), "filters", [])
  silence.hush_failed_saves.__wrapped__()
  closed = RuntimeError("Event loop is closed")
  for found in (dict(object=None, exc_value=closed), dict(object=print, exc_value=closed),
                dict(object=None, exc_value=RuntimeError("another"))):
    sys.unraisablehook(types.SimpleNamespace(**found))
  assert [found.object for found in told] == [print, None]
  [kept] = logging.getLogger("absl").filters
  for path, level, expected in (("orbax/checkpoint/x.py", logging.ERROR, False),
                                ("orbax/checkpoint/x.py", logging.WARNING, True),
                                ("clu/x.py", logging.ERROR, True)):
    assert kept(logging.LogRecord("absl", level, path, 1, "said", (), None)) == expected
  [kept] = logging.getLogger("asyncio").filters
  for message, expected in (
      ("Task exception was never retrieved\nfuture: … at /orbax/checkpoint/x.py", False),
      ("Task exception was never retrieved\nfuture: … at /grain/x.py", True),
      ("Task was destroyed but it is pending\n… /orbax/x.py", True)):
    assert kept(logging.LogRecord(
        "asyncio", logging.ERROR, "asyncio/x.py", 1, message, (), None)) == expected


@pytest.mark.slow
def test_a_disk_that_is_full_when_rows_are_written(undisturbed, mount, monkeypatch):
  """The rows of an evaluation, more than what the file's last page still holds."""
  disk = mount(100)
  config = _config(evals=dict(geometry=dict(
      kind="geometry", every=5, examples=16, quantiles=tuple(i / 40 for i in range(41)))))

  def fill():
    while not (disk / "run/checkpoints/4").is_dir():
      time.sleep(0.01)  # until it is written
    _fill(disk)

  with monkeypatch.context() as patch:
    toy.at_step(patch, 4, fill)
    with pytest.raises(records.RecordError, match="can't append to .*No space left.*disk has sp"):
      train_lib.train(config, disk / "run")
  assert _params(disk / "run").step == 4
  assert {row["step"] for row in records.read_rows(disk / "run")} == {1, 2, 3, 4, 5}
  (disk / "filling").unlink()
  assert train_lib.train(config, disk / "run")["status"] == "finished"
  jax.tree.map(np.testing.assert_array_equal, _params(disk / "run"), _params(undisturbed))


@pytest.mark.slow
def test_a_signal_within_a_save_and_one_before_it(undisturbed, tmp_path, monkeypatch):
  original, calls = checkpoint.Checkpoints.save, []

  def save(self, state, meta):
    calls.append(int(state.step))
    original(self, state, meta)
    if calls == [2]:
      os.kill(os.getpid(), signal.SIGTERM)  # while it is being written

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, "save", save)
    run = train_lib.train(_config(), tmp_path / "run")
  assert run["status"] == "interrupted" and run["step"] == 3 and calls == [2, 3]
  assert train_lib.train(_config(), tmp_path / "run")["status"] == "finished"
  _same_run(tmp_path / "run", undisturbed)


def test_a_file_in_the_place_of_a_folder_is_told_before_anything(tmp_path):
  (tmp_path / "run").write_text("a file")
  with pytest.raises(records.RecordError, match="can't create the run folder .*File exists"):
    train_lib.train(_config(), tmp_path / "run")
  (tmp_path / "other").mkdir()
  (tmp_path / "other/checkpoints").write_text("a file")
  with pytest.raises(checkpoint.CheckpointError, match="can't be written to .*File exists.*or use"):
    checkpoint.Checkpoints(tmp_path / "other/checkpoints")


def test_a_disk_that_is_read_only_or_full_is_told_before_anything(mount):
  disk = mount(1)
  (disk / "full").mkdir()
  _fill(disk)
  with pytest.raises(records.RecordError, match="can't write to .*No space left"):
    train_lib.train(_config(), disk / "full")
  subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
  with pytest.raises(records.RecordError, match="can't .*Read-only file system.*yours to write"):
    train_lib.train(_config(), disk / "run")


def test_rows_and_run_on_a_full_disk_stay_as_they_were(mount):
  disk = mount(1)
  row = {"step": 1, "evaluator": "train", "metric": "loss", "value": 0.5}
  with records.Record(disk / "run") as record:
    record.append([row])
    record.update_run(status="running")
    filling = _fill(disk)
    with pytest.raises(records.RecordError, match="can't append to .*No space left"):
      record.append([row] * 200)
    with pytest.raises(records.RecordError, match="can't write .*No space left"):
      record.update_run(status="failed")
    assert len(records.read_rows(disk / "run")) == 1
    assert records.read_run(disk / "run") == {"status": "running"}
    filling.unlink()
    record.append([row])
  assert len(records.read_rows(disk / "run")) == 2


def test_what_failed_first_is_told_though_run_json_can_not_say_so():
  class Full:
    def update_run(self, **fields):
      raise records.RecordError("can't write 'run.json': No space left on device")

  member = members.Member.__new__(members.Member)
  member.record = Full()
  error = ValueError("the first")
  member.fail(error)
  assert member.error == "ValueError: the first" and "No space left" in error.__notes__[0]
