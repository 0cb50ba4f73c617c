"""The catalogue and the tasks against the builders of the installed package; nothing downloaded."""
import collections
import inspect
import pathlib
import re

import numpy as np
import pytest

from big_transfer.data import catalog, labels, tasks

PAPER = tasks.SUITES["paper"]
# Of datasets whose checksum file has other versions' or configurations' files too: those of ours.
OURS = {"caltech101": "data.caltech.edu", "caltech_birds2011": "data.caltech.edu",
        "eurosat": "EuroSAT.zip"}
# How much of the split that VTAB's validation is cut out of goes before it (its data/*.py).
BEFORE = {"caltech": 90, "cifar100": 90, "pets": 80, "svhn": 90, "eurosat": 60, "resisc45": 60,
          "clevr_count": 90, "clevr_distance": 90, "dsprites_location": 80,
          "dsprites_orientation": 80}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  """builder(name): TFDS's own, at the catalogue's version and configuration."""
  import tensorflow_datasets as tfds
  nothing_here = str(tmp_path_factory.mktemp("tfds"))

  def make(name):
    found = catalog.CATALOG[name]
    path = f"{name}/{found.config}" if found.config else name
    return tfds.builder(f"{path}:{found.version}", data_dir=nothing_here)
  return make


def name_of(task):
  return re.split("[:/]", task.source)[1]


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_a_dataset_is_what_the_builder_says(name, builder):
  found, theirs = catalog.CATALOG[name], builder(name)
  assert str(theirs.version) == found.version  # which it would refuse to be, did it not know it
  configs = list(theirs.builder_configs)
  assert (found.config in configs) if configs else found.config is None
  assert found.homepage == theirs.info.homepage
  features = theirs.info.features
  assert found.classes == (features["label"].num_classes if "label" in features else None)
  instructions = theirs.MANUAL_DOWNLOAD_INSTRUCTIONS
  assert (instructions is None) == (found.manual is None)
  for told in re.findall(r"https://[^\s,]+|\w+\.\w*tar|\w+\.csv", found.manual or ""):
    assert told in instructions


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_splits_are_those_that_the_builder_makes(name, builder):
  """Read from its source, since making them needs the downloads."""
  classes = [c for c in type(builder(name)).__mro__
             if c.__module__.startswith("tensorflow_datasets")
             and not c.__module__.startswith("tensorflow_datasets.core")]
  source = "".join(inspect.getsource(c) for c in classes)
  source = source[source.index("def _split_generators"):]
  made = {m.lower() for pattern in (r"Split\.([A-Z]+)", r"name=['\"](\w+)['\"]",
                                    r"['\"](train|test|validation)['\"]\s*:")
          for m in re.findall(pattern, source)}
  others = {"dtd": {"test1", "train1", "val1"},  # names of files, by the pattern's third part
            "oxford_flowers102": {"valid", "tstid", "trnid"}}
  assert made - others.get(name, set()) == set(catalog.CATALOG[name].splits)


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_download_sizes_are_those_of_the_checksums(name):
  import tensorflow_datasets as tfds
  root = pathlib.Path(tfds.__file__).parent
  files = [root / f"datasets/{name}/checksums.tsv", root / f"url_checksums/{name}.txt"]
  lines = [line.split() for file in files if file.exists()
           for line in file.read_text().splitlines()]
  sizes = [int(line[1]) for line in lines if OURS.get(name, "") in line[0]]
  if name == "imagenet2012":  # there they are of what one downloads by hand
    told = [float(n) for n in re.findall(r"\(([\d.]+) GiB\)", catalog.CATALOG[name].manual)]
    np.testing.assert_allclose(told, np.array(sizes) / 2 ** 30, rtol=0.01)
    sizes = []
  assert catalog.CATALOG[name].download_bytes == (sum(sizes) or None)
  prepared = catalog.CATALOG[name].prepared_bytes
  assert prepared is None or prepared > 0


@pytest.mark.parametrize("name", PAPER)
def test_a_task_reads_features_that_there_are(name, builder):
  task = tasks.resolve(name)
  features = builder(name_of(task)).info.features
  assert "image" in features
  derived = labels.DERIVED.get(task.options.get("label"))
  if derived is None:
    label = features[task.options.get("label_key", "label")]
    expected = {"smallnorb_azimuth": 18, "smallnorb_elevation": 9}
    assert label.num_classes == expected.get(name, catalog.of(task).classes) > 1
    return
  for feature in derived.features:
    outer, _, inner = feature.partition("/")
    assert (features[outer].feature if inner else features)[inner or outer] is not None
  merged = {"dsprites_location": 32, "dsprites_orientation": 40}
  if name in merged:
    assert features[derived.features[0]].num_classes == merged[name]
  if name == "kitti_distance":  # what "kind < 3" means
    assert features["objects"].feature["type"].names[:3] == ["Car", "Van", "Truck"]
  if name == "clevr_distance":
    assert features["objects"].feature["pixel_coords"].shape == (3,)


