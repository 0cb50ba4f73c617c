"""Published files that say themselves which model they are of, suites, and what is fine-tuned."""
import functools
import json
import pathlib
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from big_transfer import evaluate as evaluate_lib
from big_transfer import train as train_lib
from big_transfer import trees
from big_transfer.data import tasks
from big_transfer.models import shapes
from big_transfer.runs import records
from big_transfer.study import gather, table, unused
from big_transfer.training import program
from tests import toy

PROBES = {"probes": dict(kind="fewshot", tasks=("digits",), shots=(1, 5), seeds=(0, 1))}
STATED = dict(upstream="imagenet21k", upstream_accuracy=0.5, upstream_source="a paper, table 3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder of a run, and of it fine-tuned on the digits."""
  root = tmp_path_factory.mktemp("runs")
  train_lib.train(toy.config(), root / "trained")
  upstream = dict(kind="classification", every=6)
  train_lib.train(toy.config(
      init={"source": str(root / "trained")}, upstream="digits", total_steps=3, seed=3,
      evals={"test": upstream}), root / "tuned")
  return root


@pytest.fixture(scope="module")
def npz(runs, tmp_path_factory):
  path = tmp_path_factory.mktemp("published") / "small.npz"
  state = ocp.StandardCheckpointer().restore(runs / "trained/checkpoints/6/state")
  np.savez(path, **{key: np.asarray(value)
                    for key, value in trees.flatten(state["params"]).items()})
  return path


@pytest.fixture
def suite(monkeypatch, tmp_path):
  """A suite of a task that is here and one that isn't; the path where its data would be."""
  path = tmp_path / "none.npz"
  monkeypatch.setitem(tasks.SUITES, "two", ("digits", {"name": "gone", "source": f"npz:{path}"}))
  return path


def _fewshot(folder, **having):
  return [row for row in records.read_rows(folder) if row["evaluator"] == "fewshot"
          and all(row[key] == value for key, value in having.items())]


def test_a_file_alone_says_its_model_and_is_measured_as_the_run_was(runs, npz, tmp_path, capsys):
  found = evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "out",
                                overrides={"fit": "squash"})
  own = [row | {"step": 0, "examples": None} for row in _fewshot(runs / "trained", step=6)]
  assert records.read_rows(tmp_path / "out") == own != []
  assert found["model"]["label"] == records.read_run(runs / "trained")["model"]["label"]
  assert found["upstream"] == {"name": None, "classes": 4} and found["name"] == "small"
  config = records.read_config(tmp_path / "out")
  assert config["image_size"] == 16 and config["model"]["pool"] == "gap"
  assert not {"optim", "batch_size", "total_steps"} & config.keys()
  assert "a study has no place for it" in capsys.readouterr().out


def test_a_suite_of_which_a_task_is_missing(npz, suite, tmp_path):
  quick = {"evals.probes.shots": (1,), "evals.probes.seeds": (0,)}
  with pytest.raises(ValueError, match="(?s)gone.*none.npz.*--skip-missing"):
    evaluate_lib.evaluate(init=npz, suite="two", out=tmp_path / "out", overrides=quick)
  assert not (tmp_path / "out").exists()
  evaluate_lib.evaluate(init=npz, suite="two", skip_missing=True, out=tmp_path / "out",
                        overrides=quick)
  rows = records.read_rows(tmp_path / "out")
  assert [row["layer"] for row in rows if row["task"] == "digits"] == [
      "stem", "block_00", "pre_logits"]
  skipped, = [row for row in rows if row["task"] == "gone"]
  assert skipped["status"] == "skipped" and skipped["value"] is None and "none.npz" in skipped[
      "reason"]


