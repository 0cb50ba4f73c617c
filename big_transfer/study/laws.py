"""The laws that are fitted: pure functions of parameters and x, each citing its equation.

Errors are fractions, e = 1 - accuracy. Shape legend: P parameters, N points; "..." is any number
of leading axes (resamples, tasks), the same in parameters and result.
"""
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Law:
  """A family of curves y = predict(params, x).

  Attributes:
    name: what tables and figures call it.
    parameters: name -> (lowest, highest) value a fit may take, in the order of `params`.
    predict: (params (..., P), x (N,) or (..., N)) -> y (..., N).
    linear: the parameters in which y is linear once the others are fixed. A fit solves these
      exactly and searches over the others alone.
    source: paper and equation.
  """
  name: str
  parameters: Mapping[str, tuple[float, float]]
  predict: Callable
  linear: tuple[str, ...]
  source: str

  def named(self, params_P):
    """One vector of parameters (P,) as a dict by name, in plain floats."""
    return {name: float(value) for name, value in zip(self.parameters, params_P, strict=True)}


def _saturating(params_P, x_N):
  k, alpha, e_ir = np.moveaxis(np.asarray(params_P, float), -1, 0)[..., None]
  return k * np.asarray(x_N, float) ** alpha + e_ir


def _log_linear(params_P, x_N):
  a, b = np.moveaxis(np.asarray(params_P, float), -1, 0)[..., None]
  return a * np.asarray(x_N, float) ** b


# Exponents above 20 are met where a task saturates early; below 0.1 the power is a constant plus
# a logarithm on any range that runs cover, and k and e_IR stop being two parameters.
_EXPONENT = (0.1, 64.0)

SATURATING = Law(
    name="saturating",
    parameters={"k": (0.0, np.inf), "alpha": _EXPONENT, "e_IR": (0.0, 1.0 - 1e-9)},
    predict=_saturating,
    linear=("k", "e_IR"),
    source="Abnar et al., arXiv:2110.02095, Eq. 1: e_DS = k e_US^alpha + e_IR")

LOG_LINEAR = Law(
    name="log-linear",
    parameters={"a": (0.0, np.inf), "b": _EXPONENT},
    predict=_log_linear,
    linear=("a",),
    source="Abnar et al., arXiv:2110.02095, section 2.1, the model without saturation: "
           "e_DS = a e_US^b")
