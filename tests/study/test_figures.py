"""What figures draw, from planted points and tables; that they draw at all."""
import importlib.resources
import re

import altair
import numpy as np
import planted_points
import planted_tables
import pytest
import vl_convert

from big_transfer.study import figures, hull, ranks, reference, saturation, table
from big_transfer.study.figures import matrices, panels, scatter, style, trends


@pytest.fixture(scope="module")
def study():
  points = planted_tables.make_points()
  return points, planted_tables.make_tables(points)


@pytest.fixture(scope="module")
def drawn(study):
  points, tables = study
  # Those of the second upstream are of the same make as the first's.
  return {name: (spec, vl_convert.vegalite_to_svg(spec))
          for name, spec in figures.catalogue(points, tables, shots=10, reference="paper")
          if "textures" not in name}


def test_every_figure_is_drawn_and_valid(drawn):
  names = {re.sub("_(fractals|textures)$", "", name) for name in drawn}
  assert names >= {"overview", "overview_log", "overview_logit", "all_runs", "irreducible_error",
                   "parameters", "sample_size", "sample_size_by_task", "curves_hull", "curves_all",
                   "high_upstream", "prediction_errors", "controlled_data", "controlled_model",
                   "hull_families", "overlay", "spearman", "spearman_upstream", "peers"}
  for name, (spec, drawing) in drawn.items():
    if name in ("fractals_pets", "parameters", "sample_size", "spearman_fractals"):  # one a make
      altair.Chart.from_dict(spec | {"datasets": {}}, validate=True)
    # A mark of data has a description of its own; axes and legends do not.
    marks = re.findall(r'<(?:path|text|rect)[^>]*aria-label="[^"]*: [^"]*"', drawing)
    assert len(marks) >= 2, name


def test_titles_and_axes_say_what_is_plotted(drawn):
  for name, words in (("overview", ("upstream accuracy, fractals", "downstream accuracy")),
                      ("overview_logit", ("(logit)", "90%")),
                      ("sample_size", ("mean squared error, accuracy²", "runs fitted")),
                      ("irreducible_error", ("shots a class (log scale)",)),
                      ("prediction_errors_fractals", ("saturating", "logit-quadratic"))):
    texts = re.sub("<[^>]+>", " ", drawn[name][1])
    assert all(word in texts for word in words), name


def test_a_drawn_law_is_the_fitted_one_and_ends_in_the_saturation_value(study):
  points, tables = study
  view = points.view(0)
  fits = scatter.fits_by_cell(tables)[tuple(view.cell)]
  fit = next(line for line in fits if line["fit"] == "hull")
  lines = panels.curves(view, fits)
  curve = [line for line in lines if line["line"] == panels.LAWS["hull"]]
  assert curve[-1]["us"] == 1.0
  assert curve[-1]["ds"] == pytest.approx(1.0 - fit["e_IR"], abs=1e-4)
  on_hull = {(line["us"], line["ds"]) for line in lines if line["line"] == panels.HULL}
  vertices = hull.upper_hull(view.us, view.ds)
  assert len(vertices) == fit["hull_vertices"]
  assert {(round(float(view.us[i]), 4), round(float(view.ds[i]), 4)) for i in vertices} <= on_hull


def test_places_rise_with_accuracy_on_all_axes_and_are_finite():
  accuracies = np.linspace(0.0, 1.0, 201)
  for name, axis in style.AXES.items():
    places = axis.forward(accuracies)
    assert np.isfinite(places).all() and (np.diff(places) >= 0).all(), name
    assert (np.diff(places[2:-2]) > 0).all(), name
  errors = 1.0 - accuracies[1:-1]
  # Eq. 1 without irreducible error is a straight line on log axes: that is what they are for.
  x, y = (style.AXES["log"].forward(1.0 - e) for e in (errors, 0.5 * errors ** 1.0))
  assert np.allclose(y - x, np.log10(2.0), atol=1e-9)


def test_published_laws_are_drawn_on_the_task_of_that_name_and_at_their_shots_alone(drawn):
  kinds = {line["line"] for i in range(4)
           for line in drawn["overview"][0]["datasets"][f"lines_{i}"]}
  assert panels.REFERENCE["hull"] not in kinds  # at 10 shots; they are of 25
  points = planted_tables.make_points(shot_counts=(25,))
  tables = {"fits": saturation.fits(points, resamples=20)}
  spec = figures.overview(points, tables, 25, reference="paper")
  for i, panel in enumerate(spec["concat"]):
    kinds = {line["line"] for line in spec["datasets"][f"lines_{i}"]}
    assert (panels.REFERENCE["hull"] in kinds) == panel["title"]["text"].startswith("pets")
  curve = [line for line in spec["datasets"]["lines_1"] if line["line"] == panels.REFERENCE["all"]]
  law = reference.law("pets", "all")
  curve or pytest.fail("no published law of the second panel, pets after textures")
  for line in curve:
    assert line["ds"] == pytest.approx(
        1.0 - law.k * (1.0 - line["us"]) ** law.alpha - law.e_IR, abs=2e-3)


