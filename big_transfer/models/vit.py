"""Vision Transformer: Dosovitskiy et al. 2020 (2010.11929), figure 1 and section 3.1.

Shapes: B batch, H W image height and width, C channels, P patch size, L positions (with the
class token, if there is one), D width, F hidden width of the MLP, N heads, K width of a head.
"""
from collections.abc import Callable, Mapping
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_transfer.models import attention as attention_lib
from big_transfer.models import blocks
from big_transfer.models import layers


class SelfAttention(nn.Module):
  """Multi-head self-attention, (B, L, D) -> (B, L, D), with big_vision's parameter names."""
  heads: int
  attention: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    D = x_BLD.shape[-1]
    if D % self.heads:
      raise ValueError(f"heads: width {D} does not divide into {self.heads} heads")
    NK = (self.heads, D // self.heads)
    q, k, v = (_Projection((D,), NK, name=n)() for n in ("query", "key", "value"))
    kernel_NKD, bias_D = _Projection(NK, (D,), name="out")()
    return attention_lib.self_attention(x_BLD.astype(self.dtype), q, k, v, (kernel_NKD, bias_D),
                                        method=self.attention)


class _Projection(nn.Module):
  """The parameters of a dense layer between factored axes: kernel (*ins, *outs), bias (*outs)."""
  ins: tuple[int, ...]
  outs: tuple[int, ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    flat = (_product(self.ins), _product(self.outs))
    shape = (*self.ins, *self.outs)
    # Xavier of the whole matrix, not of one head's slice of it.
    kernel = self.param("kernel", lambda key: nn.initializers.xavier_uniform()(key, flat).reshape(
        shape))
    return kernel, self.param("bias", nn.initializers.zeros, self.outs)


class EncoderBlock(nn.Module):
  """Pre-norm block: attention, then MLP, each added to the residual stream (B, L, D)."""
  heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BLD: jax.Array, train: bool) -> jax.Array:
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    y_BLD = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x_BLD)
    y_BLD = SelfAttention(self.heads, self.attention, self.dtype,
                          name="MultiHeadDotProductAttention_0")(y_BLD)
    x_BLD = x_BLD + dropout(y_BLD)
    y_BLD = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x_BLD)
    y_BLD = layers.Mlp(self.mlp_dim, self.dropout, self.dtype, name="MlpBlock_0")(
        y_BLD, train=train)
    return x_BLD + dropout(y_BLD)


class Encoder(nn.Module):
  """The blocks and the final norm; returns (B, L, D) and every block's output, pooled."""
  depth: int
  heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention: str = "auto"
  dtype: str = "float32"
  scan: bool = False
  remat: str = "none"

  @nn.compact
  def __call__(self, x_BLD: jax.Array, taps: Mapping[str, jax.Array] | None,
               pool: Callable[[jax.Array], jax.Array], *, train: bool,
               place: blocks.Place | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    x_BLD, outputs = blocks.run(
        self, EncoderBlock, (self.heads, self.mlp_dim, self.dropout, self.attention, self.dtype),
        [f"encoderblock_{i}" for i in range(self.depth)], x_BLD, taps=taps, pool=pool,
        train=train, scan=self.scan, remat=self.remat, place=place)
    return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x_BLD), outputs


class ViT(nn.Module):
  """Vision Transformer under the contract of `big_transfer.models`.

  Attributes:
    num_classes: outputs of the head.
    width, depth, heads, mlp_dim: D, number of blocks, N, F.
    patch: side of a square patch, pixels.
    pool: "tok", a class token with a position of its own, or "gap", the mean over positions.
    posemb: "learn", or "sincos2d" (fixed; class token 0), Beyer et al. 2022 (2205.01580).
    representation_size: width of a tanh layer before the head; "auto" is D, None no layer.
    dropout: rate on the embedding, the hidden layers and the blocks' branches.
    attention: see `attention.self_attention`.
    dtype: of the computation; parameters are float32.
    head_bias: where the head's bias starts.
    scan: whether the blocks run as one loop, see `blocks`.
    remat: what of a block is computed again in the reverse pass, see `blocks.rematerialised`.
  """
  num_classes: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  patch: int
  pool: str = "tok"
  posemb: str = "learn"
  representation_size: int | str | None = None
  dropout: float = 0.0
  attention: str = "auto"
  dtype: str = "float32"
  head_bias: float = 0.0
  scan: bool = False
  remat: str = "none"

  @nn.compact
  def __call__(self, images_BHWC: jax.Array, *, train: bool = False,
               taps: Mapping[str, jax.Array] | None = None, place: blocks.Place | None = None
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Images in [-1, 1] -> logits (B, num_classes) and the pooled outputs, all float32."""
    layers.check_images(images_BHWC)
    layers.check_taps(taps, self.depth)
    B, H, W, _ = images_BHWC.shape
    x_BLD = layers.Patches(self.width, self.patch, self.dtype, name="embedding")(images_BHWC)
    if self.pool == "tok":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
      x_BLD = jnp.concatenate([jnp.broadcast_to(cls, (B, 1, self.width)), x_BLD], axis=1)
    x_BLD = x_BLD + self._positions((H // self.patch, W // self.patch)).astype(self.dtype)
    x_BLD = nn.Dropout(self.dropout, deterministic=not train)(x_BLD)
    x_BLD = stem_BLD = layers.tap(self, "stem", x_BLD, taps)
    pool = functools.partial(_pool, self.pool)
    x_BLD, outputs = Encoder(
        self.depth, self.heads, self.mlp_dim, self.dropout, self.attention, self.dtype, self.scan,
        self.remat, name="Transformer")(x_BLD, taps, pool, train=train, place=place)
    out = {"stem": pool(stem_BLD), **outputs}
    x_BD = pool(x_BLD)
    if self.representation_size is not None:
      size = self.width if self.representation_size == "auto" else self.representation_size
      x_BD = jnp.tanh(layers.Dense(size, name="pre_logits")(x_BD))
    out["pre_logits"] = x_BD
    out["logits"] = layers.Head(self.num_classes, self.head_bias, name="head")(x_BD)
    return out["logits"], out

  def _positions(self, grid: tuple[int, int]) -> jax.Array:
    tokens = grid[0] * grid[1] + (self.pool == "tok")
    if self.posemb == "learn":
      return self.param("pos_embedding", nn.initializers.normal(self.width ** -0.5),
                        (1, tokens, self.width))
    fixed_1LD = sincos2d(*grid, self.width)
    return jnp.pad(fixed_1LD, ((0, 0), (tokens - fixed_1LD.shape[1], 0), (0, 0)))


def _pool(how: str, x_BLD: jax.Array) -> jax.Array:
  x_BD = x_BLD[:, 0] if how == "tok" else jnp.mean(x_BLD, axis=1, dtype=jnp.float32)
  return x_BD.astype(jnp.float32)


def sincos2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> jax.Array:
  """Fixed position embedding (1, rows · columns, width), as in MoCo v3 (2104.02057).

  Raises:
    ValueError: width is not a multiple of 4 (sine and cosine of x and of y).
  """
  if width % 4:
    raise ValueError(f"posemb=\"sincos2d\": width must be a multiple of 4, got {width}")
  y, x = jnp.mgrid[:rows, :columns]
  omega = temperature ** -jnp.linspace(0, 1, width // 4)
  y, x = (jnp.outer(axis.ravel(), omega) for axis in (y, x))
  return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


def _product(sizes: tuple[int, ...]) -> int:
  result = 1
  for size in sizes:
    result *= size
  return result
