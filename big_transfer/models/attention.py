"""Self-attention over (B, L, D): Vaswani et al. 2017 (1706.03762), equation 1.

Shapes: B batch, L positions, D width, N heads, K width of a head.
"""
import jax
import jax.numpy as jnp

METHODS = ("auto", "matmul", "xla", "cudnn")


def self_attention(x_BLD, query, key, value, out, *, method: str = "auto") -> jax.Array:
  """softmax(Q Kᵀ / √K) V, projected back to width D.

  Args:
    x_BLD: the normalised input; it and the parameters are in the computation's dtype.
    query, key, value: pairs of kernel (D, N, K) and bias (N, K).
    out: the pair of kernel (N, K, D) and bias (D,).
    method: "matmul", batched products over B·N heads, several times faster on CPU than one
      contraction over four axes; "xla" and "cudnn", `jax.nn.dot_product_attention` with that
      implementation; "auto", "matmul" on CPU and "xla" elsewhere.

  Raises:
    ValueError: an unknown method.
  """
  if method not in METHODS:
    raise ValueError(f"attention: expected one of {', '.join(METHODS)}, got {method!r}")
  if method == "auto":
    method = "matmul" if jax.default_backend() == "cpu" else "xla"
  B, L, D = x_BLD.shape
  N, K = query[1].shape
  q, k, v = ((x_BLD @ w.reshape(D, D) + b.reshape(1, 1, D)).reshape(B, L, N, K)
             for w, b in (query, key, value))
  if method == "matmul":
    q, k, v = (h.transpose(0, 2, 1, 3).reshape(B * N, L, K) for h in (q, k, v))
    weights = jax.nn.softmax((q @ k.transpose(0, 2, 1) * K ** -0.5).astype(jnp.float32))
    y = weights.astype(v.dtype) @ v
    y_BLD = y.reshape(B, N, L, K).transpose(0, 2, 1, 3).reshape(B, L, D)
  else:
    y_BLD = jax.nn.dot_product_attention(q, k, v, implementation=method).reshape(B, L, D)
  return y_BLD @ out[0].reshape(D, D) + out[1][None, None]
