"""The page as a file: self-contained, escaped, columnar, and true to the tables."""
import base64
import dataclasses
import html
import json
import re

import numpy as np
import planted_points
import planted_tables
import pytest
import vl_convert

from big_transfer.study import findings, gather, payload, report
from big_transfer.study.figures import style

NASTY = '</script><script>alert("x")</script>'


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  points = planted_tables.make_points()
  names = points.of_runs("run_name")
  names[3] = NASTY
  column = points.runs.column_names.index("run_name")
  odd = type(points)(points.runs.set_column(column, "run_name", [names.tolist()]),
                     points.measured, points.run, points.cells, points.first)
  tables = planted_tables.make_tables(odd)
  path = report.write(tmp_path_factory.mktemp("report") / "report.html", odd, tables,
                      planted_tables.CENSUS, shots=10, sources={"table of points": NASTY})
  return odd, tables, path.read_text()


def page_data(page):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page,
                              re.DOTALL).group(1))


def unpacked(column):
  kind = payload._PACKED[column["kind"]]
  return np.frombuffer(base64.b64decode(column["data"]), kind)


def test_the_page_is_one_file_and_asks_the_network_for_nothing(written):
  page = written[2]
  # The library is searched as little as its own strings allow: nothing there runs by itself.
  own = page.replace(vl_convert.javascript_bundle().replace("</script", "<\\/script"), "")
  assert len(own) < len(page) / 2
  # SVG elements are made by a name that looks like an address; nothing loads it.
  own = own.replace("http://www.w3.org/2000/svg", "")
  assert not re.search(r'https?://|(src|href)="(?!data:)|@import|fetch\(|import\(', own)
  assert own.count("<script") == 3 and own.count("</script>") == 3


def test_what_runs_and_files_call_themselves_is_escaped(written):
  _, _, page = written
  data = page_data(page)
  assert NASTY not in page and html.escape(NASTY) in page
  assert NASTY in data["runs"]["run"]["words"]
  assert data["tables"]["left_out"]["columns"]["reason"]["words"] == ["too <odd>"]


def test_every_point_is_on_the_page_once(written):
  points, _, page = written
  data = page_data(page)
  seen = data["evaluations"]
  run, us = unpacked(seen["run"]), unpacked(seen["us"])
  assert len(data["cells"]) == len(points.cells) and len(run) == points.runs.num_rows
  for view, cell in zip(points, data["cells"]):
    at = unpacked(cell["evaluation"])
    assert (cell["upstream"], cell["shots"]) == (view.cell.upstream, view.cell.shots)
    assert cell["task"] == view.cell.task
    np.testing.assert_array_equal(run[at], view.run)
    np.testing.assert_allclose(us[at], view.us, atol=1e-7)
    np.testing.assert_allclose(unpacked(cell["ds"]), view.ds, atol=1e-7)
  named = data["runs"]["run_id"]
  ids = [named["words"][code] for code in unpacked(named["codes"])]
  assert ids == points.of_runs("run_id").tolist()


def test_upstream_accuracies_that_differ_by_task_are_kept_apart():
  points = planted_points.make(np.array([0.2, 0.4]), {"a": np.array([0.3, 0.5])})
  both = planted_points.make(np.array([0.2, 0.7]), {"b": np.array([0.3, 0.5])})
  joined = planted_points.table.assemble(
      points.runs, planted_points.pa.concat_tables([
          part.table().select(["run_id", "task", "shots", "us", "ds", "last"])
          for part in (points, both)]))
  columns, number = payload._evaluations(joined)
  us = unpacked(columns["us"])
  assert len(us) == 3
  np.testing.assert_allclose(us[number], [0.2, 0.4, 0.2, 0.7], atol=1e-7)


