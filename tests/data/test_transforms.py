"""Transforms, against plain NumPy and against what they promise."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from big_transfer.data import transforms

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 12, 12, 3), dtype=np.uint8)


def keys(n=16, step=0, seed=0):
  return jax.jit(transforms.slot_keys)(jax.random.key(seed), step, jnp.arange(n))


def jitted(function, **options):
  return jax.jit(functools.partial(function, **options))


# --- host


def test_resize_down_takes_means_and_up_keeps_constants():
  image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
  means = image.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
  assert np.abs(transforms.resize(image, 4) - means).max() <= 0.5
  assert (transforms.resize(np.full((5, 9, 3), 77, np.uint8), 20) == 77).all()
  assert transforms.resize(image, 8) is image


def test_centre_crop_keeps_the_aspect_ratio_and_the_centre():
  image = np.zeros((30, 60, 3), np.uint8)
  image[:, 20:40] = 255
  cropped = transforms.resize_small_centre_crop(image, 15, 9)
  assert cropped.shape == (9, 9, 3) and cropped.min() == 255
  tall = transforms.resize_small_centre_crop(np.swapaxes(image, 0, 1), 15, 15)
  assert tall.shape == (15, 15, 3)
  assert tall[:2].max() == 0 and tall[7].min() == 255
  with pytest.raises(ValueError, match="crop is 10, larger than"):
    transforms.resize_small_centre_crop(image, 9, 10)


def test_inception_crop_takes_areas_it_should():
  y, x = np.mgrid[0:100, 0:100].astype(np.uint8)
  image = np.stack([y, x, y], -1)
  shares, ratios = [], []
  augment = transforms.inception_crop(50, area=(0.2, 0.6))
  for seed in range(300):
    crop = augment(image, np.random.default_rng(seed)).astype(int)
    assert crop.shape == (50, 50, 3)
    height, width = np.ptp(crop[..., 0]), np.ptp(crop[..., 1])
    shares.append(height * width / 1e4)
    ratios.append(width / height)
  assert 0.17 < min(shares) < 0.25 and 0.5 < max(shares) < 0.62
  assert 0.7 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.4


def test_inception_crop_of_a_strip_falls_back_to_the_centre():
  strip = np.zeros((4, 400, 3), np.uint8)
  strip[:, 198:202] = 255
  crop = transforms.inception_crop(8, area=(0.9, 1.0))(strip, np.random.default_rng(0))
  assert crop.shape == (8, 8, 3) and crop.min() == 255


def test_host_flip_is_fair():
  image = IMAGES[0]
  flipped = [np.array_equal(transforms.flip(image, np.random.default_rng(s)), image[:, ::-1])
             for s in range(400)]
  assert 150 < sum(flipped) < 250


# --- inside jit


def test_to_float_spans_minus_one_to_one():
  values = transforms.to_float(jnp.array([0, 255], jnp.uint8))
  assert values.dtype == jnp.float32 and values.tolist() == [-1.0, 1.0]


def test_crop_and_flip_against_numpy():
  """Every image is one of the shifts and flips that padding by mirroring allows."""
  padding = 2
  crops = np.asarray(jitted(transforms.random_crop, padding=padding)(keys(), IMAGES))
  flips = np.asarray(jitted(transforms.random_flip)(keys(), IMAGES))
  both = np.asarray(jitted(transforms.augment, crop_padding=padding, flip=True)(keys(), IMAGES))
  padded = np.pad(IMAGES, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), mode="reflect")
  shifts = set()
  for i in range(16):
    windows = {(y, x): padded[i, y:y + 12, x:x + 12] for y in range(5) for x in range(5)}
    found = [at for at, window in windows.items() if np.array_equal(window, crops[i])]
    assert len(found) == 1
    shifts.add(found[0])
    flipped = np.array_equal(flips[i], IMAGES[i, :, ::-1])
    assert flipped or np.array_equal(flips[i], IMAGES[i])
    # Both at once draw what each alone draws; the flip comes last.
    expected = crops[i][:, ::-1] if flipped else crops[i]
    undone = (both[i] + 1) * 127.5
    assert any(np.allclose(undone, e, atol=1e-3) for e in (expected, windows_flipped(
        padded[i], found[0], flipped)))
  assert len(shifts) > 8


def windows_flipped(padded, at, flipped):
  """The same with the flip first: the column shift runs the other way."""
  y, x = at
  source = padded[:, ::-1] if flipped else padded
  return source[y:y + 12, x:x + 12]


def test_shifts_are_uniform_and_flips_fair():
  n = 2500
  ramp = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None], (n, 11, 11, 3))
  middle = np.asarray(jitted(transforms.random_crop, padding=2)(keys(n), ramp))[:, 5, 5, 0]
  counts = np.bincount(middle, minlength=11)[3:8]
  assert counts.sum() == n
  assert stats.chisquare(counts).pvalue > 1e-3
  sideways = np.swapaxes(ramp, 1, 2)
  sides = np.asarray(jitted(transforms.random_flip)(keys(n), sideways))[:, 0, 0, 0] == 10
  assert stats.binomtest(int(sides.sum()), n).pvalue > 1e-3
  assert abs(np.corrcoef(sides, middle)[0, 1]) < 0.08


@pytest.mark.parametrize("function", [
    jitted(transforms.augment, crop_padding=3, flip=True),
    jitted(transforms.random_crop, padding=3),
    jitted(transforms.random_flip),
])
def test_an_outcome_depends_on_its_own_key_alone(function):
  whole = np.asarray(function(keys(), IMAGES))
  part = np.asarray(function(keys()[5:9], IMAGES[5:9]))
  np.testing.assert_array_equal(whole[5:9], part)
  other = np.asarray(function(keys(step=1), IMAGES))
  assert (other != whole).any()


def test_slot_keys_tell_slots_and_steps_apart():
  data = np.concatenate([np.asarray(jax.random.key_data(keys(8, step, seed)))
                         for step in range(3) for seed in range(2)])
  assert len({tuple(row) for row in data.tolist()}) == 48


def test_without_crop_and_flip_nothing_moves():
  np.testing.assert_array_equal(transforms.augment(keys(), jnp.asarray(IMAGES)),
                                transforms.to_float(jnp.asarray(IMAGES)))


def test_padding_beyond_the_image_is_an_error():
  with pytest.raises(ValueError, match="crop padding is 12; expected 0 to 11"):
    transforms.random_crop(keys(), IMAGES, 12)


def test_mixup_mixes_with_the_slot_before_and_labels_alike():
  images = jnp.broadcast_to(jnp.arange(16.0)[:, None, None, None], (16, 2, 2, 3))
  labels = jnp.eye(16)
  mixed, soft = jax.jit(transforms.mixup)(keys(), images, labels, jnp.float32(0.5))
  share = np.diag(soft)
  np.testing.assert_allclose(np.asarray(soft).sum(axis=1), 1, atol=1e-6)
  before = np.arange(16) - 1
  before[0] = 15
  np.testing.assert_allclose(np.asarray(soft)[np.arange(16), before], 1 - share, atol=1e-6)
  np.testing.assert_allclose(mixed[:, 0, 0, 0], share * np.arange(16) + (1 - share) * before,
                             rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_shares_follow_the_beta_distribution(alpha):
  n = 1500
  labels = jnp.eye(2)[jnp.arange(n) % 2]
  _, soft = jax.jit(transforms.mixup)(keys(n), jnp.zeros((n, 1, 1, 1)), labels, alpha)
  share = (soft * labels).sum(axis=1)
  assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_of_alpha_zero_is_off_to_the_bit_and_shares_the_program():
  traces = []
  @jax.jit
  def mix(x, alpha):
    traces.append(1)
    return transforms.mixup(keys(), x, jnp.eye(16), alpha)
  x = transforms.to_float(jnp.asarray(IMAGES))
  images, labels = mix(x, jnp.float32(0))
  np.testing.assert_array_equal(images, x)
  np.testing.assert_array_equal(labels, jnp.eye(16))
  changed, _ = mix(x, jnp.float32(1))
  assert (changed != x).any() and len(traces) == 1
