"""Image transforms: on the host, one image at a time, or inside jit, a batch at a time.

On the host an image is uint8 (H, W, 3) and randomness a NumPy generator. Inside jit images are
(B, H, W, 3) and randomness a key per example, so that what happens to an example depends on its
own key alone, whatever else is in the batch and on however many devices.

Legend: B batch, H height, W width, K classes.
"""
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np

HostAugment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """To uint8 (size, size, 3), whatever the aspect ratio.

  By the mean of covered areas where the image gets smaller, bilinear where it gets larger.
  """
  return _to(image, size, size)


def resize_small_centre_crop(image: np.ndarray, small: int, crop: int) -> np.ndarray:
  """The smaller side to `small`, aspect ratio kept, then the central (crop, crop, 3).

  Raises:
    ValueError: crop is larger than small.
  """
  if crop > small:
    raise ValueError(f"crop is {crop}, larger than the resized side {small}; make it smaller.")
  height, width = image.shape[:2]
  scale = small / min(height, width)
  image = _to(image, max(small, round(height * scale)), max(small, round(width * scale)))
  y, x = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
  return image[y:y + crop, x:x + crop]


def inception_crop(size: int, area: tuple[float, float] = (0.05, 1.0),
                   ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> HostAugment:
  """A random crop of random area and aspect ratio, resized to (size, size, 3).

  As for GoogLeNet (1409.4842, section 6): area uniform, ratio log-uniform here; after ten crops
  that don't fit, the largest central square.

  Args:
    size: side of the result.
    area: least and greatest share of the image's area.
    ratio: least and greatest width / height.
  """
  def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    for _ in range(10):
      pixels = rng.uniform(*area) * height * width
      shape = np.exp(rng.uniform(*np.log(ratio)))
      h, w = round(np.sqrt(pixels / shape)), round(np.sqrt(pixels * shape))
      if 0 < h <= height and 0 < w <= width:
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        return _to(image[y:y + h, x:x + w], size, size)
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return _to(image[y:y + side, x:x + side], size, size)
  return augment


def resize_crop(resized: int, size: int) -> HostAugment:
  """The image at (resized, resized), whatever its aspect ratio, and a random (size, size, 3) of it.

  As BiT is fine-tuned (1912.11370, 3.3). Where the two sizes are equal nothing is random.

  Raises:
    ValueError: size is larger than resized.
  """
  if size > resized:
    raise ValueError(f"augment.resize_crop is {resized}, smaller than image_size {size}, the crop: "
                     "expected at least as many pixels")

  def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = resize(image, resized)
    y, x = rng.integers(resized - size + 1, size=2)
    return image[y:y + size, x:x + size]
  return augment


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Left to right, every other time."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def in_turn(*augments: HostAugment) -> HostAugment:
  """One host transform after another, with the same generator."""
  def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for one in augments:
      image = one(image, rng)
    return image
  return augment


def _to(image: np.ndarray, height: int, width: int) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  smaller = height * width < image.shape[0] * image.shape[1]
  how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
  return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)


def slot_keys(key: jax.Array, step, slots_B: jax.Array) -> jax.Array:
  """A key per example, (B,): the same whatever the number of processes or devices."""
  key = jax.random.fold_in(key, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, slots_B)


def to_float(images_BHWC: jax.Array) -> jax.Array:
  """uint8 in [0, 255] to float32 in [-1, 1]."""
  return images_BHWC.astype(jnp.float32) / 127.5 - 1


def random_crop(keys_B: jax.Array, images_BHWC: jax.Array, padding: int) -> jax.Array:
  """Shifts each image by up to `padding` pixels each way; what comes in is mirrored."""
  return _shift_and_flip(keys_B, images_BHWC, padding, False)


def random_flip(keys_B: jax.Array, images_BHWC: jax.Array) -> jax.Array:
  """Flips each image left to right with probability one half."""
  return _shift_and_flip(keys_B, images_BHWC, 0, True)


