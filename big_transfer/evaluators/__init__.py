"""Evaluators: what is measured of a model as it trains, one row a measured value.

An evaluator has `rows(params)`, an iterator of dicts with the columns of a record (see
`runs/records.py`; absent keys are null), and is built by `build` from a section of the config:

    config.evals.probes = dict(kind="fewshot", every=500, tasks=("digits",), shots=(1, 5))

`kind` names the class, `every` the steps between evaluations (it always runs after the last step;
`first=True` adds step 0), and the rest are its keyword arguments. On a command line a section is
added whole: '--config.evals.geometry={"kind": "geometry", "every": 500}'.

An evaluator may have `rows_members(params_M)` too, for the stacked parameters of a population: the
rows of each member, from one compiled program. Those here do, the members `vmap`ped over images
that are read once: on an accelerator small models fill the device so, and on a CPU it takes what
one after the other takes, less the cost of starting each kernel M times.
"""
import contextlib
import dataclasses
from typing import Any, Callable, Iterator, NamedTuple, Protocol, Sequence, runtime_checkable

import jax
import numpy as np

from big_transfer.evaluators import classification
from big_transfer.evaluators import fewshot
from big_transfer.evaluators import geometry
from big_transfer.evaluators import linear


class Upstream(NamedTuple):
  """What a model is trained on: pre-training data or, of a run that is fine-tuned, its task.

  Attributes:
    name: of the data.
    train: its training examples, a `pipeline.Prepared`.
    examples: of `train`, the indices of those trained on; None for all.
    test: the held-out examples, a `pipeline.Prepared`.
    loss: `loss(logits_BC, targets_BC) -> (B,)`.
    variant: which form of the data, as rows have it.
    setting: "upstream"; of a run that is fine-tuned "finetune", or "linear" if its head alone is.
    seeds: of the runs, one for each member of a population.
  """
  name: str
  train: Any
  examples: np.ndarray | None
  test: Any
  loss: Callable
  variant: str = "full"
  setting: str = "upstream"
  seeds: Sequence[int] = (0,)


@dataclasses.dataclass(frozen=True)
class Context:
  """What the loop lends to every evaluator.

  Attributes:
    apply: the model's, `apply({"params": p}, images, train=False) -> (logits, out)`; Flax's, so
      that it takes `taps` and `mutable` too (see `big_transfer.models`).
    put: places a host batch (a dict of arrays with a common first dimension) on the devices.
    check: called between batches; raises to leave an evaluation early.
    prepare: makes of a source the `pipeline.Prepared` examples that the model takes.
    upstream: the pre-training data, see `Upstream`.
    layers: the keys of the model's `out`.
    batch_size: examples a forward pass, over all processes.
    fetch: the whole of a tree of device arrays as NumPy arrays, in every process.
    process: (index, count) of this process: which rows of a batch it reads and `put` takes.
  """
  apply: Callable
  put: Callable[[dict], dict]
  check: Callable[[], None]
  prepare: Callable
  upstream: Upstream
  layers: Sequence[str]
  batch_size: int
  fetch: Callable[[Any], Any] = jax.device_get
  process: tuple[int, int] = (0, 1)


class Evaluator(Protocol):
  """See the module."""

  def rows(self, params) -> Iterator[dict]:
    ...


@runtime_checkable
class ForMembers(Protocol):
  """An evaluator that measures the members of a population at once."""

  def rows_members(self, params_M) -> list[list[dict]]:
    ...


KINDS = {"classification": classification.Classification, "fewshot": fewshot.FewShot,
         "geometry": geometry.Geometry, "linear": linear.Linear}


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """An evaluator and when it runs."""
  name: str
  evaluator: Evaluator
  every: int
  first: bool

  def due(self, step, total_steps):
    """Whether to run once `step` updates are done."""
    return step == total_steps or (step % self.every == 0 if step else self.first)

  def run(self, params, step):
    """Returns the rows; an error is re-raised with the evaluator's name and the step."""
    with self._named(step):
      return list(self.evaluator.rows(params))

  def run_members(self, params_M, step, members):
    """Returns the rows of each of M members, whose parameters are stacked; draws are as alone."""
    if not isinstance(self.evaluator, ForMembers):
      return [self.run(jax.tree.map(lambda p, i=i: p[i], params_M), step) for i in range(members)]
    with self._named(step):
      return self.evaluator.rows_members(params_M)

  @contextlib.contextmanager
  def _named(self, step):
    try:
      yield
    except Exception as e:
      e.add_note(f"in evaluator {self.name!r} at step {step}")
      raise


def build(evals, context, construct):
  """Builds the evaluators of a config.

  Args:
    evals: `{name: {"kind", "every", "first", ...}}`.
    context: see `Context`.
    construct: `construct(function, section, where, **given)`, which checks the section's keys
      (`configuring.build`).

  Raises:
    ValueError: an unknown kind or key, or a period below 1.
  """
  scheduled = []
  for name, section in evals.items():
    section = dict(section)
    where = f"evals.{name}"
    kind, every = section.pop("kind", None), section.pop("every", None)
    first = section.pop("first", False)
    if kind not in KINDS:
      raise ValueError(f"config.{where}.kind is {kind!r}: expected one of {sorted(KINDS)}")
    if not isinstance(every, int) or every < 1:
      raise ValueError(f"config.{where}.every is {every!r}: expected a number of steps >= 1")
    evaluator = construct(KINDS[kind], section, where, context=context)
    scheduled.append(Scheduled(name, evaluator, every, first))
  return scheduled
