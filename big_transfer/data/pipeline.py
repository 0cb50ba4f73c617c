"""Batches of images whose order depends on nothing but the seed and the step.

The stream of training examples is one permutation of the data after another. Position k of the
stream is example `permutation(seed, k // N)[k % N]`; the global batch of step t holds positions
t·B to (t+1)·B - 1, and process p of P the p-th contiguous part of it. So a run may stop and go on
with another number of processes, and to resume takes the step alone. Of a part of the data it is
the same stream over that part: N is then its size, and the permutation picks among its members.

Legend: N examples, B global batch, b = B / P a process's share, S image size.
"""
import collections
import concurrent.futures
import functools
import json
import os
import threading
from collections.abc import Iterator

import grain
import numpy as np

from big_transfer.data import transforms
from big_transfer.data.examples import ArraySource, Source


class Prepared:
  """A source's examples at one image size; made by `prepare`.

  Attributes:
    source: where the examples come from.
    image_size: S.
    labels: int32 (N,).
    num_classes: number of classes.
    in_memory: whether pixels are kept once decoded.
    spec: JSON-able dict of everything that determines the pixels and labels.
  """

  def __init__(self, source: Source, image_size: int, fit: str, in_memory: bool):
    self.source = source
    self.image_size = image_size
    self.num_classes = source.num_classes
    self.spec = _spec(source, image_size, fit)
    self._fit = fit
    shape = (len(source), image_size, image_size, 3)
    self._pixels = self._ready = None
    if isinstance(source, ArraySource) and source.images.shape == shape:
      in_memory, self._pixels = True, source.images
    elif in_memory:
      self._pixels, self._ready = np.empty(shape, np.uint8), np.zeros(shape[0], bool)
    self.in_memory = in_memory

  @property
  def labels(self) -> np.ndarray:
    return self.source.labels

  def __len__(self) -> int:
    return len(self.source)

  def images(self, indices) -> np.ndarray:
    """The images of these examples, uint8 (n, S, S, 3).

    What is kept in memory is decoded when first asked for, so preparing costs nothing and a probe
    that draws few examples decodes few.

    Raises:
      ValueError: a corrupt image; it names the file or record.
    """
    indices = np.asarray(indices, np.int64)
    if self._pixels is None:
      return self._decode(indices)
    if self._ready is not None:
      # Two threads may decode the same image; both write the same bytes.
      missing = np.unique(indices[~self._ready[indices]])
      if len(missing):
        self._pixels[missing] = self._decode(missing)
        self._ready[missing] = True
    return self._pixels[indices]

  def _decode(self, indices: np.ndarray) -> np.ndarray:
    images = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
    resize = _FITS[self._fit]
    def fill(start: int):
      read = self.source.images_at(indices[start:start + _CHUNK])
      for i, image in enumerate(read, start):
        images[i] = resize(image, self.image_size)
    list(_threads().map(fill, range(0, len(indices), _CHUNK)))
    return images


def prepare(source: Source, image_size: int, memory_bytes: int = 2 << 30,
            fit: str = "squash") -> Prepared:
  """The same examples at one image size, kept in memory where they fit.

  Args:
    source: what to read.
    image_size: S; images become (S, S, 3).
    memory_bytes: budget for decoded pixels in this process, over all sources: a source that fits
      in it is kept, and what was used longest ago makes room. A larger one is decoded at each
      access, in threads. (A source that is an array already costs nothing at its own size.)
    fit: "squash" resizes both sides to S and ignores the aspect ratio (`transforms.resize`);
      "crop" resizes the smaller side to S·256/224 and takes the central SxS, the protocol of the
      paper's few-shot evaluation (2110.02095).

  Raises:
    ValueError: unknown fit, or a size that is not positive.
  """
  if fit not in _FITS:
    raise ValueError(f"fit is {fit!r}; expected one of {', '.join(_FITS)}.")
  if image_size < 1:
    raise ValueError(f"image_size is {image_size}; expected a positive number of pixels.")
  return _cache().get(source, image_size, fit, memory_bytes)


