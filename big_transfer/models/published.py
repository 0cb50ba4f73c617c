"""Published `.npz` parameters: read as our parameter trees, described, written for others to read.

    params = published.load("gs://bucket/ViT-B_16.npz")
    model, image_size = published.model_of(params)
    published.save("file.npz", params)

What the files hold is in `models.layouts`. Paths are local, or URLs that fsspec knows (`gs://`
needs gcsfs, `memory://` nothing). A file is read once, into memory, and takes twice its size there
while it is. Nothing in it is ever executed: no pickle is read or written.
"""
from collections.abc import Callable, Iterator, Mapping
import contextlib
import errno
import functools
import hashlib
import io
import math
import os
import re
from typing import NamedTuple
import uuid
import zipfile
import zlib

from flax import linen as nn
import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from big_transfer import models
from big_transfer import trees
from big_transfer.models import layouts
from big_transfer.models import vit


class Saved(NamedTuple):
  """What `save` wrote.

  Attributes:
    layout: a key of `layouts.LAYOUTS` (or "transformers", see `transformers_folder`).
    sha256: of the file.
    difference: the largest, over all outputs of the model (every block's too), between those by
      the parameters and those by the file, as a share of the output's largest value.
  """
  layout: str
  sha256: str
  difference: float


def load(path: str | os.PathLike) -> dict:
  """Reads the parameters of a ViT, a Mixer or a BiT ResNet.

  Returns:
    A nested dict of float32 NumPy arrays under our names. Whether a model has parameters of these
    names and shapes, `adapting.adapt` checks.

  Raises:
    ValueError: no such file, no `.npz`, a model of another kind, two arrays of one name, or an
      array that holds something else than finite floating-point numbers.
  """
  return read(path)[0]


def read(path: str | os.PathLike) -> tuple[dict, str]:
  """As `load`, with the file's sha256, from one reading."""
  data = read_bytes(path)
  return _parameters(data, path), hashlib.sha256(data).hexdigest()


def digest(path: str | os.PathLike) -> str:
  """The sha256 of a file, local or at a URL; raises ValueError where it can't be read."""
  return hashlib.sha256(read_bytes(path)).hexdigest()


def read_bytes(path: str | os.PathLike) -> bytes:
  """A file's content, local or at a URL; raises ValueError where it can't be read."""
  filesystem, inner = _filesystem(path)
  with _told(path, "read"):
    return filesystem.cat_file(inner)


@contextlib.contextmanager
def _told(path: str | os.PathLike, what: str) -> Iterator[None]:
  """Tells what goes wrong with a file, in whatever words and classes its library has for it."""
  try:
    yield
  except Exception as error:
    if what == "read" and isinstance(error, FileNotFoundError):
      raise ValueError(f"no file '{path}': expected an .npz of published parameters") from error
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    raise ValueError(f"'{path}' can't be {what}: {reason}") from error


def _filesystem(path: str | os.PathLike) -> tuple[fsspec.AbstractFileSystem, str]:
  try:
    return fsspec.core.url_to_fs(os.fspath(path))
  except ImportError as error:  # fsspec's says which package to install: "Please install gcsfs …"
    raise ValueError(f"'{path}' needs a package that isn't installed: {error}") from error
  except ValueError as error:
    raise ValueError(f"'{path}': {error}; expected a path or a URL such as gs://bucket/file.npz"
                     ) from error


def _parameters(data: bytes, path: str | os.PathLike) -> dict:
  if not zipfile.is_zipfile(io.BytesIO(data)):
    raise ValueError(f"'{path}' is no .npz (a zip of arrays), or was cut off: download it again")
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      names = layouts.our_names(file.files)
      params = {ours: _floats(file, theirs, path) for theirs, ours in names.items()}
      return trees.unflatten(layouts.our_arrays(params, names))
  except (zipfile.BadZipFile, zlib.error, EOFError) as error:
    raise ValueError(f"'{path}' is damaged ({error}): download it again") from error
  except layouts.LayoutError as error:
    raise ValueError(f"'{path}': {error}") from error


def _floats(file, name: str, path: str | os.PathLike) -> np.ndarray:
  try:
    array = file[name]
  except ValueError as error:  # NumPy's for what only a pickle holds
    raise ValueError(f"'{path}': {name!r} can't be read ({error}); save the parameters as arrays "
                     "of numbers") from error
  if array.dtype == np.dtype("V2"):  # NumPy has no bfloat16, and writes it as two bytes of nothing
    array = array.view(ml_dtypes.bfloat16).astype(np.float32)
  if not np.issubdtype(array.dtype, np.floating):
    raise ValueError(f"'{path}': {name!r} is of type {array.dtype}, expected floating-point "
                     "numbers; save the parameters alone, as float32")
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f"'{path}': {name!r} holds {np.size(array) - np.isfinite(array).sum()} values "
                     "that are not finite; the training it is from diverged, or the file is broken")
  return array


