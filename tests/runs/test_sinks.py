"""TensorBoard and W&B show what the record says, and never end a run."""
import itertools
import json
import subprocess
import sys
import types

import pytest

from big_transfer.runs import configuring, records, sinks

pytest.importorskip("tensorboard", reason="the extra [tensorboard] isn't installed")


def _probe(step, seed, value, **changes):
  return {"step": step, "examples": 8 * step, "evaluator": "fewshot", "task": "digits",
          "variant": "full", "setting": "fewshot", "split": "test", "shots": 5,
          "examples_used": 50, "seed": seed, "layer": "pre_logits", "l2": 1024.0,
          "metric": "accuracy", "value": value, "status": "ok", **changes}


def _loss(step, value):
  return {"step": step, "evaluator": "train", "task": "toy", "split": "train", "metric": "loss",
          "value": value}


def _upstream(step, value):
  return {"step": step, "evaluator": "upstream", "task": "toy", "variant": "full",
          "setting": "upstream", "split": "test", "metric": "accuracy", "value": value}


def _open(names, folder, **run):
  return sinks.open_sinks(names, folder, config={"optim": {"lr": 0.1}}, run={"id": "abc", **run})


def _curves(folder):
  """What TensorBoard's own reader finds: {tag: [(step, value)]} and the text of the config."""
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util
  reader = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
  reader.Reload()
  found = {name: [(event.step, round(event.value, 5)) for event in reader.Scalars(name)]
           for name in reader.Tags()["scalars"]}
  text = tensor_util.make_ndarray(reader.Tensors("config")[-1].tensor_proto).item()
  return found, text.decode()


@pytest.mark.parametrize("row, expected", [
    (_loss(1, 2.0), "train/loss"),
    (_upstream(1, 0.5), "upstream/accuracy"),
    (_probe(1, 0, 0.5), "fewshot/digits/5-shot/pre_logits"),
    (_probe(1, 0, 0.5, l2=1.0, variant="rotated", metric="loss"),
     "fewshot/digits/rotated/5-shot/pre_logits/l2=1/loss"),
    ({"evaluator": "geometry", "task": "toy", "variant": "full", "setting": "upstream",
      "split": "train", "layer": "block_00", "metric": "margin", "quantile": 0.5},
     "geometry/train/block_00/margin/q0.5")])
def test_tags_are_short_and_say_what_was_measured(row, expected):
  assert sinks.tag(row) == expected


def test_rows_that_differ_in_more_than_seed_are_different_curves():
  choices = {"task": ["a", "b"], "variant": ["full", "v"], "setting": ["fewshot", "s"],
             "split": ["test", "validation"], "shots": [None, 5, 25], "layer": [None, "stem"],
             "group": [None, "g"], "l2": [1.0, 1024.0], "metric": ["accuracy", "loss"],
             "quantile": [None, 0.1, 0.25]}
  assert set(choices) == set(records.ROW_COLUMNS) - {
      "step", "examples", "evaluator", "examples_used", "seed", "value", "status", "reason"}
  rows = [dict(zip(choices, values), evaluator="fewshot")
          for values in itertools.product(*choices.values())]
  assert len({sinks.tag(row) for row in rows}) == len(rows)
  assert sinks.tag({**rows[0], "seed": 1}) == sinks.tag({**rows[0], "seed": 2})


def test_seeds_are_averaged_and_values_that_are_none_left_out():
  rows = [_probe(4, 0, 0.2), _probe(4, 1, 0.6), _probe(2, 0, 0.1), _loss(2, float("nan")),
          _probe(4, 2, 0.9, status="skipped"), _probe(4, 3, None), _loss(4, float("inf"))]
  name = "fewshot/digits/5-shot/pre_logits"
  assert sinks.averaged(rows) == {2: {name: 0.1}, 4: {name: pytest.approx(0.4)}}


