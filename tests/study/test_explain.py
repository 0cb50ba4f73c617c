"""Head ablations and the table a task: planted effects, which runs are compared, what is absent."""
import json

import numpy as np
import planted
import planted_layers
import planted_points
import pytest
from pyarrow import parquet
from scipy import stats

from big_transfer.study import __main__ as command
from big_transfer.study import ablations, analysis, explain, gather, head, ranks, table
from big_transfer.study.figures import layers as figures_of_layers
from big_transfer.study.figures import scatter

DECADES = {"head_decay": 1.0, "head_rate": -1.0}


def _points(folder):
  gather.gather([f"{folder}/*"], folder / "rows.parquet")
  return table.points(folder / "rows.parquet"), folder / "rows.parquet"


def _tables(folder, **options):
  points, rows = _points(folder)
  return head.tables(points, rows, ranks.spearman(points), **options)


def _one(lines, **wanted):
  """The line with these values; those not named are null, if they are of a quantity."""
  wanted = {"task": None, "shots": None, "layer": None, "series": ablations.ALL} | wanted
  found = [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]
  assert len(found) == 1, wanted
  return found[0]


@pytest.fixture(scope="module")
def planted_tables(tmp_path_factory):
  folder = tmp_path_factory.mktemp("ablations")
  planted_layers.write(folder)
  return _tables(folder)


def test_the_planted_effects_are_found_with_their_size(planted_tables):
  effects = planted_tables["head_effects"]
  for factor, sign in DECADES.items():
    settings = planted_layers.DECAYS if factor == "head_decay" else planted_layers.RATES
    us = _one(effects, factor=factor, quantity="us")
    assert us["verdict"] == ("falls" if sign > 0 else "rises") and us["status"] == "ok"
    # Its standard error is 0.001: a run's noise, 0.004, over 7 or 5 settings and 6 seeds.
    assert us["slope"] == pytest.approx(sign * planted_layers.US_SLOPE, abs=0.004)
    assert us["slope_high"] - us["slope_low"] < 0.008
    assert (us["settings"], us["lowest"], us["highest"]) == (
        len(settings), settings[0], settings[-1])
    assert (us["seeds"], us["pooled"], us["model"]) == (6, 2, None)
    assert us["change"] == pytest.approx(
        sign * planted_layers.US_SLOPE * np.log10(settings[-1] / settings[0]), abs=0.008)
    for layer, slope in planted_layers.NORM_SLOPES.items():
      found = _one(effects, factor=factor, quantity="l2_norm", layer=layer)
      assert found["slope"] == pytest.approx(sign * slope, abs=0.02) and found["group"] == "all"
      assert found["verdict"] == ("rises" if sign * slope > 0 else "falls")
    for layer, slope in (("pre_logits", "falls"), ("stem", "rises")):
      opposite = {"falls": "rises", "rises": "falls"}[slope]
      for quantity in ("margin", "margin_normalised"):
        found = _one(effects, factor=factor, quantity=quantity, layer=layer)
        assert found["verdict"] == (slope if sign > 0 else opposite) and found["quantile"] == 0.5
    # Digits are best a decade above neutral, within the settings, and worse at both ends.
    digits = _one(effects, factor=factor, quantity="ds", task="digits", shots=10)
    assert digits["verdict"] == "peaks" and us["turn"] is None
    assert abs(planted_layers.decades(factor, digits["turn"]) - 1.0) <= 0.6
  series = {line["series"] for line in effects}
  assert series == {ablations.ALL, *(label for label, _ in planted_layers.MODELS.values())}
  vit = _one(effects, factor="head_rate", quantity="us", series="ViT 64x4/8")
  assert (vit["seeds"], vit["pooled"], vit["family"]) == (3, 1, "vit")


