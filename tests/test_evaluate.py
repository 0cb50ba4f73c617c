"""Evaluations of what is trained already: the loop's own rows, of any run or file, left apart."""
import functools
import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from big_transfer import evaluate as evaluate_lib
from big_transfer import evaluators
from big_transfer import train as train_lib
from big_transfer import trees
from big_transfer.data import pipeline
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import program
from big_transfer.training import settings
from big_transfer.training import step as step_lib
from tests import toy

ROOT = pathlib.Path(__file__).parents[1]
FEW = {"probes": dict(kind="fewshot")}  # the run's own probes alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "trained"
  train_lib.train(toy.config(), folder)
  return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  """A run of another model on data of other classes, written without training, which is slow."""
  folder = tmp_path_factory.mktemp("runs") / "other"
  config = settings.recorded(toy.config(
      model=dict(name="vit", width=8, depth=2, heads=2, mlp_dim=16, patch=8), evals={},
      upstream={**toy.config().upstream, "name": "others"}))
  net = program.network(model=config["model"], classes=3, image_size=config["image_size"])
  rng = np.random.default_rng(0)
  params = trees.map_named(lambda _, leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
                           net.shapes)
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(step_lib.TrainState(np.int32(6), params, (), np.int32(-1)), {})
  with records.Record(folder) as record:
    record.write_config(config)
    record.update_run(id="other", status="running", upstream={"name": "others", "classes": 3})
  return folder


@pytest.fixture
def run(trained, tmp_path):
  """A copy to evaluate."""
  return shutil.copytree(trained, tmp_path / "run")


def _rows(folder, *evaluators, step=6, **having):
  return [row for row in records.read_rows(folder) if row["step"] == step
          and row["evaluator"] in (evaluators or ("upstream", "fewshot"))
          and all(row[key] == value for key, value in having.items())]


def _files(folder):
  return {path: (path.read_bytes(), path.stat().st_mtime_ns)
          for path in folder.rglob("*") if path.is_file() and "evaluations" not in path.parts}


@pytest.mark.parametrize("step", [None, 4])
def test_the_loops_own_rows_to_the_bit_and_nothing_else_touched(run, step):
  # As if it were training: a checkpoint half-saved, which another process will want to complete.
  half = run / "checkpoints/8.orbax-checkpoint-tmp-0"
  half.mkdir()
  before = _files(run)
  found = evaluate_lib.evaluate(run, step=step)
  folder = pathlib.Path(found["folder"])
  assert folder.parent == run / "evaluations" and len(folder.name) == 12
  assert _rows(folder, step=step or 6) == _rows(run, step=step or 6) != []
  assert len(records.read_rows(folder)) == len(_rows(folder, step=step or 6))
  assert found["status"] == "finished" and found["step"] == (step or 6)
  assert found["evaluates"] == records.read_run(run)["id"] != found["id"] == folder.name
  assert _files(run) == before and half.is_dir()


def test_again_does_nothing_and_other_evaluators_are_another_evaluation(run, capsys):
  first = evaluate_lib.evaluate(run, evals=FEW)
  capsys.readouterr()
  assert evaluate_lib.evaluate(run, evals=FEW) == first
  assert "evaluated already; nothing to do" in capsys.readouterr().out
  # The period means nothing here, and spelling out what the run says changes nothing.
  assert evaluate_lib.evaluate(run, evals={"probes": dict(every=7, shots=(1, 5))}) == first
  second = evaluate_lib.evaluate(run, evals=FEW, overrides={"evals.probes.layers": "all"})
  assert second["folder"] != first["folder"] and second["id"] != first["id"]
  rows = records.read_rows(second["folder"])
  assert list(dict.fromkeys(row["layer"] for row in rows)) == ["stem", "block_00", "pre_logits"]
  assert _rows(second["folder"], layer="pre_logits") == _rows(run, "fewshot")


def test_the_shipped_evaluators_keep_the_runs_tasks(run, capsys):
  with pytest.raises(SystemExit) as stop:
    evaluate_lib.main(["--workdir", str(run), "--evals", f"{ROOT}/configs/evaluate/layers.py",
                       "--config.evals.geometry.examples=16", "--config.evals.probes.shots=(1,)"])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert "geometry: " in out and "mean accuracy stem 0." in out
  [folder] = (run / "evaluations").iterdir()
  rows = records.read_rows(folder)
  assert {(row["task"], row["seed"], row["shots"]) for row in rows
          if row["evaluator"] == "fewshot"} == {("digits", 0, 1), ("digits", 1, 1)}
  assert {row["examples_used"] for row in rows if row["metric"] == "margin"} == {16}
  assert {row["layer"] for row in rows if row["metric"] == "l2_norm"} >= {"stem", "block_00",
                                                                          "head"}
  config = records.read_config(folder)
  assert config["evals"]["probes"]["layers"] == "all" and config["optim"]["lr"] == 1e-2


