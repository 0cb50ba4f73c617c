"""Variant names and what they stand for; parameter and FLOP counts, without allocating anything."""
from collections.abc import Sequence
import math
import re
from types import MappingProxyType

from flax import linen as nn
import jax
from jax.extend import core
import jax.numpy as jnp

from big_transfer.models import checking
from big_transfer.models import layers

# width, depth, mlp_dim, heads. Ti S B L: 2010.11929 table 1 and 2012.12877 table 1; H: the same
# table 1; M mu and the large ones: 2106.04560 table 2 and 2305.13035 (So400m).
VIT = MappingProxyType({
    "mu": (32, 1, 128, 2), "Ti": (192, 12, 768, 3), "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8), "B": (768, 12, 3072, 12), "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16), "H": (1280, 32, 5120, 16), "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16), "e": (1792, 56, 15360, 16)})

# width, depth, tokens_mlp_dim, channels_mlp_dim: 2105.01601 table 1.
MIXER = MappingProxyType({
    "S": (512, 8, 256, 2048), "B": (768, 12, 384, 3072), "L": (1024, 24, 512, 4096),
    "H": (1280, 32, 640, 5120)})

# Residual units in each stage: 1512.03385 table 1; 26 halves 50's.
RESNET = MappingProxyType({
    26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)})


def variant_arguments(name: str, variant: str) -> dict[str, object]:
  """Constructor arguments of a variant, such as ("vit", "Ti/16") or ("resnet", "R50x1").

  Raises:
    ValueError: no such variant.
  """
  if name == "resnet":
    match = re.fullmatch(r"R(\d+)x(\d+)", variant)
    if match and int(match[1]) in RESNET:
      return {"depths": RESNET[int(match[1])], "width": float(match[2])}
    raise ValueError(_unknown(name, variant, [f"R{d}x{w}" for d in RESNET for w in range(1, 5)],
                              "R<depth>x<width>, as R50x1"))
  sizes, fields = {
      "vit": (VIT, ("width", "depth", "mlp_dim", "heads")),
      "mixer": (MIXER, ("width", "depth", "tokens_mlp_dim", "channels_mlp_dim"))}[name]
  match = re.fullmatch(r"(\w+)/(\d+)", variant)
  if match and match[1] in sizes:
    return dict(zip(fields, sizes[match[1]]), patch=int(match[2]))
  known = [f"{size}/{patch}" for size in sizes for patch in (8, 14, 16, 32)]
  raise ValueError(_unknown(name, variant, known, "<size>/<patch>, as B/16"))


def _unknown(name: str, variant: str, known: Sequence[str], form: str) -> str:
  sizes = ", ".join(dict.fromkeys(re.split("[/x]", k)[0] for k in known))
  return (f"variant: {name} has no {variant!r}{checking.hint(variant, known)} "
          f"Expected {form}, with {sizes}")


def count_parameters(model: nn.Module, image_shape: Sequence[int]) -> int:
  """Number of parameters for images of shape (H, W, C)."""
  params = jax.eval_shape(model.init, jax.random.key(0), _images(image_shape))["params"]
  return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def tap_shapes(model: nn.Module, images_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
  """Shapes of all taps for a batch of images of shape (B, H, W, C): stem, block_00, …"""
  images = jax.ShapeDtypeStruct(tuple(images_shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  _, sown = jax.eval_shape(
      lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, images)
  found = {}
  for path, value in jax.tree_util.tree_leaves_with_path(sown["intermediates"]):
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    found[keys[-1].removeprefix(layers.UNPOOLED)] = value.shape
  return {name: found[name] for name in sorted(found, key=lambda n: (n != "stem", n))}


def flops_per_example(model: nn.Module, image_shape: Sequence[int]) -> int:
  """FLOPs of one image's forward pass, 2 per multiply-add, for images of shape (H, W, C).

  Counted: matrix products and convolutions, padding included, as they stand in the program
  that JAX traces. Not counted: everything elementwise (norms, activations, softmax, biases,
  weight standardisation, position embeddings) and pooling, a few per cent of a model's whole.
  A training step costs about three times as much.
  """
  if getattr(model, "attention", "matmul") != "matmul":
    model = model.clone(attention="matmul")  # a fused kernel would hide its products
  images = _images(image_shape)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return _flops(jax.make_jaxpr(model.apply)(variables, images).jaxpr)


def _images(image_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
  if len(image_shape) != 3:
    raise ValueError(f"image_shape: expected (H, W, C), got {tuple(image_shape)}")
  return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def _flops(jaxpr: core.Jaxpr) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[spec[0]]
    else:
      inner = sum(map(_flops, core.jaxprs_in_params(eqn.params)))
      total += inner * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else inner
  return total
