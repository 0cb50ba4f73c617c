"""BiT ResNet-v2: Kolesnikov et al. 2019 (1912.11370), section 2.1 and appendix.

Pre-activation bottlenecks (He et al. 2016, 1603.05027) with group norm (1803.08494) and weight
standardisation (1903.10520).

Shapes: B batch, H W height and width, C channels, G groups.
"""
from collections.abc import Mapping, Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from big_transfer.models import blocks
from big_transfer.models import layers

CONVOLUTIONS = ("auto", "matmul", "conv")


def standardise(kernel_HWIO: jax.Array, eps: float = 1e-10) -> jax.Array:
  """A kernel with zero mean and unit variance over all inputs of each output channel."""
  mean = jnp.mean(kernel_HWIO, axis=(0, 1, 2), keepdims=True)
  var = jnp.var(kernel_HWIO, axis=(0, 1, 2), keepdims=True)
  return (kernel_HWIO - mean) * lax.rsqrt(var + eps)


def convolve(x_BHWC: jax.Array, w_HWIO: jax.Array, stride: int, method: str) -> jax.Array:
  """Convolution with a square kernel of side k, padded by (k - 1) // 2 before and k // 2 after.

  Args:
    x_BHWC: the input, in the computation's dtype, as is the kernel.
    w_HWIO: the kernel.
    stride: along both axes.
    method: "conv", XLA's convolution; "matmul", shifted copies side by side times the kernel
      as one matrix. The second is 2–3 times faster for 1×1 kernels on CPU, and there the first
      falls to a hundredth of its speed inside `lax.scan` and becomes a grouped convolution
      under `vmap` over kernels. "auto", "matmul" on CPU and "conv" elsewhere.

  Raises:
    ValueError: an unknown method.
  """
  if method not in CONVOLUTIONS:
    raise ValueError(f"convolution: expected one of {', '.join(CONVOLUTIONS)}, got {method!r}")
  k, _, inputs, outputs = w_HWIO.shape
  before, after = (k - 1) // 2, k // 2
  if method == "conv" or (method == "auto" and jax.default_backend() != "cpu"):
    return lax.conv_general_dilated(x_BHWC, w_HWIO, (stride, stride), ((before, after),) * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))
  B, H, W, _ = x_BHWC.shape
  x_BHWC = jnp.pad(x_BHWC, ((0, 0), (before, after), (before, after), (0, 0)))
  shifted = [x_BHWC[:, i:i + H:stride, j:j + W:stride] for i in range(k) for j in range(k)]
  columns = jnp.concatenate(shifted, axis=-1)
  y = columns.reshape(-1, k * k * inputs) @ w_HWIO.reshape(-1, outputs)
  return y.reshape(*columns.shape[:3], outputs)


class StdConv(nn.Module):
  """Convolution without bias whose kernel is standardised: (B, H, W, C) -> (B, H', W', F)."""
  features: int
  kernel: int
  stride: int = 1
  method: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    w_HWIO = self.param("kernel", nn.initializers.lecun_normal(),
                        (self.kernel, self.kernel, x_BHWC.shape[-1], self.features))
    return convolve(x_BHWC.astype(self.dtype), standardise(w_HWIO).astype(self.dtype),
                    self.stride, self.method)


