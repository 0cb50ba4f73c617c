"""Checkpoints: the whole state of a run at a step, saved atomically, verified when read back.

A folder `checkpoints/<step>/` is Orbax's, written in the background and renamed into place when
complete, with a `manifest.json` of ours: the sha256 of every file that holds data. A checkpoint
is good when its manifest is there and all its files hash as it says: Orbax alone would restore a
flipped bit without a word. Restoring takes the newest good one; those found bad are moved to
`checkpoints.bad/`, never deleted. No code is ever executed by loading (no pickle).

`Checkpoints` belongs to the processes that train, of which all save and restore their parts of the
arrays, whatever the number of processes that wrote them; which checkpoint is good main alone finds
out, and tells the others. Who else wants to read takes `read`, which changes nothing in the folder,
whoever may be writing there.
"""
import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from big_transfer import trees
from big_transfer.training import hosts
from big_transfer.training import silence

MANIFEST = "manifest.json"
DISCARDED = ".discarded"  # after the folder's name: good checkpoints from beyond a common step
FORMAT = 1
_POLL_SECONDS = 0.01


class CheckpointError(ValueError):
  """A checkpoint that can't serve; the message says which, why, and what to do."""


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which is told when to save.

  Attributes:
    failure: what this process's part of a save raised; None while all went well.
  """
  failure = None

  def reached_preemption(self, step):
    """Leaves JAX's count of polls to `hosts.stop`; Orbax's, of steps, would garble it."""
    del step
    return False

  def _wait_for_checkpointers(self):
    """Called in the thread that ends a save, which then waits for those of all processes.

    Where this process failed these never come, since they wait for its part: see `wait`.
    """
    try:
      super()._wait_for_checkpointers()
    except Exception as e:
      self.failure = e
      raise

  def wait(self):
    """Returns when nothing is being saved; raises what the save raised in this process, at once."""
    while jax.process_count() > 1 and self.is_saving_in_progress():
      if self.failure is not None:
        raise self.failure
      time.sleep(_POLL_SECONDS)
    self.wait_until_finished()


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they lie, `WORKDIR/checkpoints`; made if it isn't there.
    keep: how many of the newest stay; at least 2, so that there is one to fall back to.
  """

  def __init__(self, folder, keep=2):
    if keep < 2:
      raise ValueError(f"config.checkpoint.keep is {keep}: expected at least 2, so that a damaged "
                       "checkpoint has one to fall back to")
    self._folder = pathlib.Path(folder).absolute()
    self._bad = self._folder.with_name(self._folder.name + ".bad")
    self._saving, self._keep = None, keep
    silence.hush_failed_saves()
    hosts.on_main(self._make_folder)
    policies = ocp.checkpoint_managers
    self._manager = _Manager(
        self._folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest)))

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if error is not None and jax.process_count() > 1:
      return  # a process may be gone, for which closing would wait
    try:
      self.close()
    except CheckpointError as e:
      if error is None:
        raise
      error.add_note(str(e))  # what went wrong first is told first

  def latest(self):
    """The newest step saved, None if there is none."""
    return self._manager.latest_step()

  def save(self, state, meta):
    """Starts saving `state` (a TrainState) and `meta` (a JSON-able dict); returns at once.

    Waits for the save before, whose error, if any, is raised here.

    Raises:
      CheckpointError: it, or the one before, could not be written.
    """
    self.wait()
    step = int(state.step)
    self._saving = step
    tree = _as_dict(state)
    meta = {"format": FORMAT, "shapes": trees.shapes(tree), **meta}
    with self._told():
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)))

  def wait(self):
    """Returns when nothing is being saved; raises what the save raised."""
    with self._told():
      self._manager.wait()

  @contextlib.contextmanager
  def _told(self):
    """Says of what Orbax raises which checkpoint is not there, and what to do."""
    try:
      yield
    except Exception as e:  # of many kinds, some from a thread of Orbax's
      raise CheckpointError(
          f"checkpoint {self._saving} could not be written to {self._folder}: {silence.cause(e)}. "
          "Free space or mend the permissions, then start the same command again: it continues from "
          "the last good checkpoint") from e

  def check_space(self, like, runs=1):
    """Raises CheckpointError where the disk can't hold one more checkpoint; warns of too few.

    As many as are kept lie there while the next is written.

    Args:
      like: see `restore`.
      runs: how many save such states to that disk.
    """
    size = runs * _bytes(like)
    free = shutil.disk_usage(self._folder).free
    kept = min(len(self._manager.all_steps()), self._keep)
    needed = (self._keep + 1 - kept) * size
    told = (f"the disk of {self._folder} has {_mib(free)} free, {'each' if runs > 1 else 'a'} "
            f"checkpoint takes {_mib(size // runs)}{f', of {runs} runs' if runs > 1 else ''}")
    if free < size:
      raise CheckpointError(f"{told}: no checkpoint could be written; free {_mib(size - free)} at "
                            "least, or use a --workdir on another disk")
    if free < needed:
      print(f"warning: {told}, and {self._keep + 1} lie there while the last is written: free "
            f"{_mib(needed - free)} more, or the run will stop at a save (it then continues once "
            "there is space)", flush=True)

  def close(self):
    """Waits and lets go of the folder."""
    self.wait()
    self._manager.close()

  def good(self):
    """Returns the steps of the checkpoints that are good, rising."""
    return hosts.on_main(lambda: [step for step in sorted(self._manager.all_steps())
                                  if _fault(self._folder / str(step)) is None])

  def discard_after(self, at):
    """Moves the checkpoints of later steps to `checkpoints.discarded/`: they are made again."""
    def move():
      for step in self._manager.all_steps():
        if step > at:
          self._set_aside(step, self._folder.with_name(self._folder.name + DISCARDED))

    hosts.on_main(move)
    self._manager.reload()

  def restore(self, like, at=None):
    """Restores the newest good checkpoint, or one that `good` found.

    Args:
      like: a TrainState of `jax.ShapeDtypeStruct` with shardings: where each array is to go,
        whatever the devices it was saved from.
      at: its step; later ones are discarded, see `discard_after`.

    Returns:
      `(state, meta)`, or None where there is no checkpoint.

    Raises:
      CheckpointError: checkpoints are there but none is good, or the newest good one is of
        another model or optimiser (the names that differ are listed).
    """
    if at is not None:
      self.discard_after(at)
      return self._read(at, like)
    reasons = []
    while (step := hosts.on_main(lambda: self._newest_good(reasons))) is not None:
      self._manager.reload()
      try:
        return self._read(step, like)
      except CheckpointError:
        raise
      except Exception as e:  # Orbax raises many kinds for a folder that it can't read
        if jax.process_count() > 1 or silence.is_of_memory(e):
          raise  # of this process alone, perhaps, or no fault of the checkpoint's
        self._part_with(step, f"can't be read ({type(e).__name__}: {e})", reasons)
    if hosts.on_main(lambda: self._bad.is_dir() and any(self._bad.iterdir())):
      # Also when asked again: to begin anew is for the user to say.
      raise CheckpointError(
          f"no good checkpoint in {self._folder}{': ' if reasons else ''}{'; '.join(reasons)}. "
          f"What was found bad lies in {self._bad}. Put back a good copy, train in a new workdir, "
          "or remove that folder to begin this one anew")
    return None

  def _newest_good(self, reasons):
    """The step of the newest good checkpoint, None if there is none; sets bad ones aside."""
    for step in sorted(self._manager.all_steps(), reverse=True):
      reason = _fault(self._folder / str(step))
      if reason is None:
        return step
      self._part_with(step, reason, reasons)
    return None

  def _part_with(self, step, reason, reasons):
    """Sets a bad checkpoint aside, and adds to `reasons` why."""
    reasons.append(f"checkpoint {step} {reason}")
    logging.warning("%s; it was moved to %s, and the one before is used", reasons[-1],
                    self._set_aside(step, self._bad))

  def _make_folder(self):
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      # Found out now, not hours later: a folder of somebody else's, a full or read-only disk.
      with tempfile.TemporaryFile(dir=self._folder) as probe:
        probe.write(b"\0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())
    except OSError as e:
      raise CheckpointError(
          f"checkpoints can't be written to {self._folder}: {e.strerror or e}; check that it is a "
          "folder, is yours to write and that its disk has space, or use another --workdir") from e

  def _read(self, step, like):
    meta = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    tree = _as_dict(like)
    _check_format(meta, step, self._folder)
    _check_state(like, meta, step, self._folder,
                 "Use the config it was made with, or another workdir")
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(tree)))["state"]
    return like.replace(**restored), meta

  def _write_manifest(self):
    """Called in main alone, once all processes have written and before the folder is renamed."""
    [folder] = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
    text = json.dumps(_hashes(folder), indent=1)
    temporary = folder / (MANIFEST + ".tmp")
    with open(temporary, "w") as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, folder / MANIFEST)

  def _set_aside(self, step, where):
    where.mkdir(exist_ok=True)
    n = sum(1 for _ in where.glob(f"{step}-*"))
    target = where / f"{step}-{n}"
    shutil.move(self._folder / str(step), target)
    self._manager.reload()
    return target


