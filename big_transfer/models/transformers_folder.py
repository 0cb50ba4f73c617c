"""Parameters as a folder that Hugging Face's `transformers` loads: its ViT and its BiT.

    transformers.AutoModelForImageClassification.from_pretrained("folder")

The folder holds config.json, preprocessor_config.json and model.safetensors, with the names that
versions 4 and 5 both read. Its ViT has a class token and learned positions, and its BiT BiT's own
root and 32 groups; what is otherwise is refused. Other than its defaults, the ViT's GELU is the
tanh approximation and its norms' epsilon 1e-6, as in Flax.
"""
from collections.abc import Mapping
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import tempfile

from flax import linen as nn
import numpy as np

from big_transfer import trees
from big_transfer.models import mixer
from big_transfer.models import published
from big_transfer.models import resnet

# (ours, theirs) within a block of a ViT and within a unit of a BiT.
_BLOCK = {"LayerNorm_0": "layernorm_before", "LayerNorm_1": "layernorm_after",
          "MlpBlock_0/Dense_0": "intermediate.dense", "MlpBlock_0/Dense_1": "output.dense",
          **{f"MultiHeadDotProductAttention_0/{name}": f"attention.attention.{name}"
             for name in ("query", "key", "value")},
          "MultiHeadDotProductAttention_0/out": "attention.output.dense"}
_UNIT = {"gn1": "norm1", "gn2": "norm2", "gn3": "norm3", "conv_proj": "downsample.conv"}
_OTHERS = {
    "vit": {"cls": "vit.embeddings.cls_token",
            "pos_embedding": "vit.embeddings.position_embeddings",
            "embedding": "vit.embeddings.patch_embeddings.projection",
            "Transformer/encoder_norm": "vit.layernorm", "head": "classifier"},
    "resnet": {"root_block/conv_root": "bit.embedder.convolution", "norm-pre-head": "bit.norm",
               "head": "classifier.1"}}


def save(folder: str | os.PathLike, params: Mapping, *, model: nn.Module, image_size: int
         ) -> published.Saved:
  """Writes the folder, and checks it before it does where `transformers` and torch are installed.

  Args:
    folder: a local path; files of the same names in it are replaced.
    params: nested dict of arrays under our names.
    model: the model that they are of.
    image_size: side of its images, in pixels.

  Returns:
    The sha256 is of model.safetensors; the difference, None where nothing could be checked, is
    between the logits that `transformers` computes and the model's, at most 1e-4.

  Raises:
    ValueError: `transformers` has no such model, the folder can't be written, the package
      safetensors isn't installed, or the logits differ.
  """
  if importlib.util.find_spec("safetensors") is None:
    raise ValueError("layout: transformers needs a package: pip install safetensors")
  from safetensors import numpy as safetensors  # an extra
  folder = pathlib.Path(folder).expanduser()
  written = config(model, image_size)
  weights = safetensors.save(tensors(params, written["model_type"]), metadata={"format": "pt"})
  files = {"config.json": _json(written), "model.safetensors": weights,
           "preprocessor_config.json": _json(_preprocessor(written, image_size))}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial:
      for name, data in files.items():
        (pathlib.Path(partial) / name).write_bytes(data)
      difference = _difference(partial, params, model, image_size)
      if difference is not None and not difference <= 1e-4:
        raise ValueError(f"'{folder}' was not written: the logits that transformers computes "
                         f"differ by {difference:.2g} of the largest")
      for name in files:
        (pathlib.Path(partial) / name).replace(folder / name)
  except OSError as error:
    raise ValueError(f"'{folder}' can't be written: {error.strerror}") from error
  return published.Saved("transformers", hashlib.sha256(weights).hexdigest(), difference)


