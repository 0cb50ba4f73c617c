"""How much memory a traced program needs at once, from its jaxpr alone: nothing is compiled.

A compiler merges chains of elementwise operations into what reads them, so most values of a jaxpr
never exist. Those that do are counted here:

- results of matrix products, convolutions, sums, sorts, random bits and loops;
- what one of these reads, but for a reshape of what exists already;
- results of exp, tanh, division and the like that are read more than once: these are not computed
  twice, anything cheaper is;
- outputs, where they can't take the place of an input that is given away.

Each is alive from the operation that makes it to the last one that reads it, through whatever was
merged. The order is that of the trace and buffers are packed without gaps: both are the compiler's
to do better or worse. Operations that are equal are one, but not across the border of what is
rematerialised.

XLA on CPUs differs, and `cpu` follows it; each of these is seen in its dumps. It computes bfloat16
in float32. A sum of products is a matrix product of two arrays that exist, unless one is the same
along all that is summed. Rematerialised operations are found equal to the first ones, unless a loop
stands between. An array that exists for some of its readers is computed again in those it can be
merged into (`_computed_again`), so that what it was made of lives on: a residual sum, its addends.
Gradients are summed over devices late, and within a loop all at once (`_sum_late`).
"""
import collections
import dataclasses
from typing import Any, NamedTuple

from jax.extend import core

from big_transfer.training import splits

# Elementwise operations that are done once rather than wherever they are read.
_EXPENSIVE = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma div erf erf_inv erfc exp exp2 "
    "expm1 lgamma log log1p logistic pow rem rsqrt sin sinh sqrt tan tanh".split())
_CONTRACTIONS = frozenset(("dot_general", "conv_general_dilated"))
_LOOPS = frozenset(("scan", "while", "cond"))
# Operations that stand alone: what they read and what they return exists.
_ALONE = _CONTRACTIONS | _LOOPS | frozenset(
    "cholesky cumlogsumexp cummax cummin cumprod cumsum custom_call eigh ffi_call fft gathered "
    "resharded random_bits random_fold_in random_seed random_split random_unwrap random_wrap "
    "reduce_precision reduce_window reduce_window_max reduce_window_sum scatter scatter-add "
    "scatter_add select_and_gather_add select_and_scatter_add sort threefry2x32 top_k "
    "triangular_solve".split())
_SUMS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split())
_VIEWS = frozenset(
    "copy copy_p expand_dims optimization_barrier reshape reshard squeeze stop_gradient".split())
_MOVES = frozenset(("convert_element_type", "slice", "transpose", "unstack"))
_MERGED_INTO_SUMS = frozenset(("abs", "convert_element_type", "integer_pow", "neg", "square"))
_BROADCASTING = frozenset(
    "add add_any and div eq ge gt le lt max min mul ne or pow select_n sub".split())
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Peak(NamedTuple):
  """The most that a program holds at once beside its inputs, bytes on one device.

  Attributes:
    bytes: all of it.
    kept: the part that is read after the last matrix product: gradients on their way to the update.
  """
  bytes: int
  kept: int


@dataclasses.dataclass(eq=False)
class _Value:
  """An array: what makes it, and, once known, whether it exists and what reads it last."""
  shape: tuple
  itemsize: int
  split: tuple
  maker: Any = None
  given: bool = False
  output: bool = False
  turned: bool = False  # in another order in memory, since gathered along an inner dimension
  exists: bool = False
  readers: list = dataclasses.field(default_factory=list)
  roots: tuple = ()  # up to two operations that exist and read it, perhaps through merged ones
  wanted: bool = False  # by an operation that reads what exists, perhaps through a view
  last: int = -1  # where the array is read last
  again: int = -1  # where it is computed again last, from what it was made of


@dataclasses.dataclass(eq=False)
class _Operation:
  name: str
  params: dict
  ins: list
  outs: list
  scope: int
  inner: Peak = Peak(0, 0)