def augment(keys_B: jax.Array, images_BHWC: jax.Array, *, crop_padding: int = 0,
            flip: bool = False) -> jax.Array:
  """Random crop and flip of uint8 images, then `to_float`: float32 (B, H, W, 3) in [-1, 1].

  Args:
    keys_B: a key per example, see `slot_keys`.
    images_BHWC: uint8.
    crop_padding: greatest shift in pixels; 0 for none.
    flip: whether to flip at random.
  """
  return to_float(_shift_and_flip(keys_B, images_BHWC, crop_padding, flip))


def _shift_and_flip(keys_B, images_BHWC, padding: int, flip: bool):
  """Both as one gather: on a CPU the gather is all the cost there is."""
  _, height, width, _ = images_BHWC.shape
  if not 0 <= padding < min(height, width):
    raise ValueError(f"crop padding is {padding}; expected 0 to {min(height, width) - 1} for "
                     f"images of {height}x{width}.")
  if not padding and not flip:
    return images_BHWC
  # One draw serves all, and uniforms compile faster than integers and coins.
  uniform_B3 = _uniform(keys_B, 0, 3)
  shift_B2 = jnp.floor(uniform_B3[:, :2] * (2 * padding + 1)).astype(jnp.int32) - padding
  rows_BH = _mirrored(jnp.arange(height)[None] + shift_B2[:, :1], height)
  columns_BW = jnp.arange(width)[None]
  if flip:
    columns_BW = jnp.where(uniform_B3[:, 2:] < 0.5, width - 1 - columns_BW, columns_BW)
  columns_BW = _mirrored(columns_BW + shift_B2[:, 1:], width)
  take = jax.vmap(lambda image, rows, columns: image[rows[:, None], columns[None, :]])
  return take(images_BHWC, rows_BH, columns_BW)


def mixup(keys_B: jax.Array, images_BHWC: jax.Array, labels_BK: jax.Array, alpha):
  """Mixes each example with that of the slot before it (1710.09412).

  x = λ·x + (1 - λ)·x_previous, and labels alike, λ ~ Beta(alpha, alpha) per example.

  Args:
    keys_B: a key per example.
    images_BHWC: floats.
    labels_BK: one-hot or soft labels, floats.
    alpha: number or traced scalar; 0 means off.

  Returns:
    Mixed images and labels.
  """
  alpha = jnp.asarray(alpha, jnp.float32)
  share_B = _symmetric_beta(_uniform(keys_B, 1, 2), jnp.where(alpha > 0, alpha, 1.0))
  share_B = jnp.where(alpha > 0, share_B, 1.0)
  def mix(x):
    share = share_B.reshape((-1,) + (1,) * (x.ndim - 1))
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)
  return mix(images_BHWC), mix(labels_BK)


def _mirrored(index, size: int):
  """Mirrors indices that lie beyond either end, the edge not repeated."""
  index = jnp.abs(index)
  return size - 1 - jnp.abs(size - 1 - index)


def _symmetric_beta(uniform_B2, alpha):
  """Beta(alpha, alpha) from two uniforms, exactly, for any alpha > 0.

  Student's t by Bailey's formula, then to a symmetric beta (L. Devroye, Random variate generation
  in one line of code, WSC 1996). `jax.random.beta` rejects in a loop, which takes seconds to
  compile.
  """
  cosine = jnp.cos(2 * jnp.pi * uniform_B2[:, 1])
  squared = jnp.expm1(-jnp.log(uniform_B2[:, 0]) / alpha) * cosine**2
  return (1 + jnp.sign(cosine) * jax.lax.rsqrt(1 + 1 / squared)) / 2


def _uniform(keys_B, purpose: int, count: int):
  """`count` numbers in [0, 1) per example; one key's purposes are independent of each other."""
  return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, purpose), (count,)))(
      keys_B)
