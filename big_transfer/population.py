"""The trials of a sweep as populations: which are trained together, and the worker's side of it.

Trials belong together whose configs differ only in what the step takes as arrays
(`train.population_key`) and which have a checkpoint in common to continue from: fresh ones all,
others by their newest steps, since a kill between two members' saves leaves some a save ahead. One
that diverged goes on alone, lest the others be taken back to where it left off.
"""
import collections
import dataclasses
import functools
import json
import os
import pathlib
import time
from typing import Any, Callable, Mapping, Sequence

from big_transfer.runs import configuring
from big_transfer.runs import engines
from big_transfer.runs import records
from big_transfer.runs.engines import tasks as tasks_lib

AUTO = "auto"
# How many trials of a sweep `auto` gives a worker at once. More fill no device that these don't,
# and those of a worker that dies all have to wait for its successor.
MOST = 16
_FRESH, _DIVERGED = "fresh", "diverged"
_NEWEST = 2  # of a run's checkpoints, of which one has to be common: nobody goes back further
_POLL_SECONDS = 2.0


def parse(text: str | int) -> str | int:
  """Returns "auto" or the most members of a population, at least 1; else raises ValueError."""
  if text == AUTO:
    return AUTO
  try:
    number = int(text)
  except ValueError:
    number = 0
  if number < 1:
    raise ValueError(f"--population is '{text}': expected a whole number, at least 1, or 'auto'")
  return number


