"""The loop: what a run leaves behind, how it continues, what it says of bad input."""
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer import train as train_lib
from big_transfer.data import pipeline
from big_transfer.data import subset
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import initial
from big_transfer.training import program
from tests import toy


def _prepared(config):
  """What a run of this config is made of."""
  return train_lib._prepare([({"config": config}, None)], None)


def _params(folder):
  """All arrays of the newest checkpoint."""
  like = _prepared(json.loads((folder / "config.json").read_text())).program.like
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    state, _ = checkpoints.restore(like)
  return jax.tree.map(np.asarray, state)


def _same_run(a, b):
  jax.tree.map(np.testing.assert_array_equal, _params(a), _params(b))
  assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "undisturbed"
  return folder, train_lib.train(toy.config(), folder)


def test_a_run_leaves_its_record(undisturbed):
  folder, run = undisturbed
  assert records.read_run(folder) == run
  assert run["status"] == "finished" and run["step"] == 6 and run["examples_seen"] == 96
  assert run["model"]["family"] == "vit" and run["parameters"] > 1000 and run["upstream"] == {
      "name": "toy", "classes": 4, "train_examples": 64, "test_examples": 20, "fraction": 1.0,
      "fraction_seed": 0}
  assert run["total_steps"] == 6 and run["total_epochs"] is None and run["epochs"] == 1.5
  rows = records.read_rows(folder)
  last = [r for r in rows if r["step"] == 6]
  upstream = {r["metric"]: r for r in last if r["evaluator"] == "upstream"}
  assert set(upstream) == {"accuracy", "loss"}
  # Twenty held-out examples, each counted once: the accuracy is a multiple of 1/20.
  assert upstream["accuracy"]["value"] * 20 == pytest.approx(
      round(upstream["accuracy"]["value"] * 20), abs=1e-5)
  probes = [(r["shots"], r["seed"], r["examples_used"]) for r in last if r["evaluator"] == "fewshot"]
  assert probes == [(1, 0, 10), (1, 1, 10), (5, 0, 50), (5, 1, 50)]
  assert sorted({r["step"] for r in rows if r["evaluator"] == "fewshot"}) == [4, 6]
  assert sorted({r["step"] for r in rows if r["evaluator"] == "train"}) == [2, 4, 6]


def _part(**changes):
  """A run on a quarter of the data: 16 of 64 examples, a batch, hence an epoch a step."""
  upstream = {**toy.config().upstream, "fraction": 0.25}
  return toy.config(**{"upstream": upstream, "total_steps": None, "total_epochs": 5, **changes})


def test_a_part_of_the_data_and_a_length_in_epochs(tmp_path):
  run = train_lib.train(_part(), tmp_path / "run")
  assert run["upstream"] == {"name": "toy", "classes": 4, "train_examples": 16,
                             "test_examples": 20, "fraction": 0.25, "fraction_seed": 0}
  assert run["total_steps"] == run["step"] == run["epochs"] == run["total_epochs"] == 5
  assert run["examples_seen"] == 80
  assert train_lib.train(_part(), tmp_path / "run") == run  # finished, hence left alone
  with pytest.raises(configuring.ConfigError, match="total_epochs: 5, now 6"):
    train_lib.train(_part(total_epochs=6), tmp_path / "run")
  assert train_lib.train(_part(total_epochs=6), tmp_path / "run", allow_changes=True)["step"] == 6


def test_only_the_part_is_ever_trained_on(tmp_path, monkeypatch):
  seen = []
  original = pipeline._TrainSteps._images
  monkeypatch.setattr(pipeline._TrainSteps, "_images", lambda self, indices, positions: (
      seen.extend(indices.tolist()), original(self, indices, positions))[1])
  train_lib.train(_part(), tmp_path / "run")
  labels = np.repeat(np.arange(4), 16)
  assert set(seen) == set(subset.nested(labels, 0.25).tolist())


