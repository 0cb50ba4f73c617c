"""Two variants of a task never meet: neither in a mean, nor a rank, nor under one name."""
import numpy as np
import planted
import pyarrow as pa
import pytest
from pyarrow import parquet

from big_transfer.study import __main__ as command
from big_transfer.study import analysis, by_setting, external, figures, findings, table
from big_transfer.study.figures import scatter

FULL, SMALL = "full", "vtab1k"
RUNS = 12


def _row(task, value, **changes):
  return {"step": 400, "evaluator": "fewshot", "task": task, "setting": "fewshot", "split": "test",
          "shots": 10, "seed": 0, "layer": "pre_logits", "l2": 1024.0, "metric": "accuracy",
          "value": value} | changes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """A study whose cifar100 rises with upstream accuracy in one variant and falls in the other.

  In full it is above .6 and in vtab1k below .4, so that a mean over both lies between.
  """
  root = tmp_path_factory.mktemp("variants")
  us_N = np.linspace(0.1, 0.9, RUNS)
  wiggle_N = 0.004 * np.sin(7.0 * np.arange(RUNS))  # points on one line have no scatter to fit
  for i, us in enumerate(us_N):
    ds = {FULL: 0.6 + 0.35 * us ** 0.5 + wiggle_N[i], SMALL: 0.35 - 0.3 * us + wiggle_N[i]}
    rows = [{"step": 400, "evaluator": "upstream", "metric": "accuracy", "value": float(us)}]
    for variant in (FULL, SMALL):
      for seed in range(3):
        rows += [_row("cifar100", float(ds[variant] + 0.001 * seed), variant=variant, seed=seed,
                      layer=layer) for layer in ("stem", "block_00", "pre_logits")]
      rows.append(_row("cifar100", float(ds[variant] + 0.02), variant=variant, shots=None,
                       evaluator="linear", setting="linear", l2=1.0))
      rows.append(_row("pets", float(us / 2), variant=variant))
    planted.write_run(root / "runs", i, us, rows)
  study = command.study(f"{root}/runs/*", root / "out", resamples=20, figures=None,
                        reference="paper")
  return study, root / "out"


def _accuracies(line):
  """The accuracies on the task itself that a line of a table holds."""
  return [line[name] for name in ("ds", "ds_best", "ds_worst", "ds_mean", "best_ds", "last_ds",
                                  "best_layer_ds") if line.get(name) is not None]


def test_every_table_keeps_them_apart(found):
  study, out = found
  checked = set()
  for path in sorted(out.glob("*.parquet")):
    content = parquet.read_table(path)
    if not {"task", "variant"} <= set(content.column_names) or path.stem == "rows":
      continue
    for line in content.to_pylist():
      if line.get("on_task", line["task"]) == "cifar100":  # of peers: whose accuracy it is
        assert line["variant"] in (FULL, SMALL), (path.stem, line)
        if path.stem == "robust_curves":
          continue  # a curve goes on beyond the runs
        for value in _accuracies(line):
          assert value > 0.6 if line["variant"] == FULL else value < 0.4, (path.stem, line)
          checked.add(path.stem)
  assert checked >= {"points", "fits", "peers", "settings", "layers", "best_layers", "explained"}
  assert {cell.variant for cell in study.points.cells} == {FULL, SMALL}


def test_ranks_and_effects_are_of_one_variant_each(found):
  study, _ = found
  lines = study.tables["spearman"]
  assert {(line["variant"], line["setting"]) for line in lines} == {
      (FULL, "fewshot"), (SMALL, "fewshot"), (FULL, "linear"), (SMALL, "linear")}
  sign = {line["variant"]: line["correlation"] for line in lines
          if (line["row"], line["column"], line["setting"]) == ("cifar100", "upstream", "fewshot")}
  assert sign == {FULL: pytest.approx(1.0), SMALL: pytest.approx(-1.0)}
  explained = {(line["variant"], line["setting"]): line["correlation"]
               for line in study.tables["explained"] if line["task"] == "cifar100"}
  assert explained[FULL, "fewshot"] > 0.9 and explained[SMALL, "fewshot"] < -0.9
  gains = [line for line in study.tables["settings"] if line["setting"] == "linear"]
  assert len(gains) == 2
  for line in gains:  # a linear probe is .019 above the mean of three seeds in either variant
    assert line["gain"] == pytest.approx(0.019) and line["pairs"] == RUNS


