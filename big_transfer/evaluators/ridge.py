"""Linear probes in closed form: ridge regression to ±1 targets, for many draws at once.

The protocol of the few-shot evaluations of Dosovitskiy et al. 2021 and Abnar et al. 2021
(sec. 2): features are whitened one by one with the shots' own mean and standard deviation
(+ 1e-5), a constant feature 100 is appended, targets are +1 for the class and −1 for the
others, and `W = (XᵀX + l2 I)⁻¹ XᵀY`; a prediction is the arg max of the scores.

Whitened features are centred, so the constant is orthogonal to them and its row of W separates:
`b = 100 ΣY / (100² N + l2)`. Solved so, its 10⁴ N never enters the Gram matrix, which would
cost three digits of float32. The Gram matrix is the smaller of XᵀX (D × D) and XXᵀ (N × N).

A Cholesky factor for each strength solves it: twenty cost what an eigendecomposition for all
would. Where a strength is small beside the rounding of the Gram matrix, the factor is that of a
larger one, and preconditions conjugate gradients which see X itself and the strength as it is.
What float32 can't hold they don't mend: with fewer shots than features that are nearly copies of
one another, scores are of noise at strengths below 1e-8 N D (0.004 for 500 shots of 768).

Shapes: K layers, P examples in the pool, S draws (seeds), N shots in all, D features, C classes,
M test examples, L strengths.
"""
import functools

import jax
import jax.numpy as jnp

CONSTANT = 100.0


def fit(x_ND, y_N, l2_L, classes, refine=True):
  """Fits one draw at every strength.

  Args:
    x_ND: features of the shots, float32; best from an origin amid them (see `centred`): what
      the features have in common is lost to the precision of the biases.
    y_N: their classes, int.
    l2_L: strengths, > 0.
    classes: C.
    refine: False spares compiling what no strength `needs_refinement` for.

  Returns:
    weights `(L, D, C)` and biases `(L, C)`: the scores of features x are `x @ weights + bias`,
    whitening included.
  """
  mean_D, scale_D = _whitening(x_ND)
  x_ND = (x_ND - mean_D[None]) / scale_D[None]
  n, d = x_ND.shape
  y_NC = 2 * jax.nn.one_hot(y_N, classes, dtype=x_ND.dtype) - 1
  sum_C = y_NC.sum(axis=0)
  y_NC = y_NC - (sum_C / n)[None]
  primal = d <= n
  gram, target = (x_ND.T @ x_ND, x_ND.T @ y_NC) if primal else (x_ND @ x_ND.T, y_NC)

  def solve(l2):
    def forward(a):  # (XᵀX + l2) a through X itself, which the rounding of `gram` doesn't touch
      return (x_ND.T @ (x_ND @ a) if primal else x_ND @ (x_ND.T @ a)) + l2 * a

    a = _solve(gram, target, l2, forward, _rounding(n, d), refine)
    weights_DC = (a if primal else x_ND.T @ a) / scale_D[:, None]
    constant_C = CONSTANT**2 * sum_C / (CONSTANT**2 * n + l2)
    return weights_DC, constant_C - mean_D @ weights_DC

  return jax.lax.map(solve, l2_L)


def centred(x_PD, x_MD):
  """Features of pool and test set from an origin amid the pool's.

  A shift changes no score, but rounding does where a feature's mean is large beside its spread.
  """
  origin_1D = x_PD.mean(axis=0, keepdims=True)
  return x_PD - origin_1D, x_MD - origin_1D


def needs_refinement(l2, shots, width):
  """Whether the factor alone may lose more than 1e-5 at strength `l2`: there rounding shows."""
  return l2 < 100 * _rounding(shots, width)


def is_small(examples, width, classes):
  """Whether compiling takes longer than solving, with so many test examples."""
  return examples * width * classes < 2e8


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
    `(K, S, L)` int32; -1 where scores are infinite or NaN.
  """
  _, M, D = x_KMD.shape
  # On CPU compiling takes half as long without LLVM's optimisations, which the matrix products
  # don't need.
  quick = jax.default_backend() == "cpu" and is_small(M, D, classes)
  refine = bool(needs_refinement(min(l2_L), index_SN.shape[1], D))
  return _jitted(quick)(x_KPD, y_P, index_SN, x_KMD, y_M, jnp.asarray(l2_L, x_KPD.dtype),
                        classes=classes, refine=refine)


@functools.cache
def _jitted(quick):
  options = {"xla_backend_optimization_level": 0} if quick else None
  return jax.jit(_correct, static_argnames=("classes", "refine"), compiler_options=options)


def _correct(x_KPD, y_P, index_SN, x_KMD, y_M, l2_L, *, classes, refine):

  def layer(inputs):
    x_PD, x_MD = centred(*inputs)

    def draw(index_N):
      def count(probe):
        weights_DC, bias_C = probe
        scores_MC = x_MD @ weights_DC + bias_C[None]
        right = (scores_MC.argmax(axis=-1) == y_M).sum()
        return jnp.where(jnp.isfinite(scores_MC).all(), right, -1)

      return jax.lax.map(count, fit(x_PD[index_N], y_P[index_N], l2_L, classes, refine))

    return jax.lax.map(draw, index_SN)

  with jax.default_matmul_precision("highest"):
    return jax.lax.map(layer, (x_KPD, x_KMD))


def _whitening(x_ND):
  """Mean and scale of the shots, `(D,)` each."""
  mean = x_ND.mean(axis=0)
  # A second pass takes out the rounding of the first: it is what 1 / 1e-5 would blow up in a
  # feature that is constant over the shots.
  mean = mean + (x_ND - mean[None]).mean(axis=0)
  std = jnp.sqrt(jnp.square(x_ND - mean[None]).mean(axis=0))
  return mean, std + 1e-5


def _rounding(shots, width):
  """What float32 loses of the Gram matrix: some 1e-7 of its trace, which is at most N D."""
  return 2.0 * float(jnp.finfo(jnp.float32).eps) * shots * width


def _solve(gram, target, l2, forward, rounding, refine):
  """Solves `forward(a) = target`, where `forward` is gram + l2 I computed without `gram`."""
  factor = jnp.linalg.cholesky(gram + jnp.maximum(l2, rounding) * jnp.eye(len(gram)))

  def solved(t):
    t = jax.scipy.linalg.solve_triangular(factor, t, lower=True)
    return jax.scipy.linalg.solve_triangular(factor, t, lower=True, trans="T")

  def refined(a):
    return jax.scipy.sparse.linalg.cg(forward, target, a, tol=1e-9, maxiter=24, M=solved)[0]

  a = solved(target)
  return jax.lax.cond(l2 < 100 * rounding, refined, lambda a: a, a) if refine else a