def describe(params: Mapping) -> dict[str, object]:
  """The model that parameters are of, from their names and shapes.

  Args:
    params: nested dict of arrays, or of shape structs, under our names.

  Returns:
    The arguments of `models.build`, and `image_size`, the side in pixels of the square images that
    the parameters are for, None where they are for any size or for none that is square. What no
    array tells is as in the published models: a ViT without learned positions has the fixed ones,
    a ResNet's root a stride of 2 and a pooling.

  Raises:
    ValueError: the parameters are of no family, or lack some.
  """
  flat = trees.flatten(params)
  family = layouts.family(flat)
  try:
    described = _DESCRIBE[family](flat)
    return {"name": family, **described, "num_classes": flat["head/kernel"].shape[-1]}
  except KeyError as error:
    raise ValueError(f"parameters of a {family} without {error.args[0]!r}, which all of ours have; "
                     f"there are {layouts.some(flat)}") from error


def model_of(params: Mapping) -> tuple[nn.Module, int | None]:
  """The model that parameters are of and the side of its images, as `describe` has them."""
  arguments = describe(params)
  image_size = arguments.pop("image_size")
  return models.build(**arguments), image_size


def _describe_vit(flat: Mapping) -> dict[str, object]:
  block = "Transformer/encoderblock_0/"
  patch, width = _patch(flat["embedding/kernel"])
  positions = flat.get(layouts.POSITIONS)
  pre_logits = flat.get("pre_logits/kernel")
  tokens = 0 if positions is None else positions.shape[1] - ("cls" in flat)
  return {
      "width": width, "depth": _count(flat, r"Transformer/encoderblock_(\d+)/"),
      "heads": flat[block + "MultiHeadDotProductAttention_0/query/kernel"].shape[1],
      "mlp_dim": flat[block + "MlpBlock_0/Dense_0/kernel"].shape[1], "patch": patch,
      "pool": "tok" if "cls" in flat else "gap",
      "posemb": "sincos2d" if positions is None else "learn",
      "representation_size": None if pre_logits is None else pre_logits.shape[1],
      "image_size": _side(tokens, patch)}


def _describe_mixer(flat: Mapping) -> dict[str, object]:
  patch, width = _patch(flat["stem/kernel"])
  tokens, tokens_mlp_dim = flat["MixerBlock_0/token_mixing/Dense_0/kernel"].shape
  return {
      "width": width, "depth": _count(flat, r"MixerBlock_(\d+)/"),
      "tokens_mlp_dim": tokens_mlp_dim,
      "channels_mlp_dim": flat["MixerBlock_0/channel_mixing/Dense_0/kernel"].shape[1],
      "patch": patch, "image_size": _side(tokens, patch)}


def _describe_resnet(flat: Mapping) -> dict[str, object]:
  kernel, features = _patch(flat["root_block/conv_root/kernel"])
  depths = tuple(_count(flat, rf"block{i + 1}/unit(\d+)/")
                 for i in range(_count(flat, r"block(\d+)/")))
  return {"depths": depths, "width": features / 64, "root_kernel": kernel,
          "root_stride": 2, "root_pool": True, "image_size": None}


_DESCRIBE = {"vit": _describe_vit, "mixer": _describe_mixer, "resnet": _describe_resnet}


def _count(flat: Mapping, pattern: str) -> int:
  return len({match[1] for name in flat if (match := re.match(pattern, name))})


def _patch(kernel) -> tuple[int, int]:
  height, width, _, outputs = kernel.shape
  if height != width:
    raise ValueError(f"patches or kernels of {height} × {width} pixels: ours are square")
  return height, outputs


def _side(tokens: int, patch: int) -> int | None:
  root = math.isqrt(tokens)
  return root * patch if tokens and root * root == tokens else None