class _Trace:
  """A jaxpr as one list of operations, calls inlined, with the splits of all values."""

  def __init__(self, sizes, cpu):
    self.sizes, self.cpu = sizes, cpu
    self.operations = []
    self._equal = {}

  def value(self, aval, split=None, **more):
    shape = tuple(getattr(aval, "shape", ()))
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 8)
    if self.cpu and str(getattr(aval, "dtype", "")) in ("bfloat16", "float16"):
      itemsize = 4
    return _Value(shape, itemsize, splits.whole(shape) if split is None else split, **more)

  def bytes(self, value):
    return splits.bytes_of(value.shape, value.itemsize, value.split, self.sizes)

  def inline(self, jaxpr, inputs, scope=0):
    """Adds the operations of a jaxpr and returns its outputs."""
    env = dict(zip(jaxpr.invars, inputs))
    env.update((var, self.value(var.aval, given=True)) for var in jaxpr.constvars)
    for eqn in jaxpr.eqns:
      ins = [self._literal(a) if isinstance(a, core.Literal) else env[a] for a in eqn.invars]
      inner = None if eqn.primitive.name in _LOOPS else next(
          (eqn.params[key] for key in _INNER if key in eqn.params), None)
      if inner is None:
        outs = self._add(eqn.primitive.name, eqn.params, ins, [v.aval for v in eqn.outvars], scope)
      else:
        inside = scope
        if eqn.params.get("differentiated") and not self.cpu:  # what is rematerialised
          inside = len(self.operations) + 1
          ins = [self._one("optimization_barrier", {}, i, i.shape, inside) for i in ins]
        outs = self.inline(getattr(inner, "jaxpr", inner), ins, inside)
      env.update(zip(eqn.outvars, outs))
    return [self._literal(v) if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]

  def _literal(self, literal):
    key = ("literal", repr(literal.val), repr(literal.aval))
    if key not in self._equal:
      self._equal[key] = self.value(literal.aval, given=True)
    return self._equal[key]

  def _add(self, name, params, ins, avals, scope):
    if name in _LOOPS:
      return self._add_loop(name, params, ins, avals, scope)
    if name == "sharding_constraint":
      [split] = splits.propagate(name, params, [ins[0].split], [ins[0].shape], [ins[0].shape], {})
      if split == ins[0].split:
        return ins
      name = "resharded"  # a gradient, each device's share of which is summed at once
    if name in _BROADCASTING:
      ins = [self._one("broadcast_in_dim", {"broadcast_dimensions": range(len(i.shape))}, i,
                       avals[0].shape, scope) if i.shape and i.shape != avals[0].shape else i
             for i in ins]
    if name in _CONTRACTIONS:
      ins = [self._one("gathered", {}, i, i.shape, scope)
             if any(splits.GATHERED in axes for axes in i.split) else i for i in ins]
    # Values are told apart by identity: equal operations on the same ones are one.
    key = (name, scope, tuple(map(id, ins)), repr(params), repr(avals))
    if key in self._equal:
      return self._equal[key].outs
    found = splits.propagate(name, params, [i.split for i in ins], [i.shape for i in ins],
                             [getattr(a, "shape", ()) for a in avals], self.sizes)
    operation = _Operation(name, params, ins, [], scope)
    turned = any(i.turned for i in ins) if name not in _ALONE | _SUMS else name == "resharded" and (
        any(axes - found[0][d] for d, axes in enumerate(ins[0].split) if d))
    operation.outs = [self.value(a, s, maker=operation, turned=turned and len(s) > 1)
                      for a, s in zip(avals, found)]
    self._equal[key] = operation
    self.operations.append(operation)
    return operation.outs

  def _one(self, name, params, value, shape, scope):
    """One of the operations that stand in no jaxpr."""
    key = (name, scope, id(value), shape)
    if key not in self._equal or name == "gathered":  # which is done anew for each use
      split = value.split
      if name == "gathered":
        split = splits.without(split, splits.GATHERED)
      elif name == "broadcast_in_dim":
        [split] = splits.propagate(name, params, [split], [value.shape], [shape], self.sizes)
      operation = _Operation(name, params, [value], [], scope)
      operation.outs = [_Value(shape, value.itemsize, split, maker=operation)]
      self._equal[key] = operation
      self.operations.append(operation)
    return self._equal[key].outs[0]

  def _add_loop(self, name, params, ins, avals, scope):
    operation = _Operation(name, params, ins, [], scope)
    self.operations.append(operation)
    found = [splits.whole(getattr(a, "shape", ())) for a in avals]
    if name == "scan":
      operation.inner, found = self._scan(params, ins)
    elif name == "while":
      jaxpr = params["body_jaxpr"].jaxpr
      operation.inner = _analyse(jaxpr, [splits.whole(v.aval.shape) for v in jaxpr.invars],
                                 self.sizes, self.cpu)[0]
    else:
      branches = [_analyse(b.jaxpr, [i.split for i in ins[1:]], self.sizes, self.cpu)[0]
                  for b in params["branches"]]
      operation.inner = max(branches, key=lambda peak: peak.bytes)
    operation.outs = [self.value(a, s, maker=operation) for a, s in zip(avals, found)]
    return operation.outs

  def _scan(self, params, ins):
    """The peak within an iteration, and the splits of what the loop carries and stacks."""
    consts, carries = params["num_consts"], params["num_carry"]
    given = [i.split for i in ins]
    given = given[:consts + carries] + [split[1:] for split in given[consts + carries:]]
    while True:  # until what is carried comes out as it went in
      peak, outs = _analyse(params["jaxpr"].jaxpr, given, self.sizes, self.cpu, in_place=carries)
      carried = [splits.union(pair) for pair in zip(given[consts:consts + carries], outs)]
      if carried == given[consts:consts + carries]:
        break
      given[consts:consts + carries] = carried
    for value, split in zip(ins[consts:], carried):
      if not value.given:
        value.split = split  # made where it will be used
    return peak, carried + [(splits.NONE, *split) for split in outs[carries:]]


