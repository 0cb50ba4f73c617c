"""Figures and findings of the layers and of the head's settings, from planted tables."""
import re

import altair
import numpy as np
import planted_explanation
import planted_tables
import pyarrow as pa
import pytest
import vl_convert
from scipy import stats

from big_transfer.study import claims, effect_words, payload, report
from big_transfer.study.figures import head, layers, panels, scatter
from big_transfer.study.figures.catalogue import _of_upstream

FRACTALS = {"upstream": "fractals", "shots": 10}


@pytest.fixture(scope="module")
def study():
  points = planted_tables.make_points()
  tables = planted_tables.make_tables(points)
  return points, tables | planted_explanation.make(points, tables["spearman"])


@pytest.fixture(scope="module")
def alone(study):
  """The tables of one run seed."""
  points, tables = study
  return tables | planted_explanation.make(points, tables["spearman"], seeds=1)


def rows_of(spec):
  return spec["datasets"]["rows"]


@pytest.mark.slow
def test_every_figure_is_valid_and_drawn(study):
  points, tables = study
  made = {"layer_overlay": layers.layer_overlay(points, tables, 10, upstream="fractals"),
          "layer_curves": layers.layer_curves(tables, **FRACTALS),
          **dict(head.figures(tables, **FRACTALS))}
  assert len(made) == 12
  for name, spec in made.items():
    altair.Chart.from_dict(spec | {"datasets": {}}, validate=True)
    if name.startswith("head_rate"):  # of the same make as those of the decay
      continue
    drawing = vl_convert.vegalite_to_svg(spec)
    words = re.sub("<[^>]+>", " ", drawing)
    if name.startswith("layer_"):
      assert "pre_logits" in words and "stem" in words and "digits" in words
    else:
      assert "weight decay" in words, name
    assert len(re.findall(r'<path[^>]*aria-label="[^"]*: [^"]*"', drawing)) > 3, name
  names = {name for name, _ in _of_upstream(points, tables, 10, "fractals")}
  assert made.keys() <= names


# -- Layers ---------------------------------------------------------------------------------------


def test_an_overlay_draws_all_runs_and_the_layers_of_the_best_of_each_family(study):
  points, tables = study
  spec = layers.layer_overlay(points, tables, 10, upstream="fractals")
  views = scatter.chosen_views(points, 10, "fractals")
  family_U = points.of_runs("family")
  for i, view in enumerate(views):
    assert len(spec["datasets"][f"points_{i}"]) == view.us.size
    rows = spec["datasets"][f"layers_{i}"]
    for name, family in (("ViT", "vit"), ("Mixer", "mixer"), ("ResNet", "resnet")):
      mine = [row for row in rows if row["family"] == name]
      assert [row["layer"] for row in mine] == planted_explanation.names_of(family)
      of_family = family_U[view.run] == family
      top = view.us[of_family].argmax()
      assert mine[0]["us"] == view.us[of_family][top]
      # What the head sees is the run's own mark.
      assert mine[-1]["y"] == pytest.approx(view.ds[of_family][top])
      marked = [row["layer"] for row in mine if row["mark"] == layers.EARLIEST]
      best = max(mine, key=lambda row: row["ds"])["layer"]
      assert marked == [best] and (best == "pre_logits") == (view.cell.task == "pets")
    assert spec["concat"][i]["resolve"]["scale"]["x"] == "independent"


def test_a_mean_curve_is_that_of_interpolated_runs(study):
  table = study[1]["layers"]
  part = table.filter(pa.compute.and_(pa.compute.equal(table["task"], "digits"),
                                      pa.compute.equal(table["shots"], 10)))
  rng = np.random.default_rng(0)
  noisy = part.set_column(part.column_names.index("ds"), "ds",
                          [part["ds"].to_numpy() + rng.normal(0, 0.05, part.num_rows)])
  grid = np.linspace(0, 1, 25)
  curves = {}
  for line in noisy.to_pylist():
    curves.setdefault((line["upstream"], line["family"], line["run_id"]), []).append(line)
  expected = {}
  for (upstream, family, _), lines in curves.items():
    ds = [line["ds"] for line in lines]
    expected.setdefault((upstream, family), []).append(
        np.interp(grid, [line["depth_share"] for line in lines], ds) - ds[-1])
  found = {}
  for line in layers.mean_curves(noisy):
    found.setdefault((line["upstream"], line["family"]), []).append(line)
  assert found.keys() == expected.keys()
  for key, lines in found.items():
    runs = np.array(expected[key])
    np.testing.assert_allclose([line["depth_share"] for line in lines], grid)
    for name, values in (("mean", runs.mean(0)), ("low", np.quantile(runs, 0.1, axis=0)),
                         ("high", np.quantile(runs, 0.9, axis=0))):
      np.testing.assert_allclose([line[name] for line in lines], values, atol=1e-9)
    assert {line["runs"] for line in lines} == {len(runs)}


