"""What is exported, loaded by `transformers` itself: its ViT and BiT give the same logits.

The weights are random, nothing is downloaded. Tests are skipped where torch and transformers are
not installed (the extra "interop").
"""
import numpy as np
import pytest

from big_transfer.models import adapting
from big_transfer.models import published
from big_transfer.models import transformers_folder
from tests.models import examples

pytestmark = pytest.mark.slow  # importing torch and transformers alone takes five seconds


def _installed(name):
  return pytest.importorskip(name, reason="the extra \"interop\" is not installed")


def _logits(folder, images, **config):
  torch, transformers = _installed("torch"), _installed("transformers")
  model, info = transformers.AutoModelForImageClassification.from_pretrained(
      folder, output_loading_info=True, **config)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  with torch.no_grad():
    return model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()


@pytest.mark.parametrize("kind, size", [("tok", 32), ("resnet", 64)])
def test_transformers_computes_our_logits(tmp_path, kind, size):
  _installed("transformers")
  model, params = examples.build(kind), examples.params(kind)
  # By way of the public file, so that its conversion is in the chain as well.
  published.save(tmp_path / "a.npz", params)
  saved = transformers_folder.save(tmp_path / "folder", published.load(tmp_path / "a.npz"),
                                   model=model, image_size=size)
  ours = published.outputs(model, params, examples.images(size))["logits"]
  theirs = _logits(tmp_path / "folder", examples.images(size))
  np.testing.assert_allclose(theirs, ours, atol=1e-4)
  assert np.abs(ours).max() > 1 and saved.difference < 1e-5
  if kind == "tok":
    # The exact GELU, which transformers and timm take if not told, is another function.
    apart = np.abs(_logits(tmp_path / "folder", examples.images(), hidden_act="gelu") - ours).max()
    assert 1e-4 < apart < 1e-1


def test_a_wrong_conversion_is_told_and_not_kept(tmp_path, monkeypatch):
  _installed("transformers")
  original = transformers_folder.tensors

  def swapped(params, model_type):
    found = original(params, model_type)
    one, two = (f"vit.encoder.layer.1.attention.attention.{name}.weight"
                for name in ("query", "value"))
    return {**found, one: found[two], two: found[one]}

  monkeypatch.setattr(transformers_folder, "tensors", swapped)
  with pytest.raises(ValueError, match="was not written: the logits that transformers computes"):
    transformers_folder.save(tmp_path / "folder", examples.params("tok"),
                             model=examples.build("tok"), image_size=32)
  assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("grid", [(12, 20), (7, 7), (3, 5)])
def test_the_bicubic_resampling_is_torchs(grid):
  torch = _installed("torch")
  positions = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 8)).astype(np.float32)
  ours = adapting.resized_positions(positions, 1 + grid[0] * grid[1], resample="bicubic",
                                    class_token=True, grid=grid)
  square = torch.from_numpy(positions[:, 1:].reshape(1, 14, 14, 8).transpose(0, 3, 1, 2).copy())
  theirs = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=True)
  theirs = theirs.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 8)
  np.testing.assert_allclose(ours[:, 1:], theirs, atol=1e-5)
  np.testing.assert_array_equal(ours[:, :1], positions[:, :1])