def test_curves_are_means_over_seeds(planted_tables):
  curves = planted_tables["head_curves"]
  for factor, settings in (("head_decay", planted_layers.DECAYS),
                           ("head_rate", planted_layers.RATES)):
    lines = [line for line in curves if line["factor"] == factor and line["task"] == "digits"
             and line["shots"] == 10 and line["series"] == "Mixer 64x3/8"]
    assert [line["value"] for line in lines] == sorted(settings)
    for line in lines:
      truth = planted_layers.truth("mixer", factor, line["value"], "digits", 10)
      assert line["mean"] == pytest.approx(truth, abs=0.03) and line["seeds"] == 3  # 5 errors
      assert 0.0 < line["error"] < 0.03
  # Series differ by 0.08 upstream, which is no error of their mean.
  assert _one(curves, factor="head_decay", value=1.0, quantity="us")["error"] < 0.015
  body = _one(curves, factor="head_decay", value=1.0, quantity="l2_norm", layer="body",
              series="ViT 64x4/8")
  parts = [_one(curves, factor="head_decay", value=1.0, quantity="l2_norm", layer=layer,
                series="ViT 64x4/8")["mean"] for layer in planted_layers.layers("vit")]
  assert body["mean"] == pytest.approx(sum(parts))


def test_the_best_setting_is_the_planted_one(planted_tables):
  best = planted_tables["head_best"]
  for task, (_, at, _) in planted_layers.TASKS.items():
    for shots in planted_layers.SHOTS:
      line = _one(best, factor="head_decay", task=task, shots=shots)
      near = min(planted_layers.DECAYS, key=lambda value, at=at: abs(
          planted_layers.decades("head_decay", value) - at))
      assert line["best_low"] <= near <= line["best_high"], task
      assert (line["correlation"] > 0.7) == (task == "fractals_unseen")
  upstream = _one(best, factor="head_decay")
  assert (upstream["best"], upstream["correlation"], upstream["gain"]) == (0.03, None, 0.0)
  # The body's decay, 0.01, wasn't tried: the lowest that was is what to compare with.
  assert upstream["neutral"] == 0.03 and upstream["gain_low"] is None
  rate = _one(best, factor="head_rate", task="sprites_count", shots=10)
  assert rate["neutral"] == 1.0 and 0 < rate["gain_low"] < rate["gain"] < rate["gain_high"]


def _ablation(folder, settings, *, seeds=(0, 1), us=0.5, first=0, rules=None, **changes):
  """Runs of one setting and seed each; settings are overrides, rules what they make of them."""
  for index, (override, seed) in enumerate((o, s) for o in settings for s in seeds):
    accuracy = {"metric": "accuracy", "step": 400}
    rows = [accuracy | {"evaluator": "upstream", "value": us + 0.01 * index},
            accuracy | {"evaluator": "fewshot", "task": "t", "shots": 5, "seed": 0,
                        "value": 0.5 + 0.01 * (index % 3)}]
    config = {"optim": {"lr": override.get("optim.lr", 1e-3), "rules": rules(override)},
              "model": changes.get("model"), "seed": seed}
    path = planted.write_run(folder, first + index, None, rows, **{
        "seed": seed, "model": {"family": "vit", "label": "ViT"}, "parameters": 1,
        "overrides": override | {"seed": seed}} | changes)
    (path / "config.json").write_text(json.dumps(config))


def _rules(override):
  return [["head/.*", {"wd": override.get("optim.rules[0][1].wd", 0.1),
                       "lr": override.get("optim.rules[0][1].lr", 1.0)}],
          [".*", {"wd": override.get("optim.rules[1][1].wd", 0.01)}]]


def _decays(*values, **more):
  return [{"optim.rules[0][1].wd": value, **more} for value in values]


def test_runs_of_any_sweep_that_differ_in_the_head_alone_are_compared(tmp_path):
  _ablation(tmp_path, [{}, *_decays(1.0, 10.0)], rules=_rules)  # the default is a setting too
  other = {"optim.rules[1][1].wd": 0.3}
  _ablation(tmp_path, _decays(0.1, 1.0, 10.0, **other), rules=_rules, first=10)
  _ablation(tmp_path, _decays(3.0, 30.0, **{"optim.lr": 0.5}), rules=_rules, first=20)  # but two
  curves = _tables(tmp_path)["head_curves"]
  found = {line["series"]: line["value"] for line in curves}
  assert found.keys() == {"body decay 0.01", "body decay 0.3", ablations.ALL}
  assert {line["value"] for line in curves} == {0.1, 1.0, 10.0}