@pytest.mark.slow
def test_another_runs_model_on_this_runs_data(trained, other, tmp_path, capsys):
  with pytest.raises(ValueError, match="3 logits .* 'toy', which has 4 classes.*--evals"):
    evaluate_lib.evaluate(trained, init=other, out=tmp_path / "out")
  found = evaluate_lib.evaluate(trained, evals=FEW, init=other, out=tmp_path / "out")
  assert found["model"]["label"] == "ViT 8x2/8" and "evaluates" not in found
  assert found["upstream"]["name"] == "others" and found["examples_seen"] == 96
  again = evaluate_lib.evaluate(other, evals={"probes": records.read_config(trained)["evals"][
      "probes"]}, out=tmp_path / "same")
  assert _rows(tmp_path / "out", "fewshot") == _rows(tmp_path / "same", "fewshot") != []
  assert again["parameters_from"] == found["parameters_from"]
  assert records.read_config(tmp_path / "out")["model"]["depth"] == 2
  with pytest.raises(ValueError, match="'image_size' can't change with --init of a run: model, "):
    evaluate_lib.evaluate(config=toy.config(), init=other, out=tmp_path / "small",
                          overrides={"image_size": 8})
  with pytest.raises(ValueError, match="holds another run or evaluation .*use another folder"):
    evaluate_lib.evaluate(trained, evals=FEW, init=other, out=trained)


def test_whose_model_is_evaluated_is_said_where_the_config_has_another(other, tmp_path, capsys):
  probes = dict(kind="fewshot", tasks=("digits",), shots=(1,), seeds=(0,))
  for model, told in ((toy.config().model, 1), (records.read_config(other)["model"], 0)):
    found = evaluate_lib.evaluate(config=toy.config(model=model, evals=dict(probes=probes)),
                                  init=other, out=tmp_path / "out")
    assert found["model"]["width"] == 8
    assert capsys.readouterr().out.count(
        f"note: the model is that of checkpoint 6 of '{other}', vit; what --config says") == told


def _as_npz(run, path, name=lambda name: name):
  state = ocp.StandardCheckpointer().restore(run / "checkpoints/6/state")
  np.savez(path, **{name(key): np.asarray(value)
                    for key, value in trees.flatten(state["params"]).items()})
  return path


def _vit_jax(name):
  return name.replace("pos_embedding", "Transformer/posembed_input/pos_embedding").replace(
      "LayerNorm_1", "LayerNorm_2").replace("Attention_0", "Attention_1").replace(
          "MlpBlock_0", "MlpBlock_3")


@pytest.mark.parametrize("name", [lambda name: f"params/{name}", _vit_jax])
def test_published_parameters_are_measured_as_the_run_was(trained, tmp_path, name):
  path = _as_npz(trained, tmp_path / "small.npz", name)
  found = evaluate_lib.evaluate(config=toy.config(), init=path, out=tmp_path / "out")
  expected = [row | {"step": 0, "examples": None} for row in _rows(trained)]
  assert records.read_rows(tmp_path / "out") == expected
  assert found["name"] == "small" and found["examples_seen"] is found["seed"] is None
  # What the config says of a training that wasn't this model's is not recorded as its.
  assert "optim" not in records.read_config(tmp_path / "out")
  deeper = toy.config(model={**toy.config().model, "depth": 2})
  with pytest.raises(ValueError, match=r"parameters don't fit the model[^$]*encoderblock_1"):
    evaluate_lib.evaluate(config=deeper, init=path, out=tmp_path / "out2")
  np.savez(path, **{name("head/kernel"): np.zeros((16, 4))})
  with pytest.raises(ValueError, match="parameters of no ViT, Mixer or BiT ResNet: head/kernel"):
    evaluate_lib.evaluate(config=toy.config(), init=path, out=tmp_path / "out2")
  assert not (tmp_path / "out2").exists()


def test_a_file_evaluated_at_another_size_is_another_evaluation(tmp_path):
  config = toy.config(
      evals={"probes": dict(kind="fewshot", every=1, tasks=("digits",), shots=(1,), seeds=(0,))},
      model=dict(name="resnet", depths=(1,), width=0.0625, root_kernel=3, root_stride=1,
                 root_pool=False))
  net = program.network(model=settings.recorded(config)["model"], classes=4, image_size=16)
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "a.npz", **{name: rng.normal(size=leaf.shape).astype(np.float32)
                                  for name, leaf in trees.flatten(net.shapes).items()})
  evaluate = functools.partial(evaluate_lib.evaluate, config=config, init=tmp_path / "a.npz",
                               out=tmp_path / "out")
  assert evaluate() == evaluate()
  with pytest.raises(ValueError, match="holds another run or evaluation"):
    evaluate(overrides={"image_size": 8})


