"""Where trials run: long-lived worker processes on this machine.

Compiling a program costs a small run more than training it, and compiled programs live as long as
their process. So a worker is kept and given tasks of the group (the tasks that share a program) it
ran last; only when there are none left does it start another group, and at the end it joins one
that others work at, if it would compile and finish a task before they came to it.

A worker is bound to its share of the cores before anything is imported in it, since numerical
libraries count their threads then. Engines know nothing of training: they get a function.
"""
import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, Sequence

# How long a worker that was told to stop may take to save: a step and a checkpoint.
GRACE_SECONDS = 120.0
# How often the loop looks for signals and at the clock when nothing else happens.
TICK_SECONDS = 0.5


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
  """
  task: Task
  status: str = "unfinished"
  result: Any = None
  error: str = ""
  attempts: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far the tasks are; `seconds_left` is None while there is nothing to judge it by."""
  done: int
  running: int
  failed: int
  total: int
  seconds_left: float | None


def run_local(
    tasks: Sequence[Task],
    function: Callable[[Any], Any],
    *,
    jobs: int,
    retries: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[list[Outcome], int | None]:
  """Calls `function(task.payload)` for each task in `jobs` worker processes.

  An exception, or the death of a worker, costs the task one attempt. A ValueError says that what
  was asked for can't be, and would say so again: its task is not tried again. SIGINT and SIGTERM
  stop the whole: workers get SIGTERM, and GRACE_SECONDS to save (a second signal ends them at
  once). If this process dies, workers stop in the same way. No worker outlives the call.

  Args:
    tasks: what to do, in order of preference.
    function: importable by name in a new process.
    jobs: number of workers; each gets its share of the cores this process may use.
    retries: further attempts for a task that failed, but for a ValueError.
    report: called from this process whenever a count or the time left changes.

  Returns:
    An outcome a task, in the order of the tasks, and the signal that stopped the whole, or None.

  Raises:
    ValueError: `jobs` or `retries` out of range, or two tasks with one key.
    EngineError: a worker dies before any was ready.
  """
  if jobs < 1 or retries < 0:
    raise ValueError(f"expected jobs >= 1 and retries >= 0; got jobs={jobs}, retries={retries}")
  counts = collections.Counter(task.key for task in tasks)
  doubles = [key for key, count in counts.items() if count > 1]
  if doubles:
    raise ValueError(f"tasks need distinct keys: '{doubles[0]}' occurs {counts[doubles[0]]} times")
  crew = _Crew(function, min(jobs, len(tasks)), retries, tasks)
  with _signals() as received:
    try:
      crew.run(report, received)
    finally:
      crew.end()
  return list(crew.outcomes.values()), received[0] if received else None


class _Worker:
  """A worker process as its employer sees it."""

  def __init__(self, function, cores):
    self.cores = cores
    context = multiprocessing.get_context("spawn")
    self.connection, theirs = context.Pipe()
    self.process = context.Process(target=_work, args=(theirs, function))
    with _bound_to(cores):  # the new process inherits the binding, whatever it imports first
      self.process.start()
    theirs.close()
    self.ready, self.task = False, None
    self.started, self.cold = 0.0, True  # of the task: when, and whether its group is new here
    self.groups = []  # the groups it has compiled, the latest last

  def give(self, task, attempt):
    self.cold = task.group not in self.groups
    self.task, self.started = task, time.monotonic()
    self.groups = [group for group in self.groups if group != task.group] + [task.group]
    with contextlib.suppress(OSError):  # it died meanwhile: `_listen` will find out
      self.connection.send((task.payload, task.log, attempt))

  def dispose(self):
    self.process.join()
    self.process.close()
    self.connection.close()


class _Crew:
  """The workers, the tasks and who does what."""

  def __init__(self, function, jobs, retries, tasks):
    self.function, self.retries = function, retries
    self.outcomes = {task.key: Outcome(task) for task in tasks}
    self.pending = list(tasks)
    self.times = _Times()
    self.workers = []
    self.proven = False  # whether any worker was ever ready
    self.shares = _core_shares(jobs)

  def run(self, report, received):
    """Works until all is done, failed or stopped."""
    told = None
    stopping_since = None
    while True:
      if received and stopping_since is None:
        stopping_since = time.monotonic()
        for worker in self._busy():
          worker.process.terminate()
      if stopping_since is not None:
        if len(received) > 1 or time.monotonic() - stopping_since > GRACE_SECONDS:
          return  # end() kills what is left
      else:
        self._hire()
        self._assign()
      progress = self._progress()
      if progress != told:
        told = progress
        report(progress)
      if not self._busy() and (stopping_since is not None or not self.pending):
        return
      self._listen(stopping_since is not None)

  def end(self):
    """Sends idle workers home and kills the others."""
    for worker in self.workers:
      if worker.task is None and worker.ready:
        worker.connection.close()  # the end of its work, which it waits for
        worker.process.join(10)
      worker.process.kill()
      worker.dispose()
    self.workers = []

  def _hire(self):
    wanted = min(len(self.shares), len(self.pending) + len(self._busy()))
    taken = [worker.cores for worker in self.workers]
    for share in self.shares:
      # Shares are alike where there are more workers than cores, hence the count.
      if len(self.workers) < wanted and taken.count(share) < self.shares.count(share):
        self.workers.append(_Worker(self.function, share))
        taken.append(share)

  def _assign(self):
    idle = [worker for worker in self.workers if worker.ready and worker.task is None]
    groups = {task.group for task in self.pending}
    # Those who can go on with their group come first, lest another takes it from them.
    for worker in sorted(idle, key=lambda w: not groups.issuperset(w.groups[-1:] or [None])):
      task = self._choose(worker)
      if task is not None:
        self.pending.remove(task)
        outcome = self.outcomes[task.key]
        outcome.attempts += 1
        worker.give(task, outcome.attempts)

  def _choose(self, worker):
    """Returns the pending task this worker had best take, None if it had best wait."""
    by_group = collections.defaultdict(list)
    for task in self.pending:
      by_group[task.group].append(task)
    if worker.groups and worker.groups[-1] in by_group:
      return by_group[worker.groups[-1]][0]
    occupied = {other.groups[-1] for other in self.workers if other is not worker and other.groups}
    free = [group for group in by_group if group not in occupied]
    if free:
      return by_group[max(free, key=lambda g: len(by_group[g]) * self.times.of(g))][0]
    worth = [group for group in by_group if self._worth_joining(worker, group, by_group[group])]
    if worth:
      return by_group[max(worth, key=lambda g: len(by_group[g]) * self.times.of(g))][-1]
    return None

  def _worth_joining(self, worker, group, tasks):
    """Whether this worker would finish the group's last task before those who are at it would."""
    others = [w for w in self._busy() if w.task.group == group]
    if not others or not self.times.known:
      return True
    now, each = time.monotonic(), self.times.of(group)
    compiling = 0.0 if group in worker.groups else self.times.compiling(group)
    rest = sum(max(0.0, each + w.cold * self.times.compiling(group) - (now - w.started))
               for w in others)
    return (rest + (len(tasks) - 1) * each) / len(others) > compiling

  def _listen(self, stopping):
    """Waits for a worker to say or do something, a tick at most."""
    handles = {}
    for worker in self.workers:
      handles[worker.connection] = handles[worker.process.sentinel] = worker
    ready = multiprocessing.connection.wait(list(handles), TICK_SECONDS)
    for worker in {id(handles[handle]): handles[handle] for handle in ready}.values():
      try:
        message = worker.connection.recv() if worker.connection.poll() else None
      except (EOFError, OSError):
        message = None
      if message is not None:
        self._hear(worker, message, stopping)
      elif worker.connection in ready or not worker.process.is_alive():
        self._bury(worker, stopping)

  def _hear(self, worker, message, stopping):
    kind, content = message
    if kind == "ready":
      worker.ready = self.proven = True
      return
    task, worker.task = worker.task, None
    if kind == "done":
      self.times.add(task.group, worker.cold, time.monotonic() - worker.started)
      self.outcomes[task.key].status = "done"
      self.outcomes[task.key].result = content
    else:
      self._failed(task, content, stopping, again=kind == "failed")

  def _bury(self, worker, stopping):
    """Takes note of a worker's death; `_hire` replaces it."""
    self.workers.remove(worker)
    worker.process.join()
    code = worker.process.exitcode
    worker.dispose()
    if worker.task is not None:
      why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
      hint = " (out of memory?)" if code == -signal.SIGKILL else ""
      self._failed(worker.task, f"its worker process {why}{hint}", stopping)
    elif not worker.ready and not stopping and not self.proven:
      name = f"{self.function.__module__}.{self.function.__qualname__}"
      raise EngineError(f"a worker can't start (exit code {code}): is '{name}' importable, and "
                        "does the main script start its work under `if __name__ == '__main__'`?")

  def _failed(self, task, error, stopping, again=True):
    outcome = self.outcomes[task.key]
    if stopping:
      return
    outcome.error = error
    if again and outcome.attempts <= self.retries:
      self.pending.append(task)  # last, so that what made it fail may have passed
    else:
      outcome.status = "failed"

  def _busy(self):
    return [worker for worker in self.workers if worker.task is not None]

  def _progress(self):
    statuses = [outcome.status for outcome in self.outcomes.values()]
    busy, left = self._busy(), None
    if self.times.known:
      now = time.monotonic()
      work = sum(self.times.of(task.group) for task in self.pending)
      work += sum(max(0.0, self.times.of(w.task.group) - (now - w.started)) for w in busy)
      new = {task.group for task in self.pending}.difference(*(w.groups for w in self.workers))
      work += sum(self.times.compiling(group) for group in new)
      left = round(work / max(1, min(len(self.shares), len(self.pending) + len(busy))))
    return Progress(statuses.count("done"), len(busy), statuses.count("failed"), len(statuses),
                    left)


class _Times:
  """What tasks took: seconds a call by group, and what the first in a process took beyond that."""

  def __init__(self):
    self._seconds = collections.defaultdict(list)  # (group, cold) → seconds a call

  @property
  def known(self) -> bool:
    return bool(self._seconds)

  def add(self, group, cold, seconds):
    self._seconds[group, cold].append(seconds)

  def of(self, group) -> float:
    """Seconds a warm call takes, estimated from cold ones or other groups where none was seen."""
    if (group, False) in self._seconds:
      return _mean(self._seconds[group, False])
    if (group, True) in self._seconds:
      return _mean(self._seconds[group, True]) * self._warm_share()
    return _mean([self.of(known) for known, _ in self._seconds] or [1.0])

  def compiling(self, group) -> float:
    """Seconds a cold call takes beyond a warm one, estimated likewise."""
    if (group, True) in self._seconds:
      return max(0.0, _mean(self._seconds[group, True]) - self.of(group))
    return _mean([self.compiling(known) for known, cold in self._seconds if cold] or [0.0])

  def _warm_share(self):
    """The part of a cold call's time that a warm one takes, by the groups seen both ways."""
    shares = [_mean(self._seconds[group, False]) / _mean(seconds)
              for (group, cold), seconds in self._seconds.items()
              if cold and (group, False) in self._seconds]
    return _mean(shares or [0.5])


def _mean(values):
  return sum(values) / len(values)


def _core_shares(jobs):
  """Returns the cores of each worker, as sets; None for each where a system can't bind."""
  if not hasattr(os, "sched_getaffinity"):
    return [None] * jobs
  cores = sorted(os.sched_getaffinity(0))
  n = len(cores)
  return [frozenset(cores[i * n // jobs:(i + 1) * n // jobs] or [cores[i * n // jobs]])
          for i in range(jobs)]


@contextlib.contextmanager
def _bound_to(cores):
  if cores is None:
    yield
    return
  mine = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, mine)


@contextlib.contextmanager
def _signals():
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


def _work(connection, function):
  """What a worker process does: call the function for each payload until there are no more."""
  os.setsid()  # Ctrl-C at the terminal reaches the employer, who passes it on once
  threading.Thread(target=_stop_when_orphaned, daemon=True).start()
  connection.send(("ready", None))
  while True:
    # The last task may have left its own handlers, which would save a state that is gone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
      payload, log, attempt = connection.recv()
    except (EOFError, OSError):
      return
    message = _outcome(function, payload, log, attempt)
    try:
      connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
      return
    except Exception as error:
      connection.send(("failed", f"the result can't be sent to another process: {error}"))


def _outcome(function, payload, log, attempt):
  """Calls the function, its output going to the log; returns the message to send."""
  try:
    with _printing_to(log):
      if attempt > 1:
        print(f"--- attempt {attempt} ---", flush=True)
      try:
        return "done", function(payload)
      except BaseException as error:
        traceback.print_exc()
        return ("refused" if isinstance(error, ValueError) else "failed",
                "".join(traceback.format_exception_only(error)).strip())
  except OSError as error:
    return "failed", f"can't write the log '{log}': {error.strerror}"


def _stop_when_orphaned():
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(GRACE_SECONDS)
  os._exit(1)


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
