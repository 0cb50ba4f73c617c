"""The doctor: planted datasets, whole and damaged in every way it names, and nothing at all."""
import importlib.metadata
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import prepared
import pytest

from big_transfer.data import __main__ as command
from big_transfer.data import catalog
from big_transfer.data import doctor
from big_transfer.data import tasks

ROOT = pathlib.Path(__file__).parents[2]


def plant(root, name, classes, splits, files=1):
  """Prepares a dataset of the catalogue, with as many examples as it has, of 4x4 pixels."""
  dataset = catalog.CATALOG[name]
  features = prepared.features_of(name, str(root))
  text = next(key for key in features if key not in ("image", "label"))
  pixels = np.random.default_rng(0).integers(0, 256, (classes, 4, 4, 3), np.uint8)
  examples = {split: [{text: f"{split}{i}", "image": prepared.png(pixels[i % classes]),
                       "label": i % classes} for i in range(count)]
              for split, count in splits.items()}
  return prepared.prepare(pathlib.Path(root) / name / dataset.version, features, examples, files)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
  """UC-Merced whole, in two files; not to be changed."""
  root = tmp_path_factory.mktemp("tfds")
  plant(root, "uc_merced", 21, {"train": 2100}, files=2)
  return root


@pytest.fixture
def damaged(planted, tmp_path):
  """A copy of it, to be damaged; its folder is damaged/uc_merced/2.0.0."""
  shutil.copytree(planted, tmp_path / "damaged")
  return tmp_path / "damaged"


def run(capsys, *words):
  """Status and output of a command line."""
  status = command.main(["doctor", *map(str, words)])
  return status, capsys.readouterr().out


def examine(root, task="uc_merced", deep=False):
  diagnosis, = doctor.examine([tasks.resolve(task)], str(root), deep)
  return diagnosis


# --- what is ready


def test_a_whole_dataset_is_ready(planted, capsys):
  status, out = run(capsys, "--task", "uc_merced", "digits", "--data-dir", planted)
  assert status == 0
  assert re.search(rf"ready +uc_merced +1,000 train, 1,100 test  2.0.0  {planted}/uc_merced/2.0.0",
                   out)
  assert re.search(r"ready +digits +1,198 train, 599 test", out)
  assert out.endswith("2 ready, 0 missing, 0 broken\n")


def test_flags_given_twice_add_up(planted, capsys):
  _, out = run(capsys, "--task", "digits", "--task", "uc_merced", "--data-dir", planted)
  assert "digits" in out and "uc_merced" in out


def test_the_environment_says_where_data_is(planted, monkeypatch, capsys):
  monkeypatch.setenv("TFDS_DATA_DIR", str(planted))
  assert run(capsys, "--task", "uc_merced")[0] == 0
  assert run(capsys, "--task", "uc_merced", "--data-dir", planted / "none")[0] == 1


def test_a_dataset_shared_by_tasks_is_counted_once(planted, monkeypatch):
  opened = []
  count = doctor._broken_shard
  monkeypatch.setattr(doctor, "_broken_shard", lambda *a: opened.append(a[0]) or count(*a))
  task = tasks.resolve("uc_merced")
  found = doctor.examine([task, task], str(planted))
  assert [d.state for d in found] == ["ready"] * 2
  assert len(opened) == 2  # its two files, once each


def test_deep_tells_the_fingerprint_of_vtab_1k(tmp_path, capsys):
  counts = catalog.CATALOG["dtd"].splits
  plant(tmp_path, "dtd", 47, counts)
  shallow = examine(tmp_path, "dtd")
  assert shallow.examples == {"train": 1880, "validation": 1880, "test": 1880}
  assert shallow.fingerprint is None
  status, out = run(capsys, "--task", "dtd", "dtd:vtab1k", "--data-dir", tmp_path, "--deep")
  thousand = tasks.resolve({"name": "dtd", "variant": "vtab1k",
                            "options": {"data_dir": str(tmp_path)}}).open("train")
  assert len(thousand) == 1000
  assert status == 0 and out.count(f"VTAB-1k {thousand.fingerprint()}") == 2


