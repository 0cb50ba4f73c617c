"""The published estimators: planted curves recovered, bad points refused, published figures met."""
import pathlib

import numpy as np
import pytest
from scipy import stats

from big_transfer.study import baselines, benchmark, curves

CURVES = pathlib.Path(__file__).parents[3] / "shared/data/laws/nsl_benchmark_vision.csv"
X = np.geomspace(2e6, 5e8, 60)
# M4's e_0 is at chance, where its estimator looks for it.
PLANTED = {
    "m1": (curves.M1, [40.0, 0.28]),
    "m2": (curves.M2, [900.0, 0.5, 0.2]),
    "m3": (curves.M3, [3000.0, 0.6, 4e-9]),
    "m4": (curves.M4, [2e4, 0.6, 0.15, 1.0, 0.4]),
    "bnsl": (curves.BNSL, [0.08, 30.0, 0.25, 0.4, 6e7, 0.3]),
}
# Of the authors' own code, by dataset; BNSL's is bounded and has 24 starts.
PUBLISHED = {
    "m1": (0.1046, {"bird": 0.075, "inet": 0.084, "c": 0.080, "cal": 0.179}),
    "m2": (0.0823, {"bird": 0.073, "inet": 0.083, "c": 0.063, "cal": 0.111}),
    "m3": (0.0615, {"bird": 0.056, "inet": 0.047, "c": 0.044, "cal": 0.100}),
    "m4": (0.0415, {"bird": 0.030, "inet": 0.016, "c": 0.032, "cal": 0.089}),
    "bnsl": (0.0394, {"bird": 0.022, "inet": 0.014, "c": 0.035, "cal": 0.087}),
    "mean3": (0.0308, {"bird": 0.019, "inet": 0.018, "c": 0.035, "cal": 0.052}),
}


@pytest.mark.parametrize("unit", (1.0, 1e-9))
@pytest.mark.parametrize("method", PLANTED)
def test_planted_curve_is_recovered_whatever_the_unit_of_x(method, unit):
  law, params = PLANTED[method]
  rng = np.random.default_rng(0)
  order = rng.permutation(X.size)  # tables come in any order
  curve = baselines.FITTERS[method]((X * unit)[order], law.predict(params, X)[order])
  ahead = X[-1] * np.array([1.0, 3.0, 10.0])
  np.testing.assert_allclose(curve.predict(ahead * unit), law.predict(params, ahead), rtol=2e-3)
  found = curve.params[law.name]
  for name in set(law.parameters) & {"c", "c_0", "e_inf", "e_0", "alpha"}:
    assert found[name] == pytest.approx(dict(zip(law.parameters, params))[name], rel=0.02), name
  low, high = curve.interval(ahead * unit)
  assert np.all(low <= curve.predict(ahead * unit)) and np.all(high / low < 1.02)


@pytest.mark.parametrize("method", PLANTED)
def test_losses_above_one_are_fitted_in_their_own_scale(method):
  fit = baselines.FITTERS[method]
  y = 5e4 * curves.M2.predict([900.0, 0.5, 0.2], X)
  # A power law with an offset is a case of each form but M1 and M3.
  within = {"m1": 0.4, "m3": 0.2}.get(method, 2e-3)
  np.testing.assert_allclose(fit(X, y).predict(3 * X[-1:]),
                             5e4 * curves.M2.predict([900.0, 0.5, 0.2], 3 * X[-1:]), rtol=within)


def test_m2_keeps_the_first_minimum_below_the_least_loss():
  # This noise gives the objective a second minimum, at e_inf = 0, which is the lower one.
  noise = np.exp(np.random.default_rng(5).normal(0, 0.03, X.size))
  y = curves.M2.predict([900.0, 0.5, 0.2], X) * noise
  found = baselines.m2(X, y).params["M2"]["e_inf"]

  def loss(e_inf):
    return np.polyfit(np.log(X), np.log(y - e_inf), 1, full=True)[1][0]

  above = [loss(e_inf) for e_inf in np.linspace(found, y.min() - 1e-3, 200)]
  assert loss(0.0) < above[0] < loss(found - 1e-3)
  assert found > 0.15 and np.all(np.diff(above) > 0)


def test_m4_rests_where_no_single_step_helps():
  y = curves.M4.predict([2e4, 0.6, 0.15, 0.97, 0.4], X)
  y = y * np.exp(np.random.default_rng(1).normal(0, 0.004, X.size))
  p = baselines.m4(X, y).params["M4"]
  design = np.stack([np.ones_like(X), -np.log(X), np.log(1 - y)], axis=1)
  linear = np.linalg.lstsq(design, np.log(y - p["e_inf"]), rcond=None)[0]
  np.testing.assert_allclose([np.log(p["beta"]), p["c"], p["alpha"]], linear, rtol=1e-5)

  def loss(e_inf, e_0):
    return np.sum((np.log(y - e_inf) - p["alpha"] * np.log(e_0 - y) - np.log(p["beta"])
                   + p["c"] * np.log(X)) ** 2)

  here = loss(p["e_inf"], p["e_0"])
  assert y.max() < p["e_0"] < 1.001
  for step in (-1e-3, 1e-3):
    assert loss(p["e_inf"] + step, p["e_0"]) > here < loss(p["e_inf"], p["e_0"] + step)


