"""The ways to predict: each recovers its own planted form and predicts finite accuracies."""
import numpy as np
import pytest
from scipy import special

from big_transfer.study import laws, methods

US = np.linspace(0.05, 0.95, 40)
PLANTED = {
    "saturating": 1.0 - laws.SATURATING.predict((0.6, 3.0, 0.2), 1.0 - US),
    "log-linear": 1.0 - laws.LOG_LINEAR.predict((0.7, 0.8), 1.0 - US),
    "logit-linear": special.expit(0.4 + 0.7 * special.logit(US)),
    "logit-quadratic": special.expit(0.4 + 0.7 * special.logit(US) - 0.1 * special.logit(US) ** 2),
    "mean": np.full(40, 0.37),
}


@pytest.mark.parametrize("name", methods.METHODS)
def test_each_recovers_its_own_form_from_the_lower_half_and_predicts_the_upper(name):
  predict = methods.METHODS[name](US[:20], PLANTED[name][:20])
  np.testing.assert_allclose(predict(US[20:]), PLANTED[name][20:], atol=1e-5)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_weight_counts_a_point_and_none_leaves_it_out(name):
  rng = np.random.default_rng(0)
  ds_N = PLANTED["logit-linear"] + rng.normal(0, 0.02, 40)
  counts_N = rng.integers(0, 3, 40)
  weighted = methods.METHODS[name](US, ds_N, counts_N)(US)
  repeated = methods.METHODS[name](np.repeat(US, counts_N), np.repeat(ds_N, counts_N))(US)
  np.testing.assert_allclose(weighted, repeated, atol=1e-6)


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("us, ds", [([0.0, 0.5, 1.0], [0.0, 1.0, 1.0]), ([0.5, 0.5], [0.2, 0.4]),
                                    ([1.0], [0.3]), ([0.1, 0.9], [0.5, 0.5])])
def test_accuracies_of_0_and_1_and_too_few_points_predict_finite_accuracies(name, us, ds):
  found = methods.METHODS[name](np.array(us), np.array(ds))(np.array([0.0, 0.5, 1.0]))
  assert np.isfinite(found).all() and (found < 1 + 1e-9).all()


def test_coefficients_are_those_of_a_polynomial_in_plain_logits():
  found_D = methods.polynomial(US, PLANTED["logit-quadratic"], degree=2)
  np.testing.assert_allclose(found_D, [0.4, 0.7, -0.1], atol=1e-9)
  flat_D = methods.polynomial(US, np.full(40, 0.5), degree=2)
  np.testing.assert_allclose(flat_D, np.zeros(3), atol=1e-9)
