"""The hull of randomised classifiers: mixtures stay under it, and each of its points is one."""
import numpy as np
import pytest
from scipy import spatial

from big_transfer.study import hull


def _points(seed, n):
  rng = np.random.default_rng(seed)
  return rng.uniform(0.1, 0.9, n), rng.uniform(0.2, 0.8, n)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 400])
def test_every_mixture_of_runs_lies_under_the_hull(n):
  us_N, ds_N = _points(n, n)
  weights_QN = np.random.default_rng(1).dirichlet(np.full(n, 0.3), size=200)
  at_Q = np.clip(weights_QN @ us_N, us_N.min(), us_N.max())
  assert (weights_QN @ ds_N <= hull.hull_at(us_N, ds_N, at_Q) + 1e-12).all()


@pytest.mark.parametrize("n", [3, 12, 100, 1000])
def test_vertices_are_those_of_qhull_on_the_upper_side(n):
  us_N, ds_N = _points(n + 7, n)
  vertices = spatial.ConvexHull(np.stack([us_N, ds_N], 1)).vertices
  ends = us_N.argmin(), us_N.argmax()
  chord_N = np.interp(us_N, us_N[list(ends)], ds_N[list(ends)])
  expected = {i for i in vertices if ds_N[i] > chord_N[i]} | set(ends)
  found = hull.upper_hull(us_N, ds_N)
  assert set(found) == expected
  assert (np.diff(us_N[found]) > 0).all()


def test_ties_and_points_on_an_edge_are_no_vertices():
  us_N = np.array([0.2, 0.2, 0.4, 0.6, 0.6, 0.6])
  ds_N = np.array([0.1, 0.3, 0.4, 0.5, 0.5, 0.2])
  assert hull.upper_hull(us_N, ds_N).tolist() in ([1, 3], [1, 4])


def test_mixture_weights_realise_points_on_and_inside_the_hull():
  us_N, ds_N = _points(3, 40)
  for at in np.linspace(us_N.min(), us_N.max(), 17):
    top = float(hull.hull_at(us_N, ds_N, at))
    bottom = -float(hull.hull_at(us_N, -ds_N, at))
    for share in (None, 0.0, 0.3, 1.0):
      wanted = None if share is None else bottom + share * (top - bottom)
      weights_N = hull.mixture(us_N, ds_N, at, wanted)
      assert weights_N.min() >= 0 and (weights_N > 0).sum() <= (2 if share is None else 4)
      np.testing.assert_allclose(
          [weights_N.sum(), weights_N @ us_N, weights_N @ ds_N],
          [1.0, at, top if wanted is None else wanted], atol=1e-12)


def test_what_no_mixture_reaches_is_an_error():
  us_N, ds_N = _points(4, 20)
  with pytest.raises(ValueError, match="no mixture of runs lies outside"):
    hull.hull_at(us_N, ds_N, [0.5, 0.95])
  with pytest.raises(ValueError, match="at_ds"):
    hull.mixture(us_N, ds_N, 0.5, 0.99)
  with pytest.raises(ValueError, match="finite"):
    hull.upper_hull([0.1, np.nan], [0.2, 0.3])
  with pytest.raises(ValueError, match="one length"):
    hull.upper_hull([], [])
