"""Bounded least-squares fits of the laws, many resamples at once.

A law `scale * x^exponent (+ offset)` is linear in scale and offset once the exponent is fixed. So
a fit scans a fine grid of exponents, solves the one or two linear parameters exactly within their
bounds at each, and narrows the best cell by golden section. There are no random starts: the same
points give the same numbers, and there is no local minimum to be stuck in that the grid resolves.

Shape legend: R resamples (each a vector of weights over the same points), N points, A exponents.
"""
import dataclasses

import numpy as np

from big_transfer.study import laws

_GRID = 121  # steps of 5.5 % in the exponent: the profile over it is far smoother than that
_CHUNK = 4_000_000  # floats in the largest temporary array: 32 MB
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


@dataclasses.dataclass(frozen=True)
class Fit:
  """Fits of one law to R resamples.

  Attributes:
    law: the law fitted.
    params: (R, P), in the order of `law.parameters`.
    rms: (R,) root of the weighted mean squared residual, in units of y.
  """
  law: laws.Law
  params: np.ndarray
  rms: np.ndarray


def _solve(moments, offset_bounds):
  """Best (scale >= 0, bounded offset) from weighted moments; arrays of one shape throughout.

  The optimum of a convex quadratic in a box is the free optimum if that lies inside, else the
  best of the optima along the edges; here there are three edges.
  """
  w, p, pp, y, py, yy = moments
  low, high = offset_bounds

  def loss(scale, offset):
    return (yy + scale * scale * pp + offset * offset * w
            + 2.0 * (scale * offset * p - scale * py - offset * y))

  def scale_given(offset):
    return np.maximum((py - offset * p) / np.maximum(pp, 1e-300), 0.0)

  mean = np.clip(y / w, low, high)
  best_scale, best_offset = np.zeros_like(y), mean
  best_loss = loss(best_scale, best_offset)
  determinant = w * pp - p * p
  safe = np.where(determinant > 1e-13 * w * pp, determinant, np.inf)
  free_scale, free_offset = (w * py - p * y) / safe, (pp * y - p * py) / safe
  free_ok = np.isfinite(safe) & (free_scale >= 0) & (free_offset >= low) & (free_offset <= high)
  candidates = [(free_scale, free_offset, free_ok)]
  candidates += [(scale_given(edge), np.full_like(y, edge), True) for edge in {low, high}]
  for scale, offset, allowed in candidates:
    value = np.where(allowed, loss(scale, offset), np.inf)
    better = value < best_loss
    best_loss = np.where(better, value, best_loss)
    best_scale = np.where(better, scale, best_scale)
    best_offset = np.where(better, offset, best_offset)
  return best_scale, best_offset, best_loss


def _moments(x_RN, y_RN, w_RN, exponents_A):
  """Weighted moments of the law's basis for each resample and exponent, six of (R, A).

  Where all resamples have the same x, (1, N), they are matrix products.
  """
  basis_RNA = x_RN[:, :, None] ** exponents_A
  wy_RN = w_RN * y_RN
  if len(x_RN) == 1:
    def total(v_RN, basis_RNA):
      return v_RN @ basis_RNA[0]
  else:
    def total(v_RN, basis_RNA):
      return (v_RN[:, None] @ basis_RNA)[:, 0]
  constant = [np.broadcast_to(v_RN.sum(1)[:, None], (len(w_RN), exponents_A.size))
              for v_RN in (w_RN, wy_RN, wy_RN * y_RN)]
  first_RA, cross_RA = total(w_RN, basis_RNA), total(wy_RN, basis_RNA)
  np.square(basis_RNA, out=basis_RNA)
  return [constant[0], first_RA, total(w_RN, basis_RNA), constant[1], cross_RA, constant[2]]


