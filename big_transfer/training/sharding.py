"""Where arrays live: a named mesh over all devices, and what is split over it.

The mesh has up to three axes that a config names: `data` and `fsdp`, over both of which the
examples of a batch are split, and `tensor`. Parameters are copied along `data`; over `fsdp` each
device keeps a part of a parameter and gathers the rest when it is used (Rajbhandari et al. 2019,
1910.02054; Zhao et al. 2023, 2304.11277); over `tensor` the heads of the attention, the hidden
layer of an MLP and the classes are computed in parts (Shoeybi et al. 2019, 1909.08053). In front
of them lies `population` where several runs are trained at once, each on its part of the devices.

How a parameter is split is said by ordered rules `(regex, tactic)` over the parameters' names, the
first that matches the whole name wins. A tactic is

    copy                every device holds it whole
    fsdp                the largest dimension that divides is split over `fsdp`; whole where none
                        does, or where there are fewer than 65,536 elements
    fsdp(min_size=1)    the same with another least number of elements
    tensor(-1)          this dimension, counted from either end, is split over `tensor`
    fsdp(0)             this dimension over `fsdp`, of whatever size
    fsdp+tensor(-1)     both, over different dimensions

An axis that the mesh doesn't have, or of size 1, splits nothing, so the same rules serve one
device. What no rule claims is `fsdp`. Instead of rules, the word "megatron" stands for the rules of
our ViT and Mixer, see `MEGATRON`.
"""
from collections.abc import Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from big_transfer import trees

AXES = ("data", "fsdp", "tensor")
MIN_SIZE = 2**16  # elements, 256 KiB: below that, gathering costs more time than memory is won

# Column, then row: between the two no device needs another's part, after them one sum is made.
MEGATRON = (
    (r".*/MultiHeadDotProductAttention_\d+/(query|key|value)/kernel", "fsdp+tensor(1)"),
    (r".*/MultiHeadDotProductAttention_\d+/(query|key|value)/bias", "tensor(0)"),
    (r".*/MultiHeadDotProductAttention_\d+/out/kernel", "fsdp+tensor(0)"),
    (r".*/(MlpBlock_\d+|token_mixing|channel_mixing)/Dense_0/kernel", "fsdp+tensor(1)"),
    (r".*/(MlpBlock_\d+|token_mixing|channel_mixing)/Dense_0/bias", "tensor(0)"),
    (r".*/(MlpBlock_\d+|token_mixing|channel_mixing)/Dense_1/kernel", "fsdp+tensor(0)"),
    (r"head/kernel", "fsdp+tensor(1)"),
    (r"head/bias", "tensor(0)"))


