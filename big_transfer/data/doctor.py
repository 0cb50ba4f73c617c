"""Whether the data of tasks is ready: what is missing and how to get it, what is broken and why.

`examine` opens tasks as training does, so what it calls ready can be trained on. Of TFDS datasets
it also counts the records of every shard, compares versions and splits with `catalog`, and decodes
the first and last example of each split; `deep` reads every label and decodes some of every shard.
Nothing is downloaded, and no state is kept.
"""
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable

import numpy as np

from big_transfer.data import catalog
from big_transfer.data import tasks as tasks_lib
from big_transfer.data.examples import MissingError, Source
from big_transfer.data.tfds_records import data_root

SPLITS = ("train", "validation", "test")
SAMPLE = 4  # examples of each shard that `deep` decodes

# What preparing imports and tensorflow-datasets doesn't install: TensorFlow; what the command
# `tfds` of 4.9.10 needs to start at all; what the suite's builders read their data with.
PACKAGES = ("tensorflow apache-beam importlib_resources mlcroissant "
            "h5py opencv-python-headless 'pillow<12' scipy")


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What `examine` found of a task.

  Attributes:
    task: its name.
    variant: its variant.
    source: where its data is from, as in `Task`.
    state: "ready", "missing" or "broken".
    examples: of "train", "test" and, where there is one, "validation": counted where ready, else
      what the catalogue says; a split that neither knows is not in it.
    version: of the data that was found, None where TFDS has no part in it.
    folder: of that data; None where it was not found, or is built in.
    reason: why it isn't ready; empty where it is.
    command: prepares it; None where that would not help.
    aside: a folder to move aside before that, since TFDS would take it for finished.
    download_bytes: what preparing downloads by itself; None where unknown.
    prepared_bytes: what it takes once prepared; None where unknown.
    manual: what the licence wants downloaded by hand, and into which folder.
    fingerprint: of VTAB-1k's examples, where `deep` and the task is of VTAB; else None.
  """

  task: str
  variant: str
  source: str
  state: str
  examples: dict[str, int]
  version: str | None = None
  folder: str | None = None
  reason: str = ""
  command: str | None = None
  aside: str | None = None
  download_bytes: int | None = None
  prepared_bytes: int | None = None
  manual: str | None = None
  fingerprint: str | None = None


def examine(tasks: Iterable[tasks_lib.Task], data_dir: str | None = None, deep: bool = False
            ) -> list[Diagnosis]:
  """Examines tasks one after another; a dataset that several share is counted once.

  Args:
    tasks: which.
    data_dir: where TFDS's datasets are; see `tfds_records.data_root`.
    deep: read all labels, decode some of every shard, and take the fingerprint of VTAB-1k.

  Raises:
    ValueError: data_dir is a file, or a URL. Of the data nothing is raised, it is in the result.
  """
  root = data_root(data_dir)
  if os.path.isfile(root):
    raise ValueError(f"data_dir {str(root)!r} is a file; expected the folder that holds TFDS's "
                     "datasets.")
  shards = functools.cache(_broken_shards)
  return [_examine(_placed(task, data_dir), deep, shards) for task in tasks]


def free_bytes(root: pathlib.Path) -> int:
  """Free space where `root` is, or would be made."""
  # Not Path.exists, which fails below a folder that may not be read.
  there = next(folder for folder in (root, *root.parents) if os.path.exists(folder))
  return shutil.disk_usage(there).free


def script(found: Iterable[Diagnosis]) -> list[str]:
  """Lines for a shell that prepare what isn't ready, each dataset once; none if all is ready.

  Preparing needs TensorFlow, which nothing here does, so it gets an environment of its own. TFDS
  prepares no version but its own, hence the very release that is installed here. Datasets that
  want something done by hand come last; a command that fails keeps no other from running.
  """
  wanted = {d.command: d for d in found if d.command}
  if not wanted:
    return []
  release = importlib.metadata.version("tensorflow-datasets")
  lines = ["python3 -m venv tfds-env",
           f"tfds-env/bin/pip install tensorflow-datasets=={release} {PACKAGES}"]
  for command, diagnosis in sorted(wanted.items(), key=lambda item: bool(item[1].manual)):
    if diagnosis.manual:
      lines.append(f"# by hand first, {diagnosis.manual}")
    if diagnosis.aside:
      lines.append(moving(diagnosis.aside))
    lines.append(command.replace(" tfds build ", " tfds-env/bin/tfds build "))
  return lines


def moving(folder: str) -> str:
  """The command that moves a broken folder aside."""
  return shlex.join(["mv", folder, f"{folder}.broken"])


def _placed(task: tasks_lib.Task, data_dir: str | None) -> tasks_lib.Task:
  """The task with TFDS data at data_dir, else where it says itself, else at `data_root`."""
  if not task.source.startswith("tfds:"):
    return task
  place = str(data_root(data_dir or task.options.get("data_dir")))
  return dataclasses.replace(task, options={**task.options, "data_dir": place})


def _examine(task, deep, shards) -> Diagnosis:
  """One task; `shards(folder, split)` gives what is wrong with a split's files."""
  found = Diagnosis(task.name, task.variant, task.source, "ready", _expected(task))
  if task.source.startswith("tfds:"):
    return _examine_tfds(task, found, deep, shards)
  try:
    opened = _opened(task)
    found = dataclasses.replace(found, folder=opened["train"].spec.get("path"),
                                examples={split: len(source) for split, source in opened.items()})
    # What the package makes is made all at once, which can take a while.
    if deep or found.folder:
      _read_some(task, opened, deep)
  except MissingError as error:
    return dataclasses.replace(found, state="missing", reason=str(error))
  except (ValueError, OSError) as error:
    return dataclasses.replace(found, state="broken", reason=str(error))
  return found


