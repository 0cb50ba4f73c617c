"""Every shipped config: no key that nothing reads, and at toy size it runs."""
import collections
import math
import pathlib

import cv2
import numpy as np
import pytest

from big_transfer import train as train_lib
from big_transfer.runs import configuring
from big_transfer.runs import records

ROOT = pathlib.Path(__file__).parents[1]
PRETRAIN = ["fractals.py:vit", "fractals.py:mixer", "fractals.py:resnet", "textures.py:vit",
            "textures.py:resnet", "cifar10.py:resnet", "cifar10.py:vit", "vit_g.py:toy"]
TOY = {"upstream": dict(name="toy", source="fractals",
                        options=dict(classes=3, per_class=8, test_per_class=4)),
       "total_steps": 2, "total_epochs": None, "batch_size": 8, "accumulate": 1,
       "eval_batch_size": 64, "optim.schedule": dict(),
       "evals.probes.tasks": ("digits",), "evals.probes.shots": (1,)}


def _prepared(config):
  return train_lib._prepare([({"config": config}, None)], lambda: None)


def test_all_configs_are_listed_here():
  found = {p.name for p in (ROOT / "configs/pretrain").glob("*.py")}
  assert {p.name for p in (ROOT / "configs/sweeps").glob("*.py")} == {
      "scaling.py", "head_weight_decay.py", "head_learning_rate.py"}
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


def _scaling():
  return configuring.load_sweep(f"{ROOT}/configs/sweeps/scaling.py")[1:]


def test_the_scaling_sweep_crosses_data_sizes_and_epochs():
  base, trials = _scaling()
  assert 100 <= len(trials) <= 140 and len({trial["name"] for trial in trials}) == len(trials)
  plain = [t for t in trials if t["model"]["name"] == "vit" and not any("optim" in k for k in t)]
  axes = ("upstream.name", "upstream.fraction", "total_epochs")
  cells = {(*(t[key] for key in axes), t["model"]["width"]) for t in plain}
  assert len(cells) == len(plain) == math.prod(len({cell[i] for cell in cells}) for i in range(4))
  upstreams, fractions, epochs, widths = ({cell[i] for cell in cells} for i in range(4))
  assert upstreams == {"fractals", "textures"} and len(widths) >= 3
  assert min(fractions) == 0.02 and max(fractions) == 1 and len(fractions) >= 4
  low, middle, high = sorted(epochs)
  assert (middle / low, high / low) == (2, 3)  # 7 : 14 : 21
  assert {t["model"]["name"] for t in trials} == {"vit", "mixer", "resnet"}
  assert {"optim.lr", "optim.rules[0][1].wd"} <= {key for t in trials for key in t}
  # Only model and upstream need a program of their own: not the fraction, nor the epochs.
  keys = {train_lib.program_key(configuring.override(base, trial)) for trial in trials}
  assert len(keys) == 2 * len({str(t["model"]) for t in trials}) == 10


def test_trials_of_the_scaling_sweep_differ_in_the_data_they_say(tmp_path):
  base, trials = _scaling()
  toy = {key: value for key, value in TOY.items() if "total" not in key and key != "upstream"} | {
      "upstream.options": dict(classes=3, per_class=50, test_per_class=4)}  # not 60 classes of 200
  found = {}
  for trial in trials:
    if trial["name"].startswith("textures, ViT-Ti") and trial["total_epochs"] == 7:
      run = _prepared(configuring.override(configuring.override(base, trial), toy))
      found[trial["upstream.fraction"]] = run.data.train_examples
      assert run.total_steps == -(-7 * run.data.train_examples // 8)
  assert found == {0.02: 3, 0.1: 15, 0.25: 39, 0.5: 75, 1.0: 150}


HEAD = {"head_weight_decay": ("wd", 1e3, {"lr": 1.0}),
        "head_learning_rate": ("lr", 1e2, {"wd": 0.03})}


@pytest.mark.parametrize("name", HEAD)
def test_the_head_sweeps_vary_one_setting_of_the_head_and_seeds(name):
  key, reach, others = HEAD[name]
  _, base, trials = configuring.load_sweep(f"{ROOT}/configs/sweeps/{name}.py")
  path = f"optim.rules[0][1].{key}"
  models, values, seeds = ({str(t[k]) for t in trials} for k in ("model", path, "seed"))
  assert len(models) == 2 and len(seeds) >= 3
  assert len(trials) == len(models) * len(values) * len(seeds)
  assert max(map(float, values)) / min(map(float, values)) == pytest.approx(reach)
  assert others.items() <= base.optim.rules[0][1].items()
  assert base.optim.rules[0][0] == "head/.*" and base.optim.rules[1][1]["wd"] == 0.03
  # Nothing but arrays differs between the trials of a model: they share a compiled step.
  keys = {train_lib.program_key(configuring.override(base, trial)) for trial in trials}
  assert len(keys) == len(models)


@pytest.mark.slow
def test_the_head_sweeps_run_on_images_of_ones_own(tmp_path):
  rng = np.random.default_rng(0)
  for name in ("cats", "dogs"):
    (tmp_path / "pets" / name).mkdir(parents=True)
    for i in range(30):
      cv2.imwrite(str(tmp_path / "pets" / name / f"{i}.png"), rng.integers(0, 255, (40, 30, 3)))
  _, base, trials = configuring.load_sweep(
      f"{ROOT}/configs/sweeps/head_weight_decay.py:folder:{tmp_path / 'pets'}")
  toy = {key: value for key, value in TOY.items() if key != "upstream"} | {
      "evals.geometry.examples": 20}
  config = configuring.override(configuring.override(base, trials[0]), toy)
  run = train_lib.train(config, tmp_path / "run")
  assert (run["upstream"]["name"], run["upstream"]["classes"]) == ("pets", 2)
  rows = records.read_rows(tmp_path / "run")
  assert {row["layer"] for row in rows if row["evaluator"] == "fewshot"} == {
      "stem", *(f"block_0{i}" for i in range(4)), "pre_logits"}
  assert {row["metric"] for row in rows if row["evaluator"] == "geometry"} == {
      "margin", "margin_normalised", "total_variance", "l2_norm"}
  with pytest.raises(configuring.ConfigError, match="folder:/path"):
    configuring.load_sweep(f"{ROOT}/configs/sweeps/head_learning_rate.py:pets")
