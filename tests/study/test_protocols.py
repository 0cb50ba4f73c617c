"""Held-out prediction, sample sizes and the effect of shots, on planted laws."""
import time

import numpy as np
import planted_points
import pytest

from big_transfer.study import (
    controlled, hull, methods, protocols, ranks, saturation, shots, table, targets)


def _cloud(runs=1200, seed=0, scale=0.04, **law):
  rng = np.random.default_rng(seed)
  us = rng.uniform(0.05, 0.6, runs)
  return us, planted_points.law(us, **law) - rng.exponential(scale, runs)


@pytest.fixture(scope="module")
def points():
  us, ds = _cloud()
  return planted_points.make(us, {"pets": ds, "exact": planted_points.law(us)})


@pytest.fixture(scope="module")
def lines(points):
  return protocols.prediction(points)


def _line(lines, **wanted):
  found, = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
  return found


def test_every_cell_fit_and_method_has_a_line(points, lines):
  assert len(lines) == 2 * 2 * len(methods.METHODS)
  for line in lines:
    assert set(line) == set(protocols.PREDICTION_COLUMNS) and line["status"] == "ok"
    assert (line["runs_fitted"], line["points_held_out"]) == (900, 300)
    assert line["prediction_rmse"] == pytest.approx(line["prediction_error"] ** 0.5)


def test_an_exact_law_is_predicted_exactly_and_the_baselines_are_not(lines):
  wanted = {"task": "exact", "fit": "all"}
  exact = _line(lines, method="saturating", **wanted)
  assert exact["prediction_rmse"] < 1e-6 and exact["fit_rmse"] < 1e-6
  for name in set(methods.METHODS) - {"saturating"}:
    assert _line(lines, method=name, **wanted)["prediction_rmse"] > 1e-3


def test_errors_are_what_their_columns_say(points, lines):
  view = points.view(table.Cell("fractals", "pets", None, None, 10))
  us_from = np.sort(view.us)[-300]
  held = view.us >= us_from
  for kind in targets.KINDS:
    us_M, ds_M = targets.fitted_points(kind, view.us[~held], view.ds[~held])
    if kind == "all":
      us_Q, ds_Q = view.us[held], view.ds[held]
    else:
      us_Q = np.linspace(us_from, view.us.max(), protocols.PLACES)
      ds_Q = hull.hull_at(view.us, view.ds, us_Q)
    for name, method in methods.METHODS.items():
      line = _line(lines, task="pets", fit=kind, method=name)
      predict = method(us_M, ds_M)
      assert line["us_from"] == us_from
      assert line["bias"] == pytest.approx(np.mean(predict(us_Q) - ds_Q))
      assert line["prediction_error"] == pytest.approx(np.mean((predict(us_Q) - ds_Q) ** 2))
      assert line["fit_error"] == pytest.approx(np.mean((predict(us_M) - ds_M) ** 2))


def test_nothing_held_out_is_seen(points, lines):
  # Whatever happens to the runs held out, the fit is the same: its error stays, theirs changes.
  us, ds = _cloud()
  high = us >= np.sort(us)[-300]
  changed = protocols.prediction(planted_points.make(us, {"pets": np.where(high, 0.0, ds)}))
  for line in changed:
    before = _line(lines, task="pets", fit=line["fit"], method=line["method"])
    assert line["fit_error"] == before["fit_error"]
    assert line["prediction_error"] > before["prediction_error"]


def test_runs_that_tie_with_the_lowest_held_out_are_held_out():
  us = np.repeat(np.linspace(0.1, 0.9, 10), 4)
  lines = protocols.prediction(planted_points.make(us, {"t": planted_points.law(us)}),
                               held_out=0.25)
  assert {(line["runs_fitted"], line["points_held_out"]) for line in lines} == {(28, 12)}


def test_only_the_last_evaluation_of_a_run_counts():
  us, ds = _cloud(40)
  once = planted_points.make(us, {"t": ds}).table()
  early = once.set_column(once.column_names.index("last"), "last", [[False] * 40])
  early = early.set_column(once.column_names.index("ds"), "ds", [np.zeros(40)])
  both = table.pa.concat_tables([once, early])
  points = table.assemble(once.select(list(table.RUN_COLUMNS)), both)
  assert len(points) == 80
  assert protocols.prediction(points) == protocols.prediction(
      planted_points.make(us, {"t": ds}))


@pytest.mark.parametrize("runs, low, words", [
    (13, 0.1, "held out (from 0.475): 9 runs; at least 10"), (40, 0.58, "span 0.0")])
def test_too_few_runs_or_too_narrow_a_range_is_said_of_every_line(runs, low, words):
  us = np.linspace(low, 0.6, runs)
  points = planted_points.make(us, {"t": us})
  found = protocols.prediction(points, held_out=0.3) + protocols.sample_sizes(points, held_out=0.3)
  assert len(found) == 2 * len(methods.METHODS) + 2
  for line in found:
    assert line["status"] == "no fit" and words in line["reason"]
    assert line["prediction_error"] is None


