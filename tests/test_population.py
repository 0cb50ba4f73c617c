"""Populations: each member as it would be alone, whatever happens to it or to the others."""
import contextlib
import io
import json
import os
import signal
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
from big_transfer.training import interrupts
from big_transfer.training import program as program_lib
from big_transfer.training import upstream
from tests import population_run
from tests import toy

M = population_run.MEMBERS


# ---- as alone ----


@pytest.mark.slow
@pytest.mark.parametrize("model, seeds, devices", [
    ("vit", "different", 8), ("mixer", "equal", 8), ("resnet", "different", 1),
    ("vit", "equal", 1)])
def test_members_are_as_alone_in_every_family(tmp_path, model, seeds, devices):
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
  ended = subprocess.run(
      [sys.executable, "-m", "tests.population_run", str(tmp_path), model, seeds], check=False,
      env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True)
  assert ended.returncode == 0, ended.stdout
  found = json.loads(ended.stdout.splitlines()[-1])
  assert found["devices"] == devices
  assert found["draws"], "rows differ in more than their values: other data, draws or steps"
  assert found["gradients"] < 1e-5 and found["losses"] < 1e-5, found
  assert found["accuracy"] <= 0.05, "one of the twenty examples held out may cross a boundary"
  assert found["spread"] > 1e-3, "members are alike, so that mixing them up would not show"


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


def test_a_member_takes_the_steps_it_takes_alone(undisturbed, tmp_path):
  train.train(population_run.saving()[2], tmp_path)
  together, alone = population_run.rows(undisturbed / "2"), population_run.rows(tmp_path)
  assert [{**row, "value": 0} for row in alone] == [{**row, "value": 0} for row in together]
  losses, expected = ([row["value"] for row in rows if row["metric"] == "loss"]
                      for rows in (together, alone))
  assert losses == pytest.approx(expected, rel=1e-5) and len(losses) == 8


@pytest.mark.slow
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
  run = train.train(whole[1], tmp_path / "a" / "1", allow_changes=True)
  assert run["population"] is None
  for i in (0, 1):
    assert "population" not in train.train(half[i], tmp_path / "b" / str(i))
  population_run.population(tmp_path / "b", whole[:2], allow_changes=True)
  for run in (tmp_path / "a" / "1", tmp_path / "b" / "1"):
    losses, expected = ([row["value"] for row in population_run.rows(folder)
                         if row["metric"] == "loss" and row["evaluator"] == "train"]
                        for folder in (run, undisturbed / "1"))
    assert losses == pytest.approx(expected, rel=1e-5) and len(losses) == 8


def test_one_that_diverges_leaves_the_others_as_they_are(undisturbed, tmp_path, capsys):
  configs = population_run.saving()
  configs[2].optim.lr = 1e30
  runs = population_run.population(tmp_path, configs)
  assert [run["status"] for run in runs] == ["finished", "finished", "failed", "finished"]
  assert runs[2]["error"].startswith("NonFiniteError: ") and "optim.lr" in runs[2]["error"]
  for i in (0, 1, 3):
    _same(undisturbed / str(i), tmp_path / str(i))
  folders = [tmp_path / str(i) for i in range(M)]
  assert population.together("abcd", folders) == [["a", "b", "d"], ["c"]]
  for config in configs:
    config.optim.lr = 1e30
  runs = population_run.population(tmp_path / "all", configs)
  assert [run["status"] for run in runs] == ["failed"] * M
  assert capsys.readouterr().out.endswith("no run is left: all diverged\n")


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


@pytest.fixture
def trained(monkeypatch):
  """Training that takes no time; a rate of 1e30 diverges. Lists the folders of each call."""
  calls = []

  def population_of(runs):
    calls.append([run["workdir"] for run in runs])
    results = []
    for run in runs:
      diverges = run["config"]["optim"]["lr"] > 1
      error = "NonFiniteError: a lower optim.lr" if diverges else None
      with records.Record(run["workdir"]) as record:
        record.write_config(run["config"])
        results.append(record.update_run(
            status="failed" if diverges else "finished", error=error, population=len(runs),
            population_choice=run["choice"] and run["choice"]._asdict()))
      if diverges and len(runs) == 1:
        raise train.NonFiniteError("a lower optim.lr")
    return results

  monkeypatch.setattr(train, "train_population", population_of)
  return calls


def _sweep(tmp_path, most, **more):
  spec = tmp_path / "some.py"
  spec.write_text(SWEEP)
  out = io.StringIO()
  return sweep.sweep(str(spec), tmp_path / "out", 1, population=most, out=out, **more), out


