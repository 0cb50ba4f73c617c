"""Fine-tuning as an ordinary run: what it starts from, how it goes on, what it leaves behind."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_transfer import plan as plan_lib
from big_transfer import sweep
from big_transfer import train as train_lib
from big_transfer import trees
from big_transfer.models import published
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import initial
from tests import toy

RULES = (("head/.*", dict(wd=0.0)), (".*", dict(wd=0.0)))
HEAD_ALONE = (("head/.*", {}), (".*", dict(frozen=True)))


def _tuned(source, **changes):
  """Fine-tuning of a run on digits, with the model that it has."""
  init = {"source": str(source), **changes.pop("init", {})}
  return toy.config(**{
      "upstream": "digits", "model": None, "init": init, "loss": "softmax_xent",
      "evals": dict(test=dict(kind="classification", every=100, first=True)), **changes})


def _pretraining(**changes):
  return toy.config(**{"evals": {}, **changes})


def _params(folder, step=None):
  return trees.flatten(checkpoint.read(folder / "checkpoints", step).params)


def _rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _accuracies(folder):
  return {row["step"]: row["value"] for row in _rows(folder)
          if row["evaluator"] == "finetune" and row["metric"] == "accuracy"}


def _same(one, other):
  a, b = _params(one), _params(other)
  assert a.keys() == b.keys()
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)
  assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "source"
  train_lib.train(_pretraining(), folder, name="the source")
  return folder


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tuned") / "run"
  return folder, train_lib.train(_tuned(source), folder)


def test_a_fine_tuned_run_says_what_it_is_and_what_it_came_from(source, tuned):
  folder, run = tuned
  origin = records.read_run(source)
  assert run["setting"] == "finetune" and origin["setting"] == "upstream"
  assert "pretrained" not in origin
  pretrained = run["pretrained"]
  assert pretrained["run"] == {key: origin[key] for key in pretrained["run"]}
  assert {"id", "upstream", "parameters", "examples_seen"} < set(pretrained["run"])
  del pretrained["run"]
  assert pretrained == {"source": str(source), "identity": origin["id"], "step": 6,
                        "what": "params", "head": "zero", "name": "the source"}
  assert run["upstream"]["name"] == "digits" and run["upstream"]["classes"] == 10
  config = records.read_config(folder)
  assert config["model"] == records.read_config(source)["model"], "the model is written out"
  last = [row for row in _rows(folder) if row["evaluator"] == "finetune" and row["step"] == 6]
  assert {row["metric"] for row in last} == {"accuracy", "loss"}
  for row in last:
    assert {key: row[key] for key in ("task", "variant", "setting", "split", "seed",
                                      "examples_used")} == {
        "task": "digits", "variant": "full", "setting": "finetune", "split": "test", "seed": 1,
        "examples_used": run["upstream"]["train_examples"]}
  assert not any(row["evaluator"] == "upstream" for row in _rows(folder))


def test_it_starts_from_the_parameters_with_a_head_of_zeros(source, tmp_path):
  optim = dict(lr=0.0, rules=RULES, schedule=dict(name="constant"))
  train_lib.train(_tuned(source, optim=optim, total_steps=1), tmp_path / "run")
  before, after = _params(source), _params(tmp_path / "run")
  assert before.keys() == after.keys()
  for name, value in after.items():
    if name.startswith("head/"):
      assert value.shape[-1] == 10 and not value.any()
    else:
      np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_random_head_is_of_the_runs_seed(source, tmp_path):
  optim = dict(lr=0.0, rules=RULES, schedule=dict(name="constant"))
  heads = []
  for seed in (1, 1, 2):
    folder = tmp_path / str(len(heads))
    config = _tuned(source, optim=optim, total_steps=1, seed=seed, init=dict(head="random"))
    train_lib.train({**configuring.plain(config), "evals": {}}, folder)
    heads.append(_params(folder)["head/kernel"])
  np.testing.assert_array_equal(heads[0], heads[1])
  assert not np.allclose(heads[0], heads[2])


@pytest.mark.slow
def test_a_probes_head_knows_the_task_before_the_first_step(source, tmp_path):
  """Under either loss; and its logits are of a scale that makes the loss better than chance's."""
  for loss, chance in (("softmax_xent", np.log(10)), ("sigmoid_xent", 10 * np.log(2))):
    train_lib.train(_tuned(source, init=dict(head="probe"), loss=loss, total_steps=3),
                    tmp_path / loss)
    first = {row["metric"]: row["value"] for row in _rows(tmp_path / loss)
             if row["evaluator"] == "finetune" and row["step"] == 0}
    assert first["accuracy"] > 0.3, "a tenth is chance"
    assert first["loss"] < 0.9 * chance