def test_tensorboard_reads_back_what_was_written(tmp_path):
  with _open("tensorboard", tmp_path, name="mine") as opened:
    for step in (10, 20):
      opened.write([_loss(step, step / 100)])
      opened.write(_probe(step, seed, seed * 0.5) for seed in (0, 1))
    found, text = _curves(tmp_path)  # before it is closed: one looks at a run while it trains
  assert found == {"train/loss": [(10, 0.1), (20, 0.2)],
                   "fewshot/digits/5-shot/pre_logits": [(10, 0.25), (20, 0.25)]}
  assert "optim.lr = 0.1" in text and "mine" in text


def test_a_continued_run_replaces_what_it_measures_again(tmp_path):
  with _open(["tensorboard"], tmp_path) as opened:
    for step in (0, 10, 20, 30):
      opened.write([_loss(step, 1.0), _upstream(step, 0.1)])
  with _open(["tensorboard"], tmp_path) as opened:  # from a checkpoint of step 10
    opened.write([_loss(20, 2.0)])
    opened.write([_loss(30, 2.0), _upstream(30, 0.2)])
  with _open(["tensorboard"], tmp_path):
    pass  # and once more, stopped before anything was measured: nothing is lost
  found, _ = _curves(tmp_path)
  assert found == {"train/loss": [(0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0)],
                   "upstream/accuracy": [(0, 0.1), (10, 0.1), (30, 0.2)]}


def test_a_kill_in_a_write_costs_what_was_being_written(tmp_path):
  opened = _open(["tensorboard"], tmp_path)
  opened.write([_loss(1, 1.0)])
  opened.write([_loss(2, 2.0)])
  opened.close()
  [path] = (tmp_path / "tensorboard").iterdir()
  path.write_bytes(path.read_bytes()[:-7])
  with _open(["tensorboard"], tmp_path) as opened:
    opened.write([_loss(2, 3.0)])
  assert _curves(tmp_path)[0] == {"train/loss": [(1, 1.0), (2, 3.0)]}


def test_tensorflow_is_never_imported_even_where_it_is_installed(tmp_path):
  (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')\n")
  code = ("import sys; from big_transfer.runs import sinks\n"
          "assert not [m for m in sys.modules if m.startswith(('tensorboard', 'wandb', 'jax'))]\n"
          f"with sinks.open_sinks('tensorboard', {str(tmp_path)!r}, config={{}}, run={{}}) as s:\n"
          "  s.write([{'step': 1, 'evaluator': 'train', 'metric': 'loss', 'value': 1.0}])\n"
          "print('tensorflow' in sys.modules)")
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=False, env={"PYTHONPATH": str(tmp_path)})
  assert result.stdout == "False\n", result.stderr


