"""Small files and sources that the tests of this room share."""
import pathlib
import os

import cv2
import numpy as np
import pytest

from big_transfer.data import examples


@pytest.fixture
def make_source():
  """make_source(n, size, name): an in-memory source whose example i has every pixel i % 256."""
  def make(n=10, size=8, name="toy", classes=3):
    labels = np.arange(n) % classes
    images = lambda: np.broadcast_to(
        (np.arange(n) % 256).astype(np.uint8)[:, None, None, None], (n, size, size, 3)).copy()
    return examples.ArraySource({"name": name, "examples": n, "size": size}, labels, classes,
                                images)
  return make


@pytest.fixture
def folder(tmp_path):
  """A folder of two classes, 20 images each, of which the colour says the class."""
  for k, name in enumerate(("cat", "dog")):
    (tmp_path / "pets" / name).mkdir(parents=True)
    for i in range(20):
      image = np.zeros((10, 12, 3), np.uint8)
      image[..., k] = 200  # OpenCV writes BGR: cats are blue, dogs green
      cv2.imwrite(str(tmp_path / "pets" / name / f"{i:02d}.png"), image)
  return tmp_path / "pets"


@pytest.fixture(scope="session")
def tfds_dir():
  """Where prepared TFDS datasets are; skips the test where there are none."""
  beside = pathlib.Path(__file__).parents[3] / "shared/data/tfds"
  path = pathlib.Path(os.environ.get("TFDS_DATA_DIR", beside))
  if not (path / "cifar10/3.0.2").is_dir():
    pytest.skip(f"no cifar10 3.0.2 in {path}; set TFDS_DATA_DIR to run this")
  return str(path)
