"""Which tasks a probe is asked for, and what becomes of those whose data isn't there."""
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer.data import examples
from big_transfer.data import pipeline
from big_transfer.data import tasks as tasks_lib
from big_transfer.evaluators import downstream
from big_transfer.evaluators import fewshot
from big_transfer.evaluators import linear
from big_transfer.runs import configuring
from big_transfer.runs import records


def _context(apply=None):
  return evaluators.Context(
      apply=apply, put=lambda batch: batch, check=lambda: None, upstream=None, batch_size=64,
      prepare=lambda source: pipeline.prepare(source, 8), layers=("pre_logits", "logits"))


def _missing(tmp_path, name="lost", **more):
  return dict(name=name, source=f"tfds:{name}_data", options={"data_dir": str(tmp_path)}, **more)


def test_a_suite_is_named_alone_or_among_tasks():
  builtin = [task.name for task in tasks_lib.suite("builtin")]
  assert [task.name for task in downstream.named("builtin")] == builtin
  mixed = downstream.named(["cifar10", "builtin", {"name": "mine", "source": "folder:x"}])
  assert [task.name for task in mixed] == ["cifar10", *builtin, "mine"]


@pytest.mark.parametrize("tasks, message", [
    (["digits", "builtin"], "'digits' .variant 'full'. is asked for twice"),
    (["digits", {"name": "digits", "train": "test"}], "asked for twice.*another `variant`"),
    ("digit", r"tasks is 'digit': expected the name of a suite \(.*builtin.*\) or a list.*digit"),
    ("digits, cifar10", r"""as '\["digits", "cifar10"\]'"""), ([], "at least one"), (3, "a list"),
    (["builtins"], "unknown task 'builtins'")])
def test_tasks_that_can_not_be_meant(tasks, message):
  with pytest.raises(ValueError, match=message):
    downstream.named(tasks)


def test_two_variants_of_a_task_are_two_tasks():
  named = downstream.named(["cifar100", "cifar100:vtab1k"])
  assert [task.variant for task in named] == ["full", "vtab1k"]


@pytest.mark.parametrize("kind", [fewshot.FewShot, linear.Linear])
def test_all_that_is_missing_is_told_at_once_with_what_helps(kind, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(examples.MissingError) as error:
    kind(_context(), tasks=["digits", "cifar10", _missing(tmp_path), _missing(
        tmp_path, "gone", variant="small")])
  told = str(error.value)
  assert told.startswith("3 of 4 tasks are missing:\n  'cifar10': ")
  assert "'lost': " in told and "'gone' (small): " in told and "data doctor --task cifar10" in told
  assert "missing=skip" in told
  with pytest.raises(examples.MissingError, match="task 'lost' is missing.*lost_data") as error:
    kind(_context(), tasks=[_missing(tmp_path)])
  assert "doctor" not in str(error.value), "of a task of one's own it knows nothing"


@pytest.mark.parametrize("kind", ["fewshot", "linear"])
def test_a_skipped_task_is_a_row_that_says_so(kind, tmp_path):
  def apply(variables, images, train=False):
    features = images.reshape(len(images), -1) * variables["params"].reshape(1, 1)
    return features, {"pre_logits": features, "logits": features}

  [item] = evaluators.build({"probes": dict(
      kind=kind, every=1, missing="skip",
      tasks=("digits", _missing(tmp_path, variant="small")))}, _context(apply), configuring.build)
  rows = item.run(np.ones(1, np.float32), 1)
  skipped = [row for row in rows if row["status"] == "skipped"]
  assert skipped == [{
      "evaluator": kind, "task": "lost", "variant": "small", "setting": kind, "split": "test",
      "metric": "accuracy", "value": None, "status": "skipped", "reason": skipped[0]["reason"]}]
  assert "lost_data" in skipped[0]["reason"]
  assert all(row["status"] == "ok" for row in rows if row["task"] == "digits") and len(rows) > 1
  for own in item.run_members(np.ones((2, 1), np.float32), 1, 2):
    assert [row for row in own if row["status"] == "skipped"] == skipped and len(own) == len(rows)


def test_a_skipped_row_goes_through_the_record(tmp_path):
  task = tasks_lib.Task("lost", "tfds:lost")
  with records.Record(tmp_path) as record:
    record.append([{"step": 1, "examples": 2, **downstream.skipped("linear", task, "not there")}])
  [row] = records.read_rows(tmp_path)
  assert (row["status"], row["value"], row["reason"]) == ("skipped", None, "not there")


def test_broken_data_is_an_error_even_where_missing_data_is_skipped(tmp_path):
  (tmp_path / "broken.npz").write_bytes(b"no archive")
  task = dict(name="broken", source=f"npz:{tmp_path}/broken.npz")
  with pytest.raises(ValueError, match="broken") as error:
    fewshot.FewShot(_context(), tasks=["digits", task], missing="skip")
  assert not isinstance(error.value, examples.MissingError)
