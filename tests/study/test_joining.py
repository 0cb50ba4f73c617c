"""Fine-tuning runs join the run they began from, once, and what doesn't is counted."""
import json
import re
import subprocess
import sys

import duckdb
import planted
import planted_tuned
import pytest

from big_transfer.study import gather, table, unused

UPSTREAM = {"step": 400, "examples": 51200, "evaluator": "upstream", "task": "fractals",
            "split": "test", "metric": "accuracy", "value": 0.5}
PROBE = {"step": 400, "evaluator": "fewshot", "task": "digits", "variant": "full",
         "setting": "fewshot", "shots": 5, "layer": "pre_logits", "l2": 1024.0,
         "metric": "accuracy", "value": 0.3}


@pytest.fixture
def base(tmp_path):
  return planted.write_run(tmp_path / "runs", 0, 0.5, [
      UPSTREAM | {"step": 200}, UPSTREAM, PROBE])


@pytest.fixture
def tune(tmp_path):
  """Writes a fine-tuning run beside the others."""
  return lambda name, base, rows, **options: planted_tuned.write(
      tmp_path / "runs", name, base, rows, **options)


@pytest.fixture
def study(tmp_path):
  """(census, {(run_id, task, setting, shots): a point's dict}) of all runs."""
  def study(recipe=""):
    rows = tmp_path / "rows.parquet"
    census = gather.gather([f"{tmp_path}/runs/*"], rows, recipe)
    return census, {(point["run_id"], point["task"], point["variant"], point["setting"],
                     point["shots"]): point for point in table.points(rows).table().to_pylist()}
  return study


def _tuned(points, run=0, task="digits", variant="full", setting="finetune"):
  return points[f"{run:08x}", task, variant, setting, None]


def test_the_last_accuracy_on_the_test_split_is_the_pretrained_runs(base, tune, study, tmp_path):
  folder = tune("a", base, [
      planted_tuned.row(0.4, step=10), planted_tuned.row(0.8),
      planted_tuned.row(0.95, split="validation"), planted_tuned.row(0.6, metric="loss"),
      PROBE | {"step": 30, "value": 0.99}, UPSTREAM | {"step": 30, "value": 0.98}])
  census, points = study()
  assert len(points) == 2 and census.finished == 1 and census.joined == 1 and not census.left_out
  point = _tuned(points)
  assert point["ds"] == 0.8 and point["us"] == 0.5 and point["step"] == 400 and point["last"]
  assert point["examples_used"] == 1000 and point["ds_error"] is None
  rows = duckdb.read_parquet(str(tmp_path / "rows.parquet"))
  found = rows.filter("evaluator = 'finetune' AND metric = 'accuracy'").fetchall()
  line = dict(zip(rows.columns, found[0]))
  assert len(found) == 1 and line["measured_in"] == str(folder) and line["examples"] == 51200
  assert line["run_folder"] == str(base) and line["upstream"] == "fractals"


def test_seeds_are_averaged_and_their_spread_is_the_error(base, tune, study):
  for seed, value in enumerate((0.7, 0.8, 0.9)):
    tune(f"s{seed}", base, [planted_tuned.row(value, seed=seed)], seed=seed)
  _, points = study()
  point = _tuned(points)
  assert point["ds"] == pytest.approx(0.8) and point["ds_seeds"] == 3
  assert point["ds_error"] == pytest.approx(0.1 / 3 ** 0.5)  # standard deviation 0.1, three seeds


def test_the_same_recipe_and_seed_counts_once(base, tune, study):
  tune("a", base, [planted_tuned.row(0.7)])
  tune("b", base, [planted_tuned.row(0.9)], config={"log_every": 7, "mesh": {"data": 2}})
  census, points = study()
  assert _tuned(points)["ds"] == 0.7
  assert census.left_out == {"fine-tuned again with the same recipe and seed": 1}


@pytest.mark.parametrize("options, reason", [
    ({"identity": "elsewhere"}, "fine-tuned from a run that isn't here"),
    ({"step": 200}, "fine-tuned from an earlier step of its run"),
    ({"identity": "tuned-a"}, "fine-tuned from a fine-tuned run"),
    ({"identity": "gone", "run": {"setting": "finetune"}}, "fine-tuned from a fine-tuned run"),
    ({"identity": "00000007"}, "fine-tuned from a run that isn't finished"),
    ({"status": "running"}, "running")])
