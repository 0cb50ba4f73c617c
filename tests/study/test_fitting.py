"""Fits recover planted laws, agree with an independent optimiser and keep to their bounds."""
import numpy as np
import pytest
from scipy import optimize

from big_transfer.study import fitting, laws

# (k, alpha, e_IR), from steep to nearly straight, one with an offset on its bound
PLANTED = [(0.6, 3.0, 0.2), (0.927, 10.2, 0.048), (0.032, 9.0, 0.11), (0.8, 1.0, 0.0),
           (0.3, 25.0, 0.3), (0.5, 0.5, 0.1)]


@pytest.mark.parametrize("truth", PLANTED)
def test_noise_free_parameters_are_recovered(truth):
  x_N = np.random.default_rng(0).uniform(0.02, 0.95, 40)
  found = fitting.fit(laws.SATURATING, x_N, laws.SATURATING.predict(truth, x_N))
  np.testing.assert_allclose(found.params[0], truth, atol=1e-6)
  assert found.rms[0] < 1e-8


def test_the_law_without_saturation_is_recovered():
  x_N = np.linspace(0.05, 0.9, 20)
  found = fitting.fit(laws.LOG_LINEAR, x_N, laws.LOG_LINEAR.predict((0.7, 0.8), x_N))
  np.testing.assert_allclose(found.params[0], (0.7, 0.8), atol=1e-6)
  assert laws.LOG_LINEAR.named(found.params[0]).keys() == {"a", "b"}


def test_noisy_fit_is_as_good_as_an_independent_optimiser_from_many_starts():
  rng = np.random.default_rng(1)
  low, high = np.array(list(laws.SATURATING.parameters.values())).T
  high[0] = 1e3
  for truth in PLANTED[:3]:
    x_N = rng.uniform(0.05, 0.9, 40)
    y_N = laws.SATURATING.predict(truth, x_N) + rng.normal(0, 0.02, 40)
    found = fitting.fit(laws.SATURATING, x_N, y_N)
    best = min(optimize.least_squares(
        lambda p: laws.SATURATING.predict(p, x_N) - y_N, start, bounds=(low, high)).cost
               for start in ((0.5, 1.0, 0.1), (0.5, 5.0, 0.2), (0.9, 12.0, 0.05)))
    assert 40 * found.rms[0] ** 2 / 2 <= best * (1 + 1e-6)


def test_noisy_parameters_are_within_their_statistical_error():
  rng = np.random.default_rng(2)
  x_N = rng.uniform(0.05, 0.9, 400)
  y_N = laws.SATURATING.predict((0.6, 3.0, 0.2), x_N) + rng.normal(0, 0.01, 400)
  found = fitting.fit(laws.SATURATING, x_N, y_N).params[0]
  # Four standard errors of this design, from its Gauss-Newton covariance.
  assert (np.abs(found - (0.6, 3.0, 0.2)) < 4 * np.array([0.0035, 0.034, 0.0013])).all()


def test_a_batch_of_weights_is_the_fits_one_by_one_and_zero_weight_is_absence():
  rng = np.random.default_rng(3)
  x_N = rng.uniform(0.05, 0.9, 30)
  y_N = laws.SATURATING.predict((0.6, 3.0, 0.2), x_N) + rng.normal(0, 0.01, 30)
  mask_RN = rng.random((5, 30)) < 0.6
  batch = fitting.fit(laws.SATURATING, x_N, y_N, mask_RN)
  for mask_N, params in zip(mask_RN, batch.params):
    alone = fitting.fit(laws.SATURATING, x_N[mask_N], y_N[mask_N])
    np.testing.assert_allclose(params, alone.params[0], rtol=1e-4, atol=1e-6)
  by_row = fitting.fit(laws.SATURATING, x_N, np.tile(y_N, (5, 1)), mask_RN)
  np.testing.assert_array_equal(by_row.params, batch.params)


def test_a_batch_with_x_of_its_own_a_row_is_the_fits_one_by_one():
  rng = np.random.default_rng(4)
  x_RN = rng.uniform(0.05, 0.9, (6, 25))
  y_RN = laws.SATURATING.predict((0.6, 3.0, 0.2), x_RN) + rng.normal(0, 0.01, (6, 25))
  weights_RN = rng.integers(0, 3, (6, 25))
  batch = fitting.fit(laws.SATURATING, x_RN, y_RN, weights_RN)
  for x_N, y_N, weights_N, params, rms in zip(x_RN, y_RN, weights_RN, batch.params, batch.rms):
    alone = fitting.fit(laws.SATURATING, x_N, y_N, weights_N[None])
    np.testing.assert_allclose(params, alone.params[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rms, alone.rms[0], rtol=1e-6)


def test_a_coarse_grid_and_few_steps_are_within_a_thousandth():
  rng = np.random.default_rng(5)
  for truth in PLANTED[:4]:
    x_N = rng.uniform(0.05, 0.9, 60)
    y_N = laws.SATURATING.predict(truth, x_N) + rng.normal(0, 0.01, 60)
    fine, coarse = (fitting.fit(laws.SATURATING, x_N, y_N, steps=steps, grid=grid)
                    for steps, grid in ((40, 121), (10, 41)))
    np.testing.assert_allclose(coarse.params[0, 1], fine.params[0, 1], rtol=2e-3)
    assert coarse.rms[0] <= fine.rms[0] * (1 + 1e-5)


@pytest.mark.parametrize("x, y", [
    (np.zeros(5), np.full(5, 0.3)),                       # every run perfect upstream
    (np.full(5, 0.4), np.linspace(0.1, 0.5, 5)),          # one upstream accuracy
    (np.linspace(0.1, 0.9, 6), np.linspace(0.9, 0.1, 6)),  # downstream falls as upstream rises
    (np.linspace(0.1, 0.9, 6), np.full(6, 0.5)),          # flat
    (np.array([0.3]), np.array([0.2])),
])
def test_degenerate_points_give_finite_parameters_within_bounds(x, y):
  found = fitting.fit(laws.SATURATING, x, y)
  assert np.isfinite(found.params).all() and np.isfinite(found.rms).all()
  for value, (low, high) in zip(found.params[0], laws.SATURATING.parameters.values()):
    assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)


def test_bad_points_are_named():
  x_N = np.linspace(0.1, 0.9, 5)
  with pytest.raises(ValueError, match="shapes"):
    fitting.fit(laws.SATURATING, x_N, x_N[:4])
  with pytest.raises(ValueError, match="finite"):
    fitting.fit(laws.SATURATING, x_N, np.full(5, np.nan))
  with pytest.raises(ValueError, match="positive one in each row"):
    fitting.fit(laws.SATURATING, x_N, x_N, np.zeros((1, 5)))
  unfit = laws.Law("odd", {"a": (0, 1), "b": (0, 1)}, laws.LOG_LINEAR.predict, (), "none")
  with pytest.raises(ValueError, match="odd"):
    fitting.fit(unfit, x_N, x_N)
