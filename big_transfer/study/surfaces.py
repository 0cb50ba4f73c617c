"""Loss against two sizes at once, L(N, D): the forms of Kaplan et al. and of Chinchilla.

Fitted as Hoffmann et al. fit theirs (arXiv:2203.15556, section 3.3): the Huber loss (delta 1e-3)
of log L, minimised by L-BFGS from a grid of starts. Two things differ. Sizes are centred, so that
their units are nothing to the fit and the grid of starts can be small: it covers exponents from
0.1 to 1 and shares of the loss, instead of amounts that suit parameters and tokens alone. And the
residuals are summed, in units of delta, where a mean ends the search early (Besiroglu et al.,
arXiv:2404.10102, trace an error of the published estimates to that).

Intervals are percentiles of fits to resampled points, each started at the estimate: what other
points of the same design would have given. They hold the design's own bias no more than the fit.

Shape legend: K points, P parameters, S starts, R resamples.
"""
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from big_transfer.study import laws

_DELTA = 1e-3
_SEARCHED = 12  # starts from which to search, the best of the grid
_RESAMPLE_STEPS = 200


def _broadcast(params_P, n_K, d_K):
  columns = np.moveaxis(np.asarray(params_P, float), -1, 0)[..., None]
  return columns, np.log(np.asarray(n_K, float)), np.log(np.asarray(d_K, float))


def _kaplan(params_P, n_K, d_K):
  (n_c, d_c, alpha_n, alpha_d), u_K, v_K = _broadcast(params_P, n_K, d_K)
  return np.exp(alpha_d * np.logaddexp(alpha_n / alpha_d * (np.log(n_c) - u_K),
                                       np.log(d_c) - v_K))


def _chinchilla(params_P, n_K, d_K):
  (e, a, b, alpha, beta), u_K, v_K = _broadcast(params_P, n_K, d_K)
  return e + np.exp(np.log(a) - alpha * u_K) + np.exp(np.log(b) - beta * v_K)


_POSITIVE = (0.0, np.inf)
KAPLAN = laws.Law(
    name="kaplan",
    parameters={"N_c": _POSITIVE, "D_c": _POSITIVE, "alpha_N": _POSITIVE, "alpha_D": _POSITIVE},
    predict=_kaplan, linear=(),
    source="Kaplan et al., arXiv:2001.08361, Eq. 1.5: "
           "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D")
CHINCHILLA = laws.Law(
    name="chinchilla",
    parameters={"E": _POSITIVE, "A": _POSITIVE, "B": _POSITIVE, "alpha": _POSITIVE,
                "beta": _POSITIVE},
    predict=_chinchilla, linear=("E", "A", "B"),
    source="Hoffmann et al., arXiv:2203.15556, Eq. 2: L = E + A / N^alpha + B / D^beta")
LOSS_LAWS = {law.name: law for law in (KAPLAN, CHINCHILLA)}


@dataclasses.dataclass(frozen=True)
class _Search:
  """What the search works on, with u and v the centred log sizes.

  Attributes:
    evaluate: (theta_P, u_K, v_K) -> log L (K,), its derivatives (K, P).
    starts: (mean log L, least log L) -> theta_SP. bounds: of each of theta.
    report: (theta_P, centre of u, centre of v) -> the law's parameters (P,).
  """
  evaluate: Callable
  starts: Callable
  bounds: tuple
  report: Callable


def _chinchilla_evaluate(theta_P, u_K, v_K):
  e, a, b, alpha, beta = theta_P
  terms = np.stack([np.full_like(u_K, e), a - alpha * u_K, b - beta * v_K])
  logs_K = np.logaddexp.reduce(terms, 0)
  w0, w1, w2 = np.exp(terms - logs_K)
  return logs_K, np.stack([w0, w1, w2, -w1 * u_K, -w2 * v_K], 1)


