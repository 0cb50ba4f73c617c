"""Golden parameter counts, FLOPs against hand formulas, variant names."""
from big_transfer import models
from big_transfer.models import shapes
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

IMAGE = (224, 224, 3)

# 1,000 classes at 224 pixels, no representation layer. ViT: 2010.11929 and 2012.12877;
# Mixer: 2105.01601; BiT: 1912.11370 prints millions, exact counts are this implementation's.
EXACT = {
    ("vit", "Ti/16"): 5_717_416, ("vit", "S/16"): 22_050_664, ("vit", "S/32"): 22_878_952,
    ("vit", "B/16"): 86_567_656, ("vit", "B/32"): 88_224_232, ("vit", "L/16"): 304_326_632,
    ("vit", "H/14"): 632_045_800, ("mixer", "B/16"): 59_880_472, ("mixer", "L/16"): 208_196_168}
MILLIONS = {"R50x1": 25.55, "R101x1": 44.54, "R50x3": 217.32, "R101x3": 387.93, "R152x4": 936.53}


@pytest.mark.parametrize("name, variant", EXACT)
def test_parameters_exactly(name, variant):
  model = models.build(name, variant, num_classes=1000)
  assert shapes.count_parameters(model, IMAGE) == EXACT[name, variant]


def test_parameters_of_vit_s16_without_class_token():
  model = models.build("vit", "S/16", num_classes=1000, pool="gap", representation_size=None)
  assert shapes.count_parameters(model, IMAGE) == 22_049_896


@pytest.mark.parametrize("variant", MILLIONS)
def test_parameters_of_bit_in_millions(variant):
  model = models.build("resnet", variant, num_classes=1000)
  assert round(shapes.count_parameters(model, IMAGE) / 1e6, 2) == MILLIONS[variant]


@pytest.mark.parametrize("size, extra", [(None, 0), ("auto", 64 * 64 + 64), (48, 64 * 48 + 48)])
def test_representation_layer_adds_its_own_parameters(size, extra):
  tiny = {"width": 64, "depth": 1, "heads": 2, "mlp_dim": 64, "patch": 8, "num_classes": 10}
  count, base = (shapes.count_parameters(models.build("vit", **tiny, **kw), (32, 32, 3))
                 for kw in ({"representation_size": size}, {}))
  head_change = 0 if size != 48 else (48 - 64) * 10
  assert count == base + extra + head_change


@pytest.mark.parametrize("attention", ["auto", "matmul", "xla"])
def test_flops_of_vit_b16_by_hand(attention):
  model = models.build("vit", "B/16", num_classes=1000, attention=attention)
  L, D, F = 197, 768, 3072
  block = 4 * L * D * D + 2 * L * L * D + 2 * L * D * F
  macs = 196 * D * 768 + 12 * block + D * 1000
  assert shapes.flops_per_example(model, IMAGE) == 2 * macs
  assert macs / 1e9 == pytest.approx(17.6, abs=0.05)


def test_flops_of_mixer_by_hand():
  model = models.build("mixer", width=32, depth=3, tokens_mlp_dim=24, channels_mlp_dim=80, patch=8,
                       num_classes=7)
  macs = 16 * 192 * 32 + 3 * (2 * 32 * 16 * 24 + 2 * 16 * 32 * 80) + 32 * 7
  assert shapes.flops_per_example(model, (32, 32, 3)) == 2 * macs


@pytest.mark.parametrize("convolution", ["matmul", "conv"])
def test_flops_of_resnet_by_hand(convolution):
  model = models.build("resnet", depths=(1, 1), width=0.25, root_kernel=3, root_stride=1,
                       root_pool=False, convolution=convolution, num_classes=7)
  root = 32 * 32 * 27 * 16
  one = 32 * 32 * (16 * 64 + 16 * 16 + 9 * 16 * 16 + 16 * 64)
  two = 32 * 32 * 64 * 32 + 16 * 16 * (64 * 128 + 9 * 32 * 32 + 32 * 128)
  assert shapes.flops_per_example(model, (32, 32, 3)) == 2 * (root + one + two + 128 * 7)


def test_flops_inside_a_loop_count_once_a_turn():
  class Looped(nn.Module):
    @nn.compact
    def __call__(self, x_BHWC):
      w = self.param("w", nn.initializers.ones, (3, 3))
      return jax.lax.scan(lambda x, _: (x @ w, None), x_BHWC.mean((1, 2)), length=5)[0]
  assert shapes.flops_per_example(Looped(), (8, 8, 3)) == 5 * 2 * 9


@pytest.mark.parametrize("name, variant, close", [
    ("vit", "Ti16", "Ti/16"), ("vit", "b/16", "B/16"), ("mixer", "Ti/16", "S/16"),
    ("resnet", "R51x1", "R50x1"), ("resnet", "50x1", "R50x1")])
def test_unknown_variant_suggests(name, variant, close):
  with pytest.raises(ValueError, match=variant) as error:
    models.build(name, variant, num_classes=10)
  assert "Expected" in str(error.value)
  if (name, variant) != ("mixer", "Ti/16"):
    assert f"did you mean '{close}'" in str(error.value)


def test_image_shape_without_a_batch():
  model = models.build("mixer", "S/16", num_classes=10)
  with pytest.raises(ValueError, match="expected .H, W, C."):
    shapes.count_parameters(model, (1, 224, 224, 3))


def test_tap_shapes_are_those_of_unpooled_outputs():
  model = models.build("resnet", depths=(1, 1), width=0.25, root_kernel=3, root_stride=1,
                       root_pool=False, num_classes=7)
  assert shapes.tap_shapes(model, (2, 32, 32, 3)) == {
      "stem": (2, 32, 32, 16), "block_00": (2, 32, 32, 64), "block_01": (2, 16, 16, 128)}
  assert jnp.dtype(model.dtype) == jnp.float32
