"""Profiles of given steps: `config.profile=(first, steps)` traces them with `jax.profiler`.

Each trace is a folder `WORKDIR/profile/step_<first>`; `tensorboard --logdir WORKDIR/profile` with
the plugin `tensorboard-plugin-profile` shows it, and so does ui.perfetto.dev the file
`*.trace.json.gz` in it. Steps count from 0, over the whole run: a run that is continued beyond
them traces nothing. The first steps compile; take later ones to see training itself. Steps that
were never reached are told of at the end.
"""
import contextlib
import pathlib
import sys
from typing import Any, Iterable, Sequence

import jax

from big_transfer.runs import configuring


def spans(spec: Sequence | None) -> list[tuple[int, int]]:
  """Returns the steps to trace as [(first, end)], ascending, the end excluded.

  Args:
    spec: None, `(first, steps)` or a list of such.

  Raises:
    ConfigError: anything else, or spans that overlap.
  """
  if spec is None or spec in ((), []):
    return []
  expected = ("expected (first step, steps), such as (100, 5), or a list of such; the first step "
              "is at least 0, the number of steps at least 1")
  many = isinstance(spec, (list, tuple)) and all(isinstance(item, (list, tuple)) for item in spec)
  found = []
  for item in spec if many else [spec]:
    if not (isinstance(item, (list, tuple)) and len(item) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in item)
            and item[0] >= 0 and item[1] >= 1):
      raise configuring.ConfigError(f"config key 'profile' holds {item!r}: {expected}")
    found.append((item[0], item[0] + item[1]))
  found.sort()
  for (first, end), (later, _) in zip(found, found[1:]):
    if later < end:
      raise configuring.ConfigError(
          f"config key 'profile' asks for steps {first} to {end - 1} and again from {later}: "
          "expected spans that don't overlap; join them")
  return found


class Profiler:
  """Traces the steps that a config asks for; a failure is a warning and ends no run.

  Args:
    spec: see `spans`.
    folder: the run's folder.

  Raises:
    ConfigError: see `spans`.

  Example:
    profiler = Profiler((10, 2), "runs/first")
    for step in range(20):
      profiler.step(step, [measures])
      state, measures = train_step(state, ...)
    profiler.close()
  """

  def __init__(self, spec: Sequence | None, folder: str | pathlib.Path):
    self._spans = spans(spec)
    self._folder = pathlib.Path(folder).expanduser().absolute() / "profile"
    self._end = None  # of the trace that is running
    self._annotation = None

  def step(self, step: int, pending: Iterable[Any] = ()) -> None:
    """Called before each step; begins and ends traces where it is time.

    Args:
      step: the number of the step that comes.
      pending: arrays of the steps before that may still be computed. They are waited for where a
        trace begins or ends, so that it holds whole steps and no others.
    """
    if self._end is not None and step >= self._end:
      self._attempt(self._stop, pending)
    while self._spans and self._spans[0][1] <= step:  # a continued run may be beyond them
      self._spans.pop(0)
    if self._end is None and self._spans and self._spans[0][0] <= step:
      self._attempt(self._start, step, pending)
    if self._end is not None:
      self._attempt(self._mark, step)

  def close(self, pending: Iterable[Any] = ()) -> None:
    """Ends a trace that still runs, as where training ends or is stopped within it.

    Tells of steps that were asked for and never came.
    """
    for first, end in self._spans:
      steps = f"step {first} was" if end == first + 1 else f"steps {first} to {end - 1} were"
      print(f"profile: {steps} not reached, so there is no trace of them", flush=True)
    self._spans = []
    if self._end is not None:
      self._attempt(self._stop, pending)

  def _start(self, step, pending):
    jax.block_until_ready(list(pending))
    first, end = self._spans.pop(0)
    jax.profiler.start_trace(self._folder / f"step_{max(first, step)}")
    self._end = end

  def _mark(self, step):
    """Marks where a step begins, which the profile's step times go by."""
    self._unmark()
    self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
    self._annotation.__enter__()

  def _unmark(self):
    if self._annotation is not None:
      self._annotation.__exit__(None, None, None)
      self._annotation = None

  def _stop(self, pending):
    jax.block_until_ready(list(pending))
    self._unmark()
    self._end = None  # before what may fail
    jax.profiler.stop_trace()
    print(f"profile written to {self._folder}", flush=True)

  def _attempt(self, action, *arguments):
    try:
      action(*arguments)
    except Exception as error:  # a profile is never worth a run
      if self._end is not None:  # else it would go on and fill the memory
        with contextlib.suppress(Exception):
          jax.profiler.stop_trace()
      self._spans, self._end, self._annotation = [], None, None
      print(f"warning: profiling failed and is off from here on ({type(error).__name__}: {error}); "
            "the run goes on", file=sys.stderr, flush=True)
