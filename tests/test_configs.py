"""Every shipped config: no key that nothing reads, and at toy size it runs."""
import collections
import json
import math
import pathlib
import re

import cv2
import jax
import numpy as np
import pytest

from big_transfer import evaluate as evaluate_lib
from big_transfer import models
from big_transfer import train as train_lib
from big_transfer import trees
from big_transfer.models import shapes
from big_transfer.runs import configuring
from big_transfer.runs import records

ROOT = pathlib.Path(__file__).parents[1]
PRETRAIN = ["fractals.py:vit", "fractals.py:mixer", "fractals.py:resnet", "textures.py:vit",
            "textures.py:resnet", "cifar10.py:resnet", "cifar10.py:vit", "vit_g.py:toy",
            "vit_i21k.py:toy", "mixer_i21k.py:toy", "bit_i21k.py:toy", "vit_head_decay.py:toy"]
# Those of the paper's size, with what each is a config of.
LARGE = {
    **{f"vit_i21k.py:{size}/16,{epochs}": (size, 224) for size, epochs in (
        ("Ti", 7), ("S", 14), ("B", 21), ("L", 7))},
    "mixer_i21k.py:S/16": ("S", 224), "mixer_i21k.py:B/16,14": ("B", 224),
    "bit_i21k.py": ("R50x1", 224), "bit_i21k.py:R101x3": ("R101x3", 224),
    "vit_head_decay.py:B/16,3.0": ("B", 224)}
# In the place of a variant; the other arguments of the model stay.
TINY = {"vit": dict(width=16, depth=2, heads=2, mlp_dim=32, patch=8),
        "mixer": dict(width=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=32, patch=8),
        "resnet": dict(width=0.125, depths=(1, 1))}
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
      "scaling.py", "head_weight_decay.py", "head_learning_rate.py", "cifar10_fractions.py",
      "transfer.py"}
  assert {p.name for p in (ROOT / "configs/transfer").glob("*.py")} == {"vit.py", "bit.py"}
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


def _tiny(spec):
  """A config of the paper's size with a model and images that a test can train, on other data."""
  config = configuring.load(f"{ROOT}/configs/pretrain/{spec}")
  model = config.model.to_dict()
  del model["variant"]
  # The warm-up gives way to that of two steps; what else the schedule says stays.
  return configuring.override(config, TOY | {"model": model | TINY[model["name"]],
                                             "image_size": 32})


@pytest.mark.parametrize("spec", LARGE)
def test_every_key_of_a_large_config_is_read(spec):
  size, side = LARGE[spec]
  config = configuring.load(f"{ROOT}/configs/pretrain/{spec}")
  assert config.image_size == side and config.model.variant.startswith(size)
  docstring = (ROOT / "configs/pretrain" / spec.partition(":")[0]).read_text().split('"""')[1]
  for needed in ("python -m big_transfer.train", "Argument:", "Hardware:", "Expected:",
                 "no published number"):
    assert needed in re.sub(r"\s+", " ", docstring), needed
  assert _prepared(_tiny(spec)).program.parameters > 500


@pytest.mark.parametrize("spec, millions", [  # weights of the body, as published with the models
    ("vit_i21k.py:Ti/16,7", 5.5), ("vit_i21k.py:L/16,7", 303), ("mixer_i21k.py:B/16", 59),
    ("bit_i21k.py:R50x1", 23.5)])
def test_large_configs_make_models_of_their_size(spec, millions):
  config = configuring.load(f"{ROOT}/configs/pretrain/{spec}")
  model = config.model.to_dict()
  module = models.build(model.pop("name"), num_classes=1, **model)
  found = shapes.count_parameters(module, (config.image_size, config.image_size, 3))
  assert found / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("spec", LARGE)
def test_every_large_config_runs_with_a_tiny_model(spec, tmp_path):
  assert train_lib.train(_tiny(spec), tmp_path)["status"] == "finished"