def test_a_run_of_another_sweep_completes_a_series_that_its_config_belongs_to(tmp_path):
  rates = [{"optim.rules[0][1].lr": value} for value in (0.1, 0.3)]
  _ablation(tmp_path, rates, rules=_rules, config_name="rates.py")
  _ablation(tmp_path, _decays(0.1, 1.0, 10.0), rules=_rules, first=10, config_name="decays.py")
  curves = _tables(tmp_path)["head_curves"]  # a decay of 0.1 at a rate of 1 is in both
  assert {(line["factor"], line["value"]) for line in curves} == {
      *(("head_rate", value) for value in (0.1, 0.3, 1.0)),
      *(("head_decay", value) for value in (0.1, 1.0, 10.0))}
  assert {line["series"] for line in curves} == {"ViT", ablations.ALL}


def test_rules_given_as_a_whole_are_compared_by_what_they_say(tmp_path):
  def whole(*values):
    return [{"optim.rules": [["head/.*", {"wd": value}], ["stem/.*", {"wd": stem}],
                             [".*", {"wd": 0.01}]]} for value, stem in values]
  _ablation(tmp_path, whole((0.1, 0.5), (1.0, 0.5), (10.0, 0.5), (30.0, 0.7)),
            rules=lambda override: override["optim.rules"])
  curves = _tables(tmp_path)["head_curves"]
  assert {line["value"] for line in curves} == {0.1, 1.0, 10.0}  # 30 has another stem
  assert {line["series"] for line in curves} == {"ViT", ablations.ALL}
  _ablation(tmp_path / "odd", _decays(0.1, 1.0, 3.0, **{"optim.rules": "none"}), rules=_rules)
  assert _tables(tmp_path / "odd")["head_curves"]  # not the rules of our optimiser: only compared


def test_the_rate_of_the_head_is_held_fixed_beside_its_decay(tmp_path):
  grid = [one | {"optim.rules[0][1].lr": rate} for one in _decays(0.1, 1.0, 10.0)
          for rate in (0.1, 1.0, 3.0)]
  _ablation(tmp_path, grid, rules=_rules)
  curves = _tables(tmp_path)["head_curves"]
  assert {(line["factor"], line["series"]) for line in curves if line["pooled"] == 1} == {
      *(("head_decay", f"head rate {value}") for value in ("0.1", "1", "3")),
      *(("head_rate", f"head decay {value}") for value in ("0.1", "1", "10"))}
  assert {line["pooled"] for line in curves} == {1, 3}


def test_pooled_are_series_with_the_settings_of_the_fullest(tmp_path):
  _ablation(tmp_path, _decays(0.1, 1.0, 10.0, 30.0), rules=_rules, seeds=(0, 1, 2))
  _ablation(tmp_path, _decays(0.1, 1.0, 3.0, 10.0, 30.0), rules=_rules, first=20, seeds=(0,),
            model={"family": "mixer", "label": "Mixer"})
  _ablation(tmp_path, _decays(0.1, 1.0, 3.0), rules=_rules, first=30,
            model={"family": "resnet", "label": "ResNet"})
  effects = _tables(tmp_path)["head_effects"]
  pooled = _one(effects, quantity="us", factor="head_decay")
  assert (pooled["pooled"], pooled["seeds"], pooled["settings"], pooled["model"]) == (
      2, 4, 4, None)
  assert {line["series"] for line in effects} == {"ViT", "Mixer", "ResNet", ablations.ALL}