def test_every_task_of_the_paper_is_in_the_catalogue():
  used = collections.Counter(name_of(tasks.resolve(name)) for name in PAPER)
  assert set(used) == set(catalog.CATALOG) and sum(used.values()) == 25
  for name in PAPER:
    task = tasks.resolve(name)
    found = catalog.of(task)
    path = name_of(task) + (f"/{found.config}" if found.config else "")
    assert task.source == f"tfds:{path}:{found.version}"


def spans(task, split):
  """The examples of a task's split: (TFDS split, index) pairs, as a set."""
  from tensorflow_datasets.core import splits as splits_lib
  sizes = catalog.of(task).splits
  infos = {name: splits_lib.SplitInfo(name=name, shard_lengths=[size], num_bytes=0,
                                      filename_template=None) for name, size in sizes.items()}
  parts = splits_lib.ReadInstruction.from_spec(getattr(task, split)).to_absolute(infos)
  return [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]


@pytest.mark.parametrize("task", [*map(tasks.resolve, PAPER), *tasks.VARIANTS.values()],
                         ids=lambda task: f"{task.name}:{task.variant}")
def test_nothing_is_trained_and_tested_on(task):
  train, test = spans(task, "train"), spans(task, "test")
  assert not [(a, b) for a in train for b in test
              if a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])]
  assert catalog.examples(task, "train") == sum(stop - start for _, start, stop in train)
  assert catalog.examples(task, "test") >= 200


@pytest.mark.parametrize("name", tasks.SUITES["vtab"])
def test_vtab1k_has_1000_examples_of_which_200_begin_vtabs_validation(name):
  task, choose = tasks.VARIANTS[name, "vtab1k"], tasks.VARIANTS[name, "vtab1k-val"]
  assert [catalog.examples(task, s) for s in ("train", "validation")] == [1000, 200]
  assert [catalog.examples(choose, s) for s in ("train", "test", "validation")] == [800, 200, None]
  ((split, start, stop),) = spans(task, "validation")
  assert spans(task, "train") == [("train", 0, 800), (split, start, stop)]
  assert (split == "train") == (name in BEFORE)
  assert start == BEFORE.get(name, 0) * catalog.of(task).splits["train"] // 100
  assert task.test == tasks.TASKS[name].test


def test_examples_are_what_tfds_counts(tfds_dir):
  import tensorflow_datasets as tfds
  info = tfds.builder_from_directory(f"{tfds_dir}/cifar10/3.0.2").info
  assert {k: v.num_examples for k, v in info.splits.items()} == catalog.CATALOG["cifar10"].splits
  for split in ("train", "test[:13%]", "train[:800]+train[45000:45200]", "train[-7:]+test[99%:]"):
    task = tasks.resolve({"name": "cifar10", "train": split})
    assert catalog.examples(task, "train") == info.splits[split].num_examples


def test_what_is_not_in_the_catalogue():
  for source in ("fractals", "tfds:mnist", "tfds:cifar10:1.0.0", "tfds:eurosat/all:2.0.0",
                 "folder:cifar10", "npz:/tmp/cifar10.npz"):
    task = tasks.resolve({"name": "mine", "source": source})
    assert catalog.of(task) is None and catalog.examples(task, "train") is None
  assert catalog.of(tasks.resolve({"name": "cifar10", "source": "tfds:cifar10"})).version == "3.0.2"
  assert catalog.examples(tasks.resolve("cifar10"), "validation") is None
  for split, message in (("train[:10010]", "dtd 3.0.1 has: train 1880, validation 1880"),
                         ("extra", "task 'dtd', split 'extra'"), ("train[", "split 'train.'")):
    with pytest.raises(ValueError, match=message):
      catalog.examples(tasks.resolve({"name": "dtd", "train": split}), "train")


def test_pages_of_another_version_are_told_apart():
  """Three pages were of an older version: by the release notes, with the same examples."""
  older = {name: found.pages_of for name, found in catalog.CATALOG.items() if found.pages_of}
  assert older == {"caltech101": "3.0.1", "oxford_iiit_pet": "3.2.0", "caltech_birds2011": "0.1.1"}
