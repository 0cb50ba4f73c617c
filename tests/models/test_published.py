"""Published `.npz` files: read, described, written back; what is in them, and who else says so."""
import hashlib
import importlib.util
import re

import fsspec
import ml_dtypes
import numpy as np
import pytest

from big_transfer import trees
from big_transfer.models import layouts
from big_transfer.models import published
from tests.models import by_hand
from tests.models import examples

BIG_VISION = dict(block=("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0"),
                  positions="pos_embedding")
# Who computes the logits of a file, after the prefix is taken off its names.
FILES = {("tok", "vit_jax"): (by_hand.vit, "", {}), ("gap", "vit_jax"): (by_hand.vit, "", {}),
         ("tok", "big_vision"): (by_hand.vit, "params/", BIG_VISION),
         ("gap", "big_vision"): (by_hand.vit, "params/", BIG_VISION),
         ("mixer", "vit_jax"): (by_hand.mixer, "", {}),
         ("mixer", "big_vision"): (by_hand.mixer, "params/", {}),
         ("resnet", "bit"): (by_hand.bit, "resnet/", {"prefix": ""})}
BOTH = [*FILES, ("resnet", "big_vision")]


def _arrays(path):
  with np.load(path) as file:
    return dict(file)


def _same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("kind, layout", FILES)
def test_numpy_from_the_papers_gives_the_files_logits(tmp_path, kind, layout):
  params = examples.params(kind)
  published.save(tmp_path / "a.npz", params, layout)
  forward, prefix, options = FILES[kind, layout]
  arrays = _arrays(tmp_path / "a.npz")
  assert all(name.startswith(prefix) for name in arrays)
  theirs = forward({name.removeprefix(prefix): value for name, value in arrays.items()},
                   examples.images(), **options)
  ours = published.outputs(examples.build(kind), params, examples.images())["logits"]
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert np.abs(theirs).max() > 1  # so that 1e-4 says something


@pytest.mark.parametrize("kind, layout", BOTH)
def test_a_file_read_and_written_is_the_file(tmp_path, kind, layout):
  first = published.save(tmp_path / "a.npz", examples.params(kind), layout)
  params = published.load(tmp_path / "a.npz")
  second = published.save(tmp_path / "b.npz", params, layout)
  _same(_arrays(tmp_path / "b.npz"), _arrays(tmp_path / "a.npz"))
  assert first == second and first.layout == layout and first.difference == 0
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
  assert first.sha256 == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
  assert published.read(tmp_path / "a.npz")[1] == published.digest(tmp_path / "a.npz"
                                                                   ) == first.sha256
  if (kind, layout) != ("tok", "big_vision"):
    _same(trees.flatten(params), trees.flatten(examples.params(kind)))


def test_big_vision_adds_the_class_tokens_position_to_the_token(tmp_path):
  params = examples.params("tok")
  published.save(tmp_path / "a.npz", params, "big_vision")
  arrays = _arrays(tmp_path / "a.npz")
  assert arrays["params/pos_embedding"].shape == (1, 16, 32)
  joint = params["cls"] + params["pos_embedding"][:, :1]
  np.testing.assert_array_equal(arrays["params/cls"], joint)
  found = published.load(tmp_path / "a.npz")
  assert found["pos_embedding"].shape == (1, 17, 32) and not found["pos_embedding"][:, 0].any()
  ours, theirs = (published.outputs(examples.build("tok"), p, examples.images())
                  for p in (params, found))
  for name, value in ours.items():
    np.testing.assert_array_equal(theirs[name], value, err_msg=name)


