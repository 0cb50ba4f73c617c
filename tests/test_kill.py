"""kill -9 at random moments, in saves too: the run ends bit-identical to one never killed."""
import random
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.toy_run import STEPS

KILLS = 10
IN_A_SAVE = 3  # of them, as soon as an unfinished checkpoint lies there


def _start(workdir):
  return subprocess.Popen([sys.executable, "-m", "tests.toy_run", str(workdir)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for(condition, process, seconds=120):
  end = time.time() + seconds
  while not condition() and process.poll() is None:
    assert time.time() < end
    time.sleep(0.001)


def _contents(workdir):
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
  assert max(steps) == STEPS
  state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")
  return state, (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_killed_ten_times_and_bit_identical(tmp_path):
  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  assert _start(undisturbed).communicate()[0].endswith("finished\n")
  rng = random.Random(0)
  kills = 0
  while kills < KILLS:
    before = (killed / "metrics.jsonl").stat().st_size if kills else 0
    process = _start(killed)
    if kills < IN_A_SAVE:
      _wait_for(lambda: any((killed / "checkpoints").glob("*.orbax-checkpoint-tmp*")), process)
    else:
      # Training itself takes a fraction of a second: wait until it writes, then a moment more.
      _wait_for(lambda: (killed / "metrics.jsonl").exists() and
                (killed / "metrics.jsonl").stat().st_size != before, process)
      time.sleep(rng.uniform(0, 0.15))
    alive = process.poll() is None
    process.kill()
    assert alive, process.communicate()[0]  # else nothing was tested
    process.communicate()
    kills += 1
  process = _start(killed)
  assert process.communicate()[0].endswith("finished\n")
  expected, found = _contents(undisturbed), _contents(killed)
  leaves = lambda tree: dict(ocp.utils.to_flat_dict(tree))
  for name, value in leaves(expected[0]).items():
    np.testing.assert_array_equal(value, leaves(found[0])[name], err_msg=str(name))
  assert expected[1] == found[1]
