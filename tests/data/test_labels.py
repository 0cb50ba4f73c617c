"""Derived labels against VTAB's formulae, and read from files that TFDS's own features wrote."""
import io
import os

import cv2
import numpy as np
import prepared
import pytest

from big_transfer.data import labels, tasks
from big_transfer.data.sources import open_source


def vtab(distance, thresholds):
  """VTAB's bin, in its precision: thresholds less a float32 distance, the last that is negative."""
  return int(np.flatnonzero(np.array(thresholds, np.float32) - np.float32(distance) < 0).max())


@pytest.mark.parametrize("name, thresholds", [
    ("clevr_distance", (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)),
    ("kitti_distance", (-100.0, 8.0, 20.0, 999.0))])
def test_bins_are_those_of_vtab(name, thresholds):
  rng = np.random.default_rng(0)
  near = [np.nextafter(np.float32(t), np.float32(d)) for t in thresholds[1:-1] for d in (-1e6, 1e6)]
  for distance in [*thresholds[1:-1], *near, *rng.uniform(0.1, 30, 200).astype(np.float32)]:
    key = "objects/pixel_coords" if name == "clevr_distance" else "objects/location"
    example = {key: [0.0, 0.0, 99.0, 5.0, 1.0, float(distance)], "objects/type": [2, 0]}
    assert labels.DERIVED[name].label(example) == vtab(distance, thresholds), distance


def test_clevr_counts_from_three():
  count = labels.DERIVED["clevr_count"].label
  assert [count({"objects/size": [0] * n}) for n in (3, 10)] == [0, 7]
  assert count({"objects/size": [0, 1]}) == -1  # which reading then refuses


def test_kitti_looks_at_cars_vans_and_trucks_alone():
  label = labels.DERIVED["kitti_distance"].label
  where = [0.0, 0.0, 30.0, 1.0, 1.0, 5.0]
  assert label({"objects/type": [0, 3], "objects/location": where}) == 2  # 3 is a pedestrian
  assert label({"objects/type": [2, 1], "objects/location": where}) == 0
  assert label({"objects/type": [3, 7], "objects/location": where}) == 3
  assert label({"objects/type": [], "objects/location": []}) == 3
  assert label({"objects/type": [0], "objects/location": [0.0, 0.0, -2.0]}) == 0  # behind us


@pytest.mark.parametrize("name, feature, values", [
    ("dsprites_location", "label_x_position", 32),
    ("dsprites_orientation", "label_orientation", 40)])
