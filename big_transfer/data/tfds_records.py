"""TensorFlow Datasets stored as ArrayRecord, read without TensorFlow.

A record is a serialised tf.Example. It is parsed here only as far as needed: labels without
touching the image, the image by OpenCV, in about half of TFDS's own time.
"""
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from big_transfer.data.examples import MissingError, checked_labels, decode_image, did_you_mean


class TfdsSource:
  """One split of a prepared TFDS dataset with an image and a class label.

  Args:
    name: "NAME[/CONFIG][:VERSION]"; the highest version and the only configuration by default.
    split: TFDS split string, such as "test" or "train[:90%]".
    data_dir: folder that holds the prepared datasets; TFDS_DATA_DIR, else ~/tensorflow_datasets.
    image_key: feature that holds the image.
    label_key: feature that holds the label.

  Raises:
    ValueError: not prepared, another file format, no such split, configuration, version or
      feature, labels out of range, an empty split; a corrupt image, when read.
  """

  def __init__(self, name: str, split: str = "train", *, data_dir: str | None = None,
               image_key: str = "image", label_key: str = "label"):
    self.name = f"tfds:{name}"
    self._folder = _find(name, data_dir)
    self._split, self._image_key, self._label_key = split, image_key, label_key
    info = _info(str(self._folder))
    if info.file_format is None or info.file_format.value != "array_record":
      form = info.file_format.value if info.file_format else "unknown"
      raise ValueError(f"{self.name}: files in {str(self._folder)!r} are in format {form!r}; "
                       f"expected 'array_record'. Prepare them again: "
                       f"{_command(name, self._folder.parent.parent)}")
    self._records, counted = self._open(info)
    label = self._feature(info, label_key)
    if not hasattr(label, "num_classes"):
      raise ValueError(f"{self.name}: feature {label_key!r} is a {type(label).__name__}; expected "
                       "a ClassLabel. Name the label's feature with the option label_key.")
    self._feature(info, image_key)
    self.num_classes = label.num_classes
    self.class_names = tuple(label.names) if label.names else None
    self.spec = {"name": self.name, "split": split, "version": str(info.version),
                 "config": info.config_name, "image_key": image_key, "label_key": label_key,
                 "examples": len(self._records), "files": counted,
                 "folder": str(self._folder),
                 "changed": max(p.stat().st_mtime_ns for p in self._folder.iterdir())}

  def _open(self, info):
    """The records of the split, and a fingerprint of the files they come from."""
    from array_record.python import array_record_data_source
    try:
      instructions = info.splits[self._split].file_instructions
    except (ValueError, KeyError) as error:
      if re.split(r"[\[+]", self._split)[0] not in info.splits:
        message = did_you_mean(self._split, list(info.splits))
      else:
        message = str(error)
      raise ValueError(f"{self.name}: no split {self._split!r}: {message}") from error
    if not sum(i.examples_in_shard for i in instructions):
      raise ValueError(f"{self.name}: split {self._split!r} is empty; expected at least one "
                       "example. Choose another split.")
    missing = [i.filename for i in instructions if not pathlib.Path(i.filename).exists()]
    if missing:
      raise ValueError(f"{self.name}: file {missing[0]!r} is missing; prepare the dataset again: "
                       f"{_command(self.name[5:], self._folder.parent.parent)}")
    digest = hashlib.sha256(json.dumps(
        [[pathlib.Path(i.filename).name, pathlib.Path(i.filename).stat().st_size, i.skip, i.take]
         for i in instructions]).encode()).hexdigest()
    return array_record_data_source.ArrayRecordDataSource(instructions), digest

  def _feature(self, info, key: str):
    if key not in info.features:
      raise ValueError(f"{self.name}: no feature {key!r}: {did_you_mean(key, info.features)}")
    return info.features[key]

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 (N,); reads the records, decodes no image."""
    labels = np.empty(len(self._records), np.int64)
    for start in range(0, len(labels), 4096):
      indices = list(range(start, min(start + 4096, len(labels))))
      labels[indices] = [self._label(r, i) for r, i in zip(self._read(indices), indices)]
    return checked_labels(labels, self.num_classes, f"{self.name}, split {self._split!r}")

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    index = range(len(self))[index]  # IndexError past the end, as iteration needs
    record, = self._read([index])
    return {"image": self._image(record, index), "label": self._label(record, index)}

  def images_at(self, indices: Sequence[int]) -> list[np.ndarray]:
    indices = [int(i) for i in indices]
    return [self._image(record, i) for record, i in zip(self._read(indices), indices)]

  def _read(self, indices: list[int]) -> list[bytes]:
    try:
      if len(indices) == 1:  # reading by list starts threads, five times the cost for one
        return [self._records[indices[0]]]
      return self._records.__getitems__(indices)
    except (RuntimeError, IndexError) as error:
      raise ValueError(
          f"{self.name}, split {self._split!r}: records {indices[0]} to {indices[-1]} of "
          f"{str(self._folder)!r} can't be read ({error}); prepare the dataset again.") from error

  def _image(self, record: bytes, index: int) -> np.ndarray:
    data = _parse(record)[self._image_key].bytes_list.value
    where = f"{self.name}, split {self._split!r}, example {index}"
    return decode_image(data[0] if data else b"", where)

  def _label(self, record: bytes, index: int) -> int:
    value = _parse(record)[self._label_key].int64_list.value
    if not value:
      raise ValueError(f"{self.name}, split {self._split!r}, example {index}: no integer in "
                       f"feature {self._label_key!r}; prepare the dataset again.")
    return value[0]


def _parse(record: bytes):
  from tensorflow_datasets.proto import tf_example_pb2
  return tf_example_pb2.Example.FromString(record).features.feature


@functools.lru_cache(maxsize=32)
def _info(folder: str):
  import tensorflow_datasets as tfds  # half a second, so not at import
  return tfds.builder_from_directory(folder).info


def _find(name: str, data_dir: str | None) -> pathlib.Path:
  """The folder of a prepared dataset, with its version."""
  path, _, version = name.partition(":")
  root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  root = root.expanduser().absolute()
  folder = root / path
  if not folder.is_dir():
    there = sorted(d.name for d in root.iterdir() if d.is_dir()) if root.is_dir() else []
    hint = did_you_mean(path, there) if there else "That folder holds no dataset."
    raise MissingError(f"tfds:{name}: not found in {str(root)!r}. {hint} Set TFDS_DATA_DIR to "
                     f"where it is, or prepare it (this needs TensorFlow, once): "
                     f"{_command(name, root)}")
  versions = _versions(folder)
  if not versions:
    configs = sorted(d.name for d in folder.iterdir() if d.is_dir() and _versions(d))
    if len(configs) != 1:
      found = f"configurations {', '.join(configs)}" if configs else "no finished version"
      fix = f"choose one, tfds:{path}/{configs[0]}" if configs else (
          f"prepare it (this needs TensorFlow, once): {_command(name, root)}")
      error = ValueError if configs else MissingError
      raise error(f"tfds:{name}: {str(folder)!r} holds {found}; {fix}")
    folder = folder / configs[0]
    versions = _versions(folder)
  if version and version not in versions:
    raise MissingError(f"tfds:{name}: no version {version!r} in {str(folder)!r}: "
                       f"{did_you_mean(version, versions)} Name one of these, or prepare it: "
                       f"{_command(name, root)}")
  return folder / (version or versions[-1])


def _versions(folder: pathlib.Path) -> list[str]:
  """Prepared versions, lowest first: TFDS writes dataset_info.json last."""
  names = [d.name for d in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", d.name)
           and (d / "dataset_info.json").exists()]
  return sorted(names, key=lambda v: tuple(map(int, v.split("."))))


def _command(name: str, root: pathlib.Path) -> str:
  return f"TFDS_DATA_DIR={root} tfds build {name} --file_format=array_record"
