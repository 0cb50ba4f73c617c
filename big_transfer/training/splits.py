"""How a mesh's axes split the arrays inside a program, carried along from its inputs.

A split is a tuple with a frozenset of axis names for each dimension. A compiler decides the same by
search over the whole program (Xu et al. 2021, 2105.04663); here it is carried forward alone, which
is enough where a program has its parameters constrained, as ours have.
"""
import math

import numpy as np

NONE = frozenset()
GATHERED = "fsdp"  # the axis along which parameters are gathered before they are used


def whole(shape):
  """The split of an array that nothing splits."""
  return (NONE,) * len(shape)


def of_spec(spec, shape):
  """The split that a `PartitionSpec` says."""
  axes = [NONE if entry is None else frozenset([entry] if isinstance(entry, str) else entry)
          for entry in spec]
  return tuple(axes + [NONE] * (len(shape) - len(axes)))


def bytes_of(shape, itemsize, split, sizes):
  """Bytes on one device; `sizes` of the axes. What doesn't divide is rounded up."""
  return itemsize * math.prod(
      math.ceil(n / math.prod(sizes[axis] for axis in axes)) for n, axes in zip(shape, split))


def without(split, axis):
  """The split with one axis gathered."""
  return tuple(axes - {axis} for axes in split)


def union(splits):
  """The split of an elementwise result of arrays of one shape: an axis is used once."""
  found, used = [], set()
  for axes in zip(*splits):
    here = frozenset().union(*axes) - used
    used |= here
    found.append(here)
  return tuple(found)


def propagate(name, params, splits, shapes, out_shapes, sizes):
  """The splits of an operation's results.

  Args:
    name: of the primitive.
    params: its parameters.
    splits, shapes: of its operands.
    out_shapes: of its results.
    sizes: of the axes.
  """
  if name in ("sharding_constraint", "resharded"):
    return [of_spec(params["sharding"].spec, out_shapes[0])]
  if not any(any(split) for split in splits):
    return [whole(shape) for shape in out_shapes]
  if name == "unstack":
    gone = params["axis"] % len(shapes[0])
    return [tuple(a for i, a in enumerate(splits[0]) if i != gone)] * len(out_shapes)
  if name in _RULES:
    return [_RULES[name](params, splits, shapes, out_shapes[0], sizes)]
  if name.startswith(("reduce_", "arg")) and "axes" in params:
    kept = tuple(axes for i, axes in enumerate(splits[0]) if i not in params["axes"])
    return [kept] * len(out_shapes)
  return [_alike(splits, shapes, shape) for shape in out_shapes]


def _alike(splits, shapes, out):
  """Dimensions that are as long as the operand's keep its split; the others are whole."""
  found = [tuple(axes if n == m else NONE for axes, n, m in zip(split, shape, out))
           for split, shape in zip(splits, shapes) if len(shape) == len(out)]
  return union(found) if found else whole(out)


def _dot(params, splits, shapes, out, sizes):
  del out, sizes
  contract, batch = params["dimension_numbers"]
  left, right = (without(split, GATHERED) for split in splits)
  free = [[axes for i, axes in enumerate(split) if i not in (*contract[k], *batch[k])]
          for k, split in enumerate((left, right))]
  both = [left[i] | right[j] for i, j in zip(*batch)]
  return union([(*both, *free[0], *free[1])])


def _reshape(params, splits, shapes, out, sizes):
  """An axis goes to the dimension that holds the most significant part of the one it splits."""
  del params
  found = [set() for _ in out]
  after = np.cumprod([1, *out[::-1]])[::-1]  # elements after and with each dimension
  before = np.cumprod([1, *shapes[0][::-1]])[::-1]
  for i, axes in enumerate(splits[0]):
    for axis in axes:
      for j, n in enumerate(out):
        if after[j + 1] < before[i] <= after[j] and n % sizes[axis] == 0:
          found[j].add(axis)
          break
  return tuple(map(frozenset, found))


def _transpose(params, splits, shapes, out, sizes):
  del shapes, out, sizes
  return tuple(splits[0][i] for i in params["permutation"])


def _broadcast(params, splits, shapes, out, sizes):
  """What is repeated, along any dimension, is gathered first: its other user is every example."""
  del sizes
  found = list(whole(out))
  for i, j in enumerate(params["broadcast_dimensions"]):
    found[j] = splits[0][i] if shapes[0][i] == out[j] else NONE
  return tuple(found) if math.prod(shapes[0]) == math.prod(out) else without(found, GATHERED)


def _squeeze(params, splits, shapes, out, sizes):
  del out, sizes
  gone = {i % len(shapes[0]) for i in params["dimensions"]}
  return tuple(axes for i, axes in enumerate(splits[0]) if i not in gone)


def _concatenate(params, splits, shapes, out, sizes):
  del shapes, out, sizes
  joined = union(splits)
  return tuple(NONE if i == params["dimension"] else axes for i, axes in enumerate(joined))


def _stack(params, splits, shapes, out, sizes):
  del shapes, out, sizes
  joined = union(splits)
  return (*joined[:params["axis"]], NONE, *joined[params["axis"]:])


_RULES = {"dot_general": _dot, "reshape": _reshape, "transpose": _transpose,
          "broadcast_in_dim": _broadcast, "squeeze": _squeeze, "concatenate": _concatenate,
          "stack": _stack}