# A few names and shapes of each public layout, as the owners' own loaders spell them.
SPELLED = {
    ("tok", "vit_jax"): {
        "cls": (1, 1, 32), "Transformer/posembed_input/pos_embedding": (1, 17, 32),
        "embedding/kernel": (8, 8, 3, 32), "Transformer/encoder_norm/scale": (32,),
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel": (32, 4, 8),
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel": (4, 8, 32),
        "Transformer/encoderblock_0/LayerNorm_2/bias": (32,),
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": (32, 48), "head/kernel": (32, 5)},
    ("gap", "big_vision"): {
        "params/pos_embedding": (1, 16, 32), "params/pre_logits/kernel": (32, 24),
        "params/Transformer/encoderblock_1/MlpBlock_0/Dense_1/bias": (32,),
        "params/Transformer/encoderblock_1/LayerNorm_1/scale": (32,)},
    ("mixer", "vit_jax"): {
        "stem/kernel": (8, 8, 3, 32), "MixerBlock_1/token_mixing/Dense_0/kernel": (16, 8),
        "MixerBlock_1/LayerNorm_1/scale": (32,), "pre_head_layer_norm/bias": (32,)},
    ("resnet", "bit"): {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 32),
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 32, 128),
        "resnet/block1/unit02/b/standardized_conv2d/kernel": (3, 3, 32, 32),
        "resnet/block2/unit01/c/group_norm/gamma": (64,), "resnet/group_norm/beta": (256,),
        "resnet/head/conv2d/kernel": (1, 1, 256, 5), "resnet/head/conv2d/bias": (5,)},
    ("resnet", "big_vision"): {
        "params/root_block/conv_root/kernel": (7, 7, 3, 32), "params/head/kernel": (256, 5),
        "params/block1/unit01/conv_proj/kernel": (1, 1, 32, 128),
        "params/block1/unit02/gn2/scale": (1, 1, 1, 32),
        "params/norm-pre-head/bias": (1, 1, 1, 256)}}


@pytest.mark.parametrize("kind, layout", SPELLED)
def test_names_and_shapes_are_the_public_ones(kind, layout):
  arrays = layouts.their_arrays(trees.flatten(examples.params(kind)), layout)
  found = {name: arrays[name].shape for name in SPELLED[kind, layout] if name in arrays}
  assert found == SPELLED[kind, layout]
  assert len(arrays) == len(trees.flatten(examples.params(kind)))


@pytest.mark.parametrize("layout", ["vit_jax", "big_vision"])
def test_blocks_of_two_digits(layout):
  names = trees.flatten(examples.like(examples.build("tok", depth=12)))
  written = layouts.their_arrays({name: np.zeros((1, 2, 3)) for name in names}, layout)
  assert sorted(layouts.our_names(written).values()) == sorted(names)


@pytest.mark.parametrize("kind", examples.MODELS)
def test_the_model_is_seen_in_its_parameters(kind):
  name, arguments = examples.MODELS[kind]
  found = published.describe(examples.params(kind))
  assert {key: found[key] for key in arguments} == arguments
  assert found["name"] == name and found["num_classes"] == 5
  assert found["image_size"] == (None if kind == "resnet" else 32)
  model, _ = published.model_of(examples.params(kind))
  assert trees.shapes(examples.like(model)) == trees.shapes(examples.params(kind))
  assert published.describe(examples.like(examples.build(kind))) == found  # shapes are enough


def _stacked(arrays):
  """As big_vision's scanned encoder: a block's array once, with an axis of blocks in front."""
  rest = {name: value for name, value in arrays.items() if "encoderblock_" not in name}
  block = [name for name in arrays if "/encoderblock_0/" in name]
  return rest | {name.replace("_0/", "/", 1): np.stack(
      [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(2)])
      for name in block}


def _numbered(arrays):
  return {re.sub("unit02/b/standardized_conv2d", "unit02/b/standardized_conv2d_7", name): value
          for name, value in arrays.items()}


@pytest.mark.parametrize("kind, layout, change", [
    ("tok", "big_vision", lambda a: {n.removeprefix("params/"): v for n, v in a.items()}),
    ("tok", "big_vision", lambda a: {n.replace("params/", "opt/target/"): v for n, v in a.items()}
     | {"opt/state/step": np.int64(3)}),
    ("tok", "big_vision", lambda a: a | {"opt/0/count": np.int32(3)}),
    ("tok", "big_vision", _stacked),
    ("tok", "big_vision", lambda a: {n.replace("params/pos", "params/Transformer/pos"): v
                                     for n, v in a.items()}),
    ("tok", "vit_jax", lambda a: {"opt/target/" + n: v for n, v in a.items()}),
    ("resnet", "bit", _numbered), ("resnet", "bit", lambda a: a | {"global_step": np.int64(1)})])