def test_what_is_no_transfer_of_a_gathered_run_is_left_out(base, tune, study, tmp_path, options,
                                                           reason):
  planted.write_run(tmp_path / "runs", 7, 0.5, [], status="failed")
  tune("a", base, [planted_tuned.row(0.8)])
  tune("b", base, [planted_tuned.row(0.9)], seed=1, **options)
  census, points = study()
  assert _tuned(points)["ds"] == 0.8 and census.joined == 1
  assert census.left_out == {"failed": 1, reason: 1}


def test_a_run_without_the_accuracy_is_counted(base, tune, study):
  tune("a", base, [planted_tuned.row(0.8, split="train"), PROBE | {"step": 30}])
  census, points = study()
  assert len(points) == 1 and census.joined == 0
  assert census.left_out == {"fine-tuning run without an accuracy on the test split": 1}


def test_of_recipes_that_of_most_runs_counts_and_another_can_be_chosen(base, tune, study,
                                                                       tmp_path):
  other = planted.write_run(tmp_path / "runs", 1, 0.6, [UPSTREAM, PROBE])
  low = {"optim": {"lr": 0.001}}
  tune("high", base, [planted_tuned.row(0.9)])
  tune("low", base, [planted_tuned.row(0.4)], config=low)
  tune("low-other", other, [planted_tuned.row(0.5)], config=low)
  tune("high-pets", base, [planted_tuned.row(0.2, task="pets")])
  tune("low-pets", base, [planted_tuned.row(0.6, task="pets")], config=low)
  with pytest.warns(UserWarning) as caught:
    census, points = study()
  assert len(caught) == 2 and re.search(
      r"digits \(finetune\): .*lr=0.001 \(2 pre-trained runs\); optim.lr=0.01 \(1 pre-trained "
      r"run\): 1 fine-tuning run left out", str(caught[0].message))
  assert _tuned(points)["ds"] == 0.4 and _tuned(points, 1)["ds"] == 0.5
  # A tie goes to the first by alphabet: optim.lr=0.001 comes before optim.lr=0.01.
  assert _tuned(points, task="pets")["ds"] == 0.6
  assert census.left_out == {"fine-tuned by another recipe": 2} and census.joined == 3
  _, points = study("optim.lr=0.01")
  assert _tuned(points)["ds"] == 0.9 and _tuned(points, task="pets")["ds"] == 0.2
  assert len(points) == 4


def test_recipes_of_different_runs_are_told_where_none_is_left_out(base, tune, study, tmp_path):
  other = planted.write_run(tmp_path / "runs", 1, 0.6, [UPSTREAM, PROBE])
  tune("a", base, [planted_tuned.row(0.4)])
  tune("b", other, [planted_tuned.row(0.5)], config={"total_steps": 60})
  with pytest.warns(UserWarning, match="total_steps=30 .*what is compared differs in them"):
    census, points = study()
  assert census.joined == 2 and not census.left_out and _tuned(points, 1)["ds"] == 0.5


def test_the_model_a_recipe_has_from_its_run_is_no_part_of_it(base, tune, study, tmp_path):
  other = planted.write_run(tmp_path / "runs", 1, 0.6, [UPSTREAM, PROBE], model={
      "family": "mixer", "label": "m", "name": "mixer", "depth": 2})
  tune("a", base, [planted_tuned.row(0.4)], config={"model": {"family": "vit"}})
  tune("b", other, [planted_tuned.row(0.5)], config={"model": {"name": "mixer", "depth": 2}})
  census, _ = study()
  assert census.joined == 2 and not census.warnings


@pytest.mark.parametrize("recipe, words", [
    ("optim.lr", "expected KEY=VALUE"), ("optim.rate=1", "their keys are .*optim.lr"),
    ("optim.lrr=1", "did you mean optim.lr"), ("optim.lr=3", "there are 0.01")])
