"""Datasets that hold a tar, or a folder, of images for each class: ImageNet-21k, and any like it.

  open_source("imagenet21k:/data/winter21_whole", release="winter21")
  open_source("tars:/data/birds", "test")          # /data/birds/<class>.tar or /data/birds/<class>/

ImageNet-21k is handed out as one archive, winter21_whole.tar.gz, that has to be unpacked once, into
a folder of some 20 thousand tars; those are read as they are, in any order:

  mkdir -p /data && tar -xzf winter21_whole.tar.gz -C /data

No split of it is official, so one is made by hashing: an image is in "test" if the first 8 bytes of
the sha256 of "CLASS/FILE", as a number, lie below `test_fraction` of 2**64. So adding or removing
files moves no other, tars and folders split alike, and so does folder:PATH.
"""
import collections
import functools
import hashlib
import json
import os
import pathlib
import re
import weakref
from collections.abc import Sequence

import numpy as np

from big_transfer.data import class_index
from big_transfer.data.class_index import Place
from big_transfer.data.examples import MissingError, checked_labels, decode_image, did_you_mean

OPEN_TARS = 128  # kept open at once, by all sources; systems allow a process 1,024 files or more


class ClassTars:
  """A tar or a folder of images for each class; made by `tars` and `imagenet21k`.

  Args:
    name: what errors and records call it.
    root: the folder that holds them.
    places: the classes, in the order of the labels.
    split, release, test_fraction: as in `tars`.

  Raises:
    ValueError: tars that are truncated or hold no images, an unknown split, an empty one; a corrupt
      image, when read.
  """

  def __init__(self, name: str, root: pathlib.Path, places: Sequence[Place], split: str,
               release: str | None, test_fraction: float):
    if split not in ("train", "test", "all"):
      raise ValueError(f"{name}: no split {split!r}: "
                       f"{did_you_mean(split, ['train', 'test', 'all'])}")
    if not 0 < test_fraction < 1:
      raise ValueError(f"{name}: test_fraction is {test_fraction}; expected between 0 and 1.")
    self.name, self._places = name, places
    self.class_names = tuple(place.name for place in places)
    self.num_classes = len(places)
    self._index = class_index.read(root, places)
    entries = [self._index.entries[place.name] for place in places]
    counts = [entry.count for entry in entries]
    labels = np.repeat(np.arange(self.num_classes, dtype=np.int32), counts)
    # A class's rows follow each other; the classes' order is the labels', not the index's.
    firsts = np.array([entry.start for entry in entries]) - np.cumsum([0, *counts[:-1]])
    self._rows = np.arange(len(labels)) + np.repeat(firsts, counts)
    if split != "all":
      in_test = self._index.side[self._rows] < np.uint64(test_fraction * 2**64)
      chosen = in_test if split == "test" else ~in_test
      self._rows, labels = self._rows[chosen], labels[chosen]
    if not len(labels):
      raise ValueError(f"{name}: none of {sum(counts)} images is in split {split!r} with "
                       f"test_fraction {test_fraction}; change it.")
    self.labels = checked_labels(labels, self.num_classes, name)
    contents = [[place.name, entry.digest] for place, entry in zip(places, entries)]
    self.spec = {"name": name, "split": split, "release": release, "path": str(root),
                 "examples": len(labels), "num_classes": self.num_classes,
                 "test_fraction": None if split == "all" else test_fraction,
                 "contents": _sha256(contents),
                 "changed": _sha256([place.stamp for place in places])}

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict:
    index = range(len(self))[index]  # IndexError past the end, as iteration needs
    row, place = self._rows[index], self._places[self.labels[index]]
    name = os.fsdecode(self._index.name[row].as_py())
    where = f"{place.path}{':' if place.is_tar else '/'}{name} (example {index})"
    if place.is_tar:
      offset, size = int(self._index.offset[row]), int(self._index.size[row])
      data = _tar(place).read(offset, size, where)
    else:
      data = pathlib.Path(place.path, name).read_bytes()
    return {"image": decode_image(data, where), "label": int(self.labels[index])}

  def images_at(self, indices: Sequence[int]) -> list[np.ndarray]:
    return [self[int(index)]["image"] for index in indices]


def tars(path: str, split: str = "train", *, classes: str | None = None,
         release: str | None = None, test_fraction: float = 0.2) -> ClassTars:
  """A tar or a folder of images for each class: PATH/CLASS.tar with images, or PATH/CLASS/IMAGE.

  Args:
    path: the folder that holds them.
    split: "train", "test" (a hashed `test_fraction` of the files) or "all".
    classes: a file with a class on each line, its first word: those to use, in the order of the
      labels. Sorted names of all that are found where not given.
    release: which edition of the dataset this is, for the record.
    test_fraction: share of the files in "test".

  Raises:
    MissingError: no such folder, or nothing in it.
    ValueError: an archive that has to be unpacked, a class that is listed but not found; what
      `ClassTars` raises.
  """
  name = f"tars:{path}"
  root = pathlib.Path(path).expanduser().absolute()
  return ClassTars(name, root, _chosen(root, classes, name), split, release, test_fraction)


