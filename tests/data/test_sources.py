"""Sources: what they return, and what they say when something is wrong."""
import json
import os
import pathlib

import cv2
import numpy as np
import pytest

from big_transfer.data import examples, sources
from big_transfer.data.sources import open_source


def check(source, size):
  """What the protocol promises, of any source."""
  assert isinstance(source, examples.Source)
  assert json.loads(json.dumps(source.spec)) == source.spec
  assert source.labels.dtype == np.int32 and source.labels.shape == (len(source),)
  assert source.class_names is None or len(source.class_names) == source.num_classes
  first = source[0]
  assert first["image"].dtype == np.uint8 and first["image"].shape == size
  assert first["label"] == source.labels[0]
  for i, image in zip((2, 0), source.images_at([2, 0])):
    np.testing.assert_array_equal(image, source[i]["image"])


def test_builtin_sources_keep_the_protocol():
  check(open_source("fractals", classes=2, per_class=3), (32, 32, 3))
  check(open_source("sprites", "test", examples=12, size=24), (24, 24, 3))
  check(open_source("digits"), (8, 8, 3))


@pytest.mark.parametrize("name, options, message", [
    ("fractal", {}, "unknown source 'fractal': did you mean 'fractals'"),
    ("tdfs:cifar10", {}, "unknown source 'tdfs:cifar10'"),
    ("folder", {}, "say where it is, folder:PLACE"),
    ("fractals", {"clases": 3}, "no option 'clases': did you mean 'classes'"),
    ("fractals", {"split": "tests"}, "no split 'tests': did you mean 'test'"),
    ("fractals", {"classes": 0}, "classes is 0; expected at least 1"),
    ("sprites", {"label": "number"}, "no label 'number'"),
    ("sprites", {"examples": -1}, "examples is -1"),
    ("digits", {"split": "validation"}, "no split 'validation'"),
    ("digits", {"test_fraction": 1.5}, "test_fraction is 1.5"),
    ("folder:/no/such/folder", {}, "found nothing; correct the path"),
    ("npz:/no/such.npz", {}, "no such file"),
])
def test_errors_name_the_thing_and_the_fix(name, options, message):
  with pytest.raises(ValueError, match=message.replace("(", r"\(")):
    open_source(name, **options)


def test_a_path_alone_is_told_how_to_be_read(folder, tmp_path):
  with pytest.raises(ValueError, match=f"say what it is: folder:{folder}"):
    open_source(str(folder))
  (tmp_path / "a.npz").write_text("")
  with pytest.raises(ValueError, match=f"say what it is: npz:{tmp_path}/a.npz"):
    open_source(f"{tmp_path}/a.npz")


def test_every_source_is_offered():
  with pytest.raises(ValueError) as error:
    open_source("nonsense")
  for name in (*sources.BUILTIN, *sources.LOCATED):
    assert name in str(error.value)


# --- folder


def test_folder_classes_colours_and_splits(folder):
  sides = {split: open_source(f"folder:{folder}", split) for split in ("train", "test", "all")}
  check(sides["train"], (10, 12, 3))
  assert sides["all"].class_names == ("cat", "dog")
  assert len(sides["train"]) + len(sides["test"]) == len(sides["all"]) == 40
  assert 0 < len(sides["test"]) < 20
  for i in range(40):
    example = sides["all"][i]
    assert example["image"][0, 0].tolist() == [[0, 0, 200], [0, 200, 0]][example["label"]]


def test_a_new_file_moves_no_other_to_the_other_side(folder):
  before = open_source(f"folder:{folder}", "test")
  cv2.imwrite(str(folder / "cat" / "000_new.png"), np.zeros((10, 12, 3), np.uint8))
  after = open_source(f"folder:{folder}", "test")
  assert not set(before._files) - set(after._files)
  assert before.spec != open_source(f"folder:{folder}", "all").spec


def test_a_changed_file_changes_the_spec(folder):
  before = open_source(f"folder:{folder}", "all").spec
  assert before == open_source(f"folder:{folder}", "all").spec
  cv2.imwrite(str(folder / "dog" / "00.png"), np.full((10, 12, 3), 7, np.uint8))
  assert before != open_source(f"folder:{folder}", "all").spec