def axis_sizes(axes: Mapping[str, int] | None, devices: int, members: int | None = None
               ) -> dict[str, int]:
  """Sizes of a mesh's axes.

  Args:
    axes: ordered `{name: size}` of any of AXES; one size may be -1, "what is left". None stands
      for `{"data": -1}`.
    devices: their number, all of which are used.
    members: of a population; its axis, in front, takes as many of the devices for data as divide
      them.

  Returns:
    `{name: size}` in the same order; the product is `devices`.

  Raises:
    ValueError: an unknown axis, a size that is none, or sizes whose product isn't `devices`.

  Example:
    >>> axis_sizes({"data": -1, "fsdp": 4}, 32)
    {'data': 8, 'fsdp': 4}
  """
  if axes is not None and not isinstance(axes, Mapping):
    raise ValueError(f"config.mesh is {axes!r}: expected axes and their sizes, as {{'data': -1}}")
  axes = dict(axes or {"data": -1})
  if unknown := [name for name in axes if name not in AXES]:
    raise ValueError(f"config.mesh has the axes {list(axes)}: expected any of {', '.join(AXES)}, "
                     f"not {unknown[0]!r}")
  for name, size in axes.items():
    if not isinstance(size, int) or isinstance(size, bool) or size < -1 or size == 0:
      raise ValueError(f"config.mesh.{name} is {size!r}: expected a number of devices, or -1 for "
                       "what is left")
  if list(axes.values()).count(-1) > 1:
    raise ValueError(f"config.mesh {axes} has -1 twice: expected it once, for what is left")
  fixed = math.prod(size for size in axes.values() if size != -1)
  sizes = {name: devices // fixed if size == -1 else size for name, size in axes.items()}
  if math.prod(sizes.values()) != devices:
    raise ValueError(
        f"config.mesh {axes} needs {'a multiple of ' if -1 in axes.values() else ''}{fixed} "
        f"devices, here {'is' if devices == 1 else 'are'} {devices}" +
        ("" if -1 in axes.values() else ": use -1 for what is left"))
  if members is None:
    return sizes
  of_members = math.gcd(members, sizes.get("data", 1))
  if "data" in sizes:
    sizes["data"] //= of_members
  return {"population": of_members, **sizes}


def make_mesh(axes=None, devices=None, members=None) -> Mesh:
  """Builds a mesh; arguments as of `axis_sizes`, `devices` a list, by default all of all processes.

  Raises:
    ValueError: as `axis_sizes`, or devices of several processes along an axis other than those
      over which examples are split: each process reads its own examples.
  """
  devices = jax.devices() if devices is None else devices
  sizes = axis_sizes(axes, len(devices), members)
  types = (AxisType.Auto,) * len(sizes)
  if jax.process_count() == 1:
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)
  else:
    # Process by process, so that of a batch each holds the contiguous part that it reads. Left to
    # itself JAX follows the wires of a TPU slice, on which a host's chips are a block of a torus.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.reshape(ordered, tuple(sizes.values())), tuple(sizes), axis_types=types)
  processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
  for i, name in enumerate(sizes):
    if name not in ("data", "fsdp") and (processes.min(axis=i) != processes.max(axis=i)).any():
      raise ValueError(
          f"config.mesh: axis {name!r} of size {sizes[name]} spans processes, of "
          f"{jax.local_device_count()} devices each, which read different examples: make it "
          "smaller, and the last axis")
  return mesh


def partition(shapes: dict, rules: Sequence | str, sizes: Mapping[str, int]) -> dict:
  """How parameters are split.

  Args:
    shapes: nested dict of arrays or `jax.ShapeDtypeStruct`.
    rules: ordered `(regex, tactic)`, or "megatron"; see the module.
    sizes: of the mesh's axes, as `axis_sizes` gives them.

  Returns:
    The same tree, of `PartitionSpec`.

  Raises:
    ValueError: a rule that isn't one, that claims nothing, or a dimension that isn't there or
      doesn't divide, with the parameter's name.
  """
  flat = trees.flatten(shapes)
  rules = _resolved(rules, flat, sizes)
  claimed = trees.first_match([pattern for pattern, _ in rules], list(flat), default=True)
  tactics = [parse(tactic) for _, tactic in rules]
  default = parse("fsdp")
  specs = {name: _spec(name, leaf.shape,
                       default if claimed[name] is None else tactics[claimed[name]], sizes)
           for name, leaf in flat.items()}
  return trees.unflatten(specs)


