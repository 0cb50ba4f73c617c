"""The runs that are trained together: of each its settings, its folder and what became of it.

A run alone is a group of one. What members of a population may differ in is `ARRAY_VALUED`: all
else is compiled into the program that they share.
"""
from typing import Any, Mapping

import jax
import numpy as np

from big_transfer.data import pipeline
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.runs import sinks
from big_transfer.training import checkpoint
from big_transfer.training import hosts
from big_transfer.training import optim
from big_transfer.training import schedules
from big_transfer.training import settings as settings_lib

# Patterns of the keys of a config that the step takes as arrays.
ARRAY_VALUED = ("name", "seed", "label_smoothing", "augment.mixup", "optim.lr",
                "optim.layer_decay", "optim.schedule*",
                *(f"optim.rules[[]*[]][[]1[]]{value}" for value in ("", ".lr", ".wd")))


class NonFiniteError(ArithmeticError):
  """Training diverged; the message says when and what to turn."""


def population_key(config: Mapping[str, Any]) -> str:
  """Returns text that is equal for configs that can be trained as one population."""
  config = settings_lib.recorded(config)
  there = {key: (config.get(section) or {}).get(key) is not None
           for section, key in (("augment", "mixup"), ("optim", "layer_decay"))}
  return configuring.identity("population", {"config": config, **there},
                              [f"config.{pattern}" for pattern in ARRAY_VALUED])


def check_alike(runs):
  """Raises ConfigError unless the runs can be one population, on the devices that are here."""
  if len(runs) == 1:
    return
  if jax.process_count() > 1:
    raise configuring.ConfigError(
        f"a population of {len(runs)} runs is trained by one process, here are "
        f"{jax.process_count()}: train the runs one by one")
  first = runs[0]
  for run in runs:
    if population_key(run["config"]) != population_key(first["config"]):
      changed = configuring.differences(first["config"], run["config"], ARRAY_VALUED)
      raise configuring.ConfigError(
          f"{first['workdir']} and {run['workdir']} can't be one population: their configs differ "
          "in more than what the step takes as arrays\n  " + "\n  ".join(changed) +
          f"\nOnly {', '.join(ARRAY_VALUED)} may differ, mixup and layer_decay where both "
          "have them")


