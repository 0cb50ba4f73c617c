"""One run on many hosts: its processes start together, decide together and end together.

Process 0, "main", writes the record and decides what depends on files; the others follow what it
says. Each process reads its own rows of every batch. What they say to each other beside the
collectives of a step goes through the key-value store of JAX's coordination service, which lives in
main: small JSON, in the order in which all ask for it.

JAX ends a process when another dies, but with an abort and not always soon. So within `joined` a
thread of each process tells that it lives and looks whether the others do: one that raised, or that
was not heard of for the time given, ends them all with a line that says which and why. Only when
main's own process is killed is JAX faster: it aborts the others with a message of its own.
"""
import contextlib
import functools
import itertools
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable

import jax
from jax.experimental import multihost_utils

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PREFIX = "big_transfer"  # of our keys in the store that Orbax and JAX use as well
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a wait that `joined` ends, not a time limit
_BROKEN = ("Gloo", "NCCL", "UNAVAILABLE")  # in errors of a connection, of whatever class
_CONTINUES = "The same command, started again in every process, continues from the last checkpoint"


class HostsError(ValueError):
  """Processes that can't work together; the message says what was expected and the fix."""


class FollowedError(HostsError):
  """Main failed at what the others wait for; it tells why."""


def is_main() -> bool:
  """Whether this process is the one that writes and decides."""
  return jax.process_index() == 0


def process() -> tuple[int, int]:
  """(index, count) of this process."""
  return jax.process_index(), jax.process_count()


def broadcast(value: Any) -> Any:
  """Returns main's `value`, small and JSON-able, in every process; all have to call it."""
  if jax.process_count() == 1:
    return value
  key = f"{_PREFIX}/told/{next(_numbers('told'))}"
  if is_main():
    _client().key_value_set(key, json.dumps(value))
    return value
  return json.loads(_client().blocking_key_value_get(key, _FOREVER_MS))


def barrier(name: str) -> None:
  """Returns when every process has come to it; all have to call it."""
  if jax.process_count() > 1:
    number = next(_numbers("barrier"))
    _client().wait_at_barrier(f"{_PREFIX}/{name}/{number}", _FOREVER_MS)


def first_main(function: Callable[[], Any], follow: Callable[[], Any]) -> Any:
  """Calls `function` in main and, where that went well, `follow` in the others.

  Raises:
    FollowedError: in the others, what `function` raised in main, where it is raised as it is.
  """
  if jax.process_count() == 1:
    return function()
  if not is_main():
    if failed := broadcast(None):
      raise FollowedError(f"process 0 failed, {failed}")
    return follow()
  try:
    result = function()
  except Exception as e:
    broadcast(told(e))
    raise
  broadcast(None)
  return result


def on_main(function: Callable[[], Any]) -> Any:
  """Calls `function` in main alone; its small JSON-able result, or its error, is everyone's."""
  result = first_main(function, lambda: None)
  return broadcast(result)


def of_main(arrays: Any) -> Any:
  """Main's NumPy arrays, a tree that has the same shapes in every process, in all of them."""
  return arrays if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(arrays)