def test_the_study_says_that_there_are_two(found):
  study, out = found
  assert list(study.census.warnings) == [
      f"task {task} was measured in 2 variants, full, vtab1k: they are kept apart, as if they "
      "were different tasks" for task in ("cifar100", "pets")]
  page = (out / "report.html").read_text()
  assert "cifar100 (vtab1k)" in page and "was measured in 2 variants" in page


def test_sentences_on_settings_are_of_one_variant_each(found):
  study, out = found
  said = findings.settings(study.tables, "fractals", 10)
  for words in ("Linear probe, all examples", "Linear probe, all examples (vtab1k)"):
    assert f"{words}, against few-shot probes (10 shots) of the same runs, 1 task:" in said
  over = [line for line in study.tables["settings_claims"] if line["task"] == by_setting.EVERY]
  assert [(line["variant"], line["runs"]) for line in over] == [(FULL, 1), (SMALL, 1)]
  assert "as if they were different tasks; task pets" in (out / "report.html").read_text()


def test_published_laws_are_of_the_full_task_by_few_shot_probes_alone(found):
  drawn = {cell: bool(scatter.references_of(cell, "paper")) for cell in (
      table.Cell("u", "cifar100", variant, setting, shots)
      for variant in (None, FULL, SMALL) for setting in (None, "fewshot", "finetune", "linear")
      for shots in (25, 10, None))}
  assert {cell for cell, is_drawn in drawn.items() if is_drawn} == {
      table.Cell("u", "cifar100", variant, setting, shots)
      for variant in (None, FULL) for setting in (None, "fewshot") for shots in (25, None)}


def test_figures_name_the_variant(found):
  study, _ = found
  names = [name for name, _ in figures.catalogue(study.points, study.tables, shots=10,
                                                  which="main")]
  assert "cifar100" in names and "cifar100_vtab1k" in names and "cifar100_linear" in names


def test_tasks_without_a_fit_are_counted_by_variant(tmp_path):
  for i in range(3):
    planted.write_run(tmp_path / "runs", i, 0.5, [
        {"step": 400, "evaluator": "upstream", "metric": "accuracy", "value": 0.2 + 0.1 * i},
        *(_row("cifar100", 0.4, variant=variant) for variant in (FULL, SMALL))])
  study = command.study(f"{tmp_path}/runs/*", tmp_path / "out", resamples=20, figures=None)
  assert [(line["task"], line["points"]) for line in study.tables["left_out"]] == [
      ("cifar100", 3), ("cifar100 (vtab1k)", 3)]


def test_a_table_of_results_with_a_column_of_variants(tmp_path):
  path = tmp_path / "t.csv"
  lines = [f"m{i},{0.1 * i:.2f},{ds},{variant}" for i in range(1, 5)
           for variant, ds in ((FULL, 0.6 + 0.05 * i), (SMALL, 0.3 - 0.05 * i))]
  path.write_text("\n".join(["model,us,acc,kind", *lines]) + "\n")
  study = command.study(
      None, tmp_path / "out", tables=[path], figures=None, resamples=20,
      columns="us=us,ds=acc,model=model,variant=kind,task:=cifar100,upstream:=jft")
  assert [cell.variant for cell in study.points.cells] == [FULL, SMALL]
  assert study.points.view(0).ds.min() > 0.6 > 0.4 > study.points.view(1).ds.max()
  assert any("cifar100 was measured in 2 variants" in note for note in study.census.warnings)


def test_a_variant_that_is_not_named_is_not_the_full_one():
  points = table.assemble(
      pa.table({"run_id": ["a"], "upstream": ["u"]}),
      pa.table({"run_id": ["a", "a"], "task": ["t", "t"], "variant": [None, FULL],
                "us": [0.5, 0.5], "ds": [0.2, 0.8], "last": [True, True]}))
  assert len(points.cells) == 2
  assert analysis.several_variants(points) == (
      "task t was measured in 2 variants, one not named, full: they are kept apart, as if they "
      "were different tasks",)
  assert external.LEFT_OUT_COLUMNS.keys() == {"source", "task", "points", "reason"}
