"""One run: pre-train a model, probe it as it trains, leave a record.

    python -m big_transfer.train --config configs/pretrain/cifar10.py --workdir runs/first \\
        --config.total_steps=1000

or, from Python, `train(config, "runs/first")`. The same command continues a run that was stopped,
to the bit. The folder it leaves is described in `runs/records.py`, the config in `Settings`.
"""
import argparse
import collections
import contextlib
import dataclasses
import signal
import sys
import time

from clu import parameter_overview
import jax
import numpy as np

from big_transfer import evaluators
from big_transfer.data import pipeline
from big_transfer.data import transforms
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import interrupts as interrupts_lib
from big_transfer.training import optim
from big_transfer.training import program as program_lib
from big_transfer.training import progress as progress_lib
from big_transfer.training import provenance
from big_transfer.training import schedules
from big_transfer.training import settings as settings_lib
from big_transfer.training import sharding
from big_transfer.training import upstream as upstream_lib


Settings = settings_lib.Settings  # the keys of a config


class NonFiniteError(ArithmeticError):
  """Training diverged; the message says when and what to turn."""


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a run is made of, once its settings are read."""
  settings: Settings
  program: program_lib.Program
  optimiser: optim.Optimiser
  schedule: np.ndarray
  data: upstream_lib.Data
  evaluators: list
  saving: settings_lib.Saving

  @property
  def total_steps(self):
    return len(self.schedule)

  def hparams(self, step):
    """The arrays that the step takes beside state and batch."""
    s = self.settings
    rate = self.optimiser.hparams["lr"] * self.schedule[step]
    return {"seed": np.uint32(s.seed), "optim": {**self.optimiser.hparams, "lr": rate},
            "label_smoothing": np.float32(s.label_smoothing),
            "mixup": np.float32(settings_lib.Augment(**s.augment).mixup or 0.0)}

  def batches(self, step):
    """The training batches of this process from `step` on."""
    s, augment = self.settings, None
    if settings_lib.Augment(**s.augment).inception_crop:
      augment = transforms.inception_crop(s.image_size)
    return pipeline.train_batches(
        self.data.train, batch_size=s.batch_size, seed=s.seed, step=step, augment=augment,
        examples=self.data.examples, process=(jax.process_index(), jax.process_count()))


def train(config, workdir, *, name="", config_name="", overrides=None, allow_changes=False):
  """Trains, evaluates and records one run, or continues it.

  Args:
    config: ConfigDict or mapping, see `Settings`.
    workdir: the run's folder; made if it isn't there.
    name: what people call it, if its config doesn't say; goes into run.json, as do the next two.
    config_name: its base config, such as "configs/pretrain/cifar10.py".
    overrides: by what it differs from that, `{path: value}`.
    allow_changes: continue a run whose length, logging or saving is not what it was.

  Returns:
    The content of run.json; its `status` is "finished", or "interrupted" after SIGINT or SIGTERM
    (then `signal` is the signal's number).

  Raises:
    ValueError: the config, the data or the workdir is not as it should be.
    NonFiniteError: loss, gradients or parameters became infinite or NaN.

  Example:
    train(configuring.load("configs/pretrain/fractals.py"), "runs/first")
  """
  config = settings_lib.recorded(config)
  with records.Record(workdir) as record, interrupts_lib.Interrupts() as interrupts:
    if _is_done(record, config, allow_changes):
      print(f"{record.folder} is finished already; nothing to do", flush=True)
      return records.read_run(record.folder)
    started = time.time()
    run = _prepare(_settings(config), interrupts.check)
    record.write_config(config)  # not before it is known to be good: a typo claims no folder
    total_steps = run.total_steps
    before = records.read_run(record.folder) if (record.folder / records.RUN).exists() else {}
    record.update_run(
        id=configuring.identity("run", config, configuring.HOUSEKEEPING),
        name=run.settings.name or name, config_name=config_name, overrides=overrides or {},
        status="running", error=None, signal=None, **_facts(run))
    clock = collections.Counter(before.get("timings", {}))
    clock.pop("first step", None)  # of this process, not of the one before
    try:
      with checkpoint.Checkpoints(record.folder / "checkpoints", run.saving.keep) as checkpoints, (
          contextlib.ExitStack()) as on_exit:
        state, evaluated = _start(run, checkpoints, record, before)
        step = int(state.step)
        batches = on_exit.enter_context(contextlib.closing(run.batches(step)))
        progress = progress_lib.Progress(total_steps, step, run.settings.batch_size)
        clock["start"] += time.time() - started
        in_flight = collections.deque()
        while True:
          if not evaluated:
            evaluated = _evaluate(run, state, step, record, progress, clock, checkpoints)
          last = step == total_steps
          if interrupts.signal or run.saving.due(step, total_steps):
            _save(run, checkpoints, state, record, evaluated)
          if interrupts.signal or last:
            break
          batch = sharding.put_batch(next(batches), run.program.mesh)
          state, measures = run.program.step(state, batch, run.hparams(step))
          step, evaluated = step + 1, False
          if "first step" not in clock:
            jax.block_until_ready(measures)
            clock["first step"] = time.time() - started
            progress.restart(step)
          in_flight.append(measures)  # bounds how far this process runs ahead of its devices
          if len(in_flight) > 2:
            jax.block_until_ready(in_flight.popleft())
          if step % run.settings.log_every == 0 or step == total_steps:
            _log(run, state, step, measures, record, progress, checkpoints)
    except Exception as e:
      record.update_run(status="failed", error=f"{type(e).__name__}: {e}")
      raise
    clock["wall"] += time.time() - started
    stopped = bool(interrupts.signal) and not (last and evaluated)
    progress.end(f"stopped by {interrupts.signal} at step {step} of {total_steps}, saved; the "
                 "same command continues" if stopped else f"finished {total_steps} steps")
    return record.update_run(
        status="interrupted" if stopped else "finished", step=step,
        signal=interrupts.number if stopped else None, wall_seconds=clock["wall"],
        timings=dict(clock), examples_seen=step * run.settings.batch_size,
        epochs=step * run.settings.batch_size / run.data.train_examples)


def program_key(config):
  """Returns text that is equal for configs whose runs can share compiled programs."""
  settings = _settings(config)
  return configuring.canonical([
      _program_arguments(settings), settings.task, settings.evals, settings.batch_size])


def _settings(config):
  return configuring.build(Settings, configuring.plain(config), "")


def _is_done(record, config, allow_changes):
  """Whether the run is finished already, with this config; one it can't go on with is an error."""
  old = record.read_config() if _is_begun(record) else None
  if old is None:
    return False
  may_differ = configuring.OPERATIONAL if allow_changes else ()
  if changed := configuring.differences(old, config, ignore=may_differ):
    raise configuring.ConfigError(
        f"{record.folder} was begun with another config:\n  " + "\n  ".join(changed) +
        "\nUse another --workdir, or the old values. Length, logging and saving alone "
        f"({', '.join(configuring.OPERATIONAL)}) may change, with --allow_changes")
  if not (record.folder / records.RUN).exists():
    return False
  run = records.read_run(record.folder)
  length = ("step", "total_steps") if "total_steps" in config else ("total_epochs",) * 2
  return run["status"] == "finished" and run.get(length[0]) == config.get(length[1])


def _is_begun(record):
  """Whether the folder holds anything of a run: a run that failed before its first row may be begun
  again with another config."""
  checkpoints = record.folder / "checkpoints"
  return record.length() > 0 or checkpoints.is_dir() and any(
      path.name.isdigit() for path in checkpoints.iterdir())


def _prepare(settings, stop_check):
  """Opens the data and builds program, optimiser, schedule and evaluators."""
  build = configuring.build
  settings_lib.check(settings)
  data = upstream_lib.open_data(settings)
  optimiser = dict(settings.optim)
  steps = settings.steps(data.train_examples)
  schedule = build(schedules.unit_schedule, settings.fitted(optimiser.pop("schedule", {}), steps),
                   "optim.schedule", total_steps=steps)
  program = program_lib.build(classes=data.train.num_classes, **_program_arguments(settings))
  context = evaluators.Context(
      apply=program.apply, put=lambda batch: sharding.put_batch(batch, program.mesh),
      check=stop_check, prepare=data.prepare,
      upstream=evaluators.Upstream(data.name, data.train, data.examples, data.test, program.loss),
      layers=program.layers, batch_size=settings.eval_batch_size)
  saving = build(settings_lib.Saving, settings.checkpoint, "checkpoint")
  return _Run(
      settings=settings, program=program, schedule=schedule, saving=saving, data=data,
      optimiser=build(optim.build, optimiser, "optim", names=program.names),
      evaluators=evaluators.build(settings.evals, context, build))


def _program_arguments(settings):
  """What a program is compiled from, but the number of classes; checks its sections' keys."""
  optimiser = {k: v for k, v in settings.optim.items() if k != "schedule"}
  configuring.check(optim.build, optimiser, "optim", given=("names",))
  settings_lib.check_model(settings)
  optimiser = {k: v for k, v in optimiser.items() if k not in ("lr", "rules")}
  augment = configuring.build(settings_lib.Augment, settings.augment, "augment")
  return dict(
      model=settings.model, image_size=settings.image_size, optimiser=optimiser,
      patterns=[pattern for pattern, _ in settings.optim["rules"]], loss=settings.loss,
      augment=dict(crop_padding=augment.crop_padding, flip=augment.flip),
      mixup=augment.mixup is not None, accumulate=settings.accumulate,
      mesh=settings.mesh, sharding=settings.sharding)


def _start(run, checkpoints, record, before):
  """Returns the state to go on from, and whether it was evaluated already.

  `before` is the run.json of when the run ended last: what a finished run measured at its last
  step stays, though its checkpoint may be from before that (a signal in the last evaluation).
  """
  restored = checkpoints.restore(run.program.like)
  if restored is None:
    record.truncate(0)
    state = run.program.init(np.uint32(run.settings.seed))
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(run.optimiser.table, flush=True)
    return state, False
  state, meta = restored
  if int(state.step) > run.total_steps:
    raise configuring.ConfigError(
        f"{record.folder} is at step {int(state.step)}, beyond total_steps = "
        f"{run.total_steps}: a run can be made longer, not shorter; use another --workdir")
  if before.get("status") == "finished" and before["step"] == int(state.step):
    return state, True
  discarded = record.truncate(meta["metrics_bytes"])
  print(f"continuing from step {int(state.step)}" + (
      f"; {discarded} rows beyond it moved to {records.DISCARDED}" if discarded else ""), flush=True)
  return state, meta["evaluated"]


def _evaluate(run, state, step, record, progress, clock, checkpoints):
  """Runs the evaluators that are due; returns False if a signal cut them short."""
  due = [item for item in run.evaluators if item.due(step, run.total_steps)]
  if due:
    _raise_if_bad(run, state, checkpoints)  # else rows of a diverged model would pass for good
  rows = []
  for item in due:
    began = time.time()
    try:
      rows += item.run(state.params, step)
    except interrupts_lib.Interrupted:
      return False  # none of this step's rows are kept: all are measured again on resuming
    clock[f"evaluate {item.name}"] += time.time() - began
    progress.evaluated(item.name, item.every, time.time() - began)
  examples = step * run.settings.batch_size
  record.append({"step": step, "examples": examples, **row} for row in rows)
  if rows:
    progress.measured(step, rows)
  return True


def _save(run, checkpoints, state, record, evaluated):
  _raise_if_bad(run, state, checkpoints)
  checkpoints.save(state, {"metrics_bytes": record.length(), "evaluated": evaluated})


def _log(run, state, step, measures, record, progress, checkpoints):
  """Writes the measures of the step just done and shows how far the run is."""
  measures = {key: float(value) for key, value in measures.items()}
  record.append(
      {"step": step, "examples": step * run.settings.batch_size, "evaluator": "train",
       "task": run.data.name, "split": "train", "metric": key, "value": value}
      for key, value in measures.items())
  _raise_if_bad(run, state, checkpoints)
  progress.show(step, measures["loss"])


def _raise_if_bad(run, state, checkpoints):
  bad = int(state.bad_step)
  if bad >= 0:
    saved = checkpoints.latest()
    rate = float(run.hparams(bad)["optim"]["lr"])
    raise NonFiniteError(
        f"loss, gradients or parameters became infinite or NaN in step {bad} (learning rate there "
        f"{rate:.3g}). What was written stays; the last good checkpoint is "
        f"{'that of step %d' % saved if saved else 'none yet'}. Likely knobs: a lower optim.lr, a "
        f"longer optim.schedule.warmup_steps, optim.clip (now {run.settings.optim.get('clip', 1.0)}"
        "), model.dtype=float32; then start in a new workdir")


def _facts(run):
  """The fields of run.json that are known before the first step."""
  s, p = run.settings, run.program
  return dict(
      model={"family": s.model["name"], "label": p.label, **s.model}, parameters=p.parameters,
      flops_per_example=p.flops, seed=s.seed, batch_size=s.batch_size,
      total_steps=run.total_steps, total_epochs=s.total_epochs,
      upstream={"name": run.data.name, "classes": run.data.train.num_classes,
                "train_examples": run.data.train_examples, "test_examples": len(run.data.test),
                "fraction": s.fraction[0], "fraction_seed": s.fraction[1]},
      **provenance.provenance())


def main(argv=None):
  """The command; see the module."""
  texts, others = configuring.split_arguments(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.train", description=__doc__.split("\n", maxsplit=1)[0],
      formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog="Any key of the config can be set (big_transfer.train.Settings says what they are):\n"
             "  --config.optim.lr=3e-4\n  '--config.optim.rules[0][1].wd=1.0'\n"
             "and an evaluator added, whole:\n"
             "  '--config.evals.geometry={\"kind\": \"geometry\", \"every\": 500}'")
  parser.add_argument("--config", required=True, help="configs/….py or configs/….py:argument")
  parser.add_argument("--workdir", required=True, help="the run's folder; made or continued")
  parser.add_argument("--allow_changes", action="store_true",
                      help="continue though length, logging or saving was changed")
  args = parser.parse_args(others)
  try:
    config = configuring.load(args.config)
    overrides = configuring.parse_values(config, texts)
    run = train(configuring.override(config, overrides), args.workdir,
                config_name=args.config, overrides=overrides, allow_changes=args.allow_changes)
  except (ValueError, OSError, ArithmeticError) as e:
    notes = [note for note in getattr(e, "__notes__", ()) if note.startswith("in evaluator")]
    sys.exit("\n  ".join([f"error: {e}", *notes]))
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  if run["status"] == "interrupted":
    sys.exit(128 + run["signal"])


if __name__ == "__main__":
  main()
