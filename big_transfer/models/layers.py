"""What the model families share: the contract's taps, LayerNorm, the MLP, patches, the head.

Shapes: B batch, H W image height and width, C image channels, P patch size, L positions,
D model width, F hidden width of the MLP, K classes.
"""
from collections.abc import Callable, Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

Initialiser = Callable[..., jax.Array]
UNPOOLED = "unpooled_"


def check_images(images_BHWC: jax.Array) -> None:
  """Raises ValueError unless images are a batch of floats, (B, H, W, C)."""
  if images_BHWC.ndim != 4:
    raise ValueError(f"images: expected a batch of shape (B, H, W, C), got {images_BHWC.shape}; "
                     f"add the missing axis, as in images[None]")
  if not jnp.issubdtype(images_BHWC.dtype, jnp.floating):
    raise ValueError(f"images: expected floats in [-1, 1], got {images_BHWC.dtype}; "
                     f"convert them, as in images / 127.5 - 1")


def check_taps(taps: Mapping[str, jax.Array] | None, blocks: int) -> None:
  """Raises ValueError if a tap names no block of a model with `blocks` blocks."""
  known = ["stem", *map(block_name, range(blocks))]
  unknown = sorted(set(taps or ()) - set(known))
  if unknown:
    raise ValueError(f"taps: no such place {', '.join(unknown)}; "
                     f"expected any of {known[0]}, {known[1]} … {known[-1]}")


def block_name(i: int) -> str:
  """The key of block `i` in a model's outputs: block_00, block_01, …"""
  return f"block_{i:02d}"


def tap(module: nn.Module, name: str, x: jax.Array,
        taps: Mapping[str, jax.Array] | None) -> jax.Array:
  """Adds the tap of this name to an unpooled output, and shows the output to who asks for it.

  The gradient of a loss at `taps[name] = 0` is its gradient with respect to the block's output.
  Unpooled outputs are sown into the collection "intermediates" as unpooled_block_00 and so on,
  which costs nothing unless `apply(..., mutable=["intermediates"])` asks for it.

  Raises:
    ValueError: the tap has not the output's shape.
  """
  if taps and name in taps:
    x = x + checked_tap(name, x, taps)
  if not module.is_initializing():
    module.sow("intermediates", UNPOOLED + name, x)
  return x


def checked_tap(name: str, x: jax.Array, taps: Mapping[str, jax.Array]) -> jax.Array:
  """The tap of this name in the dtype of the output x, zero where there is none.

  Raises:
    ValueError: the tap has not the output's shape.
  """
  if name not in taps:
    return jnp.zeros_like(x)
  if taps[name].shape != x.shape:
    raise ValueError(f"taps[{name!r}]: expected shape {x.shape}, that of the block's output, got "
                     f"{taps[name].shape}; shapes.tap_shapes(model, images.shape) lists them all")
  return taps[name].astype(x.dtype)


class Dense(nn.Module):
  """A dense layer over the last axis, (..., D) -> (..., F), computed on a matrix (rows, D).

  The same maths and parameters as `nn.Dense`, whose kernel gradient contracts two axes: on a CPU
  that made a training step of a small ViT half as fast.
  """
  features: int
  dtype: str = "float32"
  kernel_init: Initialiser = nn.initializers.lecun_normal()
  bias_init: Initialiser = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D = x.shape[-1]
    kernel_DF = self.param("kernel", self.kernel_init, (D, self.features))
    bias_F = self.param("bias", self.bias_init, (self.features,))
    return dense(x, kernel_DF, bias_F, self.dtype)


def dense(x: jax.Array, kernel_DF: jax.Array, bias_F: jax.Array, dtype: str) -> jax.Array:
  """x (..., D) times the kernel plus the bias, in `dtype`; see `Dense`."""
  D, F = kernel_DF.shape
  y = x.astype(dtype).reshape(-1, D) @ kernel_DF.astype(dtype) + bias_F.astype(dtype)[None]
  return y.reshape(*x.shape[:-1], F)


class Mlp(nn.Module):
  """Two dense layers with a GELU between, over the last axis: (..., D) -> (..., D)."""
  hidden: int
  dropout: float = 0.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BLD: jax.Array, *, train: bool) -> jax.Array:
    init = {"kernel_init": nn.initializers.xavier_uniform()}
    h_BLF = nn.gelu(Dense(self.hidden, self.dtype, name="Dense_0", **init)(x_BLD))
    h_BLF = nn.Dropout(self.dropout, deterministic=not train)(h_BLF)
    return Dense(x_BLD.shape[-1], self.dtype, name="Dense_1", **init)(h_BLF)


class Patches(nn.Module):
  """Embeds non-overlapping patches: (B, H, W, C) -> (B, L, D), row by row.

  The parameters are a convolution's, kernel (P, P, C, D) and bias (D,), since published
  checkpoints hold that; the computation is a matrix product over the flattened patches.
  """
  width: int
  patch: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, images_BHWC: jax.Array) -> jax.Array:
    B, H, W, C = images_BHWC.shape
    p = self.patch
    if H % p or W % p:
      raise ValueError(f"images: height and width must divide into patches of {p} pixels, got "
                       f"{H} × {W}; resize the images or choose another patch")
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, C, self.width))
    bias_D = self.param("bias", nn.initializers.zeros, (self.width,))
    x = images_BHWC.reshape(B, H // p, p, W // p, p, C)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // p) * (W // p), p * p * C)
    return dense(x, kernel.reshape(-1, self.width), bias_D, self.dtype)


class Head(nn.Module):
  """The linear classifier in float32, whatever the rest computes in: (B, D) -> (B, K).

  Zero kernel; the bias starts at `bias`: a negative one (-10 in Zhai et al., 2106.04560,
  section 3.1) makes sigmoid cross-entropy over many classes start at a small loss.
  """
  classes: int
  bias: float = 0.0

  @nn.compact
  def __call__(self, x_BD: jax.Array) -> jax.Array:
    D = x_BD.shape[-1]
    kernel_DK = self.param("kernel", nn.initializers.zeros, (D, self.classes))
    bias_K = self.param("bias", nn.initializers.constant(self.bias), (self.classes,))
    return dense(x_BD, kernel_DK, bias_K, "float32")
