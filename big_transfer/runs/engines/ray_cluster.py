"""Where trials run: a Ray cluster, or a Ray started on this machine.

A worker is a Ray actor, kept for many tasks: a fresh process a task would take about a second of
start for each, and would compile every program again. An actor calls the function in its main
thread, where signal handlers can be set, so that a task saves on SIGTERM as it does elsewhere. It
is told by a second, tiny task at its node (a call to the actor itself would wait its turn).

Ray is imported inside functions only: it takes half a second and belongs to an extra.
"""
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import Any, Callable, Mapping, Sequence

from big_transfer.runs.engines import crew as crew_lib
from big_transfer.runs.engines import own_ray
from big_transfer.runs.engines import tasks as tasks_lib
from big_transfer.runs.engines.tasks import EngineError, Outcome, Progress, Task

# How often the cluster is asked how many workers fit in.
CAPACITY_SECONDS = 5.0
# How often it is told that no node has what a worker needs, while there may come one.
WANT_SECONDS = 30.0
# How many workers in a row may be lost before one is ready, until the cluster counts as unusable.
STILLBORN = 10
# How long a cluster may take to answer at all.
KNOCK_SECONDS = 10.0


def run_ray(
    tasks: Sequence[Task],
    function: Callable[[Any], Any],
    *,
    jobs: int | None = None,
    retries: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
    resources: Mapping[str, float] | None = None,
    address: str | None = None,
) -> tuple[list[Outcome], int | None]:
  """Calls `function(task.payload)` for each task in workers on a Ray cluster.

  An exception costs the task one attempt; a ValueError is not tried again. A task lost with its
  worker process or its node is tried again elsewhere without using up `retries`, up to
  `tasks.LOSSES` times. SIGINT and SIGTERM stop the whole: workers get SIGTERM, and GRACE_SECONDS
  to save (a second signal ends them at once). If this process is killed, Ray ends its workers
  without a warning: what they saved last is what is left. A Ray that was started here is ended.

  Args:
    tasks: what to do, in order of preference.
    function: importable by name on every node.
    jobs: number of workers; by default as many as fit in the cluster at the time. More than that
      wait for their place, which makes an autoscaling cluster grow.
    retries: further attempts for a task that raised anything but a ValueError.
    report: called from this process whenever a count or the time left changes.
    resources: what a worker needs, by Ray's names: {"num_cpus": 4, "num_gpus": 0.5, "TPU": 8}; one
      CPU by default. Ray shows a worker no more GPUs than it needs.
    address: of the cluster, as `ray.init` takes it; by default RAY_ADDRESS, else Ray is started on
      this machine. If this process is connected to Ray already, that is used.

  Returns:
    An outcome a task, in the order of the tasks, and the signal that stopped the whole, or None.

  Raises:
    ValueError: `jobs`, `retries` or `resources` out of range, or two tasks with one key.
    EngineError: Ray isn't installed or can't be reached, no node has what a worker needs and none
      may come, or workers can't start.
  """
  if jobs is not None and jobs < 1:
    raise ValueError(f"expected jobs >= 1; got jobs={jobs}")
  needs = {"num_cpus": 1.0, **(resources or {})}
  for name, amount in needs.items():
    if amount < 0:
      raise ValueError(f"resource '{name}' is {amount:g}: expected 0 or more")
  book = tasks_lib.Book(tasks, retries)
  if not tasks:
    return [], None
  with _connected(address) as (ray, grows):
    return _Crew(ray, function, book, jobs, needs, grows).work(report)


