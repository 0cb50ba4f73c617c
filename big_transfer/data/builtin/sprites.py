"""Small scenes of shapes on a noisy ground, labelled by one factor: four tasks, one renderer.

Made like the structured tasks of VTAB (1910.04867) from CLEVR and dSprites: the label is one
factor of the scene, in bins of equal numbers of images, and everything else is random.

Legend: N images, O objects (6 at most), S image side. Lengths are shares of the image's side.
"""
import dataclasses
import functools

import numpy as np

from big_transfer.data.examples import ArraySource, did_you_mean

OBJECTS = 6
BINS = {"count": 6, "location": 9, "orientation": 8, "scale": 6}
SHAPES = ("disc", "square", "triangle", "cross")


def sprites(split: str, *, label: str = "count", size: int = 32, seed: int = 0,
            examples: int | None = None, noise: float = 0.08) -> ArraySource:
  """Scenes with one factor as label.

  "count": how many shapes, 1 to 6. "location": the cell, of 3x3, that holds the centre of the one
  shape. "orientation": where an arrowhead points, in eighths of a turn. "scale": the one shape's
  size, in sixths of the (logarithmic) range from 0.06 to 0.3.

  Args:
    split: "train" or "test".
    label: the factor.
    size: side of the images in pixels.
    seed: which images.
    examples: number of images; 2,000 in "train" and 1,000 in "test" where not given.
    noise: standard deviation of the pixel noise, where 1 is the range from black to white.

  Raises:
    ValueError: unknown split or label, or an argument out of its range.
  """
  if split not in ("train", "test"):
    raise ValueError(f"sprites: no split {split!r}: {did_you_mean(split, ['train', 'test'])}")
  if label not in BINS:
    raise ValueError(f"sprites: no label {label!r}: {did_you_mean(label, BINS)}")
  examples = examples or {"train": 2000, "test": 1000}[split]
  for name, value, least in (("examples", examples, BINS[label]), ("size", size, 8),
                             ("seed", seed, 0), ("noise", noise, 0)):
    if value < least:
      raise ValueError(f"sprites: {name} is {value}; expected at least {least}.")
  look = Look(split, label, size, seed, examples, noise)
  labels = np.arange(examples) % BINS[label]
  names = {"count": [str(k + 1) for k in range(6)],
           "location": [f"{v} {h}" for v in ("top", "middle", "bottom")
                        for h in ("left", "centre", "right")],
           "orientation": [f"{45 * k} degrees" for k in range(8)],
           "scale": [f"scale {k + 1} of 6" for k in range(6)]}[label]
  spec = {"name": "sprites", "version": 1, **dataclasses.asdict(look)}
  return ArraySource(spec, labels, BINS[label], lambda: _images(look), tuple(names))


@dataclasses.dataclass(frozen=True)
class Look:
  """Which images of a source, and how they are drawn."""

  split: str
  label: str
  size: int
  seed: int
  examples: int
  noise: float


@dataclasses.dataclass
class Scene:
  """What is in each image; all (N, O) but where said."""

  x: np.ndarray  # centre, from the left
  y: np.ndarray  # centre, from the top
  radius: np.ndarray
  angle: np.ndarray  # radians, anticlockwise as seen
  shape: np.ndarray  # index into SHAPES; -1 for the arrowhead
  count_N: np.ndarray  # how many of the O objects there are


@functools.lru_cache(maxsize=16)
def _images(look: Look) -> np.ndarray:
  images = np.empty((look.examples, look.size, look.size, 3), np.uint8)
  factor = sorted(BINS).index(look.label)
  for block, start in enumerate(range(0, look.examples, 120)):
    # A generator per block, all blocks drawn whole: more examples leave the first ones as they are.
    rng = np.random.default_rng((look.seed, int(look.split == "test"), factor, block))
    part = images[start:start + 120]
    labels = np.arange(start, start + 120) % BINS[look.label]
    part[:] = _render(_scene(look.label, labels, rng), look, rng)[:len(part)]
  return images


