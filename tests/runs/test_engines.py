"""Engines, with real processes: crashes, kills, signals, and who gets which task."""
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import worker_functions
from big_transfer.runs import engines
from big_transfer.runs import records
from big_transfer.runs.engines import crew as crew_lib
from big_transfer.runs.engines import local
from big_transfer.runs.engines import tasks as tasks_lib

DRIVER = """
import sys
import worker_functions
from big_transfer.runs import engines
folder, do = sys.argv[1:]
tasks = [engines.Task(n, "g", {"do": do, "name": n, "folder": folder}, f"{folder}/{n}.log")
         for n in "abcd"]
outcomes, number = engines.run_local(tasks, worker_functions.act, jobs=2)
print(*(outcome.status for outcome in outcomes))
sys.exit(128 + number if number else 0)
"""


def task(folder, name, do="work", group="g", **more):
  return engines.Task(name, group, {"do": do, "name": name, "folder": str(folder)} | more,
                      str(folder / "logs" / f"{name}.log"))


def run(tasks, jobs=2, **more):
  outcomes, number = engines.run_local(tasks, worker_functions.act, jobs=jobs, **more)
  assert number is None
  return outcomes


def test_failures_are_retried_then_told(tmp_path):
  told = []
  todo = [task(tmp_path, "good"), task(tmp_path, "dies", "die once"),
          task(tmp_path, "slips", "raise once"), task(tmp_path, "bad", "raise"),
          task(tmp_path, "odd", "unsendable"), task(tmp_path, "wrong", "refuse"),
          task(tmp_path, "late")]
  outcomes = good, dies, slips, bad, odd, wrong, late = run(todo, report=told.append)
  assert [o.status for o in outcomes] == [
      "done", "done", "done", "failed", "failed", "failed", "done"]
  assert [o.attempts for o in outcomes] == [1, 2, 2, 2, 2, 1, 1]
  assert wrong.error == "ValueError: wrong is refused"
  assert (good.error, slips.error) == ("", "RuntimeError: slips went wrong")
  assert "killed by SIGKILL (out of memory?)" in dies.error
  assert bad.error == "RuntimeError: bad went wrong" and "can't be sent" in odd.error
  log = (tmp_path / "logs" / "bad.log").read_text()
  assert log.count("bad at work") == 2 and "attempt 2" in log and "RuntimeError" in log
  assert "Traceback" not in (tmp_path / "logs" / "good.log").read_text()
  last = told[-1]
  assert (last.done, last.running, last.failed, last.total) == (4, 0, 3, 7)
  assert max(progress.running for progress in told) <= 2


def test_workers_share_the_cores(tmp_path):
  outcomes = run([task(tmp_path, n, "compile", program=n, group=n) for n in "ab"])
  cores = {o.result["pid"]: o.result["cores"] for o in outcomes}
  mine = sorted(os.sched_getaffinity(0))
  assert len(cores) == 2
  if len(mine) > 1:
    assert sorted(sum(cores.values(), [])) == mine
  else:
    assert list(cores.values()) == [mine, mine]


def test_a_program_is_compiled_in_as_few_processes_as_can_be(tmp_path):
  """Three groups, two workers: first come, first served would compile each group in both."""
  todo = [task(tmp_path, f"{g}{i}", "compile", program=g, group=g)
          for i in range(4) for g in "abc"]
  pairs = {(o.task.group, o.result["pid"]) for o in run(todo)}
  assert len({pid for _, pid in pairs}) == 2, "both work"
  assert len(pairs) <= 4


def test_joining_a_group_pays_only_if_compiling_is_quicker_than_waiting(tmp_path):
  crew = local._Crew(None, 2, tasks_lib.Book([], 1))
  idle, busy = (object.__new__(local._Worker) for _ in range(2))
  idle.groups, busy.groups, busy.cold = ["other"], ["g"], False
  busy.task, busy.started = task(tmp_path, "now"), time.monotonic()
  idle.task = None
  crew.workers = [idle, busy]
  assert crew._worth_joining(idle, "g", [1]), "nothing is known yet"
  for cold, seconds in ((True, 50.0), (False, 20.0)):  # compiling takes 30, a task 20
    crew.times.add("g", cold, seconds)
  assert not crew._worth_joining(idle, "g", [1]), "the other starts it in 20"
  assert crew._worth_joining(idle, "g", [1, 2]), "the other starts the last in 40"
  idle.groups = ["g", "other"]
  assert crew._worth_joining(idle, "g", [1]), "compiled here before"


def test_who_compiled_a_group_goes_on_with_it(tmp_path, monkeypatch):
  """Both become idle in one tick; the one that is asked first knows nothing of the group."""
  given = []
  monkeypatch.setattr(local._Crew, "give", lambda self, worker, *_: given.append(worker))
  todo = task(tmp_path, "last")
  crew = local._Crew(None, 2, tasks_lib.Book([todo], 1))
  stranger, owner = (object.__new__(local._Worker) for _ in range(2))
  for worker, group in ((stranger, "other"), (owner, "g")):
    worker.ready, worker.task, worker.groups = True, None, [group]
  crew.workers = [stranger, owner]
  crew.assign()
  assert given == [owner]


