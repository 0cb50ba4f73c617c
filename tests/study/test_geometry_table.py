"""The table of margins and norms: any run's, with no series of heads, in order of depth."""
import json

import planted_layers
import pytest

from big_transfer.study import explain, gather, geometry, table


def _points(folder):
  gather.gather([f"{folder}/*"], folder / "rows.parquet")
  return table.points(folder / "rows.parquet"), folder / "rows.parquet"


def _measured(folder, **wanted):
  """The value of a run's row with these values, at its last step."""
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  found = [row for row in rows if row.get("evaluator") == "geometry"
           and all(row.get(name) == value for name, value in wanted.items())]
  return max(found, key=lambda row: row["step"])["value"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """Two runs, which are no series of heads; one had its geometry measured early on too."""
  folder = tmp_path_factory.mktemp("geometry")
  folders = planted_layers.write(folder, seeds=1, factors=("head_rate",))
  kept = {folders[0].name: folders[0], folders[-1].name: folders[-1]}
  for other in folders:
    if other.name not in kept:
      for file in sorted(other.iterdir()):
        file.unlink()
      other.rmdir()
  with (folders[0] / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({
        "step": 100, "examples": 12800, "evaluator": "geometry", "task": "fractals",
        "variant": "full", "setting": "upstream", "status": "ok", "split": "train", "seed": 0,
        "layer": "stem", "quantile": 0.5, "metric": "margin", "value": 99.0}) + "\n")
  points, rows = _points(folder)
  return points, geometry.lines(points, rows), explain.tables(points, rows, [], []), kept


def test_lines_are_what_was_measured_last_by_depth(study):
  points, lines, _, kept = study
  folder_of = dict(zip(points.of_runs("run_id"), points.of_runs("run_folder")))
  lines = lines.to_pylist()
  assert len({line["run_id"] for line in lines}) == 2
  for name in folder_of:
    mine = [line for line in lines if line["run_id"] == name]
    family = mine[0]["family"]
    assert [line["layer"] for line in mine] == [*planted_layers.layers(family), "head"]
    assert [line["depth"] for line in mine] == list(range(len(mine)))
    folder = next(folder for key, folder in kept.items() if folder_of[name].endswith(key))
    for line in mine:
      assert line["step"] == 400
      assert line["l2_norm"] == _measured(folder, metric="l2_norm", group="all",
                                          layer=line["layer"])
      for metric in ("margin", "margin_normalised", "total_variance"):
        if line["layer"] == "head":
          assert line[metric] is None
        else:
          wanted = {"quantile": 0.5} if metric != "total_variance" else {}
          assert line[metric] == _measured(folder, metric=metric, layer=line["layer"], **wanted)


def test_it_needs_no_series_of_heads(study):
  _, lines, tables, _ = study
  assert "head_curves" not in tables and tables["geometry"].equals(lines)
  assert lines.column_names == list(geometry.COLUMNS)


def test_the_page_shows_the_best_run_of_each_family_and_of_equals_the_first():
  lines = [dict.fromkeys(geometry.COLUMNS) | {
      "upstream": "fractals", "run_id": name, "family": family, "us": us, "layer": layer,
      "depth": depth} for name, family, us in (
          ("b", "vit", 0.7), ("a", "vit", 0.7), ("c", "vit", 0.6), ("d", "mixer", 0.1))
      for depth, layer in ((1, "pre_logits"), (0, "stem"))]
  found = geometry.best_runs(lines)
  assert [(line["run_id"], line["layer"]) for line in found] == [
      ("d", "stem"), ("d", "pre_logits"), ("a", "stem"), ("a", "pre_logits")]
  assert geometry.best_runs(None) == geometry.best_runs([]) == []
