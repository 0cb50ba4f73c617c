"""Subsamples keep runs whole; noise is followed back to none; unknown noise changes nothing."""
import numpy as np

from big_transfer.study import intervals


def test_subsamples_hold_whole_runs_whatever_their_number_of_points():
  rng = np.random.default_rng(0)
  run_N = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 6, 30)))
  index_RM, mask_RM = intervals.subsamples(run_N, 40)
  counts_U = np.bincount(run_N)
  for index_M, mask_M in zip(index_RM, mask_RM):
    drawn = index_M[mask_M]
    runs = np.unique(run_N[drawn])
    assert runs.size == intervals.subsample_size(30) and np.unique(drawn).size == drawn.size
    assert drawn.size == counts_U[runs].sum()
  # Every run is drawn about as often: 40 draws of 8 in 30 miss one with probability 4e-6.
  assert np.unique(run_N[index_RM[mask_RM]]).size == 30


def test_runs_with_one_point_are_drawn_the_same_in_either_way():
  index_RM, mask_RM = intervals.subsamples(np.arange(25), 10)
  twice_RM, _ = intervals.subsamples(np.repeat(np.arange(25), 2), 10)
  assert mask_RM.all()
  np.testing.assert_array_equal(np.unique(twice_RM // 2, axis=1).shape, index_RM.shape)
  np.testing.assert_array_equal(np.sort(twice_RM, 1)[:, ::2] // 2, np.sort(index_RM, 1))


def test_standard_errors_that_miss_are_filled_and_unknown_ones_are_none():
  nan = np.full(4, np.nan)
  assert intervals.errors_of(nan, nan) is None
  errors_2N = intervals.errors_of(np.array([0.01, np.nan, 0.03, 0.02]), nan)
  np.testing.assert_allclose(errors_2N, [[0.01, 0.02, 0.03, 0.02], [0, 0, 0, 0]])
  pooled_2N = intervals.errors_of(nan, np.array([0.0, 0.02, np.nan, np.nan]))
  np.testing.assert_allclose(pooled_2N[1], np.sqrt(2e-4))


def _second_moment(us_RM, ds_RM, mask_RM, free=False):
  del ds_RM, free
  return ((us_RM - 0.5) ** 2 * mask_RM).sum(1, keepdims=True) / mask_RM.sum(1, keepdims=True)


def test_what_noise_adds_to_all_points_is_known_where_it_can_be_worked_out():
  rng = np.random.default_rng(1)
  us_N = np.clip(0.5 + rng.normal(0, 0.05, 4000) + rng.normal(0, 0.03, 4000), 0, 1)
  errors_2N = np.stack([np.full(4000, 0.03), np.zeros(4000)])
  found = intervals.intervals("all", _second_moment, us_N, us_N, np.arange(4000), errors_2N)
  # Noise adds its variance; that of so many deviates is within 4 % at two standard errors.
  np.testing.assert_allclose(found.lift, 0.03 ** 2, rtol=0.1)
  assert found.low[0] < 0.05 ** 2 < found.high[0]
  without = intervals.intervals("all", _second_moment, us_N, us_N, np.arange(4000))
  assert without.lift[0] == 0 and without.low[0] > 0.05 ** 2


def test_what_noise_adds_is_followed_back_along_a_parabola_in_its_variance():
  def fourth_moment(us_RM, ds_RM, mask_RM, free=False):
    return (ds_RM ** 4).mean(1, keepdims=True)
  errors_2N = np.stack([np.zeros(2000), np.full(2000, 0.5)])
  found = intervals.intervals("all", fourth_moment, np.zeros(2000), np.zeros(2000),
                              np.arange(2000), errors_2N)
  # 3 v^2 at added variances v of 0, 1/4 and 1/2 is 0, 3/16 and 3/4: at -1/4 it is 3/16 again. Of
  # 10 copies of 2,000 points the standard error is .014; a line would say +3/16.
  np.testing.assert_allclose(found.lift, -3 / 16, atol=0.05)


def test_an_interval_always_holds_the_estimate_itself():
  rng = np.random.default_rng(2)
  us_N = rng.uniform(0, 1, 300)
  errors_2N = np.full((2, 300), 0.2)
  for kind in ("hull", "all"):
    found = intervals.intervals(kind, _second_moment, us_N, us_N, np.arange(300), errors_2N)
    value = ((us_N - 0.5) ** 2).mean()
    assert found.low[0] <= value <= found.high[0]


def test_intervals_are_those_of_a_mean_where_that_is_what_is_estimated():
  rng = np.random.default_rng(3)
  hits = 0
  for _ in range(200):
    us_N = rng.normal(0.5, 0.1, 100)
    found = intervals.intervals("all", lambda us_RM, ds_RM, mask_RM, free=False:
                                us_RM.mean(1, keepdims=True), us_N, us_N, np.arange(100),
                                resamples=100)
    hits += found.low[0] <= 0.5 <= found.high[0]
  # 180 of 200 expected, standard error 4.2.
  assert 165 <= hits <= 195
