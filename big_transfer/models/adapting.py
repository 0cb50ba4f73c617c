"""Parameters of one model for another: positions of another resolution, another head.

    like = jax.eval_shape(model.init, key, images)["params"]
    params = adapting.adapt(published.load(path), like, head="zero", grid=(12, 20))

Any other difference between the two is an error that lists names and shapes and says what it may
be.
"""
from collections.abc import Mapping
import math

import jax
import numpy as np
import scipy.ndimage

from big_transfer import trees
from big_transfer.models import layouts
from big_transfer.models import published

HEADS = ("keep", "zero", "random")
RESAMPLINGS = ("bilinear", "bicubic")


def adapt(params: Mapping, like: Mapping, *, head: str = "keep", resample: str = "bilinear",
          seed: int = 0, head_bias: float = 0.0, grid: tuple[int, int] | None = None,
          source_grid: tuple[int, int] | None = None) -> dict:
  """Parameters in the shapes of another model.

  Args:
    params: nested dict of arrays under our names.
    like: nested dict of arrays or shape structs, the other model's.
    head: "keep" the last layer; "zero", a new one that starts at zero; "random", one drawn from
      LeCun's normal distribution (variance 1 / inputs). With a new head, a representation layer
      (`pre_logits`) that the other model lacks is left out.
    resample: how learned positions are brought to another grid: "bilinear", corners on corners, as
      big_vision and vit_jax do (`scipy.ndimage.zoom`, order 1); "bicubic", edges on edges and
      antialiased, as timm and PyTorch do. At the same grid they are kept as they are.
    seed: of a random head.
    head_bias: where a new head's bias starts, `model.head_bias`.
    grid: rows and columns of patches in the other model's images; None for a square.
    source_grid: those of the images that `params` are of; None for a square, or for `grid` if the
      number of positions is the same.

  Returns:
    A nested dict of NumPy arrays. A class token that the other model has and `params` lacks is
    zero, and so is its position; one that the other model lacks is left out with its position.

  Raises:
    ValueError: an unknown choice, a grid that doesn't fit, or models that differ otherwise.
  """
  for name, value, known in (("head", head, HEADS), ("resample", resample, RESAMPLINGS)):
    if value not in known:
      raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
  flat, wanted = trees.flatten(params), trees.flatten(like)
  found = {name: np.asarray(value) for name, value in flat.items()}
  if head != "keep":
    _swap_head(found, wanted, head, seed, head_bias)
  if layouts.POSITIONS in found and layouts.POSITIONS in wanted:
    _swap_class_token(found, wanted)
    found[layouts.POSITIONS] = resized_positions(
        found[layouts.POSITIONS], wanted[layouts.POSITIONS].shape[1], resample=resample,
        class_token="cls" in wanted, grid=grid, source_grid=source_grid)
  if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
    raise ValueError(_mismatch(found, wanted))
  return trees.unflatten({k: found[k].astype(wanted[k].dtype, copy=False) for k in wanted})


def resized_positions(positions_1LD: np.ndarray, length: int, *, resample: str = "bilinear",
                      class_token: bool = False, grid: tuple[int, int] | None = None,
                      source_grid: tuple[int, int] | None = None) -> np.ndarray:
  """Learned positions (1, L, D) at another length, see `adapt`; the class token's stays first.

  Raises:
    ValueError: a length that is no square, without its grid, or a grid of another length.
  """
  front = int(class_token)
  before, after = positions_1LD.shape[1] - front, length - front
  if before == after and source_grid is None:
    source_grid = grid
  if before == after and source_grid == grid:
    return positions_1LD
  old = _grid(before, source_grid, "source_grid", "the parameters")
  new = _grid(after, grid, "grid", "the model")
  rows_HWD = positions_1LD[0, front:].reshape(*old, -1)
  if resample == "bilinear":
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    rows_HWD = scipy.ndimage.zoom(rows_HWD, zoom, order=1)
  else:
    rows_HWD = np.asarray(jax.image.resize(rows_HWD, (*new, rows_HWD.shape[-1]), "cubic"))
  resized_1LD = rows_HWD.reshape(1, after, -1)
  return np.concatenate([positions_1LD[:, :front], resized_1LD], axis=1)


def _grid(count: int, grid: tuple[int, int] | None, name: str, whose: str) -> tuple[int, int]:
  if grid is None:
    side = math.isqrt(count)
    if side * side != count:
      raise ValueError(f"{name}: {count} positions of {whose} are no square; give the rows and "
                       f"columns of patches, as {name}=(12, {max(count // 12, 1)})")
    return side, side
  if grid[0] * grid[1] != count:
    raise ValueError(f"{name}: {grid[0]} × {grid[1]} patches, but {count} positions of {whose}; "
                     "expected the image's height and width over the patch's")
  return tuple(grid)


def _swap_head(found: dict, wanted: Mapping, head: str, seed: int, bias: float) -> None:
  for name in [n for n in found if n.startswith("pre_logits/") and n not in wanted]:
    del found[name]
  shape = wanted["head/kernel"].shape
  found["head/kernel"] = np.zeros(shape, np.float32)
  if head == "random":
    found["head/kernel"] = np.asarray(
        jax.nn.initializers.lecun_normal()(jax.random.key(seed), shape))
  found["head/bias"] = np.full(wanted["head/bias"].shape, bias, np.float32)


def _swap_class_token(found: dict, wanted: Mapping) -> None:
  positions = found[layouts.POSITIONS]
  if "cls" in found and "cls" not in wanted:
    del found["cls"]
    found[layouts.POSITIONS] = positions[:, 1:]
  elif "cls" in wanted and "cls" not in found:
    found["cls"] = np.zeros((1, 1, positions.shape[2]), np.float32)
    found[layouts.POSITIONS] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))


def _mismatch(found: Mapping, wanted: Mapping) -> str:
  """What differs, in words where it can be told, and as a diff (+ what there is)."""
  shapes = [{name: "×".join(map(str, leaf.shape)) for name, leaf in flat.items()}
            for flat in (wanted, found)]
  return (f"these parameters don't fit the model. {_guess(found, wanted)}\n"
          "Expected by the model (-), in the parameters (+):\n"
          + trees.diff_text(*shapes))


def _guess(found: Mapping, wanted: Mapping) -> str:
  try:
    theirs, ours = (published.describe(trees.unflatten(flat)) for flat in (found, wanted))
  except ValueError as error:
    return f"The parameters: {error}."
  if theirs["name"] != ours["name"]:
    return (f"They are a {theirs['name']}'s, the model is a {ours['name']}: set "
            f"model.name={theirs['name']}, or take another file.")
  apart = {key: (theirs[key], ours[key]) for key in ours if theirs[key] != ours[key]}
  if set(apart) == {"num_classes"}:
    return (f"The head has {theirs['num_classes']} outputs, the model {ours['num_classes']}: "
            "take head=\"zero\" or \"random\" for a new one.")
  if ours["name"] == "mixer" and set(apart) <= {"image_size", "num_classes"}:
    return (f"A Mixer's token-mixing layers have a weight for each patch of an image of one size, "
            f"{theirs['image_size']} pixels here, and the model takes {ours['image_size']}: they "
            f"can't be resized; set image_size={theirs['image_size']}.")
  words = ", ".join(f"{key} {a!r} (the model's is {b!r})" for key, (a, b) in apart.items()
                    if key not in ("image_size", "num_classes"))
  return f"They are of a model with {words}." if words else ""
