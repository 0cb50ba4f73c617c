"""Controlled scaling: which runs form series, and whether a planted effect is found or not."""
import itertools
import json

import numpy as np
import planted_points
import pytest

from big_transfer.study import controlled, partial, settings, table

SIZES = {"Ti": 100_000, "S": 400_000, "B": 1_600_000}
FRACTIONS, EPOCHS = (0.02, 0.07, 0.2, 0.5, 1.0), (7, 14, 21)
EXAMPLES, BATCH = 12_000, 64


def _grid():
  """Settings of a crossed sweep, (fraction, size, epochs, learning rate, family), as rows."""
  for fraction, size, epochs in itertools.product(FRACTIONS, SIZES, EPOCHS):
    yield fraction, size, epochs, 3e-3, "vit"
  for rate, fraction in itertools.product((3e-4, 1e-2), (0.2, 0.5)):
    yield fraction, "S", 14, rate, "vit"


def _points(settings, seed=0, *, effects=(0.0, 0.0, 0.0), noise=0.0, scatter=0.02, tasks=1,
            **columns):
  """A sweep whose accuracy downstream is Eq. 1, plus effects a doubling of data, model, epochs.

  Tasks differ in their scatter alone: draws that cost no new sweep.
  """
  rng = np.random.default_rng(seed)
  settings = list(settings)
  fraction, epochs = (np.array([row[i] for row in settings], float) for i in (0, 2))
  size = np.array([SIZES[row[1]] for row in settings])
  examples = np.ceil(EXAMPLES * fraction).astype(int)
  steps = np.ceil(epochs * examples / BATCH)  # so that epochs differ by up to a step's worth
  doublings = np.log2([fraction, size / SIZES["S"], epochs / 14])
  us = np.clip(0.55 + np.array([0.07, 0.06, 0.05]) @ doublings
               + rng.normal(0, 0.03, len(settings)), 0.05, 0.92)
  mean = planted_points.law(us) + np.array(effects) @ doublings
  overrides = [json.dumps({
      "name": f"run {i}", "seed": i, "total_epochs": row[2], "upstream.fraction": row[0],
      "model": {"name": row[4], "width": SIZES[row[1]] // 1000}} | (
          {"optim.lr": row[3]} if row[3] != 3e-3 else {})) for i, row in enumerate(settings)]
  known = dict(
      family=[row[4] for row in settings], model=[f"{row[4]}-{row[1]}/8" for row in settings],
      parameters=size, upstream_fraction=fraction, upstream_train_examples=examples,
      batch_size=np.full(us.size, BATCH), epochs=steps * BATCH / examples,
      learning_rate=[row[3] for row in settings], overrides=overrides)
  known = {name: values for name, values in (known | columns).items() if values is not None}
  return planted_points.make(
      us + rng.normal(0, noise, us.size), us_error=noise or None,
      ds={f"t{task}": mean + rng.normal(0, scatter, us.size) for task in range(tasks)}, **known)


def _tests(points):
  return {line["factor"]: line for line in controlled.tests(points)}


def _series(points, factor):
  """{text: its run ids, values rising} of one factor."""
  found = {}
  for line in controlled.series(points, []).to_pylist():
    if line["factor"] == factor:
      found.setdefault(line["series"], []).append(line["run_id"])
  return found


def test_a_crossed_sweep_falls_into_series_that_differ_in_one_factor():
  settings = list(_grid())
  points = _points(settings)
  keys = {"data": lambda row: row[1:], "model": lambda row: (row[0], *row[2:]),
          "epochs": lambda row: (*row[:2], *row[3:])}
  for factor, key in keys.items():
    wanted = {}
    for i, row in enumerate(settings):
      wanted.setdefault(key(row), []).append(f"r{i:05d}")
    wanted = {frozenset(runs) for runs in wanted.values() if len(runs) > 1}
    found = _series(points, factor)
    assert {frozenset(runs) for runs in found.values()} == wanted
  assert "learning rate 0.003, vit-B/8, 21 epochs" in _series(points, "data")
  assert list(_series(points, "model"))[0] == "0.02 of the data, 7 epochs"


def test_runs_varied_one_at_a_time_from_a_default_are_found():
  default = (1.0, "S", 14)
  settings = [(f, *default[1:], 3e-3, "vit") for f in FRACTIONS]
  settings += [(1.0, size, 14, 3e-3, "vit") for size in ("Ti", "B")]
  settings += [(1.0, "S", epochs, 3e-3, "vit") for epochs in (7, 21)]
  points = _points(settings)
  assert {factor: [len(runs) for runs in _series(points, factor).values()]
          for factor in controlled.FACTORS} == {"data": [5], "model": [3], "epochs": [3]}
  assert list(_series(points, "model")) == ["all else equal"]


def test_a_line_holds_the_runs_value_and_its_residuals():
  points = _points(_grid())
  fits = [dict(zip(table.CELL, points.cells[0])) | {
      "fit": fit, "k": 0.7, "alpha": 3.0, "e_IR": e_ir} for fit, e_ir in (("hull", 0.1),
                                                                          ("all", 0.2))]
  lines = controlled.series(points, fits)
  assert lines.column_names == list(controlled.CONTROLLED_COLUMNS)
  values = {"data": points.of_runs("upstream_fraction"), "model": points.of_runs("parameters"),
            "epochs": points.of_runs("epochs")}
  view = points.view(0)
  for line in lines.to_pylist():
    run = int(line["run_id"][1:])
    assert (line["us"], line["ds"]) == (view.us[run], view.ds[run]) and line["controlled"]
    assert line["value"] == values[line["factor"]][run]
    assert line["residual_all"] == pytest.approx(line["ds"] - planted_points.law(line["us"]))
    assert line["residual_hull"] == pytest.approx(line["residual_all"] - 0.1)
  assert {line["residual_hull"] for line in controlled.series(points, []).to_pylist()} == {None}


def test_other_settings_and_models_keep_runs_apart():
  settings = [(fraction, "S", 14, 3e-3, "vit") for fraction in (0.2, 1.0)]
  base = {"upstream.fraction": 1.0, "seed": 3, "optim": {"decay": 0.1}}
  for other, together in [({"seed": 4}, True), ({"upstream": {"fraction": 0.2}}, True),
                          ({"total_steps": 10}, True), ({"optim": {"decay": 1.0}}, False),
                          ({"model": {"depth": 3}}, False)]:
    points = _points(settings, overrides=[json.dumps(base), json.dumps(base | other)])
    assert bool(_series(points, "data")) == together, other
  for column in ({"model": ["a/8", "b/8"]}, {"family": ["vit", "mixer"]},
                 {"parameters": [1, 2]}, {"config_name": ["x", "y"]}, {"batch_size": [64, 32]}):
    assert not _series(_points(settings, **column), "data"), column
  patches = _points([(1.0, size, 14, 3e-3, "vit") for size in ("S", "B")],
                    model=["ViT-S/16", "ViT-B/32"])
  assert not _series(patches, "model")
  owners = _points([(1.0, size, 14, 3e-3, "vit") for size in ("S", "B")],
                   model=["org/vit_s", "org/vit_b"])
  assert len(_series(owners, "model")) == 1  # a slash alone makes no patch size
  none = _points(settings, upstream_train_examples=[0, 0])
  assert len(_series(none, "data")) == 1  # an impossible number is one that isn't known
  apart = planted_points.make([0.2, 0.4], {"t": np.array([0.3, 0.5])}, upstream=["a", "b"],
                              parameters=[1, 2])
  assert not controlled.series(apart, []).num_rows


def test_epochs_within_a_step_are_equal():
  # 7 epochs of 240 examples in batches of 64 take 27 steps, 7.2 epochs.
  epochs = np.array([7.2, 7.0, 7.001, 14.1, 14.0, 21.0, np.nan, 7.5])
  step = np.array([0.267, 0.005, 0.005, 0.267, 0.005, 0.005, 0.005, np.nan])
  found = settings.same_epochs(epochs, step)
  np.testing.assert_array_equal(found, [7.0, 7.0, 7.0, 14.0, 14.0, 21.0, np.nan, 7.5])


def _draws(sweeps, tasks, **planted):
  """{factor: lines} of so many sweeps with so many tasks each."""
  found = {factor: [] for factor in controlled.FACTORS}
  settings = list(_grid())
  for seed in range(sweeps):
    for line in controlled.tests(_points(settings, seed, tasks=tasks, **planted)):
      found[line["factor"]].append(line)
  return found


def _column(lines, name):
  return np.array([line[name] for line in lines])


def test_a_scale_that_adds_nothing_is_found_at_the_nominal_rate():
  # 400 draws: the standard error of a share of 0.1 is 1.5 %, of one of 0.5 2.5 %; five of them,
  # since the error of the slope is itself an approximation.
  for lines in _draws(8, 50).values():
    p = _column(lines, "p_value")
    assert np.mean(p < 0.1) == pytest.approx(0.1, abs=0.075)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.125)
    covered = (_column(lines, "slope_low") <= 0) & (_column(lines, "slope_high") >= 0)
    assert np.mean(covered) == np.mean(p >= 0.1)
    assert _column(lines, "partial_r2").mean() < 0.06
    assert abs(_column(lines, "slope").mean()) < 0.002


