"""Opens a source of examples by name: built in, TFDS, ImageNet-21k, tars, a folder or an .npz.

  open_source("fractals", "test", classes=60)
  open_source("tfds:cifar10", "train[:90%]")        # TFDS_DATA_DIR or data_dir=...
  open_source("folder:/data/birds", "train")        # /data/birds[/train]/<class>/<image>
  open_source("npz:/data/cells.npz", "test")        # images and labels, or x_test and y_test
  open_source("tars:/data/plants", "train")         # /data/plants/<class>.tar
  open_source("imagenet21k:/data/winter21_whole", release="winter21")
"""
import inspect
import os

from big_transfer.data import class_tars, files, tfds_records
from big_transfer.data.builtin import digits, fractals, sprites, textures
from big_transfer.data.examples import ArraySource, Source, did_you_mean

__all__ = ["ArraySource", "BUILTIN", "LOCATED", "Source", "open_source"]

# Sources made or shipped by the package: open(split, **options).
BUILTIN = {
    "fractals": fractals.fractals,
    "textures": textures.textures,
    "sprites": sprites.sprites,
    "digits": digits.digits,
}

# Sources of which the name says where they are, "kind:place": open(place, split, **options).
LOCATED = {
    "tfds": tfds_records.TfdsSource,
    "folder": files.FolderSource,
    "npz": files.npz,
    "tars": class_tars.tars,
    "imagenet21k": class_tars.imagenet21k,
}


def open_source(name: str, split: str = "train", **options) -> Source:
  """Opens one split of a dataset.

  Args:
    name: "fractals", "textures", "sprites", "digits", "tfds:NAME[/CONFIG][:VERSION]",
      "folder:PATH", "npz:PATH", "tars:PATH" or "imagenet21k:PATH".
    split: split to read; TFDS split strings such as "train[:90%]" work for TFDS.
    **options: what the source takes, see its function.

  Returns:
    A `Source`; nothing has been decoded yet.

  Raises:
    MissingError: a dataset that isn't there; the message says how to get it.
    ValueError: unknown name, split or option, a broken or empty dataset, labels out of range.
  """
  kind, _, place = name.partition(":")
  if name in BUILTIN:
    function, arguments = BUILTIN[name], (split,)
  elif kind in LOCATED and place:
    function, arguments = LOCATED[kind], (place, split)
  else:
    known = [*BUILTIN, *(f"{kind}:..." for kind in LOCATED)]
    if kind in LOCATED:
      hint = f"say where it is, {kind}:PLACE."
    elif os.path.exists(os.path.expanduser(name)):
      kind = "npz" if name.endswith(".npz") else "folder"
      hint = f"to read a place, say what it is: {kind}:{name}"
    else:
      hint = did_you_mean(name, known)
    raise ValueError(f"unknown source {name!r}: {hint}")
  known = [p.name for p in inspect.signature(function).parameters.values()
           if p.kind is inspect.Parameter.KEYWORD_ONLY]
  for option in options:
    if option not in known:
      raise ValueError(f"source {name!r} has no option {option!r}: {did_you_mean(option, known)}")
  try:
    return function(*arguments, **options)
  except TypeError as e:
    raise ValueError(f"source {name!r} can't use its options {options}: {e}") from e
  except OSError as e:  # no permission, as a rule
    raise ValueError(f"source {name!r} can't be read: {e}") from e
