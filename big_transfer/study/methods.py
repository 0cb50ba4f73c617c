"""The ways to predict downstream from upstream accuracy: Eq. 1 and what it is measured against.

`METHODS` holds one callable each: (us_N, ds_N, weights_N) -> predict, where predict(us_Q) gives
downstream accuracies. All are least squares, each in the space that its source fits in: Eq. 1, the
log-linear model and the mean in accuracy; the two in logits (Kornblith et al., "Do better ImageNet
models transfer better?", arXiv:1805.08974, section 3) in the logit of downstream accuracy. Their
errors are compared in accuracy, whatever the space. An accuracy that isn't strictly between `CLIP`
and 1 - `CLIP` counts as that bound in a logit, which has none at 0 and 1.

Shape legend: N points, Q queries, R resamples, D coefficients.
"""
import numpy as np
from scipy import special

from big_transfer.study import fitting, laws

CLIP = 1e-3


def logit(accuracy):
  """log(a / (1 - a)) of accuracies, after clipping to [`CLIP`, 1 - `CLIP`]."""
  return special.logit(np.clip(np.asarray(accuracy, float), CLIP, 1.0 - CLIP))


def polynomial(us_N, ds_N, weights_N=None, *, degree=1):
  """Coefficients (D,) of logit ds as a polynomial of logit us, the constant first.

  Args:
    us_N: upstream accuracies.
    ds_N: downstream accuracies.
    weights_N: weights >= 0 of the squared residuals; None: all 1.
    degree: 1, logit-linear, or 2, logit-quadratic.

  Returns:
    degree + 1 coefficients. Where the points are too few or too equal to tell them apart, the
    shortest vector of coefficients (in units of the points' spread) that fits as well as any.
  """
  x_N, y_N = logit(us_N), logit(ds_N)
  root_N = np.ones_like(x_N) if weights_N is None else np.sqrt(weights_N)
  # Centred and scaled, the powers are of one size, and the cut-off of lstsq means something.
  middle, spread = x_N.mean(), max(np.ptp(x_N) / 2.0, 1e-9)
  powers_ND = np.vander((x_N - middle) / spread, degree + 1, increasing=True)
  scaled_D = np.linalg.lstsq(root_N[:, None] * powers_ND, root_N * y_N, rcond=1e-10)[0]
  shifted = np.polynomial.Polynomial(scaled_D)(
      np.polynomial.Polynomial([-middle / spread, 1.0 / spread]))
  return np.pad(shifted.coef, (0, degree + 1 - shifted.coef.size))


def at_logits(coefficients_D, us_Q):
  """Accuracies (Q,) that a polynomial in logits predicts."""
  return special.expit(np.polynomial.polynomial.polyval(logit(us_Q), coefficients_D))


def _by_law(law):
  def method(us_N, ds_N, weights_N=None):
    weights_RN = None if weights_N is None else np.asarray(weights_N, float)[None]
    found = fitting.fit(law, 1.0 - np.asarray(us_N, float), 1.0 - np.asarray(ds_N, float),
                        weights_RN)
    return lambda us_Q: 1.0 - law.predict(found.params[0], 1.0 - np.asarray(us_Q, float))
  return method


def _by_logits(degree):
  def method(us_N, ds_N, weights_N=None):
    found_D = polynomial(us_N, ds_N, weights_N, degree=degree)
    return lambda us_Q: at_logits(found_D, us_Q)
  return method


def _mean(us_N, ds_N, weights_N=None):
  mean = np.average(ds_N, weights=weights_N)
  return lambda us_Q: np.full(np.shape(us_Q), mean)


METHODS = {
    "saturating": _by_law(laws.SATURATING),
    "log-linear": _by_law(laws.LOG_LINEAR),
    "logit-linear": _by_logits(1),
    "logit-quadratic": _by_logits(2),
    "mean": _mean,
}