def test_another_runs_loss_is_the_default_where_it_names_none(trained, other, tmp_path):
  config = toy.config(loss="softmax_xent", evals=records.read_config(trained)["evals"])
  upstream = {"upstream": dict(kind="classification")}
  evaluate_lib.evaluate(config=config, evals=upstream, init=trained, out=tmp_path / "out")
  assert _rows(tmp_path / "out") == _rows(trained, "upstream") != []


def test_parameters_that_diverged_are_refused(trained, tmp_path):
  path = _as_npz(trained, tmp_path / "a.npz")
  arrays = dict(np.load(path))
  arrays["head/bias"] = arrays["head/bias"] * np.nan
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match="not finite.*diverged"):
    evaluate_lib.evaluate(trained, init=path, out=tmp_path / "out")


def test_a_damaged_checkpoint_is_passed_over_and_stays(run, caplog):
  [data, *_] = sorted((run / "checkpoints/6/state/d").iterdir())
  data.write_bytes(data.read_bytes()[:-1])
  before = _files(run)
  found = evaluate_lib.evaluate(run, evals=FEW)
  assert found["step"] == 4 and _rows(found["folder"], step=4) == _rows(run, "fewshot", step=4)
  assert "checkpoint 6 has an altered file" in caplog.text and _files(run) == before
  with pytest.raises(ValueError, match="checkpoint 6 has an altered file.*expected one of 4"):
    evaluate_lib.evaluate(run, step=6)
  shutil.rmtree(run / "checkpoints/4")
  with pytest.raises(ValueError, match="no good checkpoint in .*checkpoint 6 has an altered"):
    evaluate_lib.evaluate(run)


class _Killed(BaseException):
  """Stands for kill -9: nothing after it may write."""


def test_killed_halfway_it_starts_over(run, monkeypatch):
  original = evaluators.Scheduled.run

  def die(self, *args):
    if self.name == "upstream":  # the second of two
      raise _Killed
    return original(self, *args)

  with monkeypatch.context() as patch:
    patch.setattr(evaluators.Scheduled, "run", die)
    with pytest.raises(_Killed):
      evaluate_lib.evaluate(run)
  [folder] = (run / "evaluations").iterdir()
  assert records.read_run(folder)["status"] == "running" and not records.read_rows(folder)
  with open(folder / records.METRICS, "w") as file:  # killed between its rows and its status
    file.write(json.dumps({"step": 6, "evaluator": "fewshot", "value": 1.0}) + "\n")
  evaluate_lib.evaluate(run)
  assert _rows(folder) == _rows(run) and records.read_run(folder)["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_rows(run, monkeypatch, number):
  original, calls = pipeline.batches, []

  def batches(*args):
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), number)
    return original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "batches", batches)
    with pytest.raises(SystemExit) as stop:
      evaluate_lib.main(["--workdir", str(run), str(run)])
  assert stop.value.code == 128 + number and len(calls) == 2  # nor is the next begun
  [folder] = (run / "evaluations").iterdir()
  assert records.read_run(folder)["status"] == "interrupted" and not records.read_rows(folder)
  assert evaluate_lib.evaluate(run)["status"] == "finished"


def test_a_signal_too_late_to_stop_a_run_stops_the_next(run, monkeypatch):
  append = records.Record.append
  monkeypatch.setattr(records.Record, "append", lambda self, rows: (
      os.kill(os.getpid(), signal.SIGINT), append(self, rows)))
  with pytest.raises(SystemExit) as stop:
    evaluate_lib.main(["--workdir", str(run), str(run.with_name("next"))])
  assert stop.value.code == 128 + signal.SIGINT  # not 1: nobody looked for the next
  [folder] = (run / "evaluations").iterdir()
  assert records.read_run(folder)["status"] == "finished" and _rows(folder) == _rows(run)


def test_one_process_at_a_time(run):
  folder = evaluate_lib.evaluate(run, evals=FEW)["folder"]
  (pathlib.Path(folder) / records.RUN).unlink()
  (pathlib.Path(folder) / records.CONFIG).unlink()
  with records.Record(folder), pytest.raises(records.RecordError, match="has a Record of .* open"):
    evaluate_lib.evaluate(run, evals=FEW)


def _said(capsys, *arguments):
  with pytest.raises(SystemExit) as stop:
    evaluate_lib.main([str(argument) for argument in arguments])
  return stop.value.code, capsys.readouterr().err


def test_a_bad_run_among_good_ones_is_told_and_passed_over(run, tmp_path, capsys):
  code, said = _said(capsys, "--workdir", tmp_path / "none", run, "--out", tmp_path / "out",
                     "--config.evals.probes.shots=(1,)")
  assert code == 1 and "no run in" in said and said.endswith("1 of 2 runs could not be evaluated\n")
  assert records.read_run(tmp_path / "out/run")["status"] == "finished"
  capsys.readouterr()
  _, said = _said(capsys, "--workdir", run, run, "--config.evals.probes.shot=1")
  assert said.count("did you mean 'evals.probes.shots'") == 1  # once, not once a run


