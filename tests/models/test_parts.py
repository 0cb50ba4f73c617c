"""Every parameter of every family has its layer, and names from elsewhere are refused."""
import jax
import jax.numpy as jnp
import pytest

from big_transfer import models
from big_transfer import trees
from big_transfer.models import parts
from big_transfer.models import shapes
from tests.models.test_contract import build

VIT_BLOCK = {"LayerNorm_0", "LayerNorm_1", "MlpBlock_0", "MultiHeadDotProductAttention_0"}
MIXER_BLOCK = {"LayerNorm_0", "LayerNorm_1", "channel_mixing", "token_mixing"}
UNIT = {"conv1", "conv2", "conv3", "gn1", "gn2", "gn3"}


def names(model, size=16):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return list(trees.flatten(jax.eval_shape(model.init, jax.random.key(0), images)["params"]))


def groups(found):
  by_layer = {}
  for part in found.values():
    by_layer.setdefault(part.layer, set()).add(part.group)
  return by_layer


@pytest.mark.parametrize("model, stem, block, pre_logits", [
    (build("vit", representation_size="auto"), {"cls", "embedding", "pos_embedding"}, VIT_BLOCK,
     {"encoder_norm", "pre_logits"}),
    (build("gap", posemb="sincos2d"), {"embedding"}, VIT_BLOCK, {"encoder_norm"}),
    (build("mixer"), {"kernel", "bias"}, MIXER_BLOCK, {"pre_head_layer_norm"}),
    (build("resnet"), {"conv_root"}, UNIT | {"conv_proj"}, {"norm-pre-head"})])
def test_every_parameter_has_its_layer(model, stem, block, pre_logits):
  given = names(model)
  found = parts.parts(given)
  assert sorted(found) == sorted(given)
  assert groups(found) == {"stem": stem, "block_00": block, "block_01": block,
                           "pre_logits": pre_logits, "head": {"kernel", "bias"}}
  assert list(groups(found)) == ["stem", "block_00", "block_01", "pre_logits", "head"]


@pytest.mark.parametrize("model", [
    build("vit", depth=11), build("resnet", depths=(2, 1, 2), width=0.125)])
def test_blocks_are_those_of_the_taps(model):
  """Numbers of two digits too, and a ResNet's units over all stages, in the order of depth."""
  found = parts.parts(reversed(names(model, 32)))
  layers = list(groups(found))
  taps = shapes.tap_shapes(model, (1, 32, 32, 3))
  assert layers == [*sorted(taps, key=parts.depth), "pre_logits", "head"]
  assert layers[:3] == ["stem", "block_00", "block_01"]
  if isinstance(model, models.MODELS["resnet"]):
    assert found["block2/unit01/conv1/kernel"] == ("block_02", "conv1")
    assert found["block3/unit02/gn1/scale"] == ("block_04", "gn1")


def test_units_of_a_long_stage_are_counted_not_sorted_as_text():
  found = parts.parts(f"block{stage}/unit{unit:02d}/conv1/kernel"
                      for stage, units in ((10, 2), (2, 101)) for unit in range(units, 0, -1))
  assert found["block2/unit100/conv1/kernel"].layer == "block_99"
  assert found["block10/unit01/conv1/kernel"].layer == "block_101"


def test_a_hundred_blocks_keep_their_order():
  layers = ["head", "block_100", "pre_logits", "block_99", "logits", "stem", "block_02"]
  assert sorted(layers, key=parts.depth) == [
      "stem", "block_02", "block_99", "block_100", "pre_logits", "logits", "head"]


@pytest.mark.parametrize("name", ["scale", "decoder/layer_0/kernel", "headless/kernel", "cls2",
                                  "Transformer/encoderblock_x/kernel"])
def test_a_name_of_another_model_is_told(name):
  with pytest.raises(ValueError, match=f"parameter '{name}' stands in no layer"):
    parts.parts(["head/kernel", name])


def test_a_layer_that_is_none_is_told():
  with pytest.raises(ValueError, match="layer 'block_x': expected one of stem"):
    parts.depth("block_x")