def _scene(label: str, labels_N: np.ndarray, rng: np.random.Generator) -> Scene:
  n = len(labels_N)
  scene = Scene(
      x=rng.uniform(0.25, 0.75, (n, 1)), y=rng.uniform(0.25, 0.75, (n, 1)),
      radius=rng.uniform(0.12, 0.22, (n, 1)), angle=rng.uniform(0, 2 * np.pi, (n, 1)),
      shape=rng.integers(len(SHAPES), size=(n, 1)), count_N=np.ones(n, int))
  if label == "count":
    # Distinct cells of a 3x3 grid, so that no shape hides another.
    cells = rng.permuted(np.tile(np.arange(9), (n, 1)), axis=1)[:, :OBJECTS]
    radius = rng.uniform(0.06, 0.13, (n, OBJECTS))
    room = 1 / 6 - radius
    scene.x = (cells % 3 + 0.5) / 3 + rng.uniform(-1, 1, cells.shape) * room
    scene.y = (cells // 3 + 0.5) / 3 + rng.uniform(-1, 1, cells.shape) * room
    scene.radius = radius
    scene.angle = rng.uniform(0, 2 * np.pi, cells.shape)
    scene.shape = rng.integers(len(SHAPES), size=cells.shape)
    scene.count_N = labels_N + 1
  elif label == "location":
    inside = rng.uniform(0.08, 0.92, (2, n))  # of the cell, so that no centre lies on a border
    scene.x = ((labels_N % 3 + inside[0]) / 3)[:, None]
    scene.y = ((labels_N // 3 + inside[1]) / 3)[:, None]
  elif label == "orientation":
    scene.angle = ((labels_N + rng.uniform(-0.4, 0.4, n)) * (2 * np.pi / 8))[:, None]
    scene.shape = np.full((n, 1), -1)
    scene.radius = rng.uniform(0.2, 0.35, (n, 1))
  elif label == "scale":
    share = (labels_N + rng.uniform(0.1, 0.9, n)) / BINS["scale"]
    scene.radius = (0.06 * (0.3 / 0.06) ** share)[:, None]
    scene.x, scene.y = (rng.uniform(0.32, 0.68, (2, n, 1)))
  return scene


def _render(scene: Scene, look: Look, rng: np.random.Generator) -> np.ndarray:
  """uint8 (N, S, S, 3): a ground of two shades, the objects in turn, then noise."""
  n, size = len(scene.count_N), look.size
  ground, ink = _colours(rng, n, scene.x.shape[1])
  middle = (np.arange(size, dtype=np.float32) + 0.5) / size
  lean = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
  slope = (np.cos(lean) * (middle[None, None, :] - 0.5)
           + np.sin(lean) * (middle[None, :, None] - 0.5))
  images = ground[:, None, None, :] + 0.15 * slope[..., None]
  for k in range(scene.x.shape[1]):
    has = np.flatnonzero(scene.count_N > k)
    cover = _cover(*(v[has, k] for v in (scene.x, scene.y, scene.radius, scene.angle,
                                         scene.shape)), middle)[..., None]
    images[has] += cover * (ink[has, k][:, None, None, :] - images[has])
  if look.noise:
    images += look.noise * rng.standard_normal(images.shape, np.float32)
  return np.clip(images * 255 + 0.5, 0, 255).astype(np.uint8)


def _cover(x, y, radius, angle, shape, middle) -> np.ndarray:
  """How much of each pixel an object covers, (n, S, S), with an edge one pixel soft."""
  cast = lambda v: np.asarray(v, np.float32)[:, None, None]
  x, y, radius, cos, sin = map(cast, (x, y, radius, np.cos(angle), np.sin(angle)))
  dx, dy = middle[None, None, :] - x, y - middle[None, :, None]  # dy points up
  u, v = (cos * dx + sin * dy) / radius, (-sin * dx + cos * dy) / radius
  distance = np.empty(u.shape, np.float32)
  for kind in np.unique(shape):
    here = shape == kind
    distance[here] = _distance(int(kind), u[here], v[here])
  return np.clip(0.5 - distance * radius * len(middle), 0, 1)


def _distance(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Signed distance (nearly, at corners) to a shape of radius 1; negative inside."""
  if kind == -1:  # an arrowhead that points along u, notched behind
    half = np.abs(v)
    sides = 0.33 * (u - 1) + 0.944 * half
    notch = 0.894 * (-0.35 - u) - 0.447 * half
    return np.maximum(sides, notch)
  if SHAPES[kind] == "disc":
    return np.hypot(u, v) - 1
  if SHAPES[kind] == "square":
    return np.maximum(np.abs(u), np.abs(v)) - 0.85
  if SHAPES[kind] == "triangle":
    return np.maximum(-v - 0.5, 0.866 * np.abs(u) + 0.5 * v - 0.5)
  bar = lambda a, b: np.maximum(np.abs(a) - 0.95, np.abs(b) - 0.35)
  return np.minimum(bar(u, v), bar(v, u))


def _colours(rng: np.random.Generator, n: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
  """Ground (N, 3) and ink (N, O, 3): darker or lighter than the ground, by enough to be seen."""
  ground = rng.uniform(0.3, 0.7, (n, 3))
  contrast = rng.uniform(0.3, 0.6, (n, objects, 1)) * rng.choice([-1, 1], (n, 1, 1))
  ink = np.clip(ground[:, None] + contrast + rng.uniform(-0.15, 0.15, (n, objects, 3)), 0, 1)
  return ground.astype(np.float32), ink.astype(np.float32)
