"""Where a parameter stands in a model: its layer and its group, from the parameters' names alone.

The layers are those of `out` in the order of depth (`stem`, `block_00` …, `pre_logits`), and last
`head`. What stands between the last block and the head, the final norm and a representation
layer, is `pre_logits`. A residual unit of a ResNet is a block, numbered over all stages, as in
`out`.
"""
from collections.abc import Iterable
import re
from typing import NamedTuple

from big_transfer.models import layers


class Part(NamedTuple):
  """A layer and, within it, a group of parameters.

  The group is the next component of the name: a module of the layer (`MlpBlock_0`, `conv1`,
  `embedding`, `encoder_norm`) or, where the layer is one module, a parameter (`kernel`, `bias`).
  """
  layer: str
  group: str


def parts(names: Iterable[str]) -> dict[str, Part]:
  """Returns `{name: Part}` of all parameters of a model, in order of depth.

  Args:
    names: as `trees.flatten` has them, such as `Transformer/encoderblock_0/MlpBlock_0/…`; all of
      the model's, since a ResNet's blocks are counted.

  Raises:
    ValueError: a name that is of none of the three families.

  Example:
    >>> parts(["block2/unit01/conv1/kernel", "block1/unit01/conv1/kernel"])
    {'block1/unit01/conv1/kernel': Part(layer='block_00', group='conv1'),
     'block2/unit01/conv1/kernel': Part(layer='block_01', group='conv1')}
  """
  names = list(names)
  units = sorted({(int(m["stage"]), int(m["unit"])) for m in map(_UNIT.match, names) if m})
  found = {}
  for name in names:
    if match := _UNIT.match(name):
      layer = layers.block_name(units.index((int(match["stage"]), int(match["unit"]))))
    elif match := _BLOCK.match(name):
      layer = layers.block_name(int(match["block"]))
    else:
      layer, match = next(((where, m) for where, pattern in _OTHERS if (m := pattern.match(name))),
                          (None, None))
      if match is None:
        raise ValueError(f"parameter {name!r} stands in no layer of a ViT, Mixer or ResNet; "
                         f"expected a name as `trees.flatten` gives it to those that "
                         f"`models.build` makes")
    found[name] = Part(layer, match["group"])
  return dict(sorted(found.items(), key=lambda item: depth(item[1].layer)))


def depth(layer: str) -> tuple[int, int]:
  """A key that sorts layers by depth: stem, block_00 …, pre_logits, logits, head.

  Raises:
    ValueError: no such layer.
  """
  if match := re.fullmatch(r"block_(\d+)", layer):
    return 1, int(match[1])
  if layer not in _ENDS:
    raise ValueError(f"layer {layer!r}: expected one of {', '.join(_ENDS)} or block_00, block_01 …")
  return _ENDS[layer], 0


_ENDS = {"stem": 0, "pre_logits": 2, "logits": 3, "head": 4}
_UNIT = re.compile(r"block(?P<stage>\d+)/unit(?P<unit>\d+)/(?P<group>[^/]+)")
_BLOCK = re.compile(r"(?:Transformer/encoderblock_|MixerBlock_)(?P<block>\d+)/(?P<group>[^/]+)")
_OTHERS = tuple((layer, re.compile(pattern)) for layer, pattern in (
    ("stem", r"(?P<group>cls|pos_embedding|embedding)(?:/|$)"),
    ("stem", r"(?:stem|root_block)/(?P<group>[^/]+)"),
    ("pre_logits", r"(?:Transformer/)?(?P<group>encoder_norm|pre_logits|pre_head_layer_norm|"
                   r"norm-pre-head)/"),
    ("head", r"head/(?P<group>[^/]+)")))