def peak(jaxpr, given, sizes, *, in_place, cpu=False):
  """The most that a program holds at once beside its inputs.

  Args:
    jaxpr: as `jax.make_jaxpr` gives it, `.jaxpr`.
    given: the splits of its inputs, see `splits`.
    sizes: of the axes they name, `{axis: devices}`.
    in_place: how many of the first outputs are written over inputs that are given away.
    cpu: whether as XLA does it on a CPU.

  Returns:
    `Peak`.
  """
  return _analyse(jaxpr, given, sizes, cpu, in_place, nested=False)[0]


def _analyse(jaxpr, given, sizes, cpu, in_place=0, nested=True):
  """Returns the `Peak` and the splits of the outputs."""
  trace = _Trace(sizes, cpu)
  inputs = [trace.value(v.aval, split, given=True) for v, split in zip(jaxpr.invars, given)]
  outputs = trace.inline(jaxpr, inputs)
  operations = _needed(trace.operations, outputs)
  if not cpu:
    operations = _reshard_early(operations)
  for operation in operations:
    for value in operation.ins:
      value.readers.append(operation)
  _decide(operations, outputs, trace, nested)
  return (_most(operations, set(map(_source, outputs[:in_place])), trace),
          [value.split for value in outputs])


def _needed(operations, outputs):
  needed, kept = set(map(id, outputs)), []
  for operation in reversed(operations):
    if any(id(out) in needed for out in operation.outs):
      kept.append(operation)
      needed.update(map(id, operation.ins))
  return kept[::-1]


def _reshard_early(operations):
  """Sums over devices stand last in a trace; a compiler does them as soon as a gradient is there.

  Where a loop stacks gradients, it does them within the loop.
  """
  after, moved = collections.defaultdict(list), set()
  for operation in operations:
    if operation.name == "resharded":
      chain, value = [operation], operation.ins[0]
      while value.maker is not None and value.maker.name in _VIEWS | _MOVES:
        chain.append(value.maker)
        value = value.maker.ins[0]
      split = operation.outs[0].split
      if value.maker is not None and value.maker.name == "scan":
        if len(value.shape) == len(split) + 1:
          value.split = (splits.NONE, *split)
      elif value.maker is not None:
        after[value.maker] += [op for op in reversed(chain) if op not in moved]
        moved.update(chain)
  return [op for first in operations if first not in moved for op in (first, *after[first])]


def _source(value):
  """The value that a view is of."""
  while value.maker is not None and value.maker.name in _VIEWS:
    value = value.maker.ins[0]
  return value


def _demand(value):
  value.wanted = True
  while value.maker is not None and value.maker.name in _VIEWS:
    value = value.maker.ins[0]
    value.wanted = True
  value.exists = not value.given


def _demand_of_sum(operation, value, trace):
  """A sum does some of what comes before it by itself."""
  axes, value.wanted = operation.params.get("axes", ()), True
  while value.maker is not None and value.maker.name in _MERGED_INTO_SUMS | _VIEWS:
    if value.maker.name in _VIEWS:
      axes = ()
    value = value.maker.ins[0]
    value.wanted = True
  product = trace.cpu and value.maker is not None and value.maker.name == "mul" and value.shape
  apart = product and not any(v.turned or _repeated(v, axes) for v in value.maker.ins)
  for needed in value.maker.ins if apart else [value]:
    _demand(needed)


def _repeated(value, axes):
  """Whether an array is the same all along the axes."""
  if value.maker is None or value.maker.name != "broadcast_in_dim":
    return not value.shape
  [source] = value.maker.ins
  varied = {j for i, j in enumerate(value.maker.params["broadcast_dimensions"])
            if source.shape[i] > 1}
  return bool(axes) and not varied.intersection(axes)


