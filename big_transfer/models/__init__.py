"""The model families, all under one contract.

    model = build("vit", "Ti/16", num_classes=1000)
    params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    logits, out = model.apply({"params": params}, images_BHWC, train=False)

Images are floats in [-1, 1]. `out` is a flat dict with the same keys in every family: `stem`,
`block_00` …, `pre_logits` and `logits`, each a pooled (B, D) float32: the class token where there
is one, else the mean over positions, before the final norm; `pre_logits` is what the head sees.
`taps={"block_00": zeros, …}` is added to the *unpooled* outputs, so that one reverse pass gives
the gradient at every layer (`shapes.tap_shapes` lists their shapes). `place` says where a block's
parameters are to be when they are used, on a mesh (`blocks.placed`). Parameters are float32 and
named as big_vision names them; the last layer is always `head`.
"""
import dataclasses
from types import MappingProxyType

from flax import linen as nn

from big_transfer.models import checking
from big_transfer.models import mixer
from big_transfer.models import resnet
from big_transfer.models import shapes
from big_transfer.models import vit

MODELS = MappingProxyType({"vit": vit.ViT, "mixer": mixer.Mixer, "resnet": resnet.ResNet})


def build(name: str, variant: str | None = None, *, num_classes: int, dtype: str = "float32",
          head_bias: float = 0.0, **overrides) -> nn.Module:
  """Builds a model by name.

  Args:
    name: a key of MODELS.
    variant: "Ti/16", "B/32" (vit, mixer), "R50x1" (resnet); None if `overrides` say it all.
    num_classes: outputs of the head.
    dtype: of the computation; parameters are float32, and so is the head.
    head_bias: where the head's bias starts.
    **overrides: arguments of the family's class, which win over the variant's.

  Raises:
    ValueError: an unknown name, variant or argument, a missing one, or a value out of range.

  Example:
    >>> build("vit", width=64, depth=4, heads=4, mlp_dim=256, patch=4, pool="gap", num_classes=10)
  """
  if name not in MODELS:
    raise ValueError(f"model: no such family {name!r}{checking.hint(name, MODELS)} "
                     f"Expected one of {', '.join(MODELS)}")
  fields = {f.name: f for f in dataclasses.fields(MODELS[name]) if f.name not in ("parent", "name")}
  for key in overrides:
    if key not in fields:
      raise ValueError(f"model: {name} takes no argument {key!r}{checking.hint(key, fields)} "
                       f"Expected any of {', '.join(fields)}")
  arguments = shapes.variant_arguments(name, variant) if variant is not None else {}
  arguments |= overrides
  arguments |= {"num_classes": num_classes, "dtype": dtype, "head_bias": head_bias}
  missing = [k for k, f in fields.items()
             if f.default is dataclasses.MISSING and k not in arguments]
  if missing:
    raise ValueError(f"model: {name} needs {', '.join(missing)}; give them, or a variant")
  return MODELS[name](**checking.checked(name, arguments))


def label(name: str, variant: str | None, module: nn.Module) -> str:
  """A short name for people: "ViT-Ti/16", "Mixer 64x4/8", "BiT-R50x1", "BiT 1-1-1 x0.25"."""
  family = {"vit": "ViT", "mixer": "Mixer", "resnet": "BiT"}[name]
  if variant is not None:
    expected = shapes.variant_arguments(name, variant)
    if all(getattr(module, k) == v for k, v in expected.items()):
      return f"{family}-{variant}"
  if name == "resnet":
    return f"{family} {'-'.join(map(str, module.depths))} x{module.width:g}"
  return f"{family} {module.width}x{module.depth}/{module.patch}"

