"""Every shipped config: no key that nothing reads, and at toy size it runs."""
import collections
import pathlib

import pytest

from big_transfer import train as train_lib
from big_transfer.runs import configuring

ROOT = pathlib.Path(__file__).parents[1]
PRETRAIN = ["fractals.py:vit", "fractals.py:mixer", "fractals.py:resnet", "cifar10.py:resnet",
            "cifar10.py:vit"]
TOY = {"upstream": dict(name="toy", source="fractals",
                        options=dict(classes=3, per_class=8, test_per_class=4)),
       "total_steps": 2, "batch_size": 8, "accumulate": 1, "eval_batch_size": 64,
       "optim.schedule": dict(),
       "evals.probes.tasks": ("digits",), "evals.probes.shots": (1,)}


def _prepared(config):
  settings = configuring.build(train_lib.Settings, configuring.plain(config), "")
  return train_lib._prepare(settings, lambda: None)


def test_all_configs_are_listed_here():
  found = {p.name for p in (ROOT / "configs/pretrain").glob("*.py")}
  assert found == {spec.split(":")[0] for spec in PRETRAIN}


@pytest.mark.parametrize("spec", PRETRAIN)
def test_every_key_is_read_and_every_rule_matches(spec):
  run = _prepared(configuring.override(configuring.load(f"{ROOT}/configs/pretrain/{spec}"), TOY))
  assert run.program.parameters > 1000


@pytest.mark.slow
@pytest.mark.parametrize("spec", PRETRAIN)
def test_every_config_runs_at_toy_size(spec, tmp_path):
  config = configuring.override(configuring.load(f"{ROOT}/configs/pretrain/{spec}"), TOY)
  assert train_lib.train(config, tmp_path)["status"] == "finished"


def test_the_quickstart_varies_what_it_says():
  name, base, trials = configuring.load_sweep(f"{ROOT}/configs/quickstart.py")
  assert name == "quickstart" and len(trials) >= 24
  families = collections.Counter(trial["model"]["name"] for trial in trials)
  assert min(families.values()) >= 8 and set(families) == {"vit", "mixer", "resnet"}
  keys = {train_lib.program_key(configuring.override(base, trial)) for trial in trials}
  assert len(keys) == 6  # what the rest differs in is arrays: one compiled step a size
  run = _prepared(configuring.override(configuring.override(base, trials[0]), TOY))
  assert run.program.parameters > 1000
