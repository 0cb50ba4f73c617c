"""What a source of examples is, and the pieces every source is made of.

Legend: N examples, H height, W width, 3 channels (RGB). Images are uint8 in [0, 255].
"""
import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np


class MissingError(ValueError):
  """Data that isn't there, not data that is broken; the message says how to get it."""


@runtime_checkable
class Source(Protocol):
  """Random access to labelled images; everything above this room reads data through it.

  Attributes:
    name: short name, as given to `open_source`.
    num_classes: number of classes; labels lie in [0, num_classes).
    class_names: a name per class, or None where nobody gave names.
    spec: JSON-able dict of everything that determines the contents, for cache keys and records.
    labels: int32 (N,), read without decoding an image, computed once.
  """

  name: str
  num_classes: int
  class_names: tuple[str, ...] | None
  spec: dict

  @property
  def labels(self) -> np.ndarray: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict:
    """Returns {"image": uint8 (H, W, 3), "label": int}."""

  def images_at(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Several images, uint8 (H, W, 3) each: cheaper than one by one where reading has a cost."""


class ArraySource:
  """A source whose images are one array, made when first asked for.

  Args:
    spec: as in `Source`; `spec["name"]` becomes the name.
    labels: integers (N,).
    num_classes: number of classes.
    make_images: returns uint8 (N, H, W, 3); called once, when an image is first needed.
    class_names: a name per class, or None.

  Raises:
    ValueError: no examples, or a label outside [0, num_classes).
  """

  def __init__(self, spec: dict, labels: np.ndarray, num_classes: int,
               make_images: Callable[[], np.ndarray],
               class_names: tuple[str, ...] | None = None):
    self.name = spec["name"]
    self.spec = spec
    self.num_classes = num_classes
    self.class_names = class_names
    self.labels = checked_labels(labels, num_classes, self.name)
    self._make_images = make_images

  @functools.cached_property
  def images(self) -> np.ndarray:
    """All images, uint8 (N, H, W, 3), read-only since caches share it."""
    images = self._make_images()
    images.flags.writeable = False
    return images

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    return {"image": self.images[index], "label": int(self.labels[index])}

  def images_at(self, indices: Sequence[int]) -> list[np.ndarray]:
    return list(self.images[indices])


def checked_labels(labels: np.ndarray, num_classes: int, where: str) -> np.ndarray:
  """Returns labels as read-only int32 (N,); ValueError if there are none or one is out of range."""
  labels = np.asarray(labels)
  if not len(labels):
    raise ValueError(f"{where}: expected at least one example, found none; check the split and "
                     "that the dataset was prepared completely.")
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(wrong):
    raise ValueError(
        f"{where}: label {int(labels[wrong[0]])} of example {int(wrong[0])} is out of range "
        f"({len(wrong)} such in all); expected 0 to {num_classes - 1}, for {num_classes} classes. "
        "Correct the labels, or the number of classes.")
  labels = labels.astype(np.int32)
  labels.flags.writeable = False
  return labels


def decode_image(data: bytes, where: str) -> np.ndarray:
  """Decodes an encoded image (PNG, JPEG, WebP, BMP, ...) to uint8 (H, W, 3), RGB.

  Grey images become three equal channels; transparency is dropped. Pixels are taken as they are
  stored, whatever a camera's EXIF says is up: so do TensorFlow's decoder, which the suite's
  published numbers were measured with, and torchvision's ImageFolder.

  Args:
    data: the file's bytes.
    where: names the file or record in an error.

  Raises:
    ValueError: the bytes are not an image, or one that breaks off.
  """
  image = None
  if data and not _breaks_off(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8),
                         cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise ValueError(f"{where}: corrupt image, expected a whole PNG, JPEG or other format OpenCV "
                     f"reads, got {len(data)} bytes that don't decode; replace it or remove it.")
  return image


def _breaks_off(data: bytes) -> bool:
  """Whether a JPEG or PNG lacks its end: decoders fill what is missing with grey, silently."""
  if data.startswith(b"\xff\xd8"):
    # 0xff is escaped inside a scan, so after the last start of scan comes an end of image.
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
  if data.startswith(b"\x89PNG"):
    return b"IEND" not in data[-4096:]
  return False


def three_channels(images: np.ndarray) -> np.ndarray:
  """(N, H, W) or (N, H, W, 1) grey images to (N, H, W, 3); three channels stay as they are."""
  if images.ndim == 3:
    images = images[..., None]
  return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """A sentence that offers the nearest known name, if one is near, and lists them all."""
  known = list(known)
  near = difflib.get_close_matches(name, known, n=1)
  return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}."