def state_partition(state: Any, rules: Sequence | str, sizes: Mapping[str, int]) -> Any:
  """How all of a TrainState is split: what belongs to a parameter lies with it.

  A moment has its parameter's name at the end of its own, and its shape. A factored moment lacks
  one dimension of it, and is split along those that are left. The rest, counters, is copied.

  Args:
    state: a TrainState, or any tree with `params`, of arrays or `jax.ShapeDtypeStruct`.
    rules, sizes: as of `partition`.

  Returns:
    The same tree, of `PartitionSpec`.

  Raises:
    ValueError: as `partition`.
  """
  params = trees.flatten(state.params)
  specs = trees.flatten(partition(state.params, rules, sizes))

  def of_leaf(path, leaf):
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    endings = ("/".join(keys[i:]) for i in range(len(keys)))
    name = next((ending for ending in endings if ending in specs), None)
    if name is None:
      return PartitionSpec()
    whole = params[name].shape
    spec = [*specs[name], *[None] * (len(whole) - len(specs[name]))]
    if leaf.shape == whole:
      return specs[name]
    # Where two dimensions are alike, as in a square kernel, a sum over rows lacks the first.
    order = range(len(whole)) if "v_col" in keys else reversed(range(len(whole)))
    for i in order:
      if leaf.shape == (*whole[:i], *whole[i + 1:]):
        return _trimmed(spec[:i] + spec[i + 1:])
    return PartitionSpec()

  return jax.tree_util.tree_map_with_path(of_leaf, state)


def check_tensor(specs, sizes: Mapping[str, int]) -> None:
  """Raises ValueError where a mesh has an axis `tensor` over which nothing is split."""
  leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
  if sizes.get("tensor", 1) > 1 and not any("tensor" in spec for spec in leaves):
    raise ValueError(
        f"config.mesh.tensor is {sizes['tensor']}, but config.sharding splits nothing over it, so "
        "that all devices along it would do the same: set config.sharding to 'megatron' or to "
        "rules with tensor(…), or take fsdp")


def summary(params) -> str:
  """A line on how parameters, arrays or shapes with shardings, are split over their mesh."""
  leaves = jax.tree.leaves(params)
  mesh = leaves[0].sharding.mesh
  split = sum(not leaf.sharding.is_fully_replicated for leaf in leaves)
  own, whole = (sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in zip(leaves, shapes))
                for shapes in ([leaf.sharding.shard_shape(leaf.shape) for leaf in leaves],
                               [leaf.shape for leaf in leaves]))
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return (f"{mesh.size} devices: {axes}; {split} of {len(leaves)} tensors are split, "
          f"{own / 2**20:.3g} of {whole / 2**20:.3g} MiB of parameters lie on each")


def replicated(mesh):
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh, members=False):
  """The sharding of arrays whose first dimension runs over examples.

  With `members` it runs over the members of a population, and the second over examples.
  """
  # In the mesh's order: a process's devices then hold neighbouring examples.
  axes = tuple(name for name in mesh.shape if name in ("data", "fsdp")) or None
  return NamedSharding(mesh, PartitionSpec(*["population"] * members, axes))


def of_tree(mesh, specs):
  """Returns a tree of `PartitionSpec` as one of `NamedSharding` on a mesh."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs,
                      is_leaf=lambda x: isinstance(x, PartitionSpec))


def of_members(shardings):
  """A tree of `NamedSharding` of one run, as that of a population: members in front."""
  return jax.tree.map(
      lambda at: NamedSharding(at.mesh, PartitionSpec("population", *at.spec)), shardings)


def gathered(at):
  """The `NamedSharding` of a parameter when it is used: whole over `fsdp`."""
  return NamedSharding(at.mesh, PartitionSpec(*[None if axis == "fsdp" else axis
                                                for axis in at.spec]))


def put_batch(batch, mesh, members=False):
  """Makes global arrays, split as `batched` says, of the examples that this process holds."""
  sharding = batched(mesh, members)
  return {key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
          for key, value in batch.items()}


def example_shards(mesh):
  """Into how many parts the examples of a batch are split over a mesh, or axes of these sizes."""
  sizes = getattr(mesh, "shape", mesh)
  return sizes.get("data", 1) * sizes.get("fsdp", 1)


def whole_batch(examples, mesh):
  """The least number of examples, no fewer than these, that splits evenly over a mesh."""
  shards = example_shards(mesh)
  return -(-examples // shards) * shards


class _Split(NamedTuple):
  """A part of a tactic; `dimension` None is the largest that divides."""
  axis: str
  dimension: int | None
  min_size: int


def parse(tactic: str) -> tuple[_Split, ...]:
  """A tactic's parts, those with a dimension first; raises ValueError where it is none."""
  splits = []
  for part in [] if tactic == "copy" else str(tactic).split("+"):
    match = re.fullmatch(r"\s*(?:(fsdp|tensor)\((-?\d+)\)|(fsdp)(?:\(min_size=(\d+)\))?)\s*", part)
    if match is None:
      raise ValueError(
          f"sharding tactic {tactic!r} is unknown: expected 'copy', 'fsdp', 'fsdp(min_size=1000)', "
          "'tensor(-1)' (columns), 'tensor(0)' (rows), or two of them joined by '+'")
    axis, dimension = match[1] or match[3], match[2]
    splits.append(_Split(axis, None if dimension is None else int(dimension),
                         MIN_SIZE if match[4] is None else int(match[4])))
  if len({split.axis for split in splits}) != len(splits):
    raise ValueError(f"sharding tactic {tactic!r} names an axis twice: expected 'fsdp' and "
                     "'tensor' once each")
  return tuple(sorted(splits, key=lambda split: split.dimension is None))