# --- what is missing


def test_nothing_is_there(tmp_path, capsys):
  status, out = run(capsys, "--data-dir", tmp_path)
  assert status == 1
  lines = out.splitlines()
  for task in tasks.suite("paper"):
    assert sum(bool(re.match(rf"missing +{task.name} ", line)) for line in lines) == 1
    dataset = task.source.removeprefix("tfds:")
    assert out.count(f"TFDS_DATA_DIR={tmp_path} tfds build {dataset} "
                     "--file_format=array_record\n") == 1  # where several share it, too
  assert "0 ready, 25 missing, 0 broken" in out
  assert out.count("by hand first, into") == sum(bool(d.manual) for d in catalog.CATALOG.values())
  assert "ILSVRC2012_img_train.tar" in out and "Preparing needs TensorFlow, once" in out


def test_the_sum_is_the_catalogue_s(tmp_path, capsys):
  status, out = run(capsys, "--data-dir", tmp_path, "--json")
  found = json.loads(out)
  assert status == 1 and found["missing"] == 25 and found["data_dir"] == str(tmp_path)
  for name in ("download_bytes", "prepared_bytes"):
    assert found[name] == sum(getattr(d, name) or 0 for d in catalog.CATALOG.values())
  assert found["free_bytes"] > 0 and len(found["tasks"]) == 25
  imagenet, = [t for t in found["tasks"] if t["task"] == "imagenet"]
  assert imagenet["examples"] == {"train": 65000, "test": 50000}


def test_commands_are_for_a_shell(tmp_path, capsys):
  there = tmp_path / "a folder"
  status, out = run(capsys, "--data-dir", there, "--commands")
  assert status == 1
  subprocess.run(["bash", "-n"], input=out, text=True, check=True)
  lines = out.splitlines()
  assert lines[0] == "python3 -m venv tfds-env"
  release = importlib.metadata.version("tensorflow-datasets")
  assert lines[1].startswith(f"tfds-env/bin/pip install tensorflow-datasets=={release} tensorflow ")
  built = [line for line in lines if " tfds-env/bin/tfds build " in line]
  assert len(built) == len(set(built)) == len(catalog.CATALOG)
  assert all(line.startswith(f"TFDS_DATA_DIR='{there}' ") for line in built)
  by_hand = [i for i, line in enumerate(lines) if line.startswith("# by hand")]
  assert by_hand[0] > lines.index(built[-len(by_hand) - 1])  # these last, so that none waits


def test_nothing_to_prepare(planted, capsys):
  status, out = run(capsys, "--data-dir", planted, "--commands", "--task", "uc_merced")
  assert (status, out) == (0, "# nothing to prepare\n")


# --- what is broken


def shards(root):
  return sorted((root / "uc_merced/2.0.0").glob("*array_record*"))


def rewrite(file, records):
  from array_record.python import array_record_module
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def records(file):
  from array_record.python import array_record_module
  reader = array_record_module.ArrayRecordReader(str(file))
  found = reader.read_all()
  reader.close()
  return found


def remove_a_file(root):
  shards(root)[1].unlink()


def cut_a_file(root):
  file = shards(root)[0]
  file.write_bytes(file.read_bytes()[:-5000])


def lose_a_record(root):
  rewrite(shards(root)[1], records(shards(root)[1])[1:])


def count_otherwise(root):
  lose_a_record(root)
  info = root / "uc_merced/2.0.0/dataset_info.json"
  content = json.loads(info.read_text())
  content["splits"][0]["shardLengths"][1] = "1049"
  info.write_text(json.dumps(content))


def use_tfrecord(root):
  info = root / "uc_merced/2.0.0/dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))


def spoil_the_info(root):
  (root / "uc_merced/2.0.0/dataset_info.json").write_text("{")


def spoil_the_last_image(root):
  *others, last = records(shards(root)[1])
  rewrite(shards(root)[1], [*others, last.replace(b"IEND", b"IENT")])


