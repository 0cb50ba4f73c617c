"""Traces land where they should, hold the steps asked for, and never end a run."""
import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from big_transfer.runs import configuring
from big_transfer.training import profiling


def _train(profiler, steps):
  """Runs some tiny steps as the loop does."""
  advance = jax.jit(lambda x: x * 1.5 + 1)
  x = jnp.zeros(4)
  for step in steps:
    profiler.step(step, [x])
    x = advance(x)
  profiler.close([x])
  return x


def _marked(folder):
  """The numbers of the steps that a trace's step marks bear."""
  [path] = folder.glob("plugins/profile/*/*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return sorted(int(event["args"]["step_num"]) for event in events
                if event.get("name") == "train" and "step_num" in event.get("args", {}))


def test_a_trace_of_two_steps_and_one_that_training_ends_in(tmp_path, capsys):
  _train(profiling.Profiler([[2, 2], [6, 10]], tmp_path), range(8))
  assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["step_2", "step_6"]
  assert _marked(tmp_path / "profile/step_2") == [2, 3]
  assert _marked(tmp_path / "profile/step_6") == [6, 7]
  assert list((tmp_path / "profile/step_2").glob("plugins/profile/*/*.xplane.pb"))
  assert capsys.readouterr().out.count("profile written") == 2


def test_a_continued_run_traces_what_is_left_of_a_span_and_skips_those_before(tmp_path):
  _train(profiling.Profiler([(0, 3), (4, 3)], tmp_path), range(5, 9))
  assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step_5"]
  assert _marked(tmp_path / "profile/step_5") == [5, 6]


def test_nothing_is_traced_unless_asked_for(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *_: pytest.fail("traced"))
  _train(profiling.Profiler(None, tmp_path), range(3))
  assert not capsys.readouterr().out
  profiler = profiling.Profiler([(10, 2), (20, 1)], tmp_path)
  _train(profiler, range(3))
  assert not list(tmp_path.iterdir())
  profiler.close()  # tells once
  told = capsys.readouterr().out.splitlines()
  assert [line.split(",")[0] for line in told] == [
      "profile: steps 10 to 11 were not reached", "profile: step 20 was not reached"]


@pytest.mark.parametrize("spec, said", [
    (5, "holds 5"), ((1, 0), "(1, 0)"), ((-1, 2), "(-1, 2)"), ((1.0, 2), "(1.0, 2)"),
    ((True, 2), "(True, 2)"), ((1, 2, 3), "(1, 2, 3)"), ([(1, 2), (3, 0)], "(3, 0)"),
    ("10,2", "'10,2'"), ([(5, 3), (1, 5)], "steps 1 to 5 and again from 5")])
def test_wrong_specs_are_refused_with_a_message(spec, said, tmp_path):
  with pytest.raises(configuring.ConfigError, match="config key 'profile'.*expected") as caught:
    profiling.Profiler(spec, tmp_path)
  assert said in str(caught.value)


@pytest.mark.parametrize("method", ["start_trace", "stop_trace"])
def test_a_failure_is_one_warning_and_training_goes_on(method, tmp_path, monkeypatch, capsys):
  calls = []

  def fail(*_):
    calls.append(method)
    raise RuntimeError("no profiler today")

  with monkeypatch.context() as patch:
    patch.setattr(jax.profiler, method, fail)
    if method == "stop_trace":
      patch.setattr(jax.profiler, "start_trace", lambda *_: None)
    x = _train(profiling.Profiler([(1, 2), (4, 1)], tmp_path), range(6))
  assert bool(jnp.isfinite(x).all())
  assert len(calls) == 1
  said = capsys.readouterr().err
  assert said.count("warning") == 1 and "no profiler today" in said


def test_a_trace_that_fails_midway_is_ended(tmp_path, monkeypatch, capsys):
  def fail(*_, **__):
    raise RuntimeError("no marks today")

  stopped = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *_: None)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: stopped.append(True))
  monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", fail)
  _train(profiling.Profiler((1, 2), tmp_path), range(6))
  assert stopped == [True]
  assert capsys.readouterr().err.count("no marks today") == 1