@pytest.mark.parametrize("method", ("m1", "m3"))
def test_intervals_hold_new_measurements_where_the_form_is_true(method):
  # 200 curves × 20 points; points of a curve share its fit, so that the rate has a standard error
  # of about .01, and .03 is three of them.
  law, params = PLANTED[method]
  rng = np.random.default_rng(0)
  ahead = np.geomspace(X[-1], 4 * X[-1], 20)
  held = []
  for _ in range(200):
    noise = np.exp(rng.normal(0, 0.02, X.size))
    low, high = baselines.FITTERS[method](X, law.predict(params, X) * noise).interval(ahead)
    new = law.predict(params, ahead) * np.exp(rng.normal(0, 0.02, ahead.size))
    held.append(np.mean((low <= new) & (new <= high)))
  assert abs(np.mean(held) - 0.9) < 0.03


def test_mean_of_three_lies_among_them_and_is_less_sure_than_they_are_on_average():
  y = curves.BNSL.predict(PLANTED["bnsl"][1], X)
  curve = baselines.mean3(X, y, level=0.8)
  each = np.array([member.predict(9 * X) for member in curve.members])
  np.testing.assert_allclose(curve.predict(9 * X), each.mean(0))
  assert curve.params.keys() == {"M3", "M4", "BNSL"}
  low, high = curve.interval(9 * X)
  widths = [np.log(np.divide(*member.interval(9 * X)[::-1])) for member in curve.members]
  assert np.all(np.log(high / low) >= np.mean(widths, axis=0))


@pytest.mark.parametrize("method", baselines.FITTERS)
@pytest.mark.parametrize("y", [
    np.full(X.size, 0.5), 0.02 * X ** 0.1, np.where(X < 3e7, 0.99, 1e-3),
    1e-6 * (X / X[0]) ** -0.3, np.r_[np.full(20, 0.99999), np.geomspace(0.9, 0.1, 40)],
    np.exp(np.random.default_rng(0).normal(-1, 0.5, X.size))],
    ids=["level", "rising", "cliff", "tiny", "chance", "noise"])
def test_odd_curves_give_finite_predictions(method, y):
  curve = baselines.FITTERS[method](X, y)
  ahead = X[-1] * np.array([1.0, 10.0, 100.0])
  low, high = curve.interval(ahead)
  assert np.all(np.isfinite(curve.predict(ahead))) and np.all(curve.predict(ahead) > 0)
  assert np.all(low <= high)


@pytest.mark.parametrize("x, y, message", [
    ([1, 2, 3, 4], [1, 2, 3], r"m2: x, y: expected two vectors of one length"),
    ([1, 2, 3, -4], [4, 3, 2, 1], r"m2: x: expected finite values above 0.*got -4"),
    ([1, 2, 3, 4], [4, 3, np.nan, 1], r"m2: y: expected finite values above 0.*got nan"),
    ([1, 2, 2, 3], [4, 3, 2, 1], r"m2: expected at least 4 points of different x.*got 3"),
    (np.linspace(1e9, 1.01e9, 20), np.linspace(0.9, 0.1, 20), r"too steep for this unit of x"),
])
def test_points_that_cannot_be_fitted_are_refused_by_name(x, y, message):
  with pytest.raises(ValueError, match=message):
    baselines.m2(x, y)
  with pytest.raises(ValueError, match="level: expected a fraction"):
    baselines.m1(X, X, level=90)


def _published(method):
  if not CURVES.exists():
    pytest.skip(f"no published curves at {CURVES}")
  scores = [benchmark.score(curve, method) for curve in benchmark.read(CURVES)]
  mean, by_group = PUBLISHED[method]
  assert len(scores) == 72 and {line["status"] for line in scores} == {"ok"}
  assert np.mean([line["log_rmse"] for line in scores]) < 1.05 * mean
  for group, expected in by_group.items():
    found = np.mean([line["log_rmse"] for line in scores
                     if line["task"].split("_")[0] == group])
    # Printed to three digits; a dataset has 18 curves, and one that ends otherwise moves it.
    assert found < 1.05 * expected + 5e-4, group


@pytest.mark.parametrize("method", ("m1", "m3"))
def test_published_figures_are_met(method):
  _published(method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ("m2", "m4", "bnsl", "mean3"))
def test_published_figures_are_met_by_the_longer_fits(method):
  _published(method)


def test_a_lines_interval_is_the_textbook_one_for_few_points():
  rng = np.random.default_rng(6)
  x, new = np.geomspace(1e3, 1e5, 6), np.array([2e5, 1e6])
  u, v = np.log(x), np.log(curves.M1.predict([40.0, 0.28], x)) + rng.normal(0, 0.05, 6)
  low, high = baselines.m1(x, np.exp(v)).interval(new)
  line = stats.linregress(u, v)
  spread = np.sqrt(np.sum((v - line.intercept - line.slope * u) ** 2) / 4)
  half = stats.t.ppf(0.95, 4) * spread * np.sqrt(
      1 + 1 / 6 + (np.log(new) - u.mean()) ** 2 / np.sum((u - u.mean()) ** 2))
  np.testing.assert_allclose(np.log(high / low) / 2, half, rtol=1e-6)