@contextlib.contextmanager
def _connected(address):
  """Gives the module `ray`, connected, and whether nodes may be added to that Ray.

  What was connected or started here is disconnected or ended afterwards.
  """
  address = address or os.environ.get("RAY_ADDRESS") or "local"
  late = sys.modules.get("ray") is not None and "RAY_AUTH_MODE" not in os.environ
  # Both are read when Ray is imported. A Ray that is started asks for its token by itself; who
  # connects to one has to be told to show it.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  if address == "local" and not late:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
  try:
    import ray
  except ImportError as error:
    raise EngineError("the engine 'ray' needs Ray: pip install 'big_transfer[ray]'") from error
  if ray.is_initialized():
    yield ray, True
    return
  if address == "local" and late:
    raise EngineError("Ray was imported before the sweep, which is too late to connect to one that "
                      "is started for it: call ray.init() first, which is then used, or set "
                      "RAY_AUTH_MODE=token before Ray is imported")
  with contextlib.ExitStack() as on_exit:
    try:
      there = on_exit.enter_context(own_ray.running()) if address == "local" else address
      _knock(there)
      ray.init(there, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
      if address == "local":
        raise EngineError(f"can't start Ray on this machine ({_one_line(error)}): its logs are in "
                          "/tmp/ray/session_latest/logs") from error
      raise EngineError(f"can't reach Ray at '{address}' ({_one_line(error)}): check --address and "
                        "RAY_ADDRESS, or `ray status` there; if it asks for a token, set "
                        "RAY_AUTH_MODE=token") from error
    on_exit.callback(ray.shutdown)
    yield ray, address != "local"


def _knock(address):
  """Raises OSError unless something answers there, which Ray itself tells after a minute only."""
  host, _, port = address.removeprefix("ray://").rpartition(":")
  if host and port.isdigit():
    socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


class _Post:
  """What a Ray actor is made of."""

  def __init__(self, function, cpus, folder):
    if os.path.isdir(folder):  # relative paths in a config mean there what they mean here
      os.chdir(folder)
    # XLA on CPU counts the machine's cores, of which Ray gave this worker a share.
    os.environ.setdefault("NPROC", str(max(1, int(cpus))))
    self._function = function

  def whereabouts(self):
    """Returns the id of the node, and that of the process on it."""
    import ray
    return ray.get_runtime_context().get_node_id(), os.getpid()

  def call(self, payload, log, attempt, lost):
    """Returns what `tasks.call` does."""
    before = signal.getsignal(signal.SIGTERM)
    try:
      return tasks_lib.call(self._function, payload, log, attempt, lost)
    finally:
      signal.signal(signal.SIGTERM, before)  # a task may leave one that saves a state that is gone


def _terminate(pids):
  """Sends SIGTERM to processes of the node it runs on."""
  for pid in pids:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGTERM)


class _Worker(crew_lib.Worker):
  """An actor as its employer sees it: `answer` is to what it was asked last, None if idle."""

  def __init__(self, actor):
    super().__init__()
    self.actor = actor
    self.answer = actor.whereabouts.remote()
    self.node = self.pid = None


