"""The estimator of learning and scaling curves: fitted to small sizes, it predicts large ones.

log y = log f(x; theta) + B(log x) + noise: a curve f that levels off, a Brownian path B that lets
the curve wander from it, anchored at the last training point, and independent noise.

Shape legend: N training points, Q points asked for, B fits abreast, P parameters, H path scales.
"""
import dataclasses

import numpy as np
from scipy import special

from big_transfer.study import scale_forms

FEWEST_POINTS = 4
_MOST_POINTS = 128
# Variance of the noise over that of the path between neighbouring points.
_RATIOS = (0.03, 0.3, 3.0, 30.0, 1e3)
# The prior of the path's scale: inverse gamma, worth one point, around 2 % per unit of log x.
_PRIOR_POINTS, _PRIOR_SCALE = 1.0, 0.02


@dataclasses.dataclass(frozen=True)
class _Fitted:
  """One form at every path scale: theta_HP, scale (H,), log evidence (H,), precision (H, P, P)."""
  theta_HP: np.ndarray
  variance_H: np.ndarray
  evidence_H: np.ndarray
  precision_HPP: np.ndarray
  residual_HN: np.ndarray


def _search(form, theta_BP, whiten_BNN, u_N, logs_N, limits, steps):
  """Levenberg–Marquardt, all fits abreast, with the path's variance integrated out.

  The objective is a Student t's: (n + nu) / 2 log(nu s^2 + |W r|^2) + |z|^2 / 2; at each step the
  variance is set to (nu s^2 + |W r|^2) / (n + nu), which makes it least squares.
  """
  count, eye = len(u_N) + _PRIOR_POINTS, np.arange(theta_BP.shape[1])
  damping_B = np.full(len(theta_BP), 1e-2)

  def evaluate(theta_BP):
    curve_BN, jacobian_BNP = form.evaluate(theta_BP, u_N, *limits)
    residual_BN = (whiten_BNN @ (logs_N - curve_BN)[..., None])[..., 0]
    z_BP = (theta_BP - form.mean_P) / form.sd_P
    total_B = _PRIOR_POINTS * _PRIOR_SCALE ** 2 + (residual_BN ** 2).sum(1)
    loss_B = 0.5 * count * np.log(total_B) + 0.5 * (z_BP ** 2).sum(1)
    return theta_BP, residual_BN, whiten_BNN @ jacobian_BNP, z_BP, total_B / count, loss_B

  def normal(state):
    _, residual_BN, jacobian_BNP, z_BP, variance_B, _ = state
    flipped_BPN = jacobian_BNP.swapaxes(1, 2) / variance_B[:, None, None]
    hessian_BPP = flipped_BPN @ jacobian_BNP
    hessian_BPP[:, eye, eye] += form.sd_P ** -2
    return hessian_BPP, (flipped_BPN @ residual_BN[..., None])[..., 0] - z_BP / form.sd_P

  state = evaluate(theta_BP)
  for _ in range(steps):
    hessian_BPP, gradient_BP = normal(state)
    hessian_BPP[:, eye, eye] *= 1.0 + damping_B[:, None]
    step_BP = np.linalg.solve(hessian_BPP, gradient_BP[..., None])[..., 0]
    step_BP *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step_BP).max(1, keepdims=True), 1e-9))
    fresh = evaluate(state[0] + step_BP)
    better_B = fresh[-1] < state[-1]
    gain_B = np.where(better_B, state[-1] - fresh[-1], 0.0)
    damping_B = np.where(better_B, np.maximum(0.2 * damping_B, 1e-7), 5.0 * damping_B)
    state = tuple(np.where(better_B.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
                  for new, old in zip(fresh, state, strict=True))
    if np.all((gain_B < 1e-4) & (better_B | (damping_B > 1e3))):
      break
  return state, normal(state)[0]


def _fit_form(form, u_N, logs_N, limits, whiten_HNN, log_det_H):
  scales = len(whiten_HNN)
  starts_SP = form.starts(u_N[0], *limits)
  middle_SNN = np.repeat(whiten_HNN[scales // 2][None], len(starts_SP), 0)
  state, _ = _search(form, starts_SP, middle_SNN, u_N, logs_N, limits, 15)
  best_BP = np.repeat(state[0][np.argsort(state[-1])[:2]], scales, 0)
  state, precision_BPP = _search(form, best_BP, np.tile(whiten_HNN, (2, 1, 1)), u_N, logs_N,
                                 limits, 25)
  pick_H = state[-1].reshape(2, scales).argmin(0) * scales + np.arange(scales)
  evidence_H = (-state[-1][pick_H] - 0.5 * log_det_H - np.log(form.sd_P).sum()
                - 0.5 * np.linalg.slogdet(precision_BPP[pick_H])[1])
  return _Fitted(state[0][pick_H], state[4][pick_H], evidence_H, precision_BPP[pick_H],
                 state[1][pick_H])


@dataclasses.dataclass(frozen=True)
class Curve:
  """A fitted curve: `predict` the median, `interval` where new measurements should lie.

  Attributes:
    method: "big_transfer".
    params: form -> parameters by name, in the units of x and y, at the likeliest path scale.
    evidence: form -> Laplace's log evidence.
    level: of the intervals.
  """
  method: str
  params: dict[str, dict[str, float]]
  evidence: dict[str, float]
  level: float
  _parts: tuple

  def _mixture(self, x_Q):
    """Means, variances (M, Q) and weights (M,) of log y: one component a form and path scale."""
    fitted, log_x, log_y, limits, spacing = self._parts
    x_Q = np.asarray(x_Q, float)
    if x_Q.ndim != 1 or not np.all(np.isfinite(x_Q) & (x_Q > 0)):
      raise ValueError("x: expected one dimension of finite values above 0 to predict at, got "
                       f"shape {x_Q.shape}, least value {x_Q.min() if x_Q.size else None}")
    u_Q = np.log(x_Q) - log_x
    means, variances, weights = [], [], []
    for form, part in fitted:
      mean_HQ, jacobian_HQP = form.evaluate(part.theta_HP, u_Q, *limits)
      spread_HPQ = np.linalg.solve(part.precision_HPP, jacobian_HQP.swapaxes(1, 2))
      own_HQ = (jacobian_HQP.swapaxes(1, 2) * spread_HPQ).sum(1)
      ratios_H1 = np.array(_RATIOS)[:, None] * spacing
      means.append(mean_HQ + log_y)
      variances.append(own_HQ + part.variance_H[:, None] * (np.abs(u_Q) + ratios_H1))
      weights.append(special.softmax(part.evidence_H) / len(fitted))
    return np.concatenate(means), np.concatenate(variances), np.concatenate(weights)

  def predict(self, x_Q):
    """The median of y at sizes x_Q (Q,): the forms' mean in log y."""
    mean_MQ, _, weight_M = self._mixture(x_Q)
    return np.exp(weight_M @ mean_MQ)

  def interval(self, x_Q):
    """(low_Q, high_Q) that hold a new measurement at x_Q with probability `level`."""
    mean_MQ, variance_MQ, weight_M = self._mixture(x_Q)
    sd_MQ = np.sqrt(variance_MQ)
    ends = []
    for target in (0.5 - 0.5 * self.level, 0.5 + 0.5 * self.level):
      low_Q, high_Q = (mean_MQ - 8.0 * sd_MQ).min(0), (mean_MQ + 8.0 * sd_MQ).max(0)
      for _ in range(50):
        middle_Q = 0.5 * (low_Q + high_Q)
        under_Q = weight_M @ special.ndtr((middle_Q - mean_MQ) / sd_MQ) < target
        low_Q, high_Q = np.where(under_Q, middle_Q, low_Q), np.where(under_Q, high_Q, middle_Q)
      ends.append(np.exp(0.5 * (low_Q + high_Q)))
    return tuple(ends)


def _checked(x_N, y_N, level):
  x_N, y_N = np.asarray(x_N, float), np.asarray(y_N, float)
  if x_N.ndim != 1 or x_N.shape != y_N.shape:
    raise ValueError(f"x, y: expected one dimension and equal lengths, got shapes {x_N.shape} "
                     f"and {y_N.shape}")
  if len(x_N) < FEWEST_POINTS:
    raise ValueError(f"x, y: expected at least {FEWEST_POINTS} points to fit a curve, got "
                     f"{len(x_N)}; add smaller sizes, which cost least")
  for name, values_N in (("x", x_N), ("y", y_N)):
    if not np.all(np.isfinite(values_N) & (values_N > 0)):
      raise ValueError(f"{name}: expected finite values above 0 (sizes, losses or error rates), "
                       f"got {values_N[~(np.isfinite(values_N) & (values_N > 0))][0]}; leave "
                       "such points out")
  if not 0 < level < 1:
    raise ValueError(f"level: expected between 0 and 1, such as 0.9, got {level}")
  order_N = np.argsort(x_N, kind="stable")
  if x_N[order_N[0]] == x_N[order_N[-1]]:
    raise ValueError(f"x: expected at least two different sizes, got only {x_N[0]}")
  return x_N[order_N], y_N[order_N]


def fit(x_N, y_N, *, level=0.9):
  """Fits the curve of a loss or error rate against a size.

  Args:
    x_N: sizes in any unit, in any order; y_N: loss or error rate there, any scale above 0.
    level: of the predictive intervals.

  Returns:
    A `Curve`.

  Raises:
    ValueError: fewer than 4 points, shapes that differ, values that aren't finite and above 0.
  """
  x_N, y_N = _checked(x_N, y_N, level)
  log_x, log_y = np.log(x_N[-1]), np.log(y_N[-1])
  u_N, logs_N = np.log(x_N) - log_x, np.log(y_N) - log_y
  limits = (np.exp(logs_N.min()), np.exp(logs_N.max()))
  spacing = -u_N[0] / (len(u_N) - 1)
  path_NN = np.minimum(-u_N[:, None], -u_N)
  chol_HNN = np.linalg.cholesky(
      path_NN + np.array(_RATIOS)[:, None, None] * spacing * np.eye(len(u_N)))
  whiten_HNN = np.linalg.inv(chol_HNN)
  log_det_H = 2.0 * np.log(np.diagonal(chol_HNN, axis1=1, axis2=2)).sum(1)
  fitted = tuple((form, _fit_form(form, u_N, logs_N, limits, whiten_HNN, log_det_H))
                 for form in scale_forms.FORMS)
  params, evidence = {}, {}
  for form, part in fitted:
    best = part.evidence_H.argmax()
    named = form.report(part.theta_HP[best], *limits, log_x, log_y)
    params[form.name] = {name: float(value) for name, value in named.items()}
    evidence[form.name] = float(special.logsumexp(part.evidence_H))
  return Curve("big_transfer", params, evidence, level, (fitted, log_x, log_y, limits, spacing))
