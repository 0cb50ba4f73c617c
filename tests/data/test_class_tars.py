"""Tars and folders, one a class: the same data from either, and what is said when one is broken."""
import concurrent.futures
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types

import cv2
import numpy as np
import pytest

from big_transfer.data import class_index
from big_transfer.data import class_tars
from big_transfer.data import examples
from big_transfer.data import pipeline
from big_transfer.data import tasks
from big_transfer.data.sources import open_source

CLASSES, PER_CLASS = 50, 12


def picture(k, i):
  """A JPEG that tells its class and number: neither is lost in so flat an image."""
  image = np.full((9, 11, 3), (4 * k + 20, 15 * i + 30, 128), np.uint8)
  return cv2.imencode(".jpg", image)[1].tobytes()


def pack(path, named):
  """Writes a tar of {name: bytes}, in that order."""
  with tarfile.open(path, "w") as tar:
    for name, data in named.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def wnid(k):
  return f"n{k:08d}"


def images_of(k):
  return {f"{wnid(k)}_{i}.JPEG": picture(k, i) for i in range(PER_CLASS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A folder with the same images as tars/ and as folders/; not to be changed."""
  root = tmp_path_factory.mktemp("i21k")
  for k in range(CLASSES):
    named = images_of(k)
    (root / "folders" / wnid(k)).mkdir(parents=True)
    for name, data in named.items():
      (root / "folders" / wnid(k) / name).write_bytes(data)
    (root / "tars").mkdir(exist_ok=True)
    # Other orders and prefixes in the tars, with what is no image among them.
    prefix = ("", "./", f"{wnid(k)}/")[k % 3]
    shuffled = sorted(named, key=lambda name: hashlib.md5(name.encode()).digest())
    pack(root / "tars" / f"{wnid(k)}.tar",
         {"readme.txt": b"x", "._hidden.JPEG": b"x", **{prefix + n: named[n] for n in shuffled}})
  (root / "tars" / "words.txt").write_text("not a class")
  return root


@pytest.fixture
def few(tmp_path):
  """Three tars, to be damaged."""
  (tmp_path / "few").mkdir()
  for k in range(3):
    pack(tmp_path / "few" / f"{wnid(k)}.tar", images_of(k))
  return tmp_path / "few"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "big_transfer"


def opened(path, split="all", **options):
  return open_source(f"imagenet21k:{path}", split, **{"release": "toy", **options})


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_tars_and_folders_are_the_same(made, split):
  tars, folders = (opened(made / kind, split, test_fraction=0.2) for kind in ("tars", "folders"))
  plain = open_source(f"folder:{made}/folders", split, test_fraction=0.2)
  assert isinstance(tars, examples.Source) and tars.num_classes == CLASSES
  assert tars.class_names == folders.class_names == plain.class_names
  np.testing.assert_array_equal(tars.labels, folders.labels)
  np.testing.assert_array_equal(tars.labels, plain.labels)
  assert tars.labels.dtype == np.int32
  for i in range(len(tars)):
    image = tars[i]["image"]
    np.testing.assert_array_equal(image, folders[i]["image"])
    np.testing.assert_array_equal(image, plain[i]["image"])
  assert tars.spec["contents"] == folders.spec["contents"]
  assert json.loads(json.dumps(tars.spec)) == tars.spec
  assert tars.spec["release"] == "toy"


def test_an_image_is_its_class_s(made):
  source = opened(made / "tars")
  for i in range(0, len(source), 7):
    k, j = divmod(i, PER_CLASS)
    # Sorted by name: 0, 1, 10, 11, 2, ...
    number = sorted(range(PER_CLASS), key=str)[j]
    expected = np.array([128, 15 * number + 30, 4 * k + 20])  # RGB
    assert source.labels[i] == k
    assert np.abs(source[i]["image"].mean((0, 1)) - expected).max() < 4  # JPEG's rounding


def test_the_split_is_the_stated_hash(made):
  fraction = 0.1
  train, test, every = (opened(made / "tars", s, test_fraction=fraction)
                        for s in ("train", "test", "all"))
  assert len(train) + len(test) == len(every) == CLASSES * PER_CLASS
  below = 0
  for k in range(CLASSES):
    for name in images_of(k):
      digest = hashlib.sha256(f"{wnid(k)}/{name}".encode()).digest()
      below += int.from_bytes(digest[:8], "big") < fraction * 2**64
  assert len(test) == below > 0
  # 600 draws at .1: three standard deviations are 22, and the hash is fixed, so this can't flicker.
  assert abs(below - 60) < 22


def test_a_new_file_moves_no_other(few):
  names = lambda split: {(source.labels[i], bytes(source[i]["image"])) for source in
                         [opened(few, split, test_fraction=0.3)] for i in range(len(source))}
  before = {split: names(split) for split in ("train", "test")}
  new = {f"{wnid(1)}_new{i}.JPEG": picture(1, i + 0.5) for i in range(5)}
  pack(few / f"{wnid(1)}.tar", {**new, **images_of(1)})
  for split in before:
    assert before[split] <= names(split)


def test_a_list_of_classes_is_the_labels_order(made, tmp_path):
  chosen = [wnid(k) for k in (7, 3, 41)]
  (tmp_path / "list.txt").write_text("".join(f"{c} a word, another\n\n" for c in chosen))
  source = opened(made / "tars", classes=str(tmp_path / "list.txt"))
  assert source.class_names == tuple(chosen) and len(source) == 3 * PER_CLASS
  whole = opened(made / "tars")  # from a cache that holds three of its classes
  for place, k in enumerate((7, 3, 41)):
    np.testing.assert_array_equal(source[place * PER_CLASS]["image"], whole[k * PER_CLASS]["image"])
  assert source.spec["contents"] != whole.spec["contents"]
  again = opened(made / "tars", classes=str(tmp_path / "list.txt"))
  assert again.spec == source.spec


@pytest.mark.parametrize("text, message", [
    ("n00000001\nn99999999\nn88888888", "2 of the 3 classes .* no tar or folder there: n99999999"),
    ("n00000001\nn00000001", "has 'n00000001' 2 times"),
    ("\n\n", "is empty"),
    (None, "can't be read"),
])
def test_a_wrong_list_of_classes(few, tmp_path, text, message):
  if text is not None:
    (tmp_path / "list.txt").write_text(text)
  with pytest.raises(ValueError, match=message):
    opened(few, classes=str(tmp_path / "list.txt"))


# --- the index


def scans(monkeypatch):
  """The classes whose tars are read from here on."""
  seen = []
  scan = class_index._scan
  monkeypatch.setattr(class_index, "_scan", lambda place: seen.append(place.name) or scan(place))
  return seen


def test_only_what_changed_is_read_again(few, monkeypatch):
  seen = scans(monkeypatch)
  first = opened(few)
  assert sorted(seen) == [wnid(0), wnid(1), wnid(2)]
  assert opened(few, "test", test_fraction=0.3).num_classes == 3 and len(seen) == 3
  pack(few / f"{wnid(1)}.tar", {"new.JPEG": picture(1, 3)})
  second = opened(few)
  assert seen[3:] == [wnid(1)] and len(second) == len(first) - PER_CLASS + 1
  assert second.spec["contents"] != first.spec["contents"]
  assert np.bincount(second.labels).tolist() == [PER_CLASS, 1, PER_CLASS]
  np.testing.assert_array_equal(second[PER_CLASS + 1]["image"], first[2 * PER_CLASS]["image"])


def test_a_folder_s_change_is_noticed(made, tmp_path):
  shutil.copytree(made / "folders" / wnid(0), tmp_path / "some" / wnid(0))
  assert len(opened(tmp_path / "some")) == PER_CLASS
  (tmp_path / "some" / wnid(0) / "new.png").write_bytes(picture(0, 0))
  os.utime(tmp_path / "some" / wnid(0), ns=(1, 1))  # clocks of some disks tick slowly
  assert len(opened(tmp_path / "some")) == PER_CLASS + 1


def test_broken_tars_are_named_all_and_the_others_kept(few, monkeypatch):
  good = (few / f"{wnid(0)}.tar").read_bytes()
  for k, keep in ((0, 512 + 100), (2, 3 * 1024 + 512)):
    path = few / f"{wnid(k)}.tar"
    path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=rf"2 of the 3 classes .*{wnid(0)}.tar: truncated.*"
                                       rf"{wnid(2)}.tar: truncated.*option classes"):
    opened(few)
  (few / f"{wnid(0)}.tar").write_bytes(good)
  (few / f"{wnid(2)}.tar").unlink()
  seen = scans(monkeypatch)
  assert opened(few).num_classes == 2
  assert seen == [wnid(0)]


@pytest.mark.parametrize("cut", ["in an image", "after an image", "in a header", "everything"])
def test_no_cut_goes_unnoticed(few, cut):
  path = few / f"{wnid(1)}.tar"
  with tarfile.open(path) as tar:
    third = tar.getmembers()[3]
  keep = {"in an image": third.offset_data + 100, "after an image": third.offset,
          "in a header": third.offset + 99, "everything": 0}[cut]
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=f"{path.name}: truncated"):
    opened(few)


def test_a_damaged_header_is_not_taken_for_the_end(few):
  path = few / f"{wnid(1)}.tar"
  with tarfile.open(path) as tar:
    third = tar.getmembers()[3]
  data = bytearray(path.read_bytes())
  data[third.offset:third.offset + 200] = bytes(range(200))
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f"{path.name}: truncated or damaged: no end-of-archive"):
    opened(few)


@pytest.mark.parametrize("named, message", [
    ({}, "no images"),
    ({"a.txt": b"x"}, "no images"),
    ({"a.JPEG": b"1", "./a.JPEG": b"2"}, "'a.JPEG' is in it twice"),
])
def test_tars_of_nothing(few, named, message):
  pack(few / f"{wnid(1)}.tar", named)
  with pytest.raises(ValueError, match=message):
    opened(few)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_tar_are_no_images(few, kind):
  path = few / f"{wnid(1)}.tar"
  link = tarfile.TarInfo("again.JPEG")
  link.type, link.linkname = kind, f"{wnid(1)}_0.JPEG"
  with tarfile.open(path, "a") as tar:
    tar.addfile(link)
  with pytest.raises(ValueError, match="'again.JPEG' in it is a link, .*--hard-dereference"):
    opened(few)


def test_no_class_is_left_out_silently(few, tmp_path):
  (few / f"{wnid(1)}.tar").rename(few / f"{wnid(1)}.TAR")
  assert opened(few).class_names == tuple(map(wnid, range(3)))
  (few / ".hidden").symlink_to(tmp_path / "nothing")
  assert opened(few).num_classes == 3
  for name in (f"{wnid(3)}.tar", wnid(3)):
    (few / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"'{name}' is a link to .*nothing', where nothing is"):
      opened(few)
    (few / name).unlink()


def test_a_compressed_tar_is_told(few):
  path = few / f"{wnid(1)}.tar"
  path.write_bytes(gzip.compress(path.read_bytes()))
  with pytest.raises(ValueError, match="no uncompressed tar"):
    opened(few)


def test_a_kill_while_the_index_is_written_leaves_nothing_half(few, cache):
  expected = opened(few).spec
  shutil.rmtree(cache)
  code = ("import os, signal, sys\n"
          "from big_transfer.data import class_tars\n"
          "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
          "class_tars.imagenet21k(sys.argv[1], release='toy')")
  killed = subprocess.run([sys.executable, "-c", code, str(few)],
                          cwd=pathlib.Path(__file__).parents[2])
  assert killed.returncode == -signal.SIGKILL
  assert not list(cache.glob("class_index*"))  # but a file that is never read
  assert opened(few).spec == expected
  assert len(list(cache.glob("class_index*"))) == 1


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0 and then nothing"])
def test_a_cache_that_is_no_cache_is_built_again(few, cache, content):
  expected = opened(few)
  file, = cache.glob("class_index*")
  file.write_bytes(content)
  again = opened(few)
  assert again.spec == expected.spec
  np.testing.assert_array_equal(again[5]["image"], expected[5]["image"])


def test_a_cut_cache_is_built_again(few, cache, monkeypatch):
  opened(few)
  file, = cache.glob("class_index*")
  file.write_bytes(file.read_bytes()[:-100])
  seen = scans(monkeypatch)
  assert len(opened(few)) == 3 * PER_CLASS and len(seen) == 3


def test_a_cache_that_cannot_be_written_is_done_without(few, tmp_path, monkeypatch, capsys):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert len(opened(few)) == 3 * PER_CLASS
  assert "set XDG_CACHE_HOME" in capsys.readouterr().err


def test_long_work_tells_how_far_it_is(few, monkeypatch, capsys):
  opened(few)
  assert not capsys.readouterr().err
  minutes = itertools.count(0, 60)
  monkeypatch.setattr(class_index, "time",
                      types.SimpleNamespace(monotonic=lambda: next(minutes), time=time.time))
  for k in range(3):
    os.utime(few / f"{wnid(k)}.tar", ns=(k, k))
  opened(few)
  assert f"indexing {few}: 3 of 3 classes, 36 images, " in capsys.readouterr().err


# --- reading


def test_few_tars_are_open_and_threads_do_not_mind(made, monkeypatch):
  source = opened(made / "tars")
  expected = [source[i]["image"] for i in range(len(source))]
  class_tars._tar.cache_clear()
  counts = []
  small = class_tars.functools.lru_cache(maxsize=3)(class_tars._Tar)
  monkeypatch.setattr(class_tars, "_tar", small)
  open_tars = lambda: sum(link.endswith(".tar") for link in _links())
  def read(seed):
    for i in np.random.default_rng(seed).permutation(len(source)):
      if not np.array_equal(source[i]["image"], expected[i]):
        return f"example {i} is another's"
      if i % 50 == 0:
        counts.append(open_tars())
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(read, range(8))) == [None] * 8
  assert counts and max(counts) <= 3 + 8  # the cache's, and one that each thread is reading from
  small.cache_clear()
  assert open_tars() == 0


def _links():
  for number in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError):  # closed in the meantime
      yield os.readlink(f"/proc/self/fd/{number}")


def test_a_corrupt_image_names_tar_and_file(few):
  named = images_of(1)
  name = f"{wnid(1)}_5.JPEG"
  pack(few / f"{wnid(1)}.tar", {**named, name: named[name][:60]})
  source = opened(few)
  bad = PER_CLASS + sorted(named).index(name)
  source[bad - 1]
  with pytest.raises(ValueError, match=rf"{wnid(1)}.tar:{name} \(example {bad}\): corrupt image"):
    source.images_at([bad])


def test_a_tar_that_changes_under_a_reader_is_told(few):
  source = opened(few)
  pack(few / f"{wnid(2)}.tar", {"new.JPEG": picture(1, 3)})
  with pytest.raises(ValueError, match="changed since its dataset was opened"):
    source[2 * PER_CLASS]
  (few / f"{wnid(1)}.tar").unlink()
  with pytest.raises(ValueError, match="can't be opened any more"):
    source[PER_CLASS]


# --- places


def test_it_is_a_task_like_any(made):
  task = tasks.resolve({"name": "i21k", "source": f"imagenet21k:{made}/tars", "test": "test",
                        "options": {"release": "toy", "test_fraction": 0.2}})
  train, test = (pipeline.prepare(source, 8) for source in task.open_both())
  batch = next(pipeline.train_batches(train, batch_size=16, seed=0))
  assert batch["image"].shape == (16, 8, 8, 3)
  # The class is in the blue channel, four grey levels a class.
  np.testing.assert_allclose(batch["image"][:, 4, 4, 2], 4 * batch["label"] + 20, atol=4)
  assert len(train) + len(test) == CLASSES * PER_CLASS


def test_places_that_are_wrong(few, tmp_path):
  with pytest.raises(examples.MissingError, match="no such folder; .*image-net.org"):
    opened(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="found a file. Unpack it once"):
    opened(few / f"{wnid(0)}.tar")
  (tmp_path / "packed").mkdir()
  with pytest.raises(examples.MissingError, match="no .tar and no folder in it"):
    opened(tmp_path / "packed")
  (tmp_path / "packed" / "winter21_whole.tar.gz").write_text("")
  with pytest.raises(ValueError, match="found 'winter21_whole.tar.gz' but no .* Unpack it once"):
    opened(tmp_path / "packed")
  with pytest.raises(ValueError, match=r"holds a tar, .*name it as the path"):
    open_source(f"tars:{tmp_path}", classes=None)
  (few / wnid(0)).mkdir()
  with pytest.raises(ValueError, match=f"class '{wnid(0)}' is there as a tar and as a folder"):
    opened(few)


@pytest.mark.parametrize("options, message", [
    ({"release": None}, "release is None; expected the name of the edition"),
    ({"split": "validation"}, "no split 'validation'"),
    ({"test_fraction": 1.5}, "test_fraction is 1.5"),
    ({"split": "test", "test_fraction": 1e-6}, "none of 36 images is in split 'test'"),
    ({"clases": "x"}, "no option 'clases': did you mean 'classes'"),
])
def test_options_that_are_wrong(few, options, message):
  with pytest.raises(ValueError, match=message):
    opened(few, **options)


def test_classes_that_are_no_wnids_are_read_as_tars(few):
  (few / f"{wnid(0)}.tar").rename(few / "cat.tar")
  with pytest.raises(ValueError, match="found a class 'cat'; expected wnids .* read it as tars:"):
    opened(few)
  assert open_source(f"tars:{few}", "all").class_names[0] == "cat"


def test_a_tree_too_deep_is_told(tmp_path):
  (tmp_path / "d" / "cat" / "inner").mkdir(parents=True)
  with pytest.raises(ValueError, match="holds a folder, 'inner'.*deeper trees are read by folder"):
    open_source(f"tars:{tmp_path}/d")
