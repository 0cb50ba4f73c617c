"""What a law is fitted to: all points, or places along the upper hull; for many subsets abreast.

The hull is fitted along its edges, at evenly spaced upstream accuracies, so that the fit is the
nearest law to the hull as a curve, not to its three to ten vertices. The runs with the lowest and
the highest upstream accuracy are vertices whatever their downstream accuracy, which pulls a fit
down; so the first and the last edge are left out where they are short (a tenth of the range) and
there are others. A long one stays: without it a fit would see but a part of the range.

Shape legend: N points, R subsets, G places along the hull, V vertices.
"""
import numpy as np

from big_transfer.study import fitting, hull, laws

SHORT = 0.1  # of the runs' upstream range: an outer edge longer than this is always fitted
_PLACES = 64
_INNER_FROM = 5  # vertices: with fewer, three parameters need the outer edges too


def _on_all(us_N, ds_N, mask_RN, span):
  del span
  return 1.0 - us_N, 1.0 - ds_N, mask_RN.astype(float)


def fitted_range(at_V):
  """The ends of what is fitted of a hull with these upstream accuracies, rising, as vertices."""
  if at_V.size < _INNER_FROM:
    return at_V[0], at_V[-1]
  short = SHORT * (at_V[-1] - at_V[0])
  return (at_V[1] if at_V[1] - at_V[0] <= short else at_V[0],
          at_V[-2] if at_V[-1] - at_V[-2] <= short else at_V[-1])


def _on_hull(us_N, ds_N, mask_RN, span):
  """The upper hull of each subset, sampled along its edges on one grid."""
  low, high = (us_N.min(), us_N.max()) if span is None else span
  us_G = low + (high - low) * (np.arange(_PLACES) + 0.5) / _PLACES
  us_RN, ds_RN = np.broadcast_to(us_N, mask_RN.shape), np.broadcast_to(ds_N, mask_RN.shape)
  weight_RG, error_RG = np.zeros((len(mask_RN), _PLACES)), np.zeros((len(mask_RN), _PLACES))
  whole_R = mask_RN.all(1)
  for r in range(len(mask_RN)):
    us, ds = (us_RN[r], ds_RN[r]) if whole_R[r] else (us_RN[r, mask_RN[r]], ds_RN[r, mask_RN[r]])
    vertices = hull.upper_hull(us, ds)
    at = us[vertices]
    first, last = fitted_range(at)
    inside_G = (us_G >= first) & (us_G <= last)
    # A subset so narrow that it falls between two places of the grid counts at the nearest.
    inside_G[np.abs(us_G - at.mean()).argmin()] |= not inside_G.any()
    weight_RG[r] = inside_G
    error_RG[r] = 1.0 - np.interp(us_G, at, ds[vertices])
  return 1.0 - us_G, error_RG, weight_RG


_TARGETS = {"hull": _on_hull, "all": _on_all}
KINDS = tuple(_TARGETS)
WORDS = {"hull": f"the hull at {_PLACES} evenly spaced upstream accuracies, without its first "
                 f"and last edge where short (at most {SHORT:g} of the upstream range)",
         "all": "all points"}


def _target(kind, us_N, ds_N, mask_RN, span=None):
  if kind not in _TARGETS:
    raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
  return _TARGETS[kind](us_N, ds_N, mask_RN, span)


def fit_points(kind, us_N, ds_N, mask_RN=None, *, law=laws.SATURATING, span=None, **how):
  """Fits a law to the upper hull or to all points, for each of R subsets of them.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies, (N,) or one row a subset (R, N).
    ds_N: downstream accuracies, of the same shape.
    mask_RN: which points belong to which subset; None: all.
    law: the law, in errors.
    span: (low, high) upstream accuracies between which a hull is sampled; None: all that are
      given. What is to be compared with a fit needs that fit's span.
    **how: `steps` and `grid` of `fitting.fit`.

  Returns:
    A `fitting.Fit` of R fits, in errors.

  Raises:
    ValueError: an unknown kind, or points that can't be fitted.
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  mask_RN = np.ones(np.atleast_2d(us_N).shape, bool) if mask_RN is None else mask_RN
  return fitting.fit(law, *_target(kind, us_N, ds_N, mask_RN, span), **how)


def fitted_points(kind, us_N, ds_N):
  """What is fitted, as points: all of them, or places along the upper hull.

  Args:
    kind: "hull" or "all".
    us_N: upstream accuracies.
    ds_N: downstream accuracies.

  Returns:
    (us_M, ds_M), accuracies, each of weight 1 in a fit.

  Raises:
    ValueError: an unknown kind.
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  error_us_M, error_ds_1M, weight_1M = _target(kind, us_N, ds_N, np.ones((1, us_N.size), bool))
  chosen_M = weight_1M[0] > 0
  return 1.0 - error_us_M[chosen_M], 1.0 - np.atleast_2d(error_ds_1M)[0][chosen_M]