def chunks(trials: Sequence, key_of: Callable[[Any], str], most: str | int, jobs: int | None
           ) -> list[list]:
  """Groups trials to be trained together, in the order of their first.

  Args:
    trials: of a sweep; `folder` of each is its run folder.
    key_of: trial → what trials that can be trained as one program have in common.
    most: of a group; for "auto" it is `MOST`, and no more than leaves each worker its share.
    jobs: workers, None if unknown.
  """
  alike = collections.defaultdict(list)
  for trial in trials:
    alike[key_of(trial)].append(trial)
  found = []
  for group in alike.values():
    for members in together(group, [trial.folder for trial in group]):
      size = min(MOST, -(-len(members) // (jobs or 1))) if most == AUTO else most
      found += parts(members, size)
  order = {id(trial): i for i, trial in enumerate(trials)}
  return sorted(found, key=lambda members: order[id(members[0])])


def parts(members: Sequence, most: int) -> list[list]:
  """Cuts a list into as few parts of at most `most` as can be, as long as can be but for the last.

  Of one length, so that all but the last share what is compiled for it.
  """
  size = -(-len(members) // -(-len(members) // most))
  return [list(members[start:start + size]) for start in range(0, len(members), size)]


def together(items: Sequence, folders: Sequence[pathlib.Path]) -> list[list]:
  """Groups items by where their runs go on: see the module."""
  groups = []  # (steps in common, items)
  for item, folder in zip(items, folders, strict=True):
    place = _place(pathlib.Path(folder))
    group = next((group for group in groups if place != {_DIVERGED} and group[0] & place), None)
    if group is None:
      groups.append(group := [place, []])
    group[0] = group[0] & place
    group[1].append(item)
  return [members for _, members in groups]


def _place(folder):
  """Where a run goes on: its newest checkpoints' steps, or that it is fresh, or diverged."""
  run = _run(folder)
  if run.get("status") == "failed" and run.get("error", "").startswith("NonFiniteError"):
    return {_DIVERGED}
  return set(_saved(folder)[-_NEWEST:]) or {_FRESH}


def _saved(folder):
  """The steps of a run's checkpoints, rising."""
  from big_transfer.training import checkpoint  # here: it takes seconds to import
  return sorted(int(path.parent.name) for path in pathlib.Path(folder).glob(
      f"checkpoints/*/{checkpoint.MANIFEST}") if path.parent.name.isdigit())


def _run(folder):
  """run.json of a folder, {} if there is none yet."""
  return records.read_run(folder) if (pathlib.Path(folder) / records.RUN).exists() else {}


def task(tasks: Sequence[engines.Task], most: str | int) -> engines.Task:
  """One task of those of trials that are to be trained together; that of one is as it is."""
  first = tasks[0]
  if len(tasks) == 1:
    return first
  # Not the key of the first alone: an engine may know of a job of it that is grouped otherwise.
  key = configuring.identity("population", {"keys": [task.key for task in tasks]})
  return dataclasses.replace(first, key=key, payload={
      "members": [task.payload for task in tasks], "logs": [task.log for task in tasks],
      "population": most})


def run_trials(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Trains several trials in this process, together or one after the other, whatever is faster.

  Each is tried in its own right: one that diverges or whose config can't be is a failed one among
  finished ones, and is not tried again.

  Args:
    payload: `members`, of each the arguments of `train.train`; `logs`, of each a path, of which
      that of the first trained together gets what is printed; `population`, the most that may be
      trained together, or "auto".

  Returns:
    The content of run.json of each; of one that can't be, `status` and `error` alone.

  Raises:
    RuntimeError: training was stopped.
    Exception: the first that another attempt may not meet, such as of a full disk, or of a folder
      that another process writes to; all that could be trained is.
  """
  # Here, since only a worker's cores are bound before jax starts.
  from big_transfer import train
  from big_transfer.training import interrupts as interrupts_lib
  members = [{**member, "allow_changes": True} for member in payload["members"]]
  worker = _Worker(train, dict(zip((m["workdir"] for m in members), payload["logs"], strict=True)))
  todo = []
  for member in members:
    run = _run(member["workdir"])
    if run.get("status") == "finished":
      worker.results[member["workdir"]] = run
    else:
      todo.append(member)
  with interrupts_lib.Interrupts() as interrupts:
    for group in together(todo, [member["workdir"] for member in todo]):
      size, choice = payload["population"], None
      if size == AUTO:
        choice = _choose(train, group) if len(group) > 1 else None
        size = choice.members if choice else 1
      for part in parts(group, size):
        if signal := interrupts.poll():
          raise RuntimeError(f"training stopped early by {signal}")
        worker.train([{**member, "choice": choice} for member in part])
  if worker.again:
    raise worker.again[0]
  return [worker.results[member["workdir"]] for member in members]


class _Worker:
  """Trains parts of a population, each with a log of its own.

  Attributes:
    results: workdir → run.json, or `status` and `error` of what can't be.
    again: exceptions that another attempt may not meet.
  """

  def __init__(self, train, logs):
    self._train, self._logs = train, logs
    self.results, self.again = {}, []

  def train(self, part):
    """Trains runs as one program; where that can't be, in smaller parts."""
    folders = [member["workdir"] for member in part]
    log = self._logs[folders[0]]
    for folder in folders[1:]:
      self._refer(self._logs[folder], log)
    caught = []

    def train(part):
      try:
        return self._train.train_population(part)
      except BaseException as error:
        caught.append(error)
        raise

    kind, value = tasks_lib.call(train, part, log, 1)
    if kind == "done":
      self.results |= dict(zip(folders, value))
      if any(run["status"] == "interrupted" for run in value):
        raise RuntimeError("training stopped early: interrupted")
    elif not caught or not isinstance(caught[0], Exception):
      raise caught[0] if caught else RuntimeError(value)
    elif len(part) > 1 and (
        isinstance(caught[0], ValueError) or "RESOURCE_EXHAUSTED" in str(caught[0])):
      for half in parts(part, -(-len(part) // 2)):  # which of them it is about, if not all
        self.train(half)
    else:
      self.results |= {folder: {"status": "failed", "error": value} for folder in folders}
      final = isinstance(caught[0], (ValueError, self._train.NonFiniteError))
      if not final or isinstance(caught[0], records.RecordError):  # a lock is let go some time
        self.again.append(caught[0])

  def _refer(self, log, to):
    pathlib.Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
      file.write("trained in a population, whose output is in "
                 f"{os.path.relpath(to, log + '/..')}\n")


def _choose(train, group):
  """The `Choice` for a group, that of one alike if there was any in this process; None if none can
  be, since a config is not as it should be: which, shows when they are trained one by one.
  """
  config = group[0]["config"]
  same_data = len({member["config"].get("seed") for member in group}) == 1
  step = min(max(_saved(member["workdir"]), default=0) for member in group)
  try:
    choice = _chosen(_Asked(train.population_key(config), json.dumps(config)), len(group),
                     same_data, step)
  except ValueError:
    return None
  print(f"{len(group)} trials: {choice.why}", flush=True)
  return choice


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A config, equal to those that make the same program."""
  key: str
  config: str = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _chosen(asked, members, same_data, step):
  from big_transfer import train
  return train.choose_population(
      json.loads(asked.config), members, same_data=same_data, step=step)


def outcomes(of_tasks: Sequence[engines.Outcome], members: Sequence[Sequence]
             ) -> list[engines.Outcome]:
  """Returns what became of each trial, from what became of the tasks.

  Args:
    of_tasks: one for each list of `members`.
    members: the trials of each task.
  """
  found = []
  for outcome, trials in zip(of_tasks, members, strict=True):
    if len(trials) == 1:
      found.append(outcome)
      continue
    runs = outcome.result or [_run(trial.folder) for trial in trials]
    for trial, run in zip(trials, runs, strict=True):
      status, error = outcome.status, outcome.error
      if run.get("status") == "finished":
        status, error = "done", ""
      elif run.get("status") == "failed" and status != "unfinished":
        status, error = "failed", run["error"]
      task = dataclasses.replace(outcome.task, key=trial.folder.name)
      found.append(dataclasses.replace(outcome, task=task, status=status, error=error,
                                       result=run if status == "done" else None))
  return found


class InTrials:
  """Tells of tasks' progress in trials, looking at their folders now and then.

  Args:
    members: the trials of each task.
    show: is called with an `engines.Progress` in trials.
  """

  def __init__(self, members, show):
    self._show, self._tasks = show, len(members)
    self._folders = [trial.folder for trials in members for trial in trials]
    self._largest = max(map(len, members), default=1)
    self._before = {folder: self._changed(folder) for folder in self._folders}
    self._ended, self._looked = {}, 0.0

  def __call__(self, progress):
    if len(self._folders) == self._tasks:
      self._show(progress)
      return
    if not progress.running or time.monotonic() - self._looked > _POLL_SECONDS:
      self._look()
    counts = collections.Counter(self._ended.values())
    left = len(self._folders) - counts["finished"] - counts["failed"]
    self._show(dataclasses.replace(
        progress, done=counts["finished"], failed=counts["failed"], total=len(self._folders),
        running=min(left, progress.running * self._largest)))

  def _look(self):
    self._looked = time.monotonic()
    for folder in self._folders:
      # What failed may be tried again.
      if self._ended.get(folder) != "finished" and self._changed(folder) != self._before[folder]:
        self._ended[folder] = _run(folder).get("status")

  def _changed(self, folder):
    path = folder / records.RUN
    return path.stat().st_mtime_ns if path.exists() else None