def test_folder_with_a_split_of_its_own(folder, tmp_path):
  (tmp_path / "data").mkdir()
  folder.rename(tmp_path / "data" / "train")
  assert len(open_source(f"folder:{tmp_path}/data", "train")) == 40
  with pytest.raises(ValueError, match="no split 'test'; found train"):
    open_source(f"folder:{tmp_path}/data", "test")


def test_a_folder_of_tars_is_told_how_it_is_read(tmp_path):
  (tmp_path / "n01440764.tar").write_text("")
  with pytest.raises(ValueError, match=f"one a class is read by tars:{tmp_path}"):
    open_source(f"folder:{tmp_path}")


def test_folders_in_classes_count_and_hidden_files_do_not(folder):
  before = open_source(f"folder:{folder}", "all")
  (folder / "cat" / "more" / "again").mkdir(parents=True)
  for name in ("more/again/x.PNG", ".hidden.png", "notes.txt", "00-b.png"):
    (folder / "cat" / name).write_bytes((folder / "dog" / "00.png").read_bytes())
  after = open_source(f"folder:{folder}", "all")
  assert set(after._files) - set(before._files) == {"cat/more/again/x.PNG", "cat/00-b.png"}
  assert after._files == sorted(after._files, key=lambda path: path.split("/"))


def test_missing_places_are_missing_and_not_broken(folder):
  for name in ("folder:/no/such", "npz:/no/such.npz", "tars:/no/such"):
    with pytest.raises(examples.MissingError):
      open_source(name)
  with pytest.raises(ValueError) as broken:
    open_source(f"folder:{folder}/cat/00.png")
  assert not isinstance(broken.value, examples.MissingError)


def test_places_that_may_not_be_read_are_broken(tmp_path, monkeypatch):
  """Planted, since root, as whom containers run tests, may read everything."""
  np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1])

  def refuse(path, *arguments, **options):
    raise PermissionError(13, "Permission denied", str(path))
  for name in ("iterdir", "open"):
    monkeypatch.setattr(pathlib.Path, name, refuse)
  monkeypatch.setattr(os, "scandir", refuse)
  for kind, path in (("folder", tmp_path), ("tars", tmp_path), ("npz", tmp_path / "a.npz")):
    with pytest.raises(ValueError, match=f"source '{kind}:.*can't be read: .*denied.*{path}"
                       ) as broken:
      open_source(f"{kind}:{path}")
    assert not isinstance(broken.value, examples.MissingError)


def test_a_class_that_cannot_be_listed_is_not_taken_for_empty(folder, monkeypatch):
  listed = os.scandir

  def refuse(path):
    if str(path).endswith("cat"):
      raise PermissionError(13, "Permission denied", str(path))
    return listed(path)
  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(ValueError, match="can't be read: .*denied.*cat"):
    open_source(f"folder:{folder}")


def test_empty_folder_and_unknown_split(folder, tmp_path):
  (tmp_path / "empty" / "cat").mkdir(parents=True)
  with pytest.raises(ValueError, match="no images; expected CLASS/IMAGE"):
    open_source(f"folder:{tmp_path}/empty")
  with pytest.raises(ValueError, match="no split 'tset': did you mean 'test'"):
    open_source(f"folder:{folder}", "tset")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.97])
def test_a_corrupt_image_names_file_and_index(tmp_path, suffix, keep):
  (tmp_path / "d" / "a").mkdir(parents=True)
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
  for i in range(2):
    cv2.imwrite(str(tmp_path / "d" / "a" / f"{i}{suffix}"), noise)
  file = tmp_path / "d" / "a" / f"1{suffix}"
  data = file.read_bytes()
  file.write_bytes(data[:keep if isinstance(keep, int) else int(keep * len(data))])
  source = open_source(f"folder:{tmp_path}/d", "all")
  source[0]
  with pytest.raises(ValueError, match=rf"a/1{suffix} \(example 1\): corrupt image"):
    source[1]


def test_pixels_are_taken_as_they_are_stored():
  """An EXIF segment that says "turn me by 90 degrees" (orientation, tag 0x112, is 6)."""
  jpeg = cv2.imencode(".jpg", np.zeros((8, 16, 3), np.uint8))[1].tobytes()
  exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
  turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
  assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (16, 8, 3)
  assert examples.decode_image(turned, "here").shape == (8, 16, 3)