def test_a_run_on_a_part_goes_on_to_the_bit(tmp_path, monkeypatch):
  train_lib.train(_part(), tmp_path / "undisturbed")
  with monkeypatch.context() as patch:
    _signal_at(patch, signal.SIGTERM, 2)
    assert train_lib.train(_part(), tmp_path / "run")["status"] == "interrupted"
  run = train_lib.train(_part(), tmp_path / "run")
  assert run["status"] == "finished" and run["epochs"] == 5
  _same_run(tmp_path / "undisturbed", tmp_path / "run")


def test_all_of_the_data_is_the_run_it_was_before_there_was_a_choice(undisturbed, tmp_path):
  """The same identity, the same record of the config and the same bits."""
  folder, run = undisturbed
  upstream = {**toy.config().upstream, "fraction": 1.0, "fraction_seed": 3}
  config = toy.config(upstream=upstream, total_epochs=None, name="")
  assert train_lib.train(config, folder) == run  # no other config, and finished
  again = train_lib.train(config, tmp_path / "again")
  assert again["id"] == run["id"] and "fraction" not in (tmp_path / "again/config.json").read_text()
  _same_run(folder, tmp_path / "again")


def test_seeds_share_a_part_and_fraction_seeds_choose_another():
  def examples(**changes):
    upstream = {**_part().upstream, **changes.pop("upstream", {})}
    return _prepared(_part(upstream=upstream, **changes)).data.examples.tolist()
  assert initial.read_settings(toy.config(upstream="digits")).task == "digits"  # a name will do
  assert examples() == examples(seed=9) != examples(upstream={"fraction_seed": 1})
  assert set(examples()) < set(examples(upstream={"fraction": 0.5}))


@pytest.mark.parametrize("epochs, examples, batch, steps", [
    (7, 240, 64, 27), (1, 64, 64, 1), (1, 65, 64, 2), (0.01, 10, 64, 1), (0.1, 30, 3, 1),
    (2.5, 12000, 128, 235)])
def test_epochs_are_rounded_up_to_steps(epochs, examples, batch, steps):
  settings = initial.read_settings(_part(total_epochs=epochs, batch_size=batch))
  assert settings.steps(examples) == steps


def test_a_warm_up_lasts_half_of_a_run_in_epochs_at_most():
  settings = initial.read_settings(_part())
  assert settings.fitted({"name": "linear", "warmup_steps": 20}, 7) == {
      "name": "linear", "warmup_steps": 3}
  assert settings.fitted({"warmup_steps": 20}, 40) == {"warmup_steps": 20}
  assert settings.fitted({"warmup_steps": 20}, 1) == {"warmup_steps": 0}
  with pytest.raises(ValueError, match="warm-up of 20 .* do not fit into 6 steps"):
    _prepared(toy.config(optim=dict(
        lr=1e-2, rules=((".*", {}),), schedule=dict(warmup_steps=20))))


def test_a_run_is_called_what_its_config_says(tmp_path):
  run = train_lib.train(_part(name="a quarter", evals={}), tmp_path / "run", name="other")
  unnamed = train_lib.train(_part(evals={}), tmp_path / "unnamed", name="other")
  assert run["name"] == "a quarter" and unnamed["name"] == "other"
  assert run["id"] == unnamed["id"]  # a name computes nothing


def test_a_finished_run_is_left_alone(undisturbed, capsys):
  folder, run = undisturbed
  assert train_lib.train(toy.config(), folder) == run
  assert "finished already" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run(undisturbed, tmp_path):
  train_lib.train(toy.config(), tmp_path / "again")
  _same_run(undisturbed[0], tmp_path / "again")


def _signal_at(monkeypatch, number, at):
  """Sends a signal to this process as the batch of step `at` is asked for."""
  toy.at_step(monkeypatch, at, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number, at", [(signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_bit(
    undisturbed, tmp_path, monkeypatch, capsys, number, at):
  with monkeypatch.context() as patch:
    _signal_at(patch, number, at)
    run = train_lib.train(toy.config(), tmp_path / "run")
  assert run["status"] == "interrupted" and run["signal"] == number and run["step"] == at + 1
  assert f"stopped by {signal.Signals(number).name} at step {at + 1}" in capsys.readouterr().out
  assert train_lib.train(toy.config(), tmp_path / "run")["status"] == "finished"
  _same_run(undisturbed[0], tmp_path / "run")


