"""The public `.npz` dialects: which array of a file is which of our parameters, both ways.

Three of them are read and written, for the families that their owners publish:

    big_vision  ViT, Mixer and BiT of big_vision, below "params/"; positions of the patches alone,
                group norm's arrays as (1, 1, 1, C)
    vit_jax     ViT (AugReg too) and Mixer of vision_transformer, no prefix; a block's layers are
                numbered in one row, the class token has a position of its own
    bit         BiT of big_transfer, below "resnet/", as TensorFlow dumped it

Read are also whole training states, which have the parameters below "opt/target/", names that
big_vision had before, blocks stacked for a loop, and the numbered convolutions of some BiT files.

Ours are named as big_vision's, with a position for the class token as in vit_jax: where the file's
class token has none, ours is zero; where it can't be written, it is added to the class token, which
is what the model does first of all. (big_vision reads files of vit_jax in the same way.)
"""
from collections.abc import Iterable, Mapping
import math
import re

import numpy as np

LAYOUTS = {"big_vision": ("vit", "mixer", "resnet"), "vit_jax": ("vit", "mixer"),
           "bit": ("resnet",)}
PREFIXES = ("opt/target/", "params/", "resnet/")
POSITIONS = "pos_embedding"

# (ours, vit_jax's) for a part of a ViT's names.
_VIT_JAX = (
    ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
    ("LayerNorm_1", "LayerNorm_2"),
    ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    ("MlpBlock_0", "MlpBlock_3"))
# (ours, BiT's) for the end of a ResNet's names, below "resnet/".
_UNIT = (*((f"conv{i}/kernel", f"{letter}/standardized_conv2d/kernel")
           for i, letter in enumerate("abc", 1)),
         *((f"gn{i}/{ours}", f"{letter}/group_norm/{theirs}") for i, letter in enumerate("abc", 1)
           for ours, theirs in (("scale", "gamma"), ("bias", "beta"))),
         ("conv_proj/kernel", "a/proj/standardized_conv2d/kernel"))
_BIT = {"root_block/conv_root/kernel": "root_block/standardized_conv2d/kernel",
        "norm-pre-head/scale": "group_norm/gamma", "norm-pre-head/bias": "group_norm/beta",
        "head/kernel": "head/conv2d/kernel", "head/bias": "head/conv2d/bias"}
# How many axes the arrays have that tell a model's settings.
_AXES = ((r"(embedding|stem|root_block/conv_root)/kernel", 4), (r"pos_embedding|cls", 3),
         (r".*/(query|key|value|out)/kernel", 3), (r"(.*/Dense_\d|pre_logits|head)/kernel", 2),
         (r"head/bias", 1))
_GROUP_NORM = re.compile(r"(.*/gn\d|norm-pre-head)/(scale|bias)")
# What files of other models hold, and what to say of them.
_REFUSED = (
    (r"(img|txt)/", "is of two towers, for images and for text; there is no such model here"),
    (r"(MAPHead_0|probe)(/|$)", "is of a ViT that pools by attention (a MAP head); ours pool a "
     "class token (\"tok\") or the mean (\"gap\"): take a file of such a model"),
    (r"(conv|gn)_root/", "is of a ResNet below a ViT (a hybrid), or of big_vision's ResNet-v1 with "
     "group norm; ours are ViTs on patches, and BiT's ResNet-v2"))


class LayoutError(ValueError):
  """A file in no layout that can be read, or parameters that a layout can't hold."""


def family(names: Iterable[str]) -> str:
  """The family, a key of `models.MODELS`, that parameters of our names are of.

  Raises:
    LayoutError: they are of none.
  """
  names = list(names)
  for start, name in (("Transformer/", "vit"), ("MixerBlock_", "mixer"), ("root_block/", "resnet")):
    if any(n.startswith(start) for n in names):
      return name
  raise LayoutError(f"these are the parameters of no ViT, Mixer or BiT ResNet: {some(names)}")


def our_names(names: Iterable[str]) -> dict[str, str]:
  """Returns `{name in the file: our name}` of a file's parameters; what else it holds is left out.

  Raises:
    LayoutError: a model of another kind, or two arrays that would be one parameter.
  """
  names = list(names)
  prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in names)), "")
  found = {}
  for theirs in names:
    if not theirs.startswith(prefix):
      continue
    name = theirs.removeprefix(prefix)
    for pattern, why in _REFUSED:
      if re.match(pattern, name):
        raise LayoutError(f"{theirs!r}: this {why}")
    name = _bit_name(name) if prefix == "resnet/" else _vit_name(name)
    if name in found:
      raise LayoutError(f"two parameters called {name!r} here, {found[name]!r} and {theirs!r} "
                        "there: expected one")
    found[name] = theirs
  family(found)
  return {theirs: name for name, theirs in found.items()}


