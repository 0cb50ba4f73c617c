"""Many processes as one run: as on many hosts, tried here on one."""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from big_transfer import trees
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import hosts
from tests import host_worker

ROOT = pathlib.Path(__file__).parents[1]
HEARTBEAT = 5
ALONE = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu",
         "OMP_NUM_THREADS": "1"}


def _free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def start(module, count, devices, *arguments, **environment):
  """Starts `count` processes of so many devices each; returns them."""
  port = _free_port()
  processes = []
  for index in range(count):
    env = {**os.environ, **ALONE, "PYTHONPATH": str(ROOT), **environment}
    env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    if count > 1:
      env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count),
              "JAX_PROCESS_ID": str(index)}
    processes.append(subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
  return processes


def finish(processes, seconds=240):
  """Waits; returns `[(exit code, stdout, stderr)]`."""
  end = time.time() + seconds
  try:
    return [(p.returncode, *said) for p, said in [
        (p, p.communicate(timeout=end - time.time())) for p in processes]]
  finally:
    for process in processes:
      process.kill()


def _train(folder, count, devices, *arguments, wait=True, **environment):
  many = ("--distributed", "--heartbeat_seconds", HEARTBEAT, "--start_seconds", 60)
  processes = start("tests.host_worker", count, devices, folder, *(many if count > 1 else ()),
                    *arguments, **environment)
  return finish(processes) if wait else processes


def _trained(*args, **kwargs):
  for code, _, stderr in _train(*args, **kwargs):
    assert code == 0, stderr


def _written(folder):
  """What the processes of a run wrote down, see `host_worker`."""
  lines = [json.loads(line) for path in sorted(folder.parent.glob(f"{folder.name}.*.jsonl"))
           for line in path.read_text().splitlines()]
  order = {position: example for line in lines if "positions" in line
           for position, example in zip(line["positions"], line["examples"])}
  return {"order": order, "drawn": [line["drawn"] for line in lines if "drawn" in line],
          "restored": [(line["step"], line["restored"]) for line in lines if "restored" in line]}


def _same_order(found, expected, first=0):
  batch = host_worker.toy.config().batch_size
  positions = range(first * batch, host_worker.STEPS * batch)
  assert [found[i] for i in positions] == [expected[i] for i in positions]


def _same_rows(found, expected):
  """The same rows, each once, and values as near as float32 sums in another order leave them.

  Losses to 1e-5, as asked. An accuracy of n examples moves by 1 / n where two scores are a rounding
  error apart, so it may differ by one of them. Margins are quotients of small differences.
  """
  found, expected = (records.read_rows(folder) for folder in (found, expected))
  assert len(found) == len(expected)
  for a, b in zip(found, expected):
    assert {**a, "value": None} == {**b, "value": None}
    if a["value"] is None:
      continue
    if a["metric"] == "accuracy":
      size = {"train": 16, "upstream": 20, "fewshot": 599}[a["evaluator"]]
      assert abs(a["value"] - b["value"]) < 1.01 / size
      assert a["value"] * size == pytest.approx(round(a["value"] * size), abs=1e-4)  # each once
    else:
      assert a["value"] == pytest.approx(b["value"], rel=1e-3 if "margin" in a["metric"] else 1e-5)


def _gradient(folder):
  """The second step's, but for the rate: what SGD took off."""
  before, after = (trees.flatten(checkpoint.read(folder / "checkpoints", s).params) for s in (1, 2))
  return np.concatenate([(before[name] - after[name]).ravel() for name in sorted(before)])


def test_processes_agree_and_give_back_whole_batches():
  found = []
  for code, stdout, stderr in finish(start("tests.host_checks", 2, 2), 60):
    assert code == 0, stderr
    assert ("only main says this" in stdout) == (not found)
    found.append(json.loads(stdout.splitlines()[-1]))
  assert [f["process"] for f in found] == [[0, 2], [1, 2]]
  assert [f["main"] for f in found] == [True, False]
  assert [f["failed"] for f in found] == [
      "OSError: the disk is full", "FollowedError: process 0 failed, error: the disk is full"]
  for f in found:
    assert f["told"] == [{"from": 0}, [0, "é" * 10]] and f["on_main"] == 0
    for rows in f["rows"]:
      assert rows == {"x": list(range(16)), "y": [[2.0 * i] for i in range(16)], "here": 1.0,
                      "sum": 120}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
  """What is compiled is kept from start to start: most of the time goes there."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  folder = tmp_path_factory.mktemp("alone") / "run"
  _trained(folder, 1, 1)
  return folder


@pytest.mark.slow
def test_two_hosts_of_two_devices_that_share_the_parameters(alone, tmp_path):
  _trained(tmp_path / "run", 2, 2, ARGUMENT="1,fsdp")
  _same_rows(tmp_path / "run", alone)
  found, expected = _gradient(tmp_path / "run"), _gradient(alone)
  assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
  found, expected = _written(tmp_path / "run"), _written(alone)
  _same_order(found["order"], expected["order"])
  assert found["drawn"] == 2 * expected["drawn"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_any_number_goes_on(alone, tmp_path):
  """Stopped as 2x2 (processes x devices), with 4x1, 1x4 and 1x1 to go on."""
  stopped = tmp_path / "stopped"
  ends = _train(stopped, 2, 2, ARGUMENT="7", FAULT=str(int(signal.SIGTERM)), FAULT_STEP="8")
  assert [code for code, _, _ in ends] == [128 + signal.SIGTERM] * 2, ends
  run = records.read_run(stopped)
  assert run["status"] == "interrupted" and run["signal"] == signal.SIGTERM
  step, params, _ = checkpoint.read(stopped / "checkpoints")
  assert 3 <= step == run["step"] <= 16, step  # batches are read ahead; all agree, then stop
  for count, devices in ((4, 1), (1, 4), (1, 1)):
    folder = tmp_path / f"{count}x{devices}"
    shutil.copytree(stopped, folder)
    _trained(folder, count, devices, ARGUMENT="7")
    _same_rows(folder, alone)
    found, expected = _written(folder), _written(alone)
    assert found["restored"] == [(step, host_worker.digest(params))] * count
    _same_order(found["order"], expected["order"], first=step)
    assert found["drawn"] == count * expected["drawn"]


@pytest.mark.slow
def test_a_process_killed_ends_the_others_in_time_and_the_same_command_goes_on(alone, tmp_path):
  folder = tmp_path / "run"
  processes = _train(folder, 2, 1, FAULT=str(int(signal.SIGKILL)), FAULT_STEP="8", wait=False)
  assert processes[1].wait(timeout=120) == -signal.SIGKILL
  killed = time.time()
  [(code, _, stderr), _] = finish(processes)
  # As long as it may be silent, then as long again as a broken connection waits for the reason.
  assert time.time() - killed < 2 * HEARTBEAT + 10
  assert code == 1 and "Check failure" not in stderr
  assert stderr.splitlines()[-1].startswith(
      "process 0 of 2 ended: process 1 was not heard of for 5 s: it was killed"), stderr
  assert "continues from the last checkpoint" in stderr.splitlines()[-1]
  assert records.read_run(folder)["status"] == "failed"
  _trained(folder, 1, 1)
  _same_rows(folder, alone)
  assert _written(folder)["restored"][0][0] > 0


@pytest.mark.slow
def test_main_killed_ends_the_others_in_time(tmp_path):
  """JAX aborts them, after they said what that means."""
  processes = _train(tmp_path / "run", 2, 1, FAULT=str(int(signal.SIGKILL)), FAULT_STEP="8",
                     FAULT_PROCESS="0", wait=False)
  assert processes[0].wait(timeout=120) == -signal.SIGKILL
  killed = time.time()
  [_, (code, _, stderr)] = finish(processes)
  assert code != 0 and time.time() - killed < 2 * HEARTBEAT + 10
  assert "Should process 0 be killed, JAX aborts this one. The same command" in stderr


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_its_reason(tmp_path):
  main, other = _train(tmp_path / "run", 2, 1, FAULT="raise", FAULT_STEP="3")
  assert (main[0], other[0]) == (1, 1)
  assert "process 1 of 2: error: image 7 is corrupt" in other[2]
  assert main[2].splitlines()[-1].startswith(
      "process 0 of 2 ended: process 1 failed, error: image 7 is corrupt"), main[2]


@pytest.mark.slow
def test_a_save_that_fails_in_one_ends_all_at_once(tmp_path):
  """Else each waits for the others' parts of it, ten minutes and more."""
  main, other = _train(tmp_path / "run", 2, 1, FAULT="save")
  assert (main[0], other[0]) == (1, 1)
  assert "error: checkpoint 1 could not be written" in main[2] and "No space left" in main[2]
  assert "process 0" in other[2].splitlines()[-1]
  assert records.read_run(tmp_path / "run")["status"] == "failed"


@pytest.mark.slow
def test_what_main_finds_at_the_start_ends_all_and_is_told_once(tmp_path):
  with records.Record(tmp_path / "run"):
    main, other = _train(tmp_path / "run", 2, 1)
  assert (main[0], other[0]) == (1, 1)
  assert main[2].splitlines()[-1].startswith("error: another process (id"), main[2]
  assert other[2].splitlines()[-1] == "process 1 of 2 ended with process 0, which says why"


@pytest.mark.parametrize("environment, message", [
    ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID is set, but not JAX_COORDINATOR_ADDRESS, JAX_NUM"),
    ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two",
      "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES is 'two'"),
    ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": "2"}, "process 2 of 2 .*an index from 0, below")])
def test_what_is_wrong_with_the_variables_is_said(monkeypatch, environment, message):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(hosts.HostsError, match=message):
    with hosts.joined():
      raise AssertionError("joined nobody")


def test_a_process_that_waits_alone_says_so():
  """Main, of which the other never comes, and another, of which main never comes."""
  environment = {**os.environ, **ALONE, "PYTHONPATH": str(ROOT), "JAX_NUM_PROCESSES": "2"}
  code = ("from big_transfer.training import hosts\n"
          "with hosts.joined(start_seconds=2): raise AssertionError('joined nobody')")
  waiting = []
  for index in "01":
    env = {"JAX_PROCESS_ID": index, "JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}"}
    waiting.append(subprocess.Popen([sys.executable, "-c", code], env={**environment, **env},
                                    stderr=subprocess.PIPE, text=True))
  for index, process in enumerate(waiting):
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith(
        f"error: --distributed: process {index} of 2 at localhost:"), said
    assert "waited 2 s (--start_seconds) for the others" in said


def test_one_process_is_its_own_main():
  assert hosts.is_main() and hosts.process() == (0, 1)
  assert hosts.broadcast({"a": 1}) == {"a": 1} and hosts.on_main(lambda: 3) == 3
  with pytest.raises(KeyError, match="lost"):
    hosts.on_main(lambda: {}["lost"])
