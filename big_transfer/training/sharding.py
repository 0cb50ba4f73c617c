"""Where arrays live: a named mesh over all devices, and what is split over it.

Now the mesh has one axis, `data`: batches are split over it, parameters are copied.
"""
import math

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np


def make_mesh(axes=None, devices=None):
  """Builds a mesh.

  Args:
    axes: ordered `{name: size}`; one size may be -1, "what is left". Default `{"data": -1}`.
    devices: over which; default all devices of all processes.

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
  return jax.make_mesh(tuple(sizes), tuple(axes), axis_types=(AxisType.Auto,) * len(sizes),
                       devices=devices)


def replicated(mesh):
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh):
  """The sharding of arrays whose first dimension runs over examples."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch, mesh):
  """Makes global arrays, split over `data`, of the examples that this process holds."""
  sharding = batched(mesh)
  return {key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
          for key, value in batch.items()}
