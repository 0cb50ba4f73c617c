"""The command as a user runs it, on run folders and on tables, and what it leaves behind."""
import pathlib
import re
import subprocess
import sys

import planted
import pyarrow as pa
import pytest
from pyarrow import parquet

from big_transfer.study import __main__ as command
from big_transfer.study import analysis, by_setting, explain, external, table

TIMM = pathlib.Path(__file__).parents[3] / "shared/data/laws/timm"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("study")
  planted.write_runs(root / "runs", 15)
  planted.write_run(root / "runs", 90, 0.5, [], status="running")
  return command.study(f"{root}/runs/*", root / "out", resamples=20, figures=None), root / "out"


def _csv(path, runs=14):
  """A wide table in percent: a planted law, and a task with a value out of range."""
  lines = ["model,size,imagenet,pets,cars"]
  for run in range(runs):
    us = 0.2 + 0.7 * run / runs
    pets = 1 - 0.8 * (1 - us) ** 2 - 0.1
    lines.append(f"m{run},{run + 1},{100 * us},{100 * pets},{999 if run == 3 else 50}")
  path.write_text("\n".join(lines) + "\n")
  return path


COLUMNS = "us=imagenet,ds=pets|cars,model=model,params=size:M,upstream:=ImageNet"


def test_tables_are_written_as_documented(found):
  study, out = found
  # But one layer and one setting were probed.
  assert study.tables.keys() == (analysis.TABLES.keys() - explain.COLUMNS.keys()
                                 - by_setting.COLUMNS.keys())
  for name in study.tables:
    columns = analysis.TABLES[name]
    stored = parquet.read_table(out / f"{name}.parquet")
    assert stored.column_names == list(columns), name
    lines = study.tables[name]
    if isinstance(lines, pa.Table):
      assert stored.equals(lines), name
    else:
      assert stored.to_pylist() == [dict.fromkeys(columns) | line for line in lines], name
      assert len((out / f"{name}.csv").read_text().splitlines()) == len(lines) + 1, name
  assert parquet.read_table(out / "points.parquet").equals(study.points.table())
  assert len(study.tables["fits"]) == 2 * 6 and len(study.summary) == 6
  assert study.summary[0]["spearman"].keys() == {"vit", "mixer", "resnet"}
  assert study.census.left_out == {"running": 1}
  assert study.tables["left_out"] == [{"source": str(out.parent / "runs/*"), "task": None,
                                       "points": 1, "reason": "running"}]


def test_no_value_of_a_table_is_nan(found):
  for name, lines in found[0].tables.items():
    for line in lines.to_pylist() if isinstance(lines, pa.Table) else lines:
      assert all(value == value for value in line.values()), (name, line)


def test_the_most_shots_are_shown_first(found):
  points = found[0].points
  assert command._shown_shots(points, None) == 10 and command._shown_shots(points, 1) == 1
  with pytest.raises(ValueError, match="--shots: .*1, 10; got 7"):
    command._shown_shots(points, 7)


def test_the_command_prints_a_table_and_its_mistakes_in_one_line(found, capsys, tmp_path):
  runs = f"{found[1].parent}/runs/*"
  quick = ["--no-figures", "--resamples", "20", "--skip", *analysis.OPTIONAL]
  (tmp_path / "o").mkdir()
  (tmp_path / "o/prediction.parquet").write_text("of an earlier study")
  assert command.main(["--runs", runs, "--out", str(tmp_path / "o"), *quick]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"digits +10 +15 +0\.\d\d–0\.\d\d +0\.\d{3} +mixer \+", printed)
  assert "left out: 1 running" in printed and printed.rstrip().endswith("o/report.html")
  assert not (tmp_path / "o/prediction.parquet").exists()
  (tmp_path / "file").write_text("")
  csv = str(_csv(tmp_path / "t.csv"))
  for flags, words in [
      (["--runs", "/none/*"], "nothing matches"),
      (["--runs", runs, "--out", str(tmp_path / "file")], "is a file"),
      (["--runs", runs, "--l2", "3"], "--l2"),
      (["--runs", runs, "--shots", "7"], "1, 10"),
      (["--runs", runs, "--skip", "rank"], "--skip"),
      (["--runs", runs, "--formats", "png,gif"], "--formats"),
      (["--runs", runs, "--resamples", "3"], "--resamples"),
      (["--runs", runs, "--columns", "us=a"], "add it"),
      (["--table", csv], "--columns: expected"),
      (["--table", csv, "--columns", COLUMNS.replace("imagenet", "imagnet")],
       "did you mean imagenet"),
      ([], "got neither")]:
    assert command.main(["--out", str(tmp_path / "o"), *flags]) == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("error: ") and words in complaint


def test_a_warning_of_the_tables_reaches_the_terminal_and_the_page(tmp_path, capsys):
  planted.write_runs(tmp_path / "runs", 3, steps=(400,))
  with (tmp_path / "runs/run_0001/metrics.jsonl").open("a") as file:
    file.write('{"step"')
  assert command.main(["--runs", f"{tmp_path}/runs/*", "--out", str(tmp_path / "o"),
                       "--no-figures"]) == 0
  captured = capsys.readouterr()
  assert re.search(r"warning: .*run_0001/metrics\.jsonl: its last line is cut off", captured.err)
  assert "no fit" in captured.out
  assert "its last line is cut off" in (tmp_path / "o/report.html").read_text()
  # Three runs are too few for any fit, and the table of what was left out says so of each task.
  lines = parquet.read_table(tmp_path / "o/left_out.parquet").to_pylist()
  assert {line["task"] for line in lines} == set(planted.TASKS)
  assert all("no fit: 3 runs" in line["reason"] for line in lines)