def test_a_sweep_counts_and_tells_of_trials_not_tasks(tmp_path, in_process, trained, monkeypatch):
  monkeypatch.setattr(train, "train", lambda choice=None, allow_changes=True, **run:
                      train.train_population([{**run, "choice": choice}])[0])
  result, out = _sweep(tmp_path, 3)
  assert [len(task.payload.get("members", "1")) for task in in_process] == [3, 1]
  assert [outcome.status for outcome in result.outcomes] == ["done", "done", "failed", "done"]
  assert [outcome.task.key for outcome in result.outcomes] == [t.folder.name for t in result.trials]
  assert result.outcomes[1].result["population"] == 3
  assert "failed: optim.lr=1e+30 (attempts: 1;" in out.getvalue()
  assert "4 trials in" in out.getvalue() and "3 finished (0 before), 1 failed" in out.getvalue()
  refers = (result.trials[1].folder / "log.txt").read_text()
  assert refers.endswith(f"output is in ../{result.trials[0].folder.name}/log.txt\n")
  # The same command again: what diverged is tried alone, the rest is skipped.
  del in_process[:]
  again, _ = _sweep(tmp_path, 3, retries=0)
  assert [outcome.status for outcome in again.outcomes] == ["failed"] and len(in_process) == 1


def test_a_retry_trains_only_what_is_not_finished(tmp_path, in_process, trained, monkeypatch):
  original = train.train_population

  def flaky(runs):
    if len(trained) == 1:
      trained.append(["the disk is away"])
      raise OSError("disk is away")
    return original(runs)

  def choose(config, members, *, same_data, step):
    asked.append((members, same_data, step))
    return batching.Choice(1, 0.1, None, "one after the other")

  asked = []
  monkeypatch.setattr(train, "train_population", flaky)
  monkeypatch.setattr(train, "choose_population", choose)
  monkeypatch.setattr(train, "train", lambda **run: train.train_population([
      {**run, "choice": None}])[0])
  population._chosen.cache_clear()
  result, _ = _sweep(tmp_path, "auto")
  population._chosen.cache_clear()
  assert [outcome.status for outcome in result.outcomes] == ["done", "done", "failed", "done"]
  names = [str(trial.folder) for trial in result.trials]
  assert trained[:4] == [[names[0]], ["the disk is away"], [names[2]], [names[1]]]
  assert trained[4:6] == [[names[2]], [names[3]]], "what diverged is tried once an attempt"
  assert asked == [(3, True, 0)], "of those left one diverged, which goes alone"
  assert records.read_run(names[0])["population_choice"]["why"] == "one after the other"


def test_all_of_a_population_fail_with_what_it_raises(tmp_path, in_process, monkeypatch):
  def broken(runs):
    raise OSError("disk is away")

  monkeypatch.setattr(train, "train_population", broken)
  result, out = _sweep(tmp_path, 3, retries=0)
  assert [outcome.error for outcome in result.outcomes] == ["OSError: disk is away"] * 4
  assert "failed: 4 trials:" in out.getvalue()


def test_one_that_cannot_be_leaves_the_others(tmp_path, trained, monkeypatch):
  original = train.train_population

  def refusing(runs):
    if any(run["config"]["seed"] == 7 for run in runs):
      raise configuring.ConfigError("no seed of ours")
    return original(runs)

  monkeypatch.setattr(train, "train_population", refusing)
  assert _statuses(_run_trials(tmp_path, seeds=(1, 7, 2))) == ["finished", "failed", "finished"]
  assert len(trained) == 2


def test_a_folder_that_is_held_leaves_the_others(tmp_path, trained):
  with records.Record(tmp_path / "1"):
    with pytest.raises(records.RecordError, match="/1' open: close"):  # to be tried again
      _run_trials(tmp_path, seeds=(1, 2))
  assert records.read_run(tmp_path / "0")["status"] == "finished"
  assert _statuses(_run_trials(tmp_path, seeds=(1, 2))) == ["finished"] * 2
  assert [len(call) for call in trained] == [2, 1, 1, 1]


def test_a_signal_that_comes_as_a_run_ends_begins_no_other(tmp_path, trained, monkeypatch):
  original = train.train_population

  def told_late(runs):
    with interrupts.Interrupts():
      result = original(runs)
      os.kill(os.getpid(), signal.SIGTERM)
    return result

  monkeypatch.setattr(train, "train_population", told_late)
  with pytest.raises(RuntimeError, match="stopped early by SIGTERM"):
    _run_trials(tmp_path, seeds=(1, 2), most=1)
  assert trained == [[str(tmp_path / "0")]]


