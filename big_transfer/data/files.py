"""Images that users have as files: a folder by class, or an .npz of arrays.

Where a dataset has no split of its own, one is made by hashing: an example's side depends only on
its own path (folder) or position (.npz), so adding files moves no other file.
"""
import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from big_transfer.data.examples import (ArraySource, MissingError, checked_labels, decode_image,
                                        did_you_mean, three_channels)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


class FolderSource:
  """A folder of images by class: PATH[/SPLIT]/CLASS/**/IMAGE.

  If PATH has a subfolder named as the split, it is read. Otherwise PATH's subfolders are the
  classes and `split` is "train", "test" (a hashed `test_fraction` of the files) or "all".

  Args:
    path: the folder.
    split: subfolder, or side of the hashed split.
    test_fraction: share of the files in "test", where the split is hashed.

  Raises:
    ValueError: no such folder or split, a folder without images; a corrupt image, when read.
  """

  def __init__(self, path: str, split: str = "train", *, test_fraction: float = 0.2):
    root = pathlib.Path(path).expanduser().absolute()
    if not root.is_dir():
      error = ValueError if root.exists() else MissingError
      raise error(f"folder {str(root)!r}: expected a folder of images by class, found "
                  f"{'a file' if root.exists() else 'nothing'}; correct the path.")
    own_split = (root / split).is_dir()
    if not own_split:
      siblings = [d.name for d in _folders(root) if d.name in ("train", "test", "val")]
      if siblings:  # else a lone train/ would be taken for a class
        raise ValueError(f"folder {str(root)!r}: no split {split!r}; found "
                         f"{', '.join(siblings)}.")
    base = root / split if own_split else root
    self.name = f"folder:{path}"
    self.class_names = tuple(d.name for d in _folders(base))
    found = [_images_in(base, name) for name in self.class_names]
    labels = np.repeat(np.arange(len(found)), [len(names) for names in found])
    self._base, self._files = str(base), [name for names in found for name in names]
    if not own_split:
      chosen = _side(self._files, split, test_fraction, self.name)
      self._files, labels = [self._files[i] for i in chosen], labels[chosen]
    if not self._files:
      tars = any(file.suffix == ".tar" for file in base.iterdir())
      raise ValueError(
          f"folder {str(base)!r}, split {split!r}: no images; expected "
          f"CLASS/IMAGE with a suffix among {', '.join(sorted(SUFFIXES))}."
          + (f" It holds .tar files; one a class is read by tars:{path}." if tars else ""))
    self.num_classes = len(self.class_names)
    self.labels = checked_labels(labels, self.num_classes, self.name)
    self.spec = {"name": self.name, "split": split, "path": str(root),
                 "examples": len(self._files), "classes": list(self.class_names),
                 "contents": _fingerprint(self._base, self._files)}

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    file = pathlib.Path(self._base, self._files[index])
    image = decode_image(file.read_bytes(), f"{file} (example {index})")
    return {"image": image, "label": int(self.labels[index])}

  def images_at(self, indices: Sequence[int]) -> list[np.ndarray]:
    return [self[index]["image"] for index in indices]


def npz(path: str, split: str = "train", *, image_key: str | None = None,
        label_key: str | None = None, num_classes: int | None = None,
        test_fraction: float = 0.2) -> ArraySource:
  """An .npz of images and labels.

  Arrays are looked for as x_SPLIT and y_SPLIT, then SPLIT_images and SPLIT_labels, then images and
  labels. The last, and arrays named by the options, have no split, so "train" and "test" are hashed
  sides of them and "all" is everything.

  Args:
    path: the file.
    split: split to read.
    image_key: name of the image array, uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3).
    label_key: name of the label array, integers (N,) or (N, 1).
    num_classes: number of classes; the greatest label plus one where not given.
    test_fraction: share of the examples in "test", where the split is hashed.

  Raises:
    ValueError: missing file or array, pickled objects, wrong dtype or shape, labels out of range.
  """
  file = pathlib.Path(path).expanduser().absolute()
  name = f"npz:{path}"
  if not file.is_file():
    raise MissingError(f"{name}: no such file; expected one written by numpy.savez.")
  with _open_npz(file, name) as arrays:
    image_key, label_key, own_split = _keys(list(arrays), split, image_key, label_key, name)
  labels = _member(file, label_key, name)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1 or labels.dtype.kind not in "iu":
    raise ValueError(f"{name}: labels {label_key!r} are {labels.dtype} {labels.shape}; expected "
                     "integers (N,). Convert them, for instance with numpy.unique's inverse.")
  if num_classes is None:
    # The whole array decides, so that the two sides of a hashed split agree.
    num_classes = int(labels.max()) + 1 if len(labels) else 0
  chosen = None
  if not own_split:
    chosen = _side([str(i) for i in range(len(labels))], split, test_fraction, name)
  spec = {"name": name, "split": split, "path": str(file), "size": file.stat().st_size,
          "mtime_ns": file.stat().st_mtime_ns, "image_key": image_key, "label_key": label_key,
          "num_classes": num_classes, "test_fraction": None if own_split else test_fraction}
  side = labels if chosen is None else labels[chosen]
  make = functools.partial(_npz_images, file, image_key, name, len(labels), chosen)
  return ArraySource(spec, side, num_classes, make)


