"""The benchmark command on a planted file of two domains, as a user runs it."""
import csv
import json

import altair
import numpy as np
import pytest

from big_transfer.study import benchmark, benchmark_figure, curves

QUICK = ("m1", "m3")
X = np.geomspace(1e3, 1e6, 40)


def _rows():
  """Two domains: exact power laws (M1), exact M3 curves, and five curves with something wrong."""
  rows = []

  def add(domain, task, model, losses, sizes=X, first_held_out=30):
    rows.extend([domain, task, model, repr(float(x)), repr(float(y)), int(i < first_held_out)]
                for i, (x, y) in enumerate(zip(sizes, losses)))

  for i, task in enumerate(("easy_1", "easy_2", "hard_1")):
    add("power", task, "small", curves.M1.predict([5.0 + i, 0.2], X))
  add("levels", "only", "small", curves.M3.predict([20.0, 0.4, 1e-6], X))
  add("levels", "short", "small", [0.9, 0.8, 0.7, 0.6], sizes=X[:4], first_held_out=2)
  add("levels", "negative", "small", np.where(np.arange(40) == 7, -0.1, 0.5))
  add("levels", "all fitted", "small", 1 / X, first_held_out=99)
  add("levels", "all held out", "small", 1 / X, first_held_out=0)
  add("levels", "words", "small", 1 / X)
  rows[-1][4] = "n/a"
  return rows


def _write(path, rows, header=tuple(benchmark.COLUMNS.values())):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([header, *rows])
  return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark")
  rows = _rows()
  np.random.default_rng(0).shuffle(rows)  # rows come in any order
  data = _write(folder / "curves.csv", rows)
  assert benchmark.main(["--data", str(data), "--out", str(folder / "out"), "--methods",
                         "m1,m3"]) == 0
  return folder / "out"


def _read(path):
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_summary_has_a_line_a_domain_and_method_and_one_for_all(found):
  lines = _read(found / "benchmark.csv")
  assert list(lines[0]) == ["domain", "method", "curves", "mean_log_rmse", "median_log_rmse",
                            "coverage_90", "cpu_seconds_per_fit"]
  assert [(line["domain"], line["method"], line["curves"]) for line in lines] == [
      ("levels", "m1", "1"), ("levels", "m3", "1"), ("power", "m1", "3"), ("power", "m3", "3"),
      ("all", "m1", "4"), ("all", "m3", "4")]
  by = {(line["domain"], line["method"]): line for line in lines}
  errors = {key: float(line["mean_log_rmse"]) for key, line in by.items()}
  assert errors["power", "m1"] < 1e-9 and errors["levels", "m3"] < 1e-4
  assert errors["levels", "m1"] > 0.05  # a power law doesn't level off
  assert errors["all", "m1"] == pytest.approx(errors["levels", "m1"] / 4, rel=1e-4)
  assert float(by["all", "m1"]["median_log_rmse"]) < 1e-9
  assert 0 < float(by["all", "m3"]["cpu_seconds_per_fit"]) < 0.1


def test_every_curve_and_method_has_a_line_with_the_reason_where_there_is_no_score(found):
  lines = _read(found / "curves.csv")
  assert list(lines[0]) == ["domain", "task", "model", "method", "points", "log_rmse", "covered",
                            "cpu_seconds", "status", "reason"]
  assert len(lines) == 9 * 2
  reasons = {line["task"]: line["reason"] for line in lines
             if line["method"] == "m1" and line["status"] == "failed"}
  assert reasons.keys() == {"short", "negative", "all fitted", "all held out", "words"}
  assert reasons["short"].startswith("m1: expected at least 3 points")
  assert reasons["all fitted"] == "no rows with Training = 0"
  assert reasons["all held out"] == "no rows with Training = 1"
  assert "Loss: expected a number above 0, got '-0.1'" in reasons["negative"]
  assert reasons["words"].startswith("line ") and reasons["words"].endswith("got 'n/a'")
  ok = next(line for line in lines if line["status"] == "ok")
  assert ok["points"] == "30" and not ok["reason"]
  assert all(not line["log_rmse"] for line in lines if line["status"] == "failed")


def test_points_above_and_below_an_interval_are_not_covered():
  y = curves.M1.predict([5.0, 0.2], X) * np.exp(np.random.default_rng(0).normal(0, 0.01, 40))
  off = np.array([1.0, 3.0, 1.0 / 3.0, 1.0, 3.0, 1.0 / 3.0, 1.0, 3.0, 1.0 / 3.0, 1.0])
  curve = benchmark.MeasuredCurve("d", "t", "m", X[:30], y[:30], X[30:],
                                  curves.M1.predict([5.0, 0.2], X[30:]) * off, None)
  assert benchmark.score(curve, "m1")["covered"] == 0.4


