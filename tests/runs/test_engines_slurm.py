"""The Slurm engine against a Slurm of one machine: retries, requeues, jobs taken over, stopping."""
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

import worker_functions
from engine_tasks import act, trial
from big_transfer import sweep
from big_transfer.runs import engines
from big_transfer.runs import records
from big_transfer.runs.engines import slurm_cluster

pytest.importorskip("submitit")
HERE = pathlib.Path(__file__).parent


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """Puts Slurm's commands in the path; returns a function that calls those of the fake."""
  state, commands = tmp_path / "state", tmp_path / "bin"
  state.mkdir()
  commands.mkdir()
  for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
    path = commands / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_slurm.py"}" {name} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("FAKE_SLURM", str(state))
  monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))
  for name in ("QUEUE_SECONDS", "STOPPING_SECONDS", "LAG_SECONDS"):
    monkeypatch.setattr(slurm_cluster, name, 0.5)

  def ask(*arguments):
    return subprocess.run([sys.executable, HERE / "fake_slurm.py", *arguments], check=True,
                          capture_output=True, text=True).stdout
  yield ask
  for line in ask("squeue").splitlines():
    if line.endswith("RUNNING"):
      ask("fail", line.split()[0])


def run(folder, tasks, function, **more):
  return engines.run_slurm(tasks, function, folder=folder / ".slurm", **more)


def started(path):
  return lambda: path.exists() and records.read_rows(path.parent)


def when(condition, action, seconds=60):
  """Acts, in a thread, once a condition holds."""
  def wait():
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
      time.sleep(0.05)
    action()
  thread = threading.Thread(target=wait)
  thread.start()
  return thread


def complete(folder, rows):
  return ([row["step"] for row in records.read_rows(folder)] == list(range(rows))
          and records.read_run(folder)["status"] == "finished")


def test_an_array_runs_and_what_failed_is_submitted_again(slurm, tmp_path):
  told = []
  todo = [act(tmp_path, "good"), act(tmp_path, "slips", "raise once"),
          act(tmp_path, "bad", "raise"), act(tmp_path, "wrong", "refuse"),
          act(tmp_path, "dies", "die once")]
  outcomes, number = run(tmp_path, todo, worker_functions.act, jobs=3, report=told.append,
                         parameters={"partition": "toy", "timeout_min": 60, "slurm_comment": "x"})
  good, slips, bad, wrong, dies = outcomes
  assert number is None
  assert [o.status for o in outcomes] == ["done", "done", "failed", "failed", "done"]
  assert [o.attempts for o in outcomes] == [1, 2, 2, 1, 2]
  assert [o.losses for o in outcomes] == [0, 0, 0, 0, 1]
  assert good.result["pid"] and "went wrong" in bad.error and "is refused" in wrong.error
  script = (tmp_path / "state" / "1.sbatch").read_text()
  for flag in ("--array=0-4%3", "--partition=toy", "--time=60", "--comment=x"):
    assert flag in script
  assert (told[-1].done, told[-1].failed, told[-1].total) == (3, 2, 5)


@pytest.mark.slow
def test_a_job_at_its_limit_saves_and_is_queued_again(slurm, tmp_path):
  path = tmp_path / "a" / records.METRICS
  thread = when(started(path), lambda: slurm("warn", "1"))
  outcomes, _ = run(tmp_path, [trial(tmp_path, "a", 20, 0.1)], worker_functions.resume,
                    parameters={"timeout_min": 60})
  thread.join()
  assert outcomes[0].status == "done" and outcomes[0].attempts == 1
  assert outcomes[0].result == 2, "it was started twice"
  assert complete(tmp_path / "a", 20)
  assert "attempt 2" in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.slow
def test_a_signal_lets_jobs_save_and_leaves_none(slurm, tmp_path):
  path = tmp_path / "a" / records.METRICS
  thread = when(started(path), lambda: os.kill(os.getpid(), signal.SIGTERM))
  outcomes, number = run(tmp_path, [trial(tmp_path, n, 500, 0.1) for n in "abc"],
                         worker_functions.resume, jobs=1)
  thread.join()
  assert number == signal.SIGTERM
  assert [o.status for o in outcomes] == ["unfinished"] * 3
  assert records.read_run(tmp_path / "a")["status"] == "interrupted"
  assert not (tmp_path / "b").exists()
  assert not slurm("squeue")


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_engines_slurm as t, pathlib
folder = pathlib.Path(sys.argv[2])
t.run(folder, [t.trial(folder, n, 60, 0.1) for n in "ab"], t.worker_functions.resume)
"""


@pytest.mark.slow
def test_jobs_of_a_command_that_was_killed_are_taken_over(slurm, tmp_path):
  driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(HERE), str(tmp_path)])
  end = time.monotonic() + 60
  while not all(started(tmp_path / n / records.METRICS)() for n in "ab"):
    assert time.monotonic() < end
    time.sleep(0.05)
  driver.kill()
  driver.wait()
  outcomes, _ = run(tmp_path, [trial(tmp_path, n, 60, 0.1) for n in "abc"], worker_functions.resume)
  assert [o.status for o in outcomes] == ["done"] * 3
  assert [o.result for o in outcomes] == [1, 1, 1], "none was started twice"
  assert len(list((tmp_path / "state").glob("*.sbatch"))) == 2


@pytest.mark.slow
def test_a_population_is_one_job(slurm, tmp_path):
  spec = worker_functions.pairs(tmp_path)
  result = sweep.sweep(spec, tmp_path / "out", engine="slurm", population=2)
  assert [outcome.status for outcome in result.outcomes] == ["done"] * 3
  assert [outcome.result.get("population") for outcome in result.outcomes] == [2, 2, None]
  assert "--array=0-1%" in (tmp_path / "state" / "1.sbatch").read_text()


@pytest.mark.parametrize("parameters, words", [
    ({"partitoin": "x"}, "partitoin"), ({"timeout_min": "long"}, "timeout_min")])
def test_parameters_that_submitit_does_not_take_are_told(slurm, tmp_path, parameters, words):
  with pytest.raises(ValueError, match=f"--slurm: .*{words}"):
    run(tmp_path, [act(tmp_path, "a")], worker_functions.act, parameters=parameters)


def test_no_slurm_is_told(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(engines.EngineError, match="no Slurm on this machine"):
    run(tmp_path, [act(tmp_path, "a")], worker_functions.act)
  with pytest.raises(ValueError, match="jobs=0"):
    run(tmp_path, [], worker_functions.act, jobs=0)