def test_a_task_that_was_skipped_is_measured_once_its_data_is_there(npz, suite, tmp_path, capsys):
  evaluate = functools.partial(evaluate_lib.evaluate, init=npz, suite="two", skip_missing=True,
                               out=tmp_path / "out", overrides={
                                   "evals.probes.shots": (1,), "evals.probes.seeds": (0,)})
  assert evaluate()["skipped"] == [["gone", "full"]]
  before = records.read_rows(tmp_path / "out")
  assert "skipped, their data isn't here: gone" in capsys.readouterr().out
  evaluate()
  assert "nothing to do" in capsys.readouterr().out
  rng = np.random.default_rng(0)
  np.savez(suite, images=rng.integers(0, 255, (40, 16, 16, 3), np.uint8), labels=np.arange(40) % 2)
  assert evaluate()["skipped"] is None
  assert "'gone' was skipped before, and its data is here now" in capsys.readouterr().out
  rows = records.read_rows(tmp_path / "out")
  assert {row["task"]: row["status"] for row in rows} == {"digits": "ok", "gone": "ok"}
  assert [row for row in rows if row["task"] == "digits"] == [
      row for row in before if row["task"] == "digits"]


def test_a_runs_own_probes_take_the_tasks_of_a_suite(runs, suite, tmp_path):
  run = shutil.copytree(runs / "trained", tmp_path / "run")
  found = evaluate_lib.evaluate(run, suite="two", skip_missing=True)
  rows = records.read_rows(found["folder"])
  assert found["evaluates"] == records.read_run(run)["id"]
  assert [row for row in rows if row["task"] == "digits"] == _fewshot(run, step=6)
  assert {row["task"] for row in rows} == {"digits", "gone"}  # and what isn't a probe, not again
  gather.gather([str(run)], tmp_path / "rows.parquet")
  line, = unused.accuracies(tmp_path / "rows.parquet")
  assert line["task"] == "gone" and line["reason"].startswith("skipped in 1 run: ")


@pytest.mark.slow  # compiles another model
def test_another_image_size_resizes_the_positions(npz, tmp_path):
  found = evaluate_lib.evaluate(init=npz, evals=PROBES, image_size=24, out=tmp_path / "out",
                                overrides={"evals.probes.shots": (1,)})
  assert records.read_config(tmp_path / "out")["image_size"] == 24
  positions = (24 // 8) ** 2 - (16 // 8) ** 2  # of width 16, in patches of 8
  of_run = evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "same",
                                 overrides={"evals.probes.shots": (1,)})
  assert found["parameters"] - of_run["parameters"] == 16 * positions


def test_a_stated_upstream_accuracy_gives_a_place_in_a_study(npz, tmp_path):
  found = evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "out", **STATED)
  row, = [row for row in records.read_rows(tmp_path / "out") if row["evaluator"] == "upstream"]
  assert (row["value"], row["status"], row["reason"], row["task"]) == (
      0.5, "ok", "stated: a paper, table 3", "imagenet21k")
  assert found["upstream"] == {"name": "imagenet21k", "classes": 4, "stated": "a paper, table 3"}
  gather.gather([str(tmp_path / "out")], tmp_path / "rows.parquet")
  for point in table.points(tmp_path / "rows.parquet").table().to_pylist():
    assert point["us"] == 0.5 and point["us_error"] is None and point["upstream"] == "imagenet21k"
    assert point["us_stated"] == "a paper, table 3"
  with pytest.raises(ValueError, match="another run or evaluation"):
    evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "out",
                          **STATED | {"upstream_accuracy": 0.6})


def test_upstream_data_of_ones_own_is_described_as_a_task_is(runs, npz, tmp_path):
  upstream = toy.config().upstream.to_dict()
  evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "out", overrides={"fit": "squash"},
                        upstream=json.dumps(upstream))
  own, measured = ([row["value"] for row in records.read_rows(folder)
                    if (row["evaluator"], row["metric"]) == ("upstream", "accuracy")][-1]
                   for folder in (runs / "trained", tmp_path / "out"))
  assert own == measured
  with pytest.raises(ValueError, match="--upstream {.name. is no JSON"):
    evaluate_lib.evaluate(init=npz, evals=PROBES, out=tmp_path / "bad", upstream='{"name"')


