"""Built-in data: the same every time, different where it should be, labels that mean something."""
import json
import time

import numpy as np
import pytest
from sklearn import linear_model, neighbors

from big_transfer.data.builtin import fractals as fractals_lib
from big_transfer.data.builtin import sprites as sprites_lib
from big_transfer.data.sources import open_source


def fresh(name, *args, **options):
  fractals_lib._images.cache_clear()
  fractals_lib._systems.cache_clear()
  sprites_lib._images.cache_clear()
  return open_source(name, *args, **options).images


def flat(source):
  return source.images.reshape(len(source), -1) / 255.0


@pytest.mark.parametrize("name, options", [
    ("fractals", {"classes": 3, "per_class": 7}), ("sprites", {"examples": 50})])
def test_the_same_every_time_and_another_for_another_seed(name, options):
  first = fresh(name, **options)
  np.testing.assert_array_equal(first, fresh(name, **options))
  assert (first != fresh(name, **options, seed=1)).mean() > 0.5
  sides = [{i.tobytes() for i in fresh(name, split, **options)} for split in ("train", "test")]
  assert not sides[0] & sides[1]


def test_specs_tell_everything_apart():
  opened = [open_source("fractals", split, **options) for split in ("train", "test")
            for options in ({}, {"classes": 5}, {"noise": 0.3}, {"jitter": 0.1}, {"seed": 1},
                            {"size": 16}, {"first_class": 60})]
  opened += [open_source("sprites", label=label) for label in sprites_lib.BINS]
  assert len({json.dumps(s.spec, sort_keys=True) for s in opened}) == len(opened)


# --- fractals


def test_a_fractals_images_do_not_depend_on_how_many_others_there_are():
  some = fresh("fractals", classes=3, per_class=4)
  more = fresh("fractals", classes=70, per_class=4)
  np.testing.assert_array_equal(some, more[:12])
  np.testing.assert_array_equal(fresh("fractals", classes=2, per_class=4, first_class=1),
                                more[4:12])


def test_fractal_systems_are_contractions_and_differ():
  maps, counts = fractals_lib.systems(0, 100)
  assert set(counts) == {2, 3, 4}
  for system, count in zip(maps, counts):
    assert np.linalg.svd(system[:count, :, :2], compute_uv=False).max() < 0.86
    assert not system[count:].any()
  pictures = np.stack([fractals_lib._pictures(m[None, :k], k)[1].ravel()
                       for m, k in zip(maps, counts)])
  likeness = pictures @ pictures.T - np.eye(100)
  assert likeness.max() <= fractals_lib.ALIKE


def test_the_attractor_is_what_its_maps_make_of_it():
  """Hutchinson: the union of the maps' images of the attractor is the attractor."""
  maps, counts = fractals_lib.systems(0, 6)
  for system, count in zip(maps, counts):
    points = np.swapaxes(fractals_lib._attractor(system[None, :count])[0], 0, 1).reshape(2, -1)
    images = np.concatenate([m[:, :2] @ points + m[:, 2:] for m in system[:count]], axis=1)
    tree = neighbors.KDTree(points.T)
    distance = tree.query(images.T)[0]
    assert distance.max() < 0.1 * np.ptp(points, axis=1).max()


def test_fractals_fill_the_frame():
  images = open_source("fractals", classes=30, per_class=10, noise=0).images
  ink = images.astype(int) - images.min(axis=(1, 2), keepdims=True)
  covered = (ink.max(axis=-1) > 40).mean(axis=(1, 2))
  assert covered.min() > 0.05 and covered.max() < 0.8 and 0.1 < covered.mean() < 0.5


def test_jitter_and_noise_do_what_they_say():
  still = open_source("fractals", classes=1, per_class=6, noise=0, jitter=0).images
  moved = open_source("fractals", classes=1, per_class=6, noise=0, jitter=1).images
  shape = lambda images: (images.max(-1) > images.max(-1).min(axis=(1, 2), keepdims=True) + 30)
  varies = lambda images: (shape(images).any(axis=0) & ~shape(images).all(axis=0)).mean()
  assert varies(still) < 0.5 * varies(moved)
  clean = open_source("fractals", classes=1, per_class=6, noise=0, jitter=0).images[:, :2, :2]
  noisy = open_source("fractals", classes=1, per_class=6, noise=0.2, jitter=0).images
  assert clean.std(axis=(1, 2)).max() < 1
  assert noisy.std() > still.std()