def test_grey_and_transparent_images_get_three_channels(tmp_path):
  (tmp_path / "d" / "a").mkdir(parents=True)
  cv2.imwrite(str(tmp_path / "d" / "a" / "0.png"), np.full((5, 5), 9, np.uint8))
  cv2.imwrite(str(tmp_path / "d" / "a" / "1.png"), np.full((5, 5, 4), 9, np.uint8))
  source = open_source(f"folder:{tmp_path}/d", "all")
  for i in range(2):
    np.testing.assert_array_equal(source[i]["image"], np.full((5, 5, 3), 9))


# --- npz


def write(path, **arrays):
  np.savez(path, **arrays)
  return f"npz:{path}"


IMAGES = np.arange(30 * 4 * 4, dtype=np.uint16).reshape(30, 4, 4).astype(np.uint8)
LABELS = np.arange(30) % 5


def test_npz_with_splits(tmp_path):
  name = write(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:5],
               y_test=LABELS[:5])
  check(open_source(name), (4, 4, 3))
  assert len(open_source(name, "test")) == 5
  np.testing.assert_array_equal(open_source(name)[7]["image"], np.stack([IMAGES[7]] * 3, -1))


def test_npz_without_splits_is_split_once(tmp_path):
  name = write(tmp_path / "a.npz", images=np.stack([IMAGES] * 3, -1), labels=LABELS)
  train, test = open_source(name), open_source(name, "test")
  assert train.num_classes == test.num_classes == 5
  both = np.concatenate([train.images[:, 0, 0, 0], test.images[:, 0, 0, 0]])
  np.testing.assert_array_equal(np.sort(both), np.sort(IMAGES[:, 0, 0]))
  assert len(open_source(name, "all")) == 30 and 0 < len(test) < 15
  named = open_source(name, "test", image_key="images", label_key="labels")
  np.testing.assert_array_equal(named.images, test.images)
  with pytest.raises(ValueError, match="no split 'image'"):
    open_source(name, "image")


@pytest.mark.parametrize("arrays, options, message", [
    ({"images": IMAGES.astype(np.float32), "labels": LABELS}, {}, "are float32; expected uint8"),
    ({"images": IMAGES[:, :, 0], "labels": LABELS}, {}, r"have shape \(30, 4\)"),
    ({"images": IMAGES, "labels": LABELS / 2}, {}, "labels 'labels' are float64"),
    ({"images": IMAGES, "labels": LABELS[:9]}, {}, "30 images but 9 labels"),
    ({"images": IMAGES, "labels": LABELS - 1}, {}, "label -1 of example 0 is out of range"),
    ({"images": IMAGES, "labels": LABELS}, {"num_classes": 3}, r"label 3 .*expected 0 to 2"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, {}, "at least one example"),
    ({"pictures": IMAGES, "labels": LABELS}, {}, "found pictures, labels. Name it with the option "
                                                 "image_key"),
    ({"images": IMAGES, "labels": np.array([{}] * 30)}, {}, "not Python objects"),
])
def test_npz_errors(tmp_path, arrays, options, message):
  name = write(tmp_path / "a.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    open_source(name, "all", **options).images


def test_a_file_that_is_no_npz(tmp_path):
  (tmp_path / "a.npz").write_text("not a zip file")
  with pytest.raises(ValueError, match="expected an .npz file"):
    open_source(f"npz:{tmp_path}/a.npz")
  np.save(tmp_path / "b.npy", IMAGES)
  with pytest.raises(ValueError, match="got a single .npy array"):
    open_source(f"npz:{tmp_path}/b.npy")


def test_a_truncated_npz(tmp_path):
  name = write(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
  data = (tmp_path / "a.npz").read_bytes()
  (tmp_path / "a.npz").write_bytes(data[:len(data) // 2])
  with pytest.raises(ValueError, match="expected an .npz file"):
    open_source(name)


# --- digits


def test_digits_split_is_stratified_and_complete():
  train, test, every = (open_source("digits", s) for s in ("train", "test", "all"))
  assert (len(train), len(test), len(every)) == (1198, 599, 1797)
  shares = np.bincount(test.labels) / np.bincount(every.labels)
  assert np.abs(shares - 1 / 3).max() < 0.01
  flat = lambda s: {i.tobytes() for i in s.images}
  assert not flat(train) & flat(test)
  assert every.images.max() == 255 and every.images.min() == 0
