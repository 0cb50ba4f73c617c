"""Labels that are made out of other features, and labels that took long to read, kept on disk.

The classes of VTAB's structured tasks aren't stored: a count, a distance or a position is put into
bins. `DERIVED` makes them exactly as VTAB does (Zhai et al., arXiv:1910.04867; thresholds of
google-research/task_adaptation, task_adaptation/data/{clevr,kitti,dsprites}.py). A bin holds its
upper threshold and not its lower one. An example is a mapping of TFDS's flattened feature names,
such as "objects/location", to plain lists of numbers, (n, 3) features row after row.
"""
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Derived:
  """How a label is made.

  Attributes:
    features: what it is made of, by flattened name.
    class_names: a name per class.
    label: an example's features -> its class; outside [0, classes) where no bin fits.
  """

  features: tuple[str, ...]
  class_names: tuple[str, ...]
  label: Callable[[Mapping[str, Sequence[float]]], int]


def bin_of(value: float, thresholds: Sequence[float]) -> int:
  """The last threshold that lies below the value, as its place in the list; -1 where none does."""
  return sum(threshold < value for threshold in thresholds) - 1


def _clevr_count(example) -> int:
  """CLEVR's scenes have 3 to 10 objects (VTAB: count_all)."""
  return len(example["objects/size"]) - 3


def _clevr_distance(example) -> int:
  """Depth of the closest object, the third of its pixel coordinates (closest_object_distance)."""
  depths = example["objects/pixel_coords"][2::3]
  return bin_of(min(depths), (0, 8, 8.5, 9, 9.5, 10, 100)) if depths else -1


def _kitti_distance(example) -> int:
  """Depth in metres of the closest car, van or truck (closest_vehicle_distance); none: class 3."""
  depths = example["objects/location"][2::3]
  vehicles = [z for z, kind in zip(depths, example["objects/type"]) if kind < 3]
  return bin_of(min(vehicles, default=1000.0), (-100, 8, 20, 999))


def _merged(feature: str, values: int) -> Derived:
  """A feature of so many classes, neighbours put together to make 16 of them."""
  first = [min(v for v in range(values) if v * 16 // values == k) for k in range(16)]
  names = tuple(f"{feature} from {v} of {values}" for v in first)
  return Derived((feature,), names, lambda example: example[feature][0] * 16 // values)


DERIVED = {
    "clevr_count": Derived(("objects/size",), tuple(f"{n} objects" for n in range(3, 11)),
                           _clevr_count),
    "clevr_distance": Derived(
        ("objects/pixel_coords",),
        ("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10"), _clevr_distance),
    "kitti_distance": Derived(
        ("objects/type", "objects/location"),
        ("to 8 m", "8 to 20 m", "above 20 m", "no vehicle"), _kitti_distance),
    "dsprites_location": _merged("label_x_position", 32),
    "dsprites_orientation": _merged("label_orientation", 40),
}


def remembered(spec: dict, make: Callable[[], np.ndarray]) -> np.ndarray:
  """Returns `make()`, from $XDG_CACHE_HOME/big_transfer/labels (~/.cache) where it is kept.

  Args:
    spec: JSON-able; all that determines the labels, the state of the files included.
    make: returns integers (N,); called where nothing usable is kept. What it returns is kept then,
      if the folder can be written to.
  """
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = pathlib.Path(home).expanduser() / "big_transfer" / "labels"
  digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
  path = folder / f"{digest[:32]}.npy"
  with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or not what was written
    kept = np.load(path, allow_pickle=False)
    if kept.shape == (spec["examples"],) and np.issubdtype(kept.dtype, np.integer):
      return kept
  labels = make()
  with contextlib.suppress(OSError):  # a home that is read-only or full costs time, no more
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as whole:  # moved as one, whoever else writes it
      np.save(pathlib.Path(whole) / path.name, labels)
      os.replace(pathlib.Path(whole) / path.name, path)
  return labels