@pytest.mark.parametrize("call, step", [(1, 4), (2, 4), (4, 6)])
def test_a_signal_within_an_evaluation(undisturbed, tmp_path, monkeypatch, call, step):
  """An evaluation goes through three sets of images; that after the last step counts as well."""
  original, calls = pipeline.batches, []

  def batches(*args):
    calls.append(1)
    if len(calls) == call:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "batches", batches)
    run = train_lib.train(toy.config(), tmp_path / "run")
  assert run["status"] == "interrupted" and run["step"] == step
  train_lib.train(toy.config(), tmp_path / "run")
  _same_run(undisturbed[0], tmp_path / "run")


class _Killed(BaseException):
  """Stands for kill -9: nothing after it may write."""


@pytest.mark.parametrize("where", ["evaluation", "save"])
def test_killed_in_mid_run(undisturbed, tmp_path, monkeypatch, where):
  def die(*args, **kwargs):
    raise _Killed

  target = (evaluators.Scheduled, "run") if where == "evaluation" else (
      checkpoint.Checkpoints, "save")
  original = getattr(*target)

  def sometimes(self, *args):
    at_step_four = int(args[0].step) == 4 if where == "save" else args[1] == 4
    return die() if at_step_four else original(self, *args)

  with monkeypatch.context() as patch:
    patch.setattr(*target, sometimes)
    with pytest.raises(_Killed):
      train_lib.train(toy.config(), tmp_path / "run")
  train_lib.train(toy.config(), tmp_path / "run")
  _same_run(undisturbed[0], tmp_path / "run")
  if where == "save":  # rows of step 4 were there already: they are kept aside, not repeated
    assert '"step": 4' in (tmp_path / "run" / records.DISCARDED).read_text()


def test_falls_back_when_the_newest_checkpoint_is_altered(undisturbed, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    _signal_at(patch, signal.SIGTERM, 4)
    train_lib.train(toy.config(), tmp_path / "run")
  [data, *_] = (tmp_path / "run/checkpoints/5/state/d").iterdir()
  data.write_bytes(data.read_bytes()[:-1])
  train_lib.train(toy.config(), tmp_path / "run")
  _same_run(undisturbed[0], tmp_path / "run")


@pytest.mark.parametrize("change, message", [
    (dict(seed=2), "seed: 1, now 2"), (dict(total_steps=8), "total_steps: 6, now 8")])
def test_a_workdir_with_another_config(undisturbed, change, message):
  with pytest.raises(configuring.ConfigError, match=message):
    train_lib.train(toy.config(**change), undisturbed[0])


def test_only_length_logging_and_saving_may_change_by_the_flag(tmp_path):
  train_lib.train(toy.config(), tmp_path / "run")
  longer = toy.config(total_steps=8, log_every=3, checkpoint=dict(every=3))
  assert train_lib.train(longer, tmp_path / "run", allow_changes=True)["step"] == 8
  with pytest.raises(configuring.ConfigError, match="batch_size: 16, now 32"):
    train_lib.train(toy.config(batch_size=32), tmp_path / "run", allow_changes=True)


def test_a_run_can_be_made_longer_not_shorter(undisturbed, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / "run")
  with pytest.raises(configuring.ConfigError, match="at step 6, beyond total_steps = 5"):
    train_lib.train(toy.config(total_steps=5), tmp_path / "run", allow_changes=True)


def test_what_a_finished_run_measured_stays_when_it_is_made_longer(tmp_path, monkeypatch):
  """Its checkpoint may be from before its last evaluation, if a signal came within that."""
  original, calls = pipeline.batches, []

  def batches(*args):
    calls.append(1)
    if len(calls) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "batches", batches)
    train_lib.train(toy.config(), tmp_path / "run")
  train_lib.train(toy.config(), tmp_path / "run")
  before = (tmp_path / "run/metrics.jsonl").read_bytes()
  train_lib.train(toy.config(total_steps=7), tmp_path / "run", allow_changes=True)
  assert (tmp_path / "run/metrics.jsonl").read_bytes().startswith(before)