def test_columns_hold_rows_as_they_were():
  rows = [{"task": "a", "value": 0.123456789, "shots": None},
          {"task": None, "value": float("nan"), "shots": 5}]
  columns = payload.by_column(rows)
  words = columns["task"]["words"]
  assert [words[code] for code in unpacked(columns["task"]["codes"])] == ["a", None]
  assert columns["value"] == [0.123457, None] and columns["shots"] == [None, 5]
  for values, kind in ((range(255), "Uint8"), (range(257), "Uint16"), ([70_000], "Uint32")):
    column = payload.packed(list(values))
    assert column["kind"] == kind and unpacked(column).tolist() == list(values)


def test_a_point_takes_few_bytes():
  rng = np.random.default_rng(0)
  us_U = rng.uniform(0.1, 0.9, 3000)
  points = planted_points.make(us_U, {f"task {t}": rng.uniform(size=3000) for t in range(8)})
  drawn = [payload.page_data(some, {}) for some in (points, planted_points.make(
      us_U, {"task 0": rng.uniform(size=3000)}))]
  size, base = (len(json.dumps(data)) for data in drawn)
  # 4 bytes of accuracy and 2 of the run's number, as base64: 625,000 points are 5 MB.
  assert (size - base) / (7 * 3000) < 9.0


def test_sections_without_data_are_left_out(written, tmp_path):
  points, tables, page = written
  for title in ("The fits", "The number of shots", "Predicting the best runs upstream",
                "How many runs a law needs", "Scaling one thing at a time",
                "Whose runs make the hull", "How tasks rank the runs", "What was left out"):
    assert f"<h2>{title}</h2>" in page
  bare = report.write(tmp_path / "r.html", points, {"fits": tables["fits"]}, gather.Census(
      ("x",), 1, {}, 1, ("a warning",)), shots=10, sources={}).read_text()
  headings = re.findall("<h2>(.*?)</h2>", bare[:bare.index("<script")])
  assert headings == ["Downstream against upstream", "The fits", "The number of shots",
                      "Where the numbers come from"]
  assert "a warning" in bare and "2 (running)" in page and "of the upstream range" in bare


def test_findings_say_what_the_tables_hold(written):
  points, tables, page = written
  said = page_data(page)["findings"]
  assert set(said) == {f"{up}|{n}" for up in ("fractals", "textures") for n in (1, 10)}
  mine = said["fractals|10"]
  hulls = [fit for fit in tables["fits"] if fit["fit"] == "hull" and fit["shots"] == 10
           and fit["upstream"] == "fractals"]
  known = sum(fit["status"] == "ok" for fit in hulls)
  assert mine["overview"].startswith(f"Of 2 tasks, {known} have a saturation value")
  assert "25 % of the runs were held out" in mine["prediction"]
  assert "1.0e-04 with 10 runs to 5.0e-05 with 20 (root" in mine["sample_size"]  # as planted
  assert mine["families"] == ("On average over tasks: ViT 33 % of the runs and 70 % of the hull; "
                              "Mixer 33 % of the runs and 20 % of the hull; ResNet 33 % of the "
                              "runs and 10 % of the hull.")
  pair = next(line for line in tables["spearman"] if line["upstream"] == "fractals" and
              line["shots"] == 10 and (line["row"], line["column"]) == ("digits", "pets"))
  assert f"median correlation is {pair['correlation']:.2f}" in mine["ranks"]
  assert "of 2 pairs" in mine["shots"] and "e_IR rises in 0 % and falls" in mine["shots"]
  assert "Scaling the upstream data, 2 tasks:" in mine["controlled"]
  assert "the runs on the hull of " in mine["overlay"] and "peers" in mine["peers"]


def test_findings_compare_the_same_tasks_though_one_has_a_run_more():
  cell = {"upstream": "a", "variant": None, "setting": None, "shots": 5, "fit": "hull"}
  lines = [cell | {"task": task, "size": size, "all": size > 100, "status": "ok",
                   "prediction_error": error}
           for task, size, error in (("x", 10, 0.04), ("x", 101, 0.01), ("y", 10, 0.04),
                                     ("y", 102, 0.03))]
  assert ("from 4.0e-02 with 10 runs to 2.0e-02 with 102 (root: 0.200 to 0.141), on average over "
          "2 tasks") in findings.sample_size({"sample_size": lines}, "a", 5)