def test_a_table_of_results_is_studied_and_says_what_it_left_out(tmp_path, capsys):
  csv = _csv(tmp_path / "t.csv")
  assert command.main(["--table", str(csv), "--columns", COLUMNS, "--out", str(tmp_path / "o"),
                       "--resamples", "40", "--formats", "svg"]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"pets +14 +0\.20–0\.85 .*0\.9\d\d \[0\.", printed)
  assert "left out of cars: 14 points" in printed
  fit, = [line for line in parquet.read_table(tmp_path / "o/fits.parquet").to_pylist()
          if line["fit"] == "all"]
  assert (fit["k"], fit["alpha"], fit["e_IR"]) == pytest.approx((0.8, 2.0, 0.1), abs=2e-3)
  left, = parquet.read_table(tmp_path / "o/left_out.parquet").to_pylist()
  assert left["task"] == "cars" and "t.csv:5: column cars" in left["reason"]
  assert "t.csv:5" in (tmp_path / "o/report.html").read_text()
  assert "<svg" in (tmp_path / "o/figures/overview.svg").read_text()
  assert list((tmp_path / "o/figures").glob("*.png")) == []
  assert not (tmp_path / "o/rows.parquet").exists()


def test_a_table_of_results_is_never_written_over(tmp_path, capsys):
  path = _csv(tmp_path / "points.csv")
  before = path.read_bytes()
  assert command.main(["--table", str(path), "--columns", COLUMNS, "--out", str(tmp_path)]) == 1
  assert "would replace" in capsys.readouterr().err and path.read_bytes() == before


def test_runs_and_a_table_can_be_studied_side_by_side(found, tmp_path):
  both = command.study(
      f"{found[1].parent}/runs/*", tmp_path / "o", tables=[_csv(tmp_path / "t.csv")],
      columns=COLUMNS.replace("|cars", ""), resamples=20, figures=None, skip=analysis.OPTIONAL)
  alone = found[0]
  assert len(both.points) == len(alone.points) + 14 and both.census.finished == 15 + 14
  assert {cell.upstream for cell in both.points.cells} == {"fractals", "ImageNet"}
  fits = {tuple(line[name] for name in (*table.CELL, "fit")): line["e_IR"]
          for line in both.tables["fits"]}
  for line in alone.tables["fits"]:
    assert fits[tuple(line[name] for name in (*table.CELL, "fit"))] == line["e_IR"]
  assert both.tables["left_out"][0]["reason"] == "running"


def test_a_study_of_the_same_rows_is_the_same_study(found, tmp_path):
  again = command.study(f"{found[1].parent}/runs/*", tmp_path / "o", resamples=20, figures=None)
  for name, lines in found[0].tables.items():
    other = again.tables[name]
    assert lines.equals(other) if isinstance(lines, pa.Table) else lines == other, name


def test_a_task_without_a_fit_at_some_shots_only_is_not_left_out():
  line = {"upstream": "u", "task": "t", "variant": "full", "setting": None, "fit": "hull",
          "points": 3, "status": "no fit", "reason": "3 runs"}
  assert analysis.without_fit([line, line | {"status": "ok"}]) == []
  lost, = analysis.without_fit([line, line | {"fit": "all"}])
  assert lost == {"source": "fits", "task": "t", "points": 3, "reason": "no fit: 3 runs"}
  assert lost.keys() == external.LEFT_OUT_COLUMNS.keys()


def test_figures_of_tasks_with_like_names_do_not_overwrite_each_other(tmp_path, monkeypatch):
  from big_transfer.study import figures
  monkeypatch.setattr(figures, "catalogue", lambda *_, **__: [("a", {}), ("A", {}), ("b", {})])
  monkeypatch.setattr(figures, "save", lambda spec, stem, formats: stem.write_text(""))
  command._write_figures(tmp_path, None, {}, None, "main", ("png",), None)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["A_", "a", "b"]


def test_published_results_of_timm_give_fits_predictions_and_a_report(tmp_path):
  if not TIMM.is_dir():
    pytest.skip("the published table isn't beside the repository")
  study = command.study(
      None, tmp_path / "o", join=("model", "img_size"), figures=None, resamples=50,
      tables=[TIMM / f"results-imagenet{end}.csv" for end in ("", "-a", "-real")],
      columns="us=results-imagenet.top1,model=model,params=results-imagenet.param_count:M,"
              "ds=results-imagenet-a.top1:ImageNet-A|results-imagenet-real.top1:ImageNet-ReaL,"
              "upstream:=ImageNet,family=model:/^[a-z]+/",
      skip=("robust", "sample-size", "controlled"))
  assert [cell["runs"] for cell in study.summary] == [1555, 1556]
  errors = {(line["task"], line["fit"], line["method"]): line["prediction_rmse"]
            for line in study.tables["prediction"]}
  assert len(errors) == 2 * 2 * 5
  assert errors["ImageNet-ReaL", "all", "saturating"] < errors["ImageNet-ReaL", "all", "mean"] / 3
  assert study.report.stat().st_size < 5_000_000


def test_importing_the_command_loads_no_heavy_library():
  heavy = "jax", "altair", "scipy", "duckdb", "pyarrow", "tensorflow"
  code = ("import sys, big_transfer.study.__main__; "
          f"print([name for name in {heavy} if name in sys.modules])")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        check=True).stdout.strip() == "[]"


def test_the_room_imports_neither_jax_nor_other_rooms():
  code = ("import sys; from big_transfer.study import analysis, figures, report; "
          "print([name for name in sys.modules if name == 'jax' or name.startswith("
          "('big_transfer.training', 'big_transfer.models', 'big_transfer.data', "
          "'big_transfer.evaluators'))])")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        check=True).stdout.strip() == "[]"
