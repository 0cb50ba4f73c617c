"""The same ViT put together from Flax's own layers, which is how big_vision builds it.

What our forms of attention, dense layers and patch embedding gain is measured against it. Its
parameters have our names and shapes, so both can be given the same.

Shapes: B batch, L positions, D width.
"""
from flax import linen as nn
import jax.numpy as jnp


class LinenViT(nn.Module):
  """ViT with mean pooling; returns logits (B, num_classes) and an empty dict.

  Attributes:
    num_classes, width, depth, heads, mlp_dim, patch: as in `big_transfer.models.vit.ViT`.
  """
  num_classes: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  patch: int

  @nn.compact
  def __call__(self, images_BHWC, *, train=False):
    patch = (self.patch, self.patch)
    x = nn.Conv(self.width, patch, strides=patch, padding="VALID", name="embedding")(images_BHWC)
    x_BLD = x.reshape(x.shape[0], -1, self.width)
    x_BLD = x_BLD + self.param(
        "pos_embedding", nn.initializers.normal(self.width ** -0.5), (1, *x_BLD.shape[1:]))
    x_BLD = Encoder(self.depth, self.heads, self.mlp_dim, name="Transformer")(x_BLD)
    head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
    return head(jnp.mean(x_BLD, axis=1)), {}


class Encoder(nn.Module):
  """The blocks and the final norm, (B, L, D) -> (B, L, D)."""
  depth: int
  heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x_BLD):
    for i in range(self.depth):
      x_BLD = Block(self.heads, self.mlp_dim, name=f"encoderblock_{i}")(x_BLD)
    return nn.LayerNorm(name="encoder_norm")(x_BLD)


class Block(nn.Module):
  """Pre-norm block, (B, L, D) -> (B, L, D)."""
  heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x_BLD):
    y_BLD = nn.LayerNorm()(x_BLD)
    x_BLD = x_BLD + nn.MultiHeadDotProductAttention(
        self.heads, kernel_init=nn.initializers.xavier_uniform())(y_BLD, y_BLD)
    return x_BLD + MlpBlock(self.mlp_dim)(nn.LayerNorm()(x_BLD))


class MlpBlock(nn.Module):
  """Two dense layers with a GELU between, (B, L, D) -> (B, L, D)."""
  hidden: int

  @nn.compact
  def __call__(self, x_BLD):
    init = nn.initializers.xavier_uniform()
    h_BLF = nn.gelu(nn.Dense(self.hidden, kernel_init=init)(x_BLD))
    return nn.Dense(x_BLD.shape[-1], kernel_init=init)(h_BLF)
