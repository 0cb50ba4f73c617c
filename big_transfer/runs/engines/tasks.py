"""Tasks, what becomes of them, and how they are called: what all engines share.

A task can fail in three ways. Its function may refuse it with a ValueError: what was asked for
can't be, and it isn't tried again. It may raise anything else, which costs an attempt. Or it may be
lost with the process or the node that ran it, which on a cluster is nobody's fault: it is tried
again without using up the attempts, though not for ever (`LOSSES`).
"""
import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, Sequence

from big_transfer.runs import records

# How long work that was told to stop may take to save: a step and a checkpoint.
GRACE_SECONDS = 120.0
# How often an engine looks for signals and at the clock when nothing else happens.
TICK_SECONDS = 0.5
# How often a task may be lost with a worker or a node of a cluster beyond its attempts. Machines
# that are taken away every hour or two leave days of work to a task; one that always kills its
# process comes to an end.
LOSSES = 20
# How long a task that was lost waits for the run folder: a node that is gone may hold its lock on
# a shared disk until the lease is over (90 s by default under NFS), one cut off until it notices.
LOCK_SECONDS = 180.0


class EngineError(RuntimeError):
  """Workers can't be started at all, so that no task could run."""


@dataclasses.dataclass(frozen=True)
class Task:
  """One call of the function.

  Attributes:
    key: names the task; no two are alike.
    group: tasks with equal groups share compiled programs.
    payload: what the function is called with; goes to another process, so plain data.
    log: path of the file that gets what the call prints, appended to.
  """
  key: str
  group: str
  payload: Any
  log: str


@dataclasses.dataclass
class Outcome:
  """What became of a task.

  Attributes:
    status: "done", "failed" (after its retries) or "unfinished" (the whole was stopped).
    result: what the function returned, if done.
    error: one line that says why, if failed.
    attempts: how often it was started.
    losses: how many of these were lost with a worker or node of a cluster.
  """
  task: Task
  status: str = "unfinished"
  result: Any = None
  error: str = ""
  attempts: int = 0
  losses: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far the tasks are; `seconds_left` is None while there is nothing to judge it by."""
  done: int
  running: int
  failed: int
  total: int
  seconds_left: float | None


class Book:
  """Who keeps account: the outcomes, and what is still to be given out.

  Attributes:
    outcomes: task key → Outcome, in the order of the tasks.
    pending: tasks to give out, in order of preference.
  """

  def __init__(self, tasks: Sequence[Task], retries: int):
    """Raises ValueError if `retries` is negative or two tasks have one key."""
    if retries < 0:
      raise ValueError(f"expected retries >= 0; got retries={retries}")
    counts = collections.Counter(task.key for task in tasks)
    doubles = [key for key, count in counts.items() if count > 1]
    if doubles:
      raise ValueError(
          f"tasks need distinct keys: '{doubles[0]}' occurs {counts[doubles[0]]} times")
    self.outcomes = {task.key: Outcome(task) for task in tasks}
    self.pending = list(tasks)
    self._retries = retries

  def start(self, task: Task) -> Outcome:
    """Takes a pending task as begun; returns its outcome, the attempt counted."""
    self.pending.remove(task)
    outcome = self.outcomes[task.key]
    outcome.attempts += 1
    return outcome

  def done(self, task: Task, result: Any) -> None:
    """Takes note of what the function returned."""
    self.outcomes[task.key].status = "done"
    self.outcomes[task.key].result = result

  def failed(self, task: Task, error: str, again: bool = True) -> None:
    """Takes note of an attempt that failed; the task is pending again if it has any left."""
    outcome = self.outcomes[task.key]
    outcome.error = error
    if again and outcome.attempts - outcome.losses <= self._retries:
      self.pending.append(task)  # last, so that what made it fail may have passed
    else:
      outcome.status = "failed"

  def lost(self, task: Task, error: str) -> None:
    """Takes note of an attempt that a cluster lost; the task is pending again, within `LOSSES`."""
    outcome = self.outcomes[task.key]
    outcome.losses += 1
    if outcome.losses <= LOSSES:
      outcome.error = error
      self.pending.append(task)
    else:
      self.failed(task, f"lost {outcome.losses} times; the last time {error}", again=False)

  def count(self, status: str) -> int:
    """Returns how many outcomes have a status."""
    return sum(outcome.status == status for outcome in self.outcomes.values())


def call(function: Callable[[Any], Any], payload: Any, log: str, attempt: int,
         lost: bool = False) -> tuple[str, Any]:
  """Calls the function in this process, its output going to the log.

  Args:
    attempt: which one it is, from 1.
    lost: whether one before was lost. Then the lock of a run folder that its process may still
      hold is waited for, `LOCK_SECONDS` long.

  Returns:
    ("done", result), ("failed", error) or ("refused", error): whether to try again is told by the
    exception's class. No exception leaves it.
  """
  try:
    with _printing_to(log):
      if attempt > 1:
        print(f"--- attempt {attempt} ---", flush=True)
      try:
        return "done", _patiently(function, payload, LOCK_SECONDS if lost else 0.0)
      except BaseException as error:
        traceback.print_exc()
        return ("refused" if isinstance(error, ValueError) else "failed",
                "".join(traceback.format_exception_only(error)).strip())
  except OSError as error:
    return "failed", f"can't write the log '{log}': {error.strerror}"


def _patiently(function, payload, seconds):
  """Calls the function, again for some time while a run folder can't be had."""
  end, pause = time.monotonic() + seconds, 0.5
  while True:
    try:
      return function(payload)
    except records.RecordError as error:
      if time.monotonic() + pause > end:
        raise
      print(f"{error}\ntrying again in {pause:g} s: the attempt before was lost", flush=True)
    time.sleep(pause)
    pause = min(2 * pause, 10.0)


@contextlib.contextmanager
def signals():
  """Collects SIGINT and SIGTERM in a list in place of what they did before."""
  received = []
  if threading.current_thread() is not threading.main_thread():
    yield received  # only the main thread may set handlers, and it keeps its own
    return
  before = {number: signal.signal(number, lambda n, frame: received.append(n))
            for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _printing_to(log):
  """Sends what this process prints to a file, also what compiled libraries print."""
  pathlib.Path(log).parent.mkdir(parents=True, exist_ok=True)
  file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
  kept = [os.dup(1), os.dup(2)]
  try:
    os.dup2(file, 1)
    os.dup2(file, 2)
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    for number, old in zip((1, 2), kept):
      os.dup2(old, number)
      os.close(old)
    os.close(file)