@pytest.mark.slow  # compiles another model
def test_a_resnet_for_images_of_any_size_asks_for_one(tmp_path):
  net = program.network(image_size=16, classes=4, model=dict(
      name="resnet", depths=(1,), width=0.0625, root_kernel=3, root_stride=2, root_pool=True))
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "a.npz", **{name: rng.normal(size=leaf.shape).astype(np.float32)
                                  for name, leaf in trees.flatten(net.shapes).items()})
  with pytest.raises(ValueError, match="resnet for images of any size: .*--image-size"):
    evaluate_lib.evaluate(init=tmp_path / "a.npz", evals=PROBES, out=tmp_path / "out")
  found = evaluate_lib.evaluate(init=tmp_path / "a.npz", evals=PROBES, out=tmp_path / "out",
                                image_size=16, overrides={"evals.probes.shots": (1,)})
  assert found["parameters"] == net.parameters
  assert found["flops_per_example"] == shapes.flops_per_example(net.module, (16, 16, 3))


def test_a_fine_tuned_runs_rows_are_its_own_and_its_accuracy_joins(runs, tmp_path):
  root = shutil.copytree(runs, tmp_path / "runs")
  found = evaluate_lib.evaluate(root / "tuned")
  folder = pathlib.Path(found["folder"])
  own = [row for row in records.read_rows(root / "tuned") if row["evaluator"] == "finetune"]
  assert records.read_rows(folder) == [row for row in own if row["step"] == 3] != []
  assert own[0]["seed"] == 3 and own[0]["setting"] == "finetune"
  census = gather.gather([f"{root}/*"], tmp_path / "rows.parquet")
  assert census.finished == census.joined == 1 and not census.left_out
  points = {point["setting"]: point for point in
            table.points(tmp_path / "rows.parquet").table().to_pylist() if point["shots"] != 1}
  accuracy, = [row["value"] for row in own if row["step"] == 3 and row["metric"] == "accuracy"]
  assert points.keys() == {"fewshot", "finetune"} and round(
      points["finetune"]["ds"] - accuracy, 9) == 0
  assert {point["run_id"] for point in points.values()} == {
      records.read_run(root / "trained")["id"]}
  assert {point["upstream"] for point in points.values()} == {"toy"}


@pytest.mark.parametrize("arguments, message", [
    (["--init", "NPZ"], "give --out"),
    (["--init", "NPZ", "--out", "OUT"], "name what to measure, by --suite"),
    (["--init", "RUN", "--out", "OUT", "--suite", "vtab"], "is no .npz: name the run by --workdir"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "vtap"], "did you mean"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--upstream", "imagenet1k"],
     "imagenet"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--upstream", "digits"],
     "4 logits with the labels of 'digits', which has 10"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--upstream-accuracy", "0.5"],
     "name what it was measured on by --upstream"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--upstream", "x",
      "--upstream-accuracy", "50", "--upstream-source", "y"], "a fraction from 0 to 1"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--upstream", "x",
      "--upstream-accuracy", "0.5"], "go together"),
    (["--init", "NPZ", "--out", "OUT", "--evals", "LAYERS", "--config.evals.probes.tasks=('digits',)"
      ], "geometry.* compares the model's 4 logits .*--upstream"),
    (["--init", "NPZ", "--out", "OUT", "--suite", "builtin", "--image-size", "0"],
     "image_size.* is 0: expected a whole number, at least 1"),
    (["--workdir", "RUN", "--upstream", "digits"], "goes with --init FILE.npz alone"),
    (["--workdir", "RUN", "--image-size", "8"], "--config.image_size"),
    (["--workdir", "RUN", "--upstream-accuracy", "0.5", "--upstream-source", "y"],
     "a run's is measured")])
def test_mistakes_are_told_in_a_line_and_leave_nothing(runs, npz, tmp_path, capsys, arguments,
                                                       message):
  layers = pathlib.Path(__file__).parents[1] / "configs/evaluate/layers.py"
  places = {"RUN": runs / "trained", "NPZ": npz, "OUT": tmp_path / "out", "LAYERS": layers}
  with pytest.raises(SystemExit) as stop:
    evaluate_lib.main([str(places.get(argument, argument)) for argument in arguments])
  said = capsys.readouterr().err
  assert stop.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1
  assert re.search(message, said), said
  assert not (tmp_path / "out").exists()
