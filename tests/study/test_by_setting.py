"""Tables, figure and words on the same runs by few-shot probes, linear probes and fine-tuning."""
import numpy as np
import planted_points
import pyarrow as pa
import pytest

from big_transfer.study import (
    by_setting, findings, gather, report, saturation, sections, table)
from big_transfer.study import figures
from big_transfer.study.figures import by_setting as drawing

RUNS = 40


def _points(ds, us_U, variant="full", **runs):
  """`table.Points`; ds: {(task, setting, shots): (U,)}, NaN leaves a run out."""
  alone = planted_points.make(us_U, {"x": us_U}, **{"family": ["vit"] * len(us_U)} | runs)
  ids = alone.of_runs("run_id")
  parts = []
  for (task, setting, shots), ds_U in ds.items():
    known = np.isfinite(ds_U)
    n = int(known.sum())
    parts.append(pa.table({
        "run_id": ids[known], "us": us_U[known], "ds": ds_U[known], "task": [task] * n,
        "variant": [variant] * n, "setting": [setting] * n, "last": np.ones(n, bool),
        "shots": pa.array([shots] * n, pa.int64())}))
  return table.assemble(alone.runs, pa.concat_tables(parts))


def _tables(points, level=0.9):
  return by_setting.tables(points, saturation.fits(points, resamples=20), level=level)


def _line(tables, name, setting, task="pets", shots=None):
  line, = [line for line in tables[name] if line["setting"] == setting and line["task"] == task
           and line.get("shots") == shots]
  return line


@pytest.fixture(scope="module")
def alike():
  """Fine-tuning .2 above 10 shots; both go with upstream accuracy, as Eq. 1 has it."""
  rng = np.random.default_rng(0)
  us_U = rng.uniform(0.1, 0.95, RUNS)
  few_U = planted_points.law(us_U, e_ir=0.3) - rng.exponential(0.02, RUNS)
  tuned_U = few_U + 0.2 + rng.normal(0, 0.01, RUNS)
  tuned_U[:5] = np.nan
  return _points({("pets", "fewshot", 1): few_U - 0.1, ("pets", "fewshot", 10): few_U,
                  ("pets", "finetune", None): tuned_U, ("cars", "fewshot", 10): few_U}, us_U)


def test_gains_are_paired_by_run_and_against_the_most_shots(alike):
  tables = _tables(alike)
  assert {line["task"] for line in tables["settings"]} == {"pets"}  # cars has one setting
  line = _line(tables, "settings", "finetune")
  assert (line["runs"], line["pairs"], line["than_shots"]) == (RUNS - 5, RUNS - 5, 10)
  # The noise of a difference is .01: its mean over 35 runs has a standard error of .0017.
  assert line["gain"] == pytest.approx(0.2, abs=0.006)
  assert 0.19 < line["gain_low"] < line["gain"] < line["gain_high"] < 0.21
  assert line["correlation"] > 0.9 and line["correlation_low"] > 0.8
  few = _line(tables, "settings", "fewshot", shots=1)
  assert few["gain"] == pytest.approx(-0.1) and few["correlation"] == pytest.approx(1.0)
  base = _line(tables, "settings", "fewshot", shots=10)
  assert base["than_shots"] is base["gain"] is None and base["us_correlation"] > 0.8
  for name, columns in by_setting.COLUMNS.items():
    assert all(line.keys() == columns.keys() for line in tables[name]), name


def test_every_pair_of_ways_is_compared(alike):
  pairs = {(line["setting"], line["shots"], line["than_setting"], line["than_shots"]): line["gain"]
           for line in _tables(alike)["settings_pairs"]}
  assert pairs.keys() == {("fewshot", 10, "fewshot", 1), ("finetune", None, "fewshot", 1),
                          ("finetune", None, "fewshot", 10)}
  assert pairs["finetune", None, "fewshot", 1] == pytest.approx(0.3, abs=0.006)


def _verdicts(few, tuned, us_U):
  tables = _tables(_points({("pets", "fewshot", 10): few, ("pets", "finetune", None): tuned}, us_U))
  claim, over = tables["settings_claims"]
  assert over["task"] == by_setting.EVERY and over["verdict"] == claim["verdict"]
  return claim


def test_the_claim_is_confirmed_contradicted_or_undecided():
  rng = np.random.default_rng(1)
  us_U = rng.uniform(0.1, 0.97, 120)
  few = planted_points.law(us_U, alpha=2.0, e_ir=0.3) - rng.exponential(0.01, 120)
  alike = planted_points.law(us_U, alpha=2.0, e_ir=0.15) - rng.exponential(0.01, 120)
  claim = _verdicts(few, alike, us_U)
  assert [claim[name] for name in ("order", "upstream_order", "saturates", "verdict")] == [
      "confirmed"] * 4
  claim = _verdicts(few, 1.0 - alike, us_U)  # falls with upstream accuracy
  assert (claim["order"], claim["upstream_order"], claim["verdict"]) == ("contradicted",) * 3
  claim = _verdicts(few, rng.uniform(0.5, 0.9, 120), us_U)  # nothing to do with it
  assert (claim["order"], claim["verdict"]) == ("undecided", "undecided")