def test_the_head_is_kept_where_the_classes_are_the_same(source, tmp_path):
  optim = dict(lr=0.0, rules=RULES, schedule=dict(name="constant"))
  config = _pretraining(optim=optim, total_steps=1, init=dict(source=str(source), head="keep"))
  run = train_lib.train(config, tmp_path / "run")
  assert run["setting"] == "upstream"
  before, after = _params(source), _params(tmp_path / "run")
  np.testing.assert_array_equal(before["head/kernel"], after["head/kernel"])


@pytest.mark.slow
def test_at_another_size_the_positions_are_resized(source, tmp_path):
  run = train_lib.train(_tuned(source, image_size=24, evals={}), tmp_path / "run")
  assert run["status"] == "finished"
  assert _params(tmp_path / "run")["pos_embedding"].shape == (1, 9, 16)
  assert _params(source)["pos_embedding"].shape == (1, 4, 16)


@pytest.mark.slow
def test_a_published_file_is_a_source(source, tmp_path):
  path = tmp_path / "published.npz"
  published.save(path, checkpoint.read(source / "checkpoints").params)
  run = train_lib.train(_tuned(path, evals={}), tmp_path / "file")
  assert run["pretrained"]["identity"] == published.digest(path)
  assert run["pretrained"]["step"] == 0 and run["pretrained"]["run"] == {}
  assert run["pretrained"]["name"] == "published"
  train_lib.train(_tuned(source, evals={}), tmp_path / "run")
  # The same parameters, so the same run, whatever they were read from.
  _same(tmp_path / "file", tmp_path / "run")


def test_the_same_run_from_another_place_has_the_same_identity(source, tuned, tmp_path):
  shutil.copytree(source, tmp_path / "moved")
  run = train_lib.train(_tuned(tmp_path / "moved"), tmp_path / "run")
  assert run["id"] == tuned[1]["id"] != records.read_run(source)["id"]
  earlier = train_lib.train(_tuned(source, init=dict(step=4), evals={}, total_steps=3),
                            tmp_path / "earlier")
  assert earlier["pretrained"]["step"] == 4 and earlier["id"] != run["id"]


# ---- stopped and continued ----


def _interrupted(monkeypatch, config, folder, at):
  with monkeypatch.context() as patch:
    toy.at_step(patch, at, lambda: signal.raise_signal(signal.SIGTERM))
    assert train_lib.train(config, folder)["status"] == "interrupted"


class Killed(BaseException):
  """Stands for kill -9: nothing catches it."""


def _killed(monkeypatch, config, folder, at):
  def die():
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    toy.at_step(patch, at, die)
    train_lib.train(config, folder)


def test_it_goes_on_to_the_bit_and_needs_its_source_no_more(source, tuned, tmp_path, monkeypatch):
  shutil.copytree(source, tmp_path / "source")
  config = _tuned(tmp_path / "source")
  _interrupted(monkeypatch, config, tmp_path / "run", 3)
  before = records.read_run(tmp_path / "run")["pretrained"]
  shutil.rmtree(tmp_path / "source")
  run = train_lib.train(config, tmp_path / "run")
  assert run["status"] == "finished" and run["pretrained"] == before
  assert run["id"] == tuned[1]["id"]
  _same(tuned[0], tmp_path / "run")
  assert train_lib.train(config, tmp_path / "run") == run, "finished: nothing is asked of the source"


@pytest.mark.parametrize("head", [
    "random", pytest.param("probe", marks=pytest.mark.slow)])
