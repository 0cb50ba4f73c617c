"""What a step needs on each device, before there is any device: shapes and shardings alone.

The state is exact: the bytes of each array's shard. The peak of a step is an estimate, see
`liveness`; `compiled` asks the compiler itself. Against the compiler's own analysis on a CPU
(arguments and temporaries together) 58 programs came out at 0.83 to 1.13 of it: ViT, Mixer and
ResNet up to R50x1, batches of 16 to 512, both dtypes, 1 to 4 micro-batches, with `scan` and `remat`
and without, one device and eight on axes data, fsdp and tensor, AdamW, SGD and Adafactor.

On a CPU rematerialisation without `scan` saves nothing: the compiler finds the work done twice and
undoes it, and the estimate follows. Nor does it free a gradient before all are summed over devices.
For GPUs and TPUs there is no such comparison yet.
"""
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_transfer.training import liveness
from big_transfer.training import splits


class Memory(NamedTuple):
  """Bytes on one device.

  Attributes:
    parameters: as they are stored.
    optimiser: its moments and counters, and the counters of the state.
    batch: one batch as it arrives, uint8 images.
    gradients: alive at the peak, on their way to the update.
    activations: all else that is alive at the peak, gradients of a micro-batch included.
  """
  parameters: int
  optimiser: int
  batch: int
  gradients: int
  activations: int

  @property
  def state(self):
    """What stays from step to step."""
    return self.parameters + self.optimiser

  @property
  def total(self):
    """At the peak of a step."""
    return sum(self)


def shard_bytes(tree: Any, shardings: Any) -> int:
  """Bytes on one device of arrays, or shapes, that lie as `shardings` say; no device is needed."""
  return sum(math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize
             for x, at in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))


def batch_shapes(batch_size: int, image_size: int, members: int | None = None) -> dict:
  """The batch that a step takes, as shapes; `members` go in front."""
  front = () if members is None else (members,)
  return {"image": jax.ShapeDtypeStruct((*front, batch_size, image_size, image_size, 3), jnp.uint8),
          "label": jax.ShapeDtypeStruct((*front, batch_size), jnp.int32),
          "slot": jax.ShapeDtypeStruct((*front, batch_size), jnp.int32)}


def hparam_shapes(rules: int, members: int | None = None, layer_decay: bool = False) -> dict:
  """The arrays that a step takes beside state and batch, as shapes."""
  front = () if members is None else (members,)

  def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((*front, *shape), dtype)

  return {"seed": of(dtype=jnp.uint32), "label_smoothing": of(), "mixup": of(),
          "optim": {"lr": of(), "rule_lr": of(rules), "rule_wd": of(rules),
                    **({"layer_decay": of()} if layer_decay else {})}}


def of_step(step, state, shardings, batch, hparams, sizes, *, members=None, cpu=False) -> Memory:
  """What one step needs on each device.

  Args:
    step: `step(state, batch, hparams) -> (state, measures)`, pure.
    state: a TrainState of one run, as shapes.
    shardings: its shardings.
    batch: what one device gets of a batch, as shapes.
    hparams: as shapes.
    sizes: of the mesh's axes, `{axis: devices}`.
    members: how many runs one device trains at once; None for one, as it is.
    cpu: whether the peak is that of XLA on a CPU, see `liveness`.
  """
  times = 1 if members is None else members
  like = state if members is None else jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), state)
  jaxpr = jax.make_jaxpr(step)(like, batch, hparams).jaxpr
  given = [splits.of_spec(at.spec, x.shape)
           for x, at in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)]
  leaves = len(given)
  if members is not None:
    given = [(splits.NONE, *split) for split in given]
  given += [splits.whole(v.aval.shape) for v in jaxpr.invars[leaves:]]
  peak = liveness.peak(jaxpr, given, sizes, in_place=leaves, cpu=cpu)
  parameters = shard_bytes(state.params, shardings.params)
  return Memory(
      parameters=times * parameters,
      optimiser=times * (shard_bytes(state, shardings) - parameters),
      batch=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)),
      gradients=peak.kept, activations=peak.bytes - peak.kept)


class Compiled(NamedTuple):
  """The compiler's own analysis of a step, bytes on one device of this backend.

  Attributes:
    arguments: state, batch and settings.
    outputs: what isn't written over an argument.
    temporary: alive at the peak beside them.
  """
  arguments: int
  outputs: int
  temporary: int

  @property
  def total(self):
    return sum(self)


def compiled(step, *shapes) -> Compiled:
  """Compiles a jitted step for its shapes and returns what XLA says it needs; allocates nothing."""
  found = step.lower(*shapes).compile().memory_analysis()
  return Compiled(found.argument_size_in_bytes,
                  found.output_size_in_bytes - found.alias_size_in_bytes,
                  found.temp_size_in_bytes)
