"""Images of iterated function systems: a class is a system, an example one rendering of it.

Upstream data without a download, after FractalDB (Kataoka et al., 2101.08515). A system is two to
four contractive affine maps; its attractor is drawn by applying all maps to all points over and
over (Hutchinson's operator), which fills the attractor evenly and takes no random numbers.

Legend: C classes, N images, K maps (padded to 4), P points, S image side.
"""
import functools

import numpy as np

from big_transfer.data.builtin import numbered
from big_transfer.data.examples import ArraySource

MAPS = 4
# With K maps, depth and starting points such that K**depth * starts is about 2,000.
DEPTH = {2: 10, 3: 6, 4: 5}
STARTS = {2: 2, 3: 3, 4: 2}
CODE = 16  # side of the pictures by which systems are told apart
ALIKE = 0.7  # correlation of two such pictures from which on they count as one


def fractals(split: str, *, classes: int = 60, per_class: int = 200, test_per_class: int = 50,
             size: int = 32, seed: int = 0, first_class: int = 0, noise: float = 0.05,
             jitter: float = 1.0) -> ArraySource:
  """Images of `classes` fractals; label k is the fractal number first_class + k of the seed.

  Which system a class has depends on the seed and its number alone, so two ranges of numbers that
  don't overlap are different fractals: one for upstream, another for a task of unseen classes.

  Args:
    split: "train" or "test": the same systems, other renderings.
    classes: number of classes.
    per_class: images per class in "train".
    test_per_class: images per class in "test".
    size: side of the images in pixels.
    seed: which systems and renderings.
    first_class: number of the first class.
    noise: standard deviation of the pixel noise, where 1 is the range from black to white.
    jitter: how much renderings of one class differ in maps, rotation (14 degrees either way at
      1), size and place; 0 for not at all. It sets the difficulty: a linear model of 16x16 pixels
      and 40 images per class gets 0.90 at 1 and 0.70 at 1.3.

  Raises:
    ValueError: unknown split, or an argument out of its range.
  """
  return numbered.source(
      "fractal", _images, split, classes=classes, per_class=per_class, test_per_class=test_per_class,
      size=size, seed=seed, first_class=first_class, noise=noise, jitter=jitter)


@functools.lru_cache(maxsize=8)
def _images(first_class: int, classes: int, look: numbered.Look) -> np.ndarray:
  maps_CK23, counts_C = systems(look.seed, first_class + classes)
  images = np.empty((classes, look.per_class, look.size, look.size, 3), np.uint8)
  for k in range(classes):
    number = first_class + k
    # A generator per class and split: other classes and their number change nothing here.
    rng = np.random.default_rng((look.seed, 1 + (look.split == "test"), number))
    for start in range(0, look.per_class, 50):  # small enough for the cache of a core
      part = images[k, start:start + 50]
      part[:] = _render(maps_CK23[number, :counts_C[number]], len(part), look, rng)
  return images.reshape(-1, look.size, look.size, 3)


