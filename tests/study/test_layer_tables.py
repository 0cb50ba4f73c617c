"""Accuracy by layer: against NumPy, on planted layers, and what is left out."""
import json

import numpy as np
import planted
import planted_layers
import pytest
from scipy import stats

from big_transfer.study import gather, layers, table


def _tables(folder, **options):
  gather.gather([f"{folder}/*"], folder / "rows.parquet")
  points = table.points(folder / "rows.parquet")
  return [lines.to_pylist() for lines in layers.tables(points, folder / "rows.parquet", **options)]


def _rows(values, layer_names, *, task="digits", us=0.5, step=400, l2=1024.0, seeds=None):
  """Rows of one run: values (layers, seeds)."""
  rows = [{"evaluator": "upstream", "task": "fractals", "split": "test", "metric": "accuracy",
           "value": us}]
  rows += [{"evaluator": "fewshot", "task": task, "setting": "fewshot", "shots": 5, "seed": s,
            "layer": layer, "l2": l2, "metric": "accuracy", "value": float(value)}
           for layer, of_layer in zip(layer_names, values)
           for s, value in zip(seeds or range(len(of_layer)), of_layer)]
  return [row | {"step": step} for row in rows]


def _judged(values):
  """(best, earliest, error of a difference) of one run, by analysis of variance.

  Values are (layers, seeds).
  """
  number, seeds = values.shape
  mean_L = values.mean(1)
  rest = values - mean_L[:, None] - values.mean(0) + values.mean()
  free = (number - 1) * (seeds - 1)
  error = np.sqrt(2.0 * np.square(rest).sum() / free / seeds)
  behind_L = mean_L.max() - mean_L
  return mean_L.argmax(), (behind_L <= stats.t.ppf(0.975, free) * error).argmax(), error


def test_lines_are_those_of_an_analysis_of_variance(tmp_path):
  rng = np.random.default_rng(0)
  names = ["stem", *(f"block_{i:02d}" for i in range(12)), "pre_logits"]
  given = 0.5 + 0.02 * np.minimum(np.arange(14), 9)[:, None] + rng.normal(
      0, 0.01, (20, 14, 3)) + rng.normal(0, 0.03, (20, 1, 3))
  for run, values in enumerate(given):
    planted.write_run(tmp_path, run, None, _rows(values, names))
  lines, best = _tables(tmp_path)
  assert len(lines) == 20 * 14 and len(best) == 20
  for run, (values, line) in enumerate(zip(given, best)):
    mine = lines[14 * run:14 * run + 14]
    at, earliest, error = _judged(values)
    assert [row["layer"] for row in mine] == names and line["run_id"] == mine[0]["run_id"]
    assert [row["depth"] for row in mine] == list(range(14)) and mine[7]["depth_share"] == 7 / 13
    np.testing.assert_allclose([row["ds"] for row in mine], values.mean(1))
    np.testing.assert_allclose([row["ds_error"] for row in mine], stats.sem(values, axis=1))
    assert (line["best_layer"], line["earliest_layer"]) == (names[at], names[earliest])
    assert line["earliest_depth_share"] == earliest / 13 and line["layers"] == 14
    assert line["best_ds"] == pytest.approx(values.mean(1).max())
    assert line["gain"] == pytest.approx(values.mean(1).max() - values[-1].mean())
    assert line["gain_error"] == (None if at == 13 else pytest.approx(error))
    assert (line["us"], line["status"], mine[0]["ds_seeds"]) == (0.5, "ok", 3)


def test_the_layer_from_which_accuracy_is_flat_is_found(tmp_path):
  planted_layers.write(tmp_path, factors=("head_rate",), geometry=False)
  _, best = _tables(tmp_path)
  found = {}
  for line in best:
    names = planted_layers.layers(line["family"])
    flat = planted_layers.TASKS[line["task"]][2]
    wanted = next(i for i in range(len(names)) if i / (len(names) - 1) >= flat)
    found.setdefault(line["task"], []).append(names.index(line["earliest_layer"]) - wanted)
  # 60 runs and numbers of shots a task; nominally one in 20 is late for each layer after.
  for task, late in found.items():
    assert len(late) == 60 and min(late) == 0, task
    assert np.mean(np.array(late) == 0) > 0.8, task
  assert all(late == 0 for late in found["fractals_unseen"])  # its best layer is the last


