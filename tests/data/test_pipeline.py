"""The order is a function of seed and step; every example comes; nothing depends on processes."""
import itertools
import threading
import time

import numpy as np
import pytest

from big_transfer.data import pipeline, transforms
from big_transfer.data.sources import open_source


def take(prepared, count, **options):
  options = {"batch_size": 8, "seed": 3, **options}
  iterator = pipeline.train_batches(prepared, **options)
  got = list(itertools.islice(iterator, count))
  iterator.close()
  return got


def joined(batches, key="image"):
  values = np.concatenate([b[key] for b in batches])
  return values[:, 0, 0, 0] if key == "image" else values


def same(some, others):
  for a, b in zip(some, others, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_shapes_and_dtypes(make_source):
  batch, = take(pipeline.prepare(make_source(20), 8), 1)
  assert batch["image"].shape == (8, 8, 8, 3) and batch["image"].dtype == np.uint8
  assert batch["label"].dtype == batch["slot"].dtype == np.int32
  assert batch["slot"].tolist() == list(range(8))
  np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 3)


def test_each_epoch_holds_every_example_once_in_another_order(make_source):
  stream = joined(take(pipeline.prepare(make_source(20), 8), 15))  # 120 = 6 epochs of 20
  epochs = stream.reshape(6, 20)
  for epoch in epochs:
    assert sorted(epoch) == list(range(20))
  assert len({tuple(e) for e in epochs}) == 6


def test_a_batch_larger_than_the_data(make_source):
  stream = joined(take(pipeline.prepare(make_source(5), 8), 5, batch_size=12))
  assert np.bincount(stream).tolist() == [12] * 5


def test_orders_look_random(make_source):
  """Each example comes first equally often; epochs and seeds are unrelated."""
  firsts = [pipeline._permutation(10, seed, epoch)[0] for seed in range(40) for epoch in range(50)]
  assert np.abs(np.bincount(firsts, minlength=10) - 200).max() < 65  # 5 standard deviations
  a, b = pipeline._permutation(1000, 0, 1), pipeline._permutation(1000, 1, 0)
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.16


def test_the_order_of_old_runs_still_holds():
  """If this changes, runs stopped before can't be resumed alike: say so in the changelog."""
  assert pipeline._permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(make_source, count):
  prepared = pipeline.prepare(make_source(20), 8)
  whole = take(prepared, 6)
  parts = [take(prepared, 6, process=(p, count)) for p in range(count)]
  same(whole, [{k: np.concatenate([part[t][k] for part in parts]) for k in whole[0]}
               for t in range(6)])


@pytest.mark.parametrize("step", [1, 5, 17])
def test_resume_from_the_step_alone(make_source, step):
  prepared = pipeline.prepare(make_source(20), 8)
  same(take(prepared, 20)[step:], take(prepared, 20 - step, step=step))


def test_resuming_late_costs_what_resuming_early_does(make_source):
  prepared = pipeline.prepare(make_source(1000), 8)
  times = []
  for step in (7, 10**9):
    begin = time.perf_counter()
    take(prepared, 1, step=step)
    times.append(time.perf_counter() - begin)
  assert times[1] < 10 * times[0] + 0.2


def test_seeds_differ_and_repeat(make_source):
  prepared = pipeline.prepare(make_source(200), 8)
  same(take(prepared, 3), take(prepared, 3))
  assert (joined(take(prepared, 3)) != joined(take(prepared, 3, seed=4))).any()


@pytest.mark.parametrize("options, message", [
    ({"batch_size": 10, "process": (0, 4)}, "batch_size 10 doesn't divide by 4 processes"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"process": (2, 2)}, r"process is \(2, 2\)"),
    ({"seed": -1}, "seed is -1"),
    ({"step": -1}, "step -1"),
])
def test_train_batches_errors(make_source, options, message):
  with pytest.raises(ValueError, match=message):
    take(pipeline.prepare(make_source(), 8), 1, **options)


def test_closing_ends_the_threads(make_source):
  before = threading.active_count()
  iterator = pipeline.train_batches(pipeline.prepare(make_source(), 8), batch_size=2, seed=0)
  next(iterator)
  iterator.close()
  for _ in range(100):
    if threading.active_count() <= before:
      return
    time.sleep(0.05)
  raise AssertionError(f"threads before {before}, after {threading.active_count()}")


# --- preparing


def test_decoded_on_access_or_kept_gives_the_same(folder):
  source = open_source(f"folder:{folder}", "all")
  read = pipeline.prepare(source, 6, memory_bytes=100)
  kept = pipeline.prepare(source, 6)
  assert kept.in_memory and not read.in_memory
  assert kept.spec == read.spec
  indices = [3, 39, 3, 0]
  np.testing.assert_array_equal(kept.images(indices), read.images(indices))
  np.testing.assert_array_equal(
      kept.images(indices)[1], transforms.resize(source[39]["image"], 6))
  same(take(kept, 7), take(read, 7))


def test_only_what_is_asked_for_is_decoded_and_once(make_source):
  source, seen = make_source(10, 8, "counted"), []
  at = source.images_at
  source.images_at = lambda indices: (seen.extend(int(i) for i in indices), at(indices))[1]
  prepared = pipeline.prepare(source, 4)
  assert not seen
  prepared.images([7, 2, 7])
  assert sorted(seen) == [2, 7]
  prepared.images([2, 3])
  assert sorted(seen) == [2, 3, 7]


