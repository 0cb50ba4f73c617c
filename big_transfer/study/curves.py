"""The forms of learning and scaling curves: pure functions of parameters and size, each cited.

y is a loss or an error rate (y > 0, no upper limit), x a size of any unit (examples seen, size of
the data, parameters, operations), x > 0. Every form falls, or stays level, as x grows. They are
evaluated through logarithms, so that no power overflows whatever the unit of x. Shape legend: P
parameters, N points; "..." is any number of leading axes, the same in parameters and result.
"""
import numpy as np
from scipy import special

from big_transfer.study import laws

# Newton's method on M4's equation halves its error or better at every step; 60 are never needed.
_NEWTON_STEPS = 60
# M4 at alpha = 0 is a power law cut off at e0: the limit, which this stands for, has no kink.
_SMALLEST_ALPHA = 1e-6


def _split(params_P, x_N):
  """Parameters as arrays (..., 1) and log x as (..., N)."""
  with np.errstate(divide="ignore"):
    logs_N = np.log(np.asarray(x_N, float))
  return np.moveaxis(np.asarray(params_P, float), -1, 0)[..., None], logs_N


def _log(value):
  """The logarithm, -inf at 0, where a parameter may lie."""
  with np.errstate(divide="ignore"):
    return np.log(value)


def _m1(params_P, x_N):
  (beta, c), u_N = _split(params_P, x_N)
  return np.exp(_log(beta) - c * u_N)


def _m2(params_P, x_N):
  (beta, c, e_inf), u_N = _split(params_P, x_N)
  return np.exp(_log(beta) - c * u_N) + e_inf


def _m3(params_P, x_N):
  (beta, c, gamma), u_N = _split(params_P, x_N)
  return np.exp(_log(beta) + c * np.logaddexp(-u_N, _log(gamma)))


def solve_logit(alpha, rhs, steps=_NEWTON_STEPS):
  """t with log s - alpha log(1 - s) = rhs for s = sigmoid(t): M4 in the units of its own range.

  The left side rises in t with a slope between 1 and alpha and is convex or concave throughout,
  so that Newton's method converges from anywhere; it starts on the nearer asymptote.

  Args:
    alpha: (...) non-negative; rhs: (...), broadcast against it. `steps`: the most to take.

  Returns:
    (...) t, in nats.
  """
  alpha, rhs = np.broadcast_arrays(np.maximum(alpha, _SMALLEST_ALPHA), np.asarray(rhs, float))
  t = np.where(rhs < 0, rhs, rhs / alpha)
  for _ in range(steps):
    left = alpha * np.logaddexp(0, t) - np.logaddexp(0, -t)
    step = (left - rhs) / (special.expit(-t) + alpha * special.expit(t))
    t = t - step
    if np.all(np.abs(step) <= 1e-12 * (1 + np.abs(t))):
      break
  return t


def _m4(params_P, x_N):
  (beta, c, e_inf, e_0, alpha), u_N = _split(params_P, x_N)
  span = e_0 - e_inf
  rhs = _log(beta) - c * u_N + (alpha - 1) * np.log(span)
  return e_inf + span * special.expit(solve_logit(alpha, rhs))


def _bnsl(params_P, x_N):
  (a, b, c_0, c_1, d_1, f_1), u_N = _split(params_P, x_N)
  bend = np.logaddexp(0, (u_N - _log(d_1)) / f_1)
  return a + np.exp(_log(b) - c_0 * u_N - c_1 * f_1 * bend)


_POSITIVE = (0.0, np.inf)
_NEURAL = "Alabdulmohsin, Neyshabur, Zhai, arXiv:2209.06640"

M1 = laws.Law(
    name="M1",
    parameters={"beta": _POSITIVE, "c": _POSITIVE},
    predict=_m1,
    linear=("beta",),
    source=f"{_NEURAL}, M1: y = beta x^-c")

M2 = laws.Law(
    name="M2",
    parameters={"beta": _POSITIVE, "c": _POSITIVE, "e_inf": _POSITIVE},
    predict=_m2,
    linear=("beta", "e_inf"),
    source=f"{_NEURAL}, M2: y = beta x^-c + e_inf")

M3 = laws.Law(
    name="M3",
    parameters={"beta": _POSITIVE, "c": _POSITIVE, "gamma": _POSITIVE},
    predict=_m3,
    linear=("beta",),
    source=f"{_NEURAL}, M3: y = beta (1 / x + gamma)^c, which levels off at beta gamma^c")

M4 = laws.Law(
    name="M4",
    parameters={"beta": _POSITIVE, "c": _POSITIVE, "e_inf": _POSITIVE, "e_0": _POSITIVE,
                "alpha": _POSITIVE},
    predict=_m4,
    linear=(),
    source=f"{_NEURAL}, M4: (y - e_inf) / (e_0 - y)^alpha = beta x^-c, e_inf < y < e_0")

BNSL = laws.Law(
    name="BNSL",
    parameters={"a": _POSITIVE, "b": _POSITIVE, "c_0": _POSITIVE, "c_1": (-np.inf, np.inf),
                "d_1": _POSITIVE, "f_1": (1e-6, np.inf)},
    predict=_bnsl,
    linear=("a", "b"),
    source="Caballero et al., arXiv:2210.14891, Eq. 1 with one break: "
           "y = a + b x^-c_0 (1 + (x / d_1)^(1 / f_1))^(-c_1 f_1)")