class GroupNorm(nn.Module):
  """Group norm with up to 32 groups: gcd(32, C), so that narrow models have a norm as well."""
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    B, H, W, C = x_BHWC.shape
    scale_C = self.param("scale", nn.initializers.ones, (C,))
    bias_C = self.param("bias", nn.initializers.zeros, (C,))
    groups = math.gcd(32, C)

    def over_groups(mean_BC):
      mean_BG = mean_BC.reshape(B, groups, C // groups).mean(axis=-1)
      return jnp.repeat(mean_BG, C // groups, axis=1)

    # Each channel's first two moments in one pass, joined into groups afterwards, then one
    # multiply-add: eight times faster on CPU, reverse pass included, than normalising (B, HW, G,
    # C / G), whose last axis is a few elements long.
    x = x_BHWC.astype(jnp.float32).reshape(B, H * W, C)
    mean_BC = over_groups(x.mean(axis=1))
    var_BC = jnp.maximum(over_groups((x * x).mean(axis=1)) - mean_BC ** 2, 0.0)
    gain_BC = lax.rsqrt(var_BC + 1e-5) * scale_C[None]
    shift_BC = bias_C[None] - mean_BC * gain_BC
    return (x * gain_BC[:, None] + shift_BC[:, None]).reshape(B, H, W, C).astype(self.dtype)


class ResidualUnit(nn.Module):
  """Pre-activation bottleneck: 1×1 to F = `features`, 3×3 (with the stride), 1×1 to 4 F."""
  features: int
  stride: int = 1
  method: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    outputs = 4 * self.features
    residual = x_BHWC
    x = nn.relu(GroupNorm(self.dtype, name="gn1")(x_BHWC))
    if x.shape[-1] != outputs or self.stride != 1:
      residual = StdConv(outputs, 1, self.stride, self.method, self.dtype, name="conv_proj")(x)
    x = StdConv(self.features, 1, 1, self.method, self.dtype, name="conv1")(x)
    x = nn.relu(GroupNorm(self.dtype, name="gn2")(x))
    x = StdConv(self.features, 3, self.stride, self.method, self.dtype, name="conv2")(x)
    x = nn.relu(GroupNorm(self.dtype, name="gn3")(x))
    return residual + StdConv(outputs, 1, 1, self.method, self.dtype, name="conv3")(x)


class Root(nn.Module):
  """The first convolution and, where `pool`, a 3×3 max-pooling with stride 2."""
  features: int
  kernel: int
  stride: int
  pool: bool
  method: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    conv = StdConv(self.features, self.kernel, self.stride, self.method, self.dtype,
                   name="conv_root")
    x_BHWC = conv(x_BHWC)
    if not self.pool:
      return x_BHWC
    # BiT pads with zeros, not with -inf, before pooling.
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x_BHWC, (3, 3), (2, 2), "VALID")


class Stage(nn.Module):
  """Residual units of one resolution; the first takes the stride. Returns all units' outputs."""
  units: int
  features: int
  stride: int
  first: int
  method: str = "auto"
  dtype: str = "float32"
  remat: str = "none"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, taps: Mapping[str, jax.Array] | None,
               place: blocks.Place | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    outputs = {}
    for i in range(self.units):
      unit = f"unit{i + 1:02d}"
      Unit = blocks.rematerialised(blocks.placed(ResidualUnit, place, self, unit), self.remat)
      unit = Unit(self.features, self.stride if i == 0 else 1, self.method, self.dtype, name=unit)
      name = layers.block_name(self.first + i)
      x_BHWC = outputs[name] = layers.tap(self, name, unit(x_BHWC), taps)
    return x_BHWC, outputs


class ResNet(nn.Module):
  """BiT ResNet-v2 under the contract of `big_transfer.models`; a block is a residual unit.

  Attributes:
    num_classes: outputs of the head.
    depths: residual units in each stage; every stage but the first halves the resolution.
    width: factor on the 64 channels of the root and of the first stage's bottlenecks; a
      fraction gives a narrow model.
    root_kernel, root_stride, root_pool: the root convolution, and whether a max-pooling with
      stride 2 follows; 7, 2, True is BiT's at 224 pixels, 3, 1, False suits 32.
    convolution: see `convolve`.
    dtype: of the computation; parameters are float32.
    head_bias: where the head's bias starts.
    remat: what of a unit is computed again in the reverse pass, see `blocks.rematerialised`.
  """
  num_classes: int
  depths: Sequence[int]
  width: float = 1.0
  root_kernel: int = 7
  root_stride: int = 2
  root_pool: bool = True
  convolution: str = "auto"
  dtype: str = "float32"
  head_bias: float = 0.0
  remat: str = "none"

  @nn.compact
  def __call__(self, images_BHWC: jax.Array, *, train: bool = False,
               taps: Mapping[str, jax.Array] | None = None, place: blocks.Place | None = None
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Images in [-1, 1] -> logits (B, num_classes) and the pooled outputs, all float32.

    `train` changes nothing (no dropout, no batch statistics): it is there for the contract.
    """
    del train
    layers.check_images(images_BHWC)
    layers.check_taps(taps, sum(self.depths))
    features = int(64 * self.width)
    x = Root(features, self.root_kernel, self.root_stride, self.root_pool,
             self.convolution, self.dtype, name="root_block")(images_BHWC)
    x = layers.tap(self, "stem", x, taps)
    out = {"stem": _pool(x)}
    for i, units in enumerate(self.depths):
      x, outputs = Stage(units, features * 2 ** i, 1 if i == 0 else 2, sum(self.depths[:i]),
                         self.convolution, self.dtype, self.remat, name=f"block{i + 1}")(
                             x, taps, place)
      out.update((name, _pool(y)) for name, y in outputs.items())
    x = nn.relu(GroupNorm(self.dtype, name="norm-pre-head")(x))
    out["pre_logits"] = _pool(x)
    out["logits"] = layers.Head(self.num_classes, self.head_bias, name="head")(out["pre_logits"])
    return out["logits"], out


def _pool(x_BHWC: jax.Array) -> jax.Array:
  return jnp.mean(x_BHWC, axis=(1, 2), dtype=jnp.float32)