def test_of_many_points_some_are_drawn_always_the_same_and_the_hull_among_them():
  points = planted_tables.make_points(runs=900, tasks=("pets",), shot_counts=(10,))
  view, runs = points.view(0), panels.Runs(points)
  first, second = (panels.panel_data(view, runs, [], most=50)["points"] for _ in range(2))
  assert first == second and 50 <= len(first) < 80
  shown = {(row["us"], row["ds"]) for row in first}
  for i in hull.upper_hull(view.us, view.ds):
    assert (round(float(view.us[i]), 5), round(float(view.ds[i]), 5)) in shown
  assert len(panels.panel_data(view, runs, [], most=view.us.size)["points"]) == view.us.size


def test_a_figure_says_when_it_draws_but_a_part(monkeypatch, study):
  points, tables = study
  monkeypatch.setattr(scatter, "MOST_MARKS", 10)
  monkeypatch.setattr(scatter, "_LEAST_MARKS", 10)
  assert "27 points a panel 10 are drawn" in str(scatter.overview(points, tables, 10)["title"])


def test_held_out_runs_are_those_best_upstream(study):
  points, tables = study
  spec = figures.high_upstream(points, tables, 10, upstream="fractals")
  line = next(line for line in tables["prediction"] if line["method"] == "saturating"
              and (line["upstream"], line["task"], line["shots"]) == ("fractals", "digits", 10))
  for row in spec["datasets"]["points_0"]:
    assert (row["role"] == "held out") == (row["us"] >= round(line["us_from"], 5))
  kinds = {row["line"] for row in spec["datasets"]["lines_0"]}
  assert kinds == {panels.HULL, panels.LOWER["hull"], panels.LOWER["all"]}


def test_controlled_runs_are_coloured_by_their_factor(study):
  points, tables = study
  spec = figures.controlled(points, tables, "data", 10, upstream="fractals")
  coloured = {row["shade"] for row in spec["datasets"]["points_0"] if row["role"] != panels.RUN}
  assert coloured == set(planted_tables.FRACTIONS)
  assert figures.controlled(points, tables, "epochs", 10) is None


def test_overlaid_runs_are_those_on_the_reference_hull(study):
  points, tables = study
  spec = figures.overlay(points, tables, 10, upstream="fractals")
  base = ranks.reference_task(points)[0]
  view = next(view for view in points if view.cell.task == base and view.cell.shots == 10
              and view.cell.upstream == "fractals")
  ids_U = points.of_runs("run_id")
  expected = {ids_U[view.run[i]] for i in hull.upper_hull(view.us, view.ds)}
  assert {row["run_id"] for row in spec["datasets"]["points_0"]
          if row["role"] != panels.RUN} == expected


def test_sample_sizes_are_averaged_over_tasks_where_all_have_them(study):
  lines = [dict(line) for line in study[1]["sample_size"] if line["upstream"] == "fractals"]
  lines = [line for line in lines if line["shots"] == 1]
  lines.remove(next(line for line in lines if line["size"] == 10 and line["fit"] == "hull"))
  twice = next(line for line in lines if line["size"] == 20 and line["fit"] == "hull")
  twice["prediction_error"] *= 3
  rows = trends.sample_size({"sample_size": lines})["datasets"]["rows"]
  held = [row for row in rows if row["fit"] == "hull" and row["error"] == "held out"]
  assert [row["size"] for row in held] == [20]
  assert held[0]["value"] == pytest.approx(2 * 1e-3 / 20)


def test_the_matrices_hold_the_table(study):
  rows = matrices.spearman_matrix(study[1], upstream="fractals", shots=1)["datasets"]["rows"]
  assert {(row["row"], row["column"]) for row in rows} == {
      (a, b) for a in ("digits", "pets") for b in ("digits", "pets")}
  assert all(row["value"] == pytest.approx(1.0) for row in rows if row["row"] == row["column"])
  rows = matrices.peers(study[1], shots=1)["datasets"]["rows"]
  assert {row["value"] for row in rows if row["row"] == f"best on {row['column']}"} == {1.0}


def test_tables_without_lines_draw_nothing():
  for make in (trends.irreducible_error, trends.parameters, trends.sample_size,
               trends.sample_size_by_task, trends.prediction_errors, trends.hull_families,
               matrices.spearman_matrix, matrices.spearman_upstream, matrices.peers):
    assert make({}) is None, make.__name__


