"""Sweeps: trials, folders, what is skipped, continued, retried and refused."""
import io
import pathlib
import signal

import pytest

from big_transfer import sweep
from big_transfer.runs import configuring
from big_transfer.runs import engines
from big_transfer.runs import records

SWEEP = '''
from ml_collections import ConfigDict
def get_config():
  return ConfigDict(dict(total_steps=10, log_every=5, model=dict(name="vit", width=8),
                         optim=dict(lr=0.1)))
def get_sweep():
  for width in (8, 16):
    for lr in (0.1, 1.0):
      yield {"model.width": width, "optim.lr": lr}
'''


@pytest.fixture
def spec(tmp_path):
  path = tmp_path / "some.py"
  path.write_text(SWEEP)
  return str(path)


@pytest.fixture
def run(spec, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent / "runs"))
  import worker_functions

  def run(**more):
    out = io.StringIO()
    result = sweep.sweep(spec, tmp_path / "out", 2, function=worker_functions.train,
                         group_of=worker_functions.group_of, out=out, **more)
    return result, out.getvalue()
  return run


def edit(spec, old, new):
  path = pathlib.Path(spec)
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))


def test_a_second_run_skips_what_finished_and_retries_what_failed(run, spec, tmp_path):
  edit(spec, "(0.1, 1.0)", "(0.1, 10.0)")
  result, text = run()
  assert [outcome.status for outcome in result.outcomes] == ["done", "failed"] * 2
  one, two = result.trials[1::2]
  assert (f"failed: 2 trials: {one.name}; {two.name} (attempts: 2; log of the first: "
          f"{one.folder / 'log.txt'})\n") in text
  assert text.count("the log of the first ends:") == 1, "equal errors are told together"
  assert "Traceback" in text and "^^^" not in text
  assert "4 trials in 0:0" in text and "2 finished (0 before), 2 failed, 0 unfinished" in text
  good = records.read_run(result.trials[0].folder)
  assert good["runs"] == 1 and good["name"] == "model.width=8, optim.lr=0.1"
  assert good["overrides"] == {"model.width": 8, "optim.lr": 0.1}

  again, text = run(retries=0)
  assert [outcome.status for outcome in again.outcomes] == ["failed"] * 2
  assert "2 finished (2 before), 2 failed" in text
  assert records.read_run(result.trials[0].folder)["runs"] == 1
  assert records.read_run(result.trials[1].folder)["runs"] == 3
  assert len([p for p in (tmp_path / "out").iterdir()]) == 4


def test_a_mistake_is_told_once_and_not_tried_again(run, spec, tmp_path):
  edit(spec, "(0.1, 1.0)", "(0.1, 11.0, 12.0)")
  result, text = run()
  assert [outcome.attempts for outcome in result.outcomes] == [1] * 6
  names = [trial.name for trial in result.trials if trial.config["optim"]["lr"] > 10]
  assert text.count("failed: ") == text.count("\n  ValueError: no such folder\n") == 1
  assert f"failed: 4 trials: {'; '.join(names[:3])}; and 1 more (attempts: 1; log of the" in text
  assert names[3] not in text


def test_folders_outlive_new_settings_and_other_housekeeping(run, spec, tmp_path):
  before = sweep.trials_of(spec, tmp_path / "out")
  run()
  edit(spec, "log_every=5", "log_every=1, nesterov=False")
  after = sweep.trials_of(spec, tmp_path / "out")
  assert [t.folder for t in before] == [t.folder for t in after]
  assert all(t.finished for t in after) and not any(t.finished for t in before)
  assert not any("nesterov" in t.config for t in after)  # one half done goes on without it, too
  assert run()[0].outcomes == []


def test_a_base_value_that_changed_is_an_error_with_its_key(run, spec, tmp_path):
  run()
  edit(spec, 'name="vit"', 'name="mixer"')
  with pytest.raises(configuring.ConfigError, match="model.name: 'vit', now 'mixer'"):
    sweep.trials_of(spec, tmp_path / "out")
  assert not any(t.finished for t in sweep.trials_of(spec, tmp_path / "elsewhere"))