def test_the_ends_of_a_hull_do_not_count_as_gaps():
  cell = {"upstream": "a", "task": "x", "variant": None, "setting": None, "shots": 5,
          "reference": "y"}
  lines = [cell | {"us": us, "gap": gap} for us, gap in (
      (0.1, 0.0), (0.3, 0.08), (0.4, 0.06), (0.6, 0.03), (0.9, 0.0))]
  text = findings.overlay({"overlay": lines}, "a", 5)
  assert "by 5.7 (x) points" in text and "On 1 of 1 task the upper half" in text
  assert findings.overlay({"overlay": lines[::4]}, "a", 5) is None  # the ends alone


def test_a_fit_that_says_nothing_gives_its_reason():
  fit = {"fit": "hull", "status": "no fit", "reason": "3 runs; at least 10 are needed"}
  assert findings.cell([fit]) == "Upper hull: no fit, 3 runs; at least 10 are needed."
  for make in findings.FINDINGS.values():
    assert make({}, "fractals", 10) is None


def test_runs_without_shots_or_upstream_or_parameters_have_a_page(tmp_path):
  points = planted_points.make(np.linspace(0.1, 0.9, 12), {"a": np.linspace(0.2, 0.6, 12)},
                               shots=None, upstream=None)
  page = report.write(tmp_path / "r.html", points, {"fits": []}, planted_tables.CENSUS, shots=None,
                      sources={}).read_text()
  data = page_data(page)
  assert data["cells"][0]["shots"] is None and data["cells"][0]["upstream"] == "upstream"
  assert all(layer["encoding"].get("size", {}).get("legend") is None
             for layer in data["templates"]["family"]["linear"]["layer"])  # of nothing
  assert data["runs"]["families"] == ["unknown"] and list(data["looks"]) == ["unknown"]
  assert style.shots_name(None) == "shots not given" and style.at_shots("A", None) == "A"


@pytest.mark.slow  # 625,000 points: a dozen CPU-seconds
def test_the_report_of_a_large_study_stays_below_20_megabytes(tmp_path):
  rng = np.random.default_rng(0)
  us_U = rng.uniform(0.05, 0.95, 5000)
  ds = {(f"task {t}", shots): planted_points.law(us_U, e_ir=0.1 + 0.01 * t)
        - rng.exponential(0.05, 5000) for t in range(25) for shots in (1, 5, 10, 25, 100)}
  points = planted_points.make(us_U, ds, us_error=0.01, parameters=list(range(1, 5001)),
                               model=[f"model {u}" for u in range(5000)],
                               run_name=[f"run {u}" for u in range(5000)])
  assert len(points) == 625_000
  path = report.write(tmp_path / "r.html", points, {}, planted_tables.CENSUS, shots=25, sources={})
  assert path.stat().st_size < 12e6  # 8 MB more are left to the tables


@pytest.mark.parametrize("left_out, lines, words", [
    ({}, [], "none"), ({"running": 2}, [], "2 (running)"),
    ({}, [{"source": "fits", "task": "odd", "points": 3, "reason": "no fit"}],
     "points of some tasks, in the last table"),
    ({"running": 2}, [{"source": "fits", "task": "odd", "points": 3, "reason": "no fit"}],
     "2 (running), points of some tasks, in the last table")])
def test_the_head_says_of_what_was_left_out_what_the_terminal_does(left_out, lines, words,
                                                                    tmp_path):
  points = planted_points.make(np.array([0.2, 0.4]), {"odd": np.array([0.3, 0.5])})
  census = dataclasses.replace(planted_tables.CENSUS, left_out=left_out)
  page = report.write(tmp_path / "r.html", points, {"left_out": lines}, census, shots=10,
                      sources={}).read_text()
  assert f"<dt>left out</dt><dd>{words}</dd>" in page
