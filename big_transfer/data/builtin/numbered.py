"""What fractals and textures have in common: classes that are numbered and made from a seed."""
import dataclasses

import numpy as np

from big_transfer.data.examples import ArraySource, did_you_mean

# Classes from here on are those of the tasks of unseen classes: never upstream.
UNSEEN_FROM = 1000


@dataclasses.dataclass(frozen=True)
class Look:
  """How the images of a source are drawn."""

  split: str
  per_class: int
  size: int
  seed: int
  noise: float
  jitter: float


def source(one, draw, split, *, classes, per_class, test_per_class, size, seed, first_class, noise,
           jitter):
  """A source of numbered classes.

  Args:
    one: what one class is called, such as "fractal"; the source's name is its plural.
    draw: (first class, classes, `Look`) -> images (N, S, S, 3) in uint8, class by class.
    split, classes, per_class, test_per_class, size, seed, first_class, noise, jitter: see
      `fractals.fractals` and `textures.textures`.

  Returns:
    An `ArraySource` that draws its images when they are first read.

  Raises:
    ValueError: unknown split, or an argument out of its range.
  """
  name = one + "s"
  if split not in ("train", "test"):
    raise ValueError(f"{name}: no split {split!r}: {did_you_mean(split, ['train', 'test'])}")
  for argument, value, least in (("classes", classes, 1), ("per_class", per_class, 1),
                                 ("test_per_class", test_per_class, 1), ("size", size, 8),
                                 ("seed", seed, 0), ("first_class", first_class, 0),
                                 ("noise", noise, 0), ("jitter", jitter, 0)):
    if value < least:
      raise ValueError(f"{name}: {argument} is {value}; expected at least {least}.")
  if seed == 0 and first_class < UNSEEN_FROM < first_class + classes:
    raise ValueError(f"{name}: classes {first_class} to {first_class + classes - 1} run into those "
                     f"kept for the unseen task, {UNSEEN_FROM} and above; expected an end below "
                     f"that, or another seed, which has its own {name}.")
  look = Look(split, per_class if split == "train" else test_per_class, size, seed, noise, jitter)
  spec = {"name": name, "version": 1, "classes": classes, "first_class": first_class,
          **dataclasses.asdict(look)}
  labels = np.repeat(np.arange(classes), look.per_class)
  return ArraySource(spec, labels, classes, lambda: draw(first_class, classes, look),
                     tuple(f"{one} {first_class + k}" for k in range(classes)))