def _chinchilla_starts(mean, least):
  rows = []
  for alpha, beta, share, part in itertools.product(
      (0.1, 0.3, 0.6, 1.0), (0.1, 0.3, 0.6, 1.0), (0.1, 0.5, 0.9), (0.2, 0.5, 0.8)):
    excess = np.exp(mean) - share * np.exp(least)
    rows.append([np.log(share) + least, np.log(part * excess), np.log((1 - part) * excess), alpha,
                 beta])
  return np.array(rows)


def _chinchilla_report(theta_P, u, v):
  e, a, b, alpha, beta = theta_P
  return np.array([np.exp(e), np.exp(a + alpha * u), np.exp(b + beta * v), alpha, beta])


def _kaplan_evaluate(theta_P, u_K, v_K):
  p, q, alpha_n, alpha_d = theta_P
  terms = np.stack([alpha_n / alpha_d * (p - u_K), q - v_K])
  sums_K = np.logaddexp.reduce(terms, 0)
  w1, w2 = np.exp(terms - sums_K)
  return alpha_d * sums_K, np.stack(
      [w1 * alpha_n, w2 * alpha_d, w1 * (p - u_K), sums_K - w1 * terms[0]], 1)


def _kaplan_starts(mean, least):
  del least  # this form has no floor
  return np.array([[(mean + np.log(part)) / alpha_n, (mean + np.log(1 - part)) / alpha_d, alpha_n,
                    alpha_d]
                   for alpha_n, alpha_d, part in itertools.product(
                       (0.03, 0.08, 0.2, 0.5), (0.03, 0.08, 0.2, 0.5), (0.2, 0.5, 0.8))])


def _kaplan_report(theta_P, u, v):
  p, q, alpha_n, alpha_d = theta_P
  return np.array([np.exp(p + u), np.exp(q + v), alpha_n, alpha_d])


_FREE, _EXPONENT = (None, None), (1e-3, 10.0)
_SEARCHES = {
    "chinchilla": _Search(_chinchilla_evaluate, _chinchilla_starts,
                          (_FREE,) * 3 + (_EXPONENT,) * 2, _chinchilla_report),
    "kaplan": _Search(_kaplan_evaluate, _kaplan_starts, (_FREE,) * 2 + (_EXPONENT,) * 2,
                      _kaplan_report),
}


@dataclasses.dataclass(frozen=True)
class Surface:
  """A fitted L(N, D).

  Attributes:
    law: the law; params: name -> estimate; intervals: name -> (low, high) at `level`.
    rms: root mean squared residual of log L.
  """
  law: laws.Law
  params: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  level: float
  rms: float

  def predict(self, n_Q, d_Q):
    """L (Q,) at sizes n_Q and d_Q, in the units of the fit."""
    return self.law.predict(list(self.params.values()), n_Q, d_Q)


def _loss(theta_P, search, u_K, v_K, logs_K, weights_K):
  """Weighted Huber loss in units of delta, and its gradient (P,)."""
  found_K, jacobian_KP = search.evaluate(theta_P, u_K, v_K)
  residual_K = (found_K - logs_K) / _DELTA
  size_K = np.abs(residual_K)
  loss_K = np.where(size_K <= 1.0, 0.5 * residual_K ** 2, size_K - 0.5)
  slope_K = np.clip(residual_K, -1.0, 1.0) * weights_K
  return weights_K @ loss_K, slope_K @ jacobian_KP / _DELTA


def _minimise(start_P, search, *points, steps=2000):
  from scipy import optimize
  return optimize.minimize(_loss, start_P, (search, *points), method="L-BFGS-B", jac=True,
                           bounds=search.bounds,
                           options={"maxiter": steps, "maxfun": 4 * steps, "ftol": 1e-14,
                                    "gtol": 1e-9, "maxcor": 20})


