"""Where trials run: a Slurm cluster, a job a trial, submitted as arrays by submitit.

Jobs outlive the command that submitted them. Which job has which task is written down in the
engine's folder before anything is waited for, and a command that finds jobs still queued or running
takes them over in place of starting a second copy. (One that was killed between submitting and
writing knows nothing of them; then the lock of the run folder keeps the second copy from starting.)

What Slurm sends before it ends a job (at its time limit, or to make room) is handed to the trial as
SIGTERM, on which it saves. Then submitit puts the job in the queue again, and the trial goes on.
"""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Mapping, Sequence

from big_transfer.runs import records
from big_transfer.runs.engines import tasks as tasks_lib
from big_transfer.runs.engines.tasks import EngineError, Outcome, Progress, Task

# Task key → job id, in the engine's folder.
LEDGER = "jobs.json"
# Slurm's own default for the largest array, less one.
ARRAY = 1000
# Between looks at the queue, which is one call for all jobs; the second while all is stopping.
QUEUE_SECONDS, STOPPING_SECONDS = 15.0, 2.0
# How long the result of a job that has left the queue may take to appear on a shared disk.
LAG_SECONDS = 30.0
# submitit's parameters that mean the same for every kind of cluster; others carry a prefix.
GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node",
           "tasks_per_node", "stderr_to_stdout")


def run_slurm(
    tasks: Sequence[Task],
    function: Callable[[Any], Any],
    *,
    folder: str | os.PathLike,
    jobs: int | None = None,
    retries: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[Outcome], int | None]:
  """Calls `function(task.payload)` for each task in a Slurm job of its own.

  An exception costs the task one attempt; a ValueError is not tried again. A job that reaches its
  time limit or is preempted saves and is queued again, by submitit or by Slurm; one that ends
  without a result in any other way (its node failed) is submitted again. Neither uses up
  `retries`; each may happen `tasks.LOSSES` times. SIGINT and SIGTERM stop the whole: jobs get
  SIGTERM, and GRACE_SECONDS to save before they are cancelled (a second signal cancels them at
  once). If this process is killed its jobs go on; the same call waits for them.

  Args:
    tasks: what to do, in order of preference.
    function: importable by name on every node.
    folder: for job files; all nodes see it under this path.
    jobs: how many may run at once; by default what submitit and the cluster allow.
    retries: further attempts for a task that raised anything but a ValueError.
    report: called from this process whenever a count or the time left changes.
    parameters: of `submitit.AutoExecutor`; Slurm's own with or without their prefix "slurm_".

  Returns:
    An outcome a task, in the order of the tasks, and the signal that stopped the whole, or None.

  Raises:
    ValueError: `jobs`, `retries` or `parameters` out of range, or two tasks with one key.
    EngineError: submitit isn't installed, there is no Slurm here, or it takes no job.
  """
  if jobs is not None and jobs < 1:
    raise ValueError(f"expected jobs >= 1; got jobs={jobs}")
  book = tasks_lib.Book(tasks, retries)
  if not tasks:
    return [], None
  folder = pathlib.Path(folder).expanduser().absolute()
  executor, job_class = _executor(folder, jobs, dict(parameters or {}))
  desk = _Desk(executor, job_class, function, book, folder, jobs)
  with tasks_lib.signals() as received:
    desk.run(report, received)
  return list(book.outcomes.values()), received[0] if received else None


def _executor(folder, jobs, parameters):
  """Returns submitit's executor, set up, and its class of jobs."""
  try:
    import submitit
  except ImportError as error:
    raise EngineError("the engine 'slurm' needs submitit: pip install 'big_transfer[slurm]'"
                      ) from error
  try:
    executor = submitit.AutoExecutor(folder, cluster="slurm",
                                     slurm_max_num_timeout=tasks_lib.LOSSES)
  except RuntimeError as error:
    raise EngineError("there is no Slurm on this machine (no command 'srun'): start the sweep "
                      "where you would call sbatch, or use another --engine") from error
  named = {name if name in GENERAL or name.startswith("slurm_") else f"slurm_{name}": value
           for name, value in parameters.items()}
  if jobs is not None:
    named["slurm_array_parallelism"] = jobs
  try:
    executor.update_parameters(**named)
  except (AssertionError, NameError, TypeError, ValueError) as error:
    raise ValueError(f"--slurm: {' '.join(str(error).split())}") from error
  return executor, submitit.SlurmJob


class _Call:
  """What a job does: a task, and the same task again if the job is stopped before its end."""

  def __init__(self, function, payload, log, attempt, lost):
    self.arguments = function, payload, log, attempt, lost

  def __call__(self):
    """Returns what `tasks.call` does, unless the job was told to stop: then it leaves no result."""
    function, payload, log, attempt, lost = self.arguments
    lost = lost or int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    early = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    theirs = signal.signal(early, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGTERM, _leave)
    with _heard() as heard:
      message = tasks_lib.call(function, payload, log, attempt, lost)
    signal.signal(early, theirs)
    if message[0] != "done" and early in heard():
      theirs(early, None)  # submitit writes down `checkpoint()`, queues the job again and exits
    if message[0] != "done" and signal.SIGTERM in heard():
      sys.exit(128 + signal.SIGTERM)
    return message

  def checkpoint(self):
    """Returns what the job does when it is started again."""
    from submitit import helpers
    function, payload, log, attempt, _ = self.arguments
    return helpers.DelayedSubmission(_Call(function, payload, log, attempt + 1, True))


def _leave(number, frame):
  raise SystemExit(f"told to stop by {signal.Signals(number).name}")


