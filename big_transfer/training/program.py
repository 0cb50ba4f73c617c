"""What is compiled once and serves every run that differs only in array-valued settings.

Precision. Parameters are float32 masters, and so are moments (but those that `optim.build` is told
to keep in bfloat16), the head, the loss, the probes' features and the sum of micro-batches'
gradients. With `model.dtype="bfloat16"` each kernel is rounded where it is used, activations and
their gradients are bfloat16, matrix products accumulate in float32 and are rounded once; a kernel's
gradient is rounded to bfloat16 once a micro-batch, as is, on a mesh, each device's part of its sum
over devices. Updates far below a parameter's bfloat16 resolution therefore add up.
"""
import functools
import json
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from big_transfer import models
from big_transfer import trees
from big_transfer.data import transforms
from big_transfer.models import parts as parts_lib
from big_transfer.models import shapes
from big_transfer.runs import configuring
from big_transfer.training import objectives
from big_transfer.training import optim
from big_transfer.training import settings as settings_lib
from big_transfer.training import sharding as sharding_lib
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
    start: `start(params) -> TrainState` of one run before its first step, jitted; sharded as
      `like`; `params` are donated.
    like: the TrainState of one run as shapes with shardings, those of `sharding.state_partition`.
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
  start: Callable
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


def arguments(settings):
  """The arguments of `build` that settings say, all but `classes` and `members`.

  Raises:
    ConfigError: an unknown key in one of the sections.
  """
  optimiser = {k: v for k, v in settings.optim.items() if k != "schedule"}
  configuring.check(optim.build, optimiser, "optim", given=("names",))
  settings_lib.check_model(settings)
  optimiser = {k: 1.0 if k == "layer_decay" else v for k, v in optimiser.items()
               if k not in ("lr", "rules") and (k, v) != ("layer_decay", None)}
  rules = optim.read_rules(settings.optim["rules"])
  augment = configuring.build(settings_lib.Augment, settings.augment, "augment")
  return dict(
      model=settings.model, image_size=settings.image_size, optimiser=optimiser,
      patterns=[pattern for pattern, _ in rules],
      frozen=[i for i, (_, rule) in enumerate(rules) if rule.get("frozen")], loss=settings.loss,
      augment=dict(crop_padding=augment.crop_padding, flip=augment.flip),
      mixup=augment.mixup is not None, accumulate=settings.accumulate,
      mesh=settings.mesh, sharding=settings.sharding)


def build(*, model, classes, image_size, optimiser, patterns, loss, augment, mixup, accumulate,
          mesh, sharding=(), members=None, frozen=()):
  """Builds a program, or returns the one built before from equal settings.

  Args:
    model: arguments of `models.build`.
    classes: outputs of the head.
    image_size: side of the images, in pixels.
    optimiser: arguments of `optim.build` other than `names`, `rules` and `lr`; whether there is a
      `layer_decay` counts, its value doesn't.
    patterns: the regexes of the optimiser's rules; their values are not part of the program.
    frozen: of which rules the parameters aren't trained, indices into `patterns`.
    loss: a key of `objectives.LOSSES`.
    augment: arguments of `transforms.augment`.
    mixup: whether the step mixes examples, by `hparams["mixup"]`.
    accumulate: micro-batches a step.
    mesh: `{axis: size}`, see `sharding.axis_sizes`.
    sharding: rules by which parameters are split over it, see `sharding.partition`.
    members: how many runs are trained at once; None for one, as it is.
  """
  return _build(json.dumps(dict(
      model=model, classes=classes, image_size=image_size, optimiser=optimiser, patterns=patterns,
      loss=loss, augment=augment, mixup=mixup, accumulate=accumulate, mesh=mesh,
      sharding=sharding, members=members, frozen=frozen)))


@functools.lru_cache(maxsize=8)
def _build(text):
  settings = json.loads(text)
  net = network(**{key: settings[key] for key in ("model", "classes", "image_size")})
  members = settings["members"]
  mesh = sharding_lib.make_mesh(settings["mesh"], members=members)
  parts = _pure(net, settings, mesh)
  init, step, of_run, abstract = parts.init, parts.step, parts.of_run, parts.like
  everywhere = sharding_lib.replicated(mesh)
  if members is None:
    of_state = of_run
    jitted = jax.jit(step, in_shardings=(of_state, sharding_lib.batched(mesh), everywhere),
                     out_shardings=(of_state, everywhere), donate_argnums=0)
  else:
    of_state = sharding_lib.of_members(of_run)
    init = jax.vmap(init)
    jitted = jax.jit(for_members(step), out_shardings=(of_state, everywhere), donate_argnums=0)
  quick = _quick_compile()
  return Program(
      apply=net.apply,
      label=net.label,
      layers=net.layers,
      parameters=net.parameters,
      flops=net.flops,
      names=list(trees.flatten(net.shapes)),
      mesh=mesh,
      init=jax.jit(init, out_shardings=of_state, compiler_options=quick),
      start=jax.jit(parts.start, out_shardings=of_run, donate_argnums=0, compiler_options=quick),
      like=jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                        abstract, of_run),
      step=jitted,
      split=jax.jit(_split, out_shardings=[of_run] * (members or 0), compiler_options=quick),
      stack=jax.jit(_stack, out_shardings=of_state, compiler_options=quick),
      loss=objectives.LOSSES[settings["loss"]])