def test_a_quoted_glob_is_the_runs_it_matches(run, tmp_path, capsys):
  shutil.copytree(run, tmp_path / "runs/a")
  shutil.copytree(run, tmp_path / "runs/b[1]")
  (tmp_path / "runs/notes.txt").touch()
  for pattern, count in (("*", 2), ("b[1]", 1)):  # a name that is there is no pattern
    code, said = _said(capsys, "--workdir", tmp_path / "runs" / pattern,
                       "--config.evals.probes.shot=1")
    assert code == 1 and said.count("did you mean 'evals.probes.shots'") == 1
    assert said.endswith("2 of 2 runs could not be evaluated\n") == (count == 2)
  code, said = _said(capsys, "--workdir", tmp_path / "runs/c*")
  assert code == 1 and "c*': there is no such folder" in said


def test_an_evaluation_is_no_run_and_names_its_own(run, tmp_path, capsys):
  for out, name in ((None, str(run)), (tmp_path / "out", "run")):
    folder = evaluate_lib.evaluate(run, evals=FEW, out=out,
                                   overrides={"evals.probes.shots": (1,)})["folder"]
    code, said = _said(capsys, "--workdir", folder)
    assert code == 1 and f"is an evaluation, which has no parameters: name its run, '{name}" in said
    with pytest.raises(ValueError, match="is an evaluation"):
      evaluate_lib.evaluate(run, init=folder, out=tmp_path / "more")


@pytest.mark.parametrize("arguments, message", [
    ([], "expected a run .--workdir., or published parameters .*, got neither"),
    (["--workdir", "RUN", "--config", "x.py"], "got both"),
    (["--config", "x.py"], "give --init"),
    (["--workdir", "RUN", "--init", "RUN"], "give --out"),
    (["--workdir", "RUN", "--init", "x.npz", "--out", "OUT"], "no file 'x.npz'"),
    (["--workdir", "RUN", "--init", "x.npz", "--out", "OUT", "--step", "3"], "one step only"),
    (["--workdir", "RUN", "--init", "NONE", "--out", "OUT"], "no run in 'NONE': there is no such"),
    (["--workdir", "RUN", "--step", "5"], "no checkpoint of step 5 in .*: expected one of 4, 6"),
    (["--workdir", "PARENT"], "lacks config.json.*did you mean the runs in it, .*/\\*"),
    (["--workdir", "RUN", "--evals", "none.py"], "'none.py' doesn't exist"),
    (["--workdir", "RUN", "--evals", f"{ROOT}/configs/pretrain/fractals.py"],
     "evals section 'accumulate' is .*not a whole config"),
    (["--workdir", "RUN", "--config.optim.lr=1.0"],
     "'optim.lr' can't change when a run is evaluated.*would not be of this run"),
    (["--workdir", "RUN", "--config.evals.probe.shots=(1,)"], "did you mean 'probes'"),
    (["--workdir", "RUN", "--config.evals.geometry.examples=64"],
     "evals.geometry=.*\"kind\": .*or in a file that --evals names, such as configs/evaluate"),
    (["--workdir", "RUN", '--config.evals.geometry={"kind": "geometry", "example": 4}'],
     "did you mean 'evals.geometry.examples'"),
    (["--workdir", "RUN", "--config.evals.probes.shots=ten"], "shots is 'ten'"),
    (["--workdir", "RUN", "--config.evals.probes.kind=fewshots"], "expected one of .*'fewshot'"),
    (["--workdir", "RUN", "--config.eval_batch_size=0"], "a whole number, at least 1"),
    (["--workdir", "RUN", "--config.mesh.data=3"], "devices, here are 8"),
    (["--workdir", "RUN", "--config.evals={}"], "nothing to evaluate.*--evals"),
])
def test_mistakes_are_told_in_a_line_and_leave_nothing(trained, tmp_path, capsys, arguments,
                                                       message):
  places = {"RUN": trained, "PARENT": trained.parent, "OUT": tmp_path / "out"}
  code, said = _said(capsys, *(places.get(argument, argument) for argument in arguments))
  assert code == 1 and said.startswith("error: ") and said.count("\n") == 1
  assert re.search(message, said), said
  assert not (trained / "evaluations").exists() and not (tmp_path / "out").exists()


def test_every_section_of_the_shipped_evaluators_is_known():
  for path in (ROOT / "configs/evaluate").glob("*.py"):
    sections = configuring.plain(configuring.load(str(path)))
    assert {section["kind"] for section in sections.values()} <= set(evaluators.KINDS)