def _npz_images(file, key, name, count, chosen) -> np.ndarray:
  images = _member(file, key, name)
  if images.dtype != np.uint8:
    raise ValueError(f"{name}: images {key!r} are {images.dtype}; expected uint8 in [0, 255]. "
                     "Scale and convert them with .round().astype('uint8').")
  if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
    raise ValueError(f"{name}: images {key!r} have shape {images.shape}; expected (N, H, W), "
                     "(N, H, W, 1) or (N, H, W, 3). Channels come last.")
  if len(images) != count:
    raise ValueError(f"{name}: {len(images)} images but {count} labels; expected as many.")
  return three_channels(images if chosen is None else images[chosen])


@contextlib.contextmanager
def _open_npz(file: pathlib.Path, name: str):
  with file.open("rb") as stream:  # opened here, since numpy leaves it open where it fails
    try:
      arrays = np.load(stream, allow_pickle=False)
    except Exception as error:  # numpy raises many types here, none of which names the file
      raise ValueError(f"{name}: expected an .npz file written by numpy.savez, and it can't be "
                       f"read ({error}); write it again.") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
      raise ValueError(f"{name}: expected an .npz with images and labels, got a single .npy "
                       "array; write it with numpy.savez(path, images=..., labels=...).")
    yield arrays


def _member(file: pathlib.Path, key: str, name: str) -> np.ndarray:
  with _open_npz(file, name) as arrays:
    try:
      return arrays[key]
    except Exception as error:
      raise ValueError(f"{name}: array {key!r} can't be read ({error}); expected numbers, not "
                       "Python objects, in a whole file. Write it again.") from error


def _keys(known: list[str], split: str, image_key, label_key, name: str
          ) -> tuple[str, str, bool]:
  """The names of both arrays, and whether they hold this split alone."""
  patterns = [(f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"),
              ("images", "labels")]
  guess = next((pair for pair in patterns if set(pair) <= set(known)), (None, None))
  own_split = not (image_key or label_key) and guess in patterns[:2]
  image_key, label_key = image_key or guess[0], label_key or guess[1]
  for what, key in (("image", image_key), ("label", label_key)):
    if key not in known:
      wanted = repr(key) if key else " or ".join(" and ".join(pair) for pair in patterns)
      raise ValueError(f"{name}, split {split!r}: expected arrays {wanted}; found "
                       f"{', '.join(known) or 'none'}. Name it with the option {what}_key.")
  return image_key, label_key, own_split


def _side(names: list[str], split: str, test_fraction: float, where: str) -> list[int]:
  """Positions of the names that fall on one side of the hashed split."""
  if split == "all":
    return list(range(len(names)))
  if split not in ("train", "test"):
    raise ValueError(f"{where}: no split {split!r}: "
                     f"{did_you_mean(split, ['train', 'test', 'all'])}")
  if not 0 < test_fraction < 1:
    raise ValueError(f"{where}: test_fraction is {test_fraction}; expected between 0 and 1.")
  bound = test_fraction * 2**64
  return [i for i, name in enumerate(names)
          if (hash_of(os.fsencode(name)) < bound) == (split == "test")]


def hash_of(name: bytes) -> int:
  """A number in [0, 2**64) that decides on which side of a hashed split a file falls.

  Args:
    name: path from the dataset's folder, b"CLASS/IMAGE": a folder and tars of it split alike.
  """
  return int.from_bytes(hashlib.sha256(name).digest()[:8], "big")


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


def _images_in(base: pathlib.Path, name: str) -> list[str]:
  """The images below a folder of `base`, as paths from `base`, sorted part by part.

  Strings rather than `pathlib.Path`: of a million files that is 0.1 GB instead of 0.8, in a third
  of the time. OSError where one of the folders can't be listed.
  """
  def told(error):
    raise error
  found, skip = [], len(str(base)) + 1
  for folder, _, files in os.walk(base / name, onerror=told):
    inside = pathlib.Path(folder[skip:]).as_posix()
    found += [f"{inside}/{file}" for file in files if not file.startswith(".")
              and os.path.splitext(file)[1].lower() in SUFFIXES]
  return sorted(found, key=lambda path: path.split("/"))


def _fingerprint(base: str, names: list[str]) -> str:
  digest = hashlib.sha256()
  for name in names:
    stat = os.stat(f"{base}/{name}")
    digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
  return digest.hexdigest()