@pytest.mark.parametrize("spec, message", [
    ("pretrain/vit_i21k.py:B/16,8", "'8' in 'B/16,8': expected 7, 14, 21"),
    ("pretrain/vit_head_decay.py:B/16,x", "decay of the head"),
    ("transfer/vit.py:pets,3", "side of the images"), ("transfer/vit.py:petz", "'pets'"),
    ("transfer/vit.py:cifar100:vtab2k", "variant 'vtab2k'"),
    ("transfer/vit.py:folder:/nowhere", "'/nowhere'"),
    ("sweeps/transfer.py:runs", "names no task.*runs/fractions"),
    ("sweeps/transfer.py:nowhere/x,digits", "matches no source.*nowhere/x is no run")])
def test_arguments_that_can_not_be_meant(spec, message):
  with pytest.raises(configuring.ConfigError, match=message):
    configuring.load(f"{ROOT}/configs/{spec}")


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


def test_the_fractions_sweep_varies_the_data_alone():
  _, base, trials = configuring.load_sweep(f"{ROOT}/configs/sweeps/cifar10_fractions.py")
  axes = [(t["upstream.fraction"], t["model"]["name"], t["seed"]) for t in trials]
  assert len(trials) == len(set(axes)) == 8 and {fraction for fraction, _, _ in axes} == {0.1, 1.0}
  assert base.total_steps and not base.total_epochs  # as many steps whatever the fraction
  assert {base.evals.probes.kind, base.evals.linear.kind} == {"fewshot", "linear"}
  assert set(base.evals.linear.tasks) == set(base.evals.probes.tasks) == {
      "omniglot_small", "digits"}


def _planted_source(folder, image_size=32, **fields):
  """What of a run the sweep of transfers looks at."""
  folder.mkdir(parents=True)
  records.write_atomic(folder / records.CONFIG, json.dumps({"image_size": image_size}))
  records.write_atomic(folder / records.RUN, json.dumps(
      {"status": "finished", "name": folder.name, **fields}))


def test_the_transfer_sweep_takes_every_pretrained_run_to_every_task(tmp_path):
  _planted_source(tmp_path / "a")
  _planted_source(tmp_path / "b", image_size=224)
  _planted_source(tmp_path / "c", setting="finetune")  # no source, nor are the next
  _planted_source(tmp_path / "d", status="interrupted")
  _planted_source(tmp_path / "e", parameters_from={"identity": "a", "step": 6})
  (tmp_path / "figures").mkdir()
  _, base, trials = configuring.load_sweep(
      f"{ROOT}/configs/sweeps/transfer.py:{tmp_path}/*,digits,sprites_count")
  assert [t["name"] for t in trials] == [
      f"{source}, {task}, seed {seed}" for source in "ab" for task in ("digits", "sprites_count")
      for seed in (0, 1)]
  small, large = trials[0], trials[4]
  assert small["init.source"] == str(tmp_path / "a") and large["init.source"].endswith("b")
  assert (small["image_size"], small["batch_size"], small["total_steps"]) == (32, 64, 500)
  assert (large["image_size"], large["batch_size"], large["total_steps"]) == (384, 512, 500)
  assert small["upstream"]["name"] == "digits" and not small["augment"]["flip"]
  assert large["augment"]["inception_crop"] and not small["augment"]["inception_crop"]
  # Per size and task one recipe: a study must not compare how sources were tuned.
  recipes = {(t["image_size"], t["upstream"]["name"], configuring.canonical(
      {k: v for k, v in t.items() if k not in ("name", "init.source", "seed")})) for t in trials}
  assert len(recipes) == 4
  assert base.model is None and base.init.head == "zero"
  with pytest.raises(configuring.ConfigError, match="'.*/c.* is fine-tuned itself"):
    configuring.load(f"{ROOT}/configs/sweeps/transfer.py:{tmp_path}/c,digits")


