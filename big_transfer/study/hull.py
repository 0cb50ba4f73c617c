"""The convex hull of randomised classifiers.

Choosing, for each input, model j with probability p_j gives a classifier whose upstream
*and* downstream accuracies are the averages sum_j p_j a_j (Abnar et al., "Exploring the Limits
of Large Scale Pre-training", arXiv:2110.02095, Lemma 2.1). So every point of the convex hull of
the (upstream, downstream) points of the runs can be achieved, and what the paper fits is its
upper boundary: the highest downstream accuracy for every given upstream accuracy.

Shape legend: N points, V vertices, Q queries.
"""
import numpy as np

# Directions in which extreme points are looked for before the exact scan. They only discard
# points that cannot be vertices, so their number changes the speed and never the answer.
_DIRECTIONS = 16


def _checked(us_N, ds_N):
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  if us_N.ndim != 1 or us_N.shape != ds_N.shape or not us_N.size:
    raise ValueError(
        "us and ds: expected two one-dimensional arrays of one length, at least 1, but their "
        f"shapes are {us_N.shape} and {ds_N.shape}; pass one accuracy of each kind per run")
  if not (np.isfinite(us_N).all() and np.isfinite(ds_N).all()):
    raise ValueError("us and ds: expected finite accuracies, got a NaN or an infinity; leave "
                     "those points out before asking for a hull")
  return us_N, ds_N


def _candidates(us_N, ds_N):
  """Indices of the points that are not strictly below a polygon of extreme points."""
  angle = np.linspace(0.0, np.pi, _DIRECTIONS)
  scores = np.outer(np.cos(angle), us_N) + np.outer(np.sin(angle), ds_N)
  extreme = np.unique(scores.argmax(1))
  extreme = extreme[np.argsort(us_N[extreme], kind="stable")]
  inside = ds_N < np.interp(us_N, us_N[extreme], ds_N[extreme]) - 1e-12
  inside &= (us_N > us_N[extreme[0]]) & (us_N < us_N[extreme[-1]])
  return np.flatnonzero(~inside)


def upper_hull(us_N, ds_N):
  """Vertices of the upper boundary of the convex hull.

  Args:
    us_N: upstream accuracies.
    ds_N: downstream accuracies.

  Returns:
    Indices (V,) into the points, by rising upstream accuracy: from the lowest upstream accuracy
    to the highest (of several points there, the best downstream), strictly concave between.
    Points on an edge are not vertices.

  Raises:
    ValueError: the arrays differ in shape, are empty or hold a value that is not finite.
  """
  us_N, ds_N = _checked(us_N, ds_N)
  keep = _candidates(us_N, ds_N) if us_N.size > 4 * _DIRECTIONS else np.arange(us_N.size)
  order = keep[np.lexsort((-ds_N[keep], us_N[keep]))]
  chain = []  # Andrew's monotone chain, on plain floats: faster than numpy scalars
  for i, x, y in zip(order.tolist(), us_N[order].tolist(), ds_N[order].tolist()):
    if chain and chain[-1][1] == x:
      continue
    while len(chain) > 1:
      (_, x0, y0), (_, x1, y1) = chain[-2:]
      if (x1 - x0) * (y - y0) < (y1 - y0) * (x - x0):
        break
      chain.pop()
    chain.append((i, x, y))
  return np.array([i for i, _, _ in chain])


def hull_at(us_N, ds_N, at_Q):
  """Highest downstream accuracy that a mixture of the runs reaches at upstream accuracies.

  Args:
    us_N: upstream accuracies of the runs.
    ds_N: downstream accuracies of the runs.
    at_Q: upstream accuracies asked for.

  Returns:
    Downstream accuracies (Q,).

  Raises:
    ValueError: a query outside the range of the runs (no mixture reaches it), or bad points.
  """
  us_N, ds_N = _checked(us_N, ds_N)
  at_Q = np.asarray(at_Q, float)
  low, high = us_N.min(), us_N.max()
  outside = ~((at_Q >= low) & (at_Q <= high))
  if outside.any():
    raise ValueError(
        f"at: expected upstream accuracies within the runs' range [{low:.6g}, {high:.6g}], got "
        f"{np.atleast_1d(at_Q)[np.atleast_1d(outside)][0]:.6g}; no mixture of runs lies outside")
  vertices = upper_hull(us_N, ds_N)
  return np.interp(at_Q, us_N[vertices], ds_N[vertices])


def _edge_weights(us_N, vertices, at):
  """Weights (N,) of the one or two vertices whose mixture has upstream accuracy `at`."""
  weights_N = np.zeros(us_N.size)
  right = int(np.clip(np.searchsorted(us_N[vertices], at), 1, max(vertices.size - 1, 1)))
  if vertices.size == 1:
    weights_N[vertices[0]] = 1.0
    return weights_N
  i, j = vertices[right - 1], vertices[right]
  share = (at - us_N[i]) / (us_N[j] - us_N[i])
  weights_N[i], weights_N[j] = 1.0 - share, share
  return weights_N


def mixture(us_N, ds_N, at_us, at_ds=None):
  """Probabilities with which to draw the runs so that the mixture has given accuracies.

  Args:
    us_N: upstream accuracies of the runs.
    ds_N: downstream accuracies of the runs.
    at_us: upstream accuracy wanted.
    at_ds: downstream accuracy wanted; None asks for the highest that can be reached.

  Returns:
    Probabilities (N,), at most four of them positive (two on the hull), that sum to 1.

  Raises:
    ValueError: the point is outside the convex hull of the runs, or bad points.
  """
  us_N, ds_N = _checked(us_N, ds_N)
  top = float(hull_at(us_N, ds_N, at_us))
  top_N = _edge_weights(us_N, upper_hull(us_N, ds_N), at_us)
  if at_ds is None:
    return top_N
  bottom = -float(hull_at(us_N, -ds_N, at_us))
  if not bottom - 1e-12 <= at_ds <= top + 1e-12:
    raise ValueError(
        f"at_ds: expected a downstream accuracy in [{bottom:.6g}, {top:.6g}], what mixtures of "
        f"these runs reach at upstream accuracy {at_us:.6g}, got {at_ds:.6g}")
  bottom_N = _edge_weights(us_N, upper_hull(us_N, -ds_N), at_us)
  share = np.clip((at_ds - bottom) / (top - bottom), 0.0, 1.0) if top > bottom else 1.0
  return share * top_N + (1.0 - share) * bottom_N