def test_two_runs_say_what_can_not_be_said():
  tables = _tables(_points({("pets", "fewshot", 5): np.array([0.3, 0.5]),
                            ("pets", "linear", None): np.array([0.5, 0.8]),
                            ("pets", "finetune", None): np.array([0.6, np.nan])},
                           np.array([0.2, 0.4])))
  line = _line(tables, "settings", "linear")
  assert line["gain"] == pytest.approx(0.25) and line["pairs"] == 2
  # Student's t with one degree of freedom: 6.31 standard errors, of differences .2 and .3.
  assert line["gain_high"] - line["gain"] == pytest.approx(6.3138 * 0.05, rel=1e-4)
  assert line["correlation"] is None and "2 runs have both, a correlation takes 5" in line["reason"]
  assert "no fit: 2 runs" in line["reason"] and line["fit_status"] == "no fit"
  alone = _line(tables, "settings", "finetune")
  assert alone["gain"] == pytest.approx(0.3) and alone["gain_low"] is None
  said = findings.settings(tables, "fractals", 5)
  # A sentence each on what they gain, and one on all that can't be said.
  assert said.count(". ") == 2 and said.endswith(
      "is undecided here for “fine-tuned” and “linear probe, all examples”, on every task: at most "
      "2 runs have both, and even a correlation takes 5.")


def test_what_is_decided_in_part_is_told_by_its_parts(alike):
  said = findings.settings(_tables(alike), "fractals", 10)
  assert "both order the runs alike: 1 confirmed; as upstream accuracy does: 1 confirmed" in said
  assert "undecided here for" not in said


def test_a_task_that_was_only_fine_tuned_has_its_line_and_panel():
  """Beside tasks with few-shot probes, that is; of those that have these alone there is no need."""
  us_U = np.linspace(0.1, 0.9, 12)
  points = _points({("pets", "fewshot", 5): us_U / 2, ("pets", "finetune", None): us_U,
                    ("omniglot", "finetune", None): us_U / 3, ("cars", "fewshot", 5): us_U}, us_U)
  tables = _tables(points)
  line = _line(tables, "settings", "finetune", task="omniglot")
  assert line["runs"] == 12 and line["us_correlation"] == pytest.approx(1.0)
  assert line["gain"] is line["correlation"] is line["than_shots"] is None
  assert "no few-shot probe of the task to compare with" in line["reason"]
  assert {line["task"] for line in tables["settings"]} == {"pets", "omniglot"}
  for name in ("settings_pairs", "settings_claims"):
    assert {line["task"] for line in tables[name]} <= {"pets", by_setting.EVERY}
  assert {row["panel"] for row in drawing.rows(points)} == {"omniglot", "pets"}
  assert "1 task of 2" in findings.settings(tables, "fractals", 5)
  alone = [line for line in tables["settings"] if line["task"] == "omniglot"]
  said = findings.settings({"settings": alone}, "fractals", 5)
  assert said.startswith("Fine-tuned, 1 task: on none has a run few-shot probes, too")


def test_intervals_of_a_gain_stay_within_what_is_possible():
  us_U = np.array([0.2, 0.4])
  few_U = np.array([0.1, 0.45])
  tables = _tables(_points({("pets", "fewshot", 5): few_U,
                            ("pets", "finetune", None): np.array([0.96, 0.97])}, us_U))
  line, (pair,) = _line(tables, "settings", "finetune"), tables["settings_pairs"]
  for one in (line, pair):  # Student's t with one degree of freedom goes to 1.8
    assert one["gain"] == pytest.approx(0.69) and one["gain_high"] == 1.0
    assert one["gain_low"] == pytest.approx(0.69 - 6.3138 * 0.17, rel=1e-4)


def test_nothing_speaks_of_lines_where_there_are_none():
  us_U = np.array([0.2, 0.3, 0.6, 0.7])
  ds = {("pets", "fewshot", 5): us_U, ("pets", "finetune", None): us_U + 0.1}
  subtitles = [drawing.settings(_points(ds, us_U, upstream_fraction=shares))["title"].get(
      "subtitle") for shares in ([1.0] * 4, [0.1, 0.1, 1.0, 1.0])]
  assert not subtitles[0] and "a line joins the means" in subtitles[1]
  section = next(section for section in sections.SECTIONS if section.anchor == "settings")
  assert not any("join" in part.caption for part in section.parts)