def _resolved(rules, flat, sizes):
  """The rules that a word stands for, as far as they concern these parameters."""
  if not isinstance(rules, str):
    if not isinstance(rules, Sequence):
      raise ValueError(f"config.sharding is {rules!r}: expected 'megatron' or rules (regex, tactic)")
    for rule in rules:
      if (not isinstance(rule, Sequence) or isinstance(rule, str) or len(rule) != 2
          or not isinstance(rule[0], str)):
        raise ValueError(f"config.sharding has the rule {rule!r}: expected (regex, tactic)")
    return [(pattern, tactic) for pattern, tactic in rules]
  if rules != "megatron":
    raise ValueError(f"config.sharding is {rules!r}: expected 'megatron' or rules (regex, tactic)")
  classes = flat["head/kernel"].shape[-1] if "head/kernel" in flat else 0
  found = [(pattern, tactic) for pattern, tactic in MEGATRON
           if any(re.fullmatch(pattern, name) for name in flat)
           # A number of classes is as the data has it, and the head is small.
           and not (pattern.startswith("head/") and classes % sizes.get("tensor", 1))]
  if not any(pattern.startswith(".*/") for pattern, _ in found):
    raise ValueError("config.sharding is 'megatron', rules for the blocks of a ViT or Mixer, of "
                     f"which this model has none ({', '.join(list(flat)[:3])}, …): expected rules "
                     "(regex, tactic), or () for fsdp")
  return found


def _spec(name, shape, tactic, sizes):
  """The PartitionSpec of one parameter."""
  axes = [None] * len(shape)
  for axis, dimension, min_size in tactic:
    size = sizes.get(axis, 1)
    if dimension is None:
      free = [i for i, n in enumerate(shape) if axes[i] is None and n and n % size == 0]
      if size > 1 and free and math.prod(shape) >= min_size:
        axes[max(free, key=lambda i: shape[i])] = axis
      continue
    if not -len(shape) <= dimension < len(shape):
      raise ValueError(f"config.sharding: {axis}({dimension}) of {name} {shape}, which has "
                       f"{len(shape)} dimensions")
    if axes[dimension] is not None:
      raise ValueError(f"config.sharding: dimension {dimension} of {name} {shape} is to be split "
                       f"over {axes[dimension]} and {axis}: expected one")
    if shape[dimension] % size:
      raise ValueError(
          f"config.sharding: dimension {dimension} of {name} {shape} doesn't divide by {size}, the "
          f"size of the mesh's axis {axis!r}: choose another size, or another tactic for it")
    axes[dimension] = axis if size > 1 else None
  return _trimmed(axes)


def _trimmed(axes):
  while axes and axes[-1] is None:
    axes = axes[:-1]
  return PartitionSpec(*axes)