def test_killed_before_its_first_save_it_begins_anew_the_same(source, tmp_path, monkeypatch, head):
  config = _tuned(source, init=dict(head=head), log_every=1)
  train_lib.train(config, tmp_path / "undisturbed")
  _killed(monkeypatch, config, tmp_path / "run", 1)
  assert (tmp_path / "run" / "metrics.jsonl").stat().st_size
  train_lib.train(config, tmp_path / "run")
  _same(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.slow
def test_a_source_that_went_on_meanwhile_is_read_where_it_was(tmp_path, monkeypatch):
  _interrupted(monkeypatch, _pretraining(), tmp_path / "source", 3)
  config = _tuned(tmp_path / "source", log_every=1)
  _killed(monkeypatch, config, tmp_path / "run", 1)
  train_lib.train(_pretraining(), tmp_path / "source")  # has steps 4 and 6 now
  run = train_lib.train(config, tmp_path / "run")
  assert run["status"] == "finished" and run["pretrained"]["step"] == 4


def test_a_source_that_is_another_meanwhile_is_refused(source, tmp_path, monkeypatch):
  shutil.copytree(source, tmp_path / "source")
  config = _tuned(tmp_path / "source", log_every=1)
  _killed(monkeypatch, config, tmp_path / "run", 1)
  shutil.rmtree(tmp_path / "source")
  train_lib.train(_pretraining(seed=9), tmp_path / "source")
  with pytest.raises(ValueError, match="this run began with .* is now .* another --workdir"):
    train_lib.train(config, tmp_path / "run")
  train_lib.train(_pretraining(seed=9, total_steps=12), tmp_path / "source", allow_changes=True)
  with pytest.raises(ValueError, match="began with step 6 .* can't be had any more"):
    train_lib.train(config, tmp_path / "run")


# ---- the whole state ----


def test_a_branch_with_the_same_config_is_the_run_it_left(source, tmp_path):
  config = _pretraining(init=dict(source=str(source), what="full", step=4))
  run = train_lib.train(config, tmp_path / "branch")
  assert run["setting"] == "upstream" and run["pretrained"]["what"] == "full"
  assert run["pretrained"]["step"] == 4 and run["step"] == 6
  with checkpoint.Checkpoints(tmp_path / "branch" / "checkpoints") as ours:
    with checkpoint.Checkpoints(source / "checkpoints") as theirs:
      like = train_lib._prepare([({"config": configuring.plain(_pretraining())}, None)],
                                None).program.like
      jax.tree.map(np.testing.assert_array_equal, ours.restore(like)[0], theirs.restore(like)[0])


def test_a_branch_may_end_otherwise(source, tmp_path):
  optim = {**toy.config().optim.to_dict(), "schedule": dict(name="constant", cooldown_steps=3)}
  config = _pretraining(init=dict(source=str(source), what="full", step=4), total_steps=8,
                        optim=optim)
  assert train_lib.train(config, tmp_path / "branch")["step"] == 8
  with pytest.raises(ValueError, match="checkpoint 6 of .* at or beyond the end, total"):
    train_lib.train(_pretraining(init=dict(source=str(source), what="full")), tmp_path / "over")
  with pytest.raises(ValueError, match=r"(?s)of another model or optimiser.*- params/head/bias"):
    train_lib.train(_tuned(source, init=dict(what="full"), total_steps=9), tmp_path / "other")


# ---- parts that are frozen ----


def test_a_frozen_body_stays_as_it_was_to_the_bit(source, tmp_path):
  optim = dict(lr=1e-2, rules=HEAD_ALONE, schedule=dict(name="constant"))
  run = train_lib.train(_tuned(source, optim=optim, accumulate=2), tmp_path / "run")
  assert run["setting"] == "linear"
  assert {row["setting"] for row in _rows(tmp_path / "run")
          if row["evaluator"] == "finetune"} == {"linear"}
  before, after = _params(source), _params(tmp_path / "run")
  for name, value in after.items():
    if not name.startswith("head/"):
      np.testing.assert_array_equal(value, before[name], err_msg=name)
  assert after["head/kernel"].any()


# ---- many ----


@pytest.mark.slow
def test_members_of_a_population_are_as_alone_each_with_its_head(source, tmp_path):
  configs = [_tuned(source, init=dict(head="random"), seed=seed,
                    optim=dict(lr=0.01 * seed, rules=RULES, layer_decay=1 - 0.1 * seed,
                               schedule=dict(name="constant"))) for seed in (1, 2)]
  runs = train_lib.train_population([
      dict(config=config, workdir=tmp_path / str(i)) for i, config in enumerate(configs)])
  assert [run["population"] for run in runs] == [2, 2]
  for i, config in enumerate(configs):
    train_lib.train(config, tmp_path / f"alone{i}")
    together, alone = _rows(tmp_path / str(i)), _rows(tmp_path / f"alone{i}")
    assert [{**row, "value": 0} for row in together] == [{**row, "value": 0} for row in alone]
    # Sums are made in another order: parts in 1e-7, which a few steps multiply.
    losses = [[row["value"] for row in rows if row["metric"] == "loss"]
              for rows in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert runs[i]["pretrained"] == records.read_run(tmp_path / f"alone{i}")["pretrained"]
  assert not np.allclose(_params(tmp_path / "0")["head/kernel"],
                         _params(tmp_path / "1")["head/kernel"])


@pytest.mark.slow
def test_a_member_that_joins_one_with_a_checkpoint_says_what_it_came_from(source, tmp_path,
                                                                          monkeypatch):
  """They have no step in common, so both begin anew, each from what its run.json says."""
  configs = [_tuned(source, seed=seed, evals={}) for seed in (1, 2)]
  _killed(monkeypatch, configs[0], tmp_path / "0", 3)
  assert [path.name for path in (tmp_path / "0" / "checkpoints").iterdir()] == ["2"]
  runs = train_lib.train_population([
      dict(config=config, workdir=tmp_path / str(i)) for i, config in enumerate(configs)])
  assert runs[0]["pretrained"] == runs[1]["pretrained"]
  train_lib.train(configs[1], tmp_path / "alone")
  assert records.read_run(tmp_path / "alone")["id"] == runs[1]["id"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["probe", "full"])
def test_two_processes_start_from_what_one_does(source, tmp_path, head):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  init = dict(what="full", step=4) if head == "full" else dict(head=head)
  config = _tuned(source, init=init) if head != "full" else _pretraining(
      init={"source": str(source), **init})
  (tmp_path / "config.json").write_text(config.to_json())
  (tmp_path / "config.py").write_text(
      "import json, pathlib\nfrom ml_collections import ConfigDict\n"
      "def get_config():\n  text = pathlib.Path(__file__).with_suffix('.json').read_text()\n"
      "  return ConfigDict(json.loads(text))\n")
  command = [sys.executable, "-m", "big_transfer.train", "--distributed", "--config",
             str(tmp_path / "config.py"), "--workdir", str(tmp_path / "two")]
  started = [subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
           "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
           "JAX_PROCESS_ID": str(i)}) for i in range(2)]
  said = [process.communicate(timeout=300)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], said
  train_lib.train(config, tmp_path / "one")
  one, two = (_rows(tmp_path / name) for name in ("one", "two"))
  assert len(one) == len(two)
  # Gradients are summed over processes in another order: parts in 1e-7, which six steps multiply.
  losses = [[row["value"] for row in rows if row["metric"] == "loss"] for rows in (one, two)]
  assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_programs_are_told_apart_without_the_source(source, tmp_path):
  config = _tuned(source)
  key = train_lib.program_key(config)
  gone = _tuned(tmp_path / "gone")
  assert train_lib.program_key(gone) == train_lib.program_key(gone) != key
  assert train_lib.program_key(_tuned(tmp_path / "gone.npz")) != key
  explicit = configuring.plain(config) | {"model": records.read_config(source)["model"]}
  assert train_lib.program_key(explicit) == key
  shutil.copytree(source, tmp_path / "alike")
  assert train_lib.program_key(_tuned(tmp_path / "alike")) == key, "of an equal model"