def test_the_command_line_changes_every_trial_and_its_folder(spec, tmp_path):
  plain = sweep.trials_of(spec, tmp_path)
  longer = sweep.trials_of(spec, tmp_path, {"total_steps": "20"})
  quieter = sweep.trials_of(spec, tmp_path, {"log_every": "9"})
  assert [t.config["total_steps"] for t in longer] == [20] * 4
  assert longer[0].overrides == {"total_steps": 20, "model.width": 8, "optim.lr": 0.1}
  assert not {t.folder for t in plain} & {t.folder for t in longer}
  assert [t.folder for t in plain] == [t.folder for t in quieter]
  with pytest.raises(configuring.ConfigError, match="'model.width' is varied by the sweep"):
    sweep.trials_of(spec, tmp_path, {"model.width": "3"})


def test_trials_may_differ_in_length_but_not_in_logging_alone(spec, tmp_path):
  edit(spec, '"optim.lr": lr', '"total_steps": int(10 * lr)')
  assert len({t.folder for t in sweep.trials_of(spec, tmp_path)}) == 4
  edit(spec, '"total_steps"', '"log_every"')
  with pytest.raises(configuring.ConfigError, match="only in logging or saving"):
    sweep.trials_of(spec, tmp_path)


def test_a_trial_that_no_model_can_be_built_from_stops_all_before_it_starts(run, spec, tmp_path):
  edit(spec, "(8, 16)", "(8, 0)")
  with pytest.raises(configuring.ConfigError, match="trial 'model.width=0, optim.lr=0.1': .*is 0"):
    run()
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, words", [
    (["--sweep=no.py"], "'no.py' doesn't exist"),
    (["--sweep=SPEC", "--config.optim.lrr=1"], "did you mean 'optim.lr'"),
    (["--sweep=SPEC", "--config.total_steps=many"], "expects a whole number"),
    (["--sweep=EMPTY"], "has no trials"),
])
def test_main_says_what_is_wrong_in_one_line(spec, tmp_path, capsys, arguments, words):
  empty = tmp_path / "empty.py"
  empty.write_text(SWEEP.replace("(8, 16)", "()"))
  arguments = [a.replace("SPEC", spec).replace("EMPTY", str(empty)) for a in arguments]
  assert sweep.main([*arguments, f"--workdir={tmp_path / 'out'}"]) == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and err.count("\n") == 1 and words in err and not out


@pytest.mark.parametrize("statuses, number, code", [
    (["done", "done"], None, 0), (["done", "failed"], None, 1),
    (["done", "unfinished"], signal.SIGINT, 130), (["failed", "unfinished"], signal.SIGTERM, 143)])
def test_exit_codes(monkeypatch, statuses, number, code):
  outcomes = [engines.Outcome(None, status) for status in statuses]
  monkeypatch.setattr(sweep, "sweep", lambda *a, **k: sweep.Result([], outcomes, number))
  assert sweep.main(["--sweep=x.py", "--workdir=y"]) == code


class Screen(io.StringIO):
  """Stands for a terminal."""

  def isatty(self):
    return True


def test_the_live_line_is_rewritten_on_a_terminal_and_sparse_elsewhere():
  screen, file = Screen(), io.StringIO()
  for out in (screen, file):
    line = sweep._LiveLine(out, before=5, total=30)
    for done in range(4):
      line.show(engines.Progress(done, 2, 1, 25, 3700 - done))
    line.end()
  assert screen.getvalue().count("\n") == 1 and screen.getvalue().count("\r") == 4
  assert "\rdone 8 · running 2 · failed 1 of 30 · time left ~1:01:37\x1b[K\n" in screen.getvalue()
  assert file.getvalue() == "done 5 · running 2 · failed 1 of 30 · time left ~1:01:40\n"
