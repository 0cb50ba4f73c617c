"""Parameters that were trained before: a run's checkpoint, or a published file."""
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import jax

from big_transfer import trees
from big_transfer.models import published
from big_transfer.runs import records
from big_transfer.training import checkpoint


class Origin(NamedTuple):
  """Parameters and where they come from.

  Attributes:
    params: nested dict of NumPy arrays.
    identity: of the run they are from, or the file's sha256.
    step: of the run; 0 where nothing is known of the training.
    config: of the run, plain; None for a file.
    run: the content of its run.json; empty for a file.
    where: for messages.
  """
  params: dict
  identity: str
  step: int
  config: dict[str, Any] | None
  run: dict[str, Any]
  where: str

  @property
  def classes(self) -> int:
    """Outputs of the head."""
    return self.params["head"]["kernel"].shape[-1]

  def placed(self, like: dict) -> dict:
    """The parameters on their devices.

    Args:
      like: nested dict of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      CheckpointError: they are of another model; the names that differ are listed.
    """
    checkpoint.check_shapes(
        trees.shapes(like), trees.shapes(self.params), f"{self.where} is of another model",
        "Set config.model and config.image_size to those it was trained with")
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), self.params, like)


def of_run(folder: str | os.PathLike, step: int | None = None) -> Origin:
  """The parameters of a run at its newest good checkpoint, or at `step`; the folder is only read.

  Raises:
    ValueError: no run there, no checkpoint, or none of that step.
  """
  folder = pathlib.Path(folder).expanduser()
  check_run(folder)
  run, config = records.read_run(folder), records.read_config(folder)
  saved = checkpoint.read(folder / "checkpoints", step)
  return Origin(saved.params, str(run.get("id")), saved.step, config, run,
                f"checkpoint {saved.step} of '{folder}'")


def of_file(path: str | os.PathLike) -> Origin:
  """The parameters of an `.npz`, see `models.published`; raises ValueError as that does."""
  path = pathlib.Path(path).expanduser()
  params = published.load(path)
  names = list(trees.flatten(params))
  if "head/kernel" not in names:
    raise ValueError(f"'{path}' has no parameter head/kernel, the last layer of all our models; it "
                     f"has {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")
  with open(path, "rb") as file:
    identity = hashlib.file_digest(file, "sha256").hexdigest()
  return Origin(params, identity, 0, None, {}, f"'{path}'")


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
