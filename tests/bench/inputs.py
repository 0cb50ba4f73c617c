"""The input pipeline alone: images a second of the batches that training takes, and its memory.

From memory at 32 pixels, as for CIFAR-10; and from a folder of JPEG files of 400 × 300 pixels,
decoded, cropped at random and resized to 224 at every access, as for a data set that is larger than
memory.
"""
import pathlib
import resource
import tempfile
import time

import cv2
import numpy as np

from big_transfer.data import examples
from big_transfer.data import files
from big_transfer.data import pipeline
from big_transfer.data import transforms

BATCH = 256
FILES, CLASSES = 512, 4


def rows(row):
  """The rows; `row(name, unit, repeats, note)` makes one."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
  array = examples.ArraySource({"name": "random"}, rng.integers(0, 10, 20_000).astype(np.int32),
                               10, lambda: pixels)
  before = _resident()
  result = [row("input, in memory, 32 px", "images/s",
                _rates(pipeline.train_batches(pipeline.prepare(array, 32), batch_size=BATCH,
                                              seed=0), 200), f"batch {BATCH}; gathered by example"),
            row("input, memory gained", "MiB", [_resident() - before], "over 1,200 batches")]
  with tempfile.TemporaryDirectory() as folder:
    source = _photographs(pathlib.Path(folder), rng)
    prepared = pipeline.prepare(source, 224, memory_bytes=0)
    result.append(row("input, JPEG to 224 px", "images/s", _rates(
        pipeline.train_batches(prepared, batch_size=64, seed=0,
                               augment=transforms.inception_crop(224)), 8),
                      "400 × 300 JPEG files; decode, random crop, resize"))
  return result


def _rates(batches, count, repeats=5):
  """Images a second over `count` batches, `repeats` times, once it has begun."""
  rates = []
  for repeat in range(repeats + 1):
    began = time.perf_counter()
    images = sum(len(next(batches)["label"]) for _ in range(count))
    if repeat:
      rates.append(images / (time.perf_counter() - began))
  batches.close()
  return rates


def _photographs(folder, rng):
  """A folder of JPEG files with the detail of photographs, smooth noise, as a source."""
  for number in range(FILES):
    inside = folder / f"class_{number % CLASSES}"
    inside.mkdir(exist_ok=True)
    coarse = rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)
    cv2.imwrite(str(inside / f"{number}.jpg"), cv2.resize(coarse, (400, 300),
                                                          interpolation=cv2.INTER_CUBIC))
  return files.FolderSource(str(folder), "train")


def _resident():
  """The largest memory this process has held, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
