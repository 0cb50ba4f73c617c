"""Tasks: names, suites, variants, overrides, and that upstream and unseen fractals are apart."""
import json

import numpy as np
import pytest

from big_transfer.data import tasks
from big_transfer.data.builtin import fractals as fractals_lib
from big_transfer.data.builtin import numbered
from big_transfer.data.builtin import textures as textures_lib
from big_transfer.data.examples import MissingError
from big_transfer.study import reference


@pytest.mark.parametrize("name", tasks.SUITES["builtin"])
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
  every = [*tasks.TASKS.values(), *tasks.VARIANTS.values()]
  specs = [json.dumps(task.spec, sort_keys=True) for task in every]
  assert len(set(specs)) == len(every) == 8 + 25 + 2 * 19


def test_suites():
  sizes = {name: len(tasks.suite(name)) for name in tasks.SUITES}
  assert sizes == {"builtin": 7, "paper": 25, "main": 8, "vtab": 19, "vtab1k": 19}
  assert set(tasks.SUITES["main"]) < set(tasks.SUITES["paper"]) > set(tasks.SUITES["vtab"])
  assert [t.name for t in tasks.suite("vtab1k")] == list(tasks.SUITES["vtab"])
  assert {t.variant for t in tasks.suite("vtab1k")} == {"vtab1k"}
  with pytest.raises(ValueError, match="unknown suite 'vtab_1k': did you mean 'vtab1k'"):
    tasks.suite("vtab_1k")


def test_the_main_tasks_are_those_with_published_fits():
  assert set(tasks.SUITES["main"]) == {line["task"] for line in reference.PAPER_FITS}


def test_every_task_of_the_paper_is_pinned_and_has_a_source():
  for task in tasks.suite("paper"):
    assert tasks.dataset(task.source) != task.source, task.name
    assert task.reference and task.metric == "accuracy" and task.variant == "full", task.name


def test_variants():
  full, small = tasks.resolve("svhn"), tasks.resolve("svhn:vtab1k")
  assert (small.name, small.variant, small.test) == ("svhn", "vtab1k", full.test)
  assert small.train == "train[:800]+train[65931:66131]"  # 65,931 = floor(90 % of 73,257)
  assert small.validation == "train[65931:66131]"
  choose = tasks.resolve({"name": "svhn", "variant": "vtab1k-val"})
  assert (choose.train, choose.test, choose.validation) == ("train[:800]", small.validation, None)
  assert tasks.resolve("svhn:full") == full
  mapped = tasks.resolve({"name": "dtd", "variant": "vtab1k", "metric": "loss"})
  assert mapped.train == "train[:800]+validation[:200]" and mapped.metric == "loss"


def test_a_variant_never_relabels_other_splits():
  for task, message in [
      ("cifar10:vtab1k", "'cifar10' has no variant 'vtab1k'.*Known: full"),
      ({"name": "cifar10", "variant": "vtab1k"}, "has no variant 'vtab1k'"),
      ({"name": "cifar10", "variant": "vtab1k", "options": {}}, "has no variant 'vtab1k'"),
      ({"name": "pets", "variant": "vtab1k", "source": "folder:/pets"}, "name its train"),
      ({"name": "pets", "variant": "tiny"}, "has no variant 'tiny'"),
      ("pets:vtab1000", "did you mean 'vtab1k'")]:
    with pytest.raises(ValueError, match=message):
      tasks.resolve(task)
  own = tasks.resolve({"name": "pets", "variant": "vtab1k", "source": "folder:/pets",
                       "train": "train800val200", "test": "test"})
  assert (own.variant, own.train, own.validation) == ("vtab1k", "train800val200", None)


def test_another_version_of_the_same_dataset_keeps_options_and_splits():
  task = tasks.resolve({"name": "clevr_count", "source": "tfds:clevr:3.0.0"})
  assert task.options == {"label": "clevr_count"} and task.test == "validation"
  land = tasks.resolve({"name": "eurosat", "source": "tfds:eurosat"})  # whatever is prepared
  assert (land.source, land.train, land.test) == ("tfds:eurosat", "train[:80%]", "train[80%:]")
  assert tasks.resolve({"name": "eurosat", "source": "tfds:eurosat/all"}).train == "train"
  small = tasks.resolve({"name": "clevr_count", "variant": "vtab1k", "source": "tfds:clevr"})
  assert small.train == "train[:800]+train[63000:63200]" and small.source == "tfds:clevr"


def test_a_missing_version_says_how_to_use_another(tfds_dir, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
  old = tasks.resolve({"name": "cifar10", "source": "tfds:cifar10:1.0.0"})
  with pytest.raises(MissingError) as error:
    old.open("train")
  mapping = {"name": "cifar10", "source": "tfds:cifar10:3.0.2"}
  assert str(mapping) in str(error.value) and "tfds build cifar10:1.0.0" in str(error.value)
  assert len(tasks.resolve(mapping).open("test")) == 10000
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))  # where there is no version at all
  for name in ("cifar10", "pets", "omniglot_small"):
    with pytest.raises(MissingError) as error:
      tasks.resolve(name).open("train")
    assert "to use that" not in str(error.value) and "tfds build" in str(error.value)


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
  task = tasks.resolve({"name": "my_pets", "source": f"folder:{folder}", "train": "train"})
  assert task.open("train").num_classes == 2 and task.options == {}
  other = tasks.resolve({"name": "clevr_count", "source": f"folder:{folder}"})
  assert other.options == {} and (other.train, other.test) == ("train", "test")
  assert other.reference == "" and other.open("test").num_classes == 2


@pytest.mark.parametrize("task, message", [
    ("digit", "unknown task 'digit': did you mean 'digits'"),
    ({"source": "digits"}, "without a name"),
    ({"name": "digits", "tset": "x"}, "unknown field 'tset': did you mean 'test'"),
    ({"name": "cats"}, "task 'cats' has no source"),
    ({"name": 5}, "task 5: name is 5; expected a text"),
    ({"name": "cats", "source": "digits", "train": 0.5}, "task 'cats': train is 0.5; expected"),
])
def test_errors(task, message):
  with pytest.raises(ValueError, match=message):
    tasks.resolve(task)


def test_a_task_has_two_splits():
  with pytest.raises(ValueError, match="no split 'validation'"):
    tasks.TASKS["digits"].open("validation")