def test_a_diverged_model_is_not_evaluated(tmp_path):
  config = toy.config(optim=dict(name="sgd", lr=1e30, clip=None, rules=((".*", {}),)),
                      log_every=100)
  with pytest.raises(train_lib.NonFiniteError):
    train_lib.train(config, tmp_path / "run")
  assert records.read_rows(tmp_path / "run") == []


def test_divergence_stops_with_the_step_and_never_becomes_a_checkpoint(tmp_path):
  rules = ((".*", dict(wd=0.0)),)
  config = toy.config(optim=dict(name="sgd", lr=1e30, clip=None, rules=rules), log_every=100,
                      evals={}, checkpoint=dict(every=3))
  with pytest.raises(train_lib.NonFiniteError, match=r"in step [0-2] .*optim.lr"):
    train_lib.train(config, tmp_path / "run")
  assert not [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
  run = records.read_run(tmp_path / "run")
  assert run["status"] == "failed" and "NonFiniteError" in run["error"]


def test_an_infinite_gradient_under_a_finite_loss_in_the_step_before_a_save(tmp_path, monkeypatch):
  """The loss of step 3 is finite, its gradient isn't: the save after it must not happen."""
  from big_transfer.training import objectives

  @jax.custom_vjp
  def poisoned(x):
    return x

  poisoned.defvjp(lambda x: (x, None), lambda _, g: (g * np.inf,))

  def classification(loss):
    def objective(apply, params, batch, rng, hparams):
      logits, _ = apply({"params": params}, batch["image"], train=True, rngs={"dropout": rng})
      value = objectives.LOSSES[loss](poisoned(logits), batch["target"]).mean()
      return value, {"loss": value}
    return objective

  monkeypatch.setattr(program.objectives, "classification", classification)
  config = toy.config(image_size=8, evals={}, log_every=100, checkpoint=dict(every=1))
  with pytest.raises(train_lib.NonFiniteError, match="in step 0"):
    train_lib.train(config, tmp_path / "run")
  assert not [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]


@pytest.mark.parametrize("change, message", [
    (dict(optim=dict(lrr=1e-3, lr=1e-3, rules=((".*", {}),))), "'optim.lrr' is unknown.*'optim.lr'"),
    (dict(optim=dict(lr=1e-3, rules=(("haed/.*", {}), (".*", {})))), "'haed/.*' is the first match"),
    (dict(optim=dict(lr=1e-3, rules=(("head/.*", {}),))), "no rule claims"),
    (dict(batch_size=12), "expected a multiple of 8"),
    (dict(accumulate=4), "8 devices .* × 4 micro-batches"),
    (dict(total_steps=0), "'total_steps' is 0"), (dict(total_steps=2.5), "'total_steps' is 2.5"),
    (dict(total_epochs=3), "has total_steps = 6 and total_epochs = 3: expected one"),
    (dict(total_steps=None), "has neither: expected one of total_steps and total_epochs"),
    (dict(total_steps=None, total_epochs=0), "'total_epochs' is 0: expected a number above 0"),
    (dict(total_steps=None, total_epochs="7"), "'total_epochs' is '7'"),
    (dict(upstream=dict(name="digits", fraction=1.5)), "'upstream.fraction' is 1.5"),
    (dict(upstream=dict(name="digits", fraction=0.5, fraction_seed=-1)), "fraction_seed' is -1"),
    (dict(upstream=dict(name="digits", fracton=0.5)), "fracton"),
    (dict(model=dict(width=8)), "lacks model.name"),
    (dict(optim=dict(lr=-1.0, rules=((".*", {}),))), "lr is -1.0"),
    (dict(optim=dict(lr=1.0, rules=((".*", dict(wd=-3)),))), "wd of rule '.*' is -3"),
    (dict(label_smoothing=2.0), "'label_smoothing' is 2.0"), (dict(seed=-1), "'seed' is -1"),
    (dict(augment=dict(mixup=-1.0)), "'augment.mixup' is -1"),
    (dict(optim=dict(lr=1e-3)), "lacks optim.rules"),
    (dict(upstream=dict(name="x", source="fractals", options=dict(classes="4"))), "can't use"),
    (dict(model=dict(name="vitt", width=8)), "'vitt'.*did you mean 'vit'"),
    (dict(model=dict(name="vit", variant="Ti17")), "Ti/16"),
    (dict(augment=dict(crop=4)), "augment.crop.* is unknown"),
    (dict(evals=dict(up=dict(kind="clasification", every=2))), "expected one of"),
    (dict(evals=dict(up=dict(kind="classification", every=0))), "every is 0"),
    (dict(evals=dict(p=dict(kind="fewshot", every=2, tasks=("digit",)))), "digits"),
    (dict(evals=dict(p=dict(kind="fewshot", every=2, tasks=()))), "at least one"),
    (dict(upstream=dict(name="tfds_missing", source="tfds:no_such_set")), "no_such_set"),
    (dict(loss="hinge"), "sigmoid_xent"),
    (dict(checkpoint=dict(evry=2)), "checkpoint.evry.*did you mean 'checkpoint.every'")])
def test_bad_configs_say_what_and_where(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    train_lib.train(toy.config(**change), tmp_path / "run")


def test_a_config_that_was_refused_claims_no_folder(tmp_path):
  with pytest.raises(ValueError, match="expected one of"):
    train_lib.train(toy.config(loss="hinge"), tmp_path)
  assert not (tmp_path / "run.json").exists() and not (tmp_path / "config.json").exists()
  with pytest.raises(ValueError, match="crop padding"):  # found out at the first step only
    train_lib.train(toy.config(augment=dict(crop_padding=99)), tmp_path)
  assert train_lib.train(toy.config(), tmp_path)["status"] == "finished"


def test_an_unknown_key_at_the_top(tmp_path):
  config = toy.config().to_dict() | {"total_step": 3}
  with pytest.raises(configuring.ConfigError, match="'total_step' is unknown"):
    train_lib.train(config, tmp_path / "run")


def test_an_evaluator_that_fails_is_named_with_its_step(tmp_path, monkeypatch):
  def fail(self, params):
    raise RuntimeError("no")

  monkeypatch.setattr(evaluators.classification.Classification, "rows", fail)
  with pytest.raises(RuntimeError) as error:
    train_lib.train(toy.config(), tmp_path / "run")
  assert error.value.__notes__ == ["in evaluator 'upstream' at step 4"]


def test_runs_that_differ_in_arrays_share_one_program():
  base = toy.config()
  key = train_lib.program_key(base)
  same = {"optim.lr": 1.0, "optim.rules[0][1].wd": 0.0, "seed": 9, "total_steps": 7,
          "upstream.fraction": 0.5}
  base = configuring.override(base, {"upstream": {**base.upstream, "fraction": 1.0}})
  for path, value in same.items():
    assert train_lib.program_key(configuring.override(base, {path: value})) == key, path
  for path, value in {"model.width": 32, "batch_size": 32, "augment.flip": False}.items():
    assert train_lib.program_key(configuring.override(base, {path: value})) != key, path


def test_a_sweep_learns_of_bad_lengths_and_fractions_before_it_starts():
  """They are refused by what groups its trials, which is all that happens before the first run."""
  for change, message in ((dict(total_steps=None), "neither"), (dict(total_epochs=1), "has total"),
                          (dict(upstream=dict(name="digits", fraction=0)), "fraction' is 0")):
    with pytest.raises(ValueError, match=message):
      train_lib.program_key(toy.config(**change))


def test_the_second_run_compiles_nothing(undisturbed, tmp_path):
  step = _prepared(toy.config()).program.step
  before = step._cache_size()
  train_lib.train(toy.config(seed=5, label_smoothing=0.1), tmp_path / "run")
  assert step._cache_size() == before == 1


def test_main_tells_errors_in_one_line(tmp_path):
  with pytest.raises(SystemExit, match="^error: config file 'nowhere.py' doesn't exist"):
    train_lib.main(["--config", "nowhere.py", "--workdir", str(tmp_path)])