def test_terminal_shows_domains_groups_of_tasks_and_what_failed(found, capsys):
  data = found.parent / "curves.csv"
  assert benchmark.main(["--data", str(data), "--out", str(found), "--methods", "m1"]) == 0
  words = capsys.readouterr().out
  assert "mean log-RMSE by tasks" in words and "no score: 5 of 9 fits" in words
  assert [line.split()[:2] for line in words.splitlines() if line.startswith("power")] == [
      ["power", "m1"], ["power", "easy"], ["power", "hard"]]


def test_figure_is_drawn_and_shows_each_error(found):
  assert (found / "benchmark.png").read_bytes().startswith(b"\x89PNG")
  assert "held out" in (found / "benchmark.svg").read_text()
  parts = benchmark.read(found.parent / "curves.csv")
  scores = [benchmark.score(curve, method) for curve in parts for method in QUICK]
  shown = benchmark.examples(parts, scores)
  assert [(example.curve.domain, example.curve.group) for example in shown] == [
      ("levels", "only"), ("power", "easy"), ("power", "hard")]
  spec = benchmark_figure.benchmark_figure(scores, shown, QUICK, 0.9, {"x": "tokens", "y": "nats"})
  altair.Chart.from_dict(spec)  # raises where the specification isn't valid
  assert len(spec["datasets"]["errors"]) == 4 * 2
  assert "tokens" in json.dumps(spec["vconcat"])
  with pytest.raises(ValueError, match="at least one curve with a score"):
    benchmark_figure.benchmark_figure([], [], QUICK, 0.9, {"x": "tokens", "y": "nats"})


def test_this_projects_estimator_is_scored_beside_the_others(tmp_path):
  data = _write(tmp_path / "curves.csv", [row for row in _rows() if row[1] == "easy_1"])
  found = benchmark.benchmark(data, tmp_path / "out", methods=("m1", "big_transfer"))
  by_method = {line["method"]: line for line in found.summary}
  assert [line["domain"] for line in found.summary] == ["power", "power"]  # one domain: no "all"
  assert by_method["big_transfer"]["curves"] == 1
  assert by_method["big_transfer"]["mean_log_rmse"] < 0.1


def test_columns_may_have_other_names(tmp_path):
  data = _write(tmp_path / "curves.csv", [row for row in _rows() if row[0] == "power"],
                ("Domain", "Task", "Model", "tokens", "nats", "fit me"))
  assert benchmark.main(["--data", str(data), "--out", str(tmp_path / "out"), "--methods", "m1",
                         "--columns", "x=tokens, y=nats,training=fit me"]) == 0
  assert _read(tmp_path / "out/benchmark.csv")[0]["curves"] == "3"


def test_the_file_of_curves_is_never_written_over(tmp_path, capsys):
  data = _write(tmp_path / "curves.csv", _rows())
  before = data.read_bytes()
  assert benchmark.main(["--data", str(data), "--out", str(tmp_path), "--methods", "m1"]) == 1
  assert "would replace" in capsys.readouterr().err and data.read_bytes() == before


@pytest.mark.parametrize("flags, message", [
    (["--methods", "m1,m9"], "--methods: expected some of m1,m2,m3,m4,bnsl,mean3,big_transfer; "
                             "got 'm9'"),
    (["--methods", ","], "--methods: expected some of"),
    (["--columns", "x=tokens"], "expected the columns 'tokens' (x); the file has 'Domain'"),
    (["--columns", "size=tokens"], "--columns: expected ROLE=NAME"),
    (["--data", "nothing.csv"], "--data: expected a CSV file; nothing.csv is not there"),
])
def test_wrong_flags_are_errors_that_say_what_to_do(tmp_path, capsys, flags, message):
  data = _write(tmp_path / "curves.csv", _rows())
  assert benchmark.main(["--data", str(data), "--out", str(tmp_path / "out"), "--methods", "m1",
                         *flags]) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows, message", [
    ([row[:5] + [0] for row in _rows()], "expected rows with Training = 1, to fit"),
    ([row[:5] + [1] for row in _rows()], "expected rows with Training = 0, to score"),
    ([row[:5] + ["yes"] for row in _rows()], "none that can be read is one"),
    ([row for row in _rows() if row[1] == "negative"], "none of 1 curves could be scored"),
    ([], "expected rows with Training = 1"),
])
def test_files_of_no_use_are_errors(tmp_path, capsys, rows, message):
  data = _write(tmp_path / "curves.csv", rows)
  assert benchmark.main(["--data", str(data), "--out", str(tmp_path / "out"), "--methods",
                         "m1"]) == 1
  assert message in capsys.readouterr().err


def test_a_file_that_is_not_text_is_an_error(tmp_path, capsys):
  (tmp_path / "curves.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
  assert benchmark.main(["--data", str(tmp_path / "curves.csv"), "--out",
                         str(tmp_path / "out")]) == 1
  assert "expected a CSV file in UTF-8" in capsys.readouterr().err