@pytest.mark.parametrize("side, taken", [(32, 32), (96, 384)])
def test_a_published_file_is_fine_tuned_at_its_own_size_where_that_is_small(side, taken, tmp_path):
  model = models.build("vit", num_classes=3, width=8, depth=1, heads=1, mlp_dim=8, patch=8)
  like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
  np.savez(tmp_path / "small.npz", **{name: np.zeros(leaf.shape, np.float32) for name, leaf in
                                      trees.flatten(like["params"]).items()})
  _, _, trials = configuring.load_sweep(
      f"{ROOT}/configs/sweeps/transfer.py:{tmp_path}/small.npz,digits")
  assert {trial["image_size"] for trial in trials} == {taken}
  assert {trial["name"] for trial in trials} == {"small, digits, seed 0", "small, digits, seed 1"}


def test_the_transfer_sweep_tells_of_all_tasks_that_are_missing(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  _planted_source(tmp_path / "a")
  with pytest.raises(configuring.ConfigError, match=r"2 of 3 tasks are missing: pets, cifar100:"
                     r"vtab1k.*doctor --task pets --task cifar100:vtab1k"):
    configuring.load(f"{ROOT}/configs/sweeps/transfer.py:{tmp_path}/a,digits,pets,cifar100:vtab1k")


@pytest.mark.parametrize("argument, steps, side", [
    ("digits,32", 500, 32), ("cifar100", 10_000, 384), ("cifar100:vtab1k,224", 500, 224),
    ("imagenet", 20_000, 384)])
def test_the_length_of_fine_tuning_goes_by_the_number_of_examples(argument, steps, side):
  config = configuring.load(f"{ROOT}/configs/transfer/vit.py:{argument}")
  assert (config.total_steps, config.image_size) == (steps, side)
  assert (config.optim.name, config.optim.momentum, config.optim.clip) == ("sgd", 0.9, 1.0)
  assert config.upstream.name == argument.split(",")[0].split(":")[0]


def test_the_suite_of_evaluations_takes_tasks_and_suites():
  config = configuring.load(f"{ROOT}/configs/evaluate/linear.py:builtin,cifar100:vtab1k")
  assert set(config) == {"linear", "probes"}
  assert config.linear.tasks == config.probes.tasks == ("builtin", "cifar100:vtab1k")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vit", "bit"])
def test_a_run_is_fine_tuned_on_images_of_ones_own_and_probed(recipe, tmp_path):
  rng = np.random.default_rng(0)
  for name in ("cats", "dogs"):
    (tmp_path / "pets" / name).mkdir(parents=True)
    for i in range(30):
      cv2.imwrite(str(tmp_path / "pets" / name / f"{i}.png"), rng.integers(0, 255, (40, 30, 3)))
  family = {"vit": "vit", "bit": "resnet"}[recipe]
  source = configuring.override(
      configuring.load(f"{ROOT}/configs/pretrain/fractals.py:{family}"), TOY)
  assert train_lib.train(source, tmp_path / "source")["status"] == "finished"
  config = configuring.override(
      configuring.load(f"{ROOT}/configs/transfer/{recipe}.py:folder:{tmp_path}/pets,32"),
      {"init.source": str(tmp_path / "source"), "total_steps": 2, "batch_size": 16,
       "optim.schedule.warmup_steps": 1})
  run = train_lib.train(config, tmp_path / "run")
  assert (run["status"], run["setting"]) == ("finished", "finetune")
  assert run["pretrained"]["source"] == str(tmp_path / "source")
  rows = records.read_rows(tmp_path / "run")
  assert {(row["evaluator"], row["task"]) for row in rows if row["split"] == "test"} == {
      ("finetune", "pets")}
  done = evaluate_lib.evaluate(tmp_path / "source",
                               evals=f"{ROOT}/configs/evaluate/linear.py:digits",
                               overrides={"evals.probes.shots": (1,)})
  assert {(row["setting"], row["shots"]) for row in records.read_rows(done["folder"])} == {
      ("linear", None), ("fewshot", 1)}
