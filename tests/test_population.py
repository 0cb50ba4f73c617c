"""Populations: each member as it would be alone, whatever happens to it or to the others."""
import contextlib
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from big_transfer import population
from big_transfer import sweep
from big_transfer import train
from big_transfer.runs import configuring
from big_transfer.runs import engines
from big_transfer.runs import records
from big_transfer.training import batching
from big_transfer.training import checkpoint
from big_transfer.training import upstream
from tests import population_run
from tests import toy

M = population_run.MEMBERS


# ---- as alone ----


def _check(found, devices):
  assert found["devices"] == devices
  assert found["draws"], "rows differ in more than their values: other data, draws or steps"
  assert found["gradients"] < 1e-5 and found["losses"] < 1e-5, found
  assert found["accuracy"] <= 0.05, "one of the twenty examples held out may cross a boundary"
  assert found["spread"] > 1e-3, "members are alike, so that mixing them up would not show"


def test_members_are_as_alone(tmp_path):
  _check(population_run.compare(tmp_path, "vit", "different"), 8)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("seeds", ["different", "equal"])
@pytest.mark.parametrize("model", population_run.MODELS)
def test_members_are_as_alone_in_every_family(tmp_path, model, seeds, devices):
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
  ended = subprocess.run(
      [sys.executable, "-m", "tests.population_run", str(tmp_path), model, seeds], check=False,
      env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True)
  assert ended.returncode == 0, ended.stdout
  _check(json.loads(ended.stdout.splitlines()[-1]), devices)


# ---- killed, continued, diverged ----


class Killed(BaseException):
  """Stands for kill -9: nothing catches it."""


def _kill():
  raise Killed


def _same(one, other, step=8):
  assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
  expected, found = population_run.state(one, step), population_run.state(other, step)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("undisturbed")
  runs = population_run.population(folder, population_run.saving())
  assert [run["status"] for run in runs] == ["finished"] * M
  assert [run["population"] for run in runs] == [M] * M
  return folder


def test_a_kill_between_saves_leaves_a_common_step(undisturbed, tmp_path):
  with population_run.dying_at_save(M + 2, _kill), pytest.raises(Killed):
    population_run.population(tmp_path, population_run.saving())
  steps = [sorted(int(path.name) for path in (tmp_path / str(i) / "checkpoints").iterdir()
                  if path.name.isdigit()) for i in range(M)]
  assert steps == [[2, 4]] * 2 + [[2]] * 2
  folders = [tmp_path / str(i) for i in range(M)]
  assert population.together(range(M), folders) == [list(range(M))]
  population_run.population(tmp_path, population_run.saving())
  for i in range(M):
    _same(undisturbed / str(i), tmp_path / str(i))


@pytest.mark.slow
def test_a_member_goes_on_alone_and_runs_alone_go_on_together(undisturbed, tmp_path):
  half, whole = (population_run.saving(total_steps=steps, evals={}) for steps in (4, 8))
  population_run.population(tmp_path / "a", half)
  train.train(whole[1], tmp_path / "a" / "1", allow_changes=True)
  for i in (0, 1):
    train.train(half[i], tmp_path / "b" / str(i))
  population_run.population(tmp_path / "b", whole[:2], allow_changes=True)
  for run in (tmp_path / "a" / "1", tmp_path / "b" / "1"):
    losses, expected = ([row["value"] for row in population_run.rows(folder)
                         if row["metric"] == "loss" and row["evaluator"] == "train"]
                        for folder in (run, undisturbed / "1"))
    assert losses == pytest.approx(expected, rel=1e-5) and len(losses) == 8


def test_one_that_diverges_leaves_the_others_as_they_are(undisturbed, tmp_path):
  configs = population_run.saving()
  configs[2].optim.lr = 1e30
  runs = population_run.population(tmp_path, configs)
  assert [run["status"] for run in runs] == ["finished", "finished", "failed", "finished"]
  assert runs[2]["error"].startswith("NonFiniteError: ") and "optim.lr" in runs[2]["error"]
  for i in (0, 1, 3):
    _same(undisturbed / str(i), tmp_path / str(i))
  folders = [tmp_path / str(i) for i in range(M)]
  assert population.together("abcd", folders) == [["a", "b", "d"], ["c"]]


# ---- grouping ----


def _trial(tmp_path, name, steps=(), error=None):
  folder = tmp_path / name
  for step in steps:
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "checkpoints" / str(step) / checkpoint.MANIFEST).write_text("{}")
  if error:
    folder.mkdir(exist_ok=True)
    records.write_atomic(folder / records.RUN, json.dumps({"status": "failed", "error": error}))
  return types.SimpleNamespace(name=name, folder=folder)


def _names(chunks):
  return ["".join(trial.name for trial in chunk) for chunk in chunks]


