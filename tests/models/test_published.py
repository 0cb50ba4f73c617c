"""Published `.npz` files, written here from random parameters in the dialects that there are."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import models
from big_transfer import trees
from big_transfer.models import published

SIZES = {
    "vit": dict(width=16, depth=11, heads=2, mlp_dim=8, patch=8, pool="tok",
                representation_size="auto"),
    "mixer": dict(width=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=8, patch=8)}


def _params(name):
  """Random parameters, so that no two arrays are alike (biases would all start at 0)."""
  shapes = jax.eval_shape(models.build(name, num_classes=3, **SIZES[name]).init, jax.random.key(0),
                          jnp.zeros((1, 16, 16, 3)))["params"]
  rng = np.random.default_rng(0)
  return {key: rng.normal(size=leaf.shape).astype(np.float32)
          for key, leaf in trees.flatten(shapes).items()}


def _as_vit_jax(name):
  """The names in the public vit_jax checkpoints, written out one by one rather than inverted."""
  if name == "pos_embedding":
    return "Transformer/posembed_input/pos_embedding"
  return name.replace("/LayerNorm_1/", "/LayerNorm_2/").replace(
      "/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/").replace(
          "/MlpBlock_0/", "/MlpBlock_3/")


def _same(found, expected):
  found = trees.flatten(found)
  assert list(found) == sorted(expected)
  for name, value in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_big_vision_files_are_our_parameters(tmp_path, family, prefix):
  params = _params(family)
  beside = {"opt/state/step": np.int64(3)} if prefix else {}  # what a whole state also holds
  np.savez(tmp_path / "a.npz", **{prefix + name: value for name, value in params.items()}, **beside)
  _same(published.load(tmp_path / "a.npz"), params)


def test_vit_jax_numbers_a_blocks_layers_otherwise(tmp_path):
  params = _params("vit")
  theirs = {_as_vit_jax(name): value for name, value in params.items()}
  assert not any("LayerNorm_1" in name or "MlpBlock_0" in name for name in theirs)
  np.savez(tmp_path / "a.npz", **theirs)
  _same(published.load(tmp_path / "a.npz"), params)


def test_half_precision_is_read_as_float32(tmp_path):
  np.savez(tmp_path / "a.npz", **{"head/kernel": np.ones((2, 3), np.float16)})
  assert published.load(tmp_path / "a.npz")["head"]["kernel"].dtype == np.float32


class _Trap:
  """Fails the test if it is ever unpickled."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was executed",)


def test_bad_files(tmp_path):
  path = tmp_path / "a.npz"
  with pytest.raises(ValueError, match="no file .*expected an .npz"):
    published.load(path)
  path.write_text("PK, but not really")
  with pytest.raises(ValueError, match="is no .npz"):
    published.load(path)
  np.savez(path, **{"head/kernel": np.ones(2, np.int32)})
  with pytest.raises(ValueError, match="'head/kernel' is of type int32"):
    published.load(path)
  np.savez(path, **{"head/kernel": np.array([_Trap()], object)})
  with pytest.raises(ValueError, match="'head/kernel'.*numbers"):
    published.load(path)
  both = {f"Transformer/encoderblock_0/{name}/scale": np.ones(2) for name in ("LayerNorm_1",
                                                                             "LayerNorm_2")}
  np.savez(path, **both)
  with pytest.raises(ValueError, match="two parameters called"):
    published.load(path)


def test_a_file_cut_off_or_altered(tmp_path):
  path = tmp_path / "a.npz"
  np.savez(path, **{"head/kernel": np.random.default_rng(0).normal(size=(64, 64))})
  data = bytearray(path.read_bytes())
  data[5000] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="damaged"):
    published.load(path)
  path.write_bytes(data[:-40])
  with pytest.raises(ValueError, match="cut off"):
    published.load(path)