def test_fractals_are_neither_trivial_nor_noise_to_a_linear_model():
  scores = []
  for jitter in (1, 1.5):
    options = dict(size=16, jitter=jitter, classes=40, per_class=40, test_per_class=10)
    train, test = (open_source("fractals", split, **options) for split in ("train", "test"))
    ridge = linear_model.RidgeClassifier(10.0).fit(flat(train), train.labels)
    scores.append(ridge.score(flat(test), test.labels))
  assert 5 / 40 < scores[1] < 0.8 and scores[1] < scores[0] < 0.97


def test_fractals_come_fast():
  """20,000 in well under 20 seconds: 2.5 CPU seconds where this was written."""
  start = time.process_time()
  fresh("fractals", classes=20, per_class=100)
  assert time.process_time() - start < 2.0


# --- sprites


@pytest.mark.parametrize("label, classes", [("count", 6), ("location", 9), ("orientation", 8),
                                            ("scale", 6)])
def test_sprites_are_balanced_and_named(label, classes):
  source = open_source("sprites", label=label, examples=classes * 20)
  assert source.num_classes == classes == len(set(source.class_names))
  assert np.bincount(source.labels).tolist() == [20] * classes


def test_more_sprites_leave_the_first_ones_as_they_are():
  many, few = fresh("sprites", examples=300), fresh("sprites", examples=130)
  np.testing.assert_array_equal(many[:130], few)


def masks(label, examples=360):
  """Where the shapes are, found without noise against the ground: (N, S, S)."""
  source = open_source("sprites", label=label, examples=examples, noise=0, size=64)
  images = source.images.astype(int)
  # The ground is a plane.
  y, x = np.mgrid[0:64, 0:64] / 64
  basis = np.stack([np.ones_like(x), x, y], -1).reshape(-1, 3)
  flat_images = images.mean(-1).reshape(len(images), -1)
  found = np.zeros_like(flat_images, bool)
  for i, image in enumerate(flat_images):
    keep = np.ones(len(image), bool)
    for _ in range(6):  # fit, drop what doesn't fit, fit again
      fit = basis @ np.linalg.lstsq(basis[keep], image[keep], rcond=None)[0]
      keep = np.abs(image - fit) < max(6, 0.5 * np.abs(image - fit).max())
    found[i] = np.abs(image - fit) > 20
  return source, found.reshape(-1, 64, 64)


def test_location_is_where_the_shape_is():
  source, found = masks("location")
  y, x = np.mgrid[0:64, 0:64]
  area = found.sum(axis=(1, 2))
  row = ((found * y).sum(axis=(1, 2)) / area * 3 // 64).astype(int)
  column = ((found * x).sum(axis=(1, 2)) / area * 3 // 64).astype(int)
  assert (row * 3 + column == source.labels).mean() > 0.75  # edges cut shapes, which moves them


def test_scale_grows_with_the_label():
  source, found = masks("scale")
  area = found.sum(axis=(1, 2))
  medians = [np.median(area[source.labels == k]) for k in range(6)]
  assert (np.diff(medians) > 0).all() and medians[5] > 10 * medians[0]


def test_count_is_the_number_of_shapes():
  import cv2
  source, found = masks("count")
  counts = [cv2.connectedComponents(f.astype(np.uint8))[0] - 1 for f in found]
  assert (np.array(counts) == source.labels + 1).mean() > 0.9


def test_orientation_is_where_the_arrow_points():
  """The tip is the farthest point from the arrow's centre of mass."""
  source, found = masks("orientation")
  y, x = np.mgrid[0:64, 0:64].astype(float)
  right = 0
  for label, mask in zip(source.labels, found):
    px, py = x[mask] - x[mask].mean(), -(y[mask] - y[mask].mean())
    angles = np.arange(0, 360, 5) * np.pi / 180
    reach = [(np.cos(a) * px + np.sin(a) * py).max() for a in angles]
    guess = round(angles[int(np.argmax(reach))] / (np.pi / 4)) % 8
    right += guess == label
  assert right / len(found) > 0.8