def _run_trials(tmp_path, seeds, most=9):
  folders = [str(tmp_path / str(i)) for i in range(len(seeds))]
  members = [{"config": configuring.plain(toy.config(seed=seed)), "workdir": folder}
             for seed, folder in zip(seeds, folders)]
  return population.run_trials({"members": members, "population": most,
                                "logs": [f"{folder}/log.txt" for folder in folders]})


def _statuses(runs):
  return [run["status"] for run in runs]


def test_what_failed_and_is_tried_again_is_counted_as_it_is_now(tmp_path):
  told, folder = [], tmp_path / "a"
  trials = [types.SimpleNamespace(folder=folder), types.SimpleNamespace(folder=tmp_path / "b")]
  show = population.InTrials([trials], told.append)
  with records.Record(folder) as record:
    for status in ("failed", "running", "finished"):
      record.update_run(status=status)
      show(engines.Progress(0, 0, 0, 1, None))
  assert [(p.done, p.failed) for p in told] == [(0, 1), (0, 0), (1, 0)]


# ---- what is faster ----


def _choose(monkeypatch, *, alone, together, compiling, bytes_=1, step=0, compiled=False):
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
  monkeypatch.setattr(batching, "_compilings", lambda step: [1.0] * compiled)
  config = toy.config(total_steps=1000)
  program = lambda members: types.SimpleNamespace(
      members=members, names=["head/kernel", "x"], init=lambda seed: None, step=members)
  settings = configuring.build(train.Settings, configuring.plain(config), "")
  choice = batching.choose(program, settings, upstream.open_data(settings), 8, same_data=False,
                           step=step)
  return choice, asked


@pytest.mark.parametrize("case, members, asked", [
    (dict(alone=2e-3, together=1e-3, compiling=1), 8, [None, 8]),
    (dict(alone=2e-3, together=3e-3, compiling=1), 1, [None, 8]),
    (dict(alone=2e-3, together=1.99e-3, compiling=1), 1, [None, 8]),  # within noise
    (dict(alone=2e-3, together=1e-3, compiling=4), 1, [None]),  # a fifth of 16 s is less
    (dict(alone=2e-3, together=1e-3, compiling=4, compiled=True), 8, [None, 8]),
    (dict(alone=2e-3, together=1e-3, compiling=3), 8, [None, 8]),
    (dict(alone=2e-3, together=1e-3, compiling=3, step=500), 1, [None]),  # half of it is done
    (dict(alone=20e-3, together=1e-3, compiling=4), 1, [None]),  # of 160 s a fiftieth
    (dict(alone=20e-3, together=10e-3, compiling=3), 8, [None, 8]),
    (dict(alone=2e-3, together=1e-3, compiling=1, bytes_=30), 3, [None, 3]),
    (dict(alone=2e-3, together=1e-3, compiling=1, bytes_=60), 1, [None])])
def test_auto_takes_the_faster_and_asks_where_it_pays(monkeypatch, case, members, asked):
  choice, found = _choose(monkeypatch, **case)
  assert (choice.members, found) == (members, asked)
  assert f"{1e3 * case['alone']:.3g} ms" in choice.why


def test_auto_times_the_program_that_training_takes(tmp_path, monkeypatch):
  """Else it is compiled twice. Axes of one device are left out of what is recorded."""
  def build(**arguments):
    built.append(json.dumps(arguments, sort_keys=True))
    raise InterruptedError

  built, config = [], toy.config(mesh={"data": -1, "fsdp": 1, "tensor": 1}, evals={})
  monkeypatch.setattr(train.program_lib, "build", build)
  for ask in (lambda: train.choose_population(config, 2, same_data=True),
              lambda: train.train(config, tmp_path)):
    with pytest.raises(InterruptedError):
      ask()
  assert built[0] == built[1]


@pytest.mark.slow
def test_auto_times_the_real_step_and_training_finds_it_compiled(monkeypatch):
  monkeypatch.setattr(batching, "_LIKELY", 1e9)
  monkeypatch.setattr(batching, "_SHORT", 1e9)
  config = toy.config(evals={}, total_steps=4)
  choice = train.choose_population(config, 4, same_data=False)
  assert choice.alone > 0 and choice.together > 0 and choice.members in (1, 4)
  if choice.members == 4:
    assert choice.together < choice.alone
  settings = configuring.build(train.Settings, configuring.plain(config), "")
  arguments = dict(classes=4, **program_lib.arguments(settings))
  for members in (None, 4):
    [seconds] = batching._compilings(program_lib.build(members=members, **arguments).step)
    assert seconds > 0, "the second time it is there, and what it took is still known"
