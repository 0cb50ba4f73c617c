"""The Ray engine on a Ray of this machine: failures, lost workers, signals, what can't be had."""
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import worker_functions
from engine_tasks import act, trial
from big_transfer import sweep
from big_transfer.runs import engines
from big_transfer.runs import records
from big_transfer.runs.engines import own_ray
from big_transfer.runs.engines import ray_cluster

ray = pytest.importorskip("ray")
HERE = pathlib.Path(__file__).parent
# Ray leaves its log files and sockets to the garbage collector, and warns of options to come.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def cluster():
  """A Ray of two places that the engine finds connected; its workers import what the tests do."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR", object_store_memory=own_ray.STORE_BYTES)
    yield
    ray.shutdown()


def complete(folder, rows):
  return ([row["step"] for row in records.read_rows(folder)] == list(range(rows))
          and records.read_run(folder)["status"] == "finished")


def until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.05)


def test_failures_cost_attempts_and_losses_do_not(cluster, tmp_path):
  told = []
  todo = [act(tmp_path, "good"), act(tmp_path, "dies", "die once"),
          act(tmp_path, "slips", "raise once"), act(tmp_path, "bad", "raise"),
          act(tmp_path, "odd", "unsendable"), act(tmp_path, "wrong", "refuse")]
  outcomes, number = engines.run_ray(todo, worker_functions.act, retries=0, report=told.append)
  good, dies, slips, bad, odd, wrong = outcomes
  assert number is None
  assert [o.status for o in outcomes] == ["done", "done", "failed", "failed", "failed", "failed"]
  assert [o.attempts for o in outcomes] == [1, 2, 1, 1, 1, 1]
  assert [o.losses for o in outcomes] == [0, 1, 0, 0, 0, 0]
  assert wrong.error == "ValueError: wrong is refused" and bad.error.startswith("RuntimeError")
  assert "can't be sent" in odd.error and "\n" not in dies.error
  log = (tmp_path / "logs" / "dies.log").read_text()
  assert log.count("dies at work") == 2 and "attempt 2" in log
  assert "Traceback" in (tmp_path / "logs" / "bad.log").read_text()
  assert (told[-1].done, told[-1].failed, told[-1].total) == (2, 4, 6)
  assert max(progress.running for progress in told) <= 2


@pytest.mark.slow
def test_a_signal_lets_trials_save(cluster, tmp_path):
  def at_work():
    return [path.parent for path in tmp_path.glob(f"*/{records.METRICS}") if path.stat().st_size]

  def send():
    until(lambda: len(at_work()) == 2)
    os.kill(os.getpid(), signal.SIGTERM)
  thread = threading.Thread(target=send)
  thread.start()
  outcomes, number = engines.run_ray([trial(tmp_path, n, 1000, 0.05) for n in "abc"],
                                     worker_functions.resume)
  thread.join()
  assert number == signal.SIGTERM
  assert [o.status for o in outcomes] == ["unfinished"] * 3
  assert [records.read_run(folder)["status"] for folder in at_work()] == ["interrupted"] * 2


def test_what_cannot_be_had_is_told(cluster, tmp_path, monkeypatch):
  tasks = [act(tmp_path, "a")]
  with pytest.raises(engines.EngineError, match="no node of this Ray has TPU-v5e-8-head=1.*CPU=2"):
    engines.run_ray(tasks, worker_functions.act, resources={"TPU-v5e-8-head": 1})
  with pytest.raises(ValueError, match="'num_gpus' is -1"):
    engines.run_ray(tasks, worker_functions.act, resources={"num_gpus": -1})
  with pytest.raises(ValueError, match="jobs=0"):
    engines.run_ray(tasks, worker_functions.act, jobs=0)
  monkeypatch.setattr(worker_functions, "added_later", added_later, raising=False)
  monkeypatch.setattr(added_later, "__module__", "worker_functions")
  with pytest.raises(engines.EngineError, match="worker_functions.added_later' importable"):
    engines.run_ray(tasks, added_later)


def test_a_wait_for_a_node_that_may_come_is_told(cluster, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(ray_cluster, "WANT_SECONDS", 0.2)
  timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
  timer.start()
  outcomes, number = engines.run_ray([act(tmp_path, "a")], worker_functions.act, jobs=1,
                                     resources={"wrong": 1})
  timer.join()
  assert number == signal.SIGTERM and outcomes[0].status == "unfinished"
  told = capsys.readouterr().err
  assert told.count("waiting: no node of this Ray has num_cpus=1, wrong=1: there are CPU=2") > 1


def test_a_ray_that_can_not_be_connected_to_is_not_started(tmp_path, monkeypatch):
  for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(ray, "is_initialized", lambda: False)
  monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started"))
  with pytest.raises(engines.EngineError, match="imported before the sweep.*RAY_AUTH_MODE=token"):
    engines.run_ray([act(tmp_path, "a")], worker_functions.act)


def test_a_ray_that_fails_to_start_says_why(monkeypatch, tmp_path):
  (tmp_path / "ray.py").write_text("raise OSError('no place\\nfor sockets')")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
  with pytest.raises(RuntimeError, match="^OSError: no place for sockets$"):
    with own_ray.running():
      pytest.fail("it was said to run")


@pytest.mark.slow
def test_our_ray_ends_with_a_process_that_is_killed():
  code = ("import time\nfrom big_transfer.runs.engines import own_ray\n"
          "with own_ray.running() as address:\n  print(address, flush=True)\n  time.sleep(600)")
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
    assert user.stdout.readline().startswith("starting Ray")
    host, port = user.stdout.readline().strip().split(":")
    socket.create_connection((host, int(port))).close()
    user.kill()

  def gone():
    try:
      socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
      return True
    return False
  until(gone)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_lets_trials_save(tmp_path):
  """As `timeout`, Ctrl-C and job managers send it: Ray must outlive it until trials have saved."""
  spec = tmp_path / "some.py"
  spec.write_text(SWEEP.format(root=str(HERE.parents[1])).replace("=200", "=20_000"))
  root = tmp_path / "runs"
  command = subprocess.Popen(
      [*COMMAND, f"--sweep={spec}", f"--workdir={root}", "--engine=ray", "--jobs=1"],
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
  until(lambda: saving(root) or command.poll() is not None, seconds=120)
  os.killpg(command.pid, signal.SIGTERM)
  out = command.communicate(timeout=60)[0]
  assert command.returncode == 128 + signal.SIGTERM, out
  assert out.startswith("starting Ray") and "stopped by SIGTERM, 3 trials in" in out
  [run] = [records.read_run(path.parent) for path in root.glob(f"*/{records.RUN}")]
  assert run["status"] == "interrupted"


def added_later(payload):
  return payload


def test_a_missing_ray_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(engines.EngineError, match=r"pip install 'big_transfer\[ray\]'"):
    engines.run_ray([act(tmp_path, "a")], worker_functions.act)


def kill_at_random(busy, rng, every, stop, killed):
  """Kills the process of a trial at work with -9, about each `every` seconds."""
  while not stop.wait(rng.uniform(0.5, 1.5) * every):
    pids = busy()
    if pids:
      pid = rng.choice(pids)
      os.kill(pid, signal.SIGKILL)
      killed.append(pid)


def workers_of_ray():
  """Returns the processes of this machine's Ray that run our actors."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if (path / "cmdline").read_bytes().startswith(b"ray::_Post"):
        found.append(int(path.name))
    except OSError:  # it ended meanwhile
      continue
  return found