def test_other_spellings_of_the_same(tmp_path, kind, layout, change):
  published.save(tmp_path / "a.npz", examples.params(kind), layout)
  arrays = _arrays(tmp_path / "a.npz")
  changed = change(arrays)
  assert changed.keys() != arrays.keys()
  np.savez(tmp_path / "b.npz", **changed)
  _same(trees.flatten(published.load(tmp_path / "b.npz")),
        trees.flatten(published.load(tmp_path / "a.npz")))


def test_positions_with_the_class_tokens_among_them_are_taken_as_they_are(tmp_path):
  arrays = layouts.their_arrays(trees.flatten(examples.params("tok")), "big_vision")
  arrays["params/pos_embedding"] = examples.params("tok")["pos_embedding"]  # 17 = 16 + 1
  np.savez(tmp_path / "a.npz", **arrays)
  found = published.load(tmp_path / "a.npz")["pos_embedding"]
  np.testing.assert_array_equal(found, arrays["params/pos_embedding"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
  params = trees.flatten(examples.params("gap"))
  np.savez(tmp_path / "a.npz", **{name: value.astype(dtype) for name, value in params.items()})
  _same(trees.flatten(published.load(tmp_path / "a.npz")),
        {name: value.astype(dtype).astype(np.float32) for name, value in params.items()})


def test_fixed_positions_are_left_out_or_written_out(tmp_path):
  params = {name: value for name, value in examples.params("tok").items()
            if name != "pos_embedding"}
  published.save(tmp_path / "a.npz", params, "big_vision")
  assert published.describe(published.load(tmp_path / "a.npz"))["posemb"] == "sincos2d"
  with pytest.raises(ValueError, match="give image_size, or take layout=\"big_vision\""):
    published.save(tmp_path / "b.npz", params)
  assert published.save(tmp_path / "b.npz", params, image_size=32).difference < 1e-6
  learned = published.load(tmp_path / "b.npz")
  assert published.describe(learned)["posemb"] == "learn"
  assert learned["pos_embedding"].shape == (1, 17, 32) and not learned["pos_embedding"][:, 0].any()


def test_any_file_system(tmp_path, monkeypatch):
  saved = published.save("memory://models/small.npz", examples.params("gap"))
  memory = fsspec.filesystem("memory")
  assert memory.find("/models") == ["/models/small.npz"]  # nothing half-written beside it
  opened = []
  original = type(memory).cat_file
  monkeypatch.setattr(type(memory), "cat_file",
                      lambda self, path, **kw: opened.append(path) or original(self, path, **kw))
  params, sha256 = published.read("memory://models/small.npz")
  assert sha256 == saved.sha256 and len(opened) == 1
  _same(trees.flatten(params), trees.flatten(examples.params("gap")))
  memory.rm("/models", recursive=True)
  with pytest.raises(ValueError, match="no file 'memory://models/small.npz'"):
    published.load("memory://models/small.npz")
  with pytest.raises(ValueError, match="Protocol not known"):
    published.load("cloud://models/small.npz")
  if importlib.util.find_spec("gcsfs") is None:
    with pytest.raises(ValueError, match="install gcsfs"):
      published.load("gs://models/small.npz")


class _Trap:
  """Fails the test if it is ever unpickled."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("name, value, says", [
    ("head/kernel", np.ones((32, 5), np.int32), "'head/kernel' is of type int32"),
    ("head/kernel", np.array([_Trap()], object), "'head/kernel' can't be read.*Object arrays"),
    ("cls", np.full((1, 1, 32), np.nan, np.float32), "'cls' holds 32 values that are not finite"),
    ("Transformer/encoderblock_1/LayerNorm_1/scale", np.ones(32), "two parameters called"),
    ("MAPHead_0/probe", np.ones((1, 1, 32)), "MAP head.*class token"),
    ("probe", np.ones((1, 1, 32)), "MAP head"),
    ("embedding/kernel", np.ones((192, 32)), r"'embedding/kernel' has shape \(192, 32\).* ndim 4"),
    ("head/bias", np.float32(1), r"'head/bias' has shape \(\), expected ndim 1"),
    ("Transformer/posembed_input/pos_embedding", np.ones((17, 32)), "'pos_embedding' has.* ndim 3"),
    ("Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel", np.ones((32, 32)),
     "query/kernel' has shape .* ndim 3"),
    ("gn_root/scale", np.ones(32), "a hybrid")])
def test_a_bad_array_is_named(tmp_path, name, value, says):
  path = tmp_path / "a.npz"
  arrays = layouts.their_arrays(trees.flatten(examples.params("tok")), "vit_jax")
  np.savez(path, **(arrays | {name: value}))
  with pytest.raises(ValueError, match=f"a.npz': .*{says}"):
    published.load(path)


@pytest.mark.parametrize("names, says", [
    (["images", "labels"], "no ViT, Mixer or BiT ResNet: images, labels"),
    (["params/img/embedding/kernel", "params/txt/head/kernel"], "of two towers"),
    (["params/conv_root/kernel", "params/block1/unit1/conv1/kernel"], "ResNet-v1")])
def test_files_of_something_else(tmp_path, names, says):
  np.savez(tmp_path / "a.npz", **dict.fromkeys(names, np.ones(3, np.float32)))
  with pytest.raises(ValueError, match=f"a.npz': .*{says}"):
    published.load(tmp_path / "a.npz")


def test_no_file_and_no_npz(tmp_path):
  for path, says in ((tmp_path / "a.npz", "no file .*expected an .npz"),
                     (tmp_path, "can't be read: Is a directory")):
    with pytest.raises(ValueError, match=says):
      published.load(path)
  (tmp_path / "a.npz").write_text("PK, but not really")
  with pytest.raises(ValueError, match="is no .npz"):
    published.load(tmp_path / "a.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_file_cut_off_or_altered(tmp_path, write):
  path = tmp_path / "a.npz"
  write(path, **trees.flatten(examples.params("tok")))
  published.load(path)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="damaged"):
    published.load(path)
  path.write_bytes(data[:-40])
  with pytest.raises(ValueError, match="cut off"):
    published.load(path)


def test_parameters_without_a_part():
  params = {key: value for key, value in examples.params("gap").items() if key != "head"}
  with pytest.raises(ValueError, match="a vit without 'head/kernel'"):
    published.describe(params)


def test_layouts_that_do_not_fit(tmp_path):
  for kind, layout, says in (("tok", "bit", "bit has no vit; take big_vision or vit_jax"),
                             ("resnet", "vit_jax", "vit_jax has no resnet; take big_vision or bit"),
                             ("tok", "timm", "expected one of big_vision, vit_jax, bit or auto")):
    with pytest.raises(ValueError, match=says):
      published.save(tmp_path / "a.npz", examples.params(kind), layout)
  with pytest.raises(ValueError, match="no layout can say .*'root_stride': 1"):
    published.save(tmp_path / "a.npz", examples.params("resnet"),
                   model=examples.build("resnet", root_stride=1))
  assert not list(tmp_path.iterdir())


def test_a_wrong_conversion_is_never_left_behind(tmp_path, monkeypatch):
  params = {**examples.params("gap")}
  params["head"] = {name: np.zeros_like(value) for name, value in params["head"].items()}
  published.save(tmp_path / "a.npz", params)
  before = (tmp_path / "a.npz").read_bytes()
  original = layouts.their_arrays

  def swapped(flat, layout):
    found = original(flat, layout)
    one, two = (f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{name}/kernel"
                for name in ("query", "value"))
    return {**found, one: found[two], two: found[one]}

  monkeypatch.setattr(layouts, "their_arrays", swapped)
  with pytest.raises(ValueError, match="was not written: .* differ by"):
    published.save(tmp_path / "a.npz", params)  # though all logits are zero
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
  assert (tmp_path / "a.npz").read_bytes() == before


def test_what_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="file/a.npz' can't be written: File exists"):
    published.save(tmp_path / "file/a.npz", examples.params("gap"))
  (tmp_path / "folder.npz").mkdir()
  with pytest.raises(ValueError, match="folder.npz' can't be written: it is a folder; name a file"):
    published.save(tmp_path / "folder.npz", examples.params("gap"))
  assert not list((tmp_path / "folder.npz").iterdir())


