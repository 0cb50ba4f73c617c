"""MLP-Mixer: Tolstikhin et al. 2021 (2105.01601), figure 1 and equation 1.

Shapes: B batch, H W image height and width, C channels, L positions, D width.
"""
from collections.abc import Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_transfer.models import blocks
from big_transfer.models import layers


class MixerBlock(nn.Module):
  """An MLP over positions, then one over channels, each added to the stream (B, L, D)."""
  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout: float = 0.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BLD: jax.Array, train: bool) -> jax.Array:
    y_BDL = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x_BLD).transpose(0, 2, 1)
    y_BDL = layers.Mlp(self.tokens_mlp_dim, self.dropout, self.dtype, name="token_mixing")(
        y_BDL, train=train)
    x_BLD = x_BLD + y_BDL.transpose(0, 2, 1)
    y_BLD = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x_BLD)
    return x_BLD + layers.Mlp(self.channels_mlp_dim, self.dropout, self.dtype,
                              name="channel_mixing")(y_BLD, train=train)


class Mixer(nn.Module):
  """MLP-Mixer under the contract of `big_transfer.models`.

  Attributes:
    num_classes: outputs of the head.
    width, depth: D, number of blocks.
    tokens_mlp_dim, channels_mlp_dim: hidden widths of the two MLPs of a block.
    patch: side of a square patch, pixels.
    dropout: rate on the hidden layers.
    dtype: of the computation; parameters are float32.
    head_bias: where the head's bias starts.
    scan: whether the blocks run as one loop, see `blocks`.
    remat: what of a block is computed again in the reverse pass, see `blocks.rematerialised`.
  """
  num_classes: int
  width: int
  depth: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  patch: int
  dropout: float = 0.0
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
    x_BLD = layers.Patches(self.width, self.patch, self.dtype, name="stem")(images_BHWC)
    x_BLD = layers.tap(self, "stem", x_BLD, taps)
    out = {"stem": _pool(x_BLD)}
    x_BLD, outputs = blocks.run(
        self, MixerBlock, (self.tokens_mlp_dim, self.channels_mlp_dim, self.dropout, self.dtype),
        [f"MixerBlock_{i}" for i in range(self.depth)], x_BLD, taps=taps, pool=_pool,
        train=train, scan=self.scan, remat=self.remat, place=place)
    out |= outputs
    x_BLD = nn.LayerNorm(dtype=self.dtype, name="pre_head_layer_norm")(x_BLD)
    out["pre_logits"] = _pool(x_BLD)
    out["logits"] = layers.Head(self.num_classes, self.head_bias, name="head")(out["pre_logits"])
    return out["logits"], out


def _pool(x_BLD: jax.Array) -> jax.Array:
  return jnp.mean(x_BLD, axis=1, dtype=jnp.float32)