def fetch(tree: Any) -> Any:
  """The whole of a tree of device arrays, as NumPy arrays in every process."""
  def whole(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(whole, tree)


@contextlib.contextmanager
def quiet():
  """In all processes but main nothing is printed to stdout."""
  with contextlib.ExitStack() as on_exit:
    if not is_main():
      nowhere = on_exit.enter_context(open(os.devnull, "w", encoding="utf-8"))
      on_exit.enter_context(contextlib.redirect_stdout(nowhere))
    yield


def announce(number: int) -> None:
  """Asks all processes to stop because this one got a signal; see `stop`.

  JAX takes SIGTERM, in whatever process, as the notice of a preemption.
  """
  key = f"{_PREFIX}/signal/{jax.process_index()}"
  _client().key_value_set(key, str(number), allow_overwrite=True)
  os.kill(os.getpid(), signal.SIGTERM)


def stop() -> int | None:
  """The number of the signal that some process got, once all are at the same call of this.

  All have to call it equally often: JAX agrees on a number of the call at which all learn of it.
  """
  if not multihost_utils.reached_preemption_sync_point(next(_numbers("poll"))):
    return None
  said = dict(_client().key_value_dir_get(f"{_PREFIX}/signal/"))
  return int(next(iter(said.values()), signal.SIGTERM))


def told(error: BaseException) -> str:
  """An error for people: in a line where it is theirs to mend, else with where it came from."""
  if isinstance(error, (ValueError, OSError, ArithmeticError)):
    notes = [note for note in getattr(error, "__notes__", ())
             if note.startswith(("in evaluator", "run.json"))]
    return "\n  ".join([f"error: {error}", *notes])
  if isinstance(error, KeyboardInterrupt):
    return "stopped by a second SIGINT, at once"
  return "".join(traceback.format_exception(error)).rstrip()


@contextlib.contextmanager
def joined(heartbeat_seconds: float = 60, start_seconds: float = 300):
  """Joins the other processes, and ends with them.

  Which they are is what JAX finds (TPU slices, Slurm, Open MPI, Kubernetes), or what the variables
  JAX_COORDINATOR_ADDRESS (main's host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say. An error
  that leaves this context is told, and ends this process and all others, with exit code 1.

  Args:
    heartbeat_seconds: a process that isn't heard of for so long is given up, and all end.
    start_seconds: how long to wait for all to come.

  Raises:
    HostsError: there are no others to be found, or not all came.
  """
  if heartbeat_seconds < 1 or start_seconds < 1:
    raise HostsError(f"--heartbeat_seconds is {heartbeat_seconds} and --start_seconds "
                     f"{start_seconds}: expected at least 1 second each")
  _initialise(heartbeat_seconds, start_seconds)
  index, count = process()
  # Memory images of all processes, for one that died, would fill a disk.
  resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
  watch = _Watch(index, count, heartbeat_seconds)
  if index:  # said beforehand, since JAX leaves no time for it
    print(f"process {index} of {count} joined. Should process 0 be killed, JAX aborts this one. "
          f"{_CONTINUES}", file=sys.stderr, flush=True)
  try:
    yield
  except BaseException as e:
    if isinstance(e, SystemExit) and not isinstance(e.code, str):
      watch.leave()
      raise
    watch.fail(e)
  watch.leave()


class _Watch:
  """Tells the others that this process lives, and ends it when one of them does not."""

  def __init__(self, index, count, limit):
    self._index, self._count, self._limit = index, count, limit
    self._name = f"process {index} of {count}"
    self._store, self._heard = _client(), {}
    self._over, self._ending = threading.Event(), threading.Lock()
    self._period = min(1.0, limit / 4)
    if count > 1:
      threading.Thread(target=self._run, name="hosts", daemon=True).start()

  def leave(self):
    """Ends with the others, at the end of the work of all."""
    if self._count > 1:
      barrier("leave")  # while the others are still watched
    self._over.set()
    jax.distributed.shutdown()

  def fail(self, error):
    """Tells an error and ends this process and all others; never returns."""
    if isinstance(error, jax.errors.JaxRuntimeError) or any(s in str(error) for s in _BROKEN):
      # Most likely another one is gone, which breaks a connection: then the thread knows better.
      time.sleep(self._limit + 3 * self._period)
    self._over.set()
    with self._ending:
      text = told(error)
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._store.key_value_set(self._key("failed", self._index), text)
        if self._index:
          # Main may have failed of the same, or end because of this.
          self._wait_for(lambda: 0 in self._said("failed") | self._said("left"), 5)
          if isinstance(error, FollowedError) or self._said("failed").get(0) == text:
            self._exit(f"{self._name} ended with process 0, which says why")
          text = f"{self._name}: {text}"
        self._exit(text)
      self._exit(text)

  def _run(self):
    for number in itertools.count():
      if self._over.wait(self._period):
        return
      try:
        gone = self._look(number)
      except jax.errors.JaxRuntimeError as e:
        gone = f"process 0 can't be reached any more ({str(e).splitlines()[0]})"
      if gone and not self._over.is_set():
        with self._ending:
          self._exit(f"{self._name} ended: {gone}. {_CONTINUES}")

  def _look(self, number):
    """Tells that this process lives; returns what is wrong with another, None if nothing is."""
    # Main looks at all; the others at main alone, lest every process read what all have written.
    self._store.key_value_set(self._key("alive" if self._index else "main", self._index),
                              str(number), allow_overwrite=True)
    if lost := self._said("lost"):
      return next(iter(lost.values()))
    for index, text in self._said("failed").items():
      if index != self._index:
        # Of an error its own line, not a note's below it; of a traceback the last.
        first, *_, last = [*text.splitlines(), text]
        return f"process {index} failed, {first if first.startswith('error: ') else last}"
    now = time.monotonic()
    beats = self._said("main" if self._index else "alive")
    for index in [0] if self._index else range(1, self._count):
      beat, since = self._heard.setdefault(index, (None, now))
      if beats.get(index) != beat:
        self._heard[index] = (beats.get(index), now)
      elif now - since > self._limit:
        text = (f"process {index} was not heard of for {self._limit:g} s: it was killed, or its "
                "host is gone")
        self._store.key_value_set(self._key("lost", index), text)  # for the others to read
        return text
    return None

  def _exit(self, text):
    """Ends the process as it is: others may be gone, with which closing anything would wait."""
    print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(self._key("left", self._index), "", allow_overwrite=True)
      if self._index == 0:  # with main goes the store, in which the others read what happened
        self._wait_for(lambda: len(self._said("left") | self._said("lost")) == self._count, 10)
        time.sleep(self._period)
    sys.stdout.flush()
    os._exit(1)

  def _wait_for(self, condition, seconds):
    """Returns what `condition` gives once it is true, or after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
      time.sleep(self._period / 4)
    return found

  def _said(self, what):
    """`{process: text}` of what was said by each."""
    found = self._store.key_value_dir_get(f"{_PREFIX}/{what}/")
    return {int(key.rsplit("/", 1)[1]): text for key, text in found}

  def _key(self, what, index):
    return f"{_PREFIX}/{what}/{index}"


def _initialise(heartbeat_seconds, start_seconds):
  given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
  if given and len(given) < len(_VARIABLES):
    lacking = ", ".join(name for name in _VARIABLES if name not in given)
    raise HostsError(f"--distributed: {', '.join(given)} is set, but not {lacking}: set all three, "
                     "or none where JAX finds the processes itself (TPU slices, Slurm)")
  arguments = {}
  if given:
    address, *numbers = (given[name] for name in _VARIABLES)
    try:
      count, index = map(int, numbers)
    except ValueError:
      raise HostsError(f"--distributed: {_VARIABLES[1]} is {numbers[0]!r} and {_VARIABLES[2]} "
                       f"{numbers[1]!r}: expected whole numbers") from None
    if not 0 <= index < count or ":" not in address:
      raise HostsError(f"--distributed: process {index} of {count} at {address!r}: expected an "
                       "index from 0, below the number of processes, and main's host:port")
    arguments = dict(coordinator_address=address, num_processes=count, process_id=index)
  # JAX would abort where not all come in time.
  late = threading.Timer(start_seconds, _give_up, [arguments, start_seconds])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
        **arguments, initialization_timeout=int(start_seconds) + 60,
        # Ours is first: JAX's is for a process of which not even the thread lives.
        heartbeat_timeout_seconds=max(10, int(2 * heartbeat_seconds)),
        shutdown_timeout_seconds=max(10, int(2 * heartbeat_seconds)))
  except (ValueError, RuntimeError) as e:
    # Of JAX's errors, RuntimeError's too, all say in the first line what was amiss.
    raise HostsError(
        f"--distributed: the processes could not be joined ({str(e).splitlines()[0]}). On TPU "
        f"slices and under Slurm JAX finds them; elsewhere set {', '.join(_VARIABLES)}") from e
  finally:
    late.cancel()


def _give_up(arguments, seconds):
  """Ends this process, since others didn't come."""
  which = "process {process_id} of {num_processes} at {coordinator_address}".format_map(
      arguments) if arguments else "this process"
  print(f"error: --distributed: {which} waited {seconds:g} s (--start_seconds) for the others: "
        "start all of them, with main reachable at that address", file=sys.stderr, flush=True)
  os._exit(1)


def _client():
  """The store's client, for which JAX has no public name; Orbax takes it from here, too."""
  return jax._src.distributed.global_state.client


@functools.lru_cache(maxsize=None)
def _numbers(kind):
  """Counts the calls of a kind, equally in all processes, as long as this one lives."""
  del kind  # the cache's key
  return itertools.count()