def imagenet21k(path: str, split: str = "train", *, release: str | None = None,
                classes: str | None = None, test_fraction: float = 0.01) -> ClassTars:
  """ImageNet-21k from its tars or folders, named by wnid: n01440764.tar or n01440764/.

  Args:
    path: the folder that holds them.
    split: "train", "test" (a hashed hundredth by default, 140,000 of 14 million images) or "all".
    release: which edition, such as "fall11", "winter21" or "winter21_P"; has to be said, since they
      differ in classes and images, so that numbers from one aren't those from another.
    classes: a file with a wnid on each line, as in `tars`.
    test_fraction: share of the files in "test".

  Raises:
    ValueError: no release, a class that is no wnid; what `tars` raises.
  """
  name = f"imagenet21k:{path}"
  if not isinstance(release, str) or not release.strip():
    raise ValueError(f"{name}: release is {release!r}; expected the name of the edition that you "
                     "have, such as 'fall11', 'winter21' or 'winter21_P', since results on them "
                     "differ. Give the option release.")
  root = pathlib.Path(path).expanduser().absolute()
  places = _chosen(root, classes, name)
  other = next((p.name for p in places if not re.fullmatch(r"n\d{8}", p.name)), None)
  if other is not None:
    raise ValueError(f"{name}: found a class {other!r}; expected wnids alone, such as n01440764. "
                     f"List the classes with the option classes, or read it as tars:{path}.")
  return ClassTars(name, root, places, split, release, test_fraction)


def _chosen(root: pathlib.Path, classes: str | None, name: str) -> list[Place]:
  """The classes to read, in the order of the labels."""
  found = _places(root, name)
  return [found[c] for c in (_listed(classes, found, name) if classes else sorted(found))]


def _places(root: pathlib.Path, name: str) -> dict[str, Place]:
  """The classes found in a folder."""
  unpack = ("Unpack it once, `mkdir -p DIR && tar -xf FILE -C DIR`, and name the folder "
            "that then holds a .tar for each class.")
  if root.is_file():
    raise ValueError(f"{name}: expected a folder with a .tar or a folder for each class, found a "
                     f"file. {unpack}")
  if not root.is_dir():
    raise MissingError(f"{name}: no such folder; correct the path. (ImageNet-21k is handed out by "
                       f"image-net.org to those who register, as one archive. {unpack})")
  found, packed = {}, []
  with os.scandir(root) as entries:
    for entry in entries:
      lower = entry.name.lower()
      is_tar = lower.endswith(".tar")
      if lower.endswith((".tar.gz", ".tgz")):
        packed.append(entry.name)
      if lower.startswith("."):
        continue
      if entry.is_symlink() and not os.path.exists(entry):
        raise ValueError(f"{name}: {entry.name!r} is a link to {os.readlink(entry)!r}, where "
                         "nothing is; mend or remove it.")
      if not (is_tar or entry.is_dir()):
        continue
      key = entry.name[:-len(".tar")] if is_tar else entry.name
      if key in found:
        raise ValueError(f"{name}: class {key!r} is there as a tar and as a folder; remove one.")
      stat = entry.stat()
      stamp = ("tar", stat.st_size) if is_tar else ("folder", 0)
      found[key] = Place(key, str(root / entry.name), is_tar, (*stamp, stat.st_mtime_ns))
  if not found and packed:
    raise ValueError(f"{name}: found {packed[0]!r} but no .tar or folder for each class; images in "
                     f"a compressed archive can't be read in any order. {unpack}")
  if not found:
    raise MissingError(f"{name}: no .tar and no folder in it; expected one for each class.")
  return found


def _listed(file: str, found: dict[str, Place], name: str) -> list[str]:
  """The classes of a list, in its order."""
  try:
    lines = pathlib.Path(file).expanduser().read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"{name}: the list of classes {str(file)!r} can't be read ({error}); expected "
                     "a text file with a class on each line.") from error
  listed = [line.split()[0] for line in lines if line.strip()]
  if not listed:
    raise ValueError(f"{name}: the list of classes {str(file)!r} is empty; expected a class on "
                     "each line.")
  twice, count = collections.Counter(listed).most_common(1)[0]
  if count > 1:
    raise ValueError(f"{name}: the list of classes {str(file)!r} has {twice!r} {count} times; "
                     "expected it once, since a class's line is its label.")
  absent = [c for c in listed if c not in found]
  if absent:
    raise ValueError(f"{name}: {len(absent)} of the {len(listed)} classes in {str(file)!r} have no "
                     f"tar or folder there: {', '.join(absent[:10])}"
                     f"{', …' if len(absent) > 10 else ''}. Get them, or take them off the list.")
  return listed


def _sha256(value) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class _Tar:
  """An open tar; closed when nobody reads from it any more.

  Reading takes no lock and has no position, so any number of threads may. One that is dropped from
  the cache while another thread reads stays open until that is done, so that its number can't be
  another file's by then.
  """

  def __init__(self, place: Place):
    try:
      self._descriptor = os.open(place.path, os.O_RDONLY)
    except OSError as error:
      raise ValueError(f"{place.path}: can't be opened any more ({error.strerror}); put it back, "
                       "or start again without it.") from error
    weakref.finalize(self, os.close, self._descriptor)
    stat = os.fstat(self._descriptor)
    if ("tar", stat.st_size, stat.st_mtime_ns) != place.stamp:
      raise ValueError(f"{place.path}: changed since its dataset was opened; start again.")

  def read(self, offset: int, size: int, where: str) -> bytes:
    data = os.pread(self._descriptor, size, offset)
    if len(data) != size:
      raise ValueError(f"{where}: expected {size} bytes at byte {offset}, got {len(data)}; the tar "
                       "was truncated since its dataset was opened. Get it again.")
    return data


@functools.lru_cache(maxsize=OPEN_TARS)
def _tar(place: Place) -> _Tar:
  return _Tar(place)
