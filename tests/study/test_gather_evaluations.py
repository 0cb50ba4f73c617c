"""What was measured of a run afterwards: read as the run's rows, each value once."""
import json

import duckdb
import planted
import planted_tuned
import pytest
from pyarrow import parquet

from big_transfer.study import __main__ as command
from big_transfer.study import analysis, gather, table

UPSTREAM = {"step": 400, "evaluator": "upstream", "task": "fractals", "metric": "accuracy",
            "value": 0.5}
PROBE = {"step": 400, "evaluator": "fewshot", "task": "digits", "setting": "fewshot", "shots": 5,
         "layer": "pre_logits", "l2": 1024.0, "metric": "accuracy"}


def _probe(value, **changes):
  return PROBE | {"value": value} | changes


def _evaluation(run, name, rows, **changes):
  """A record as `big_transfer.evaluate` leaves it."""
  folder = run / "evaluations" / name
  folder.mkdir(parents=True)
  evaluates = json.loads((run / "run.json").read_text())["id"]
  (folder / "run.json").write_text(json.dumps(
      {"id": name, "status": "finished", "evaluates": evaluates, "step": 400} | changes))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


@pytest.fixture
def run(tmp_path):
  return planted.write_run(tmp_path / "runs", 0, 0.5, [
      UPSTREAM, _probe(0.1, seed=0), _probe(0.2, seed=1), UPSTREAM | {"step": 200}])


def _gather(tmp_path, pattern="runs/*"):
  census = gather.gather([f"{tmp_path}/{pattern}"], tmp_path / "rows.parquet")
  found = duckdb.read_parquet(str(tmp_path / "rows.parquet")).fetchall()
  names = list(table.COLUMNS)
  return census, [dict(zip(names, row)) for row in found]


def _probes(rows):
  return sorted((row["task"], row["layer"], row["seed"] or 0, row["step"], row["value"])
                for row in rows if row["evaluator"] == "fewshot")


def test_evaluations_are_rows_of_their_run_and_count_once(run, tmp_path):
  _evaluation(run, "b", [_probe(0.9, seed=0), _probe(0.3, seed=0, layer="stem"),
                         _probe(0.4, seed=2)])
  _evaluation(run, "c", [_probe(0.8, seed=0, layer="stem", status="ok"),
                         _probe(0.5, seed=0, layer="block_00")])
  census, rows = _gather(tmp_path)
  # metrics.jsonl first, then evaluations by name; status and reason don't make another value.
  assert _probes(rows) == [
      ("digits", "block_00", 0, 400, 0.5), ("digits", "pre_logits", 0, 400, 0.1),
      ("digits", "pre_logits", 1, 400, 0.2), ("digits", "pre_logits", 2, 400, 0.4),
      ("digits", "stem", 0, 400, 0.3)]
  assert census.rows == len(rows) == 7 and census.finished == 1 and not census.left_out
  assert {(row["run_id"], row["run_folder"]) for row in rows} == {("00000000", str(run))}
  point, = table.points(tmp_path / "rows.parquet").table().to_pylist()
  assert point["ds"] == pytest.approx((0.1 + 0.2 + 0.4) / 3) and point["ds_seeds"] == 3


def test_what_a_run_itself_measured_twice_stays_to_be_told(run, tmp_path):
  path = run / "metrics.jsonl"
  path.write_text(path.read_text() + json.dumps(UPSTREAM) + "\n")
  _evaluation(run, "b", [UPSTREAM])
  _gather(tmp_path)
  with pytest.raises(ValueError, match="2 upstream accuracies at step 400"):
    table.points(tmp_path / "rows.parquet")


def test_the_same_value_of_other_runs_is_theirs(tmp_path):
  for index in range(2):
    _evaluation(planted.write_run(tmp_path / "runs", index, 0.5, [UPSTREAM]), "b", [_probe(0.3)])
  _, rows = _gather(tmp_path)
  assert len(_probes(rows)) == 2 and len({row["run_id"] for row in rows}) == 2


@pytest.mark.parametrize("changes, reason", [
    (dict(status="running"), "evaluation that isn't finished"),
    (dict(status="interrupted"), "evaluation that isn't finished"),
    (dict(evaluates="another"), "evaluation of another run")])
def test_evaluations_that_do_not_count(run, tmp_path, changes, reason):
  _evaluation(run, "b", [_probe(0.9, seed=7)], **changes)
  (run / "evaluations" / "c").mkdir()  # killed before it wrote anything
  census, rows = _gather(tmp_path)
  assert len(_probes(rows)) == 2 and census.finished == 1
  assert sum(census.left_out.values()) == 2 and census.left_out[reason] >= 1


def test_an_evaluation_is_no_run(run, tmp_path):
  _evaluation(run, "b", [_probe(0.9)])
  with pytest.raises(ValueError, match="found 1 evaluation, read with its run"):
    _gather(tmp_path, "runs/*/evaluations/*")