class Member:
  """One of the runs that are trained together.

  Attributes:
    settings: its config, read.
    record: its folder.
    checkpoints: its checkpoints, once `saved_by` was entered.
    optimiser: its rules and rates.
    evaluated: whether its rows of this step are written.
    error: why it was given up; None while it goes on.
  """

  def __init__(self, asked, record, settings, *, names, total_steps):
    """Builds what differs from member to member.

    Args:
      asked: the arguments of `train`.
      record: the run's folder, a `records.Record`.
      settings: `Settings` of its config.
      names: of the model's parameters.
      total_steps: length of training.

    Raises:
      ValueError: an optimiser or schedule that can't be.
    """
    optimiser = dict(settings.optim)
    schedule = settings.fitted(optimiser.pop("schedule", {}), total_steps)
    self._asked, self._before = asked, {}
    self._schedule = configuring.build(
        schedules.unit_schedule, schedule, "optim.schedule", total_steps=total_steps)
    self.optimiser = configuring.build(optim.build, optimiser, "optim", names=names)
    self.settings, self.record, self.checkpoints = settings, record, None
    self.evaluated, self.error = False, None
    self._sinks = sinks.Sinks()

  def begin(self, facts):
    """Writes what is known before the first step; returns the timings of the processes before."""
    record, asked = self.record, self._asked
    record.write_config(asked["config"])  # not before it is known to be good: see `is_done`
    # As main found it: the others would perhaps read what main writes next.
    self._before = hosts.on_main(lambda: records.read_run(record.folder) if (
        record.folder / records.RUN).exists() else {})
    if "population" in self._before:  # else one that goes on alone would be said to be of one
      facts = {"population": None, **facts}
    record.update_run(
        id=configuring.identity("run", settings_lib.identified(
            asked["config"], facts.get("pretrained") or self._before.get("pretrained")),
                                configuring.HOUSEKEEPING),
        name=self.settings.name or asked.get("name", ""),
        config_name=asked.get("config_name", ""), overrides=asked.get("overrides") or {},
        status="running", error=None, signal=None, seed=self.settings.seed, **facts)
    if choice := asked.get("choice"):
      record.update_run(population_choice=choice._asdict())
    timings = dict(self._before.get("timings", {}))
    timings.pop("first step", None)  # of this process, not of the one before
    return timings

  def shown(self):
    """Opens the sinks; they are to be closed, as a context manager."""
    if hosts.is_main():
      self._sinks = sinks.open_sinks(
          self.settings.sinks, self.record.folder, config=self._asked["config"],
          run=records.read_run(self.record.folder))
    return self._sinks

  def saved_by(self, saving):
    """Opens the checkpoints; they are to be closed, as a context manager."""
    self.checkpoints = checkpoint.Checkpoints(self.record.folder / "checkpoints", saving.keep)
    return self.checkpoints

  def resume(self, like, total_steps, at=None):
    """Returns the state to go on from, None where there is none, and moves rows beyond it away.

    Args:
      like: see `Checkpoints.restore`.
      total_steps: length of training.
      at: the step to go on from; None for the newest.

    Raises:
      ValueError: the run is beyond its length, or a checkpoint can't serve.
    """
    restored = self.checkpoints.restore(like, at)
    if restored is None:
      self.record.truncate(0)
      return None
    state, meta = restored
    step = int(state.step)
    if step > total_steps:
      raise configuring.ConfigError(
          f"{self.record.folder} is at step {step}, beyond total_steps = {total_steps}: a run can "
          "be made longer, not shorter; use another --workdir")
    # What a finished run measured at its last step stays, though its checkpoint may be from
    # before that (a signal in the last evaluation).
    finished = self._before.get("status") == "finished" and self._before["step"] == step
    self.evaluated = finished or meta["evaluated"]
    discarded = 0 if finished else self.record.truncate(meta["metrics_bytes"])
    print(f"continuing from step {step}" + (
        f"; {discarded} rows beyond it moved to {records.DISCARDED}" if discarded else ""),
        flush=True)
    return state

  def hparams(self, step):
    """The arrays that the step takes beside state and batch."""
    s = self.settings
    rate = self.optimiser.hparams["lr"] * self._schedule[step]
    return {"seed": np.uint32(s.seed), "optim": {**self.optimiser.hparams, "lr": rate},
            "label_smoothing": np.float32(s.label_smoothing),
            "mixup": np.float32(settings_lib.Augment(**s.augment).mixup or 0.0)}

  def append(self, step, rows):
    """Writes rows measured when `step` steps were done."""
    examples = step * self.settings.batch_size
    rows = [{"step": step, "examples": examples, **row} for row in rows]
    self.record.append(rows)
    self._sinks.write(rows)

  def save(self, state):
    """Starts saving a state of this run."""
    self.checkpoints.save(
        state, {"metrics_bytes": self.record.length(), "evaluated": self.evaluated})

  def diverged(self, step):
    """The error of a run of which something was no finite number in `step`."""
    saved = self.checkpoints.latest()
    rate = float(self.hparams(step)["optim"]["lr"])
    return NonFiniteError(
        f"loss, gradients or parameters became infinite or NaN in step {step} (learning rate there "
        f"{rate:.3g}). What was written stays; the last good checkpoint is "
        f"{'that of step %d' % saved if saved else 'none yet'}. Likely knobs: a lower optim.lr, a "
        "longer optim.schedule.warmup_steps, optim.clip (now "
        f"{self.settings.optim.get('clip', 1.0)}), model.dtype=float32; then start in a new "
        "workdir")

  def fail(self, error):
    """Marks the run failed; nothing more is written of it."""
    self.error = f"{type(error).__name__}: {error}"
    try:
      self.record.update_run(status="failed", error=self.error)
    except records.RecordError as e:  # on a full disk, say; what came first is what is told
      error.add_note(f"run.json doesn't say so: {e}")


