"""Where trials run: long-lived worker processes on this machine.

A worker is bound to its share of the cores before anything is imported in it, since numerical
libraries count their threads then. Engines know nothing of training: they get a function.
"""
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from typing import Any, Callable, Sequence

from big_transfer.runs.engines import crew as crew_lib
from big_transfer.runs.engines import tasks as tasks_lib
from big_transfer.runs.engines.tasks import EngineError, Outcome, Progress, Task


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
  if jobs < 1:
    raise ValueError(f"expected jobs >= 1; got jobs={jobs}")
  book = tasks_lib.Book(tasks, retries)
  return _Crew(function, min(jobs, len(tasks)), book).work(report)


class _Worker(crew_lib.Worker):
  """A worker process as its employer sees it."""

  def __init__(self, function, cores):
    super().__init__()
    self.cores = cores
    context = multiprocessing.get_context("spawn")
    self.connection, theirs = context.Pipe()
    self.process = context.Process(target=_work, args=(theirs, function))
    with _bound_to(cores):  # the new process inherits the binding, whatever it imports first
      self.process.start()
    theirs.close()

  def dispose(self):
    self.process.join()
    self.process.close()
    self.connection.close()


class _Crew(crew_lib.Crew):
  """Worker processes, spoken to through pipes."""

  def __init__(self, function, jobs, book):
    super().__init__(book)
    self.function = function
    self.proven = False  # whether any worker was ever ready
    self.shares = _core_shares(jobs)

  def places(self):
    return len(self.shares)

  def tell(self, workers):
    for worker in workers:
      worker.process.terminate()

  def give(self, worker, task, outcome):
    with contextlib.suppress(OSError):  # it died meanwhile: `listen` will find out
      worker.connection.send((task.payload, task.log, outcome.attempts))

  def end(self):
    """Sends idle workers home and kills the others."""
    for worker in self.workers:
      if worker.task is None and worker.ready:
        worker.connection.close()  # the end of its work, which it waits for
        worker.process.join(10)
      worker.process.kill()
      worker.dispose()
    self.workers = []

  def hire(self):
    wanted = min(len(self.shares), len(self.book.pending) + len(self.busy()))
    taken = [worker.cores for worker in self.workers]
    for share in self.shares:
      # Shares are alike where there are more workers than cores, hence the count.
      if len(self.workers) < wanted and taken.count(share) < self.shares.count(share):
        self.workers.append(_Worker(self.function, share))
        taken.append(share)

  def listen(self, stopping):
    """Waits for a worker to say or do something, a tick at most."""
    handles = {}
    for worker in self.workers:
      handles[worker.connection] = handles[worker.process.sentinel] = worker
    ready = multiprocessing.connection.wait(list(handles), tasks_lib.TICK_SECONDS)
    for worker in {id(handles[handle]): handles[handle] for handle in ready}.values():
      try:
        message = worker.connection.recv() if worker.connection.poll() else None
      except (EOFError, OSError):
        message = None
      if message is not None:
        self._heard(worker, message, stopping)
      elif worker.connection in ready or not worker.process.is_alive():
        self._bury(worker, stopping)

  def _heard(self, worker, message, stopping):
    if message[0] == "ready":
      worker.ready = self.proven = True
    else:
      self.hear(worker, message, stopping)

  def _bury(self, worker, stopping):
    """Takes note of a worker's death; `hire` replaces it."""
    self.workers.remove(worker)
    worker.process.join()
    code = worker.process.exitcode
    worker.dispose()
    if stopping:
      return
    if worker.task is not None:
      why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
      hint = " (out of memory?)" if code == -signal.SIGKILL else ""
      self.book.failed(worker.task, f"its worker process {why}{hint}")
    elif not worker.ready and not self.proven:
      name = f"{self.function.__module__}.{self.function.__qualname__}"
      raise EngineError(f"a worker can't start (exit code {code}): is '{name}' importable, and "
                        "does the main script start its work under `if __name__ == '__main__'`?")


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
    message = tasks_lib.call(function, payload, log, attempt)
    try:
      connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
      return
    except Exception as error:
      connection.send(("failed", f"the result can't be sent to another process: {error}"))


def _stop_when_orphaned():
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(tasks_lib.GRACE_SECONDS)
  os._exit(1)
