"""Linear probes in closed form: ridge regression to ±1 targets, for many draws at once.

The protocol of the few-shot evaluations of Dosovitskiy et al. 2021 and Abnar et al. 2021
(sec. 2): features are whitened one by one with the shots' own mean and standard deviation
(+ 1e-5), a constant feature 100 is appended, targets are +1 for the class and −1 for the
others, and `W = (XᵀX + l2 I)⁻¹ XᵀY`; a prediction is the arg max of the scores.

Whitened features are centred, so the constant is orthogonal to them and its row of W separates:
`b = 100 ΣY / (100² N + l2)`. Solved so, its 10⁴ N never enters the Gram matrix, which would
cost three digits of float32. The Gram matrix is the smaller of XᵀX (D × D) and XXᵀ (N × N); one
eigendecomposition serves every strength, and one step of refinement restores what its rounding
took.

Shapes: K layers, P examples in the pool, S draws (seeds), N shots in all, D features, C classes,
M test examples, L strengths.
"""
import functools

import jax
import jax.numpy as jnp

CONSTANT = 100.0


def _whitening(x_ND):
  """Mean and scale of the shots, `(D,)` each."""
  mean = x_ND.mean(axis=0)
  # A second pass takes out the rounding of the first: it is what 1 / 1e-5 would blow up in a
  # feature that is constant over the shots.
  mean = mean + (x_ND - mean[None]).mean(axis=0)
  std = jnp.sqrt(jnp.square(x_ND - mean[None]).mean(axis=0))
  return mean, std + 1e-5


def fit(x_ND, y_N, l2_L, classes):
  """Fits one draw at every strength.

  Args:
    x_ND: features of the shots, float32.
    y_N: their classes, int.
    l2_L: strengths, > 0.
    classes: C.

  Returns:
    weights `(L, D, C)` on whitened features and biases `(L, C)`.
  """
  mean_D, scale_D = _whitening(x_ND)
  x_ND = (x_ND - mean_D[None]) / scale_D[None]
  n, d = x_ND.shape
  y_NC = 2 * jax.nn.one_hot(y_N, classes, dtype=x_ND.dtype) - 1
  b_LC = CONSTANT**2 * y_NC.sum(axis=0)[None] / (CONSTANT**2 * n + l2_L)[:, None]
  y_NC = y_NC - y_NC.mean(axis=0, keepdims=True)
  primal = d <= n
  gram, target = (x_ND.T @ x_ND, x_ND.T @ y_NC) if primal else (x_ND @ x_ND.T, y_NC)
  e, q = jnp.linalg.eigh(gram)
  e = jnp.maximum(e, 0)

  def solve(l2):
    def inverse(t):
      return q @ ((q.T @ t) / (e + l2)[:, None])

    def forward(a):  # (XᵀX + l2) a through X itself, which the rounding of `gram` doesn't touch
      return (x_ND.T @ (x_ND @ a) if primal else x_ND @ (x_ND.T @ a)) + l2 * a

    a = inverse(target)
    a = a + inverse(target - forward(a))
    return a if primal else x_ND.T @ a

  return jax.lax.map(solve, l2_L), b_LC


def scores(x_ND, x_MD, weights_DC, bias_C):
  """Scores `(M, C)` of test features, whitened by the statistics of the shots `x_ND`."""
  mean_D, scale_D = _whitening(x_ND)
  return ((x_MD - mean_D[None]) / scale_D[None]) @ weights_DC + bias_C[None]


@functools.partial(jax.jit, static_argnames="classes")
def correct(x_KPD, y_P, index_SN, x_KMD, y_M, l2_L, *, classes):
  """Fits every draw of every layer at every strength and counts right predictions on the test set.

  Args:
    x_KPD: features at each layer of the pool that all draws are of, float32.
    y_P: the pool's classes, int.
    index_SN: each draw's places in the pool.
    x_KMD: features at each layer of the test set, float32.
    y_M: its classes, int; -1 is counted as wrong (padding).
    l2_L: strengths, > 0.
    classes: C.

  Returns:
    `(K, S, L)` int32.
  """

  def layer(inputs):
    x_PD, x_MD = inputs

    def draw(index_N):
      x_ND, y_N = x_PD[index_N], y_P[index_N]
      weights_LDC, b_LC = fit(x_ND, y_N, l2_L, classes)

      def count(probe):
        return (scores(x_ND, x_MD, *probe).argmax(axis=-1) == y_M).sum()

      return jax.lax.map(count, (weights_LDC, b_LC))

    return jax.lax.map(draw, index_SN)

  with jax.default_matmul_precision("highest"):
    return jax.lax.map(layer, (x_KPD, x_KMD))