@pytest.mark.parametrize("change, same", [
    ({"optim.lr": 0.5}, True), ({"seed": 7}, True), ({"optim.layer_decay": 0.5}, True),
    ({"optim.rules[1][1].wd": 1.0}, True), ({"optim.rules[1][1].frozen": True}, False),
    ({"optim.layer_decay": None}, False), ({"init.head": "random"}, False),
    ({"init.source": "elsewhere"}, False)])
def test_what_may_differ_in_a_population(change, same):
  optim = dict(lr=0.1, layer_decay=0.9,
               rules=(("head/.*", {}), (".*", dict(wd=0.0, frozen=False))))
  config = _tuned("somewhere", optim=optim, init=dict(head="zero"))
  changed = configuring.override(config, change)
  assert (train_lib.population_key(config) == train_lib.population_key(changed)) is same


SWEEP = '''
from tests import test_transfer
def get_config():
  return test_transfer._tuned({source!r}, total_steps=3, evals={{}}, init=dict(head="zero"))
def get_sweep():
  for seed in (1, 2):
    yield {{"seed": seed}}
'''


def test_a_sweep_skips_what_is_finished_though_the_source_is_gone(source, tmp_path):
  shutil.copytree(source, tmp_path / "source")
  spec = tmp_path / "transfer.py"
  spec.write_text(SWEEP.format(source=str(tmp_path / "source")))
  trials = sweep.trials_of(str(spec), tmp_path / "out")
  sweep.run_trial({"config": trials[0].config, "workdir": str(trials[0].folder)})
  shutil.rmtree(tmp_path / "source")
  again = sweep.trials_of(str(spec), tmp_path / "out")
  assert [trial.finished for trial in again] == [True, False]
  assert sweep.program_of(again[1].config)  # which is all that happens before it is trained
  with pytest.raises(ValueError, match="no run in"):
    sweep.run_trial({"config": again[1].config, "workdir": str(again[1].folder)})
  run = sweep.run_trial({"config": again[0].config, "workdir": str(again[0].folder)})
  assert run["status"] == "finished"