def test_a_run_without_a_probe_of_the_last_layer_is_in_no_mean(study):
  table = study[1]["layers"]
  name = table["run_id"][0].as_py()
  without = table.filter(pa.compute.invert(pa.compute.and_(
      pa.compute.equal(table["run_id"], name), pa.compute.equal(table["layer"], "pre_logits"))))
  full, less = ({(line["upstream"], line["family"], line["task"], line["shots"]): line["runs"]
                 for line in layers.mean_curves(content)} for content in (table, without))
  assert {full[key] - less[key] for key in full} == {0, 1}


def test_lines_are_chosen_alike_from_dicts_and_from_arrow(study):
  best = study[1]["best_layers"]
  arrow = pa.Table.from_pylist(best)
  for wanted in ({"upstream": "fractals", "shots": 1}, {"variant": None}, {"variant": "x"}):
    assert layers.lines_of(best, **wanted) == layers.lines_of(arrow, **wanted)
  assert layers.lines_of(None) == []
  assert layers.best_runs({"best_layers": arrow}) == layers.best_runs({"best_layers": best})


def test_the_page_holds_the_drawn_runs_layers_and_no_others(study):
  points, tables = study
  for cell in payload.cells(points, tables, None, panels.Runs(points)):
    columns = cell["layers"]
    assert len(columns["run_id"]["words"]) == 3 and len(columns["ds"]) == 5 + 4 + 6
  shown = report._tables(tables)
  assert len(shown["best_layers"]["columns"]["us"]) == 3 * len(points.cells)
  assert shown["accuracy_effects"]["any"] == ["shots"] and shown["fits"]["any"] == []
  quantities = [set(shown[name]["columns"]["quantity"]["words"])
                for name in ("accuracy_effects", "geometry_effects")]
  assert quantities == [{"upstream accuracy", "accuracy on the task"},
                        {"margin", "margin_normalised", "total_variance", "l2_norm"}]


# -- The head -------------------------------------------------------------------------------------


def test_accuracies_are_those_of_the_table_at_all_shots(study):
  spec = head.head_accuracy(study[1], "head_decay", upstream="fractals")
  assert spec["facet"]["sort"] == [head.UPSTREAM_PANEL, "digits", "pets"]
  lines = [line for line in study[1]["head_curves"] if line["factor"] == "head_decay"
           and line["quantity"] in ("us", "ds") and line["upstream"] == "fractals"]
  assert sorted((row["series"], row["of"] or 0, row["value"], row["mean"])
                for row in rows_of(spec)) == sorted(
                    (line["series"], line["shots"] or 0, line["value"], line["mean"])
                    for line in lines)
  assert {row["of"] for row in rows_of(spec)} == {None, 1, 10}
  for row in rows_of(spec):
    assert row["high"] - row["mean"] == pytest.approx(row["error"])
    assert row["neutral"] == (row["value"] == 1.0)


def test_a_decay_of_zero_has_a_place_below_the_others(study):
  curves = [dict(line) for line in study[1]["head_curves"] if line["factor"] == "head_decay"]
  for line in curves:
    line["value"] = 0.0 if line["value"] == 0.01 else line["value"]
  spec = head.head_accuracy({"head_curves": curves}, "head_decay", upstream="fractals")
  places = {row["value"]: row["place"] for row in rows_of(spec)}
  assert 0.0 < places[0.0] < 0.1 and places[0.1] == 0.1
  assert ">0<" in vl_convert.vegalite_to_svg(spec)