def test_without_few_shot_probes_the_others_are_still_compared():
  us_U = np.linspace(0.1, 0.9, 8)
  tables = _tables(_points({("pets", "linear", None): us_U / 2,
                            ("pets", "finetune", None): us_U / 2 + 0.1}, us_U))
  assert not tables["settings_claims"] and len(tables["settings"]) == 2
  pair, = tables["settings_pairs"]
  # The order of measures: what takes no shots by alphabet, so the linear probe against fine-tuning.
  assert (pair["setting"], pair["than_setting"]) == ("linear", "finetune")
  assert pair["gain"] == pytest.approx(-0.1) and pair["correlation"] == pytest.approx(1.0)
  assert all(line["gain"] is None for line in tables["settings"])


def test_one_setting_has_no_table_and_no_figure():
  points = planted_points.make(np.array([0.2, 0.4]), {"a": np.array([0.3, 0.5])})
  assert by_setting.tables(points, []) == {} and drawing.settings(points) is None
  assert findings.settings({}, "fractals", 10) is None


def test_the_figure_joins_the_means_of_each_share_of_the_data():
  us_U = np.array([0.2, 0.3, 0.6, 0.7])
  points = _points({("pets", "fewshot", 5): us_U, ("pets", "finetune", None): us_U + 0.1}, us_U,
                   upstream_fraction=[0.1, 0.1, 1.0, 1.0])
  rows = drawing.rows(points)
  means = [(row["setting"], row["fraction"], row["us"], row["ds"]) for row in rows
           if row["mark"] != "run"]
  assert means == [("5 shots", 0.1, 0.25, 0.25), ("5 shots", 1.0, 0.65, 0.65),
                   ("fine-tuned", 0.1, 0.25, 0.35), ("fine-tuned", 1.0, 0.65, 0.75)]
  assert sum(row["mark"] == "run" for row in rows) == 8
  spec = drawing.settings(points)
  scale = spec["spec"]["layer"][0]["encoding"]["color"]["scale"]
  assert scale["domain"] == ["5 shots", "fine-tuned"] and len(set(scale["range"])) == 2
  names = [name for name, _ in figures.catalogue(
      points, {}, shots=5, which="main")]
  assert names == ["overview", "pets", "pets_finetune", "settings"]


def test_the_figure_has_lines_for_each_family():
  us_U = np.array([0.2, 0.3, 0.6, 0.7, 0.5])
  points = _points({("pets", "fewshot", 5): us_U, ("pets", "finetune", None): us_U}, us_U,
                   upstream_fraction=[0.1, 1.0, 0.1, 1.0, 1.0],
                   family=["mixer", "mixer", "vit", "vit", "resnet"])
  means = [(row["family"], row["fraction"], row["ds"]) for row in drawing.rows(points)
           if row["mark"] != "run" and row["setting"] == "fine-tuned"]
  # The one ResNet makes no line, and no line's end is a mean of two families.
  assert means == [("Mixer", 0.1, 0.2), ("Mixer", 1.0, 0.3), ("ViT", 0.1, 0.6), ("ViT", 1.0, 0.7)]
  dashes = drawing.settings(points)["spec"]["layer"][1]["encoding"]["strokeDash"]
  assert dashes["sort"] == ["ViT", "Mixer"] and dashes["legend"]


def test_a_figure_of_many_runs_draws_a_part_of_them():
  us_U = np.linspace(0.1, 0.9, 4000)
  rows = drawing.rows(_points({("pets", "fewshot", 5): us_U, ("pets", "finetune", None): us_U},
                              us_U, upstream_fraction=[1.0] * 4000))
  assert len(rows) == drawing.MOST_MARKS and {row["mark"] for row in rows} == {"run"}


def test_figures_and_page_choose_by_setting_where_there_are_no_shots(alike, tmp_path):
  tables = {"fits": saturation.fits(alike, resamples=20)} | _tables(alike)
  for which in (1, 10, "finetune"):
    assert figures.overview(alike, tables, which)["title"]["text"].endswith(
        "fine-tuned" if which == "finetune" else f"{which} shot{'s' * (which > 1)}")
  with pytest.raises(ValueError, match="shots that were probed: 1 shot, 10 shots, fine-tuned"):
    figures.overview(alike, tables, "linear")
  census = gather.Census(("x",), RUNS, {}, 9, (), 7)
  page = report.write(tmp_path / "r.html", alike, tables, census, shots="finetune",
                      sources={}).read_text()
  assert "and 7 fine-tuned from them" in page and "Few-shot, linear and fine-tuned" in page
  assert '"first_shots":"finetune"' in page and '"fractals|finetune":' in page


def test_runs_whose_upstream_accuracy_is_stated_are_marked(tmp_path):
  points = planted_points.make(np.array([0.2, 0.4]), {"a": np.array([0.3, 0.5])},
                               us_stated=[None, "a paper, table 3"], run_name=["one", "two"])
  page = report.write(tmp_path / "r.html", points, {}, gather.Census(("x",), 2, {}, 9, ()),
                      shots=10, sources={}).read_text()
  assert "<dt>upstream accuracy stated, not measured here</dt><dd>two (a paper, table 3)" in page
  assert "two; its upstream accuracy is stated, not measured: a paper, table 3" in page
