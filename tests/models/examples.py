"""Small models of each family with random parameters, under our names: what is converted."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import models
from big_transfer import trees

MODELS = {
    "tok": ("vit", dict(width=32, depth=2, heads=4, mlp_dim=48, patch=8)),
    "gap": ("vit", dict(width=32, depth=2, heads=2, mlp_dim=48, patch=8, pool="gap",
                        representation_size=24)),
    "mixer": ("mixer", dict(width=32, depth=2, tokens_mlp_dim=8, channels_mlp_dim=48, patch=8)),
    "resnet": ("resnet", dict(depths=(2, 1), width=0.5))}


def build(kind, **overrides):
  name, arguments = MODELS[kind]
  return models.build(name, **{"num_classes": 5, **arguments, **overrides})


def like(model, size=32, across=None):
  """The shapes of a model's parameters, for images of size × across pixels."""
  images = jax.ShapeDtypeStruct((1, size, across or size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@functools.lru_cache
def params(kind, size=32):
  """Random ones, so that no two arrays are alike (biases would all start at 0)."""
  rng = np.random.default_rng(0)
  return trees.map_named(
      lambda name, leaf: rng.normal(name.endswith("scale"), 0.3, leaf.shape).astype(np.float32),
      like(build(kind), size))


def images(size=32):
  return np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
