"""Self-attention over (B, L, D): Vaswani et al. 2017 (1706.03762), equation 1.

Shapes: B batch, L positions, D width, N heads, K width of a head.
"""
import jax
import jax.numpy as jnp

from big_transfer.models import layers

METHODS = ("auto", "matmul", "xla", "cudnn")


def self_attention(x_BLD, query, key, value, out, *, method: str = "auto") -> jax.Array:
  """softmax(Q Kᵀ / √K) V, projected back to width D.

  Args:
    x_BLD: the normalised input; it and the parameters are in the computation's dtype.
    query, key, value: pairs of kernel (D, N, K) and bias (N, K).
    out: the pair of kernel (N, K, D) and bias (D,).
    method: "matmul", batched products over B·N heads, twice as fast on CPU, forward, as one
      contraction over four axes; "xla" and "cudnn", `jax.nn.dot_product_attention` with that
      implementation; "auto", "matmul" on CPU and "xla" elsewhere.

  Raises:
    ValueError: an unknown method, or "cudnn" where there is no GPU, in float32, or with heads that
      it doesn't take.
  """
  if method not in METHODS:
    raise ValueError(f"attention: expected one of {', '.join(METHODS)}, got {method!r}")
  if method == "cudnn" and jax.default_backend() != "gpu":
    raise ValueError(f"attention: \"cudnn\" needs a GPU, this is {jax.default_backend()}; "
                     f"take \"auto\"")
  if method == "auto":
    method = "matmul" if jax.default_backend() == "cpu" else "xla"
  B, L, D = x_BLD.shape
  N, K = query[1].shape
  dtype = x_BLD.dtype
  if method == "cudnn" and (dtype == jnp.float32 or K > 128 or K % 8):
    raise ValueError(f"attention: \"cudnn\" takes bfloat16 and heads whose width is a multiple of "
                     f"8, at most 128, got {dtype} and {K}; set model.dtype, or take \"auto\"")
  q, k, v = (layers.dense(x_BLD, w.reshape(D, D), b.reshape(D), dtype).reshape(B, L, N, K)
             for w, b in (query, key, value))
  if method == "matmul":
    y_BLNK = _matmul_attention(q, k, v)
  else:
    y_BLNK = jax.nn.dot_product_attention(q, k, v, implementation=method)
  return layers.dense(y_BLNK.reshape(B, L, D), out[0].reshape(D, D), out[1], dtype)


def _matmul_attention(q_BLNK: jax.Array, k_BLNK: jax.Array, v_BLNK: jax.Array) -> jax.Array:
  B, L, N, K = q_BLNK.shape
  q, k, v = (h.transpose(0, 2, 1, 3).reshape(B * N, L, K) for h in (q_BLNK, k_BLNK, v_BLNK))
  z = (q * K ** -0.5 @ k.transpose(0, 2, 1)).astype(jnp.float32)
  e = jnp.exp(z - jax.lax.stop_gradient(z.max(axis=-1, keepdims=True)))
  # Normalising after the product with v, not before, touches K instead of L columns and spares
  # the reverse pass a sum over (L, L).
  y = (e.astype(v.dtype) @ v).astype(jnp.float32) / e.sum(axis=-1, keepdims=True)
  return y.astype(v.dtype).reshape(B, N, L, K).transpose(0, 2, 1, 3)