def test_a_name_that_is_no_sinks_is_refused(tmp_path):
  with pytest.raises(configuring.ConfigError, match="'comet'.*expected some of tensorboard, wandb"):
    _open(["tensorboard", "comet"], tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")])
def test_a_package_that_is_missing_is_refused_with_how_to_get_it(tmp_path, monkeypatch, module):
  monkeypatch.setitem(sys.modules, "wandb", module)  # None: not there; empty: a folder W&B left
  with pytest.raises(configuring.ConfigError, match=r"pip install 'big_transfer\[wandb\]'"):
    _open(["wandb"], tmp_path)


def test_no_sinks_do_nothing(tmp_path):
  with _open((), tmp_path) as opened:
    opened.write([_loss(1, 1.0)])
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_warning(tmp_path, capsys):
  (tmp_path / "tensorboard").write_text("a file where a folder should be")
  with _open(["tensorboard"], tmp_path) as opened:
    opened.write([_loss(1, 1.0)])
    opened.write([_loss(2, 1.0)])
  assert capsys.readouterr().err.count("warning: the sink 'tensorboard' failed") == 1


class _StubWandb(types.ModuleType):
  """Stands for the package: notes its calls, and fails at one of them from a given time on."""

  def __init__(self, fails=None, after=0):
    super().__init__("wandb")
    self.calls, self._fails, self._after = [], fails, after

  def init(self, **arguments):
    self._called("init", arguments)
    return self

  def log(self, values, step):
    self._called("log", (step, values))

  def finish(self):
    self._called("finish", None)

  def _called(self, name, arguments):
    self.calls.append((name, arguments))
    if name == self._fails and [call for call, _ in self.calls].count(name) > self._after:
      raise ConnectionError("the cloud is gone")


def _names(stub):
  return [name for name, _ in stub.calls]


def test_wandb_gets_the_config_the_identity_and_the_values(tmp_path, monkeypatch):
  stub = _StubWandb()
  monkeypatch.setitem(sys.modules, "wandb", stub)
  monkeypatch.setenv("WANDB_PROJECT", "ours")
  for name in ("first", "second"):
    (tmp_path / name).mkdir()
    with _open(["wandb"], tmp_path / name) as opened:
      opened.write([_probe(4, 0, 0.2), _probe(4, 1, 0.6), _loss(3, 1.0)])
  with _open(["wandb"], tmp_path / "first", name="mine"):
    pass
  assert _names(stub) == ["init", "log", "log", "finish"] * 2 + ["init", "finish"]
  (_, first), (_, second), (_, again) = [call for call in stub.calls if call[0] == "init"]
  assert stub.calls[1:3] == [
      ("log", (3, {"train/loss": 1.0})),
      ("log", (4, {"fewshot/digits/5-shot/pre_logits": pytest.approx(0.4)}))]
  assert first["config"] == {"optim": {"lr": 0.1}} and first["project"] == "ours"
  assert first["resume"] == "allow" and first["dir"] == str(tmp_path / "first")
  assert first["name"] == "first" and again["name"] == "mine"
  # The same config in another folder is another run; the same folder is the same run continued.
  assert first["id"].startswith("abc-") and first["id"] == again["id"] != second["id"]
  json.dumps(first)


@pytest.mark.parametrize("fails, after, calls", [
    ("init", 0, ["init"]),
    ("log", 0, ["init", "log"]),
    ("log", 1, ["init", "log", "log"]),
    ("finish", 0, ["init", "log", "log", "log", "finish"])])
def test_whatever_wandb_raises_is_one_warning_and_the_others_go_on(
    tmp_path, monkeypatch, capsys, fails, after, calls):
  stub = _StubWandb(fails, after)
  monkeypatch.setitem(sys.modules, "wandb", stub)
  with _open(["wandb", "tensorboard"], tmp_path) as opened:
    for step in (1, 2, 3):
      opened.write([_loss(step, 1.0)])
  assert _names(stub) == calls
  assert [step for step, _ in _curves(tmp_path)[0]["train/loss"]] == [1, 2, 3]
  said = capsys.readouterr().err
  assert said.count("warning") == 1 and "'wandb'" in said and "the cloud is gone" in said


def test_the_loop_shows_what_it_records_and_traces_what_is_asked_for(tmp_path):
  from big_transfer import train
  from tests import toy
  config = dict(sinks=("tensorboard",), profile=(1, 2),
                evals=dict(upstream=dict(kind="classification", every=4)))
  train.train(toy.config(**config), tmp_path / "shown")
  curves, text = _curves(tmp_path / "shown")
  rows = records.read_rows(tmp_path / "shown")
  assert curves["upstream/accuracy"] == [
      (row["step"], round(row["value"], 5)) for row in rows
      if (row["evaluator"], row["metric"]) == ("upstream", "accuracy")]
  assert [step for step, _ in curves["train/loss"]] == [2, 4, 6]
  assert "optim.lr = 0.01" in text
  assert list((tmp_path / "shown/profile/step_1").glob("plugins/profile/*/*.xplane.pb"))
  # Neither is part of what the run is.
  train.train(toy.config(evals=config["evals"]), tmp_path / "alone")
  assert (tmp_path / "alone/metrics.jsonl").read_bytes() == (
      tmp_path / "shown/metrics.jsonl").read_bytes()
  assert records.read_run(tmp_path / "alone")["id"] == records.read_run(tmp_path / "shown")["id"]