def test_an_earlier_step_never_passes_for_the_last(run, tmp_path):
  """Neither where the run was evaluated at its end, nor where it was not."""
  early = [UPSTREAM | {"step": 100}, _probe(0.7, seed=0, step=100),
           _probe(0.8, task="cars", step=100), _probe(0.6, layer="stem", step=100)]
  _evaluation(run, "b", early, step=100)
  census, rows = _gather(tmp_path)
  # What is known of step 400 too is a curve; cars and the stem were never measured there.
  assert _probes(rows) == [
      ("digits", "pre_logits", 0, 100, 0.7), ("digits", "pre_logits", 0, 400, 0.1),
      ("digits", "pre_logits", 1, 400, 0.2)]
  assert census.left_out == {"evaluation of an earlier step alone": 1}
  point, = table.points(tmp_path / "rows.parquet").table().to_pylist()
  assert point["step"] == 400 and point["ds"] == pytest.approx(0.15)
  assert len(table.points(tmp_path / "rows.parquet", steps="all")) == 2

  bare = planted.write_run(tmp_path / "bare", 1, 0.5, [UPSTREAM, UPSTREAM | {"step": 100}])
  _evaluation(bare, "b", early[1:], step=100)
  _gather(tmp_path, "bare/*")
  with pytest.raises(ValueError, match="no few-shot accuracy"):
    table.points(tmp_path / "rows.parquet")


def test_a_bad_line_is_named_by_its_file(run, tmp_path):
  folder = _evaluation(run, "b", [_probe(0.9, seed=7)])
  with open(folder / "metrics.jsonl", "a") as file:
    file.write('{"step": "x"}\n')
  with pytest.raises(ValueError, match=r"evaluations/b/metrics.jsonl, line 2: .*step should be "):
    _gather(tmp_path)


FILE = {"parameters_from": {"identity": "f" * 64, "step": 0}}  # of `evaluate --init FILE.npz`


def test_runs_without_both_accuracies_are_told(run, tmp_path, capsys):
  """Their rows can be of no point, whatever they lack."""
  planted.write_run(tmp_path / "runs", 1, 0.5, [_probe(0.3)], **FILE)
  planted.write_run(tmp_path / "runs", 2, 0.5, [_probe(0.3)])
  planted.write_run(tmp_path / "runs", 3, 0.5, [UPSTREAM])
  planted.write_run(tmp_path / "runs", 4, 0.5, [])
  planted.write_run(tmp_path / "runs", 5, 0.5, [UPSTREAM, _probe(0.3, step=200)])
  census, rows = _gather(tmp_path)
  expected = {"no upstream accuracy: state or measure it by evaluate --upstream": 1,
              "no upstream accuracy: measure it by evaluate --workdir": 2,
              "no downstream accuracy": 1,
              "no upstream and downstream accuracy at the same step": 1}
  assert census.left_out == expected and census.finished == 6
  assert {row["run_id"][-1] for row in rows} == set("01235")  # the rows are there all the same
  out = tmp_path / "out"
  assert command.main(["--runs", f"{tmp_path}/runs/*", "--out", str(out), "--no-figures",
                       "--resamples", "20", "--skip", *analysis.OPTIONAL]) == 0
  said = capsys.readouterr().out
  assert "runs: 6, 1 with both accuracies; left out: 1 no downstream accuracy" in said
  lines = parquet.read_table(out / "left_out.parquet").to_pylist()
  assert {line["reason"]: line["points"] for line in lines if not line["task"]} == expected
  assert all(reason in (out / "report.html").read_text() for reason in expected)


@pytest.mark.parametrize("upstream, warned", [([], 0), ([UPSTREAM], 1)])
def test_one_of_two_records_counts_twice_only_where_it_counts(run, tmp_path, recwarn, upstream,
                                                              warned):
  planted.write_run(tmp_path / "runs", 1, 0.5, [UPSTREAM, _probe(0.3)], **FILE)
  planted.write_run(tmp_path / "runs", 2, 0.5, [*upstream, _probe(0.3)], **FILE)
  census, _ = _gather(tmp_path)
  assert len(census.warnings) == len(recwarn) == warned
  assert all("so they count as two runs" in note for note in census.warnings)


def test_fine_tuning_joins_the_record_of_its_file_that_has_an_upstream(tmp_path):
  bare = planted.write_run(tmp_path / "runs", 0, 0.5, [_probe(0.3)], upstream={"name": None},
                           **FILE)
  planted.write_run(tmp_path / "runs", 1, 0.5, [UPSTREAM, _probe(0.3)], **FILE)
  planted_tuned.write(tmp_path / "runs", "tuned", bare, [planted_tuned.row(0.8)],
                      identity="f" * 64)
  _gather(tmp_path)
  points = table.points(tmp_path / "rows.parquet").table().to_pylist()
  assert {(point["run_id"], point["setting"]) for point in points} == {
      ("00000001", "fewshot"), ("00000001", "finetune")}
