"""The command as a user runs it, and what it leaves behind."""
import json
import re
import subprocess
import sys

import altair
import planted
import pytest
import vl_convert
from pyarrow import parquet

from big_transfer.study import __main__ as command
from big_transfer.study import figures, report, saturation, table

NASTY = '</script><script>alert("x")</script>'


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("study")
  planted.write_runs(root / "runs", 15)
  planted.write_run(root / "runs", 90, 0.5, [], status="running")
  odd = json.loads((root / "runs/run_0003/run.json").read_text())
  odd["name"] = odd["model"]["label"] = NASTY
  (root / "runs/run_0003/run.json").write_text(json.dumps(odd))
  return command.study(f"{root}/runs/*", root / "out", resamples=20, figures=False), root / "out"


def test_tables_are_written_as_documented(found):
  study, out = found
  for name, lines, columns in (("points", study.points, table.POINT_COLUMNS),
                               ("fits", study.fits, saturation.FIT_COLUMNS)):
    stored = parquet.read_table(out / f"{name}.parquet")
    assert stored.column_names == list(columns) and stored.to_pylist() == lines
    assert len((out / f"{name}.csv").read_text().splitlines()) == len(lines) + 1
  assert len(study.fits) == 2 * 6 and len(study.summary) == 6
  assert study.summary[0]["spearman"].keys() == {"vit", "mixer", "resnet"}
  assert study.census.left_out == {"running": 1}


def _page_data(page):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page,
                              re.DOTALL).group(1))


def test_report_holds_every_point_once_and_asks_the_network_for_nothing(found):
  study, _ = found
  page = study.report.read_text()
  assert 300_000 < len(page) < 3_000_000
  # The library is searched as little as its own strings allow: nothing there runs by itself.
  own = page.replace(vl_convert.javascript_bundle().replace("</script", "<\\/script"), "")
  assert len(own) < len(page) / 2
  assert not re.search(r'https?://|(src|href)="(?!data:)|@import|fetch\(', own)
  assert own.count("<script") == 3
  data = _page_data(page)
  shown = {(data["runs"][row[0]]["run_id"], panel["title"], shots, row[1], row[2])
           for panel in data["panels"] for shots, cell in panel["cells"].items()
           for row in cell["points"]}
  assert shown == {(p["run_id"], p["task"].replace("_", " "), figures.shots_name(p["shots"]),
                    round(p["us_accuracy"], 5), round(p["ds_accuracy"], 5))
                   for p in study.points}
  assert len(data["runs"]) == 15


def test_report_escapes_what_runs_call_themselves(found):
  page = found[0].report.read_text()
  assert NASTY not in page
  assert {run["run"] for run in _page_data(page)["runs"]} >= {NASTY}
  assert "&lt;/script&gt;" in page


def test_a_drawn_law_is_the_fitted_one_and_ends_in_the_saturation_value(found):
  study, _ = found
  cell, points = next(iter(saturation.cells(study.points).items()))
  fits = [fit for fit in study.fits if fit["task"] == cell[1] and fit["shots"] == cell[4]]
  drawn = figures.panel_data(points, fits)
  curve = [line for line in drawn["lines"] if line["line"] == figures.HULL_FIT]
  assert curve[-1]["us"] == 1.0
  assert curve[-1]["ds"] == pytest.approx(fits[0]["saturation"], abs=1e-4)
  on_hull = [line for line in drawn["lines"] if line["line"] == figures.HULL]
  assert len(on_hull) == fits[0]["hull_vertices"]


def test_figures_are_drawn_from_the_tables_alone(found, tmp_path):
  study, _ = found
  points = [dict(point) for point in study.points]
  next(point for point in points if point["shots"] == 10)["family"] = "unheard_of"
  png, svg = figures.save(figures.overview(points, study.fits, 10), tmp_path / "f/overview")
  assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 50_000
  drawing = svg.read_text()
  assert all(words in drawing for words in ("sprites count", "ViT", "unheard_of", "upper hull"))
  altair.Chart.from_dict(figures.overview(points, study.fits, 10), validate=True)
  task = figures.task_figure([p for p in study.points if p["task"] == "digits"], study.fits)
  assert len(task["concat"]) == 2
  with pytest.raises(ValueError, match="with 3 shots"):
    figures.overview(study.points, study.fits, 3)