@contextlib.contextmanager
def _heard():
  """Gives a function that returns the signals received inside, whoever handled them."""
  ours, theirs = socket.socketpair()
  ours.setblocking(False)
  theirs.setblocking(False)
  before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
  numbers = set()
  try:
    yield lambda: numbers
  finally:
    signal.set_wakeup_fd(before)
    with contextlib.suppress(BlockingIOError):
      numbers.update(ours.recv(2**12))
    ours.close()
    theirs.close()


class _Desk:
  """Submits tasks, waits for their jobs and keeps the ledger."""

  def __init__(self, executor, job_class, function, book, folder, jobs):
    self.executor, self.job_class, self.function = executor, job_class, function
    self.book, self.folder, self.jobs = book, folder, jobs
    self.ledger = {}  # task key → job id, of all jobs that may live
    self.out = {}  # task key → its job
    self.queue = {}  # job id → its state, by the last look
    self.missing = {}  # job id → since when it isn't in the queue
    self.started = self.looked = time.monotonic()

  def run(self, report, received):
    """Works until all is done, failed or stopped."""
    told, stopping_since = None, None
    self._adopt()
    while True:
      if received and stopping_since is None:
        stopping_since = time.monotonic()
        self._cancel("--state=PENDING")
        self._cancel("--signal=TERM")
      stopping = stopping_since is not None
      if not stopping:
        self._submit()
      if time.monotonic() - self.looked > (STOPPING_SECONDS if stopping else QUEUE_SECONDS):
        self._look()
      self._collect(stopping)
      progress = self._progress()
      if progress != told:
        told = progress
        report(progress)
      if not self.out and (stopping or not self.book.pending):
        return
      if stopping and (len(received) > 1
                       or time.monotonic() - stopping_since > tasks_lib.GRACE_SECONDS):
        self._cancel()
        return
      time.sleep(tasks_lib.TICK_SECONDS)

  def _adopt(self):
    """Takes over jobs of a former command that are still queued or running."""
    path = self.folder / LEDGER
    before = json.loads(path.read_text()) if path.exists() else {}
    if before and not self._look():
      raise EngineError(f"'{path}' names jobs of an earlier sweep, and squeue doesn't answer "
                        "whether they still run: try again when Slurm does")
    self.ledger = {key: job for key, job in before.items() if job in self.queue}
    for task in [task for task in self.book.pending if task.key in self.ledger]:
      self.book.start(task)
      self.out[task.key] = self.job_class(self.folder, self.ledger[task.key])

  def _submit(self):
    """Submits what there is room for; the ledger knows of it before anything else is done."""
    # The bound of an array holds for that array, so a further one takes only what that leaves.
    room = ARRAY if not self.out else (self.jobs or ARRAY) - len(self.out)
    batch = self.book.pending[:max(0, room)]
    if not batch:
      return
    outcomes = [self.book.start(task) for task in batch]
    calls = [_Call(self.function, task.payload, task.log, outcome.attempts, outcome.losses > 0)
             for task, outcome in zip(batch, outcomes)]
    try:
      jobs = self.executor.submit_array(calls)
    except Exception as error:  # submitit's own errors have no class in common
      raise EngineError("Slurm takes no job: " + " ".join(str(error).split())) from error
    self.out.update({task.key: job for task, job in zip(batch, jobs)})
    self.ledger.update({task.key: job.job_id for task, job in zip(batch, jobs)})
    records.write_atomic(self.folder / LEDGER, json.dumps(self.ledger, indent=2))
    self.looked = time.monotonic()  # the queue has a moment to show them

  def _look(self):
    """Asks Slurm for this user's queue; returns whether it answered."""
    self.looked = time.monotonic()
    answer = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i %T"],
                            capture_output=True, text=True, check=False)
    if answer.returncode:
      return False
    self.queue = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())
    ids = {job.job_id for job in self.out.values()}
    self.missing = {job: self.missing.get(job, self.looked) for job in ids - self.queue.keys()}
    return True

  def _collect(self, stopping):
    """Takes note of jobs that have ended."""
    for key, job in list(self.out.items()):
      task = self.book.outcomes[key].task
      since = self.missing.get(job.job_id, float("inf"))
      if job.paths.result_pickle.exists():
        del self.out[key]
        self._read(task, job, stopping)
      elif time.monotonic() - since >= (0.0 if stopping else LAG_SECONDS):
        del self.out[key]
        if not stopping:
          self.book.lost(task, f"Slurm job {job.job_id} ended without a result: see "
                               f"{job.paths.stderr} and `sacct -j {job.job_id}`")

  def _read(self, task, job, stopping):
    try:
      kind, content = job.results()[0]
    except Exception as error:  # whatever a job raised outside of its task: an import, mostly
      kind, content = "failed", _cause(error)
    if kind == "done":
      self.book.done(task, content)
    elif not stopping:
      self.book.failed(task, content, again=kind == "failed")

  def _cancel(self, *flags):
    if self.out:
      subprocess.run(["scancel", *flags, *(job.job_id for job in self.out.values())],
                     capture_output=True, check=False)

  def _progress(self):
    done, failed = self.book.count("done"), self.book.count("failed")
    running = sum(self.queue.get(job.job_id) == "RUNNING" for job in self.out.values())
    left = None
    if done:
      total = len(self.book.outcomes)
      left = round((time.monotonic() - self.started) / done * (total - done - failed))
    return Progress(done, running, failed, len(self.book.outcomes), left)


def _cause(error):
  """Returns the last line of the traceback that submitit puts between rulers."""
  lines = [line for line in str(error).splitlines() if line and not line.startswith("---")]
  ends = [i for i, line in enumerate(lines) if line.startswith("You can check full logs")]
  return lines[ends[0] - 1 if ends else -1]
