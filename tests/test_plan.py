"""`plan`: what a run takes, what doesn't fit and what would help, and errors that say the fix."""
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_transfer import plan as plan_lib
from big_transfer.runs import configuring
from big_transfer.training import units
from tests import toy

CONFIG = "configs/pretrain/fractals.py:vit"
DATA = dict(classes=10, examples=1000)
WIDE = dict(name="vit", width=256, depth=1, heads=4, mlp_dim=1024, patch=8, pool="gap")


def test_a_plan_adds_up():
  found = plan_lib.plan(configuring.load(CONFIG), 8, memory="1GiB", rate="1TFLOP/s")
  assert found.fits and not found.advice
  assert found.classes == 60 and found.train_examples == 12_000  # as the data has it
  assert found.steps == 400 and found.mesh["data"] == 8
  assert found.memory.parameters == 4 * found.parameters  # float32, whole on each device
  assert found.memory.optimiser == 2 * found.memory.parameters + 3 * 4  # moments; three counters
  assert found.checkpoint == found.memory.state
  assert found.flops_step == 3 * 128 * found.flops_example
  assert math.isclose(found.seconds, 400 * found.flops_step / 8e12)
  assert json.loads(json.dumps(found.as_dict()))["memory"]["total"] == found.memory.total


def test_fsdp_divides_the_state_and_members_multiply_it():
  config = toy.config(model=WIDE, batch_size=32)
  alone = plan_lib.plan(config, 1, **DATA).memory
  split = plan_lib.plan(toy.config(model=WIDE, batch_size=32, mesh={"fsdp": -1}), 8, **DATA).memory
  assert alone.state / 8 < split.state < alone.state / 5  # small parameters stay whole
  four = plan_lib.plan(config, 1, population=4, **DATA)
  assert four.memory.state == 4 * alone.state and four.checkpoint == four.memory.state
  spread = plan_lib.plan(config, 4, population=4, **DATA)  # a member on each device
  assert spread.mesh == {"population": 4, "data": 1} and spread.memory.state == alone.state


def test_what_does_not_fit_is_told_with_what_would_help():
  config = toy.config(model=WIDE, batch_size=512, image_size=64)
  free = plan_lib.plan(config, 4, backend="cpu", **DATA)
  found = plan_lib.plan(config, 4, memory=free.memory.total // 3, backend="cpu", **DATA)
  assert found.fits is False and found.advice
  totals = [found.memory.total, *(total for _, total in found.advice)]
  assert totals == sorted(totals, reverse=True)
  assert totals[-1] <= found.limit and all(total > found.limit for total in totals[:-1])
  assert "DOES NOT FIT" in plan_lib.text(found) and "fits" in plan_lib.text(found)


@pytest.mark.parametrize("model,parameters", [
    (dict(name="vit", width=8192, depth=2, heads=64, mlp_dim=32768, patch=14), 1.6e9),
    pytest.param(dict(name="vit", variant="G/14"), 1.8e9, marks=pytest.mark.slow)])
def test_a_plan_of_two_billion_parameters_allocates_nothing(model, parameters):
  model = {**model, "dtype": "bfloat16", "scan": True, "remat": "full"}
  config = toy.config(model=model, image_size=224, batch_size=256, mesh={"data": -1, "fsdp": 128})
  found = plan_lib.plan(config, 256, memory="32GiB", classes=1000, examples=10**6)
  assert parameters < found.parameters < parameters + 1e8 and found.backend == "accelerator"
  assert found.memory.state < 16 * found.parameters / 60
  assert not any(x.nbytes > 1e6 for x in jax.live_arrays())


@pytest.mark.parametrize("text,value", [
    ("32GiB", 32 * 2**30), ("80 GB", 80e9), ("1.5TiB", 1.5 * 2**40), ("512mib", 2**29)])
def test_sizes(text, value):
  assert units.parse_bytes(text, "memory") == value


@pytest.mark.parametrize("text", ["120TFLOP/s", "120 tflops", "0.12PFlop/s", "1.2e14", "120e12FLOP/s"])
def test_rates(text):
  assert units.parse_rate(text) == pytest.approx(120e12)


@pytest.mark.parametrize("config,devices,settings,words", [
    ({}, 8, dict(memory="32 gigs"), "memory is '32 gigs'.*32GiB"),
    ({}, 8, dict(memory="0GiB"), "memory is '0GiB'"),
    ({}, 8, dict(memory="80"), "memory is '80'.*with its unit"),
    ({}, 8, dict(memory="3TFLOP/s"), "memory is '3TFLOP/s'"),
    ({}, 8, dict(rate="120GiB"), "rate is '120GiB'.*120TFLOP/s"),
    ({}, 0, {}, "devices is 0"),
    ({}, 5, {}, "'batch_size' is 16.*multiple of 5.*such as 15"),
    ({"mesh": {"data": 3}}, 8, {}, "config.mesh.*needs 3"),
    ({"mesh": {"datum": 8}}, 8, {}, "datum"),
    ({}, 8, dict(population=0), "population is 0"),
    ({}, 8, dict(backend="abacus"), "backend is 'abacus'"),
    ({}, 8, dict(classes=0), "classes is 0"),
    ({"model": {"width": 3}}, 8, {}, "model.name")])
def test_mistakes_are_told_with_the_fix(config, devices, settings, words):
  with pytest.raises(ValueError, match=words):
    plan_lib.plan(toy.config(**config), devices, **{**DATA, **settings})


def test_data_that_is_not_here_can_be_described():
  config = toy.config(upstream=dict(name="mine", source="folder:/nowhere"))
  with pytest.raises(ValueError, match="nowhere[^$]*--classes and --examples"):
    plan_lib.plan(config, 8)
  assert plan_lib.plan(config, 8, **DATA).train_examples == 1000


def test_a_measured_step_takes_time():
  config = toy.config()
  seconds = plan_lib.measured(config, 4, steps=2)
  assert 0 < seconds < 30 and np.isfinite(seconds)


def test_the_command_tells_mistakes_without_a_traceback(capsys):
  for arguments, words in (
      (["--memory", "plenty"], "memory is 'plenty'"),
      (["--rate", "1TFLOP/s", "--measure"], "--rate and --measure"),
      (["--devices", "3", "--measure"], "--measure runs on this machine"),
      (["--config.batch_siz=3"], "batch_size")):
    with pytest.raises(SystemExit, match=words):
      plan_lib.main(["--config", CONFIG, *arguments])
  assert not capsys.readouterr().out


@pytest.mark.slow
def test_compiling_simulates_devices(tmp_path):
  out = tmp_path / "plan.json"
  result = subprocess.run(
      [sys.executable, "-m", "big_transfer.plan", "--config", CONFIG, "--devices", "4", "--compile",
       "--json", str(out)], capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  found = json.loads(out.read_text())
  assert found["mesh"]["data"] == 4 and "XLA here" in result.stdout
  assert .75 < found["memory"]["total"] / found["compiled"]["total"] < 1.25
