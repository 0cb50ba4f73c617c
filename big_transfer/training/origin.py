"""Parameters that were trained before: a run's checkpoint, or a published file."""
import hashlib
import os
import pathlib
from typing import Any, Callable, NamedTuple

import jax

from big_transfer import trees
from big_transfer.models import published
from big_transfer.runs import records
from big_transfer.training import checkpoint


class Origin(NamedTuple):
  """Where parameters come from.

  Attributes:
    identity: of the run they are from, or the content's sha256.
    step: of the run; 0 where nothing is known of the training.
    classes: outputs of their head; None if they have none.
    config: of the run, plain; None for a file.
    run: the content of its run.json; empty for a file.
    params: `params(like) -> nested dict`, where `like` are shapes with shardings; raises
      ValueError, with the names that differ, if they are of another model.
  """
  identity: str
  step: int
  classes: int | None
  config: dict[str, Any] | None
  run: dict[str, Any]
  params: Callable


def of_run(folder: str | os.PathLike, step: int | None = None) -> Origin:
  """The parameters of a run at its newest good checkpoint, or at `step`; the folder is only read.

  Raises:
    ValueError: no run there, no checkpoint, or none of that step.
  """
  folder = pathlib.Path(folder).expanduser()
  check_run(folder)
  run = records.read_run(folder)
  found = checkpoint.find(folder / "checkpoints", step)
  return Origin(identity=str(run.get("id")), step=found.step, classes=_outputs(found.shapes),
                config=records.read_config(folder), run=run, params=found.params)


def of_file(path: str | os.PathLike) -> Origin:
  """The parameters of an `.npz`, see `models.published`; raises ValueError as that does."""
  path = pathlib.Path(path).expanduser()
  tree = published.load(path)
  with open(path, "rb") as file:
    identity = hashlib.file_digest(file, "sha256").hexdigest()
  found = trees.shapes(tree)

  def params(like):
    checkpoint.check_shapes(
        trees.shapes(like), found, f"'{path}' is of another model",
        "Set config.model and config.image_size to those it was trained with")
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), tree, like)

  return Origin(identity, 0, _outputs(found), None, {}, params)


def check_run(folder: pathlib.Path) -> None:
  """Raises ValueError unless a training left its record in `folder`."""
  lacking = [name for name in (records.CONFIG, records.RUN) if not (folder / name).is_file()]
  if not lacking:
    return
  inside = folder.is_dir() and any(folder.glob(f"*/{records.RUN}"))
  hint = f"; did you mean the runs in it, {folder}/*?" if inside else ""
  raise ValueError(f"no run in '{folder}': " + (
      f"it lacks {lacking[0]}, which a training leaves{hint}" if folder.is_dir() else
      "there is no such folder; expected one that a training left"))


def _outputs(shapes):
  """The head's width, of `trees.shapes`."""
  if "head/kernel" not in shapes:
    return None
  return int(shapes["head/kernel"].rstrip("]").replace("[", ",").split(",")[-1])