def test_one_seed_decides_nothing_however_many_series(tmp_path):
  for first, label in ((0, "ViT"), (10, "Mixer")):
    _ablation(tmp_path, _decays(0.1, 1.0, 10.0), rules=_rules, seeds=(0,), first=first,
              model={"family": "vit", "label": label})
  found = _tables(tmp_path)
  for name in ("head_effects", "head_best"):
    assert {line["status"] for line in found[name]} == {"one seed"} and found[name][0]["reason"]
  us = _one(found["head_effects"], quantity="us")
  assert us["slope"] == pytest.approx(0.01) and us["change"] == pytest.approx(0.02)
  assert us["verdict"] == "undecided" and us["slope_low"] is us["change_high"] is None
  assert {line["error"] for line in found["head_curves"]} == {None}
  best = _one(found["head_best"], series="ViT")
  assert (best["best"], best["best_low"], best["gain_high"]) == (10.0, None, None)


def test_a_decay_of_zero_is_a_setting_but_has_no_decade(tmp_path):
  _ablation(tmp_path, _decays(0, 0.1, 1.0), rules=_rules)
  found = _tables(tmp_path)
  assert {line["value"] for line in found["head_curves"]} == {0.0, 0.1, 1.0}
  line = _one(found["head_effects"], quantity="us", series="ViT")
  assert (line["settings"], line["lowest"], line["status"]) == (2, 0.1, "left out")
  assert line["slope"] is None and "2 settings above 0" in line["reason"]


def test_seeds_that_lack_a_setting(tmp_path):
  _ablation(tmp_path, _decays(0.1, 1.0, 10.0), rules=_rules, seeds=(0, 1))
  _ablation(tmp_path, _decays(0.1, 1.0), rules=_rules, seeds=(2,), first=20, us=0.9)
  _ablation(tmp_path, _decays(0.1, 1.0, 3.0), rules=_rules, seeds=(3,), first=30, us=0.5)
  found = _tables(tmp_path)
  line = _one(found["head_effects"], quantity="us", series="ViT")
  # No seed has all four settings. Seeds 0, 1 and 3 have three, for a slope; 0 and 1 the two ends.
  assert (line["seeds"], line["settings"]) == (3, 4) and line["change"] == pytest.approx(0.04)
  assert line["change_high"] - line["change_low"] < 1e-9
  # Seed 2, the luckiest by far, lifts none of the settings that it has above the others.
  curve = [row["mean"] for row in found["head_curves"]
           if row["quantity"] == "us" and row["series"] == "ViT"]
  assert curve == sorted(curve) and len(curve) == 4


def test_a_level_out_of_range_is_an_error(tmp_path):
  planted.write_runs(tmp_path, 2)
  with pytest.raises(ValueError, match="level: .*got 90"):
    _tables(tmp_path, level=90)


def test_the_table_a_task_says_what_the_others_do(tmp_path):
  planted_layers.write(tmp_path, geometry=False, seeds=2)
  points, rows = _points(tmp_path)
  spearman = ranks.spearman(points)
  fits = [cell._asdict() | {"fit": fit, "saturation": 0.8, "saturation_low": 0.7,
                            "saturation_high": None, "status": "not identified"}
          for cell in points.cells for fit in ("hull", "all")]
  found = explain.tables(points, rows, fits, spearman)
  best = found["best_layers"].to_pylist()
  top = max(points.of_runs("run_id"), key=lambda name: next(
      line["us"] for line in best if line["run_id"] == name))
  assert len(found["explained"]) == 6
  assert found.keys() == explain.COLUMNS.keys() - {"geometry"}
  for cell, line in zip(points.cells, found["explained"]):
    mine = [other for other in best if table.Cell(*(other[n] for n in table.CELL)) == cell]
    of_top = next(other for other in mine if other["run_id"] == top)
    assert line.keys() == explain.EXPLAINED_COLUMNS.keys()
    assert (line["run_id"], line["best_layer"], line["earliest_layer"]) == (
        top, of_top["best_layer"], of_top["earliest_layer"])
    assert line["last_layer_gain"] == of_top["gain"] and line["runs"] == 44
    assert line["runs_with_layers"] == len(mine) == 44
    assert line["mean_earliest_depth_share"] == pytest.approx(
        np.mean([other["earliest_depth_share"] for other in mine]))
    assert (line["saturation"], line["saturation_status"]) == (0.8, "not identified")
    assert line["correlation"] == next(
        other["correlation"] for other in spearman if other["column"] == "upstream"
        and (other["row"], other["shots"]) == (cell.task, cell.shots))
    view, family_U = points.view(cell), points.of_runs("family")
    inside = [stats.spearmanr(view.us[chosen], view.ds[chosen]).statistic for chosen in (
        family_U[view.run] == family for family in ("vit", "mixer"))]
    assert line["correlation_within"] == pytest.approx(np.mean(inside))
    for factor in ablations.FACTORS:
      wanted = _one(found["head_best"], factor=factor, task=cell.task, shots=cell.shots)
      assert line[f"best_{factor}"] == wanted["best"]
      assert line[f"upstream_best_{factor}"] == _one(found["head_best"], factor=factor)["best"]