def test_a_planted_effect_is_found_with_its_size_and_in_no_other_factor():
  found = _draws(4, 25, effects=(0.0, -0.03, 0.0))
  slope = _column(found["model"], "slope")
  assert slope.mean() == pytest.approx(-0.03, abs=0.004)  # 0.008 a draw, 0.0008 of the mean
  assert np.mean(_column(found["model"], "same_curve") == "no") > 0.85
  assert np.median(_column(found["model"], "partial_r2")) > 0.25
  for factor in ("data", "epochs"):
    assert np.mean(_column(found[factor], "p_value") < 0.1) < 0.25
    assert abs(_column(found[factor], "slope").mean()) < 0.004


def test_noise_upstream_makes_the_slope_that_is_announced():
  for lines in _draws(20, 10, noise=0.02).values():
    slope, expected = _column(lines, "slope").mean(), _column(lines, "slope_noise").mean()
    assert slope > 0.01  # a slope from nothing but noise
    assert 0.8 * slope < expected < 1.8 * slope  # of first order, and the share is but estimated
    # So it is held against the curve hardly more often than by chance, unlike by its p-value.
    assert np.mean(_column(lines, "same_curve") == "no") < 0.2
    assert np.mean(_column(lines, "p_value") < 0.1) > 0.35
  assert _tests(_points(_grid()))["model"]["slope_noise"] is None
  # Where noise drowns what else moves upstream accuracy (0.03), nothing is held against the curve.
  for lines in _draws(5, 10, noise=0.06).values():
    assert _column(lines, "p_value").max() < 0.1 and "no" not in _column(lines, "same_curve")


