"""Fits of a curve whose errors wander: a Brownian path along log x, anchored at the last point.

log y_i = log f(u_i; theta) + B(u_i) + noise_i, u = log(x / x_end): B is 0 at u = 0 and its
variance grows by sigma^2 per unit of |u| to either side; the noise has variance sigma^2 times
`ratio` times the mean spacing of the points in u. Points far from the end so count for less, and
what neighbours have in common is not taken for the curve's.

Shape legend: B fits abreast, H ratios, N training points, Q points asked for, P parameters.
"""
import dataclasses

import numpy as np

# The prior of sigma: worth one point, at 1 % per root unit of log x. It matters where a handful of
# points lie exactly on a curve: without it they would be taken for noiseless.
_PRIOR_POINTS, _PRIOR_SIGMA = 1.0, 0.01
_LONGEST_STEP = 2.0  # in a logarithm or logit: further, the linearised curve means little


@dataclasses.dataclass(frozen=True)
class Path:
  """The covariance of training points at every ratio, as what whitens it.

  Attributes:
    u_N: log(x / x_end), ascending to 0. whiten_HNN: W with W K W' = 1, K in units of sigma^2.
    log_det_H: log |K|. nugget_H: the noise's variance in units of sigma^2.
  """
  u_N: np.ndarray
  whiten_HNN: np.ndarray
  log_det_H: np.ndarray
  nugget_H: np.ndarray

  def to(self, u_Q):
    """Whitened covariance with the path at u_Q: (H, N, Q). None beyond the end: it is anchored."""
    shared_NQ = np.minimum(-self.u_N[:, None], np.maximum(-u_Q, 0.0))
    return self.whiten_HNN @ shared_NQ


def path(u_N, count_N, ratios_H):
  """The `Path` of points at u_N, each the mean of count_N measurements."""
  spacing = -u_N[0] / (count_N.sum() - 1.0)
  nugget_H = np.asarray(ratios_H) * spacing
  covariance_HNN = np.minimum(-u_N[:, None], -u_N) + nugget_H[:, None, None] * np.diag(1 / count_N)
  chol_HNN = np.linalg.cholesky(covariance_HNN)
  log_det_H = 2.0 * np.log(np.diagonal(chol_HNN, axis1=1, axis2=2)).sum(1)
  return Path(u_N, np.linalg.inv(chol_HNN), log_det_H, nugget_H)


@dataclasses.dataclass(frozen=True)
class Fits:
  """Fits abreast, each at its maximum a posteriori.

  Attributes:
    theta_BP; variance_B: sigma^2; evidence_B: Laplace's log evidence, less half of log |K|;
    precision_BPP: of theta; residual_BN, jacobian_BNP: whitened; free_B: degrees of freedom.
  """
  theta_BP: np.ndarray
  variance_B: np.ndarray
  evidence_B: np.ndarray
  precision_BPP: np.ndarray
  residual_BN: np.ndarray
  jacobian_BNP: np.ndarray
  free_B: np.ndarray

  def take(self, index):
    """The fits at `index`, in that order."""
    return Fits(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def _variance(form, total_B, gram_BPP, count):
  """sigma^2 by MacKay's fixed point: residuals over the points less the parameters they settle.

  Without that last part five points and five parameters would seem to fit without any error.
  """
  eye = np.arange(gram_BPP.shape[1])
  prior = _PRIOR_POINTS * _PRIOR_SIGMA ** 2
  variance_B = (prior + total_B) / (_PRIOR_POINTS + count)
  precision_BPP = gram_BPP / variance_B[:, None, None]
  precision_BPP[:, eye, eye] += form.sd_P ** -2
  settled_B = len(eye) - np.linalg.inv(precision_BPP)[:, eye, eye] @ form.sd_P ** -2
  free_B = np.maximum(_PRIOR_POINTS + count - settled_B, 1.0)
  return (prior + total_B) / free_B, free_B


def search(form, theta_BP, whiten_BNN, u_N, logs_N, limits, steps):
  """Levenberg–Marquardt on |W (log y - log f)|^2 / sigma^2 + |z|^2, all fits abreast.

  Args:
    form: a `scale_forms.Form`; theta_BP: starts; whiten_BNN: of each fit; limits: (least y,
    greatest y); steps: the most to take.
  """
  eye = np.arange(theta_BP.shape[1])
  damping_B = np.full(len(theta_BP), 1e-2)

  def evaluate(theta_BP):
    curve_BN, jacobian_BNP = form.evaluate(theta_BP, u_N, *limits)
    residual_BN = (whiten_BNN @ (logs_N - curve_BN)[..., None])[..., 0]
    z_BP = (theta_BP - form.mean_P) / form.sd_P
    return (theta_BP, residual_BN, whiten_BNN @ jacobian_BNP, z_BP, (residual_BN ** 2).sum(1),
            0.5 * (z_BP ** 2).sum(1))

  state = evaluate(theta_BP)
  for step in range(steps):
    _, residual_BN, jacobian_BNP, z_BP, total_B, penalty_B = state
    flipped_BPN = jacobian_BNP.swapaxes(1, 2)
    gram_BPP = flipped_BPN @ jacobian_BNP
    variance_B, _ = _variance(form, total_B, gram_BPP, len(u_N))
    precision_BPP = gram_BPP / variance_B[:, None, None]
    precision_BPP[:, eye, eye] += form.sd_P ** -2
    precision_BPP[:, eye, eye] *= 1.0 + damping_B[:, None]
    gradient_BP = ((flipped_BPN @ residual_BN[..., None])[..., 0] / variance_B[:, None]
                   - z_BP / form.sd_P)
    move_BP = np.linalg.solve(precision_BPP, gradient_BP[..., None])[..., 0]
    move_BP *= np.minimum(1.0, _LONGEST_STEP / np.maximum(np.abs(move_BP).max(1), 1e-9))[:, None]
    fresh = evaluate(state[0] + move_BP)
    gain_B = 0.5 * (total_B - fresh[4]) / variance_B + penalty_B - fresh[5]
    better_B = gain_B > 0
    damping_B = np.where(better_B, np.maximum(0.2 * damping_B, 1e-7),
                         np.minimum(5.0 * damping_B, 1e8))
    state = tuple(np.where(better_B.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
                  for new, old in zip(fresh, state, strict=True))
    if step > 4 and np.all(np.where(better_B, gain_B < 1e-3, damping_B > 1e3)):
      break
  return _at(form, state, len(u_N))


def _at(form, state, count):
  """The `Fits` of a finished search."""
  theta_BP, residual_BN, jacobian_BNP, _, total_B, penalty_B = state
  gram_BPP = jacobian_BNP.swapaxes(1, 2) @ jacobian_BNP
  variance_B, free_B = _variance(form, total_B, gram_BPP, count)
  precision_BPP = gram_BPP / variance_B[:, None, None]
  precision_BPP += np.diag(form.sd_P ** -2)
  evidence_B = (-0.5 * (total_B + _PRIOR_POINTS * _PRIOR_SIGMA ** 2) / variance_B
                - 0.5 * (count + _PRIOR_POINTS) * np.log(variance_B) - penalty_B
                - np.log(form.sd_P).sum() - 0.5 * np.linalg.slogdet(precision_BPP)[1])
  return Fits(theta_BP, variance_B, evidence_B, precision_BPP, residual_BN, jacobian_BNP, free_B)