def _scan(x_RN, y_RN, w_RN, exponents_A, offset_bounds):
  """Index (R,) of the best exponent of the grid."""
  best_R = np.empty(len(w_RN), int)
  shared = len(x_RN) == 1
  step = max(1, _CHUNK // (exponents_A.size * (1 if shared else x_RN.shape[1])))
  for start in range(0, len(w_RN), step):
    rows = slice(start, start + step)
    moments = _moments(x_RN if shared else x_RN[rows], y_RN[rows], w_RN[rows], exponents_A)
    best_R[rows] = _solve(moments, offset_bounds)[2].argmin(1)
  return best_R


def _at_exponent(x_RN, y_RN, w_RN, exponent_R, offset_bounds):
  """Linear parameters and the loss at one exponent per resample.

  The loss comes from the residuals: as a difference of moments it loses the half of the digits
  that tell exponents apart when the fit is nearly exact.
  """
  basis_RN = x_RN ** exponent_R[:, None]
  weighted_RN = w_RN * basis_RN
  moments = [w_RN.sum(1), weighted_RN.sum(1), (weighted_RN * basis_RN).sum(1),
             (w_RN * y_RN).sum(1), (weighted_RN * y_RN).sum(1), (w_RN * y_RN * y_RN).sum(1)]
  scale_R, offset_R, _ = _solve(moments, offset_bounds)
  residual_RN = scale_R[:, None] * basis_RN + offset_R[:, None] - y_RN
  return scale_R, offset_R, (w_RN * residual_RN * residual_RN).sum(1)


def _narrow(x_RN, y_RN, w_RN, low_R, high_R, offset_bounds, steps):
  """Golden section on the logarithm of the exponent, all resamples abreast."""
  low_R, high_R = np.log(low_R), np.log(high_R)

  def loss(log_R):
    return _at_exponent(x_RN, y_RN, w_RN, np.exp(log_R), offset_bounds)[2]

  inner_R = high_R - _GOLDEN * (high_R - low_R)
  outer_R = low_R + _GOLDEN * (high_R - low_R)
  inner_loss_R, outer_loss_R = loss(inner_R), loss(outer_R)
  for _ in range(steps):
    left_R = inner_loss_R < outer_loss_R
    low_R, high_R = np.where(left_R, low_R, inner_R), np.where(left_R, outer_R, high_R)
    fresh_R = np.where(left_R, high_R - _GOLDEN * (high_R - low_R),
                       low_R + _GOLDEN * (high_R - low_R))
    fresh_loss_R = loss(fresh_R)
    inner_R, outer_R = np.where(left_R, fresh_R, outer_R), np.where(left_R, inner_R, fresh_R)
    inner_loss_R, outer_loss_R = (np.where(left_R, fresh_loss_R, outer_loss_R),
                                  np.where(left_R, inner_loss_R, fresh_loss_R))
  return np.exp((low_R + high_R) / 2.0)


def fit(law, x_N, y_N, weights_RN=None, *, steps=40, grid=_GRID):
  """Weighted least squares of `law` to points, for each of R vectors of weights.

  Args:
    law: `laws.SATURATING` or `laws.LOG_LINEAR`, or another of that form.
    x_N: errors upstream, each >= 0; (N,) or one row a resample (R, N).
    y_N: errors downstream, (N,) or one row a resample (R, N).
    weights_RN: weights >= 0, one row a resample, 0 for a point it leaves out; None is rows of
      ones. A resample by indices is a row of counts.
    steps: golden-section steps after the grid; each narrows the exponent by 0.62. 40 end at
      1e-9 of the exponent, 10 (for resamples) at 0.1 %.
    grid: exponents of the grid. Of resamples, of which no one is looked at, 41 do.

  Returns:
    A `Fit`; `params` are finite for every input that is accepted.

  Raises:
    ValueError: shapes that disagree, values that aren't finite, a negative x or weight, a
      resample with no weight, or a law that isn't of the form above.

  >>> x = np.linspace(0.05, 0.9, 30)
  >>> found = fit(laws.SATURATING, x, 0.6 * x ** 3.0 + 0.2)
  >>> [round(value, 6) for value in found.params[0].tolist()]
  [0.6, 3.0, 0.2]
  """
  x_N, y_N = np.asarray(x_N, float), np.asarray(y_N, float)
  if weights_RN is None:
    rows = max((len(array) for array in (x_N, y_N) if array.ndim == 2), default=1)
    w_RN = np.ones((rows, x_N.shape[-1] if x_N.ndim else 0))
  else:
    w_RN = np.asarray(weights_RN, float)
  _check(law, x_N, y_N, w_RN)
  y_RN = np.broadcast_to(y_N, w_RN.shape)
  exponent = next(name for name in law.parameters if name not in law.linear)
  low, high = law.parameters[exponent]
  offset_bounds = law.parameters[law.linear[1]] if len(law.linear) > 1 else (0.0, 0.0)
  # With x scaled to at most 1 no power overflows, and scale and offset are of one size.
  top = x_N.max() if x_N.max() > 0 else 1.0
  u_RN = np.atleast_2d(x_N) / top
  exponents_A = np.geomspace(low, high, grid)
  index_R = _scan(u_RN, y_RN, w_RN, exponents_A, offset_bounds)
  out_RP = np.empty((len(w_RN), len(law.parameters)))
  loss_R = np.empty(len(w_RN))
  chunk = max(1, _CHUNK // w_RN.shape[1])
  names = list(law.parameters)
  for start in range(0, len(w_RN), chunk):
    rows = slice(start, start + chunk)
    u_rN, w_rN, y_rN = u_RN if len(u_RN) == 1 else u_RN[rows], w_RN[rows], y_RN[rows]
    best_r = index_R[rows]
    found_r = _narrow(u_rN, y_rN, w_rN, exponents_A[np.maximum(best_r - 1, 0)],
                      exponents_A[np.minimum(best_r + 1, grid - 1)], offset_bounds, steps)
    scale_r, offset_r, loss_R[rows] = _at_exponent(u_rN, y_rN, w_rN, found_r, offset_bounds)
    out_RP[rows, names.index(exponent)] = found_r
    out_RP[rows, names.index(law.linear[0])] = scale_r / top ** found_r
    if len(law.linear) > 1:
      out_RP[rows, names.index(law.linear[1])] = offset_r
  return Fit(law, out_RP, np.sqrt(np.maximum(loss_R, 0.0) / w_RN.sum(1)))


def _check(law, x_N, y_N, w_RN):
  if not 1 <= len(law.linear) <= 2 or len(law.parameters) != len(law.linear) + 1:
    raise ValueError(
        f"law {law.name!r}: expected scale * x^exponent, with or without an offset, so one "
        f"parameter that isn't linear; got {list(law.parameters)} with linear {law.linear}")
  shapes = (w_RN.shape[1:], w_RN.shape)
  if w_RN.ndim != 2 or x_N.shape not in shapes or y_N.shape not in shapes:
    raise ValueError("x, y, weights: expected shapes (N,) or (R, N), the same, and (R, N), got "
                     f"{x_N.shape}, {y_N.shape}, {w_RN.shape}")
  if not x_N.size or not all(np.isfinite(a).all() for a in (x_N, y_N, w_RN)):
    raise ValueError("x, y, weights: expected at least one point and finite values only; leave "
                     "out what is missing, or give it weight 0 and any finite value")
  if x_N.min() < 0 or w_RN.min() < 0 or not w_RN.sum(1).min() > 0:
    raise ValueError("x, weights: expected x >= 0 and weights >= 0 with a positive one in each "
                     f"row; the least are x {x_N.min():.4g}, weight {w_RN.min():.4g}, "
                     f"sum of a row {w_RN.sum(1).min():.4g}")