def save(path: str | os.PathLike, params: Mapping, layout: str = "auto", *,
         model: nn.Module | None = None, image_size: int | None = None) -> Saved:
  """Writes parameters for others to read, the whole file or nothing.

  The file is read back and checked before it gets its name: on fixed images, all outputs of the
  model must be those of the model that the file describes.

  Args:
    path: local, or a URL; a file that is there is replaced.
    params: nested dict of arrays under our names.
    layout: a key of `layouts.LAYOUTS`, or "auto" for the one that most others read.
    model: the model that they are of; None for the one that `describe` sees.
    image_size: side of its images in pixels, needed for a ViT with fixed positions, which only
      "big_vision" leaves out: elsewhere they are written as if they had been learned.

  Raises:
    ValueError: a layout that can't hold these parameters, a path that can't be written, or outputs
      that differ.
  """
  flat = {name: np.asarray(value, np.float32) for name, value in trees.flatten(params).items()}
  given, side = model_of(flat_tree := trees.unflatten(flat))
  _check_root(model or given, given)
  given, side = model or given, image_size or side
  layout = layouts.auto(flat) if layout == "auto" else layout
  written = dict(flat)
  if getattr(given, "posemb", None) == "sincos2d" and layout != "big_vision":
    written[layouts.POSITIONS] = _fixed_positions(given, side)
  buffer = io.BytesIO()
  np.savez(buffer, **layouts.their_arrays(written, layout))
  check = functools.partial(_difference, given, flat_tree, side)
  difference = _write(path, buffer.getvalue(), check)
  return Saved(layout, hashlib.sha256(buffer.getvalue()).hexdigest(), difference)


def _check_root(model: nn.Module, described: nn.Module) -> None:
  told = {key: getattr(model, key) for key in ("root_stride", "root_pool")
          if hasattr(model, key) and getattr(model, key) != getattr(described, key)}
  if told:
    raise ValueError(f"no layout can say that this ResNet has {told}: who reads the file takes "
                     "BiT's root_stride=2, root_pool=True; load such a model from its run's folder")


def _fixed_positions(model: nn.Module, image_size: int | None) -> np.ndarray:
  if not image_size:
    raise ValueError("layout: a ViT with fixed positions (posemb=\"sincos2d\") can be written for "
                     "images of one size only; give image_size, or take layout=\"big_vision\"")
  side = image_size // model.patch
  table = np.asarray(vit.sincos2d(side, side, model.width))
  return np.pad(table, ((0, 0), (int(model.pool == "tok"), 0), (0, 0)))


def _write(path: str | os.PathLike, data: bytes, compare: Callable[[dict], float]) -> float:
  """Writes under another name, compares what can be read there, renames; returns the difference."""
  filesystem, inner = _filesystem(path)
  partial = f"{inner}.{uuid.uuid4().hex[:8]}.partial"
  try:
    with _told(path, "written"):
      if not inner or filesystem.isdir(inner):  # which the file would be moved into
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file in it")
      filesystem.makedirs(inner.rpartition("/")[0], exist_ok=True)
      filesystem.pipe_file(partial, data)
      data = filesystem.cat_file(partial)
    difference = compare(_parameters(data, path))
    if not difference <= 1e-5:
      raise ValueError(f"'{path}' was not written: the model that the file describes gives other "
                       f"outputs than the one given (they differ by {difference:.2g} of the "
                       "largest); a layout holds names and shapes, not every setting of a model")
    with _told(path, "written"):
      filesystem.mv(partial, inner)
    return difference
  finally:
    with contextlib.suppress(Exception):  # renamed, or never written
      filesystem.rm(partial)


def _difference(model: nn.Module, params: dict, image_size: int | None, written: dict) -> float:
  """The largest difference of the outputs, as a share of the output's largest value."""
  other, _ = model_of(written)
  channels = trees.flatten(params)[_FIRST[layouts.family(trees.flatten(params))]].shape[2]
  side = image_size or 4 * getattr(model, "patch", 16)
  images = np.random.default_rng(0).uniform(-1, 1, (2, side, side, channels)).astype(np.float32)
  ours, theirs = outputs(model, params, images), outputs(other, written, images)
  if ours.keys() != theirs.keys():
    return math.inf
  return max(float(np.abs(ours[k] - theirs[k]).max() / max(np.abs(ours[k]).max(), 1e-30))
             if ours[k].shape == theirs[k].shape else math.inf for k in ours)


_FIRST = {"vit": "embedding/kernel", "mixer": "stem/kernel",
          "resnet": "root_block/conv_root/kernel"}


def outputs(model: nn.Module, params: Mapping, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
  """All that a model gives for images, logits and each layer's pooled output, in full float32."""
  plain = {"dtype": "float32", "attention": "auto"}  # cuDNN's attention has no float32
  model = model.clone(**{key: value for key, value in plain.items() if hasattr(model, key)})
  with jax.default_matmul_precision("highest"):
    return {name: np.asarray(value) for name, value in _apply(model, params, images_BHWC).items()}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, images_BHWC):
  return model.apply({"params": params}, images_BHWC)[1]