def test_of_many_series_those_with_most_runs_are_drawn_and_the_finding_says_so(study):
  tables = {name: list(study[1][name]) for name in ("head_curves", "head_effects")}
  for number in range(5):
    for name, lines in tables.items():
      lines += [line | {"series": f"small {number}"} | ({"seeds": 1} if "seeds" in line else {})
                for line in study[1][name] if line["series"] == "ViT 64x4"]
  spec = head.head_accuracy(tables, "head_rate", upstream="fractals")
  assert {row["series"] for row in rows_of(spec)} == {"ViT 64x4", "Mixer 64x3", "small 0",
                                                      "small 1"}
  text = claims.head_accuracy("head_rate", tables, "fractals", 10)
  assert "draw the 4 series with most runs" in text


def test_best_settings_carry_those_of_upstream_beside(study):
  rows = rows_of(head.head_best(study[1], "head_rate", upstream="fractals", shots=1))
  assert {row["panel"] for row in rows} == {"all series", "ViT 64x4", "Mixer 64x3"}
  by_task = {row["label"]: row for row in rows if row["panel"] == "all series"}
  assert by_task["digits"]["best"] == 0.1 and by_task["pets"]["best"] == 3.0
  for row in rows:
    assert (row["upstream_best_low_place"], row["upstream_best_place"],
            row["upstream_best_high_place"]) == (1.0, 3.0, 3.0)
  ranks = {line["row"]: line["correlation"] for line in study[1]["spearman"]
           if line["column"] == "upstream" and line["upstream"] == "fractals"
           and line["shots"] == 1}
  assert {name: row["correlation"] for name, row in by_task.items()} == ranks
  single = {name: [line for line in study[1][name] if line["series"] != "Mixer 64x3"]
            for name in ("head_curves", "head_best")}
  rows = rows_of(head.head_best(single, "head_rate", upstream="fractals"))
  assert {row["panel"] for row in rows} == {"ViT 64x4"}  # the pool of one series is that series


def test_labels_of_equal_best_settings_stand_on_no_other():
  rng = np.random.default_rng(0)
  rows = [{"correlation": float(at), "best": float(best), "label": "a task's name"[:length]}
          for at, best, length in zip(rng.uniform(0.6, 1.0, 25), rng.choice([0.1, 1.0], 25),
                                      rng.integers(3, 13, 25))]
  boxes = []
  for row in head._lifted(rows, 0.0, 1.1):
    half, at = 2.8 * len(row["label"]), row["correlation"] / 1.1 * head._WIDTH
    boxes.append((row["best"], row["lift"], at - half, at + half))
  assert max(box[1] for box in boxes) > 0
  for i, (best, lift, low, high) in enumerate(boxes):
    for other in boxes[:i]:
      assert (best, lift) != other[:2] or high <= other[2] or other[3] <= low


def test_margins_and_norms_are_in_the_order_of_depth(study):
  spec = head.margins(study[1], "head_decay", upstream="fractals")
  x = spec["spec"]["layer"][0]["encoding"]["x"]
  assert x["sort"] == ["stem", "block_00", "block_01", "block_02", "pre_logits"]
  assert {row["panel"] for row in rows_of(spec)} == {
      f"{series}: {kind}" for series in planted_explanation.SERIES
      for kind in ("margin", "normalised margin")}
  spec = head.layer_norms(study[1], "head_decay", upstream="fractals")
  x = spec["spec"]["layer"][0]["encoding"]["x"]
  assert x["sort"][-2:] == ["pre_logits", "head"] and "body" not in x["sort"]
  rows = rows_of(head.norms(study[1], "head_decay", upstream="fractals"))
  for part, rises in (("head", False), ("body", True)):
    mine = [row for row in rows if row["panel"] == f"ViT 64x4: {part}"]
    ends = [next(row["mean"] for row in mine if row["value"] == value) for value in (0.01, 10.0)]
    assert (ends[1] > ends[0]) == rises


def test_without_tables_nothing_is_drawn_or_said(study):
  points = study[0]
  assert layers.layer_overlay(points, {}, 10) is None and layers.layer_curves({}) is None
  assert all(spec is None for _, spec in head.figures({}))
  empty = {"layers": study[1]["layers"].slice(0, 0), "best_layers": [], "explained": [],
           "head_curves": [], "head_effects": [], "head_best": []}
  for tables in ({}, empty):
    assert layers.overlaid(tables) == {} and layers.layer_curves(tables) is None
    assert all(make(tables, "fractals", 10) is None for make in claims.FINDINGS.values())