def test_of_runs_alike_upstream_text_table_and_figure_take_the_same(tmp_path):
  for folder in planted_layers.write(tmp_path, geometry=False, seeds=1, families=("vit",)):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"value": 0.7} if row["evaluator"] == "upstream" else row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  points, rows = _points(tmp_path)
  found = explain.tables(points, rows, [], [])
  drawn = {scatter.cell_of(line): line for line in figures_of_layers.best_runs(found)}
  for line in found["explained"]:
    shown = drawn[scatter.cell_of(line)]
    assert line["run_id"] == shown["run_id"] == min(points.of_runs("run_id"))
    assert line["run_name"] == shown["run_name"] is not None
    assert line["earliest_layer"] == shown["earliest_layer"]


def test_tables_are_absent_where_there_is_nothing_to_say(tmp_path):
  planted.write_runs(tmp_path / "plain", 3)
  points, rows = _points(tmp_path / "plain")
  assert not explain.tables(points, rows, [], [])
  planted_layers.write(tmp_path / "few", factors=("head_rate",), families=("vit",), seeds=1)
  others = planted_points.make([0.2, 0.4], {"x": np.array([0.3, 0.5])})
  points, rows = _points(tmp_path / "few")
  found = explain.tables(table.together([points, others]), rows, [], [])
  assert found.keys() == explain.COLUMNS.keys()
  line = next(line for line in found["explained"] if line["task"] == "x")
  assert (line["runs"], line["runs_with_layers"], line["best_layer"]) == (2, 0, None)
  assert not {"x"} & set(found["layers"]["task"].to_pylist())


@pytest.mark.slow
def test_the_command_writes_them_as_documented(tmp_path, capsys):
  planted_layers.write(tmp_path / "runs", families=("vit",), seeds=2)
  quick = ["--no-figures", "--resamples", "20", "--skip", "robust", "prediction", "sample-size",
           "controlled"]
  runs = ["--runs", f"{tmp_path}/runs/*"]
  assert command.main([*runs, "--out", str(tmp_path / "out"), *quick]) == 0
  printed = capsys.readouterr().out
  assert "layers: the earliest layer not told from the best lies at " in printed
  assert "head: with its decay upstream accuracy: 1 falls; downstream: " in printed
  for name, columns in explain.COLUMNS.items():
    stored = parquet.read_table(tmp_path / f"out/{name}.parquet")
    assert stored.column_names == list(columns) and stored.num_rows, name
    assert all(value == value for line in stored.to_pylist() for value in line.values()), name
    assert analysis.TABLES[name] == columns
  assert command._explanation({"fits": []}) == []


def test_it_can_be_skipped(tmp_path):
  planted_layers.write(tmp_path, factors=("head_rate",), families=("vit",), seeds=1)
  points, rows = _points(tmp_path)
  asked = dict(l2=table.L2, level=0.9, resamples=20, held_out=0.25, jobs=1,
               progress=analysis.Progress(say=False))
  others = ["robust", "prediction", "sample-size", "controlled"]
  found = analysis.analyse(points, rows, skip=["ranks", *others], **asked)
  assert explain.COLUMNS.keys() <= found.keys()  # without correlations too
  for given, skip in ((rows, ["explain", *others]), (None, others)):
    assert not explain.COLUMNS.keys() & analysis.analyse(points, given, skip=skip, **asked).keys()