def test_trials_are_grouped_by_what_is_alike_and_where_they_go_on(tmp_path):
  trials = [
      _trial(tmp_path, "a"), _trial(tmp_path, "b", [10, 20]), _trial(tmp_path, "c", [10]),
      _trial(tmp_path, "d", [30, 40]), _trial(tmp_path, "E"), _trial(tmp_path, "f"),
      _trial(tmp_path, "g", [10, 20], "NonFiniteError: loss"), _trial(tmp_path, "h", [20, 30]),
      _trial(tmp_path, "i", [10, 20], "OSError: disk")]
  alike = lambda trial: str(trial.name.isupper())
  # h has step 20 with b alone, and step 30 with d.
  assert _names(population.chunks(trials, alike, 9, 1)) == ["af", "bci", "dh", "E", "g"]
  assert _names(population.chunks(trials, alike, 2, 1)) == ["af", "bc", "dh", "E", "g", "i"]
  assert _names(population.chunks(trials, alike, "auto", 2)) == [
      "a", "bc", "d", "E", "f", "g", "h", "i"]


@pytest.mark.parametrize("n, most, sizes", [
    (16, 16, [16]), (16, 5, [4] * 4), (7, 3, [3, 3, 1]), (1, 9, [1]), (10, 4, [4, 4, 2])])
def test_parts_are_few_and_alike(n, most, sizes):
  parts = population.parts(range(n), most)
  assert [len(part) for part in parts] == sizes and sum(parts, []) == list(range(n))


def test_auto_leaves_work_for_every_worker(tmp_path):
  trials = [_trial(tmp_path, chr(97 + i)) for i in range(24)]
  sizes = lambda most, jobs: [len(c) for c in population.chunks(trials, lambda t: "", most, jobs)]
  assert sizes("auto", 1) == [12, 12] and sizes("auto", 4) == [6] * 4
  assert sizes(24, 4) == [24], "a number is taken at its word"


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_a_size_that_is_none_is_told(text, tmp_path, capsys):
  assert sweep.main(["--sweep=configs/quickstart.py", f"--workdir={tmp_path / 'out'}",
                     f"--population={text}"]) == 2
  out, err = capsys.readouterr()
  assert f"--population is '{text}': expected a whole number" in err and err.count("\n") == 1


# ---- in a sweep ----


SWEEP = '''
from tests import toy
def get_config():
  return toy.config(evals={}, checkpoint={}, total_steps=4)
def get_sweep():
  for rate in (1e-3, 1e-2, 1e30):
    yield {"optim.lr": rate}
  yield {"total_steps": 5}
'''


@pytest.fixture
def in_process(monkeypatch):
  """An engine that calls the function here, as often as it may, and says how it went."""
  given = []

  def run(tasks, function, *, retries, report, jobs):
    given.extend(tasks)
    outcomes = []
    for task in tasks:
      for attempt in range(1, retries + 2):
        report(engines.Progress(len(outcomes), 1, 0, len(tasks), None))
        with contextlib.redirect_stdout(io.StringIO()):
          kind, value = engines.tasks.call(function, task.payload, task.log, attempt)
        if kind == "done":
          outcomes.append(engines.Outcome(task, "done", value, attempts=attempt))
          break
      else:
        outcomes.append(engines.Outcome(task, "failed", error=value, attempts=attempt))
    report(engines.Progress(len(tasks), 0, 0, len(tasks), None))
    return outcomes, None

  monkeypatch.setattr(engines, "run_local", run)
  return given


def _sweep(tmp_path, most, **more):
  spec = tmp_path / "some.py"
  spec.write_text(SWEEP)
  out = io.StringIO()
  return sweep.sweep(str(spec), tmp_path / "out", 1, population=most, out=out, **more), out


def test_a_sweep_counts_and_tells_of_trials_not_tasks(tmp_path, in_process):
  result, out = _sweep(tmp_path, 3)
  assert [len(task.payload.get("members", "1")) for task in in_process] == [3, 1]
  assert [outcome.status for outcome in result.outcomes] == ["done", "done", "failed", "done"]
  assert [outcome.task.key for outcome in result.outcomes] == [t.folder.name for t in result.trials]
  assert result.outcomes[1].result["population"] == 3
  assert "failed: optim.lr=1e+30 (attempts: 1;" in out.getvalue()
  assert "4 trials in" in out.getvalue() and "3 finished (0 before), 1 failed" in out.getvalue()
  assert "population" not in records.read_run(result.trials[3].folder)
  refers = (result.trials[1].folder / "log.txt").read_text()
  assert refers.endswith(f"output is in ../{result.trials[0].folder.name}/log.txt\n")
  # The same command again: what diverged is tried alone, the rest is skipped.
  del in_process[:]
  again, _ = _sweep(tmp_path, 3, retries=0)
  assert [outcome.status for outcome in again.outcomes] == ["failed"] and len(in_process) == 1


