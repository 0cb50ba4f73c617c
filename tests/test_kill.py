"""kill -9 at random moments, in saves too: the run ends bit-identical to one never killed."""
import os
import random
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import toy_run

KILLS = 20
IN_A_SAVE = 6  # of them, as soon as an unfinished checkpoint lies there


@pytest.fixture(name="environment")
def fixture_environment(tmp_path):
  """Two devices, and what is compiled kept from start to start: most of the time goes there."""
  return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
          "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
                       "--xla_backend_optimization_level=0"}


def _start(environment, *arguments):
  return subprocess.Popen([sys.executable, "-m", "tests.toy_run", *map(str, arguments)],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)


def _wait_for(condition, process, seconds=120):
  end = time.time() + seconds
  while not condition() and process.poll() is None:
    assert time.time() < end
    time.sleep(0.001)


def _kill(process):
  alive = process.poll() is None
  process.kill()
  said = process.communicate()[0]
  assert alive, said  # else nothing was tested


def _steps(workdir):
  folder = workdir / "checkpoints"
  return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.is_dir() else set()


def _contents(workdir, step):
  assert max(_steps(workdir)) == step
  state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
  return state, (workdir / "metrics.jsonl").read_bytes()


def _same(found, expected, step):
  """Bit for bit: all arrays of the last checkpoint, all rows."""
  found, expected = _contents(found, step), _contents(expected, step)
  leaves = lambda tree: dict(ocp.utils.to_flat_dict(tree))
  for name, value in leaves(expected[0]).items():
    np.testing.assert_array_equal(value, leaves(found[0])[name], err_msg=str(name))
  assert expected[1] == found[1]


@pytest.mark.slow
def test_killed_twenty_times_and_bit_identical(tmp_path, environment):
  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  assert _start(environment, undisturbed).communicate()[0].endswith("finished\n")
  rng = random.Random(0)
  for kill in range(KILLS):
    before = (killed / "metrics.jsonl").stat().st_size if kill else 0
    process = _start(environment, killed)
    if kill < IN_A_SAVE:
      _wait_for(lambda: any((killed / "checkpoints").glob("*.orbax-checkpoint-tmp*")), process)
    else:
      # Training itself takes a fraction of a second: wait until it writes, then a moment more.
      _wait_for(lambda: (killed / "metrics.jsonl").exists() and
                (killed / "metrics.jsonl").stat().st_size != before, process)
      time.sleep(rng.uniform(0, 0.1))
    _kill(process)
  assert _start(environment, killed).communicate()[0].endswith("finished\n")
  _same(killed, undisturbed, toy_run.STEPS)


@pytest.mark.slow
def test_a_population_killed_in_the_middle_of_a_wave_of_saves(tmp_path, environment):
  """Killed once the first run has saved a step that the last has not: also of the first save."""
  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  assert _start(environment, undisturbed, 3).communicate()[0].endswith("finished\n")
  ahead = 0
  for _ in range(5):
    process = _start(environment, killed, 3)
    seen = _steps(killed / "0")
    _wait_for(lambda: _steps(killed / "0") - _steps(killed / "2") - seen, process)
    _kill(process)
    ahead += max(_steps(killed / "0")) > max(_steps(killed / "2"), default=0)
  assert ahead  # else every last run had saved before the kill came, and nothing was tested
  assert _start(environment, killed, 3).communicate()[0].endswith("finished\n")
  for member in "012":
    _same(killed / member, undisturbed / member, toy_run.TOGETHER)
