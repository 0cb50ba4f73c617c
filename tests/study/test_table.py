"""Rows and points: what is read, what is left out, and what a damaged file says."""
import json
import math
import time

import planted
import pyarrow as pa
import pytest
from pyarrow import parquet

from big_transfer.runs import records
from big_transfer.study import gather, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  return root, planted.write_runs(root, 6)


def _copy(runs, tmp_path, n=3):
  """Fresh folders to damage."""
  planted.write_runs(tmp_path / "runs", n, steps=(400,))
  return tmp_path / "runs"


def _gather(root, tmp_path):
  return gather.gather([f"{root}/*"], tmp_path / "rows.parquet")


def _points(rows, **options):
  return table.points(rows, **options).table().to_pylist()


def test_a_multiplier_of_a_rule_is_no_learning_rate():
  run, config = {"overrides": {"optim.rules[0][1].lr": 0.1}}, {"optim": {"lr": 3e-3}}
  assert gather._learning_rate(run, config) == 3e-3
  assert gather._learning_rate({"overrides": {"optim.lr": 0.2}}, config) == 0.2


def test_the_rules_of_a_config_say_how_the_head_was_trained():
  body = [".*", {"wd": 0.02}]
  for rules, wanted in [
      ([["head/.*", {"lr": 0.3, "wd": 3}], body], (3.0, 0.3, 0.02)),
      ([["head", {"wd": 3}], body], (0.02, 1.0, 0.02)),  # a rule must match the whole name
      ([["stem/.*", {}], ["head/kernel", {}], ["head/.*", {"wd": 1}], [".*", {"lr": 0.5}]],
       (0.0, 2.0, 0.0)),
      ([[".*", {}]], (0.0, 1.0, 0.0)), ([["head/.*", {}], [".*", {"lr": 0}]], (0.0, None, 0.0)),
      *((rules, (None, None, None)) for rules in (None, [], "rules", [["(", {}]], [body, 3],
                                                  [["head/.*", {"wd": "x"}], body], {"a": 1}))]:
    found = gather.head_settings(rules)
    assert (found["head_decay"], found["head_rate"], found["body_decay"]) == wanted, rules


def test_every_row_is_there_with_its_run_and_the_documented_types(runs, tmp_path):
  root, _ = runs
  census = _gather(root, tmp_path)
  rows = parquet.read_table(tmp_path / "rows.parquet")
  written = [json.loads(line) for path in sorted(root.glob("*/metrics.jsonl"))
             for line in path.read_text().splitlines()]
  assert census.rows == rows.num_rows == len(written) and census.finished == 6
  assert rows.column_names == list(table.COLUMNS)
  names = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE"}
  assert {name: names[str(rows.schema.field(name).type)] for name in rows.column_names} == {
      name: kind for name, (kind, _) in table.COLUMNS.items()}
  # Floats survive exactly: inference would have made integers of columns that begin with them.
  assert math.fsum(rows["value"].to_pylist()) == math.fsum(row["value"] for row in written)
  assert set(rows["learning_rate"].to_pylist()) == {1e-3}
  assert rows["head_decay"].null_count == rows.num_rows  # these runs have no config.json
  assert json.loads(rows["overrides"][0].as_py())["optim"] == {"lr": 1e-3}


def test_integers_first_and_late_texts_do_not_change_a_type(tmp_path):
  rows = [{"step": 1, "metric": "m", "value": 1} for _ in range(30_000)]
  rows += [{"step": 1, "metric": "m", "value": 0.7, "reason": "late"}]
  planted.write_run(tmp_path / "runs", 0, 0.5, rows)
  _gather(tmp_path / "runs", tmp_path)
  last = parquet.read_table(tmp_path / "rows.parquet").filter(
      [reason == "late" for reason in parquet.read_table(
          tmp_path / "rows.parquet")["reason"].to_pylist()]).to_pylist()
  assert [(row["value"], row["reason"]) for row in last] == [(0.7, "late")]


def test_a_point_is_the_last_evaluation_averaged_over_seeds_at_1024(runs, tmp_path):
  root, us_N = runs
  _gather(root, tmp_path)
  points = _points(tmp_path / "rows.parquet")
  assert len(points) == 6 * len(planted.TASKS) * 2 and all(p["last"] for p in points)
  rows = [json.loads(line) for line in (root / "run_0002/metrics.jsonl").read_text().splitlines()]
  values = [row["value"] for row in rows if row.get("task") == "digits" and row["step"] == 400
            and row.get("shots") == 10 and row.get("l2") == 1024.0]
  point, = [p for p in points if (p["run_id"], p["task"], p["shots"]) == ("00000002", "digits", 10)]
  mean = sum(values) / 3
  assert point["ds"] == pytest.approx(mean) and point["ds_seeds"] == 3
  assert point["ds_error"] == pytest.approx(
      (sum((value - mean) ** 2 for value in values) / 2) ** 0.5 / 3 ** 0.5)
  assert point["us"] == us_N[2] and point["step"] == 400
  assert point["us_error"] == pytest.approx((us_N[2] * (1 - us_N[2]) / 3000) ** 0.5)
  assert point["examples_used"] == 100 and list(point) == list(table.POINT_COLUMNS)
  every = _points(tmp_path / "rows.parquet", steps="all")
  assert len(every) == 2 * len(points) and sum(p["last"] for p in every) == len(points)


