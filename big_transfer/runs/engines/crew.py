"""Long-lived workers and who gets which task: what the engines with workers share.

Compiling a program costs a small run more than training it, and compiled programs live as long as
their process. So a worker is kept and given tasks of the group (the tasks that share a program) it
ran last; only when there are none left does it start another group, and at the end it joins one
that others work at, if it would compile and finish a task before they came to it.
"""
import collections
import time

from big_transfer.runs.engines import tasks as tasks_lib


class Worker:
  """What a crew knows of a worker.

  Attributes:
    ready: whether it can be given tasks.
    task: what it is at, or None.
    started: when that was, by the monotonic clock.
    cold: whether that task's group was new here.
    groups: the groups it has compiled, the latest last.
  """

  def __init__(self):
    self.ready, self.task = False, None
    self.started, self.cold = 0.0, True
    self.groups = []

  def take(self, task):
    """Takes note that it is at a task."""
    self.cold = task.group not in self.groups
    self.task, self.started = task, time.monotonic()
    self.groups = [group for group in self.groups if group != task.group] + [task.group]


class Crew:
  """The workers, the tasks and who does what. An engine says how the workers are spoken to.

  Attributes:
    book: the account of the tasks.
    workers: those that live.
    times: what tasks took.
  """

  def __init__(self, book):
    self.book = book
    self.times = Times()
    self.workers = []

  def hire(self):
    """Starts workers where some are missing."""
    raise NotImplementedError

  def give(self, worker, task, outcome):
    """Starts a task at a worker; `outcome` says which attempt it is."""
    raise NotImplementedError

  def listen(self, stopping):
    """Waits for a worker to say or do something, a tick at most."""
    raise NotImplementedError

  def tell(self, workers):
    """Tells workers to save and stop."""
    raise NotImplementedError

  def places(self):
    """Returns how many tasks can run at once."""
    raise NotImplementedError

  def end(self):
    """Lets go of the workers, whatever they are at."""
    raise NotImplementedError

  def work(self, report):
    """Works until all is done, failed or stopped by a signal; see `run_local` for what it returns."""
    with tasks_lib.signals() as received:
      try:
        self.run(report, received)
      finally:
        self.end()
    return list(self.book.outcomes.values()), received[0] if received else None

  def run(self, report, received):
    """Works until all is done, failed or stopped.

    The first of the signals in `received` leaves the workers GRACE_SECONDS to save, a second one
    ends it at once.
    """
    told = None
    stopping_since = None
    while True:
      if received and stopping_since is None:
        stopping_since = time.monotonic()
        self.tell(self.busy())
      if stopping_since is not None:
        if len(received) > 1 or time.monotonic() - stopping_since > tasks_lib.GRACE_SECONDS:
          return
      else:
        self.hire()
        self.assign()
      progress = self.progress()
      if progress != told:
        told = progress
        report(progress)
      if not self.busy() and (stopping_since is not None or not self.book.pending):
        return
      self.listen(stopping_since is not None)

  def assign(self):
    """Gives tasks to those who have none."""
    idle = [worker for worker in self.workers if worker.ready and worker.task is None]
    groups = {task.group for task in self.book.pending}
    # Those who can go on with their group come first, lest another takes it from them.
    for worker in sorted(idle, key=lambda w: not groups.issuperset(w.groups[-1:] or [None])):
      task = self._choose(worker)
      if task is not None:
        outcome = self.book.start(task)
        worker.take(task)
        self.give(worker, task, outcome)

  def hear(self, worker, message, stopping):
    """Takes note of what `tasks.call` returned at a worker."""
    kind, content = message
    task, worker.task = worker.task, None
    if kind == "done":
      self.times.add(task.group, worker.cold, time.monotonic() - worker.started)
      self.book.done(task, content)
    elif not stopping:
      self.book.failed(task, content, again=kind == "failed")

  def busy(self):
    """Returns the workers that are at a task."""
    return [worker for worker in self.workers if worker.task is not None]

  def progress(self):
    """Returns how far all is."""
    busy, left, pending = self.busy(), None, self.book.pending
    if self.times.known:
      now = time.monotonic()
      waiting = collections.Counter(task.group for task in pending)
      work = sum(self.times.of(group) * count for group, count in waiting.items())
      work += sum(max(0.0, self.times.of(w.task.group) - (now - w.started)) for w in busy)
      new = set(waiting).difference(*(w.groups for w in self.workers))
      work += sum(self.times.compiling(group) for group in new)
      left = round(work / max(1, min(self.places(), len(pending) + len(busy))))
    return tasks_lib.Progress(self.book.count("done"), len(busy), self.book.count("failed"),
                              len(self.book.outcomes), left)

  def _choose(self, worker):
    """Returns the pending task this worker had best take, None if it had best wait."""
    by_group = collections.defaultdict(list)
    for task in self.book.pending:
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
    others = [w for w in self.busy() if w.task.group == group]
    if not others or not self.times.known:
      return True
    now, each = time.monotonic(), self.times.of(group)
    compiling = 0.0 if group in worker.groups else self.times.compiling(group)
    rest = sum(max(0.0, each + w.cold * self.times.compiling(group) - (now - w.started))
               for w in others)
    return (rest + (len(tasks) - 1) * each) / len(others) > compiling


class Times:
  """What tasks took: seconds a call by group, and what the first in a process took beyond that."""

  def __init__(self):
    self._sums = {}  # (group, cold) → seconds of all its calls, and their number

  @property
  def known(self) -> bool:
    """Whether any call was seen."""
    return bool(self._sums)

  def add(self, group, cold, seconds):
    """Takes note of a call, `cold` if it was its group's first in its process."""
    total, count = self._sums.get((group, cold), (0.0, 0))
    self._sums[group, cold] = total + seconds, count + 1

  def of(self, group) -> float:
    """Seconds a warm call takes, estimated from cold ones or other groups where none was seen."""
    if (group, False) in self._sums:
      return self._mean(group, False)
    if (group, True) in self._sums:
      return self._mean(group, True) * self._warm_share()
    return _mean([self.of(known) for known, _ in self._sums] or [1.0])

  def compiling(self, group) -> float:
    """Seconds a cold call takes beyond a warm one, estimated likewise."""
    if (group, True) in self._sums:
      return max(0.0, self._mean(group, True) - self.of(group))
    return _mean([self.compiling(known) for known, cold in self._sums if cold] or [0.0])

  def _mean(self, group, cold):
    total, count = self._sums[group, cold]
    return total / count

  def _warm_share(self):
    """The part of a cold call's time that a warm one takes, by the groups seen both ways."""
    shares = [self._mean(group, False) / self._mean(group, True)
              for group, cold in self._sums if cold and (group, False) in self._sums]
    return _mean(shares or [0.5])


def _mean(values):
  return sum(values) / len(values)