def _decide(operations, outputs, trace, nested):
  """Decides which values exist and how long they live."""
  for value in outputs:
    _demand(value)
    value.last, value.roots, value.output = len(operations), (-1,), True
  for operation in operations:
    alone, total = operation.name in _ALONE, operation.name in _SUMS
    for value in operation.ins:
      if alone:
        _demand(value)
      elif total:
        _demand_of_sum(operation, value, trace)
    if alone or total:
      for value in operation.outs:
        value.exists = True
  position = {id(operation): i for i, operation in enumerate(operations)}
  if trace.cpu:
    _sum_late(operations, position, trace, nested)
  for operation in reversed(operations):
    for value in operation.outs:
      roots, last, again = list(value.roots), value.last, -1
      for reader in value.readers:
        out = reader.outs[0]
        if reader.name in _VIEWS or not out.exists:
          found = out.roots
          if out.wanted:
            last, again = max(last, out.last), max(again, out.again)
          else:
            again = max(again, out.last, out.again)
        else:
          found = (position[id(reader)],)
          if reader.name in _ALONE | _SUMS:
            last = max(last, *found)
          else:
            again = max(again, *found, out.again)
        roots += [root for root in found if root not in roots]
      value.roots = tuple(roots[:2])
      if operation.name in _EXPENSIVE and len(roots) > 1:
        value.exists = True
      if operation.name not in _VIEWS and not (trace.cpu and _computed_again(value)):
        last, again = max(last, again), -1
      value.last, value.again = last, again


def _sum_late(operations, position, trace, nested):
  """XLA on a CPU joins the sums over devices of gradients that don't wait for each other.

  In a loop that is all of them, and one operation that doesn't write over what it reads. Outside
  the norms of gradients stand between; but gradients wait there as well.
  """
  sums = [op for op in operations if op.name == "resharded" and any(
      after - before for before, after in zip(op.ins[0].split, op.outs[0].split))]
  for operation in sums:  # a parameter is gathered instead, so that it is split less afterwards
    position[id(operation)] = position[id(sums[-1])]
    value, split = operation.ins[0], splits.without(operation.outs[0].split, splits.GATHERED)
    while True:  # what made the gradient made it in these parts
      value.split = split
      if value.maker is None or value.maker.name not in ("reshape", "transpose"):
        break
      source = value.maker.ins[0]
      if value.maker.name == "transpose":
        order = value.maker.params["permutation"]
        split = tuple(split[order.index(i)] for i in range(len(order)))
      else:
        [split] = splits.propagate("reshape", {}, [split], [value.shape], [source.shape],
                                   trace.sizes)
      value = source
  if nested and sums:
    sums[-1].inner = Peak(sum(trace.bytes(op.ins[0]) for op in sums), 0)


def _computed_again(value):
  """Whether XLA on a CPU computes an array that exists again in all that it can be merged into.

  That is where it is cheap, and every operation that reads it can have it merged (to which a
  reshape counts, whatever reads that), or it reads one array alone (`InstructionFusion` in XLA).
  """
  name, source = value.maker.name, value.maker.ins[0] if value.maker.ins else value
  if not value.exists or name in _ALONE | _SUMS | _EXPENSIVE:
    return False
  if name == "transpose" and source.maker is not None and source.maker.name in _CONTRACTIONS:
    return False  # the product is computed transposed
  arrays = [v for v in value.maker.ins if v.shape and v.maker is not None
            and v.maker.name != "broadcast_in_dim"]
  return len(arrays) < 2 or not (
      value.output or any(r.name in _ALONE | _SUMS for r in value.readers))


def _most(operations, in_place, trace):
  """Walks through the program and returns the `Peak`."""
  made = [[v for v in op.outs if v.exists and op.name not in _VIEWS and v not in in_place]
          for op in operations]
  dying = collections.defaultdict(list)
  for i, values in enumerate(made):
    for value in values:
      dying[max(value.last, i)].append(value)
  update = max((i for i, op in enumerate(operations)
                if op.name in _CONTRACTIONS | _LOOPS), default=-1)
  live = kept = 0
  best = Peak(0, 0)
  for i, operation in enumerate(operations):
    sizes = [trace.bytes(value) for value in made[i]]
    free = [trace.bytes(value) for value in dying[i] if value not in made[i]]
    if operation.name == "scan":  # what it carries stays where it is
      first, carries = operation.params["num_consts"], operation.params["num_carry"]
      carried = set(map(_source, operation.ins[first:first + carries]))
      over = sum(trace.bytes(value) for value in dying[i] if value in carried)
    else:  # an elementwise operation writes over what it is the last to read
      elementwise = sizes and operation.name not in _ALONE | _SUMS
      over = sizes[0] if elementwise and sizes[0] in free else 0
    live += sum(sizes)
    kept += sum(size for value, size in zip(made[i], sizes) if value.last > update)
    total = live - over + operation.inner.bytes
    if total > best.bytes:
      best = Peak(total, min(kept, total))
    for value in dying[i]:
      live -= trace.bytes(value)
      kept -= trace.bytes(value) if value.last > update else 0
  return best
