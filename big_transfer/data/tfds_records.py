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

from big_transfer.data import labels as labels_lib
from big_transfer.data.examples import MissingError, checked_labels, decode_image, did_you_mean

REMEMBERED_BYTES = 2 ** 30  # labels of more records than this are kept on disk once read


class TfdsSource:
  """One split of a prepared TFDS dataset with an image and a class label.

  Args:
    name: "NAME[/CONFIG][:VERSION]"; the highest version and the only configuration by default.
    split: TFDS split string, such as "test" or "train[:90%]".
    data_dir: folder that holds the prepared datasets; TFDS_DATA_DIR, else ~/tensorflow_datasets.
    image_key: feature that holds the image.
    label_key: feature that holds the label; nested ones are named as "objects/type".
    label: a label made out of other features, a key of `labels.DERIVED`, instead of label_key.
    num_classes: for a label_key that holds integers and isn't a ClassLabel: how many classes.
    image_scale: multiplied into the pixels; 255 for dSprites, which stores 0 and 1.

  Raises:
    MissingError: not prepared.
    ValueError: another file format, no such split, configuration, version or feature, labels out
      of range, an empty split; a corrupt image, when read.
  """

  def __init__(self, name: str, split: str = "train", *, data_dir: str | None = None,
               image_key: str = "image", label_key: str = "label", label: str | None = None,
               num_classes: int | None = None, image_scale: int = 1):
    self.name = f"tfds:{name}"
    self._folder = _find(name, data_dir)
    self._split, self._image_key, self._label_key = split, image_key, label_key
    self._image_scale, self._derived = image_scale, label
    info = _info(str(self._folder))
    if info.file_format is None or info.file_format.value != "array_record":
      form = info.file_format.value if info.file_format else "unknown"
      raise ValueError(f"{self.name}: files in {str(self._folder)!r} are in format {form!r}; "
                       f"expected 'array_record'. Prepare them again: "
                       f"{_command(name, self._folder.parent.parent)}")
    self._records, counted = self._open(info)
    self._check_image(info)
    self.num_classes, self.class_names = self._classes(info, label, num_classes)
    self.spec = {"name": self.name, "split": split, "version": str(info.version),
                 "config": info.config_name, "image_key": image_key, "label_key": label_key,
                 "examples": len(self._records), "files": counted,
                 "folder": str(self._folder),
                 "changed": max(p.stat().st_mtime_ns for p in self._folder.iterdir()),
                 **({"label": label} if label else {}),
                 **({"image_scale": image_scale} if image_scale != 1 else {})}

  def _check_image(self, info) -> None:
    from tensorflow_datasets import features
    feature = self._feature(info, self._image_key)
    if not isinstance(feature, features.Image):  # which alone is stored as a file
      raise ValueError(f"{self.name}: feature {self._image_key!r} is a {type(feature).__name__}; "
                       "expected an Image. Name the image's feature with the option image_key.")

  def _classes(self, info, label: str | None, num_classes: int | None):
    """The number of classes and their names, if they have any."""
    if label is not None:
      if label not in labels_lib.DERIVED:
        raise ValueError(f"{self.name}: no derived label {label!r}: "
                         f"{did_you_mean(label, labels_lib.DERIVED)}")
      if self._label_key != "label" or num_classes is not None:
        raise ValueError(f"{self.name}: label {label!r} is made out of other features; expected "
                         "neither label_key nor num_classes with it. Drop one or the other.")
      for feature in labels_lib.DERIVED[label].features:
        self._feature(info, feature)
      names = labels_lib.DERIVED[label].class_names
      return len(names), names
    feature = self._feature(info, self._label_key)
    if hasattr(feature, "num_classes"):
      if num_classes not in (None, feature.num_classes):
        raise ValueError(f"{self.name}: {self._label_key!r} has {feature.num_classes} classes, "
                         f"num_classes is {num_classes}; drop that option.")
      return feature.num_classes, tuple(feature.names) if feature.names else None
    if num_classes is None or getattr(feature, "shape", None) != () or not np.issubdtype(
        feature.np_dtype, np.integer):
      raise ValueError(
          f"{self.name}: feature {self._label_key!r} is a {type(feature).__name__}; expected a "
          "ClassLabel, or an integer together with the option num_classes. Name the label's "
          "feature with the option label_key.")
    return num_classes, None

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
    self._instructions = instructions
    return array_record_data_source.ArrayRecordDataSource(instructions), digest

  def _feature(self, info, key: str):
    feature = info.features
    for part in [key] if key in feature else key.split("/"):  # "image/file_name" is one feature
      inner = getattr(feature, "feature", feature)  # of a Sequence
      if not hasattr(inner, "keys") or part not in inner:
        raise ValueError(f"{self.name}: no feature {key!r}: {did_you_mean(key, info.features)}")
      feature = inner[part]
    return feature

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 (N,); reads the records, decodes no image. Kept on disk where that is much to read."""
    if sum(pathlib.Path(i.filename).stat().st_size * i.take / i.examples_in_shard
           for i in self._instructions) > REMEMBERED_BYTES:
      labels = labels_lib.remembered(self.spec, self._read_labels)
    else:
      labels = self._read_labels()
    return checked_labels(labels, self.num_classes, f"{self.name}, split {self._split!r}")

  def _read_labels(self) -> np.ndarray:
    """All labels, int64; in the order of the files, a range at a time: twice as fast."""
    from array_record.python import array_record_module
    labels = []
    for part in self._instructions:
      end = part.skip + part.take
      try:
        reader = array_record_module.ArrayRecordReader(part.filename,
                                                       "readahead_buffer_size:1048576")
        for start in range(part.skip, end, 256):
          records = reader.read(start, min(start + 256, end))
          labels += [self._label(r, i) for i, r in enumerate(records, len(labels))]
        reader.close()
      except (RuntimeError, IndexError) as error:
        raise self._unreadable(len(labels), error) from error
    return np.array(labels, np.int64)

  def fingerprint(self) -> str:
    """A hash of the examples in their order, to compare two machines: 16 hexadecimal digits.

    Equal where labels and images are: pixels where they are stored without loss, else the encoded
    bytes, since PNG encoders differ and JPEG decoders do. Reads every example: meant for the 1,000
    of VTAB-1k.
    """
    digest = hashlib.sha256()
    for index in range(len(self)):
      record, = self._read([index])
      data = self._encoded(record)
      if not data.startswith(b"\xff\xd8"):
        image = self._image(record, index)
        data = str(image.shape).encode() + image.tobytes()
      digest.update(f"{self._label(record, index)} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]

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
      raise self._unreadable(indices[0], error) from error

  def _unreadable(self, index: int, error: Exception) -> ValueError:
    return ValueError(f"{self.name}, split {self._split!r}: records from {index} on of "
                      f"{str(self._folder)!r} can't be read ({error}); prepare the dataset again.")

  def _encoded(self, record: bytes) -> bytes:
    data = _parse(record)[self._image_key].bytes_list.value
    return data[0] if data else b""

  def _image(self, record: bytes, index: int) -> np.ndarray:
    where = f"{self.name}, split {self._split!r}, example {index}"
    image = decode_image(self._encoded(record), where)
    if self._image_scale == 1:
      return image
    if int(image.max()) * self._image_scale > 255:
      raise ValueError(f"{where}: pixels go up to {image.max()}, {self._image_scale} times which "
                       "is above 255; correct the option image_scale.")
    return image * np.uint8(self._image_scale)

  def _label(self, record: bytes, index: int) -> int:
    features = _parse(record)
    if self._derived:
      derived = labels_lib.DERIVED[self._derived]
      return derived.label({key: _numbers(features[key]) for key in derived.features})
    value = features[self._label_key].int64_list.value
    if len(value) != 1:
      raise ValueError(f"{self.name}, split {self._split!r}, example {index}: {len(value)} "
                       f"integers in feature {self._label_key!r}; expected one, its class. Choose "
                       "another label_key, or prepare the dataset again.")
    return value[0]


def _numbers(feature) -> list:
  kind = feature.WhichOneof("kind")
  return list(getattr(feature, kind).value) if kind else []


def _parse(record: bytes):
  from tensorflow_datasets.proto import tf_example_pb2
  return tf_example_pb2.Example.FromString(record).features.feature


@functools.lru_cache(maxsize=32)
def _info(folder: str):
  import tensorflow_datasets as tfds  # half a second, so not at import
  return tfds.builder_from_directory(folder).info


def data_root(data_dir: str | None = None) -> pathlib.Path:
  """Where TFDS's datasets are: data_dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Raises:
    ValueError: it is a URL; ArrayRecord files are read from folders alone.
  """
  root = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  if "://" in root:
    raise ValueError(f"datasets are in {root!r}, by data_dir or TFDS_DATA_DIR; expected a folder "
                     "of this machine. Copy them into one, or mount the bucket.")
  return pathlib.Path(root).expanduser().absolute()


def _find(name: str, data_dir: str | None) -> pathlib.Path:
  """The folder of a prepared dataset, with its version."""
  path, _, version = name.partition(":")
  root = data_root(data_dir)
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
