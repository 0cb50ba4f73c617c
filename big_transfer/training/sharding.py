"""Where arrays live: a named mesh over all devices, and what is split over it.

Batches are split over the axis `data`, parameters are copied, members of a population are split
over `population`.
"""
import math

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np


def make_mesh(axes=None, devices=None, members=None):
  """Builds a mesh; that of a population has an axis `population` in front.

  Args:
    axes: ordered `{name: size}`; one size may be -1, "what is left". Default `{"data": -1}`.
    devices: over which; default all devices of all processes.
    members: of a population; its axis takes as many of the devices for data as divide them.

  Raises:
    ValueError: an axis other than `data`, or sizes whose product isn't the number of devices.
  """
  axes = dict(axes or {"data": -1})
  devices = jax.devices() if devices is None else devices
  if set(axes) != {"data"}:
    raise ValueError(f"config.mesh has the axes {list(axes)}: expected 'data' alone")
  sizes = list(axes.values())
  fixed = math.prod(s for s in sizes if s != -1)
  sizes = [len(devices) // fixed if s == -1 else s for s in sizes]
  if math.prod(sizes) != len(devices):
    raise ValueError(f"config.mesh {axes} needs {math.prod(sizes)} devices, here are {len(devices)}: "
                     "use -1 for what is left")
  if members is not None:
    of_members = math.gcd(members, sizes[0])
    axes, sizes = ["population", *axes], [of_members, sizes[0] // of_members]
  return jax.make_mesh(tuple(sizes), tuple(axes), axis_types=(AxisType.Auto,) * len(sizes),
                       devices=devices)


def replicated(mesh):
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh):
  """The sharding of arrays whose first dimension runs over examples."""
  return NamedSharding(mesh, PartitionSpec("data"))


def of_members(mesh):
  """The sharding of arrays whose first dimension runs over the members of a population."""
  return NamedSharding(mesh, PartitionSpec("population"))


def put_batch(batch, mesh, members=False):
  """Makes global arrays, split over `data`, of the examples that this process holds.

  With `members` the arrays' first dimension runs over the members of a population.
  """
  sharding = (NamedSharding(mesh, PartitionSpec("population", "data")) if members
              else batched(mesh))
  return {key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
          for key, value in batch.items()}