def test_with_one_probe_seed_the_best_is_the_earliest(tmp_path):
  planted.write_run(tmp_path, 0, None, _rows([[0.2], [0.7], [0.7], [0.6]], [
      "stem", "block_00", "block_01", "pre_logits"]))
  lines, (best,) = _tables(tmp_path)
  assert [line["ds_error"] for line in lines] == [None] * 4
  assert best["best_layer"] == best["earliest_layer"] == "block_00"  # the earlier of equals
  assert (best["status"], best["gain_error"]) == ("one seed", None) and best["reason"]
  assert best["gain"] == pytest.approx(0.1)


def test_seeds_that_all_agree_have_an_earliest_layer(tmp_path):
  planted.write_run(tmp_path, 0, None, _rows([[0.3] * 3, [0.7] * 3, [0.7] * 3], [
      "stem", "block_00", "pre_logits"]))
  _, (best,) = _tables(tmp_path)
  assert (best["earliest_layer"], best["gain"], best["status"]) == ("block_00", 0.0, "ok")


def test_what_counts_is_the_last_evaluation_at_one_strength(tmp_path):
  names = ["stem", "block_00", "pre_logits"]
  rows = _rows([[0.9] * 2] * 3, names, step=200)
  rows += _rows([[0.3, 0.3], [0.4, 0.4], [0.5, 0.5]], names)
  rows += [row for row in _rows([[0.8, 0.8]], ["block_00"], l2=1.0) if "l2" in row]
  rows += [row for row in _rows([[0.95, 0.95]], ["logits"]) if "layer" in row]
  rows += [row | {"status": "skipped"} for row in _rows([[0.95]], ["stem"], seeds=[7])[1:]]
  planted.write_run(tmp_path, 0, None, rows)
  planted.write_run(tmp_path, 1, None, _rows([[0.5, 0.6]], ["pre_logits"]))  # one layer
  lines, (best,) = _tables(tmp_path)
  assert [(line["layer"], line["ds"]) for line in lines] == list(zip(names, (0.3, 0.4, 0.5)))
  assert best["run_id"] == "00000000" and best["best_layer"] == "pre_logits"


def test_layers_compare_on_the_seeds_that_all_have(tmp_path):
  rows = _rows([[0.2, 0.3], [0.4, 0.5]], ["stem", "block_01"])
  rows += _rows([[0.6, 0.7, 0.1]], ["pre_logits"])[1:]
  planted.write_run(tmp_path, 0, None, rows)
  lines, (best,) = _tables(tmp_path)
  assert [line["ds"] for line in lines] == pytest.approx([0.25, 0.45, 0.65])
  assert {line["ds_seeds"] for line in lines} == {2}
  # The blocks that any row names say how deep the last layer is.
  assert [line["depth"] for line in lines] == [0, 2, 3] and best["best_ds"] == pytest.approx(0.65)


def test_batches_change_nothing(tmp_path, monkeypatch):
  planted_layers.write(tmp_path, factors=("head_rate",), families=("vit",), geometry=False, seeds=1)
  whole = _tables(tmp_path)
  monkeypatch.setattr(layers, "_BATCH", 100)
  for lines, wanted in zip(_tables(tmp_path), whole):
    assert len(lines) == len(wanted) in (5 * 6 * 6, 5 * 6)
    for line, other in zip(lines, wanted):  # but for last digits: the order of a sum's terms
      assert line == pytest.approx(other) and line.keys() == other.keys()


def test_a_folder_with_brackets_in_its_name_is_read(tmp_path):
  folder = tmp_path / "a[1]"
  planted_layers.write(folder, factors=("head_rate",), families=("vit",), geometry=False, seeds=1)
  gather.gather([f"{tmp_path}/*/*"], folder / "rows.parquet")
  points = table.points(folder / "rows.parquet")
  assert layers.tables(points, folder / "rows.parquet")[0].num_rows == 5 * 6 * 6
  run = json.loads((folder / "run_0000/run.json").read_text())
  assert run["id"] in layers.tables(points, folder / "rows.parquet")[1]["run_id"].to_pylist()
