"""TFDS without TensorFlow: real datasets where there are any, and a small one made here."""
import json
import shutil

import cv2
import numpy as np
import prepared
import pytest

from big_transfer.data.sources import open_source


@pytest.fixture
def small(tmp_path, tfds_dir):
  """A copy of omniglot_small, to be damaged."""
  shutil.copytree(f"{tfds_dir}/omniglot_small", tmp_path / "omniglot_small")
  return tmp_path


def test_labels_and_images_of_cifar10(tfds_dir):
  train = open_source("tfds:cifar10", data_dir=tfds_dir)
  assert np.bincount(train.labels).tolist() == [5000] * 10 and train.labels.dtype == np.int32
  assert train.class_names[3] == "cat"
  assert json.loads(json.dumps(train.spec)) == train.spec
  picked = [49999, 0, 123]
  for i, image in zip(picked, train.images_at(picked)):
    np.testing.assert_array_equal(image, train[i]["image"])
    assert train[i]["label"] == train.labels[i]


def test_what_tfds_itself_reads(tfds_dir):
  import tensorflow_datasets as tfds
  theirs = tfds.builder_from_directory(f"{tfds_dir}/omniglot_small/1.0.0").as_data_source("test")
  ours = open_source("tfds:omniglot_small", "test", data_dir=tfds_dir)
  assert len(ours) == len(theirs) and ours.num_classes == 242
  for i in (0, 77, 2419):
    np.testing.assert_array_equal(ours[i]["image"], np.repeat(theirs[i]["image"], 3, -1))
    assert ours.labels[i] == theirs[i]["label"]


def test_split_strings(tfds_dir):
  opened = {s: open_source("tfds:cifar10:3.0.2", s, data_dir=tfds_dir)
            for s in ("test", "test[:10%]", "test[9000:]")}
  assert [len(s) for s in opened.values()] == [10000, 1000, 1000]
  np.testing.assert_array_equal(opened["test[9000:]"].labels, opened["test"].labels[9000:])
  specs = [json.dumps(s.spec) for s in opened.values()]
  assert len(set(specs)) == 3


@pytest.mark.parametrize("name, options, message", [
    ("tfds:cifar100", {}, "did you mean 'cifar10'"),
    ("tfds:mnist", {}, "tfds build mnist --file_format=array_record"),
    ("tfds:cifar10:9.9.9", {}, "no version '9.9.9'"),
    ("tfds:cifar10", {"split": "trian"}, "no split 'trian': did you mean 'train'"),
    ("tfds:cifar10", {"split": "train[:x]"}, r"no split 'train\[:x\]'"),
    ("tfds:cifar10", {"split": "train[:0]"}, "is empty"),
    ("tfds:cifar10", {"label_key": "lable"}, "no feature 'lable': did you mean 'label'"),
    ("tfds:cifar10", {"label_key": "image"}, "expected a ClassLabel"),
])
def test_errors(tfds_dir, name, options, message):
  with pytest.raises(ValueError, match=message):
    open_source(name, **{"data_dir": tfds_dir, **options})


def test_nothing_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(ValueError, match=f"TFDS_DATA_DIR={tmp_path} tfds build cifar10"):
    open_source("tfds:cifar10")
  (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)  # interrupted: no dataset_info.json
  with pytest.raises(ValueError, match="no finished version"):
    open_source("tfds:cifar10")


def test_a_configuration_is_asked_for(tfds_dir, tmp_path):
  for config in ("one", "two"):
    shutil.copytree(f"{tfds_dir}/omniglot_small/1.0.0", tmp_path / "letters" / config / "1.0.0")
  with pytest.raises(ValueError, match="configurations one, two; choose one, tfds:letters/one"):
    open_source("tfds:letters", data_dir=str(tmp_path))
  assert len(open_source("tfds:letters/two", "test", data_dir=str(tmp_path))) == 2420


def test_another_format_is_refused(small):
  info = small / "omniglot_small/1.0.0/dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="in format 'tfrecord'; expected 'array_record'"):
    open_source("tfds:omniglot_small", data_dir=str(small))


def test_missing_and_damaged_files(small):
  file = next((small / "omniglot_small/1.0.0").glob("*-test*"))
  data = file.read_bytes()
  file.write_bytes(data[:1000])
  with pytest.raises(ValueError, match="prepare the dataset again"):
    open_source("tfds:omniglot_small", "test", data_dir=str(small)).labels
  file.unlink()
  with pytest.raises(ValueError, match="is missing; prepare the dataset again"):
    open_source("tfds:omniglot_small", "test", data_dir=str(small))