def test_figures_are_saved_in_the_formats_asked_for(study, tmp_path):
  points, tables = study
  spec = figures.overview(points, tables, 10, upstream="fractals")
  png, svg, pdf = figures.save(spec, tmp_path / "f/overview", ("png", "svg", "pdf"))
  assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
  assert "ResNet" in svg.read_text() and png.stat().st_size > 20_000
  with pytest.raises(ValueError, match="--formats: expected some of png, svg, pdf, got 'gif'"):
    figures.save(spec, tmp_path / "x", ("gif",))


def test_mistakes_are_named(study):
  points, tables = study
  with pytest.raises(ValueError, match="with 3 shots, got none; choose .* 1 shot, 10 shots"):
    figures.overview(points, tables, 3)
  with pytest.raises(ValueError, match="task: expected one of the study's"):
    figures.task_figure(points, tables, ("a", "b", None, None))
  with pytest.raises(ValueError, match="--figures: expected one of all, main"):
    next(figures.catalogue(points, tables, shots=10, which="some"))
  with pytest.raises(ValueError, match="--reference: expected 'paper'"):
    figures.overview(points, tables, 10, reference="mine")


def test_rare_families_of_many_share_a_name():
  names = [f"family {i}" for i in range(20)] + ["vit"] * 3 + ["family 7"] * 3
  points = planted_points.make(np.linspace(0.1, 0.9, len(names)), {"a": np.full(len(names), 0.5)},
                               family=names)
  named, shown = style.families(points)
  assert shown[:2] == ["ViT", "family 7"] and shown[-1] == style.OTHER_FAMILIES
  assert len(shown) == style.MOST_FAMILIES == len(set(style.looks(shown).values()))
  assert set(named) == set(shown)
  # Each has a shape with an inside, which is painted, and a mark in the page's list of them.
  marks = (importlib.resources.files("big_transfer.study") / "page/report.js").read_text()
  for _, shape in style.looks(shown).values():
    assert shape != "stroke" and re.search(rf'\W"?{shape}"?: "M', marks)


def test_bars_of_the_hull_show_those_whose_hull_it_is():
  lines = [{"upstream": "a", "task": "x", "variant": None, "setting": None, "shots": 1,
            "family": name, "share_of_runs": 0.05, "share_of_hull": 0.5 * name.startswith("z")}
           for name in [f"a{i}" for i in range(18)] + ["z1", "z2"]]
  rows = figures.hull_families({"hull_families": lines})["datasets"]["rows"]
  shown = {row["family"] for row in rows if row["panel"] == "share of the upper hull"
           and row["value"] > 0}
  assert shown == {"z1", "z2"}
  domain = {row["family"] for row in rows}
  assert len({colour for colour, _ in style.looks(sorted(domain)).values()}) == len(domain)


def test_a_hull_is_straight_between_accuracies_alone():
  view = next(iter(planted_points.make(np.array([0.2, 0.9]), {"a": np.array([0.1, 0.8])})))
  drawn = panels.placed(panels.curves(view, []), "log")
  assert len(drawn) > 10
  np.testing.assert_allclose([row["ds"] + 0.1 for row in drawn], [row["us"] for row in drawn],
                             atol=2e-4)



def test_axes_span_a_tenth_at_least_and_stay_within_accuracies():
  for us, ds in ((0.5, 0.3), (0.0, 1.0), (0.99, 0.02)):
    view = planted_points.make(np.array([us]), {"a": np.array([ds])}).view(0)
    low, high = panels.frame(view)
    for name, value in (("us", us), ("ds", ds)):
      assert high[name] - low[name] == pytest.approx(0.1)
      assert 0.0 <= low[name] <= value + 1e-12 and value - 1e-12 <= high[name] <= 1.0


def test_a_hull_that_hardly_moves_is_called_flat():
  fit = {"fit": "hull", "status": "ok", "saturation": 0.2, "saturation_low": 0.19,
         "saturation_high": 0.21, "hull_rise": 0.029}
  assert figures.verdict([fit]) == "flat at 20 % [19–21]"
  assert figures.verdict([fit | {"hull_rise": 0.031}]) == "saturates at 20 % [19–21]"


def test_earlier_evaluations_are_marked(study):
  points, tables = study
  assert "(all evaluations)" not in scatter.overview(points, tables, 10)["title"]["text"]
  earlier = points.measured.set_column(
      points.measured.column_names.index("last"), "last", [np.arange(len(points)) % 2 == 0])
  some = table.Points(points.runs, earlier, points.run, points.cells, points.first)
  assert "(all evaluations)" in scatter.overview(some, tables, 10)["title"]["text"]