# -- Findings -------------------------------------------------------------------------------------


def said(tables, upstream="fractals", shots=10):
  return {name: make(tables, upstream, shots) for name, make in claims.FINDINGS.items()}


def test_findings_state_the_tables_numbers(study):
  texts = said(study[1])
  assert ("A decade more head weight decay changes upstream accuracy by −2.00 points "
          "[−2.40, −1.60] (falls).") in texts["head_decay_accuracy"]
  assert "from −1.00 points [−1.40, −0.60] (pets) to +1.50" in texts["head_decay_accuracy"]
  assert "changes the L2 norm of the head by −49.9 %" in texts["head_decay_norms"]
  assert "(falls)" in texts["head_decay_norms"] and "(rises)" in texts["head_decay_norms"]
  assert "of 4 layers of the body (stem and blocks), 4 up" in texts["head_decay_margins"]
  assert ("ViT 64x4: of 5 layers below the head, 5 up, 0 down and 0 undecided; from +25.9 % "
          "[+24.7, +27.1] (stem)") in texts["head_decay_layer_norms"]
  assert "0.01, the lowest tried (not told from it: 0.01 to 0.1)" in texts["head_decay_best"]
  assert ("Of 2 tasks, a higher one is best for 1, a lower one for 0, the same for 1; for 1 "
          "of them (digits) do all the settings that may be best lie above, or all below, those "
          "that may be best upstream") in texts["head_decay_best"]
  assert "digits (rank correlation +0." in texts["explained"]
  assert ("−0.25 within architectures, saturation value 80.0 %, best as early as block_0"
          in texts["explained"])
  assert "On 1 of 2 tasks one of its layers before pre_logits" in texts["layer_overlay"]
  assert "ViT (9 runs, 2 tasks)" in texts["layer_curves"]


def test_the_papers_claim_is_judged_part_by_part_and_in_either_direction(study):
  texts = said(study[1])
  for factor in head.FACTORS:  # a lower rate is planted to do what a higher decay does
    accuracy = texts[f"{factor}_accuracy"]
    assert "that it costs upstream accuracy holds here" in accuracy
    related = [line["row"] for line in sorted(
        (line for line in study[1]["spearman"] if line["column"] == "upstream"
         and line["upstream"] == "fractals" and line["shots"] == 10),
        key=lambda line: -line["correlation"])][0]
    assert (f"that upstream accuracy ranks best over all runs, architectures pooled) "
            f"{'holds here' if related == 'digits' else 'fails here'}") in accuracy
    assert (f"tasks related to upstream (here 1) are best at a "
            f"{'higher' if factor == 'head_decay' else 'lower'} one than upstream accuracy, "
            f"{'holds here' if related == 'digits' else 'is undecided here'}"
            ) in texts[f"{factor}_best"]
    assert "normalised margins of the body's layers rise holds here" in texts[f"{factor}_margins"]
    assert "the head's norm falls holds here" in texts[f"{factor}_norms"]
    assert "the body's norm rises holds here" in texts[f"{factor}_norms"]
  turned = {"rises": "falls", "falls": "rises", "undecided": "undecided"}
  against = said(study[1] | {"head_effects": [
      line | {"verdict": turned[line["verdict"]]} for line in study[1]["head_effects"]]})
  assert "costs upstream accuracy fails here" in against["head_decay_accuracy"]
  assert "the body's norm rises fails here" in against["head_rate_norms"]


@pytest.mark.parametrize("verdicts, words", [
    (["rises", "rises"], "holds here"),
    (["rises", "undecided", None], "holds here where it is decided, for 1 of 3"),
    (["falls"], "fails here, the opposite is seen"),
    (["rises", "falls", "falls"], "holds for 1 and fails for 2 of 3 here"),
    (["undecided", None], "is undecided here"),
    (["peaks"], "holds only to one side of a setting for 1 of 1 here"),
    (["falls", "dips", "undecided"],
     "fails for 1 and holds only to one side of a setting for 1 of 3 here")])
def test_a_claim_holds_no_further_than_its_intervals(verdicts, words):
  assert claims._outcome(verdicts, 1) == words