def test_a_recipe_that_is_none_says_what_there_is(base, tune, study, recipe, words):
  tune("a", base, [planted_tuned.row(0.4)])
  with pytest.raises(ValueError, match=words):
    study(recipe)


def test_only_fine_tuning_runs_are_no_study(base, tune, tmp_path):
  folder = tune("a", base, [planted_tuned.row(0.4)])
  with pytest.raises(ValueError, match="found 1 fine-tuned from a run that isn't here"):
    gather.gather([str(folder)], tmp_path / "rows.parquet")


def test_a_record_that_says_nothing_of_its_source_names_the_file(base, tune, study):
  folder = tune("a", base, [planted_tuned.row(0.4)])
  run = json.loads((folder / "run.json").read_text())
  (folder / "run.json").write_text(json.dumps(run | {"pretrained": None}))
  with pytest.raises(ValueError, match="a/run.json: .*'pretrained' should say"):
    study()


def test_runs_that_go_on_from_others_are_runs_of_their_own(base, tune, study):
  """init "full", or a head that is kept: run.json says setting "upstream"."""
  tune("a", base, [UPSTREAM | {"step": 30}, PROBE | {"step": 30}], setting="upstream")
  census, points = study()
  assert census.finished == 2 and census.joined == 0 and len(points) == 2


def test_a_linear_probe_counts_before_a_head_that_was_trained(base, tune, study, tmp_path):
  with open(base / "metrics.jsonl", "a") as file:
    file.write(json.dumps(PROBE | {"evaluator": "linear", "setting": "linear", "shots": None,
                                   "l2": 3.0, "value": 0.55}) + "\n")
  tune("a", base, [planted_tuned.row(0.9, setting="linear")], setting="linear")
  tune("b", base, [planted_tuned.row(0.7, setting="linear", task="pets")], setting="linear")
  _, points = study()
  assert _tuned(points, setting="linear")["ds"] == 0.55  # at a strength of its own choice
  assert _tuned(points, task="pets", setting="linear")["ds"] == 0.7
  line, = unused.accuracies(tmp_path / "rows.parquet")
  assert (line["task"], line["points"]) == ("digits (linear)", 1)
  assert line["reason"].startswith("not used in 1 run: a linear probe")


def test_skipped_tasks_are_counted_by_reason(base, tmp_path):
  other = planted.write_run(tmp_path / "runs", 1, 0.6, [UPSTREAM, PROBE])
  for folder in (base, other):
    with open(folder / "metrics.jsonl", "a") as file:
      file.write(json.dumps({**PROBE, "task": "pets", "variant": "vtab1k", "value": None,
                             "status": "skipped", "reason": "not prepared"}) + "\n")
  gather.gather([f"{tmp_path}/runs/*"], tmp_path / "rows.parquet")
  assert unused.accuracies(tmp_path / "rows.parquet") == [{
      "source": "rows", "task": "pets (vtab1k)", "points": 2,
      "reason": "skipped in 2 runs: not prepared"}]
  assert {cell.task for cell in table.points(tmp_path / "rows.parquet").cells} == {"digits"}


def _published(folder, identity):
  """A record as `evaluate --init FILE.npz` leaves it."""
  folder.mkdir(parents=True)
  (folder / "run.json").write_text(json.dumps({
      "id": folder.name, "name": "published", "status": "finished", "step": 0,
      "parameters_from": {"identity": identity, "step": 0}, "model": {"family": "vit"},
      "upstream": {"name": "imagenet21k", "classes": 21843, "stated": "a paper, table 3"}}))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(one | {"step": 0}) + "\n" for one in (
      UPSTREAM | {"status": "ok", "reason": "stated: a paper, table 3"}, PROBE)))
  return folder


def test_fine_tuning_from_a_published_file_joins_what_was_measured_of_it(base, tune, study,
                                                                         tmp_path):
  _published(tmp_path / "runs/npz", "f" * 64)
  tune("a", base, [planted_tuned.row(0.8)], identity="f" * 64, step=0, run={})
  census, points = study()
  point = points["npz", "digits", "full", "finetune", None]
  assert point["ds"] == 0.8 and point["us_stated"] == "a paper, table 3" and point["step"] == 0
  assert point["us_error"] is None and census.finished == 2 and not census.warnings