def is_done(record, config, allow_changes):
  """Whether the run is finished already, with this config.

  A run that failed before its first row may be begun again with another config: a typo claims no
  folder.

  Raises:
    ConfigError: it was begun with a config with which it can't go on.
  """
  old = begun_with(record)
  if old is None:
    return False
  may_differ = configuring.OPERATIONAL if allow_changes else ()
  if changed := configuring.differences(old, config, ignore=may_differ):
    raise configuring.ConfigError(
        f"{record.folder} was begun with another config:\n  " + "\n  ".join(changed) +
        "\nUse another --workdir, or the old values. Length, logging, saving and placing alone "
        f"({', '.join(configuring.OPERATIONAL)}) may change, with --allow_changes")
  if not (record.folder / records.RUN).exists():
    return False
  run = records.read_run(record.folder)
  length = ("step", "total_steps") if "total_steps" in config else ("total_epochs",) * 2
  return run["status"] == "finished" and run.get(length[0]) == config.get(length[1])


def begun_with(record):
  """The config of a run that has rows or checkpoints; None of one that has not."""
  return record.read_config() if record.length() > 0 or has_checkpoints(record) else None


def has_checkpoints(record):
  """Whether anything that looks like a checkpoint is in a run's folder."""
  folder = record.folder / "checkpoints"
  return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def resume(members, program, total_steps):
  """Returns the state that all members go on from, stacked where there are several; None if anew.

  Several go on from the last step of which all have a good checkpoint: a kill between two saves
  leaves some a save ahead, and all anew if that was the first save.

  Raises:
    ConfigError: members that have no such step in common.
  """
  if len(members) == 1:
    return members[0].resume(program.like, total_steps)
  steps = [set(member.checkpoints.good()) for member in members]
  common = set.intersection(*steps)
  if len(set.union(*steps)) == 1 and not common:
    for member in members:
      member.checkpoints.discard_after(0)
  elif any(steps) and not common:
    lines = [f"{member.record.folder}: {', '.join(map(str, sorted(own))) or 'none'}"
             for member, own in zip(members, steps)]
    raise configuring.ConfigError(
        "these runs have no checkpoint of the same step, so they can't go on together; train "
        "them one by one (a sweep does with --population 1). Their checkpoints:\n  " +
        "\n  ".join(lines))
  states = [member.resume(program.like, total_steps, max(common, default=None))
            for member in members]
  return program.stack(states) if common else None


def hparams(members, step):
  """The arrays that the step takes, stacked where there are several members."""
  each = [member.hparams(step) for member in members]
  return each[0] if len(each) == 1 else _stacked(each)


class Batches:
  """The training batches of this process, for all members.

  Attributes:
    stacked: whether a batch has an axis of members in front; members of one seed share it.
  """

  def __init__(self, members, data, step, process):
    """Begins with the batch of `step`; `data` is an `upstream.Data`, `process` (index, count)."""
    settings = members[0].settings
    augment = settings_lib.Augment(**settings.augment).on_host(settings.image_size)
    self._seeds = [member.settings.seed for member in members]
    self._streams = {seed: pipeline.train_batches(
        data.train, batch_size=settings.batch_size, seed=seed, step=step, augment=augment,
        examples=data.examples, process=process) for seed in dict.fromkeys(self._seeds)}
    self.stacked = len(self._streams) > 1

  def __next__(self):
    read = {seed: next(stream) for seed, stream in self._streams.items()}
    return _stacked([read[seed] for seed in self._seeds]) if self.stacked else (
        read[self._seeds[0]])

  def close(self):
    """Ends reading ahead."""
    for stream in self._streams.values():
      stream.close()


def _stacked(trees):
  """Nested dicts of arrays as one, with an axis in front."""
  first = trees[0]
  return {key: _stacked([tree[key] for tree in trees]) if isinstance(first[key], dict)
          else np.stack([tree[key] for tree in trees]) for key in first}