def _examine_tfds(task, found, deep, shards) -> Diagnosis:
  root = pathlib.Path(task.options["data_dir"])
  path, _, version = task.source.removeprefix("tfds:").partition(":")
  to_get = _to_get(task, root)
  folder = root / path / version
  problem = None
  try:
    if version and (folder / "dataset_info.json").exists():
      problem = _files_problem(task, folder, shards)
    if not problem:
      opened = _opened(task)
      spec = opened["train"].spec
      found = dataclasses.replace(found, folder=spec["folder"], version=spec["version"],
                                  examples={split: len(source) for split, source in opened.items()})
      if not version:
        folder = pathlib.Path(spec["folder"])
        problem = _files_problem(task, folder, shards)
  except MissingError:
    return dataclasses.replace(found, **to_get, **_absent(path, version, root))
  except Exception as error:  # of any type, where TFDS reads an info that is spoilt
    # As a rule a mistake in the task, since the files are whole: preparing again mends nothing.
    return dataclasses.replace(found, state="broken", reason=str(error))
  try:
    if not problem:
      _read_some(task, opened, deep)
      return dataclasses.replace(found, fingerprint=_fingerprint(task) if deep else None)
  except (ValueError, OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's
    problem = str(error)
  return dataclasses.replace(found, state="broken", reason=problem, aside=str(folder), **to_get)


def _to_get(task, root: pathlib.Path) -> dict:
  """What it takes to prepare a task's dataset, fields of `Diagnosis`."""
  name = task.source.removeprefix("tfds:")
  command = (f"TFDS_DATA_DIR={shlex.quote(str(root))} tfds build {name} "
             "--file_format=array_record")
  dataset = catalog.of(task)
  if dataset is None:
    return {"command": command}
  manual = f"into {root / 'downloads/manual'}: {dataset.manual}" if dataset.manual else None
  return {"command": command, "download_bytes": dataset.download_bytes,
          "prepared_bytes": dataset.prepared_bytes, "manual": manual}


def _opened(task) -> dict[str, Source]:
  return {split: task.open(split) for split in SPLITS if getattr(task, split)}


def _expected(task) -> dict[str, int]:
  """What the catalogue says of the task's splits; nothing if they are no splits of the dataset."""
  try:
    counts = {split: catalog.examples(task, split) for split in SPLITS}
  except (ValueError, KeyError):
    return {}
  return {split: count for split, count in counts.items() if count is not None}


def _files_problem(task: tasks_lib.Task, folder: pathlib.Path, shards: Callable) -> str | None:
  """What is wrong with the files of a prepared TFDS dataset, without reading records."""
  import tensorflow_datasets as tfds  # half a second, so not at import
  for name in ("dataset_info.json", "features.json"):
    _check_permission(folder / name)
  try:
    info = tfds.builder_from_directory(folder).info
  except Exception as error:  # of any type, from a file that is no JSON or lacks a field
    return f"dataset_info.json or features.json in {str(folder)!r} can't be read ({error})"
  form = info.file_format.value if info.file_format else "unknown"
  if form != "array_record":
    return f"files in {str(folder)!r} are in format {form!r}; expected 'array_record'"
  dataset = catalog.of(task)
  for split in _whole_splits(task):
    if split not in info.splits:
      continue  # the task's mistake, or another dataset than the catalogue's: opening it says so
    count = info.splits[split].num_examples
    if dataset and dataset.version == str(info.version) and count != dataset.splits.get(split):
      return (f"split {split!r} in {str(folder)!r} has {count:,} examples; expected "
              f"{dataset.splits.get(split, 0):,}")
    broken = shards(str(folder), split)
    if broken:
      return broken[0] + (f" (and {len(broken) - 1} more files)" if len(broken) > 1 else "")
  return None


def _read_some(task: tasks_lib.Task, opened: dict[str, Source], deep: bool) -> None:
  """Decodes some examples; raises what the source does if one is wrong."""
  for split, source in opened.items():
    indices = {0, len(source) - 1}
    if deep:
      source.labels  # read and checked
      indices |= set(_sample(task, split, source))
    for index in sorted(indices):
      source[index]
  if deep:
    task.open_both()  # a label means the same in both


def _whole_splits(task) -> list[str]:
  """The splits that the task's are parts of: "train+validation[:5]" -> train, validation."""
  parts = (part for split in SPLITS for part in (getattr(task, split) or "").split("+") if part)
  return list(dict.fromkeys(re.split(r"\[", part)[0] for part in parts))


def _broken_shards(folder: str, split: str) -> list[str]:
  """A sentence for each file of a split that has not the records it should have."""
  import tensorflow_datasets as tfds
  found = tfds.builder_from_directory(folder).info.splits[split]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:  # disks far away take a while for each
    told = pool.map(_broken_shard, map(str, found.filepaths), found.shard_lengths)
    return list(filter(None, told))


def _broken_shard(file: str, expected: int) -> str | None:
  from array_record.python import array_record_module
  if not pathlib.Path(file).exists():
    return f"file {file!r} is missing"
  _check_permission(file)
  try:
    reader = array_record_module.ArrayRecordReader(file)
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError) as error:
    return f"file {file!r} can't be read ({error})"
  return None if count == expected else (
      f"file {file!r} has {count:,} records; expected {expected:,}")