def test_the_model_a_recipe_has_from_a_published_file_is_no_part_of_it(base, tune, study,
                                                                       tmp_path):
  for name, depth in (("small", 2), ("large", 24)):
    folder = _published(tmp_path / "runs" / name, name)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"model": {"family": "vit", "depth": depth}}))
    for lr in (0.01, 0.1)[name == "small":]:
      tune(f"{name}-{lr}", base, [planted_tuned.row(lr)], identity=name, step=0, run={},
           config={"model": {"depth": depth}, "optim": {"lr": lr}})
  with pytest.warns(UserWarning, match=r"digits \(finetune\): runs were fine-tuned by 2 recipes, "
                    r"optim.lr=0.1 \(2 pre-trained runs\); optim.lr=0.01 \(1 pre-trained run\)"):
    _, points = study()
  assert {points[name, "digits", "full", "finetune", None]["ds"]
          for name in ("small", "large")} == {0.1}


def test_parameters_that_count_twice_are_told(base, study, tmp_path):
  _published(tmp_path / "runs/of-run", "00000000")
  for name in ("one", "two"):
    _published(tmp_path / "runs" / name, "f" * 64)
  with pytest.warns(UserWarning) as caught:
    study()
  texts = [str(warning.message) for warning in caught]
  assert len(texts) == 2
  assert any("of-run holds" in text and "run_0000 is of" in text and "--workdir" in text
             for text in texts)
  assert any("two holds" in text and "one is of" in text for text in texts)


def test_a_task_that_was_skipped_and_then_measured_is_not_left_out(base, study, tmp_path):
  skipped = PROBE | {"task": "pets", "shots": None, "value": None, "status": "skipped",
                     "reason": "not prepared"}
  other = planted.write_run(tmp_path / "runs", 1, 0.6, [
      UPSTREAM, PROBE, skipped | {"step": 200}, skipped])
  with open(base / "metrics.jsonl", "a") as file:
    for row in (skipped, PROBE | {"task": "pets"},  # as an evaluation measures it afterwards
                PROBE | {"value": float("nan"), "step": 200, "status": "non-finite"}):
      file.write(json.dumps(row) + "\n")
  study()
  line, = unused.accuracies(tmp_path / "rows.parquet")
  assert (line["task"], line["points"]) == ("pets", 1)  # of the other run, once for both steps
  assert line["reason"] == "skipped in 1 run: not prepared" and other.exists()


def test_a_linear_probe_measured_again_counts_once_whatever_strength_it_found(base, study):
  run = json.loads((base / "run.json").read_text())
  for name, l2, value in (("a", 3.0, 0.5), ("b", 30.0, 0.9)):
    folder = base / "evaluations" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({
        "id": name, "status": "finished", "evaluates": run["id"]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(PROBE | {
        "evaluator": "linear", "setting": "linear", "shots": None, "l2": strength, "seed": 0,
        "layer": layer, "value": value}) + "\n" for layer, strength in (
            ("pre_logits", l2), ("stem", 1.0))))
  _, points = study()
  assert _tuned(points, setting="linear")["ds"] == 0.5
  assert _tuned(points, setting="linear")["ds_seeds"] == 1


@pytest.mark.slow  # 2,000 files
def test_reading_many_fine_tuning_runs_takes_little_memory(base, tune, tmp_path):
  """DuckDB, told to keep the order of rows, held 0.2 MB for each file: 25 GB for 5,000 runs."""
  for i in range(2000):
    tune(f"t{i}", base, [planted_tuned.row(0.5, task=f"task {i}")])
  # Not ru_maxrss, which begins at what this process holds.
  script = ("import re, sys; from big_transfer.study import gather; "
            "gather.gather(sys.argv[1:2], sys.argv[2]); "
            "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])")
  done = subprocess.run([sys.executable, "-c", script, f"{tmp_path}/runs/*",
                         str(tmp_path / "rows.parquet")], check=True, capture_output=True,
                        text=True)
  assert int(done.stdout) < 400_000  # kB: 250,000 now, of which 100,000 are imports; then 600,000