def train_batches(prepared: Prepared, *, batch_size: int, seed: int, step: int = 0,
                  process: tuple[int, int] = (0, 1),
                  augment: transforms.HostAugment | None = None,
                  examples: np.ndarray | None = None) -> grain.DatasetIterator:
  """Endless shuffled batches; every example once an epoch, and no remainder lost.

  Args:
    prepared: the examples.
    batch_size: global batch B.
    seed: non-negative; decides order and `augment`'s randomness.
    step: first step to yield; any step costs the same.
    process: (index, count) of this process.
    augment: host transform of the source's image at its own size to uint8 (S, S, 3), for data too
      large for memory; its rng is a function of (seed, position in the stream).
    examples: which examples to train on, indices (n,); None for all.

  Returns:
    A Grain iterator, read ahead in a thread (`close()` ends it), of
    {"image": uint8 (b, S, S, 3), "label": int32 (b,), "slot": int32 (b,)}. `slot` is the position
    in the global batch: fold (seed, step, slot) into the key of an augmentation inside jit.

  Raises:
    ValueError: a batch that doesn't divide by the processes, a negative seed or step, no examples
      or one that there isn't.
  """
  _check_share(batch_size, process)
  if seed < 0 or step < 0:
    raise ValueError(f"seed is {seed} and step {step}; expected neither to be negative.")
  if examples is not None:
    examples = _checked(examples, prepared)
    if not len(examples):
      raise ValueError(f"examples of {prepared.source.name}: none given; expected at least one.")
  batches_of_step = _TrainSteps(prepared, batch_size, seed, process, augment, examples)
  iterator = iter(_read_ahead(batches_of_step, threads=1 if prepared.in_memory else 2))
  iterator.set_state({"next_index": step})
  return iterator


def batches(prepared: Prepared, indices, batch_size: int,
            process: tuple[int, int] = (0, 1)) -> Iterator[dict]:
  """Each of these examples once over all processes, in order, in batches of one size.

  Args:
    prepared: the examples.
    indices: which, (n,).
    batch_size: global batch B, rows of all processes together.
    process: (index, count) of this process, which reads its contiguous part of every batch.

  Yields:
    {"image": uint8 (b, S, S, 3), "label": int32 (b,), "mask": float32 (b,)}. What fills up the
    last batch is zero, its mask too; every process gets as many batches as the others, though one
    of a process's may be filling alone.

  Raises:
    ValueError: a batch that doesn't divide by the processes, or an example that there isn't.
  """
  _check_share(batch_size, process)
  indices = _checked(indices, prepared)
  steps = _EvalSteps(prepared, indices, batch_size, process)
  if not len(steps):
    return
  iterator = iter(_read_ahead(steps, threads=1))
  try:
    yield from iterator
  finally:
    iterator.close()


def _check_share(batch_size, process):
  """Raises ValueError unless a process's share of a batch is a whole number of rows."""
  index, count = process
  if not 0 <= index < count:
    raise ValueError(f"process is {process}; expected (index, count) with index below count.")
  if batch_size < 1 or batch_size % count:
    raise ValueError(f"batch_size {batch_size} doesn't divide by {count} processes; choose a "
                     f"positive multiple of {count}.")


def _checked(indices, prepared: Prepared) -> np.ndarray:
  """Indices as int64; ValueError if one is not of an example."""
  indices = np.asarray(indices, np.int64)
  if len(indices) and not (0 <= indices.min() and indices.max() < len(prepared)):
    raise ValueError(f"indices from {indices.min()} to {indices.max()}; expected 0 to "
                     f"{len(prepared) - 1}, the examples of {prepared.source.name}.")
  return indices