def test_preparing_twice_gives_the_same_object_and_specs_tell_apart(make_source):
  first = pipeline.prepare(make_source(10, 8, "a"), 4)
  assert pipeline.prepare(make_source(10, 8, "a"), 4) is first
  assert pipeline.prepare(make_source(10, 8, "b"), 4) is not first
  assert pipeline.prepare(make_source(10, 8, "a"), 5) is not first
  assert pipeline.prepare(make_source(10, 8, "a"), 4, fit="crop") is not first


def test_the_cache_is_bounded(make_source):
  cache = pipeline._Cache()
  size = 10 * 4 * 4 * 3
  first = cache.get(make_source(name="c1"), 4, "squash", 2 * size)
  cache.get(make_source(name="c2"), 4, "squash", 2 * size)
  assert cache.get(make_source(name="c1"), 4, "squash", 2 * size) is first
  cache.get(make_source(name="c3"), 4, "squash", 2 * size)  # c2 was used longest ago
  assert cache.get(make_source(name="c1"), 4, "squash", 2 * size) is first
  assert len(cache._kept) == 2


def test_an_array_source_at_its_own_size_is_not_copied(make_source):
  source = make_source(10, 8, "own")
  assert pipeline.prepare(source, 8, memory_bytes=0)._pixels is source.images
  with pytest.raises(ValueError, match="read-only"):
    source.images[0] = 0


def test_prepare_errors(make_source):
  with pytest.raises(ValueError, match="fit is 'squeeze'; expected one of squash, crop"):
    pipeline.prepare(make_source(), 8, fit="squeeze")
  with pytest.raises(ValueError, match="image_size is 0"):
    pipeline.prepare(make_source(), 0)


def test_a_corrupt_image_ends_the_iteration_with_its_name(folder):
  (folder / "cat" / "03.png").write_bytes(b"no image")
  prepared = pipeline.prepare(open_source(f"folder:{folder}", "all"), 6)
  with pytest.raises(ValueError, match="cat/03.png"):
    take(prepared, 10)
  with pytest.raises(ValueError, match="cat/03.png"):
    list(pipeline.batches(prepared, range(40), 7))


# --- augmenting on the host


def test_host_augmentation_is_a_function_of_seed_and_position(folder):
  prepared = pipeline.prepare(open_source(f"folder:{folder}", "all"), 6)
  augment = transforms.in_turn(transforms.inception_crop(6), transforms.flip,
                               lambda image, rng: image + rng.integers(50, dtype=np.uint8))
  whole = take(prepared, 12, augment=augment)
  same(whole[5:], take(prepared, 7, step=5, augment=augment))
  parts = [take(prepared, 12, process=(p, 2), augment=augment) for p in range(2)]
  np.testing.assert_array_equal(
      whole[9]["image"], np.concatenate([parts[p][9]["image"] for p in range(2)]))
  assert len(np.unique(joined(whole))) > 20


def test_an_augmentation_of_the_wrong_size_says_so(folder):
  prepared = pipeline.prepare(open_source(f"folder:{folder}", "all"), 6)
  with pytest.raises(ValueError, match=r"shape \(10, 12, 3\); expected \(6, 6, 3\)"):
    take(prepared, 1, augment=lambda image, rng: image)


# --- evaluating


@pytest.mark.parametrize("size", [1, 4, 7, 30])
def test_every_index_once_and_padding_masked(make_source, size):
  prepared = pipeline.prepare(make_source(20), 8)
  indices = np.array([5, 3, 3, 19, 0, 1, 7])
  got = list(pipeline.batches(prepared, indices, size))
  assert all(len(b["label"]) == size for b in got)
  mask = joined(got, "mask")
  assert mask.sum() == 7 and mask.dtype == np.float32
  np.testing.assert_array_equal(joined(got)[mask > 0], indices)
  np.testing.assert_array_equal(joined(got, "label")[mask > 0], indices % 3)
  assert not joined(got)[mask == 0].any()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("size", [4, 8, 32])
def test_processes_share_what_one_reads(make_source, size, count):
  prepared = pipeline.prepare(make_source(20), 8)
  indices = np.array([5, 3, 3, 19, 0, 1, 7, 2, 4])
  alone = list(pipeline.batches(prepared, indices, size))
  shares = [list(pipeline.batches(prepared, indices, size, (i, count))) for i in range(count)]
  assert {len(share) for share in shares} == {len(alone)}  # though some hold nothing but filling
  for number, whole in enumerate(alone):
    for key in ("image", "label", "mask"):
      np.testing.assert_array_equal(
          np.concatenate([share[number][key] for share in shares]), whole[key])
  with pytest.raises(ValueError, match=f"positive multiple of {count}"):
    list(pipeline.batches(prepared, indices, 5, (0, count)))


def test_batches_of_nothing_and_out_of_range(make_source):
  prepared = pipeline.prepare(make_source(20), 8)
  assert not list(pipeline.batches(prepared, [], 4))
  with pytest.raises(ValueError, match="expected 0 to 19"):
    list(pipeline.batches(prepared, [20], 4))


def test_leaving_early_is_fine(make_source):
  for batch in pipeline.batches(pipeline.prepare(make_source(20), 8), range(20), 2):
    assert len(batch["label"]) == 2
    break


def test_cifar10_decodes_as_opencv_does(tfds_dir):
  source = open_source("tfds:cifar10", "test[:200]", data_dir=tfds_dir)
  prepared = pipeline.prepare(source, 32)
  images = prepared.images(np.arange(200))
  np.testing.assert_array_equal(images[150], source[150]["image"])
  assert 100 < images.mean() < 140  # CIFAR-10's mean is 121
  means = images.mean(axis=(0, 1, 2))
  assert means[0] > means[2]  # red above blue: channels in the right order