def test_a_curve_that_turns_is_said_to_turn(study):
  bent = [line | {"verdict": "peaks", "turn": 0.1} if line["quantity"] != "ds" else line
          for line in study[1]["head_effects"]]
  texts = said(study[1] | {"head_effects": bent})
  assert "points [−2.40, −1.60] (peaks at 0.1)" in texts["head_decay_accuracy"]
  assert "costs upstream accuracy holds only to one side" in texts["head_decay_accuracy"]
  assert ("of 4 layers of the body (stem and blocks), 0 up, 0 down, 4 up and then down and 0 "
          "undecided") in texts["head_decay_margins"]


@pytest.mark.parametrize("quantity, ends, words", [
    ("l2_norm", (2e-5, 1e-6, 4e-5), "+0.0046 % [+0.0002, +0.0092] (rises)"),
    ("us", (-2e-5, -4e-5, -1e-6), "−0.0020 points [−0.0040, −0.0001] (falls)"),
    ("us", (2e-5, -1e-5, 4e-5), "+0.00 points [−0.00, +0.00] (undecided)"),
    ("us", (2e-5, None, None), "+0.00 points (undecided)"),
    ("margin", (2e-5, 1e-6, 4e-5), "+2e−05 [+1e−06, +4e−05] (rises)")])
def test_a_decided_slope_is_not_printed_as_nothing(quantity, ends, words):
  line = dict(zip(("slope", "slope_low", "slope_high"), ends))
  verdict = {"r": "rises", "f": "falls", "u": "undecided"}[words.split("(")[1][0]]
  assert effect_words.with_verdict(line | {"quantity": quantity, "verdict": verdict}) == words


def test_a_range_of_one_value_is_one_number(study):
  lines = [line | {"last_layer_gain": 0.01} for line in study[1]["explained"]]
  text = claims.overlay(study[1] | {"explained": lines}, "fractals", 10)
  assert "above pre_logits by 1.0 points, in part" in text
  names = {line["run_name"] for line in lines if line["upstream"] == "fractals"}
  assert all(f"(run {name})" in text for name in names)


def test_the_p_value_of_few_tasks_counts_their_orders():
  # The t distribution calls a perfect order of five impossible (p = 1e-24): it is 1 of 60 both ways.
  for number, p_value in ((5, 2 / 120), (6, 2 / 720)):
    pairs = [(float(x), x ** 3) for x in range(number)]
    assert claims._correlated(pairs, "x").endswith(f"(p = {p_value:.2g}).")
  rng = np.random.default_rng(0)
  for number in (7, 12):  # 9,999 draws: a standard error of 0.005 at most
    xs, ys = (tuple(rng.integers(0, 5, number).tolist()) for _ in range(2))
    found, wanted = claims._spearman(xs, ys), stats.spearmanr(xs, ys)
    assert found[0] == pytest.approx(wanted.statistic)
    assert found[1] == pytest.approx(wanted.pvalue, abs=0.06)  # t is an approximation


def test_with_one_probe_seed_the_earliest_layer_is_called_the_best(study):
  best = [line | {"status": "one seed"} for line in study[1]["best_layers"]]
  words = "one probe seed the earliest is the best layer itself"
  assert words not in claims.overlay(study[1], "fractals", 10)
  for lines in (best, pa.Table.from_pylist(best)):
    assert words in claims.overlay(study[1] | {"best_layers": lines}, "fractals", 10)


def test_with_one_run_seed_nothing_is_claimed(alone):
  texts = said(alone)
  for factor in head.FACTORS:
    for part in ("accuracy", "margins", "norms"):
      assert "With one run seed" in texts[f"{factor}_{part}"]
      assert "holds here" not in texts[f"{factor}_{part}"] and "None" not in texts[
          f"{factor}_{part}"]
    assert "not told from it" not in texts[f"{factor}_best"]
  for spec in (head.head_accuracy(alone, "head_rate"), head.norms(alone, "head_rate")):
    assert all(row["low"] == row["high"] == row["mean"] and row["error"] is None
               for row in rows_of(spec))
  assert "NaN" not in vl_convert.vegalite_to_svg(head.head_best(alone, "head_rate", **FRACTALS))
