"""The curves that the estimator averages: log y and its derivatives, weak priors, starts.

Everything is relative to the last training point: u = log(x / x_end) <= 0 in training, and y in
units of y there, so that neither depends on the units of x or of y. Parameters are unbounded (the
logarithm of what is positive, the logit of what is a share), which needs no bounds in the search
and makes a Gaussian prior and Laplace's approximation reasonable.

Five forms, each level or falling everywhere:
  M2: y = beta x^-c + e_inf; M3: y = beta (1 / x + gamma)^c; and
  M4: (y - e_inf) / (e_0 - y)^alpha = beta x^-c, all of Alabdulmohsin et al., arXiv:2209.06640;
  BNSL: one break between two powers (Caballero et al., arXiv:2210.14891, Eq. 1);
  SIG, a sigmoid power law, y = e_inf + (e_0 - e_inf) (1 + (x / d)^(1 / f))^(-c f), which leaves
    the level e_0 by a bend at d and is a power law towards e_inf beyond it: BNSL with c_0 = 0.

The priors say that a share of the least loss is irreducible, about half (0.17 to 0.83 within two
standard deviations as shipped), and that exponents lie about 0.4 (0.08 to 2); the rest is wide. How they
were chosen is written in `scale`.

Shape legend: B fits abreast, P parameters, N points, S starts.
"""
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy import special

from big_transfer.study import curves


@dataclasses.dataclass(frozen=True)
class Form:
  """One family of curves, in the units above.

  Attributes:
    name: what `Curve.params` calls it.
    evaluate: (theta_BP, u_N, low, high) -> log y (B, N), its derivatives (B, N, P). `low` and
      `high` are the least and the greatest y of the training points.
    mean_P, sd_P: the Gaussian prior of theta.
    starts: (u_first, low, high) -> theta_SP; each start passes through the last point.
    report: (theta_P, low, high, log x_end, log y_end) -> parameters by name in the user's units.
  """
  name: str
  evaluate: Callable
  mean_P: np.ndarray
  sd_P: np.ndarray
  starts: Callable
  report: Callable


def _columns(theta_BP):
  return [column[:, None] for column in theta_BP.T]


def _floor(a, low):
  """e_inf = low sigmoid(a), between nothing and the least y, and its derivative."""
  share = special.expit(a)
  return low * share, low * share * (1.0 - share)


def _m2(theta_BP, u_N, low, high):
  del high
  a, b, g = _columns(theta_BP)
  (e_inf, d_inf), c = _floor(a, low), np.exp(g)
  w = np.exp(b - c * u_N)
  y = e_inf + w
  return np.log(y), np.stack([d_inf + np.zeros_like(w), w, -w * c * u_N], -1) / y[..., None]


def _m3(theta_BP, u_N, low, high):
  del low, high  # no floor of its own: it levels off at beta gamma^c
  b, g, k = _columns(theta_BP)
  c, reach = np.exp(g), np.logaddexp(-u_N, k)
  jacobian = [np.ones_like(reach), c * reach, c * special.expit(k + u_N)]
  return b + c * reach, np.stack(jacobian, -1)


def _m4(theta_BP, u_N, low, high):
  a, b, k, g, h = _columns(theta_BP)
  (e_inf, d_inf), excess = _floor(a, low), high * np.exp(b)
  span, c, alpha = high + excess - e_inf, np.exp(g), np.exp(h)
  t = curves.solve_logit(alpha, k - c * u_N)
  s, rest = special.expit(t), special.expit(-t)
  y = e_inf + span * s
  # By the implicit function: the left side's slope in t is rest + alpha s.
  dy = span * s * rest / (rest + alpha * s)
  jacobian = np.stack([d_inf * rest, excess * s, dy, -dy * c * u_N,
                       -dy * alpha * np.logaddexp(0.0, t)], -1)
  return np.log(y), jacobian / y[..., None]


def _sig(theta_BP, u_N, low, high):
  a, b, d, g, h = _columns(theta_BP)
  (e_inf, d_inf), excess = _floor(a, low), high * np.exp(b)
  span, c, f = high + excess - e_inf, np.exp(g), np.exp(h)
  v = (u_N - d) / f
  bend, slope = np.logaddexp(0.0, v), special.expit(v)
  s = np.exp(-c * f * bend)
  y, w = e_inf + span * s, span * s
  jacobian = np.stack([d_inf * (1.0 - s), excess * s, w * c * slope, -w * c * f * bend,
                       -w * c * f * (bend - slope * v)], -1)
  return np.log(y), jacobian / y[..., None]


def _bnsl(theta_BP, u_N, low, high):
  del high  # two powers have no upper level
  a, b, d, g, h, q = _columns(theta_BP)
  (e_inf, d_inf), c_1, f, c_0 = _floor(a, low), np.exp(g), np.exp(h), np.exp(q)
  v = (u_N - d) / f
  bend, slope = np.logaddexp(0.0, v), special.expit(v)
  w = np.exp(b - c_0 * (u_N - d) - c_1 * f * bend)
  y = e_inf + w
  jacobian = np.stack([d_inf + np.zeros_like(w), w, w * (c_0 + c_1 * slope), -w * c_1 * f * bend,
                       -w * c_1 * f * (bend - slope * v), -w * c_0 * (u_N - d)], -1)
  return np.log(y), jacobian / y[..., None]