def test_arguments_out_of_range_are_named(points):
  for share in (0.0, 1.0, 25):
    with pytest.raises(ValueError, match="--held-out: expected a share"):
      protocols.prediction(points, held_out=share)
  with pytest.raises(ValueError, match="repeats: expected at least 1"):
    protocols.sample_sizes(points, repeats=0)
  for sizes in ([], [5, 100]):
    with pytest.raises(ValueError, match="sizes: expected numbers of runs, each at least 10"):
      protocols.sample_sizes(points, sizes=sizes)


def test_default_sizes_are_the_papers_or_tenths():
  assert protocols.default_sizes(3000) == list(range(100, 1001, 100))
  assert protocols.default_sizes(900) == list(range(100, 801, 100))
  assert protocols.default_sizes(200) == [20, 40, 60, 80, 100, 120, 140, 160, 180]
  assert protocols.default_sizes(22) == [10, 11, 13, 15, 18, 20]
  assert protocols.default_sizes(10) == []


def test_errors_of_samples_fall_with_their_size_and_end_at_the_whole(points, lines):
  found = protocols.sample_sizes(points, repeats=20)
  assert all(set(line) == set(protocols.SAMPLE_SIZE_COLUMNS) for line in found)
  for kind in targets.KINDS:
    mine = [line for line in found if (line["task"], line["fit"]) == ("pets", kind)]
    assert [line["size"] for line in mine] == [*range(100, 900, 100), 900]
    assert [line["all"] for line in mine] == [False] * 8 + [True]
    assert [line["repeats"] for line in mine] == [20] * 8 + [1]
    # A coarser search ends within 0.1 % of the exponent: the whole agrees with the prediction.
    whole = _line(lines, task="pets", fit=kind, method="saturating")
    for name in ("fit_error", "prediction_error"):
      assert mine[-1][name] == pytest.approx(whole[name], rel=0.01)
      assert mine[-1][f"{name}_low"] == mine[-1][name] == mine[-1][f"{name}_high"]
      for line in mine:
        assert line[f"{name}_low"] <= line[name] * (1 + 1e-9)
    # A sample of 100 runs sees less of the law than one of 900, by the band as by the mean.
    assert mine[0]["prediction_error"] > mine[-1]["prediction_error"]
    assert np.ptp([mine[0]["prediction_error_low"], mine[0]["prediction_error_high"]]) > np.ptp(
        [mine[-2]["prediction_error_low"], mine[-2]["prediction_error_high"]])
  hulls = [line for line in found if (line["task"], line["fit"]) == ("pets", "hull")]
  alls = [line for line in found if (line["task"], line["fit"]) == ("pets", "all")]
  assert hulls[0]["fit_error"] > 2 * hulls[-1]["fit_error"]  # as in the paper's figure
  # The paper's finding: a hull is predicted with an error an order of magnitude lower.
  assert 10 * hulls[-1]["prediction_error"] < alls[-1]["prediction_error"]


def test_samples_are_the_same_every_time_and_for_every_task():
  us, ds = _cloud(60)
  points = planted_points.make(us, {"a": ds, "b": ds, "c": ds})
  found = protocols.sample_sizes(points, repeats=3, seed=1)
  assert found == protocols.sample_sizes(points, repeats=3, seed=1)
  by_task = {task: [{**line, "task": None} for line in found if line["task"] == task]
             for task in "abc"}
  assert by_task["a"] == by_task["b"] == by_task["c"]
  assert found != protocols.sample_sizes(points, repeats=3, seed=2)


def test_sizes_are_those_of_the_upstreams_largest_task():
  us, ds = _cloud(1000)
  few = np.where(np.arange(1000) < 300, ds, np.nan)
  found = protocols.sample_sizes(planted_points.make(us, {"a": ds, "b": few}), repeats=2)
  sizes = {task: [line["size"] for line in found if (line["task"], line["fit"]) == (task, "all")]
           for task in "ab"}
  assert sizes == {"a": [100, 200, 300, 400, 500, 600, 700, 750], "b": [100, 200, 225]}


def _fits(values, *, upstream="fractals", task="pets", status="ok"):
  """Lines like those of `saturation.fits`; values: {shots: (k, alpha, e_IR)}."""
  return [dict(zip(table.CELL, (upstream, task, None, None, number))) | {
      "fit": "hull", "status": status if parameters else "no fit"}
      | dict(zip(("k", "alpha", "e_IR"), parameters or (None, None, None)))
      for number, parameters in values.items()]