@pytest.mark.parametrize("damage, reason", [
    (remove_a_file, r"00001-of-00002' is missing"),
    (cut_a_file, r"00000-of-00002' can't be read"),
    (lose_a_record, r"00001-of-00002' has 1,049 records; expected 1,050"),
    (count_otherwise, r"split 'train' in .* has 2,099 examples; expected 2,100"),
    (use_tfrecord, r"are in format 'tfrecord'; expected 'array_record'"),
    (spoil_the_info, r"dataset_info.json or features.json in .* can't be read"),
    (spoil_the_last_image, r"example 1099: corrupt image"),
])
def test_damage_is_named_and_mended(damaged, capsys, damage, reason):
  damage(damaged)
  status, out = run(capsys, "--task", "uc_merced", "--data-dir", damaged)
  assert status == 1 and re.search(f"broken +uc_merced +.*{reason}", out), out
  folder = damaged / "uc_merced/2.0.0"
  assert f"mv {folder} {folder}.broken\n" in out
  assert f"TFDS_DATA_DIR={damaged} tfds build uc_merced:2.0.0 --file_format=array_record" in out
  _, script = run(capsys, "--task", "uc_merced", "--data-dir", damaged, "--commands")
  move, = [line for line in script.splitlines() if line.startswith("mv ")]
  subprocess.run(["bash", "-c", move], check=True)
  assert examine(damaged).state == "missing"  # so that TFDS prepares it


def test_half_prepared_is_broken(damaged):
  folder = damaged / "uc_merced/2.0.0"
  (folder / "dataset_info.json").unlink()
  found = examine(damaged)
  assert found.state == "broken" and "half-prepared" in found.reason
  assert found.aside == str(folder)
  folder.rename(damaged / "uc_merced/incomplete.A1B2C3_2.0.0")  # while TFDS is at work, or killed
  found = examine(damaged)
  assert found.state == "broken" and "half-prepared" in found.reason
  assert found.aside is None and found.command  # TFDS minds no such folder


def test_another_version_is_named(damaged):
  (damaged / "uc_merced/2.0.0").rename(damaged / "uc_merced/1.0.0")
  found = examine(damaged)
  assert found.state == "broken" and found.aside is None
  assert "version 1.0.0 is in" in found.reason and "expected 2.0.0" in found.reason


def spoil_images_in_the_middle(root):
  for file in shards(root):
    content = records(file)
    for i in range(100, 900):
      content[i] = content[i].replace(b"IEND", b"IENT")
    rewrite(file, content)


def have_one_class_fewer(root):
  info = root / "uc_merced/2.0.0/features.json"
  info.write_text(info.read_text().replace('"numClasses": "21"', '"numClasses": "20"'))
  (root / "uc_merced/2.0.0/label.labels.txt").unlink()


@pytest.mark.parametrize("damage, reason", [
    (spoil_images_in_the_middle, "corrupt image"),
    (have_one_class_fewer, "label 20 of example 20 is out of range"),
])
def test_deep_finds_more(damaged, damage, reason):
  damage(damaged)
  assert examine(damaged).state == "ready"
  found = examine(damaged, deep=True)
  assert found.state == "broken" and reason in found.reason


def test_a_spoilt_info_of_any_version(damaged):
  spoil_the_info(damaged)
  found = examine(damaged, {"name": "mine", "source": "tfds:uc_merced"})
  assert found.state == "broken" and found.aside is None


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "array_record-00000"])
def test_what_may_not_be_read_need_not_be_prepared_again(damaged, monkeypatch, name):
  """Planted, since root, as whom containers run tests, may read everything."""
  opened = open

  def refuse(file, *arguments, **options):
    if name in str(file):
      raise PermissionError(13, "Permission denied", str(file))
    return opened(file, *arguments, **options)
  monkeypatch.setattr("builtins.open", refuse)
  found = examine(damaged)
  assert found.state == "broken" and re.search(f"Permission denied: .*{name}", found.reason)
  assert found.command is None and found.aside is None