def test_skipped_probes_are_no_points(tmp_path):
  root = _copy(None, tmp_path)
  path = root / "run_0001/metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for row in lines:
    if row.get("task") == "digits":
      row |= {"status": "skipped", "reason": "no data", "value": None}
  path.write_text("".join(json.dumps(row) + "\n" for row in lines))
  _gather(root, tmp_path)
  digits = [p["run_id"] for p in _points(tmp_path / "rows.parquet")
            if p["task"] == "digits" and p["shots"] == 1]
  assert digits == ["00000000", "00000002"]


def test_runs_that_are_not_finished_are_left_out_and_counted(tmp_path):
  root = _copy(None, tmp_path)
  planted.write_run(root, 7, 0.5, [], status="running")
  planted.write_run(root, 8, 0.5, [], status="failed")
  planted.write_run(root, 9, 0.5, [], id="00000000")
  (root / "plots").mkdir()
  census = _gather(root, tmp_path)
  assert census.finished == 3 and census.left_out == {
      "running": 1, "failed": 1, "copy of a run already read": 1, "not a run folder": 1}
  again = gather.gather([f"{root}/*", f"{root}/run_0000"], tmp_path / "rows.parquet")
  assert again.finished == 3


def test_a_last_line_cut_off_is_a_warning_that_names_the_file(tmp_path):
  root = _copy(None, tmp_path)
  path = root / "run_0001/metrics.jsonl"
  whole = path.read_text()
  path.write_text(whole + '{"step": 500, "value": 0.')
  with pytest.warns(UserWarning, match=r"run_0001/metrics\.jsonl.*cut off"):
    census = _gather(root, tmp_path)
  assert census.rows == sum(len(p.read_text().splitlines())
                            for p in root.glob("*/metrics.jsonl")) - 1
  path.write_text(whole.rstrip("\n"))  # a whole last line that lacks its end counts
  assert _gather(root, tmp_path).rows == census.rows


@pytest.mark.parametrize("line, words", [
    ('{"step": 3, "val', "line 2.*Unterminated"),
    ('{"step": 3, "value": "high"}', "line 2.*value should be float, got 'high'"),
    ('[1, 2]', "line 2.*list"),
])
def test_a_bad_line_elsewhere_is_an_error_with_file_and_line(tmp_path, line, words):
  root = _copy(None, tmp_path)
  path = root / "run_0002/metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join([lines[0], line + "\n", *lines[1:]]))
  with pytest.raises(ValueError, match=r"run_0002/metrics\.jsonl, " + words):
    _gather(root, tmp_path)


def test_folders_with_brackets_and_quotes_in_their_names_are_read(tmp_path):
  root = tmp_path / "lr[0.1] it's"
  planted.write_runs(root, 2)
  census = gather.gather([str(root / "run_0000").replace("[", "[[]"),
                         str(root / "run_0001").replace("[", "[[]")], root / "rows.parquet")
  assert census.finished == 2
  assert len(table.points(root / "rows.parquet")) == 12


def test_nothing_to_study_is_one_clear_error(tmp_path):
  with pytest.raises(ValueError, match="nothing matches"):
    gather.gather([f"{tmp_path}/none/*"], tmp_path / "rows.parquet")
  root = tmp_path / "runs"
  planted.write_run(root, 0, 0.5, [], status="running")
  with pytest.raises(ValueError, match="at least one finished run.*found 1 running"):
    _gather(root, tmp_path)
  with pytest.raises(ValueError, match=r"did you mean '.*runs/\*'"):
    gather.gather([str(root)], tmp_path / "rows.parquet")
  (root / "run_0000/run.json").write_text("{")
  with pytest.raises(ValueError, match="run_0000/run.json"):
    _gather(root, tmp_path)


