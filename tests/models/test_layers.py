"""Each fast formulation against the library's plain one; parameter names; position embeddings."""
import functools

from big_transfer import models
from big_transfer.models import layers
from big_transfer.models import resnet
from big_transfer.models import vit
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn_like(tree, seed=0):
  """Normal numbers in the shapes of an abstract tree."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), tree)


def assert_same(ours, theirs, x, rtol=1e-4):
  """Two modules share names and shapes, outputs, and gradients of parameters and input."""
  mine, reference = (jax.eval_shape(m.init, jax.random.key(0), x) for m in (ours, theirs))
  assert mine == reference
  assert_same_function(ours.apply, theirs.apply, (drawn_like(mine), x), rtol)


def assert_same_function(ours, theirs, arguments, rtol=1e-4):
  """Two functions share their value and their gradient in every argument."""
  shape = jax.eval_shape(theirs, *arguments).shape
  ct = normal(9, *shape)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both(arguments):
    values = [jax.vjp(function, *arguments) for function in (ours, theirs)]
    return [(y, pull(ct)) for y, pull in values]

  for a, b in zip(*map(jax.tree.leaves, both(arguments)), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(0.1, np.abs(b).max()))


def test_dense_is_flax_dense():
  assert_same(layers.Dense(7), nn.Dense(7), normal(0, 3, 5, 6))


def test_patches_are_a_strided_convolution():
  class Convolution(nn.Conv):
    def __call__(self, x):
      return super().__call__(x).reshape(x.shape[0], -1, self.features)
  assert_same(layers.Patches(6, 4), Convolution(6, (4, 4), (4, 4), "VALID"), normal(0, 2, 8, 12, 3))


@pytest.mark.parametrize("method, heads", [("matmul", 1), ("matmul", 4), ("xla", 4)])
def test_attention_is_flax_attention(method, heads):
  theirs = nn.MultiHeadDotProductAttention(num_heads=heads, deterministic=True)
  assert_same(vit.SelfAttention(heads, method), theirs, normal(0, 3, 5, 8))


def test_attention_survives_large_scores():
  x = 1e3 * normal(0, 1, 4, 8)
  attention = vit.SelfAttention(2, "matmul")
  variables = drawn_like(jax.eval_shape(attention.init, jax.random.key(0), x))
  assert np.isfinite(jax.jit(attention.apply, compiler_options=QUICK)(variables, x)).all()


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 16), (8, 8)])
def test_group_norm_is_flax_group_norm(channels, groups):
  x = 2 * normal(0, 2, 4, 3, channels) + 0.5
  assert_same(resnet.GroupNorm(), nn.GroupNorm(groups, epsilon=1e-5), x, rtol=1e-3)


@pytest.mark.parametrize("kernel, stride, size", [
    (1, 1, 5), (1, 2, 6), (3, 1, 5), (3, 2, 6), (3, 2, 5), (5, 2, 7), (4, 4, 8)])
def test_convolution_as_matrix_product(kernel, stride, size):
  arguments = normal(0, 2, size, size, 3), normal(1, kernel, kernel, 3, 5)
  assert_same_function(*(functools.partial(resnet.convolve, stride=stride, method=method)
                         for method in ("matmul", "conv")), arguments)


def test_unknown_methods_are_named():
  with pytest.raises(ValueError, match="convolution: expected one of"):
    resnet.convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 3, 2)), 1, "fft")
  with pytest.raises(ValueError, match="attention: expected one of"):
    jax.eval_shape(vit.SelfAttention(2, "flash").init, jax.random.key(0), jnp.zeros((1, 4, 8)))
  with pytest.raises(ValueError, match="needs a GPU"):
    jax.eval_shape(vit.SelfAttention(2, "cudnn").init, jax.random.key(0), jnp.zeros((1, 4, 8)))


@pytest.mark.parametrize("dtype, width", [("float32", 32), ("bfloat16", 24), ("bfloat16", 512)])
def test_cudnn_says_what_it_takes(monkeypatch, dtype, width):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(ValueError, match="takes bfloat16 and heads whose width"):
    jax.eval_shape(vit.SelfAttention(2, "cudnn", dtype).init, jax.random.key(0),
                   jnp.zeros((1, 4, width)))


def test_standardised_kernels_have_no_mean_and_unit_variance():
  w = np.asarray(jax.jit(resnet.standardise)(3 * normal(0, 3, 3, 4, 5) + 2))
  np.testing.assert_allclose(w.mean(axis=(0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(w.var(axis=(0, 1, 2)), 1, rtol=1e-5)


def test_vit_without_positions_is_blind_to_the_order_of_patches():
  model = models.build("vit", width=16, depth=1, heads=2, mlp_dim=24, patch=4, pool="gap",
                       num_classes=3)
  x = normal(0, 2, 8, 8, 3)
  params = drawn_like(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
  swapped = jnp.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)
  apply = jax.jit(lambda p, x: model.apply({"params": p}, x)[0], compiler_options=QUICK)
  assert not np.allclose(apply(params, x), apply(params, swapped), atol=1e-3)
  params["pos_embedding"] = jnp.zeros_like(params["pos_embedding"])
  np.testing.assert_allclose(apply(params, x), apply(params, swapped), rtol=1e-4, atol=1e-5)


def test_sincos2d_knows_rows_from_columns():
  table = np.asarray(vit.sincos2d(2, 3, 8)).reshape(2, 3, 8)
  np.testing.assert_allclose(table[0, 0], [0, 0, 1, 1, 0, 0, 1, 1])
  np.testing.assert_allclose(table[1, 2, [0, 4]], np.sin([2, 1]), rtol=1e-6)
  np.testing.assert_allclose(table[1, 2, [1, 5]], np.sin([2e-4, 1e-4]), rtol=1e-5)
  model = models.build("vit", width=8, depth=1, heads=2, mlp_dim=8, patch=4, num_classes=3,
                       posemb="sincos2d")
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))["params"]
  assert "pos_embedding" not in params
  with pytest.raises(ValueError, match="multiple of 4"):
    vit.sincos2d(2, 2, 6)


NAMES = {
    "vit": ({"width": 8, "depth": 1, "heads": 2, "mlp_dim": 16, "patch": 8,
             "representation_size": "auto"}, """
        Transformer/encoder_norm/bias Transformer/encoder_norm/scale
        Transformer/encoderblock_0/LayerNorm_0/bias Transformer/encoderblock_0/LayerNorm_0/scale
        Transformer/encoderblock_0/LayerNorm_1/bias Transformer/encoderblock_0/LayerNorm_1/scale
        Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias
        Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel
        Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias
        Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/bias
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/bias
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/bias
        Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/kernel
        cls embedding/bias embedding/kernel head/bias head/kernel pos_embedding pre_logits/bias
        pre_logits/kernel"""),
    "mixer": ({"width": 8, "depth": 1, "tokens_mlp_dim": 8, "channels_mlp_dim": 8, "patch": 8}, """
        MixerBlock_0/LayerNorm_0/bias MixerBlock_0/LayerNorm_0/scale MixerBlock_0/LayerNorm_1/bias
        MixerBlock_0/LayerNorm_1/scale MixerBlock_0/channel_mixing/Dense_0/bias
        MixerBlock_0/channel_mixing/Dense_0/kernel MixerBlock_0/channel_mixing/Dense_1/bias
        MixerBlock_0/channel_mixing/Dense_1/kernel MixerBlock_0/token_mixing/Dense_0/bias
        MixerBlock_0/token_mixing/Dense_0/kernel MixerBlock_0/token_mixing/Dense_1/bias
        MixerBlock_0/token_mixing/Dense_1/kernel head/bias head/kernel pre_head_layer_norm/bias
        pre_head_layer_norm/scale stem/bias stem/kernel"""),
    "resnet": ({"depths": (2,), "width": 0.125}, """
        block1/unit01/conv1/kernel block1/unit01/conv2/kernel block1/unit01/conv3/kernel
        block1/unit01/conv_proj/kernel block1/unit01/gn1/bias block1/unit01/gn1/scale
        block1/unit01/gn2/bias block1/unit01/gn2/scale block1/unit01/gn3/bias
        block1/unit01/gn3/scale block1/unit02/conv1/kernel block1/unit02/conv2/kernel
        block1/unit02/conv3/kernel block1/unit02/gn1/bias block1/unit02/gn1/scale
        block1/unit02/gn2/bias block1/unit02/gn2/scale block1/unit02/gn3/bias
        block1/unit02/gn3/scale head/bias head/kernel norm-pre-head/bias norm-pre-head/scale
        root_block/conv_root/kernel""")}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_named_as_in_big_vision(name):
  arguments, expected = NAMES[name]
  model = models.build(name, num_classes=3, **arguments)
  tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  assert sorted(traverse_util.flatten_dict(tree, sep="/")) == sorted(expected.split())