def test_a_corrupt_image_and_a_wrong_label(small):
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_pb2
  file = next((small / "omniglot_small/1.0.0").glob("*-test*"))
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  png = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
  for i in range(2420):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png if i != 5 else png[:30])
    example.features.feature["label"].int64_list.value.append(i % 242 + 100 * (i == 2419))
    writer.write(example.SerializeToString())
  writer.close()
  source = open_source("tfds:omniglot_small", "test", data_dir=str(small))
  with pytest.raises(ValueError, match="'test', example 5: corrupt image"):
    source.images_at([4, 5, 6])
  with pytest.raises(ValueError, match="label 341 of example 2419 is out of range"):
    source.labels


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
  """10 examples in 3 files: an integer, one in a nest, a list of classes, a text, a fraction."""
  import tensorflow_datasets as tfds
  features = tfds.features.FeaturesDict({
      "image": tfds.features.Image(), "number": tfds.features.Scalar(np.int32),
      "of": {"kind": tfds.features.ClassLabel(names=["a", "b"])}, "id": tfds.features.Text(),
      "kinds": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
      "share": tfds.features.Scalar(np.float32)})
  root = tmp_path_factory.mktemp("numbered")
  prepared.prepare(root / "numbered/1.0.0", features, {"train": [
      {"image": prepared.png(np.full((2, 2, 3), i)), "number": 9 - i, "of": {"kind": i % 2},
       "id": str(i), "kinds": [0, 1], "share": 0.5} for i in range(10)]}, files=3)
  return {"name": "tfds:numbered", "data_dir": str(root)}


def test_labels_of_slices_over_several_files(numbered):
  options = {**numbered, "label_key": "number", "num_classes": 10}
  for split, expected in [("train", range(9, -1, -1)), ("train[2:9]", range(7, 0, -1)),
                          ("train[8:]+train[:3]", (1, 0, 9, 8, 7)), ("train[5:6]", (4,))]:
    source = open_source(split=split, **options)
    assert source.labels.tolist() == list(expected)
    assert [example["label"] for example in source] == list(expected)
    assert [int(image[0, 0, 0]) for image in source.images_at(range(len(source)))] == [
        9 - label for label in expected]


def test_labels_that_are_no_class_label(numbered):
  source = open_source(**numbered, label_key="number", num_classes=10)
  assert source.num_classes == 10 and source.class_names is None
  nested = open_source(**numbered, label_key="of/kind")
  assert nested.class_names == ("a", "b") and nested.labels.tolist() == [0, 1] * 5
  with pytest.raises(ValueError, match="label 9 of example 0 is out of range"):
    open_source(**numbered, label_key="number", num_classes=9).labels


@pytest.mark.parametrize("options, message", [
    ({"label_key": "number"}, "'number' is a Scalar; expected a ClassLabel, or an integer"),
    ({"label_key": "share", "num_classes": 2}, "'share' is a Scalar; expected a ClassLabel"),
    ({"label_key": "id", "num_classes": 2}, "'id' is a Text; expected a ClassLabel"),
    ({"label_key": "of", "num_classes": 2}, "'of' is a FeaturesDict; expected a ClassLabel"),
    ({"label_key": "of/knd"}, "no feature 'of/knd'"),
    ({"label_key": "number/kind"}, "no feature 'number/kind'"),
    ({"image_key": "number"}, "'number' is a Scalar; expected an Image"),
    ({"image_key": "kinds"}, "'kinds' is a Sequence; expected an Image"),
    ({"label_key": "of/kind", "num_classes": 3}, "'of/kind' has 2 classes, num_classes is 3"),
])
def test_errors_of_labels(numbered, options, message):
  with pytest.raises(ValueError, match=message):
    open_source(**numbered, **options)


def test_datasets_in_a_bucket_are_not_read():
  with pytest.raises(ValueError, match="datasets are in 'gs://bucket', .*expected a folder"):
    open_source("tfds:numbered", data_dir="gs://bucket")


def test_a_list_of_labels_is_not_a_label(numbered):
  with pytest.raises(ValueError, match="example 0: 2 integers in feature 'kinds'; expected one"):
    open_source(**numbered, label_key="kinds").labels