def test_what_a_warm_call_takes_is_told_from_a_cold_one():
  times = crew_lib.Times()
  assert not times.known
  times.add("a", True, 10.0)
  times.add("a", False, 1.0)
  times.add("b", True, 20.0)  # nobody has run b twice: as in a, a tenth of it is the work
  assert (times.of("a"), times.compiling("a")) == (1.0, 9.0)
  assert (times.of("b"), times.compiling("b")) == pytest.approx((2.0, 18.0))
  assert 1.0 <= times.of("c") <= 2.0 and 9.0 <= times.compiling("c") <= 18.0


def start(folder, do):
  """Starts the driver and waits until two workers are at work; returns it and their ids."""
  path = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
  driver = subprocess.Popen(
      [sys.executable, "-c", DRIVER, str(folder), do], stdout=subprocess.PIPE, text=True,
      env=os.environ | {"PYTHONPATH": path})
  until(lambda: len([p for p in folder.glob("*.started") if p.read_text()]) == 2)
  return driver, [int(p.read_text()) for p in folder.glob("*.started")]


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # A dead process whose new parent hasn't reaped it yet still has a number.
  return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_workers_save_and_leaves_no_orphan(tmp_path, number):
  driver, workers = start(tmp_path, "save")
  driver.send_signal(number)
  out, _ = driver.communicate(timeout=20)
  assert driver.returncode == 128 + number
  assert out.split() == ["unfinished"] * 4
  assert len(list(tmp_path.glob("*.saved"))) == 2
  assert not any(map(alive, workers))


def test_a_second_signal_ends_at_once(tmp_path):
  driver, workers = start(tmp_path, "ignore")
  driver.send_signal(signal.SIGINT)
  time.sleep(0.3)
  driver.send_signal(signal.SIGINT)
  driver.communicate(timeout=20)
  assert driver.returncode == 130
  assert not any(map(alive, workers))


def test_workers_save_and_end_when_their_parent_is_killed(tmp_path):
  driver, workers = start(tmp_path, "save")
  driver.kill()
  driver.communicate(timeout=20)
  until(lambda: not any(map(alive, workers)))
  assert len(list(tmp_path.glob("*.saved"))) == 2


def test_bad_arguments(tmp_path):
  with pytest.raises(ValueError, match="jobs=0"):
    run([task(tmp_path, "a")], jobs=0)
  with pytest.raises(ValueError, match="'a' occurs 2 times"):
    run([task(tmp_path, "a"), task(tmp_path, "a")])
  assert run([]) == []


def test_a_log_that_can_t_be_written_fails_its_task_only(tmp_path):
  (tmp_path / "logs").touch()
  outcome, = run([task(tmp_path, "a")], jobs=1)
  assert outcome.status == "failed" and "logs" in outcome.error


def test_workers_that_can_t_start_are_an_error(tmp_path, monkeypatch, capfd):
  """The name is gone in the new process: the function can be told from here, not found there."""
  monkeypatch.setattr(worker_functions, "added_later", added_later, raising=False)
  monkeypatch.setattr(added_later, "__module__", "worker_functions")
  with pytest.raises(engines.EngineError, match="worker_functions.added_later' importable"):
    engines.run_local([task(tmp_path, "a")], added_later, jobs=1)
  assert "added_later" in capfd.readouterr().err


def added_later(payload):
  return payload


def test_losses_cost_no_attempt_but_have_an_end(tmp_path):
  one = task(tmp_path, "a")
  book = tasks_lib.Book([one], retries=1)
  for losses in range(1, tasks_lib.LOSSES + 1):
    book.start(one)
    book.lost(one, "its node went")
    assert book.pending == [one] and book.outcomes["a"].losses == losses
  for pending in ([one], []):  # both attempts are still its own
    book.start(one)
    book.failed(one, "it raised")
    assert book.pending == pending
  assert book.outcomes["a"].status == "failed"
  book = tasks_lib.Book([one], retries=1)
  while book.pending:
    book.start(one)
    book.lost(one, "its node went")
  assert book.outcomes["a"].attempts == tasks_lib.LOSSES + 1
  assert book.outcomes["a"].error == "lost 21 times; the last time its node went"


def test_a_trial_that_was_lost_waits_for_its_folder(tmp_path, monkeypatch, capsys):
  """The process that is thought lost may hold the lock for a while; a first attempt is refused."""
  held = records.Record(tmp_path / "run")
  payload = {"workdir": str(tmp_path / "run")}

  def use(given):
    with records.Record(given["workdir"]):
      return "had it"
  log = str(tmp_path / "log.txt")
  kind, error = tasks_lib.call(use, payload, log, 1)
  assert kind == "refused" and "RecordError" in error
  monkeypatch.setattr(tasks_lib.time, "sleep", lambda seconds: held.close())
  assert tasks_lib.call(use, payload, log, 2, lost=True) == ("done", "had it")
  assert "the attempt before was lost" in capsys.readouterr().out