def config(model: nn.Module, image_size: int) -> dict[str, object]:
  """The content of config.json; raises ValueError where `transformers` has no such model."""
  if lacking := _lacking(model):
    raise ValueError(f"layout: transformers has no such model: {lacking}; take another layout")
  labels = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
  common = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()},
            "num_channels": 3, "dtype": "float32", "torch_dtype": "float32"}
  if isinstance(model, resnet.ResNet):
    features = int(64 * model.width)
    return {"model_type": "bit", "architectures": ["BitForImageClassification"],
            "depths": list(model.depths), "embedding_size": features,
            "hidden_sizes": [4 * features * 2 ** i for i in range(len(model.depths))],
            "layer_type": "preactivation", "global_padding": None, "num_groups": 32,
            "hidden_act": "relu", **common}
  return {"model_type": "vit", "architectures": ["ViTForImageClassification"],
          "hidden_size": model.width, "num_hidden_layers": model.depth,
          "num_attention_heads": model.heads, "intermediate_size": model.mlp_dim,
          "patch_size": model.patch, "image_size": image_size, "qkv_bias": True,
          "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, **common}


def _lacking(model: nn.Module) -> str:
  """Why `transformers` has no such model, or nothing."""
  if isinstance(model, mixer.Mixer):
    return "it has no Mixer"
  if isinstance(model, resnet.ResNet):
    if (model.root_kernel, model.root_stride, model.root_pool) != (7, 2, True):
      return "its BiT has BiT's root alone (root_kernel=7, root_stride=2, root_pool=True)"
    return "" if int(64 * model.width) % 32 == 0 else "its BiT has channels by the 32 alone"
  if model.pool != "tok":
    return "its ViT pools a class token alone (pool=\"tok\")"
  if model.posemb != "learn":
    return "its ViT learns its positions (posemb=\"learn\")"
  return "" if model.representation_size is None else "its ViT has no layer before the head"


def _preprocessor(written: Mapping, image_size: int) -> dict[str, object]:
  """Images in [-1, 1], resized to a square."""
  kind = {"vit": "ViTImageProcessor", "bit": "BitImageProcessor"}[written["model_type"]]
  size = {"height": image_size, "width": image_size}
  return {"image_processor_type": kind, "do_resize": True, "size": size, "do_center_crop": False,
          "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
          "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


def tensors(params: Mapping, model_type: str) -> dict[str, np.ndarray]:
  """The arrays of model.safetensors, `{name there: float32 array}`."""
  names = _OTHERS[{"vit": "vit", "bit": "resnet"}[model_type]]
  found = {}
  for name, value in trees.flatten(params).items():
    where, _, leaf = name.rpartition("/")
    if match := re.fullmatch(r"Transformer/encoderblock_(\d+)/(.*)", where):
      theirs = f"vit.encoder.layer.{match[1]}.{_BLOCK[match[2]]}"
    elif match := re.fullmatch(r"block(\d+)/unit(\d+)/(.*)", where):
      theirs = (f"bit.encoder.stages.{int(match[1]) - 1}.layers.{int(match[2]) - 1}."
                f"{_UNIT.get(match[3], match[3])}")
    else:
      theirs = names[where or leaf]
    if where:
      theirs += ".bias" if leaf == "bias" else ".weight"
    found[theirs] = np.ascontiguousarray(_turned(name, np.asarray(value, np.float32)))
  return found


def _turned(name: str, value: np.ndarray) -> np.ndarray:
  """An array with PyTorch's order of axes: outputs first."""
  if name.endswith("out/kernel"):
    value = value.reshape(-1, value.shape[-1])  # (N, K, D), heads into one axis
  elif re.search(r"/(query|key|value)/", name):
    value = value.reshape(*value.shape[:-2], -1)
  if not name.endswith("kernel"):
    return value
  return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _json(content: Mapping) -> bytes:
  return (json.dumps(content, indent=1) + "\n").encode()


def _difference(folder: str, params: Mapping, model: nn.Module, image_size: int) -> float | None:
  if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    return None
  import torch  # an extra, and slow to import, as is the next
  import transformers
  images = np.random.default_rng(0).uniform(-1, 1, (2, image_size, image_size, 3)).astype("float32")
  ours = published.outputs(model, params, images)["logits"]
  theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
  with torch.no_grad():
    theirs = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
  return float(np.abs(theirs - ours).max() / max(np.abs(ours).max(), 1e-30))