def test_many_runs_show_that_a_scale_adds_next_to_nothing():
  settings = list(_grid()) * 8  # seeds
  for line in _tests(_points(settings, scatter=0.01)).values():
    assert line["same_curve"] == "yes" and -0.01 <= line["slope_low"] <= line["slope_high"] <= 0.01
  lines = _tests(_points(settings, scatter=0.01, effects=(0.0, 0.0, 0.02)))
  assert lines["epochs"]["same_curve"] == "no" and lines["model"]["same_curve"] == "yes"


def test_a_short_series_takes_its_curve_from_the_other_runs():
  rng = np.random.default_rng(0)
  us = rng.uniform(0.1, 0.9, 80)
  parameters = np.where(np.arange(80) < 4, 10_000 * 4 ** np.arange(80).clip(max=4), 0)
  settings = [json.dumps({} if i < 4 else {"other": i}) for i in range(80)]
  points = planted_points.make(
      us, {"t": planted_points.law(us) + rng.normal(0, 0.01, 80)}, overrides=settings,
      parameters=parameters, family=["vit"] * 80)
  line = _tests(points)["model"]
  assert (line["curve"], line["runs"], line["series"]) == ("all runs", 4, 1)
  assert line["doublings"] == pytest.approx(6.0) and line["status"] == "ok"
  assert line["slope_low"] < 0 < line["slope_high"]
  alone = points.view(0).take(np.arange(4))
  assert not partial.Design(alone.us, np.zeros(4, int), parameters[:4]).enough