def _checked(law, n_K, d_K, loss_K, level):
  n_K, d_K, loss_K = (np.asarray(values, float) for values in (n_K, d_K, loss_K))
  if not n_K.ndim == 1 or not n_K.shape == d_K.shape == loss_K.shape:
    raise ValueError("n, d, loss: expected one dimension and equal lengths, got shapes "
                     f"{n_K.shape}, {d_K.shape} and {loss_K.shape}")
  fewest = len(law.parameters) + 1
  if len(n_K) < fewest:
    raise ValueError(f"n, d, loss: expected at least {fewest} points for the "
                     f"{len(law.parameters)} parameters of {law.name}, got {len(n_K)}")
  for name, values_K in (("n", n_K), ("d", d_K), ("loss", loss_K)):
    bad_K = ~(np.isfinite(values_K) & (values_K > 0))
    if bad_K.any():
      raise ValueError(f"{name}: expected finite values above 0, got {values_K[bad_K][0]} at "
                       f"index {bad_K.argmax()}; leave such points out")
  for name, values_K in (("n", n_K), ("d", d_K)):
    if len(np.unique(values_K)) < 3:
      raise ValueError(f"{name}: expected at least 3 different sizes, to tell an exponent from a "
                       f"floor, got {np.unique(values_K)}; fit one size with scale.fit instead")
  if not 0 < level < 1:
    raise ValueError(f"level: expected between 0 and 1, such as 0.9, got {level}")
  return n_K, d_K, loss_K


def fit_surface(law, n_K, d_K, loss_K, *, level=0.9, resamples=200, seed=0):
  """Fits L(N, D) to points.

  Args:
    law: one of `LOSS_LAWS`, or its name: "kaplan", "chinchilla".
    n_K, d_K: the two sizes, of any units. loss_K: the loss, above 0.
    level: of the parameters' intervals. resamples: how many those are read from; 0 is none, and
    intervals of NaN. seed: of the resampling.

  Returns:
    A `Surface`.

  Raises:
    ValueError: an unknown law, too few points or different sizes, shapes that differ, values
      that aren't finite and above 0.
  """
  law = LOSS_LAWS.get(law, law) if isinstance(law, str) else law
  if law not in LOSS_LAWS.values():
    raise ValueError(f"law: expected one of {', '.join(LOSS_LAWS)}, got {law!r}")
  n_K, d_K, loss_K = _checked(law, n_K, d_K, loss_K, level)
  search, u_K, v_K, logs_K = _SEARCHES[law.name], np.log(n_K), np.log(d_K), np.log(loss_K)
  u, v = u_K.mean(), v_K.mean()
  points = (u_K - u, v_K - v, logs_K)
  ones_K = np.ones(len(logs_K))
  starts_SP = search.starts(logs_K.mean(), logs_K.min())
  losses_S = [_loss(start_P, search, *points, ones_K)[0] for start_P in starts_SP]
  found = [_minimise(start_P, search, *points, ones_K)
           for start_P in starts_SP[np.argsort(losses_S)[:_SEARCHED]]]
  best = min(found, key=lambda result: result.fun)
  params_P = search.report(best.x, u, v)
  rng = np.random.default_rng(seed)
  draws_RP = np.full((1, len(params_P)), np.nan)
  if resamples:
    counts_RK = rng.multinomial(len(logs_K), ones_K / len(logs_K), size=resamples).astype(float)
    draws_RP = np.array([
        search.report(_minimise(best.x, search, *points, count_K, steps=_RESAMPLE_STEPS).x, u, v)
        for count_K in counts_RK])
  ends = np.quantile(draws_RP, [0.5 - 0.5 * level, 0.5 + 0.5 * level], axis=0)
  residual_K = search.evaluate(best.x, *points[:2])[0] - logs_K
  intervals = {name: (float(low), float(high))
               for name, low, high in zip(law.parameters, *ends, strict=True)}
  return Surface(law, law.named(params_P), intervals, level,
                 float(np.sqrt(np.mean(residual_K ** 2))))
