"""L(N, D): planted truths, units, intervals that hold them, bad input."""
import numpy as np
import pytest

from big_transfer.study import surfaces

PLANTED = {"chinchilla": [1.69, 406.4, 410.7, 0.34, 0.28],
           "kaplan": [8.8e13, 5.4e13, 0.076, 0.095]}


def _points(name, noise, seed=0, count=60):
  rng = np.random.default_rng(seed)
  n_K, d_K = 10 ** rng.uniform(7.5, 10.2, count), 10 ** rng.uniform(9.0, 11.5, count)
  loss_K = surfaces.LOSS_LAWS[name].predict(PLANTED[name], n_K, d_K)
  return n_K, d_K, loss_K * np.exp(noise * rng.normal(size=count))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_surfaces_are_found(name):
  found = surfaces.fit_surface(surfaces.LOSS_LAWS[name], *_points(name, 0.0), resamples=0)
  np.testing.assert_allclose(list(found.params.values()), PLANTED[name], rtol=1e-3)
  np.testing.assert_allclose(found.predict([1e12], [1e13]), surfaces.LOSS_LAWS[name].predict(
      PLANTED[name], [1e12], [1e13]), rtol=1e-4)
  assert found.rms < 1e-6 and np.isnan(list(found.intervals.values())).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_intervals_hold_planted_exponents(name):
  law = surfaces.LOSS_LAWS[name]
  exponents = [i for i, key in enumerate(law.parameters) if key.startswith(("alpha", "beta"))]
  held = []
  for seed in range(10):
    found = surfaces.fit_surface(law, *_points(name, 0.003, seed), resamples=40)
    ends = list(found.intervals.values())
    held += [ends[i][0] <= PLANTED[name][i] <= ends[i][1] for i in exponents]
  # 20 intervals of 90 %; fewer than 13 held would be a chance of 1 in 500 at 0.85.
  assert sum(held) >= 13


def test_one_wild_point_hardly_matters():
  n_K, d_K, loss_K = _points("chinchilla", 0.001)
  loss_K[7] *= 2.0
  found = surfaces.fit_surface(surfaces.CHINCHILLA, n_K, d_K, loss_K, resamples=0)
  np.testing.assert_allclose([found.params["alpha"], found.params["beta"]], [0.34, 0.28],
                             atol=0.02)


def test_units_of_the_sizes_change_only_the_scales():
  n_K, d_K, loss_K = _points("chinchilla", 0.002)
  one = surfaces.fit_surface(surfaces.CHINCHILLA, n_K, d_K, loss_K, resamples=0)
  two = surfaces.fit_surface(surfaces.CHINCHILLA, n_K * 1e-6, d_K * 1e3, loss_K, resamples=0)
  for name in ("E", "alpha", "beta"):
    assert two.params[name] == pytest.approx(one.params[name], rel=1e-6)
  np.testing.assert_allclose(two.predict([1e5], [1e15]), one.predict([1e11], [1e12]), rtol=1e-6)


@pytest.mark.parametrize("name", PLANTED)
def test_derivatives(name):
  search, u_K = surfaces._SEARCHES[name], np.linspace(-2.0, 2.0, 5)
  theta_P = search.starts(1.0, 0.5)[3]
  _, jacobian_KP = search.evaluate(theta_P, u_K, u_K[::-1])
  for p, step_P in enumerate(1e-6 * np.eye(len(theta_P))):
    above, below = (search.evaluate(theta_P + sign * step_P, u_K, u_K[::-1])[0]
                    for sign in (1, -1))
    np.testing.assert_allclose(jacobian_KP[:, p], (above - below) / 2e-6, atol=1e-5)


N, D, L = _points("chinchilla", 0.0, count=12)


@pytest.mark.parametrize("n,d,loss,message", [
    (N[:5], D[:5], L[:5], "at least 6 points for the 5 parameters of chinchilla, got 5"),
    (N, D, L[:5], r"equal lengths, got shapes \(12,\), \(12,\) and \(5,\)"),
    (N, D, L - 9.0, "loss: expected finite values above 0"),
    (N, np.full(12, 2.0), L, "d: expected at least 3 different sizes"),
])
def test_what_cannot_be_fitted_is_named(n, d, loss, message):
  with pytest.raises(ValueError, match=message):
    surfaces.fit_surface(surfaces.CHINCHILLA, n, d, loss)
