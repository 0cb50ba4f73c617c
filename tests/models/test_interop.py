"""What is exported, read by `transformers` from the file: its ViT and BiT give the same logits.

Its weights are random here, as ours; nothing is downloaded. The tests are skipped where torch and
transformers are not installed (the extra "interop").
"""
import re

import numpy as np
import pytest

from big_transfer.models import adapting
from big_transfer.models import published
from tests.models import examples

pytestmark = pytest.mark.slow  # importing torch and transformers alone takes five seconds


def _installed(name):
  return pytest.importorskip(name, reason="the extra \"interop\" is not installed")

_VIT = ((r"LayerNorm_0/(?:scale|(bias))", "layernorm_before"),
        (r"LayerNorm_2/(?:scale|(bias))", "layernorm_after"),
        (r"MlpBlock_3/Dense_0/(?:kernel|(bias))", "mlp.fc1"),
        (r"MlpBlock_3/Dense_1/(?:kernel|(bias))", "mlp.fc2"),
        *((rf"MultiHeadDotProductAttention_1/{name}/(?:kernel|(bias))", f"attention.{short}_proj")
          for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))))


def _filled(model, weights):
  """The model with these weights, every one of them: {name: NumPy array of the right shape}."""
  torch = _installed("torch")
  state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
  model.load_state_dict(state, strict=True)
  return model.eval()


def _logits(model, images):
  torch = _installed("torch")
  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()


def _vit_weights(w, width):
  """A vit_jax file under the names of `transformers`."""
  found = {"vit.embeddings.cls_token": w["cls"],
           "vit.embeddings.position_embeddings": w["Transformer/posembed_input/pos_embedding"],
           "vit.embeddings.patch_embeddings.projection.weight":
               w["embedding/kernel"].transpose(3, 2, 0, 1),
           "vit.embeddings.patch_embeddings.projection.bias": w["embedding/bias"],
           "vit.layernorm.weight": w["Transformer/encoder_norm/scale"],
           "vit.layernorm.bias": w["Transformer/encoder_norm/bias"],
           "classifier.weight": w["head/kernel"].T, "classifier.bias": w["head/bias"]}
  for name, value in w.items():
    if block := re.match(r"Transformer/encoderblock_(\d+)/(.*)", name):
      part = next((m, theirs) for pattern, theirs in _VIT if (m := re.fullmatch(pattern, block[2])))
      bias = part[0][1]
      if "MultiHead" in name:
        value = value.reshape(-1) if bias else value.reshape(width, width)
      found[f"vit.layers.{block[1]}.{part[1]}.{'bias' if bias else 'weight'}"] = value.T
  return found


def _vit(w, model, size, **config):
  transformers = _installed("transformers")
  found = transformers.ViTForImageClassification(transformers.ViTConfig(
      hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=model.heads,
      intermediate_size=model.mlp_dim, patch_size=model.patch, image_size=size,
      num_labels=model.num_classes, layer_norm_eps=1e-6,
      **{"hidden_act": "gelu_pytorch_tanh", **config}))
  return _filled(found, _vit_weights(w, model.width))


def _exported(tmp_path, kind, size=32):
  params = examples.params(kind, size)
  published.save(tmp_path / "a.npz", params)
  with np.load(tmp_path / "a.npz") as file:
    return params, dict(file)


def test_a_vit(tmp_path):
  params, w = _exported(tmp_path, "tok")
  model = examples.build("tok")
  ours = published.outputs(model, params, examples.images())["logits"]
  theirs = _logits(_vit(w, model, 32), examples.images())
  np.testing.assert_allclose(theirs, ours, atol=1e-4)
  assert np.abs(ours).max() > 1  # so that 1e-4 says something
  # The exact GELU, which transformers and timm take if not told, is another function.
  apart = np.abs(_logits(_vit(w, model, 32, hidden_act="gelu"), examples.images()) - ours).max()
  assert 1e-4 < apart < 1e-1


def test_a_bit(tmp_path):
  transformers = _installed("transformers")
  params, w = _exported(tmp_path, "resnet", 64)
  w = {name.removeprefix("resnet/"): value for name, value in w.items()}
  found = transformers.BitForImageClassification(transformers.BitConfig(
      embedding_size=32, hidden_sizes=(128, 256), depths=(2, 1), num_labels=5))
  names = {"root_block/standardized_conv2d/kernel": "bit.embedder.convolution.weight",
           "group_norm/gamma": "bit.norm.weight", "group_norm/beta": "bit.norm.bias",
           "head/conv2d/kernel": "classifier.1.weight", "head/conv2d/bias": "classifier.1.bias"}
  weights = {}
  for name, value in w.items():
    if unit := re.match(r"block(\d+)/unit(\d+)/([abc])/(.*)", name):
      stage, layer, number = int(unit[1]) - 1, int(unit[2]) - 1, "abc".index(unit[3]) + 1
      part = {"standardized_conv2d/kernel": f"conv{number}.weight",
              "proj/standardized_conv2d/kernel": "downsample.conv.weight",
              "group_norm/gamma": f"norm{number}.weight",
              "group_norm/beta": f"norm{number}.bias"}[unit[4]]
      theirs = f"bit.encoder.stages.{stage}.layers.{layer}.{part}"
    else:
      theirs = names[name]
    value = value[0, 0].T if name == "head/conv2d/kernel" else value
    weights[theirs] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
  ours = published.outputs(examples.build("resnet"), params, examples.images(64))["logits"]
  theirs = _logits(_filled(found, weights), examples.images(64))
  np.testing.assert_allclose(theirs, ours, atol=1e-4)
  assert np.abs(ours).max() > 1


@pytest.mark.parametrize("grid", [(12, 20), (7, 7), (3, 5)])
def test_the_bicubic_resampling_is_torchs(grid):
  torch = _installed("torch")
  positions = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 8)).astype(np.float32)
  ours = adapting.resized_positions(positions, 1 + grid[0] * grid[1], resample="bicubic",
                                    class_token=True, grid=grid)
  square = torch.from_numpy(positions[:, 1:].reshape(1, 14, 14, 8).transpose(0, 3, 1, 2).copy())
  theirs = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=True)
  theirs = theirs.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 8)
  np.testing.assert_allclose(ours[:, 1:], theirs, atol=1e-5)
  np.testing.assert_array_equal(ours[:, :1], positions[:, :1])