def test_a_folder_below_one_that_may_not_be_read(tmp_path, monkeypatch, capsys):
  def refuse(path, **options):
    raise PermissionError(13, "Permission denied", str(path))
  monkeypatch.setattr(pathlib.Path, "stat", refuse)
  status, out = run(capsys, "--data-dir", tmp_path / "inside", "--task", "uc_merced")
  assert status == 1 and re.search("broken +uc_merced +.*Permission denied", out), out


def test_a_mistake_in_a_task_asks_for_no_new_data(planted):
  found = examine(planted, {"name": "uc_merced", "train": "trian"})
  assert found.state == "broken" and "no split 'trian': did you mean 'train'" in found.reason
  assert found.command is None and found.aside is None
  found = examine(planted, {"name": "uc_merced", "options": {"label_key": "lable"}})
  assert "no feature 'lable'" in found.reason and found.command is None


# --- tasks of one's own, and command lines


def test_folders_and_files_of_ones_own(folder, tmp_path, capsys):
  np.savez(tmp_path / "a.npz", images=np.zeros((30, 4, 4), np.uint8), labels=np.arange(30) % 2)
  (tmp_path / "b.npz").write_text("none")
  mine = [json.dumps({"name": name, "source": source}) for name, source in (
      ("pets", f"folder:{folder}"), ("cells", f"npz:{tmp_path}/a.npz"),
      ("spoilt", f"npz:{tmp_path}/b.npz"), ("gone", f"folder:{tmp_path}/gone"))]
  status, out = run(capsys, "--task", *mine)
  assert status == 1
  for state, name in (("ready", "pets"), ("ready", "cells"), ("broken", "spoilt"),
                      ("missing", "gone")):
    assert re.search(f"^{state} +{name} ", out, re.MULTILINE), out
  assert out.endswith("2 ready, 1 missing, 1 broken\n")


def test_a_corrupt_picture_in_a_folder(folder):
  task = {"name": "pets", "source": f"folder:{folder}", "train": "all"}
  (folder / "dog" / "19.png").write_bytes(b"none")
  found = examine("/", task)
  assert found.state == "broken" and "dog/19.png (example 39): corrupt image" in found.reason


@pytest.mark.parametrize("words, message", [
    (["--suite", "papr"], "unknown suite 'papr': did you mean 'paper'"),
    (["--task", "cifar10", "petz"], "unknown task 'petz': did you mean 'pets'"),
    (["--task", "birds:vtab1k"], "has no variant 'vtab1k'"),
    (["--task", '{"name": 3'], "is no JSON"),
    (["--data-dir", __file__], "is a file; expected the folder"),
    (["--data-dir", "gs://bucket/tfds"], "datasets are in .gs://bucket/tfds.*expected a folder"),
    (["--json", "--commands"], "not allowed with"),
])
def test_wrong_command_lines_exit_with_2(capsys, words, message):
  with pytest.raises(SystemExit) as stopped:
    command.main(["doctor", *words])
  assert stopped.value.code == 2
  assert re.search(message, capsys.readouterr().err)


def test_all_25_tasks_take_less_than_ten_seconds_and_neither_jax_nor_tensorflow(tmp_path):
  """CPU seconds of the whole process, imports included: wall time depends on who else works."""
  code = ("import sys\n"
          "from big_transfer.data import __main__ as command\n"
          "status = command.main(['doctor', '--data-dir', sys.argv[1]])\n"
          "assert not {'jax', 'tensorflow'} & set(sys.modules), 'slow imports'\n"
          "sys.exit(status)")
  beside = ROOT.parent / "shared/data/tfds"
  where = beside if beside.is_dir() else tmp_path
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run([sys.executable, "-c", code, str(where)], cwd=ROOT, capture_output=True,
                        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert done.returncode == 1, done.stderr
  assert len(re.findall("^(?:ready|missing|broken) ", done.stdout, re.MULTILINE)) == 25
  assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_the_module_is_a_command(tmp_path):
  done = subprocess.run([sys.executable, "-m", "big_transfer.data", "doctor", "--task", "digits"],
                        cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and "1 ready" in done.stdout, done.stderr