def test_a_table_without_settings_is_called_uncontrolled():
  rng = np.random.default_rng(0)
  us = rng.uniform(0.1, 0.9, 60)
  points = planted_points.make(us, {"t": planted_points.law(us) + rng.normal(0, 0.01, 60)},
                               parameters=rng.integers(1, 9, 60))
  lines = _tests(points)
  assert lines["model"]["status"] == "uncontrolled" and lines["model"]["series"] == 1
  assert "may differ in more than parameters" in lines["model"]["reason"]
  assert lines["model"]["slope"] is not None
  assert (lines["data"]["status"], lines["data"]["reason"]) == (
      "left out", "no run's examples are known")
  assert set(controlled.series(points, [])["controlled"].to_pylist()) == {False}


def test_what_cannot_be_tested_says_why():
  us = np.linspace(0.1, 0.9, 30)
  def line(ds=us, upstream=us, **columns):
    points = planted_points.make(upstream, {"t": ds}, overrides=["{}"] * 30, **columns)
    found = _tests(points)["model"]
    assert set(found) == set(controlled.TEST_COLUMNS)
    return found["status"], found["reason"]
  same = line(parameters=[5] * 30)
  assert same == ("left out", "no two runs differ in parameters with all else equal")
  follows = line(parameters=np.arange(1, 31), upstream=0.1 + 0.1 * np.log2(np.arange(1, 31)))
  assert follows[0] == "left out" and "can't be told from upstream accuracy" in follows[1]
  flat = line(upstream=np.full(30, 0.5), parameters=np.arange(1, 31))
  assert flat == ("left out", "upstream accuracy is the same in all runs")
  few = line(parameters=[5, 6] + [7] * 28, epochs=[1.0, 1.0] + list(range(2, 30)),
             ds=np.where(np.arange(30) < 6, us, np.nan))
  assert few[0] == "left out" and "6 runs, 2 of them in series, are too few" in few[1]
  with pytest.raises(ValueError, match="level: expected a coverage"):
    controlled.tests(_points(_grid()), level=90)


def test_the_slope_is_that_of_a_regression_with_all_its_columns():
  # The oracle: ordinary least squares with one column a group, and its HC2 error.
  points = _points(_grid(), noise=0.01)
  line = _tests(points)["model"]
  view, rows = points.view(0), controlled.series(points, []).to_pylist()
  rows = [row for row in rows if row["factor"] == "model"]
  run = np.array([int(row["run_id"][1:]) for row in rows])
  names = sorted({row["series"] for row in rows})
  groups = np.array([[row["series"] == name for name in names] for row in rows], float)
  value = np.log2([row["value"] for row in rows])
  columns = np.column_stack([value, partial._spline(view.us[run]), groups])
  inverse = np.linalg.pinv(columns)
  left = view.ds[run] - columns @ (inverse @ view.ds[run])
  free = 1 - np.einsum("nd,dn->n", columns, inverse)
  assert line["slope"] == pytest.approx((inverse @ view.ds[run])[0], rel=1e-8)
  error = np.sqrt(np.sum(inverse[0] ** 2 * left ** 2 / np.maximum(free, 0.05)))
  design = partial.Design(view.us[run], np.argmax(groups, 1), 2.0 ** value)
  effect = design.effect(view.ds[run], view.us_error[run])
  assert effect.error == pytest.approx(error, rel=1e-6)
  assert effect.slope == pytest.approx(line["slope"], rel=1e-8)
  without = columns[:, 1:]
  before = view.ds[run] - without @ (np.linalg.pinv(without) @ view.ds[run])
  assert effect.share == pytest.approx(1 - left @ left / (before @ before), rel=1e-6)