def test_a_plan_takes_the_sources_model(source):
  found = plan_lib.plan(_tuned(source), 1)
  assert found.classes == 10 and found.parameters == sum(
      value.size for value in _params(source).values()) + 6 * 17
  optim = dict(lr=1e-2, rules=HEAD_ALONE, layer_decay=0.9, schedule=dict(name="constant"))
  frozen = plan_lib.plan(_tuned(source, optim=optim), 1)
  assert frozen.memory.parameters == found.memory.parameters
  # Two moments of the head alone, and the counters of the state and of Adam.
  assert frozen.memory.optimiser == 4 * 2 * 17 * 10 + 12
  assert frozen.memory.activations + frozen.memory.gradients < (
      found.memory.activations + found.memory.gradients)


# ---- bad input ----


@pytest.mark.parametrize("init, message", [
    (dict(source=None), "'init.source' is None: expected a run's folder or"),
    (dict(source="nowhere"), "no run in 'nowhere': there is no such folder"),
    (dict(source="nowhere.npz"), "no file 'nowhere.npz'"),
    (dict(step=5), "no checkpoint of step 5 .* expected one of 4, 6"),
    (dict(step="x"), "'init.step' is 'x'"),
    (dict(what="all"), "'init.what' is 'all': expected one of 'params', 'full'"),
    (dict(head="best"), "'init.head' is 'best'"),
    (dict(what="full", head="zero"), "'init.head' is 'zero': with init.what='full'"),
    (dict(head="keep"), "has 4 classes and the data 10"),
    (dict(resample="cubic"), "'init.resample' is 'cubic'"),
    (dict(sorce="x"), "init.sorce.*did you mean 'init.source'")])
def test_bad_sections_say_what_and_where(source, tmp_path, init, message):
  with pytest.raises(ValueError, match=message):
    train_lib.train(_tuned(source, init=init), tmp_path / "run")
  assert not (tmp_path / "run").exists(), "nothing was begun"


def test_folders_that_are_no_runs_say_what_they_are(source, tmp_path):
  with pytest.raises(ValueError, match="did you mean the runs in it"):
    train_lib.train(_tuned(source.parent), tmp_path / "run")
  evaluation = tmp_path / "run_of" / "evaluations" / "abc"
  shutil.copytree(source, evaluation)
  run = records.read_run(evaluation) | {"parameters_from": {"identity": "x", "step": 6}}
  (evaluation / "run.json").write_text(json.dumps(run))
  with pytest.raises(ValueError, match="is an evaluation.*name its run, '.*run_of'"):
    train_lib.train(_tuned(evaluation), tmp_path / "run")
  with pytest.raises(ValueError, match="runs are read from folders; mount or copy"):
    train_lib.train(_tuned("gs://bucket/run"), tmp_path / "run")
  for model in (None, dict(name="resnet", width=0.125, depths=(1,), root_kernel=3)):
    config = _tuned(source, model=model, init=dict(source="x" if model is None else str(source)))
    with pytest.raises(ValueError, match="no run in 'x'" if model is None else "model.name=vit"):
      train_lib.train(config, tmp_path / "run")


def test_parameters_that_are_not_finite_are_refused(source, tmp_path):
  params = checkpoint.read(source / "checkpoints").params
  broken = trees.map_named(
      lambda name, value: value * np.nan if name == "pos_embedding" else value, params)
  program = train_lib._prepare(
      [({"config": configuring.plain(_pretraining())}, None)], None).program
  shutil.copytree(source, tmp_path / "source")
  shutil.rmtree(tmp_path / "source" / "checkpoints")
  with checkpoint.Checkpoints(tmp_path / "source" / "checkpoints") as saved:
    saved.save(program.start(jax.device_put(broken)), {"metrics_bytes": 0, "evaluated": False})
  with pytest.raises(ValueError, match="infinities or NaN, in pos_embedding: its training div"):
    train_lib.train(_tuned(tmp_path / "source"), tmp_path / "run")


def test_a_section_is_recorded_with_what_it_does_not_say(source):
  config = initial.completed({"init": {"source": str(source)}})
  assert config["model"]["name"] == "vit"
  assert initial.read_settings(_tuned(source)).init.head == "zero"
  full = initial.read_settings(_pretraining(init=dict(source="x", what="full")))
  assert full.init.head == "keep"
