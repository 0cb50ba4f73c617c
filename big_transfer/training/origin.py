"""Parameters that were trained before: a run's checkpoint, or a published file."""
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import trees
from big_transfer.models import published
from big_transfer.runs import records
from big_transfer.training import checkpoint


class Origin(NamedTuple):
  """Parameters and where they come from.

  Attributes:
    params: nested dict of NumPy arrays; those of `state`, on devices, where there is one.
    identity: of the run they are from, or the file's sha256.
    step: of the run; 0 where nothing is known of the training.
    config: of the run, plain; None for a file.
    run: the content of its run.json; empty for a file.
    where: for messages.
    state: a run's whole TrainState, on its devices, if that was asked for.
  """
  params: dict
  identity: str
  step: int
  config: dict[str, Any] | None
  run: dict[str, Any]
  where: str
  state: Any = None

  @property
  def classes(self) -> int:
    """Outputs of the head."""
    return self.params["head"]["kernel"].shape[-1]

  def check_finite(self) -> None:
    """Raises ValueError where a parameter is infinite or NaN."""
    for name, value in trees.flatten(self.params).items():
      finite = np.isfinite if self.state is None else jnp.isfinite
      if not bool(finite(value).all()):
        raise ValueError(
            f"{self.where} holds infinities or NaN, in {name}: its training diverged; take an "
            "earlier step, or another source")

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
    return placed(self.params, like)


def placed(params: dict, like: dict) -> dict:
  """NumPy arrays, alike in all processes, on their devices; `like` has shapes and shardings."""
  return jax.tree.map(
      lambda value, leaf: jax.make_array_from_callback(
          leaf.shape, leaf.sharding, lambda index: np.asarray(value[index], leaf.dtype)),
      params, like)


def is_file(source: str | os.PathLike) -> bool:
  """Whether a source names a published file rather than a run's folder."""
  return str(source).endswith(".npz") or os.path.isfile(_path(source))


def of(source: str | os.PathLike, step: int | None = None, like: Any = None) -> Origin:
  """What a run's folder or a published file holds; arguments and errors as of `of_run`."""
  if not is_file(source):
    return of_run(source, step, like)
  if step:
    raise ValueError(f"step {step} of '{source}': a file holds parameters of one step only; leave "
                     "it out")
  return of_file(source)


def find(source: str | os.PathLike, step: int | None = None) -> int:
  """The step of what `of` reads; any process may ask alone."""
  return 0 if is_file(source) else checkpoint.find(_run_folder(source) / "checkpoints", step)


def of_run(folder: str | os.PathLike, step: int | None = None, like: Any = None) -> Origin:
  """The parameters of a run at its newest good checkpoint, or at `step`; the folder is only read.

  Args:
    folder: the run's.
    step: of which checkpoint; None for the newest that is good.
    like: a TrainState of `jax.ShapeDtypeStruct` with shardings, if the whole state is to be read,
      onto devices.

  All processes have to call it, for the same step.

  Raises:
    ValueError: no training left its record there, no checkpoint, or none of that step.
  """
  folder = _run_folder(folder)
  run, config = records.read_run(folder), records.read_config(folder)
  saved = checkpoint.read(folder / "checkpoints", step, like)
  return Origin(saved.params, str(run.get("id")), saved.step, config, run,
                f"checkpoint {saved.step} of '{folder}'", saved.state)


def of_file(path: str | os.PathLike) -> Origin:
  """The parameters of an `.npz`, a path or a URL; raises ValueError as `published.read` does."""
  params, identity = published.read(_path(path))
  names = list(trees.flatten(params))
  if "head/kernel" not in names:
    raise ValueError(f"'{path}' has no parameter head/kernel, the last layer of all our models; it "
                     f"has {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")
  return Origin(params, identity, 0, None, {}, f"'{path}'")


def model(source: str | os.PathLike) -> dict[str, Any]:
  """The section `model` of the config of a run, or one that describes a file's parameters.

  Raises:
    ValueError: there is neither there.
  """
  if not is_file(source):
    return records.read_config(_run_folder(source))["model"]
  described = published.describe(of_file(source).params)
  return {key: value for key, value in described.items() if key not in _OF_DATA}


def name(origin: Origin, source: str) -> str:
  """What people call it: the run's name, or that of its folder or file."""
  return origin.run.get("name") or pathlib.PurePath(source).stem


def _path(path):
  """A path as it is opened; a URL as it is."""
  return path if "://" in str(path) else pathlib.Path(path).expanduser()


def _run_folder(folder):
  """The path of a run's folder, once it is known to be one."""
  if "://" in str(folder):
    raise ValueError(f"no run at '{folder}': runs are read from folders; mount or copy it, or name "
                     "an .npz, which may be at a URL")
  folder = pathlib.Path(folder).expanduser()
  check_run(folder)
  return folder


def check_run(folder: pathlib.Path) -> None:
  """Raises ValueError unless a training left its record in `folder`."""
  lacking = [name for name in (records.CONFIG, records.RUN) if not (folder / name).is_file()]
  if not lacking:
    run = records.read_run(folder)
    if "parameters_from" in run:
      inside = folder.absolute().parent
      owner = inside.parent if inside.name == records.EVALUATIONS else run.get("name")
      raise ValueError(
          f"'{folder}' is an evaluation, which has no parameters: name its run, '{owner}'")
    return
  inside = folder.is_dir() and any(folder.glob(f"*/{records.RUN}"))
  hint = f"; did you mean the runs in it, {folder}/*?" if inside else ""
  raise ValueError(f"no run in '{folder}': " + (
      f"it lacks {lacking[0]}, which a training leaves{hint}" if folder.is_dir() else
      "there is no such folder; expected one that a training left"))


_OF_DATA = ("num_classes", "image_size")  # what a config says apart from its model