def _vit_name(name: str) -> str:
  name = re.sub(r"^Transformer/(posembed_input/)?pos_embedding$", POSITIONS, name)
  for our, their in _VIT_JAX[1:]:
    name = re.sub(rf"^(Transformer/encoderblock_\d+)/{their}/", rf"\1/{our}/", name)
  return name


def _bit_name(name: str) -> str:
  name = re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name)
  for our, their in _BIT.items():
    if name == their:
      return our
  for our, their in _UNIT:
    if match := re.fullmatch(rf"(block\d+/unit\d+)/{their}", name):
      return f"{match[1]}/{our}"
  return name


def our_arrays(params: Mapping[str, np.ndarray], names: Mapping[str, str]
               ) -> dict[str, np.ndarray]:
  """Parameters in the shapes that ours have.

  Args:
    params: of our names, as the file holds them.
    names: what `our_names` gave for the file.

  Raises:
    LayoutError: an array with another number of axes.
  """
  params = _unstacked(params)
  for name, value in params.items():
    if _GROUP_NORM.fullmatch(name) and value.shape[:-1] == (1, 1, 1):
      params[name] = value.reshape(-1)
    if name == "head/kernel" and value.ndim == 4 and value.shape[:2] == (1, 1):
      params[name] = value[0, 0]
    for pattern, axes in _AXES:
      if re.fullmatch(pattern, name) and params[name].ndim != axes:
        raise LayoutError(f"{name!r} has shape {value.shape}, expected ndim {axes}")
  of_vit_jax = any("posembed_input" in name for name in names)
  if "cls" in params and POSITIONS in params and not of_vit_jax:
    params[POSITIONS] = _with_class_row(params[POSITIONS])
  return params


def _unstacked(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With the blocks one by one where they are stacked along a first axis, as big_vision's scan."""
  flat = {}
  for name, value in params.items():
    if match := re.fullmatch(r"(Transformer/encoderblock)/(.*)", name):
      flat |= {f"{match[1]}_{i}/{match[2]}": value[i] for i in range(len(value))}
    else:
      flat[name] = value
  return flat


def _with_class_row(positions_1LD: np.ndarray) -> np.ndarray:
  """With a position for the class token, in front, unless there is one.

  There is one if L - 1 is a square, as in big_vision's files of before it left them out.
  """
  length = positions_1LD.shape[1]
  if math.isqrt(length) ** 2 != length and math.isqrt(length - 1) ** 2 == length - 1:
    return positions_1LD
  return np.pad(positions_1LD, ((0, 0), (1, 0), (0, 0)))


def auto(params: Mapping[str, np.ndarray]) -> str:
  """The layout that most others read: "vit_jax" for a ViT or Mixer, "bit" for a ResNet."""
  return "bit" if family(params) == "resnet" else "vit_jax"


def their_arrays(params: Mapping[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
  """The arrays of a file in `layout` that holds these parameters, `{our name: array}`.

  Raises:
    LayoutError: no such layout, or one that has no such family.
  """
  if layout not in LAYOUTS:
    raise LayoutError(f"layout: expected one of {', '.join(LAYOUTS)} or auto, got {layout!r}")
  kind = family(params)
  if kind not in LAYOUTS[layout]:
    able = " or ".join(name for name, kinds in LAYOUTS.items() if kind in kinds)
    raise LayoutError(f"layout: {layout} has no {kind}; take {able}")
  params = dict(params)
  if layout == "bit":
    params["head/kernel"] = params["head/kernel"][None, None]
    return {"resnet/" + _as_bit(name): value for name, value in params.items()}
  if layout == "vit_jax":
    return {_as_vit_jax(name) if kind == "vit" else name: value for name, value in params.items()}
  for name, value in params.items():
    if _GROUP_NORM.fullmatch(name):
      params[name] = value[None, None, None]
  if "cls" in params and POSITIONS in params:
    params["cls"] = params["cls"] + params[POSITIONS][:, :1]
    params[POSITIONS] = params[POSITIONS][:, 1:]
  return {"params/" + name: value for name, value in params.items()}


def _as_vit_jax(name: str) -> str:
  if name == POSITIONS:
    return _VIT_JAX[0][1]
  for our, their in _VIT_JAX[1:]:
    name = re.sub(rf"^(Transformer/encoderblock_\d+)/{our}/", rf"\1/{their}/", name)
  return name


def _as_bit(name: str) -> str:
  if name in _BIT:
    return _BIT[name]
  for our, their in _UNIT:
    if match := re.fullmatch(rf"(block\d+/unit\d+)/{our}", name):
      return f"{match[1]}/{their}"
  raise LayoutError(f"layout: bit has no name for parameter {name!r}")


def some(names: Iterable[str], most: int = 4) -> str:
  """The first few names, for a message."""
  names = sorted(names)
  return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