def test_a_retry_trains_only_what_is_not_finished(tmp_path, in_process, monkeypatch):
  calls, original = [], train.train_population

  def flaky(runs):
    calls.append([run["workdir"] for run in runs])
    if len(calls) == 2:
      raise OSError("disk is away")
    return original(runs)

  monkeypatch.setattr(train, "train_population", flaky)
  choice = batching.Choice(1, 0.1, None, "one after the other")
  monkeypatch.setattr(train, "choose_population", lambda *args, **kwargs: choice)
  population._chosen.cache_clear()
  result, _ = _sweep(tmp_path, "auto")
  population._chosen.cache_clear()
  assert [outcome.status for outcome in result.outcomes] == ["done", "done", "failed", "done"]
  names = [str(trial.folder) for trial in result.trials]
  assert calls[:4] == [[names[0]], [names[1]], [names[2]], [names[1]]]
  assert calls[4:6] == [[names[2]], [names[3]]], "what diverged is tried once an attempt"
  assert records.read_run(names[0])["population_choice"]["why"] == "one after the other"


def test_all_of_a_population_fail_with_what_it_raises(tmp_path, in_process, monkeypatch):
  def broken(runs):
    raise OSError("disk is away")

  monkeypatch.setattr(train, "train_population", broken)
  result, out = _sweep(tmp_path, 3, retries=0)
  assert [outcome.error for outcome in result.outcomes] == ["OSError: disk is away"] * 4
  assert "failed: 4 trials:" in out.getvalue()


def test_one_that_cannot_be_leaves_the_others(tmp_path, in_process):
  _sweep(tmp_path, 3)  # makes the folders
  trials = sweep.trials_of(str(tmp_path / "some.py"), tmp_path / "out")
  first = {**trials[0].config, "total_steps": 2}
  for trial in trials[:2]:
    (trial.folder / records.RUN).unlink()
  records.write_atomic(trials[0].folder / records.CONFIG, json.dumps(first))
  members = [{"config": trial.config, "workdir": str(trial.folder)} for trial in trials[:2]]
  members[0]["config"] = {**trials[0].config, "label_smoothing": 0.5}
  runs = population.run_trials({"members": members, "population": 2, "logs": [
      str(trial.folder / "log.txt") for trial in trials[:2]]})
  assert [run["status"] for run in runs] == ["failed", "finished"]
  assert "label_smoothing" in runs[0]["error"]


# ---- what is faster ----


def _choose(monkeypatch, *, alone, together, compiling, bytes_=1, steps=1000, members=8):
  """The choice where steps take as long as said; `together` of one member among many."""

  class Timed:
    def __init__(self, program, hparams, batch, stacked):
      self.program, self.state, self.bytes = program, None, bytes_
      self.compiling = compiling
      asked.append(program.members)

    def compile(self, state):
      self.state = state

    def time(self):
      many = self.program.members
      return together * many if many else alone

  asked = []
  monkeypatch.setattr(batching, "_Timed", Timed)
  monkeypatch.setattr(batching, "_copies", lambda *args: None)
  monkeypatch.setattr(batching, "_memory", lambda: 100)
  config = toy.config(total_steps=steps)
  program = lambda members: types.SimpleNamespace(
      members=members, names=["head/kernel", "x"], init=lambda seed: None)
  settings = configuring.build(train.Settings, configuring.plain(config), "")
  choice = batching.choose(program, settings, upstream.open_data(settings), members,
                           same_data=False)
  return choice, asked


@pytest.mark.parametrize("case, members, asked", [
    (dict(alone=2e-3, together=1e-3, compiling=1), 8, [None, 8]),
    (dict(alone=2e-3, together=3e-3, compiling=1), 1, [None, 8]),
    (dict(alone=2e-3, together=1.99e-3, compiling=1), 1, [None, 8]),  # within noise
    (dict(alone=2e-3, together=1e-3, compiling=4), 1, [None]),  # a fifth of 16 s is less
    (dict(alone=20e-3, together=1e-3, compiling=4), 1, [None]),  # of 160 s a fiftieth
    (dict(alone=20e-3, together=10e-3, compiling=3), 8, [None, 8]),
    (dict(alone=2e-3, together=1e-3, compiling=1, bytes_=30), 3, [None, 3]),
    (dict(alone=2e-3, together=1e-3, compiling=1, bytes_=60), 1, [None])])
def test_auto_takes_the_faster_and_asks_where_it_pays(monkeypatch, case, members, asked):
  choice, found = _choose(monkeypatch, **case)
  assert (choice.members, found) == (members, asked)
  assert f"{1e3 * case['alone']:.3g} ms" in choice.why


@pytest.mark.slow
def test_auto_times_the_real_step_and_training_finds_it_compiled(monkeypatch):
  monkeypatch.setattr(batching, "_LIKELY", 1e9)
  monkeypatch.setattr(batching, "_SHORT", 1e9)
  config = toy.config(evals={}, total_steps=4)
  choice = train.choose_population(config, 4, same_data=False)
  assert choice.alone > 0 and choice.together > 0 and choice.members in (1, 4)
  if choice.members == 4:
    assert choice.together < choice.alone