@pytest.mark.slow
def test_a_thousand_trials_with_workers_killed_at_random(cluster, tmp_path):
  """One complete record a trial, none missing, though workers die all the time."""
  trials = [trial(tmp_path, f"t{i:03}", 3, 0.005) for i in range(1000)]
  stop, killed, rng = threading.Event(), [], random.Random(0)
  killer = threading.Thread(target=kill_at_random, args=(workers_of_ray, rng, 2.0, stop, killed))
  killer.start()
  try:
    outcomes, number = engines.run_ray(trials, worker_functions.resume, retries=0)
  finally:
    stop.set()
    killer.join()
  print(f"{len(killed)} kills, {sum(o.losses for o in outcomes)} trials lost and tried again")
  assert number is None and {o.status for o in outcomes} == {"done"}
  assert len(list(tmp_path.iterdir())) == 1000
  assert all(complete(tmp_path / t.key, 3) for t in trials)
  # A kill may meet a worker between two trials or at its start, but most meet one at work.
  assert len(killed) >= 5 and sum(o.losses for o in outcomes) >= len(killed) / 3


SWEEP = """
import pathlib, sys
sys.path.insert(0, {root!r})
from tests import toy
def get_config():
  return toy.config(total_steps=200, checkpoint=dict(every=10), log_every=5)
def get_sweep():
  for lr in (0.01, 0.003, 0.001):
    yield {{"optim.lr": lr}}
"""
COMMAND = [sys.executable, "-m", "big_transfer.sweep"]