class _Crew(crew_lib.Crew):
  """Ray actors."""

  def __init__(self, ray, function, book, jobs, needs, grows):
    super().__init__(book)
    self.ray, self.function, self.jobs, self.needs = ray, function, jobs, needs
    named = {"num_cpus", "num_gpus", "memory"}
    others = {name: amount for name, amount in needs.items() if name not in named}
    self.post = ray.remote(max_restarts=0, max_task_retries=0, resources=others,
                           **{name: needs[name] for name in named & needs.keys()})(_Post)
    self.stillborn = 0  # how many workers in a row were lost before they were ready
    self.asked, self.fit = -CAPACITY_SECONDS, 0
    self.wanting = -WANT_SECONDS  # when it was told last that nothing fits
    if (jobs is None or not grows) and not self._fitting():
      raise EngineError(self._want() + ". Ask for less with --resources" + (
          "; if the cluster adds nodes by itself, say with --jobs how many to ask for at once"
          if grows else ", or give the --address of a cluster that has it"))

  def places(self):
    return self.jobs or max(1, self._fitting())

  def hire(self):
    if not any(worker.ready for worker in self.workers):
      self._tell_of_want()
    wanted = min(self.places(), len(self.book.pending) + len(self.busy()))
    while len(self.workers) < wanted:
      self.workers.append(_Worker(
          self.post.remote(self.function, self.needs["num_cpus"], os.getcwd())))
    if not self.book.pending:  # what they hold may be wanted by others
      for worker in [w for w in self.workers if w.task is None]:
        self._dismiss(worker)

  def give(self, worker, task, outcome):
    worker.answer = worker.actor.call.remote(task.payload, task.log, outcome.attempts,
                                             outcome.losses > 0)

  def tell(self, workers):
    from ray.util import scheduling_strategies
    for node in {worker.node for worker in workers}:
      there = scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
      self.ray.remote(num_cpus=0, scheduling_strategy=there)(_terminate).remote(
          [worker.pid for worker in workers if worker.node == node])

  def listen(self, stopping):
    workers = {worker.answer: worker for worker in self.workers if worker.answer is not None}
    if not workers:
      time.sleep(tasks_lib.TICK_SECONDS)
      return
    self.ray.wait(list(workers), timeout=tasks_lib.TICK_SECONDS)
    ready, _ = self.ray.wait(list(workers), num_returns=len(workers), timeout=0)
    for answer in ready:
      workers[answer].answer = None
      self._take_answer(workers[answer], answer, stopping)

  def end(self):
    """Kills the workers: those at a task had their time to save."""
    for worker in list(self.workers):
      self._dismiss(worker)

  def _take_answer(self, worker, answer, stopping):
    errors = self.ray.exceptions
    try:
      content = self.ray.get(answer)
    except errors.RayTaskError as error:  # `tasks.call` raises nothing: its result was the matter
      self.hear(worker, ("failed", f"the result can't be sent: {_one_line(error.cause)}"), stopping)
    except errors.RayError as error:
      self._lose(worker, error, stopping)
    else:
      if worker.ready:
        self.hear(worker, content, stopping)
      else:
        worker.node, worker.pid = content
        worker.ready, self.stillborn = True, 0

  def _lose(self, worker, error, stopping):
    """Takes note of a worker's loss; `hire` replaces it."""
    self._dismiss(worker)  # one that is only out of reach mustn't go on
    if stopping:
      return
    if worker.task is not None:
      self.book.lost(worker.task, f"its Ray worker was lost: {_one_line(error)}")
      return
    self.stillborn += not worker.ready
    if getattr(error, "actor_init_failed", False) or self.stillborn > STILLBORN:
      name = f"{self.function.__module__}.{self.function.__qualname__}"
      raise EngineError(f"a Ray worker can't start: is '{name}' importable on every node, with the "
                        f"same versions? {_one_line(error)}")

  def _dismiss(self, worker):
    self.workers.remove(worker)
    self.ray.kill(worker.actor)

  def _fitting(self):
    """Returns how many workers the cluster's nodes can hold, whoever holds them now."""
    if time.monotonic() - self.asked > CAPACITY_SECONDS:
      self.asked, self.fit = time.monotonic(), 0
      needs = {_RESOURCES.get(name, name): amount for name, amount in self.needs.items() if amount}
      for node in self._nodes():
        # One that needs nothing is counted as one a CPU.
        self.fit += min(int(node.get(name, 0) / amount + 1e-9)
                        for name, amount in (needs or {"CPU": 1}).items())
    return self.fit

  def _nodes(self):
    return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

  def _tell_of_want(self):
    """Tells now and then why nothing begins where no node has what a worker needs."""
    if time.monotonic() - self.wanting >= WANT_SECONDS and not self._fitting():
      self.wanting = time.monotonic()
      print(f"\nwaiting: {self._want()}. This ends only if the cluster adds such a node; if it "
            "doesn't, stop with Ctrl-C and ask for less with --resources", file=sys.stderr,
            flush=True)

  def _want(self):
    return f"no node of this Ray has {_told(self.needs)}: there are {self._offers()}"

  def _offers(self):
    return "; ".join(
        _told({name: amount for name, amount in node.items()
               if not name.startswith(("node:", "memory", "object_store"))}) or "an empty node"
        for node in self._nodes())


# Names that Ray's options have for what its nodes call otherwise.
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU"}


def _told(amounts):
  return ", ".join(f"{name}={amount:g}" for name, amount in sorted(amounts.items()))


def _one_line(error):
  """Returns the start of an error's text in one line."""
  text = " ".join(str(error).split())
  return text if len(text) <= 300 else f"{text[:300]}…"