class Saved(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    step: the run's.
    params: nested dict, of NumPy arrays unless the whole state was read.
    state: the TrainState on its devices; None where the parameters alone were read.
  """
  step: int
  params: dict
  state: Any = None


def read(folder, step=None, like=None):
  """Reads the parameters of a good checkpoint of a run, and leaves the folder as it is.

  Args:
    folder: where the checkpoints lie, `WORKDIR/checkpoints`. Their run may be training.
    step: of which; None for the newest that is good.
    like: for the whole state, see `Checkpoints.restore`; all processes then read the same step.

  Returns:
    `Saved`. Damaged ones that were passed over are warned of.

  Raises:
    CheckpointError: there is none, none of that step, that one isn't good, or its state is of
      another model or optimiser than `like`.
  """
  return _newest(folder, step, lambda path: _saved(path, like))


def find(folder, step=None):
  """The step of what `read` reads, raising as that does; a process may ask alone."""
  return _newest(folder, step, lambda path: int(path.name))


def _newest(folder, step, look):
  """What `look(path)` makes of the newest good checkpoint, or of that of a step."""
  folder = pathlib.Path(folder).absolute()
  reasons = {}
  # Listed again each time: a run that trains puts newer ones in their place while this one reads.
  while steps := [s for s in _steps(folder) if s not in reasons and step in (None, s)]:
    path = folder / str(steps[-1])
    reason = _fault(path)
    if reason is None:
      try:
        return look(path)
      except CheckpointError:
        raise
      except Exception as e:  # Orbax raises many kinds for a folder that it can't read
        reason = f"can't be read ({type(e).__name__}: {e})"
    if not path.is_dir():
      reason = "was removed meanwhile"
    elif step is None:
      logging.warning("checkpoint %d %s in %s; the one before is looked for", steps[-1], reason,
                      folder)
    reasons[steps[-1]] = f"checkpoint {steps[-1]} {reason}"
  bad = "; ".join(reasons.values())
  if step is None:
    raise CheckpointError(
        f"no {'good ' if reasons else ''}checkpoint in {folder}{': ' if bad else ''}{bad}. A run "
        "leaves one when it ends, and every config.checkpoint.every steps: train it first")
  others = [s for s in _steps(folder) if s not in reasons]
  raise CheckpointError(
      (f"{bad} in {folder}" if bad else f"no checkpoint of step {step} in {folder}") +
      f": expected one of {', '.join(map(str, others)) or 'none, since there are no others'}")


def _saved(folder, like):
  """What a checkpoint's folder holds, `Saved`; arguments as of `read`."""
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    meta = reader.restore(folder / "meta")
  _check_format(meta, folder.name, folder.parent)
  if like is not None:
    _check_state(like, meta, folder.name, folder.parent,
                 "A whole state goes on with the model and the optimiser it is of (config.model, "
                 ".image_size, .optim and the classes of .upstream); its parameters alone don't")
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      state = like.replace(**reader.restore(folder / "state", args=ocp.args.StandardRestore(
          _as_dict(like))))
    return Saved(int(folder.name), state.params, state)
  names = [name for name in meta["shapes"] if name.startswith("params/")]
  like = trees.unflatten({name: 0.0 for name in names})
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return Saved(int(folder.name), reader.restore(folder / "state", args=ocp.args.PyTreeRestore(
        item=like, restore_args=as_numpy, partial_restore=True))["params"])


def _check_format(meta, step, folder):
  if meta.get("format") != FORMAT:
    raise CheckpointError(f"checkpoint {step} in {folder} has format {meta.get('format')}: this "
                          f"version reads {FORMAT}")


def _check_state(like, meta, step, folder, fix):
  check_shapes(trees.shapes(_as_dict(like)), meta["shapes"],
               f"checkpoint {step} in {folder} is of another model or optimiser", fix)


def check_shapes(expected, found, what, fix):
  """Raises CheckpointError unless two `trees.shapes` are equal; it says `what` and the `fix`."""
  if diff := trees.shape_diff(expected, found):
    shown = "\n  ".join(diff[:20] + ([f"… {len(diff)} lines in all"] if len(diff) > 20 else []))
    raise CheckpointError(f"{what} (- expected, + found):\n  {shown}\n{fix}")


def _steps(folder):
  """The steps of what looks like a checkpoint, rising."""
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _bytes(like):
  """What the arrays of a state take, all processes' together."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


def _mib(size):
  return f"{size / 2**20:,.1f} MiB"


def _fault(folder):
  """Says what is wrong with a checkpoint; None if nothing is."""
  try:
    expected = json.loads((folder / MANIFEST).read_text())
    found = _hashes(folder)
  except FileNotFoundError:
    return "has no manifest (its save was cut off)"
  except ValueError:
    return "has a damaged manifest"
  for name in sorted(expected):
    if name not in found:
      return f"lacks the file {name}"
    if found[name] != expected[name]:
      return f"has an altered file, {name}"
  if added := set(found) - set(expected):
    return f"has a file that isn't its own, {min(added)}"
  return None


def _as_dict(state):
  return {"step": state.step, "params": state.params, "opt_state": state.opt_state,
          "bad_step": state.bad_step}


def _hashes(folder):
  """`{relative path: sha256}` of the files that hold data.

  Those at the top are Orbax's own notes, which it completes when it renames the folder.
  """
  hashes = {}
  for path in sorted(folder.glob("*/**/*")):
    if path.is_file():
      with open(path, "rb") as f:
        hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(f, "sha256").hexdigest()
  return hashes