def _check_permission(file: str | pathlib.Path) -> None:
  """Raises PermissionError if a file may not be read, which preparing it again would not mend."""
  with contextlib.suppress(FileNotFoundError), open(file, "rb"):
    pass


def _sample(task, split: str, source: Source) -> list[int]:
  """Positions in a split: some of each file of a TFDS dataset, of the whole of any other source."""
  lengths = [len(source)]
  if task.source.startswith("tfds:"):
    import tensorflow_datasets as tfds
    info = tfds.builder_from_directory(source.spec["folder"]).info
    parts = info.splits[getattr(task, split)].file_instructions
    lengths = [part.take for part in parts]
  starts = np.cumsum([0, *lengths[:-1]])
  return sorted({int(i) for start, n in zip(starts, lengths)
                 for i in np.linspace(start, start + n - 1, SAMPLE)})


def _fingerprint(task) -> str | None:
  """Of VTAB-1k's 1,000 training examples; None for a task that isn't of VTAB, or of other data."""
  thousand = tasks_lib.VARIANTS.get((task.name, "vtab1k"))
  if thousand is None or thousand.source != task.source:
    return None
  return dataclasses.replace(thousand, options=task.options).open("train").fingerprint()


def _absent(path: str, version: str, root: pathlib.Path) -> dict:
  """State, reason and folder to move aside of a dataset that TFDS doesn't find."""
  folder = root / path
  if not folder.is_dir():
    return {"state": "missing", "reason": "not prepared"}
  inside = sorted(d for d in folder.iterdir() if d.is_dir())
  # TFDS works in a folder incomplete.XXXXXX_VERSION, renames it, and writes the info last.
  for half in inside:
    unfinished = _is_version(half.name) and not (half / "dataset_info.json").exists()
    if (unfinished or half.name.startswith("incomplete.")) and version in half.name:
      return {"state": "broken", "aside": str(half) if unfinished else None, "reason":
              f"half-prepared: {str(half)!r} has no dataset_info.json, which TFDS writes last"}
  finished = [d.name for d in inside if _is_version(d.name)]
  if finished:
    return {"state": "broken", "reason": f"version {', '.join(finished)} is in {str(folder)!r}; "
                                         f"expected {version}, which can be prepared beside it"}
  return {"state": "missing", "reason": f"not prepared, {str(folder)!r} is empty"}


def _is_version(name: str) -> bool:
  return re.fullmatch(r"\d+\.\d+\.\d+", name) is not None