@pytest.mark.slow
def test_real_trials_killed_end_as_if_undisturbed(tmp_path):
  """As a user has it: the command starts its own Ray; two of its workers are killed in training."""
  spec = tmp_path / "some.py"
  spec.write_text(SWEEP.format(root=str(HERE.parents[1])))
  ends = {}
  for name in ("undisturbed", "killed"):
    root = tmp_path / name
    command = subprocess.Popen(
        [*COMMAND, f"--sweep={spec}", f"--workdir={root}", "--engine=ray", "--jobs=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed = {}  # trial's folder → the process that was at it
    while name == "killed" and len(killed) < 2:
      assert command.poll() is None, command.communicate()[0]
      for folder, pid in saving(root).items():
        if folder not in killed:
          os.kill(pid, signal.SIGKILL)
          killed[folder] = pid
      time.sleep(0.02)
    out = command.communicate(timeout=240)[0]
    assert command.returncode == 0, out
    assert "3 trials in" in out and "3 finished (0 before), 0 failed, 0 unfinished" in out
    ends[name] = {folder.name: end(folder) for folder in root.iterdir()}
  assert ends["killed"].keys() == ends["undisturbed"].keys() and len(ends["killed"]) == 3
  log = "".join(path.read_text() for path in (tmp_path / "killed").glob("*/log.txt"))
  assert log.count("continuing from step") == 2
  for key, (rows, params) in ends["undisturbed"].items():
    assert ends["killed"][key][0] == rows
    for name, value in params.items():
      np.testing.assert_array_equal(ends["killed"][key][1][name], value)


@pytest.mark.slow
def test_a_population_is_one_task(cluster, tmp_path):
  spec = worker_functions.pairs(tmp_path)
  result = sweep.sweep(spec, tmp_path / "out", engine="ray", population=2)
  assert [outcome.status for outcome in result.outcomes] == ["done"] * 3
  assert [outcome.result.get("population") for outcome in result.outcomes] == [2, 2, None]


def saving(root):
  """Returns the processes that train in a sweep's folders and have saved there: {folder: pid}."""
  found = {}
  for path in root.glob(f"*/{records.RUN}"):
    saved = [p for p in path.parent.glob("checkpoints/*") if p.name.isdigit() and p.name != "0"]
    if saved and records.read_run(path.parent)["status"] == "running":
      found[path.parent] = int((path.parent / records.LOCK).read_text())
  return found


def end(folder):
  import orbax.checkpoint as ocp
  state = ocp.StandardCheckpointer().restore(folder / "checkpoints" / "200" / "state")
  return (folder / records.METRICS).read_bytes(), {
      "/".join(map(str, path)): value for path, value in ocp.utils.to_flat_dict(state).items()}