def test_axes_span_a_tenth_at_least_and_stay_within_accuracies(found):
  one = [point for point in found[0].points if point["task"] == "digits"][:1]
  for us, ds in ((0.5, 0.3), (0.0, 1.0), (0.99, 0.02)):
    (low, high) = figures.panel_data([one[0] | {"us_accuracy": us, "ds_accuracy": ds}], [])["frame"]
    for name, value in (("us", us), ("ds", ds)):
      assert high[name] - low[name] == pytest.approx(0.1)
      assert 0.0 <= low[name] <= value + 1e-12 and value - 1e-12 <= high[name] <= 1.0


def test_a_hull_that_hardly_moves_is_called_flat():
  fit = {"fit": "hull", "status": "ok", "saturation": 0.2, "saturation_low": 0.19,
         "saturation_high": 0.21, "hull_rise": 0.029}
  assert figures.verdict([fit]) == "flat at 20 % [19–21]"
  assert figures.verdict([fit | {"hull_rise": 0.031}]) == "saturates at 20 % [19–21]"


def test_the_most_shots_are_shown_first(found):
  assert command._shown_shots([{"shots": count} for count in (5, 25, None, 1)], None) == 25
  assert "<option selected>10 shots</option>" in found[0].report.read_text()


def test_the_page_has_one_legend(found):
  data = _page_data(found[0].report.read_text())
  assert all(channel.get("legend") is None for spec in data["specs"] for layer in spec["layer"]
             for channel in layer["encoding"].values() if isinstance(channel, dict))
  titles = {channel["legend"]["title"] for layer in data["legend"]["layer"]
            for channel in layer["encoding"].values()
            if isinstance(channel, dict) and channel.get("legend")}
  assert titles == {"Lines", "Architecture", "Parameters"}


def test_all_steps_are_marked_in_the_figure_and_the_page(found, tmp_path):
  _, out = found
  points = table.as_records(table.points(out / "rows.parquet", steps="all"))
  spec = figures.overview(points, [], 10)
  assert "(all evaluations)" in spec["title"]["text"]
  census = table.Census(("x",), 15, {}, 1, ())
  page = report.write(tmp_path / "r.html", points, [], census, shots=10, sources={}).read_text()
  assert "every evaluation of the runs (--steps all)" in page


def test_the_command_prints_a_table_and_its_mistakes_in_one_line(found, capsys, tmp_path):
  runs = f"{found[1].parent}/runs/*"
  assert command.main(["--runs", runs, "--out", str(tmp_path / "o"), "--no-figures",
                       "--resamples", "20"]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"digits +10 +15 +0\.\d\d–0\.\d\d +0\.\d{3} +mixer \+", printed)
  assert "left out: 1 running" in printed and printed.rstrip().endswith("o/report.html")
  (tmp_path / "file").write_text("")
  for flags, words in [(["--runs", "/none/*", "--out", str(tmp_path / "o")], "nothing matches"),
                       (["--runs", runs, "--out", str(tmp_path / "file")], "is a file"),
                       (["--runs", runs, "--out", str(tmp_path / "o"), "--l2", "3"], "--l2"),
                       (["--runs", runs, "--out", str(tmp_path / "o"), "--shots", "7"], "1, 10")]:
    assert command.main(flags) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and words in complaint and complaint.count("\n") == 1


def test_a_warning_of_the_tables_reaches_the_terminal_and_the_page(tmp_path, capsys):
  planted.write_runs(tmp_path / "runs", 3, steps=(400,))
  with (tmp_path / "runs/run_0001/metrics.jsonl").open("a") as file:
    file.write('{"step"')
  assert command.main(["--runs", f"{tmp_path}/runs/*", "--out", str(tmp_path / "o"),
                       "--no-figures"]) == 0
  captured = capsys.readouterr()
  assert re.match(r"warning: .*run_0001/metrics\.jsonl: its last line is cut off", captured.err)
  assert "no fit" in captured.out
  assert "its last line is cut off" in (tmp_path / "o/report.html").read_text()


def test_importing_the_command_loads_no_heavy_library():
  heavy = "jax", "altair", "scipy", "duckdb", "pyarrow", "tensorflow"
  code = ("import sys, big_transfer.study.__main__; "
          f"print([name for name in {heavy} if name in sys.modules])")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        check=True).stdout.strip() == "[]"


def test_the_room_imports_neither_jax_nor_other_rooms():
  code = ("import sys; from big_transfer.study import figures, report, saturation, table; "
          "print([name for name in sys.modules if name == 'jax' or name.startswith("
          "('big_transfer.training', 'big_transfer.models', 'big_transfer.data', "
          "'big_transfer.evaluators'))])")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        check=True).stdout.strip() == "[]"
