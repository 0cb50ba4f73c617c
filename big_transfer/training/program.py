"""What is compiled once and serves every run that differs only in array-valued settings."""
import functools
import json
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from big_transfer import models
from big_transfer import trees
from big_transfer.data import transforms
from big_transfer.models import shapes
from big_transfer.training import objectives
from big_transfer.training import optim
from big_transfer.training import sharding
from big_transfer.training import step as step_lib


class Network(NamedTuple):
  """A model for images of one size, without parameters.

  Attributes:
    module: the Linen module.
    apply: its `apply`; the same object for equal settings, so that what is compiled for it is too.
    label: the model's name for people.
    image_shape: (H, W, 3).
    layers: the keys of its `out`.
    shapes: the parameters as shapes, a nested dict.
    parameters: their number.
    flops: forward FLOPs an example.
  """
  module: Any
  apply: Callable
  label: str
  image_shape: tuple
  layers: tuple
  shapes: dict
  parameters: int
  flops: int


class Program(NamedTuple):
  """A model, its objective and its optimiser, compiled for a mesh.

  That of a population has a leading axis M over members, "stacked" here, in all that goes in and
  out of `init` and `step`; a batch may be without, and is then every member's.

  Attributes:
    apply, label, layers, parameters, flops: of the `Network`.
    names: of all parameters.
    mesh: over which it runs.
    init: `init(seed) -> TrainState`, jitted, sharded.
    like: the TrainState of one run as shapes with shardings.
    step: `step(state, batch, hparams) -> (state, measures)`, jitted; `state` is donated.
    split: of a population, `split(state) -> [state of each member]`, each as `like` has it.
    stack: its inverse.
    loss: `loss(logits_BC, targets_BC) -> (B,)`.
  """
  apply: Callable
  label: str
  layers: tuple
  parameters: int
  flops: int
  names: list
  mesh: Any
  init: Callable
  like: Any
  step: Callable
  split: Callable
  stack: Callable
  loss: Callable


def network(*, model, classes, image_size):
  """Builds a model, or returns the one built before from equal settings.

  Args:
    model: arguments of `models.build`.
    classes: outputs of the head.
    image_size: side of the images, in pixels.
  """
  return _network(json.dumps(dict(model=model, classes=classes, image_size=image_size)))


@functools.lru_cache(maxsize=8)
def _network(text):
  settings = json.loads(text)
  variant = settings["model"].pop("variant", None)
  name = settings["model"].pop("name")
  module = models.build(name, variant, num_classes=settings["classes"], **settings["model"])
  image_shape = (settings["image_size"], settings["image_size"], 3)
  (_, out), variables = jax.eval_shape(
      module.init_with_output, jax.random.key(0),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  params = variables["params"]
  return Network(
      module=module, apply=module.apply, label=models.label(name, variant, module),
      image_shape=image_shape, layers=tuple(out), shapes=params,
      parameters=sum(math.prod(p.shape) for p in jax.tree.leaves(params)),
      flops=shapes.flops_per_example(module, image_shape))


def build(*, model, classes, image_size, optimiser, patterns, loss, augment, mixup, accumulate,
          mesh, members=None):
  """Builds a program, or returns the one built before from equal settings.

  Args:
    model: arguments of `models.build`.
    classes: outputs of the head.
    image_size: side of the images, in pixels.
    optimiser: arguments of `optim.build` other than `names`, `rules` and `lr`.
    patterns: the regexes of the optimiser's rules; their values are not part of the program.
    loss: a key of `objectives.LOSSES`.
    augment: arguments of `transforms.augment`.
    mixup: whether the step mixes examples, by `hparams["mixup"]`.
    accumulate: micro-batches a step.
    mesh: `{axis: size}`.
    members: how many runs are trained at once; None for one, as it is.
  """
  return _build(json.dumps(dict(
      model=model, classes=classes, image_size=image_size, optimiser=optimiser, patterns=patterns,
      loss=loss, augment=augment, mixup=mixup, accumulate=accumulate, mesh=mesh,
      members=members)))


@functools.lru_cache(maxsize=8)
def _build(text):
  settings = json.loads(text)
  net = network(**{key: settings[key] for key in ("model", "classes", "image_size")})
  members = settings["members"]
  mesh = sharding.make_mesh(settings["mesh"], members=members)
  names = list(trees.flatten(net.shapes))
  tx = optim.build(names, [(pattern, {}) for pattern in settings["patterns"]], lr=0.0,
                   **settings["optimiser"]).tx

  def prepare(keys_B, batch, hparams):
    images = transforms.augment(keys_B, batch["image"], **settings["augment"])
    targets = objectives.one_hot(batch["label"], settings["classes"])
    if settings["mixup"]:
      images, targets = transforms.mixup(keys_B, images, targets, hparams["mixup"])
    return {"image": images, "target": targets}

  init = step_lib.make_init(net.module, net.image_shape, tx)
  step = step_lib.make_train_step(
      net.apply, objectives.classification(settings["loss"]), tx, prepare,
      settings["accumulate"])
  everywhere = sharding.replicated(mesh)
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      jax.eval_shape(lambda p: step_lib.start(p, tx), net.shapes))
  if members is None:
    jitted = jax.jit(step, in_shardings=(everywhere, sharding.batched(mesh), everywhere),
                     out_shardings=everywhere, donate_argnums=0)
    of_state = everywhere
  else:
    of_state = sharding.of_members(mesh)
    init = jax.vmap(init)
    jitted = jax.jit(_for_members(step), out_shardings=(of_state, everywhere), donate_argnums=0)
  quick = _quick_compile()
  return Program(
      apply=net.apply,
      label=net.label,
      layers=net.layers,
      parameters=net.parameters,
      flops=net.flops,
      names=names,
      mesh=mesh,
      init=jax.jit(init, out_shardings=of_state, compiler_options=quick),
      like=like,
      step=jitted,
      split=jax.jit(_split, out_shardings=everywhere, compiler_options=quick),
      stack=jax.jit(_stack, out_shardings=of_state, compiler_options=quick),
      loss=objectives.LOSSES[settings["loss"]])


def _for_members(step):
  """The step of a population; a batch without the axis of members is every member's."""

  def step_members(state_M, batch, hparams_M):
    per_member = 0 if batch["label"].ndim == 2 else None
    return jax.vmap(step, in_axes=(0, per_member, 0))(state_M, batch, hparams_M)

  return step_members


def _split(state_M):
  members = len(state_M.step)
  return [jax.tree.map(lambda x, i=i: x[i], state_M) for i in range(members)]


def _stack(states):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _quick_compile():
  """On CPU, where compiling takes longer than one run of the code, halves the time it takes."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
