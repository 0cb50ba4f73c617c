"""How many runs to train at once: as many as memory holds, if that is faster than one by one.

It is timed, since it can't be known: on an accelerator the step of a small model leaves most of the
device idle, and sixteen take little more time than one; on a CPU a step of milliseconds is mostly
the cost of starting its kernels, and one of tens of milliseconds gains nothing (measured on 2
cores: 2.0 ms a step alone and 0.35 ms a member of 16; 19 ms alone and 19 ms a member of 4).

Compiling the batched program is what the question costs. It is asked where that is at most a share
of the time to come: a fifth where batching is likely to pay, else a fiftieth; and where it was
compiled before.
"""
import contextlib
import functools
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from big_transfer.training import members as members_lib
from big_transfer.training import sharding

_LIKELY, _UNLIKELY = 0.2, 0.02  # of the time to come, for finding out
_SHORT = 8e-3  # seconds of a step on a CPU that is mostly the cost of starting its kernels
_FASTER = 1.05  # less is noise
_OF_MEMORY = 0.8  # the rest is for evaluators, and for what memory's cracks hold
_TURNS, _TURN = 3, 0.1  # how often and how many seconds each is timed, a step at least


class Choice(NamedTuple):
  """What was chosen.

  Attributes:
    members: how many runs to train at once; 1 for one after the other.
    alone: seconds a step of a run, one after the other.
    together: seconds a step of a run, in a population; None if it was not timed.
    why: in a line.
  """
  members: int
  alone: float
  together: float | None
  why: str


def choose(build, settings, data, members, *, same_data, step=0):
  """Times a population against one run after the other, and takes the faster.

  Args:
    build: `build(members) -> Program`, `program.build` with all else given.
    settings: of one of the runs.
    data: what they are trained on, an `upstream.Data`.
    members: how many there are, the most that may be trained at once.
    same_data: whether all have the same batches.
    step: where they go on from.

  Returns:
    A `Choice`. What was compiled for it is there for training.
  """
  program, steps = build(None), settings.steps(data.train_examples)
  member = members_lib.Member({}, None, settings, names=program.names, total_steps=steps)
  with contextlib.closing(members_lib.Batches([member], data, 0, (0, 1))) as batches:
    batch = next(batches)
  alone = _Timed(program, members_lib.hparams([member], 0), batch, False)
  alone.compile(program.init(np.uint32(settings.seed)))
  seconds = alone.time()
  rate = f"{1e3 * seconds:.3g} ms a step and run"
  room = min(members, _memory() // alone.bytes)
  if room < 2:
    return Choice(1, seconds, None, f"one after the other, {rate}: memory holds one only")
  to_come = members * (steps - step) * seconds
  likely = jax.default_backend() != "cpu" or seconds < _SHORT
  share = _LIKELY if likely else _UNLIKELY
  if not _compilings(build(room).step) and alone.compiling > share * to_come:
    return Choice(1, seconds, None, (
        f"one after the other, {rate}: that will take {to_come:.3g} s, of which compiling for "
        f"{room} at once, some {alone.compiling:.2g} s, is more than {share:.0%}"))
  batch = batch if same_data else jax.tree.map(lambda x: np.stack([x] * room), batch)
  together = _Timed(build(room), members_lib.hparams([member] * room, 0), batch, not same_data)
  together.compile(_copies(alone.state, together.program, room))
  of_each = seconds
  of_member = together.time() / room
  for _ in range(_TURNS - 1):  # in turns: others may be busy on the machine for a while
    of_each, of_member = (min(of_each, alone.time()), min(of_member, together.time() / room))
  together_ms, alone_ms = f"{1e3 * of_member:.3g} ms", f"{1e3 * of_each:.3g} ms"
  if of_member * _FASTER < of_each:
    return Choice(room, of_each, of_member,
                  f"{room} at once, {together_ms} a step and run: one after the other {alone_ms}")
  return Choice(1, of_each, of_member,
                f"one after the other, {alone_ms} a step and run: {room} at once {together_ms}")


class _Timed:
  """A program's step, compiled and timed.

  Attributes:
    program: whose.
    state: the one to go on with.
    compiling: seconds that compiling took.
    bytes: of a device, for state, batch and all that is in between.
  """

  def __init__(self, program, hparams, batch, stacked):
    self.program, self.state, self.compiling, self.bytes = program, None, 0.0, 0
    self._hparams, self._batch, self._stacked = hparams, batch, stacked

  def compile(self, state):
    """Compiles the step, which training then finds compiled, and takes one."""
    began, cpu = time.monotonic(), time.process_time()
    self.state = state
    memory = self.program.step.lower(state, self._put(), self._hparams).compile().memory_analysis()
    self.bytes = 1 if memory is None else (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes +
        memory.output_size_in_bytes - memory.alias_size_in_bytes)
    jax.block_until_ready(self._step())
    # Whichever is less: others on the machine stretch the one, many threads the other.
    spent = _compilings(self.program.step)
    spent.append(min(time.monotonic() - began, time.process_time() - cpu))
    self.compiling = max(spent)  # when it was there already, it took nothing

  def time(self):
    """Returns the seconds of a step, the mean over a while."""
    began, steps, before = time.monotonic(), 0, None
    while not steps or time.monotonic() - began < _TURN:
      measures = self._step()
      jax.block_until_ready(before)  # a step behind, as the loop does
      before, steps = measures, steps + 1
    jax.block_until_ready(before)
    return (time.monotonic() - began) / steps

  def _step(self):
    self.state, measures = self.program.step(self.state, self._put(), self._hparams)
    return measures

  def _put(self):
    return sharding.put_batch(self._batch, self.program.mesh, self._stacked)


@functools.lru_cache(maxsize=16)
def _compilings(step):
  """The seconds that compiling a step took, each time it was asked for in this process."""
  del step  # the cache's key
  return []


def _copies(state, program, members):
  """The state of a population of members that are all as `state`."""
  of_members = sharding.of_members(jax.tree.map(lambda like: like.sharding, program.like))
  return jax.tree.map(
      lambda x, at: jax.device_put(np.stack([np.asarray(x)] * members), at), state, of_members)


def _memory():
  """Bytes that a device has for us."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return int(_OF_MEMORY * stats["bytes_limit"])
  try:
    # Not the free pages, which are few where files were read: what Linux keeps of these it gives.
    told = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    available = int(told["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError):  # no such figure on this system
    return 2**63
  return int(_OF_MEMORY * available) // jax.local_device_count()