class _TrainSteps:
  """Step -> this process's part of the batch: what Grain reads ahead.

  Grain's own shuffle and batch cost some 10 us an example in Python, ten times the gather itself,
  so an element here is a whole batch.
  """

  def __init__(self, prepared, batch_size, seed, process, augment, examples):
    self._prepared, self._seed, self._augment = prepared, seed, augment
    self._examples = examples
    self._length = len(prepared) if examples is None else len(examples)
    self._batch_size = batch_size
    share = batch_size // process[1]
    self._slots = process[0] * share + np.arange(share)

  def __len__(self) -> int:
    return 2**40  # Grain wants a length; no run gets there

  def __getitem__(self, step: int) -> dict:
    positions = int(step) * self._batch_size + self._slots
    epochs, places = np.divmod(positions, self._length)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      indices[here] = _permutation(self._length, self._seed, int(epoch))[places[here]]
    if self._examples is not None:
      indices = self._examples[indices]
    return {"image": self._images(indices, positions),
            "label": self._prepared.labels[indices],
            "slot": self._slots.astype(np.int32)}

  def _images(self, indices, positions) -> np.ndarray:
    if self._augment is None:
      return self._prepared.images(indices)
    size = self._prepared.image_size
    images = np.empty((len(indices), size, size, 3), np.uint8)
    def fill(i: int):
      rng = np.random.default_rng((self._seed, int(positions[i])))
      image = self._augment(self._prepared.source[int(indices[i])]["image"], rng)
      if image.shape != images.shape[1:]:
        raise ValueError(f"augment returned an image of shape {image.shape}; expected "
                         f"{images.shape[1:]}. End it with a crop or resize to {size}.")
      images[i] = image
    list(_threads().map(fill, range(len(indices))))
    return images


class _EvalSteps:
  """Step -> this process's part of a padded batch."""

  def __init__(self, prepared, indices, batch_size, process):
    self._prepared, self._indices, self._batch_size = prepared, indices, batch_size
    self._share = batch_size // process[1]
    self._first = process[0] * self._share

  def __len__(self) -> int:
    return -(-len(self._indices) // self._batch_size)

  def __getitem__(self, step: int) -> dict:
    start = step * self._batch_size + self._first
    chosen = self._indices[start:start + self._share]
    batch = {"image": self._prepared.images(chosen), "label": self._prepared.labels[chosen],
             "mask": np.ones(len(chosen), np.float32)}
    short = self._share - len(chosen)
    if not short:
      return batch
    return {key: np.concatenate([value, np.zeros((short, *value.shape[1:]), value.dtype)])
            for key, value in batch.items()}


class _Cache:
  """Prepared sources that this process keeps, the least recently used dropped first."""

  def __init__(self):
    self._kept: collections.OrderedDict[str, tuple[Prepared, int]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, source, image_size, fit, memory_bytes) -> Prepared:
    size = len(source) * image_size * image_size * 3
    key = json.dumps(_spec(source, image_size, fit), sort_keys=True)
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key][0]
      prepared = Prepared(source, image_size, fit, in_memory=size <= memory_bytes)
      if size <= memory_bytes:
        while self._kept and size + sum(s for _, s in self._kept.values()) > memory_bytes:
          self._kept.popitem(last=False)
        self._kept[key] = prepared, size
      return prepared


@functools.lru_cache(maxsize=1)
def _cache() -> _Cache:
  return _Cache()


@functools.lru_cache(maxsize=1)
def _threads() -> concurrent.futures.ThreadPoolExecutor:
  # OpenCV and ArrayRecord release the interpreter's lock while they work.
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "decode")


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
  """The order of one epoch.

  Sorting raw bits instead of `Generator.permutation`: NumPy promises the former stays the same
  from version to version (NEP 19), so a run may be resumed under a newer one.
  """
  bits = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(length)
  return np.argsort(bits, kind="stable")


def _read_ahead(steps, threads: int) -> grain.IterDataset:
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads + 2)
  return grain.MapDataset.source(steps).to_iter_dataset(options)


def _spec(source: Source, image_size: int, fit: str) -> dict:
  return {"source": source.spec, "image_size": image_size, "fit": fit}


def _crop(image: np.ndarray, size: int) -> np.ndarray:
  return transforms.resize_small_centre_crop(image, round(size * 256 / 224), size)


_CHUNK = 64  # images that a thread reads and decodes at a time
_FITS = {"squash": transforms.resize, "crop": _crop}