class Pure(NamedTuple):
  """A program before it is compiled.

  Attributes:
    network: of the model.
    init: `init(seed) -> TrainState`.
    start: `start(params) -> TrainState` before the first step.
    step: `step(state, batch, hparams) -> (state, measures)`.
    like: the TrainState as shapes.
    of_run: its shardings.
  """
  network: Network
  init: Callable
  start: Callable
  step: Callable
  like: Any
  of_run: Any


def pure(mesh, *, model, classes, image_size, **settings):
  """What `build` compiles, for a mesh that needs no devices (`jax.sharding.AbstractMesh`).

  The other arguments are those of `build`, without `mesh` and `members`.
  """
  net = network(model=model, classes=classes, image_size=image_size)
  return _pure(net, {"classes": classes, **json.loads(json.dumps(settings))}, mesh)


def _pure(net, settings, mesh):
  names = list(trees.flatten(net.shapes))
  rules = [(pattern, {"frozen": i in settings.get("frozen", ())})
           for i, pattern in enumerate(settings["patterns"])]
  optimiser = optim.build(names, rules, lr=0.0, **settings["optimiser"])
  tx, frozen = optimiser.tx, optimiser.frozen

  def prepare(keys_B, batch, hparams):
    images = transforms.augment(keys_B, batch["image"], **settings["augment"])
    targets = objectives.one_hot(batch["label"], settings["classes"])
    if settings["mixup"]:
      images, targets = transforms.mixup(keys_B, images, targets, hparams["mixup"])
    return {"image": images, "target": targets}

  def start(params):
    return step_lib.start(params, tx, frozen)

  abstract = jax.eval_shape(start, net.shapes)
  specs = sharding_lib.state_partition(abstract, settings["sharding"], mesh.shape)
  sharding_lib.check_tensor(specs, mesh.shape)
  of_run = sharding_lib.of_tree(mesh, specs)
  init = step_lib.make_init(net.module, net.image_shape, tx, frozen)
  step = step_lib.make_train_step(
      _with_sharding(net.apply, of_run.params), objectives.classification(settings["loss"]), tx,
      prepare, settings["accumulate"], frozen)
  return Pure(net, init, start, step, abstract, of_run)


def _with_sharding(apply, of_params):
  """`apply` that tells the compiler where parameters and their gradients lie, kept and used.

  What is split over `fsdp` is gathered, a block's parameters when the block runs, and its gradient
  is summed into parts at once. Left to itself the compiler may as well split and sum activations.
  """
  kept = trees.flatten(of_params)
  if all(at.is_fully_replicated for at in kept.values()):
    return apply
  used = {name: sharding_lib.gathered(at) for name, at in kept.items()}
  layers = parts_lib.parts(kept)
  outside = [name for name, part in layers.items() if not part.layer.startswith("block_")]

  def place(path, params):
    return trees.map_named(
        lambda name, leaf: _moved(leaf, used[f"{path}/{name}"], kept[f"{path}/{name}"]), params)

  def constrained(variables, *args, **kwargs):
    flat = trees.flatten(variables["params"])
    flat |= {name: _moved(flat[name], used[name], kept[name]) for name in outside}
    return apply({**variables, "params": trees.unflatten(flat)}, *args, place=place, **kwargs)

  return constrained


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(leaf, used, kept):
  """The parameter with the sharding `used`; its gradient is given the sharding `kept`."""
  del kept
  return jax.lax.with_sharding_constraint(leaf, used)


_moved.defvjp(lambda leaf, used, kept: (_moved(leaf, used, kept), None),
              lambda used, kept, _, g: (jax.lax.with_sharding_constraint(g, kept),))


def for_members(step):
  """The step of a population; a batch without the axis of members is every member's."""

  def step_members(state_M, batch, hparams_M):
    per_member = 0 if batch["label"].ndim == 2 else None
    return jax.vmap(step, in_axes=(0, per_member, 0), spmd_axis_name="population")(
        state_M, batch, hparams_M)

  return step_members


def _split(state_M):
  members = len(state_M.step)
  return [jax.tree.map(lambda x, i=i: x[i], state_M) for i in range(members)]


def _stack(states):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _quick_compile():
  """On CPU, where compiling takes longer than one run of the code, halves the time it takes."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
