"""Textures: a class is a set of stationary statistics, an example one sample of them.

Upstream data of another kind than `fractals`, where a class is a shape: here nothing has a place,
and what tells classes apart is which frequencies and directions are strong, how the colours vary
together and whether light or dark stands out, as in models of texture by filter responses (Heeger
and Bergen 1995; Portilla and Simoncelli 2000). An image is noise through a filter, by FFT, so it
wraps around at its edges. The mean colour says nothing: it is drawn alike for all classes.

Legend: C classes, N images, K components (2), S image side, F = S // 2 + 1 frequencies across.
"""
import dataclasses
import functools

import numpy as np

from big_transfer.data.builtin import numbered
from big_transfer.data.examples import ArraySource

COMPONENTS = 2
BANDS, DIRECTIONS = 6, 8  # of the description by which classes are told apart
ALIKE = 0.8  # correlation of two such descriptions from which on they count as one


def textures(split: str, *, classes: int = 60, per_class: int = 200, test_per_class: int = 50,
             size: int = 32, seed: int = 0, first_class: int = 0, noise: float = 0.05,
             jitter: float = 1.0) -> ArraySource:
  """Images of `classes` textures; label k is the texture number first_class + k of the seed.

  Which statistics a class has depends on the seed and its number alone, so two ranges of numbers
  that don't overlap are different textures: one for upstream, another for a task of unseen classes.

  Args:
    split: "train" or "test": the same statistics, other samples.
    classes: number of classes.
    per_class: images per class in "train".
    test_per_class: images per class in "test".
    size: side of the images in pixels.
    seed: which statistics and samples.
    first_class: number of the first class.
    noise: standard deviation of the pixel noise, where 1 is the range from black to white.
    jitter: how much samples of one class differ in scale (a fifth of an octave either way at 1),
      direction (14 degrees either way), contrast and colours; 0 for not at all. It sets the
      difficulty: a linear model of colour covariances by frequency and direction, with 60 images
      of each of 20 classes, gets 1.00 at 1 and 0.55 at 2.5; one of pixels is near chance at any.

  Raises:
    ValueError: unknown split, or an argument out of its range.
  """
  return numbered.source(
      "texture", _images, split, classes=classes, per_class=per_class, test_per_class=test_per_class,
      size=size, seed=seed, first_class=first_class, noise=noise, jitter=jitter)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What makes a texture; each field has a first axis of textures, and one of components.

  Attributes:
    frequency: (C, K) centre of the band, in cycles per pixel.
    width: (C, K) standard deviation of the band, in octaves.
    angle: (C, K) direction of the strongest waves, in radians.
    focus: (C, K) how much stronger they are than those across: their amplitudes are as
      exp(focus) to 1; 0 for a texture without direction.
    colour: (C, K, 3) change of red, green and blue with the component; unit vectors.
    skew: (C, K) whether few light spots stand out (above 0) or few dark ones.
    share: (C, K) of the variance; they add up to 1.
  """

  frequency: np.ndarray
  width: np.ndarray
  angle: np.ndarray
  focus: np.ndarray
  colour: np.ndarray
  skew: np.ndarray
  share: np.ndarray

  def __getitem__(self, index) -> "Statistics":
    return Statistics(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


def statistics(seed: int, count: int) -> Statistics:
  """Those of the first `count` textures of a seed.

  Candidates are drawn one after another and taken if they are unlike those taken before.
  """
  return _statistics(seed, 64 * -(-count // 64))[:count]  # few lengths, to make few lists anew


@functools.lru_cache(maxsize=4)
def _statistics(seed: int, count: int) -> Statistics:
  blocks, codes, block = [], np.zeros((0, BANDS * DIRECTIONS * 9)), 0
  while len(codes) < count:
    candidates = _candidates(np.random.default_rng((seed, 0, block)), 64)
    own = _codes(candidates)
    old, new = (own @ codes.T > ALIKE).any(axis=1), own @ own.T
    taken = []
    for i in np.flatnonzero(~old):
      if (new[i, taken] <= ALIKE).all():
        taken.append(i)
    blocks.append(candidates[taken])
    codes = np.concatenate([codes, own[taken]])
    block += 1
  fields = [f.name for f in dataclasses.fields(Statistics)]
  return Statistics(**{name: np.concatenate([getattr(b, name) for b in blocks])
                       for name in fields})[:count]


def _candidates(rng: np.random.Generator, count: int) -> Statistics:
  shape = (count, COMPONENTS)
  colour = rng.standard_normal((*shape, 3))
  share = rng.uniform(0.3, 0.7, (count, 1))
  return Statistics(
      frequency=2 ** rng.uniform(np.log2(1 / 16), np.log2(1 / 3), shape),
      width=rng.uniform(0.2, 0.6, shape),
      angle=rng.uniform(0, np.pi, shape),
      focus=rng.uniform(1, 4, shape) * (rng.random(shape) < 0.75),
      colour=colour / np.linalg.norm(colour, axis=-1, keepdims=True),
      skew=rng.uniform(-0.8, 0.8, shape),
      share=np.concatenate([share, 1 - share], axis=1))


def _codes(stats: Statistics) -> np.ndarray:
  """Spectrum by frequency, direction and pair of colours, as unit vectors (C, D)."""
  octave = np.linspace(np.log2(1 / 20), np.log2(1 / 2.5), BANDS)[:, None]
  direction = (np.arange(DIRECTIONS) * np.pi / DIRECTIONS)[None]
  gain = _gain(stats, octave, direction, np.zeros(1), np.zeros(1)) ** 2
  gain *= (stats.share / gain.sum(axis=(2, 3)))[..., None, None]
  pairs = stats.colour[..., :, None] * stats.colour[..., None, :]
  code = np.einsum("ckbd,ckij->cbdij", gain, pairs).reshape(len(gain), -1)
  return code / np.linalg.norm(code, axis=1, keepdims=True)


def _gain(stats: Statistics, octave, direction, zoom_N, turn_N) -> np.ndarray:
  """Amplitudes (N, K, ...) at log2 frequencies and directions that broadcast to two axes.

  `stats` has N textures, or the fields of one alone, with N of zoom (octaves) and turn (radians).
  """
  zoom, turn = (jitter[:, None, None, None] for jitter in (zoom_N, turn_N))
  centre, width, angle, focus = (value[..., None, None] for value in (
      np.log2(stats.frequency), stats.width, stats.angle, stats.focus))
  band = ((octave - centre - zoom) / width) ** 2 / 2
  across = focus * (1 - np.cos(2 * (direction - angle - turn))) / 2
  return np.exp(-band - across)


@functools.lru_cache(maxsize=8)
def _images(first_class: int, classes: int, look: numbered.Look) -> np.ndarray:
  stats = statistics(look.seed, first_class + classes)
  images = np.empty((classes, look.per_class, look.size, look.size, 3), np.uint8)
  for k in range(classes):
    number = first_class + k
    # A generator per class and split: other classes and their number change nothing here.
    rng = np.random.default_rng((look.seed, 1 + (look.split == "test"), number))
    for start in range(0, look.per_class, 50):  # small enough for the cache of a core
      part = images[k, start:start + 50]
      part[:] = _sample(stats[number], len(part), look, rng)
  return images.reshape(-1, look.size, look.size, 3)


def _sample(stats: Statistics, count: int, look: numbered.Look, rng: np.random.Generator) -> np.ndarray:
  """`count` samples of one texture, uint8 (count, S, S, 3)."""
  size, jitter = look.size, look.jitter
  octave, direction = _frequencies(size)
  gain = _gain(stats, octave, direction, jitter * rng.uniform(-0.2, 0.2, count),
               jitter * rng.uniform(-0.25, 0.25, count)).astype(np.float32)
  gain[..., 0, 0] = 0  # no mean: that is drawn below
  waves = np.fft.rfft2(rng.standard_normal((count, COMPONENTS, size, size), np.float32))
  field = np.fft.irfft2(waves * gain, s=(size, size)).astype(np.float32)
  field /= field.std(axis=(2, 3), keepdims=True) + 1e-6
  skew = stats.skew[:, None, None].astype(np.float32)
  field = (field + skew * (field**2 - 1) / np.sqrt(2)) / np.sqrt(1 + skew**2)
  # Colours wander from sample to sample, and so do the components' strengths.
  colour = stats.colour + jitter * rng.normal(0, 0.2, (count, COMPONENTS, 3))
  strength = np.sqrt(stats.share) * np.exp(jitter * rng.uniform(-0.3, 0.3, (count, COMPONENTS)))
  colour = (colour * strength[..., None]).astype(np.float32)
  images = np.swapaxes(field.reshape(count, COMPONENTS, -1), 1, 2) @ colour
  images *= 0.3 * np.exp(jitter * rng.uniform(-0.4, 0.4, (count, 1, 1))).astype(np.float32)
  images += rng.uniform(0.35, 0.65, (count, 1, 3)).astype(np.float32)
  if look.noise:
    images += look.noise * rng.standard_normal(images.shape, np.float32)
  images = np.clip(images * 255 + 0.5, 0, 255).astype(np.uint8)
  return images.reshape(count, size, size, 3)


@functools.lru_cache(maxsize=4)
def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
  """log2 of cycles per pixel, and direction in radians, of the terms of `rfft2`: (S, F) each."""
  y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
  radius = np.hypot(y, x)
  radius[0, 0] = 1  # any: its gain is set to 0
  return np.log2(radius), np.arctan2(y, x)