def systems(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` systems of a seed: maps (C, 4, 2, 3) and number of maps (C,).

  Candidates are drawn one after another and taken if their attractor fills the frame well and
  looks unlike those taken before, mirrored and turned by right angles too.
  """
  rounded = 64 * -(-count // 64)  # few lengths, so that a longer list is seldom made anew
  maps, counts = _systems(seed, rounded)
  return maps[:count], counts[:count]


@functools.lru_cache(maxsize=4)
def _systems(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  maps, counts, codes = [], [], []
  block = 0
  while len(maps) < count:
    rng = np.random.default_rng((seed, 0, block))
    number = 2 + block % 3
    candidates = _candidates(rng, 32, number)
    fills, pictures = _pictures(candidates, number)
    candidates, pictures = candidates[fills], pictures[fills]
    own = pictures.reshape(len(pictures), -1)
    turned = np.stack([np.rot90(p, r, (1, 2)) for p in (pictures, np.swapaxes(pictures, 1, 2))
                       for r in range(4)]).reshape(8 * len(pictures), -1)
    # Likeness to the systems taken so far, and to the others of this block.
    old, new = ((turned @ np.reshape(c, (-1, CODE * CODE)).T).reshape(8, len(own), -1)
                for c in (codes, own))
    alike = (old > ALIKE).any(axis=(0, 2))
    taken = []
    for i in np.flatnonzero(~alike):
      if (new[:, i, taken] <= ALIKE).all():
        taken.append(i)
    for i in taken:
      codes.append(own[i])
      maps.append(np.pad(candidates[i], ((0, MAPS - number), (0, 0), (0, 0))))
      counts.append(number)
    block += 1
  return np.stack(maps[:count]), np.array(counts[:count])


def _candidates(rng: np.random.Generator, count: int, number: int) -> np.ndarray:
  """Random contractions (count, number, 2, 3): turn, stretch, turn, move; half are mirrored."""
  turns = rng.uniform(0, 2 * np.pi, (2, count, number))
  stretch = rng.uniform(0.25, 0.85, (count, number, 2))
  stretch[..., 1] *= rng.choice([-1, 1], (count, number))
  linear = _rotation(turns[0]) * stretch[..., None, :] @ _rotation(turns[1])
  move = rng.uniform(-1, 1, (count, number, 2, 1))
  return np.concatenate([linear, move], axis=-1).astype(np.float32)


def _rotation(angle: np.ndarray) -> np.ndarray:
  cos, sin = np.cos(angle), np.sin(angle)
  return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _attractor(maps_NK23: np.ndarray) -> np.ndarray:
  """Points (N, K, 2, P/K) of each attractor, by the map that put them there."""
  count, number = maps_NK23.shape[:2]
  # The fixed points of the maps lie on the attractor, so every image of them does.
  fixed = np.linalg.solve(np.eye(2, dtype=np.float32) - maps_NK23[..., :2], maps_NK23[..., 2:])
  points = np.swapaxes(fixed[:, :STARTS[number], :, 0], 1, 2)
  for _ in range(DEPTH[number]):
    if points.ndim == 4:
      points = np.swapaxes(points, 1, 2).reshape(count, 2, -1)
    x, y = points[:, None, 0], points[:, None, 1]
    m = maps_NK23[..., None]
    points = np.stack([m[:, :, 0, 0] * x + m[:, :, 0, 1] * y + m[:, :, 0, 2],
                       m[:, :, 1, 0] * x + m[:, :, 1, 1] * y + m[:, :, 1, 2]], axis=2)
  return points


def _framed(points_NK2P: np.ndarray) -> np.ndarray:
  """Centred, and scaled so that the longer side of the bounding box is from -1 to 1."""
  low = points_NK2P.min(axis=(1, 3), keepdims=True)
  high = points_NK2P.max(axis=(1, 3), keepdims=True)
  scale = (high - low).max(axis=2, keepdims=True) / 2
  return (points_NK2P - (low + high) / 2) / np.maximum(scale, 1e-6)


def _density(points_NK2P: np.ndarray, size: int) -> np.ndarray:
  """How many points of each map fall in each pixel of the frame [-1, 1]: (N, K, S, S)."""
  count, number = points_NK2P.shape[:2]
  cells = np.floor((points_NK2P + 1) * (size / 2)).astype(np.int32)
  inside = ((cells >= 0) & (cells < size)).all(axis=2)
  flat = cells[:, :, 1] * size + cells[:, :, 0]
  flat += (np.arange(count * number, dtype=np.int32) * size * size).reshape(count, number, 1)
  hits = np.bincount(flat[inside], minlength=count * number * size * size)
  return hits.reshape(count, number, size, size).astype(np.float32)


def _pictures(maps_NK23: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
  """Whether each system fills the frame well, and a small unit-norm picture of it."""
  points = _framed(_attractor(maps_NK23))
  extent = np.ptp(points, axis=(1, 3)).min(axis=-1)  # of 2
  density = _density(points * 0.999, CODE).sum(axis=1)
  covered = (density > 0).mean(axis=(1, 2))
  fills = (extent > 1.0) & (covered > 0.25) & (covered < 0.7)
  tone = np.log1p(density)
  tone -= tone.mean(axis=(1, 2), keepdims=True)
  tone /= np.linalg.norm(tone, axis=(1, 2), keepdims=True)
  return fills, tone


def _render(maps_K23: np.ndarray, count: int, look: numbered.Look, rng: np.random.Generator) -> np.ndarray:
  """`count` renderings of one system, uint8 (count, S, S, 3)."""
  number, size, jitter = len(maps_K23), look.size, look.jitter
  maps = maps_K23 + jitter * rng.normal(0, 0.01, (count, number, 2, 3)).astype(np.float32)
  angle = jitter * rng.uniform(-0.25, 0.25, count)
  turn = _rotation(angle).astype(np.float32)[:, None]
  points = _framed(turn @ _attractor(maps))
  scale = 0.9 + jitter * rng.uniform(-0.12, 0.05, (count, 1, 1, 1))
  shift = jitter * rng.uniform(-0.1, 0.1, (count, 1, 2, 1))
  density = _density((points * scale + shift).astype(np.float32), size)
  total = density.sum(axis=1)
  tone = np.log1p(total) / np.log1p(total.max(axis=(1, 2), keepdims=True))
  # Each map has a colour; a pixel takes the mean of those that hit it.
  share = (density / np.maximum(total, 1)[:, None]).reshape(count, number, -1)
  ink, paper = _colours(rng, count, number)
  ink = np.swapaxes(share, 1, 2) @ ink
  tone = tone.reshape(count, -1, 1)
  images = paper + tone * (ink - paper)
  if look.noise:
    images += look.noise * rng.standard_normal(images.shape, np.float32)
  images = np.clip(images * 255 + 0.5, 0, 255).astype(np.uint8)
  return images.reshape(count, size, size, 3)


def _colours(rng: np.random.Generator, count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  """Ink (count, number, 3) and paper (count, 1, 3): light on dark."""
  ink = rng.uniform(0.5, 1.0, (count, number, 3))
  paper = rng.uniform(0.0, 0.25, (count, 1, 3))
  return ink.astype(np.float32), paper.astype(np.float32)
