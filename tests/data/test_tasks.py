"""Tasks: names, overrides, and that upstream and unseen fractals have nothing in common."""
import json

import numpy as np
import pytest

from big_transfer.data import tasks
from big_transfer.data.builtin import fractals as fractals_lib
from big_transfer.data.builtin import numbered
from big_transfer.data.builtin import textures as textures_lib


@pytest.mark.parametrize("name", [n for n, t in tasks.TASKS.items() if ":" not in t.source])
def test_built_in_tasks_open(name):
  task = tasks.resolve(name)
  train, test = task.open("train"), task.open("test")
  assert task.name == name and train.num_classes == test.num_classes > 1
  assert set(train.labels) == set(test.labels) == set(range(train.num_classes))
  assert train.spec != test.spec
  assert np.bincount(train.labels).min() >= 25  # as many shots as the papers use


def test_tfds_tasks_open(tfds_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
  assert len(tasks.resolve("cifar10").open("test")) == 10000
  assert tasks.resolve("omniglot_small").open("train").num_classes == 242


def test_specs_are_json_and_differ():
  specs = [json.dumps(task.spec, sort_keys=True) for task in tasks.TASKS.values()]
  assert len(set(specs)) == len(tasks.TASKS) == 9


def test_unseen_fractals_are_unseen():
  options = tasks.TASKS["fractals_unseen"].options
  assert options["first_class"] == numbered.UNSEEN_FROM
  maps, _ = fractals_lib.systems(0, options["first_class"] + options["classes"])
  first = {m.tobytes() for m in maps[:numbered.UNSEEN_FROM]}
  assert len(first) == numbered.UNSEEN_FROM
  assert not first & {m.tobytes() for m in maps[numbered.UNSEEN_FROM:]}


def test_unseen_textures_are_unseen():
  options = tasks.TASKS["textures_unseen"].options
  assert options["first_class"] == numbered.UNSEEN_FROM
  stats = textures_lib.statistics(0, options["first_class"] + options["classes"])
  codes = textures_lib._codes(stats)
  assert (codes[options["first_class"]:] @ codes[:options["first_class"]].T).max() < 0.8


def test_a_mapping_overrides_a_known_task():
  task = tasks.resolve({"name": "sprites_scale", "options": {"examples": 60}, "variant": "tiny"})
  assert task.options == {"label": "scale", "examples": 60} and task.variant == "tiny"
  assert tasks.TASKS["sprites_scale"].options == {"label": "scale"}
  assert len(task.open("train")) == 60
  assert tasks.resolve(task) is task


def test_a_mapping_describes_a_task_of_ones_own(folder):
  task = tasks.resolve({"name": "pets", "source": f"folder:{folder}", "train": "train"})
  assert task.open("train").num_classes == 2 and task.options == {}
  other = tasks.resolve({"name": "digits", "source": f"folder:{folder}"})
  assert other.options == {}


@pytest.mark.parametrize("task, message", [
    ("digit", "unknown task 'digit': did you mean 'digits'"),
    ({"source": "digits"}, "without a name"),
    ({"name": "digits", "tset": "x"}, "unknown field 'tset': did you mean 'test'"),
    ({"name": "pets"}, "task 'pets' has no source"),
])
def test_errors(task, message):
  with pytest.raises(ValueError, match=message):
    tasks.resolve(task)


def test_a_task_has_two_splits():
  with pytest.raises(ValueError, match="no split 'validation'"):
    tasks.TASKS["digits"].open("validation")