def test_parameters_that_rise_or_fall_with_the_shots_are_found():
  fits = _fits({25: (0.3, 9.0, 0.1), 1: (0.8, 2.0, 0.4), 5: (0.7, 3.0, 0.4), 10: (0.5, 4.0, 0.2)})
  lines = {line["parameter"]: line for line in shots.trends(fits) if line["task"] == "pets"}
  assert all(set(line) == set(shots.SHOT_COLUMNS) for line in lines.values())
  assert lines["alpha"]["likelihood_up"] == 1.0 and lines["alpha"]["spearman"] == 1.0
  assert lines["alpha"]["pearson"] == pytest.approx(
      np.corrcoef([1, 5, 10, 25], [2.0, 3.0, 4.0, 9.0])[0, 1])
  assert lines["k"]["likelihood_down"] == 1.0 and lines["k"]["spearman"] == -1.0
  assert lines["e_IR"]["pairs"] == 6 and lines["e_IR"]["likelihood_down"] == 5 / 6
  assert lines["e_IR"]["likelihood_up"] == 0.0  # of the sixth pair both are equal


def test_shots_are_pooled_over_tasks_and_upstreams():
  rising, falling = ({shot: (0.5, sign * shot + 30.0, 0.1) for shot in (1, 5, 10)}
                     for sign in (1, -1))
  fits = (_fits(rising, upstream="a", task="x") + _fits(rising, upstream="a", task="y")
          + _fits(falling, upstream="b", task="x")
          + _fits({1: (0.5, 3.0, 0.1), 5: (0.5, 2.0, 0.1)}, upstream="b", task="y"))
  pooled = {line["upstream"]: line for line in shots.trends(fits)
            if line["task"] == shots.EVERY and line["parameter"] == "alpha"}
  assert list(pooled) == ["a", "b", shots.EVERY]
  assert [pooled[name]["likelihood_up"] for name in pooled] == [1.0, 0.0, 6 / 10]
  assert pooled[shots.EVERY]["pearson"] == pytest.approx(1 / 3)
  assert [pooled[name]["pairs"] for name in pooled] == [6, 4, 10]
  constant = {line["parameter"]: line for line in shots.trends(fits[:-2])}["k"]
  assert constant["pearson"] is None and "same at every number" in constant["reason"]


def test_fits_that_failed_are_no_trend_and_doubtful_ones_are_counted():
  lines = shots.trends(_fits({1: (0.5, 2.0, 0.3), 5: None}))
  assert {line["status"] for line in lines} == {"left out"}
  assert "1 number of shots with a fit; at least 2" in lines[0]["reason"]
  lines = shots.trends(_fits({1: (0.5, 2.0, 0.3), 5: (0.4, 3.0, 0.2)}, status="not identified"))
  assert lines[1]["likelihood_up"] == 1.0 and lines[1]["pearson"] is None
  assert "fewer than 3 numbers" in lines[1]["reason"] and "value: 2" in lines[1]["reason"]
  assert not shots.trends(_fits({None: (0.5, 2.0, 0.3)}))


def test_a_planted_exponent_that_rises_with_the_shots_is_recovered_from_points():
  rng = np.random.default_rng(0)
  us = rng.uniform(0.05, 0.9, 300)
  truth = {1: (0.6, 2.0, 0.35), 5: (0.55, 4.0, 0.2), 25: (0.5, 7.0, 0.1)}
  points = planted_points.make(us, {
      ("t", number): planted_points.law(us, *law) + rng.normal(0, 0.01, 300)
      for number, law in truth.items()})
  lines = shots.trends(saturation.fits(points, resamples=20))
  trend = {(line["fit"], line["parameter"]): line for line in lines if line["task"] == "t"}
  for fit in ("hull", "all"):
    assert trend[fit, "alpha"]["likelihood_up"] == 1.0
    assert trend[fit, "e_IR"]["likelihood_down"] == 1.0


@pytest.mark.slow
def test_protocols_of_five_thousand_runs_and_125_cells_take_seconds():
  rng = np.random.default_rng(0)
  us = rng.uniform(0.05, 0.6, 5000)
  points = planted_points.make(us, {
      (f"task{task}", number): np.clip(planted_points.law(us, alpha=rng.uniform(2, 9))
                                       - rng.exponential(0.04, 5000), 0, 1)
      for task in range(25) for number in (1, 5, 10, 25, 50)},
      parameters=rng.choice([10, 100, 1000], 5000), epochs=rng.choice([7.0, 14.0], 5000))
  start = time.process_time()
  assert len(protocols.prediction(points)) == 125 * 2 * len(methods.METHODS)
  assert len(ranks.spearman(points)) == 5 * 25 * 26
  assert len(ranks.overlay(points)) > 120 and len(ranks.peers(points)) == 5 * 5 * 25 * 25
  assert len(controlled.tests(points)) == 375
  assert controlled.series(points, []).num_rows == 2 * len(points)
  assert time.process_time() - start < 20
  start = time.process_time()
  assert len(protocols.sample_sizes(points)) == 125 * 2 * 11
  assert time.process_time() - start < 60
