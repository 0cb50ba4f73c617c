"""Published `.npz` parameters, read as our parameter trees.

big_vision and vit_jax publish a flat `.npz`: an array a parameter, named by its path joined by
"/". Whole training states have the parameters below `params/` or `opt/target/`. Our ViT and Mixer
are named as big_vision's (`Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel`), vit_jax's Mixer
too; its ViT numbers a block's layers in one row, as `RENAMED` lists.
"""
import os
import re
import zipfile

import numpy as np

from big_transfer import trees

PREFIXES = ("opt/target/", "params/")
# (vit_jax's, ours), for the start of a name up to the end of a path component.
RENAMED = (
    (r"Transformer/posembed_input/pos_embedding$", r"pos_embedding"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_2/", r"Transformer/encoderblock_\1/LayerNorm_1/"),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/",
     r"Transformer/encoderblock_\1/MultiHeadDotProductAttention_0/"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/", r"Transformer/encoderblock_\1/MlpBlock_0/"),
)


def load(path: str | os.PathLike) -> dict:
  """Reads the parameters of a ViT or a Mixer.

  Args:
    path: an `.npz`; nothing in it is ever executed (no pickle).

  Returns:
    A nested dict of float32 arrays under our names. Whether a model has parameters of these names
    and shapes, the caller checks (`trees.shape_diff`).

  Raises:
    ValueError: no such file, no `.npz`, an array that holds no floating-point numbers, or two of
      one name.
  """
  if not os.path.isfile(path):
    raise ValueError(f"no file '{path}': expected an .npz of published parameters")
  if not zipfile.is_zipfile(path):
    raise ValueError(f"'{path}' is no .npz (a zip of arrays), or was cut off: download it again")
  params = {}
  try:
    with np.load(path, allow_pickle=False) as file:
      for theirs, ours in _names(file.files).items():
        if ours in params:
          raise ValueError(f"'{path}' holds two parameters called {ours!r} here, one of them "
                           f"{theirs!r} there: expected one")
        params[ours] = _floats(file, theirs, path)
  except zipfile.BadZipFile as error:
    raise ValueError(f"'{path}' is damaged ({error}): download it again") from error
  return trees.unflatten(params)


def _names(files):
  """`{name in the file: ours}` of the parameters, in the file's order."""
  prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in files)), "")
  return {name: _ours(name.removeprefix(prefix)) for name in files if name.startswith(prefix)}


def _ours(name):
  for theirs, ours in RENAMED:
    name = re.sub(f"^{theirs}", ours, name)
  return name


def _floats(file, name, path):
  try:
    array = file[name]
  except ValueError as error:  # NumPy's for what only a pickle holds
    raise ValueError(f"'{path}': {name!r} can't be read ({error}); save the parameters as arrays "
                     "of numbers") from error
  if not np.issubdtype(array.dtype, np.floating):
    raise ValueError(f"'{path}': {name!r} is of type {array.dtype}, expected floating-point "
                     "numbers; save the parameters alone, as float32")
  return np.asarray(array, np.float32)