def test_dsprites_puts_neighbours_together_as_vtab_does(name, feature, values):
  derived = labels.DERIVED[name]
  got = [derived.label({feature: [v]}) for v in range(values)]
  assert got == [int(np.float32(v) // np.float32(values / 16)) for v in range(values)]
  assert set(got) == set(range(16)) and len(set(derived.class_names)) == 16


def clevr_example(depths):
  one = {"color": "gray", "material": "rubber", "shape": "cube", "size": "small", "rotation": 0.0,
         "3d_coords": [0.0, 0.0, 0.0]}
  return {"image": prepared.png(np.zeros((4, 6, 3))), "file_name": "a.png",
          "objects": [{**one, "pixel_coords": [1.0, 2.0, depth]} for depth in depths],
          "question_answer": [{"question": "how many?", "answer": "some"}]}


def kitti_example(vehicles):
  import tensorflow_datasets as tfds
  one = {"truncated": 0.0, "occluded": 0, "alpha": 0.0, "bbox": tfds.features.BBox(0., 0., 1., 1.),
         "dimensions": [1.0, 1.0, 1.0], "rotation_y": 0.0}
  return {"image": prepared.png(np.zeros((4, 6, 3))), "image/file_name": "a.png",
          "objects": [{**one, "type": kind, "location": [0.0, 0.0, z]} for kind, z in vehicles]}


def dsprites_example(x, orientation):
  return {"image": prepared.png(np.eye(64)[..., None]), "label_shape": 0, "label_scale": 0,
          "label_orientation": orientation, "label_x_position": x, "label_y_position": 0,
          **{f"value_{k}": 0.0 for k in ("shape", "scale", "orientation", "x_position",
                                         "y_position")}}


def smallnorb_example(elevation, azimuth):
  image = np.full((96, 96, 1), 7)
  return {"image": prepared.png(image), "image2": prepared.png(image), "label_category": 0,
          "instance": 0, "label_elevation": elevation, "label_azimuth": azimuth,
          "label_lighting": 0}


DATASETS = {
    "clevr": ({"train": [clevr_example([8.5, 12.0, 9.9]), clevr_example([10.5] * 10)],
               "validation": [clevr_example([11.0, 8.0, 7.0, 7.5])]},
              {"clevr_count": ([0, 7], [1]), "clevr_distance": ([1, 5], [0])}),
    "kitti": ({"train": [kitti_example([("Car", 30.0), ("Cyclist", 2.0)]), kitti_example([])],
               "validation": [kitti_example([("Tram", 3.0), ("Van", 20.0)])],
               "test": [kitti_example([("Truck", 7.5), ("Car", 50.0)])]},
              {"kitti_distance": ([2, 3, 1], [0])}),
    "dsprites": ({"train": [dsprites_example(3 * i + 1, 4 * i + 3) for i in range(10)]},
                 {"dsprites_location": ([0, 2, 3, 5, 6, 8, 9, 11, 12], [14]),
                  "dsprites_orientation": ([1, 2, 4, 6, 7, 9, 10, 12, 14], [15])}),
    "smallnorb": ({"train": [smallnorb_example(8, 17)],
                   "test": [smallnorb_example(i, 9 + i) for i in range(4)]},
                  {"smallnorb_azimuth": ([17, 9, 10], [11, 12]),
                   "smallnorb_elevation": ([8, 0, 1], [2, 3])})}


@pytest.mark.parametrize("name", DATASETS)
def test_tasks_read_what_the_builders_features_write(name, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  splits, expected = DATASETS[name]
  first = tasks.resolve(next(iter(expected)))
  prepared.prepare(tmp_path / name / first.source.split(":")[2],
                   prepared.features_of(name, tmp_path), splits)
  for task, (train_labels, test_labels) in expected.items():
    train, test = tasks.resolve(task).open_both()
    assert (train.labels.tolist(), test.labels.tolist()) == (train_labels, test_labels), task
    assert train[0]["label"] == train_labels[0] and train.images_at([0])[0].ndim == 3
    assert train.num_classes > max(train_labels)
    label = tasks.resolve(task).options.get("label")
    assert train.spec.get("label") == label


def test_dsprites_is_black_and_white(tmp_path):
  folder = tmp_path / "dsprites/2.0.0"
  prepared.prepare(folder, prepared.features_of("dsprites", tmp_path),
                   {"train": [dsprites_example(0, 0)]})
  options = {"data_dir": str(tmp_path), "label": "dsprites_location"}
  scaled = open_source("tfds:dsprites", **options, image_scale=255)
  np.testing.assert_array_equal(scaled[0]["image"], np.repeat(np.eye(64)[..., None] * 255, 3, -1))
  assert scaled.spec["image_scale"] == 255
  with pytest.raises(ValueError, match="pixels go up to 1, 256 times"):
    open_source("tfds:dsprites", **options, image_scale=256).images_at([0])


def test_a_label_that_fits_no_bin_is_an_error(tmp_path):
  prepared.prepare(tmp_path / "clevr/3.1.0", prepared.features_of("clevr", tmp_path),
                   {"train": [clevr_example([9.0, 9.0])]})
  with pytest.raises(ValueError, match="label -1 of example 0 is out of range"):
    open_source("tfds:clevr", data_dir=str(tmp_path), label="clevr_count").labels


@pytest.mark.parametrize("options, message", [
    ({"label": "clevr_cuont"}, "no derived label 'clevr_cuont': did you mean 'clevr_count'"),
    ({"label": "clevr_count", "label_key": "id"}, "expected neither label_key nor num_classes"),
    ({"label": "clevr_count"}, "no feature 'objects/size'"),
])
def test_errors(tfds_dir, options, message):
  with pytest.raises(ValueError, match=message):
    open_source("tfds:cifar10", data_dir=tfds_dir, **options)


def test_labels_are_kept_and_read_back(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  calls = []
  make = lambda: calls.append(1) or np.arange(5)
  spec = {"name": "x", "examples": 5, "changed": 1}
  for _ in range(2):
    assert labels.remembered(spec, make).tolist() == [0, 1, 2, 3, 4]
  assert len(calls) == 1
  labels.remembered({**spec, "changed": 2}, make)  # the files are others
  assert len(calls) == 2
  for file in (tmp_path / "big_transfer/labels").iterdir():
    file.write_bytes(file.read_bytes()[:50])  # a disk that was full
  assert labels.remembered(spec, make).tolist() == [0, 1, 2, 3, 4] and len(calls) == 3
  (file,) = [f for f in (tmp_path / "big_transfer/labels").iterdir() if f.stat().st_size > 50]
  pickled = io.BytesIO()
  np.save(pickled, np.array([object()] * 5), allow_pickle=True)
  file.write_bytes(pickled.getvalue())
  assert labels.remembered(spec, make).tolist() == [0, 1, 2, 3, 4] and len(calls) == 4


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file, where a folder should be
  assert labels.remembered({"examples": 2}, lambda: np.arange(2)).tolist() == [0, 1]
  assert os.listdir(tmp_path) == ["file"]


def test_sources_keep_only_the_labels_of_much_data(tfds_dir, tmp_path, monkeypatch):
  from big_transfer.data import tfds_records
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  first = open_source("tfds:omniglot_small", data_dir=tfds_dir).labels
  assert not list(tmp_path.iterdir())
  monkeypatch.setattr(tfds_records, "REMEMBERED_BYTES", 10 ** 5)
  again = open_source("tfds:omniglot_small", data_dir=tfds_dir).labels
  (kept,) = (tmp_path / "big_transfer/labels").iterdir()  # and no half-written one
  np.testing.assert_array_equal(np.load(kept), first)
  monkeypatch.setattr(tfds_records.TfdsSource, "_read_labels", lambda self: pytest.fail("read"))
  kept_labels = open_source("tfds:omniglot_small", data_dir=tfds_dir).labels
  np.testing.assert_array_equal(again, kept_labels)
  assert kept_labels.dtype == np.int32 and not kept_labels.flags.writeable


def test_fingerprints_tell_whether_examples_are_the_same(tmp_path):
  rng = np.random.default_rng(0)
  features = prepared.features_of("dtd", tmp_path)
  images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)

  def fingerprint(name, order, encode, shift=0):
    examples = [{"file_name": "x", "image": io.BytesIO(encode(images[i]).tobytes()),
                 "label": i + shift} for i in order]
    prepared.prepare(tmp_path / name / "1.0.0", features, {"train": examples})
    return open_source(f"tfds:{name}", data_dir=str(tmp_path)).fingerprint()

  encoders = {k: lambda image, flags=flags: cv2.imencode(".png", image, flags)[1]
              for k, flags in (("weak", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
                               ("strong", [cv2.IMWRITE_PNG_COMPRESSION, 9]))}
  one = fingerprint("a", (0, 1, 2), encoders["weak"])
  assert one == fingerprint("b", (0, 1, 2), encoders["strong"]) and len(one) == 16
  others = {fingerprint("c", (0, 2, 1), encoders["weak"]),
            fingerprint("d", (0, 1), encoders["weak"]),
            fingerprint("e", (0, 1, 2), encoders["weak"], shift=1),
            fingerprint("f", (0, 1, 2), lambda image: cv2.imencode(".jpg", image)[1])}
  assert len(others | {one}) == 5


def test_vtab1k_is_the_first_800_and_the_first_200(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  dot = prepared.png(np.zeros((1, 1, 3))).getvalue()
  examples = lambda n, step: [{"file_name": "x", "image": io.BytesIO(dot), "label": i * step % 47}
                              for i in range(n)]
  prepared.prepare(tmp_path / "dtd/3.0.1", prepared.features_of("dtd", tmp_path),
                   {"train": examples(900, 1), "validation": examples(250, 3),
                    "test": examples(10, 1)})
  task = tasks.resolve("dtd:vtab1k")
  first = [i % 47 for i in range(800)]
  last = [i * 3 % 47 for i in range(200)]
  assert task.open("train").labels.tolist() == first + last
  assert task.open("validation").labels.tolist() == last and len(task.open("test")) == 10
  choose = tasks.resolve("dtd:vtab1k-val")
  assert choose.open("train").labels.tolist() == first
  assert choose.open("test").labels.tolist() == last