def _m2_starts(u_first, low, high):
  del u_first, high
  return np.array([[a, np.log1p(-low * special.expit(a)), np.log(c)]
                   for a, c in [(-1.0, 0.2), (0.5, 0.5), (-2.0, 0.1)]])


def _m3_starts(u_first, low, high):
  del u_first, low, high
  return np.array([[-c * np.logaddexp(0.0, k), np.log(c), k]
                   for c, k in [(0.2, -2.0), (0.4, 0.0), (0.1, -4.0)]])


def _m4_starts(u_first, low, high):
  del u_first
  rows = []
  for a, c, alpha in [(-1.0, 0.4, 1.0), (0.5, 0.8, 1.0), (-2.0, 0.3, 0.3), (-1.0, 0.5, 3.0)]:
    e_inf, e_0 = low * special.expit(a), 1.2 * high
    s = (1.0 - e_inf) / (e_0 - e_inf)
    rows.append([a, np.log(0.2), np.log(s) - alpha * np.log1p(-s), np.log(c), np.log(alpha)])
  return np.array(rows)


def _sig_starts(u_first, low, high):
  del u_first
  rows = []
  for a, c, f in [(-1.0, 0.4, 0.7), (0.5, 0.8, 0.7), (-2.0, 0.3, 1.5), (-1.0, 0.5, 0.3)]:
    e_inf, e_0 = low * special.expit(a), 1.1 * high
    bend = np.log((e_0 - e_inf) / (1.0 - e_inf)) / (c * f)
    rows.append([a, np.log(0.1), -f * np.log(np.expm1(min(bend, 50.0))), np.log(c), np.log(f)])
  return np.array(rows)


def _bnsl_starts(u_first, low, high):
  del high
  rows = []
  d = 0.7 * min(u_first, -0.5)
  for a, c, f, c_0 in [(-1.0, 0.4, 0.7, 0.05), (0.5, 0.8, 0.7, 0.05), (-2.0, 0.3, 1.5, 0.2),
                       (-1.0, 0.3, 0.3, 0.1)]:
    b = (np.log1p(-low * special.expit(a)) - c_0 * d + c * f * np.logaddexp(0.0, -d / f))
    rows.append([a, b, d, np.log(c), np.log(f), np.log(c_0)])
  return np.array(rows)


def _m2_report(theta_P, low, high, log_x, log_y):
  del high
  a, b, g = theta_P
  c = np.exp(g)
  return {"beta": np.exp(b + log_y + c * log_x), "c": c,
          "e_inf": np.exp(log_y) * low * special.expit(a)}


def _m3_report(theta_P, low, high, log_x, log_y):
  del low, high
  b, g, k = theta_P
  c = np.exp(g)
  return {"beta": np.exp(b + log_y + c * log_x), "c": c, "gamma": np.exp(k - log_x)}


def _m4_report(theta_P, low, high, log_x, log_y):
  a, b, k, g, h = theta_P
  c, alpha, y = np.exp(g), np.exp(h), np.exp(log_y)
  e_inf, e_0 = y * low * special.expit(a), y * high * (1.0 + np.exp(b))
  beta = np.exp(k + c * log_x + (1.0 - alpha) * np.log(e_0 - e_inf))
  return {"beta": beta, "c": c, "e_inf": e_inf, "e_0": e_0, "alpha": alpha}


def _sig_report(theta_P, low, high, log_x, log_y):
  a, b, d, g, h = theta_P
  y = np.exp(log_y)
  return {"e_inf": y * low * special.expit(a), "e_0": y * high * (1.0 + np.exp(b)),
          "d": np.exp(d + log_x), "c": np.exp(g), "f": np.exp(h)}


def _bnsl_report(theta_P, low, high, log_x, log_y):
  del high
  a, b, d, g, h, q = theta_P
  y, c_0 = np.exp(log_y), np.exp(q)
  return {"a": y * low * special.expit(a), "b": np.exp(b + log_y + c_0 * (d + log_x)), "c_0": c_0,
          "c_1": np.exp(g), "d_1": np.exp(d + log_x), "f_1": np.exp(h)}


# An exponent and a bend's sharpness, by their logarithms; by how much the first level is above
# the greatest y, e_0 = high (1 + e^b): 1 to 80 %.
_EXPONENT, _SHARPNESS, _EXCESS = (np.log(0.4), 0.8), (0.0, 1.0), (-1.5, 1.5)


@functools.lru_cache(maxsize=32)
def forms(floor):
  """The five forms; `floor` is the prior's (mean, sd) of the logit of e_inf over the least y."""
  parts = [
      ("M2", _m2, _m2_starts, _m2_report, [floor, (0.0, 3.0), _EXPONENT]),
      ("M3", _m3, _m3_starts, _m3_report, [(0.0, 3.0), _EXPONENT, (0.0, 3.0)]),
      ("M4", _m4, _m4_starts, _m4_report, [floor, _EXCESS, (0.0, 5.0), _EXPONENT, _SHARPNESS]),
      ("SIG", _sig, _sig_starts, _sig_report,
       [floor, _EXCESS, (-3.0, 4.0), _EXPONENT, _SHARPNESS]),
      ("BNSL", _bnsl, _bnsl_starts, _bnsl_report,
       [floor, (0.0, 3.0), (-3.0, 4.0), _EXPONENT, _SHARPNESS, (np.log(0.1), 1.5)])]
  return tuple(Form(name, evaluate, *np.array(prior).T, starts, report)
               for name, evaluate, starts, report, prior in parts)