def test_finished_runs_without_accuracies_say_which_is_missing(tmp_path):
  root = tmp_path / "runs"
  upstream = {"step": 1, "evaluator": "upstream", "metric": "accuracy", "value": 0.5}
  probe = {"step": 1, "evaluator": "fewshot", "metric": "accuracy", "task": "t", "l2": 2.0,
           "layer": "pre_logits", "value": 0.5}
  for rows, words in [([probe], "no upstream accuracy"), ([upstream], "no few-shot accuracy"),
                      ([upstream, probe], "--l2: .*measured were 2"),
                      ([upstream, upstream, probe], "2 upstream accuracies at step 1"),
                      ([upstream, probe | {"step": 2, "l2": 1024.0}], "at the same step")]:
    folder = root / str(len(list(root.iterdir())) if root.exists() else 0)
    planted.write_run(folder, 0, 0.5, rows)
    gather.gather([f"{folder}/*"], tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=words):
      table.points(tmp_path / "rows.parquet")


def test_a_view_of_a_cell_holds_its_points_and_their_runs(runs, tmp_path):
  root, us_N = runs
  _gather(root, tmp_path)
  points = table.points(tmp_path / "rows.parquet", steps="all")
  lines = points.table().to_pylist()
  assert sum(view.us.size for view in points) == len(points) == len(lines)
  for view in points:
    mine = [line for line in lines if tuple(line[name] for name in table.CELL) == view.cell]
    assert view.us.tolist() == [line["us"] for line in mine]
    assert view.ds_error.tolist() == [line["ds_error"] for line in mine]
    assert points.of_runs("run_id")[view.run].tolist() == [line["run_id"] for line in mine]
    last = view.take(view.last)
    assert last.us.tolist() == us_N.tolist() and set(last.step) == {400.0}
  assert points.view(view.cell).ds is not None and points.of_runs("epochs")[0] == 51200 / 12000
  assert [cell.task for cell in points.cells] == sorted(cell.task for cell in points.cells)


def test_what_is_missing_is_nan_in_arrays_and_null_in_tables(tmp_path):
  one = pa.table({"run_id": ["a"], "upstream": ["x"]})
  measured = pa.table({"run_id": ["a"], "task": ["t"], "us": [0.5], "ds": [0.4], "last": [True]})
  points = table.assemble(one, measured)
  view, = points
  assert math.isnan(view.us_error[0]) and math.isnan(points.of_runs("parameters")[0])
  assert points.cells == (table.Cell("x", "t", None, None, None),)
  line, = points.table().to_pylist()
  assert line["us_error"] is None and line["family"] is None
  with pytest.raises(ValueError, match="at least one run with an accuracy"):
    table.assemble(one, measured.slice(0, 0))


def test_points_of_two_sources_come_together_but_for_a_run_in_both():
  def of(run, upstream):
    return table.assemble(
        pa.table({"run_id": [run], "upstream": [upstream]}),
        pa.table({"run_id": [run], "task": ["t"], "us": [0.5], "ds": [0.4], "last": [True]}))
  one, other = of("b", "x"), of("a", "y")
  both = table.together([one, other])
  assert both.of_runs("run_id").tolist() == ["a", "b"] and both.run.tolist() == [1, 0]
  assert [cell.upstream for cell in both.cells] == ["x", "y"]
  assert both.table().sort_by("run_id").equals(
      pa.concat_tables([one.table(), other.table()]).sort_by("run_id"))
  with pytest.raises(ValueError, match="run 'b' is in both"):
    table.together([one, of("b", "z")])


def test_tables_are_written_with_their_types_and_null_for_what_is_absent(tmp_path):
  columns = {"name": ("VARCHAR", "n"), "value": ("DOUBLE", "v"), "count": ("BIGINT", "c")}
  table.write(tmp_path / "t", [{"name": "a", "value": 1}, {"count": 2}], columns)
  stored = parquet.read_table(tmp_path / "t.parquet")
  assert stored.to_pylist() == [{"name": "a", "value": 1.0, "count": None},
                                {"name": None, "value": None, "count": 2}]
  assert [str(kind) for kind in stored.schema.types] == ["string", "double", "int64"]
  assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
  table.write(tmp_path / "e", [], columns)
  assert parquet.read_table(tmp_path / "e.parquet").column_names == list(columns)


def test_row_columns_are_those_that_records_write():
  assert list(table.COLUMNS)[len(table.RUN_COLUMNS):] == [*records.ROW_COLUMNS, "measured_in"]
  assert not set(table.RUN_COLUMNS) & set(records.ROW_COLUMNS)


@pytest.mark.slow
def test_two_thousand_runs_are_read_in_seconds(tmp_path):
  planted.write_runs(tmp_path / "runs", 2000, seeds=1, steps=(400,))
  start = time.process_time()
  assert _gather(tmp_path / "runs", tmp_path).finished == 2000
  assert len(table.points(tmp_path / "rows.parquet")) == 2000 * 6
  assert time.process_time() - start < 12
