"""One run: pre-train a model, probe it as it trains, leave a record.

    python -m big_transfer.train --config configs/pretrain/fractals.py:vit --workdir runs/first \\
        --config.total_steps=1000

or, from Python, `train(config, "runs/first")`. The same command continues a run that was stopped,
to the bit. The folder it leaves is described in `runs/records.py`, the config in `Settings`.

Runs whose configs differ only in what the step takes as arrays (`population_key`) can be trained
at once, as a population: `train_population`. Each leaves what it would have left alone.
"""
import argparse
import collections
import contextlib
import dataclasses
import functools
import signal
import sys
import time
from typing import Any, Callable, Mapping, Sequence

from clu import parameter_overview
import jax
import numpy as np

from big_transfer import evaluators
from big_transfer.evaluators import heads
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.runs import sinks
from big_transfer.training import batching
from big_transfer.training import hosts
from big_transfer.training import initial as initial_lib
from big_transfer.training import interrupts as interrupts_lib
from big_transfer.training import members as members_lib
from big_transfer.training import profiling
from big_transfer.training import program as program_lib
from big_transfer.training import progress as progress_lib
from big_transfer.training import provenance
from big_transfer.training import settings as settings_lib
from big_transfer.training import sharding
from big_transfer.training import upstream as upstream_lib


Settings = settings_lib.Settings  # the keys of a config
NonFiniteError = members_lib.NonFiniteError
population_key = members_lib.population_key  # equal for configs that can be one population


@dataclasses.dataclass(frozen=True)
class _Group:
  """What the runs that are trained together are made of, once their settings are read.

  Attributes:
    settings: of the first; the others' differ in arrays alone.
    members: the runs.
    program: theirs, stacked where there are several.
    data: what they are trained on.
    evaluators: scheduled.
    saving: when.
    total_steps: of each.
    initial: what they start from, an `initial.Initial`; None for random parameters.
    probe_head: makes a head, see `initial.Initial.states`.
  """
  settings: Settings
  members: list[members_lib.Member]
  program: program_lib.Program
  data: upstream_lib.Data
  evaluators: list
  saving: settings_lib.Saving
  total_steps: int
  initial: initial_lib.Initial | None
  probe_head: Callable

  @property
  def stacked(self):
    return len(self.members) > 1

  @property
  def live(self):
    """`(index, member)` of those that have not diverged."""
    return [(i, member) for i, member in enumerate(self.members) if member.error is None]

  def examples(self, step):
    """Training examples seen by each after so many steps."""
    return step * self.settings.batch_size


def train(config, workdir, *, name="", config_name="", overrides=None, allow_changes=False):
  """Trains, evaluates and records one run, or continues it.

  Args:
    config: ConfigDict or mapping, see `Settings`.
    workdir: the run's folder; made if it isn't there.
    name: what people call it, if its config doesn't say; goes into run.json, as do the next two.
    config_name: its base config, such as "configs/pretrain/cifar10.py".
    overrides: by what it differs from that, `{path: value}`.
    allow_changes: continue a run whose length, logging, saving or placing on devices is not what
      it was.

  Returns:
    The content of run.json; its `status` is "finished", or "interrupted" after SIGINT or SIGTERM
    (then `signal` is the signal's number).

  Raises:
    ValueError: the config, the data or the workdir is not as it should be.
    NonFiniteError: loss, gradients or parameters became infinite or NaN.

  Example:
    train(configuring.load("configs/pretrain/fractals.py"), "runs/first")
  """
  [run] = train_population([dict(
      config=config, workdir=workdir, name=name, config_name=config_name, overrides=overrides,
      allow_changes=allow_changes)])
  return run


def train_population(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Trains several runs as one program, or continues them from the last step that all have.

  Each has the data order, the probes' draws, the rows, record and checkpoints it would have had
  alone; its numbers differ by what a batched program rounds otherwise. One that diverges is marked
  failed in its run.json and leaves the others as they are. One alone is `train`.

  Args:
    runs: of each the arguments of `train`, by name.

  Returns:
    The content of run.json of each.

  Raises:
    ValueError: as `train`; or configs of which `population_key` differs, or runs that have no
      step in common to continue from.
    NonFiniteError: of one run alone.
  """
  runs = [{**run, "config": settings_lib.recorded(run["config"])} for run in runs]
  members_lib.check_alike(runs)
  with contextlib.ExitStack() as on_exit:
    interrupts = on_exit.enter_context(interrupts_lib.Interrupts())
    on_exit.enter_context(hosts.quiet())
    opened = [on_exit.enter_context(hosts.first_main(
        functools.partial(records.Record, run["workdir"]),
        functools.partial(records.Follower, run["workdir"]))) for run in runs]
    completed = hosts.on_main(lambda: [
        initial_lib.completed(run["config"], members_lib.begun_with(record))
        for run, record in zip(runs, opened)])
    runs = [{**run, "config": config} for run, config in zip(runs, completed)]
    done = hosts.on_main(lambda: [members_lib.is_done(
        record, run["config"], run.get("allow_changes", False))
                                  for run, record in zip(runs, opened)])
    begun = [pair for pair, is_done in zip(zip(runs, opened), done) if not is_done]
    for record in opened:
      if record not in [record for _, record in begun]:
        print(f"{record.folder} is finished already; nothing to do", flush=True)
    if begun:
      _train(begun, interrupts)
    return hosts.on_main(lambda: [records.read_run(record.folder) for record in opened])


def program_key(config: Mapping[str, Any]) -> str:
  """Returns text that is equal for configs whose runs can share compiled programs."""
  settings = configuring.build(
      Settings, initial_lib.named(settings_lib.recorded(config)), "")
  return configuring.canonical([
      program_lib.arguments(settings), settings.task, settings.evals, settings.batch_size])


def choose_population(config: Mapping[str, Any], members: int, *, same_data: bool,
                      step: int = 0) -> batching.Choice:
  """Finds out how many runs that are alike (`population_key`) are best trained at once, by timing.

  Args:
    config: of one of them.
    members: the most there can be.
    same_data: whether their seeds are equal.
    step: where they go on from.
  """
  settings = initial_lib.read_settings(config)
  settings_lib.check(settings)
  data = upstream_lib.open_data(settings)
  arguments = dict(classes=data.train.num_classes, **program_lib.arguments(settings))
  return batching.choose(lambda members: program_lib.build(members=members, **arguments),
                         settings, data, members, same_data=same_data, step=step)


def _train(begun, interrupts):
  """Trains the runs, `[(arguments of train, record)]`, to the end or to a signal."""
  started = time.time()
  group = _prepare(begun, interrupts.check)
  facts = _facts(group)
  clock = collections.Counter([member.begin(facts) for member in group.members][0])
  try:
    with contextlib.ExitStack() as on_exit:
      for member in group.members:
        on_exit.enter_context(member.shown())  # closed last: it may take its time
      for member in group.members:
        on_exit.enter_context(member.saved_by(group.saving))
      state, step = _start(group)
      batches = on_exit.enter_context(contextlib.closing(members_lib.Batches(
          group.members, group.data, step, hosts.process())))
      progress = progress_lib.Progress(group.total_steps, step, group.settings.batch_size,
                                       len(group.members))
      clock["start"] += time.time() - started
      in_flight = collections.deque()
      profiler = profiling.Profiler(group.settings.profile if hosts.is_main() else None,
                                    group.members[0].record.folder)
      on_exit.callback(profiler.close)
      while True:
        _evaluate(group, state, step, progress, clock)
        last, stop = step == group.total_steps, interrupts.poll()
        if stop or group.saving.due(step, group.total_steps):
          _save(group, state)
        if stop or last or not group.live:
          break
        batch = sharding.put_batch(next(batches), group.program.mesh, batches.stacked)
        profiler.step(step, in_flight)
        state, measures = group.program.step(
            state, batch, members_lib.hparams(group.members, step))
        step += 1
        for member in group.members:
          member.evaluated = False
        if "first step" not in clock:
          jax.block_until_ready(measures)
          clock["first step"] = time.time() - started
          progress.restart(step)
        in_flight.append(measures)  # bounds how far this process runs ahead of its devices
        if len(in_flight) > 2:
          jax.block_until_ready(in_flight.popleft())
        if step % group.settings.log_every == 0 or step == group.total_steps:
          _log(group, state, step, measures, progress)
  except Exception as e:
    for _, member in group.live:
      member.fail(e)
    raise
  clock["wall"] += time.time() - started
  stopped = bool(stop) and not (last and all(member.evaluated for _, member in group.live))
  progress.end(
      "no run is left: all diverged" if not group.live else
      f"stopped by {stop} at step {step} of {group.total_steps}, saved; the same command continues"
      if stopped else f"finished {step} steps")
  for _, member in group.live:
    member.record.update_run(
        status="interrupted" if stopped else "finished", step=step,
        signal=interrupts.number if stopped else None, wall_seconds=clock["wall"],
        timings=dict(clock), examples_seen=group.examples(step),
        epochs=group.examples(step) / group.data.train_examples)


def _prepare(begun, stop_check):
  """Opens the data and builds program, members and evaluators."""
  build = configuring.build
  each = [initial_lib.read_settings(run["config"]) for run, _ in begun]
  for settings in each:
    settings_lib.check(settings)
  settings = each[0]
  for sink in settings.sinks:
    sinks.check(sink)
  profiling.spans(settings.profile)
  data = upstream_lib.open_data(settings)
  total_steps = settings.steps(data.train_examples)
  program = program_lib.build(
      classes=data.train.num_classes, members=len(begun) if len(begun) > 1 else None,
      **program_lib.arguments(settings))
  members = [
      members_lib.Member(run, record, own, names=program.names, total_steps=total_steps)
      for (run, record), own in zip(begun, each)]
  initial = settings.init and initial_lib.prepare(
      settings, program, [record for _, record in begun], total_steps)
  context = evaluators.Context(
      apply=program.apply, put=lambda batch: sharding.put_batch(batch, program.mesh),
      check=stop_check, prepare=data.prepare,
      upstream=evaluators.Upstream(
          data.name, data.train, data.examples, data.test, program.loss, data.variant,
          _setting(settings, members), [own.seed for own in each]),
      layers=program.layers, fetch=hosts.fetch, process=hosts.process(),
      batch_size=sharding.whole_batch(settings.eval_batch_size, program.mesh))
  return _Group(
      settings=settings, members=members, program=program, data=data,
      evaluators=evaluators.build(settings.evals, context, build),
      saving=build(settings_lib.Saving, settings.checkpoint, "checkpoint"),
      total_steps=total_steps, initial=initial,
      # A signal waits for it: there is nothing to save yet.
      probe_head=functools.partial(
          heads.from_probe, dataclasses.replace(context, check=lambda: None)))


def _setting(settings, members):
  return initial_lib.setting(settings.init, members[0].optimiser)


def _start(group):
  """Returns the state to go on from and its step."""
  members, program = group.members, group.program
  hosts.on_main(lambda: members[0].checkpoints.check_space(program.like, len(members)))
  state = members_lib.resume(members, program, group.total_steps)
  if state is None:
    seeds = [np.uint32(member.settings.seed) for member in members]
    if group.initial is None:
      state = program.init(np.stack(seeds) if group.stacked else seeds[0])
    else:
      print(group.initial, flush=True)
      states = group.initial.states(map(int, seeds), group.probe_head)
      state = program.stack(states) if group.stacked else states[0]
    params = program.split(state)[0].params if group.stacked else state.params
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    print(members[0].optimiser.table, flush=True)
  if program.mesh.size > 1:
    print(sharding.summary(program.like.params), flush=True)
  return state, int(np.ravel(state.step)[0])


def _evaluate(group, state, step, progress, clock):
  """Runs the evaluators that are due, for members not evaluated yet, unless a signal comes."""
  waiting = [(i, member) for i, member in group.live if not member.evaluated]
  due = [item for item in group.evaluators if item.due(step, group.total_steps)]
  if due and waiting:
    _part_with_diverged(group, state)  # else rows of a diverged model would pass for good
  rows = [[] for _ in group.members]
  for item in due if waiting else ():
    began = time.time()
    try:
      found = (item.run_members(state.params, step, len(group.members)) if group.stacked
               else [item.run(state.params, step)])
    except interrupts_lib.Interrupted:
      return  # none of this step's rows are kept: all are measured again on resuming
    for own, more in zip(rows, found):
      own += more
    clock[f"evaluate {item.name}"] += time.time() - began
    progress.evaluated(item.name, item.every, time.time() - began)
  for i, member in waiting:
    if member.error is None:
      member.append(step, rows[i])
      member.evaluated = True
  if measured := [row for i, member in waiting if member.error is None for row in rows[i]]:
    progress.measured(step, measured)


def _save(group, state):
  _part_with_diverged(group, state)
  states = group.program.split(state) if group.stacked else [state]
  # The last save of all before the next of any: whenever a kill comes, they have one in common.
  for _, member in group.live:
    member.checkpoints.wait()
  for i, member in group.live:
    member.save(states[i])


def _log(group, state, step, measures, progress):
  """Writes the measures of the step just done and shows how far the runs are."""
  measures = {key: np.ravel(value) for key, value in measures.items()}
  for i, member in group.live:
    member.append(step, (
        {"evaluator": "train", "task": group.data.name, "split": "train", "metric": key,
         "value": float(values[i])} for key, values in measures.items()))
  _part_with_diverged(group, state)
  if live := [i for i, _ in group.live]:
    progress.show(step, float(np.mean(measures["loss"][live])))


def _part_with_diverged(group, state):
  """Marks members failed of which something was no finite number; one alone raises."""
  bad = np.ravel(state.bad_step)
  for i, member in group.live:
    if bad[i] >= 0:
      error = member.diverged(int(bad[i]))
      if not group.stacked:
        raise error
      member.fail(error)
      print(f"{member.record.folder}: {error}", flush=True)


def _facts(group):
  """The fields of run.json that are known before the first step and are alike for all members."""
  s, p, data = group.settings, group.program, group.data
  return dict(
      model={"family": s.model["name"], "label": p.label, **s.model}, parameters=p.parameters,
      flops_per_example=p.flops, batch_size=s.batch_size,
      total_steps=group.total_steps, total_epochs=s.total_epochs,
      upstream={"name": data.name, "classes": data.train.num_classes,
                "train_examples": data.train_examples, "test_examples": len(data.test),
                "fraction": s.fraction[0], "fraction_seed": s.fraction[1]},
      setting=_setting(s, group.members), **(group.initial.facts() if group.initial else {}),
      **({"population": len(group.members)} if group.stacked else {}), **provenance.provenance())


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
  parser.add_argument("--distributed", action="store_true",
                      help="one run of many processes, each started with this command; on TPU "
                           "slices and under Slurm JAX finds them, elsewhere by the variables "
                           "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID")
  parser.add_argument("--heartbeat_seconds", type=float, default=60,
                      help="with --distributed: a process not heard of for so long is given up, "
                           "and all end (default: 60)")
  parser.add_argument("--start_seconds", type=float, default=300,
                      help="with --distributed: how long to wait for all to come (default: 300)")
  args = parser.parse_args(others)
  try:
    with (hosts.joined(args.heartbeat_seconds, args.start_seconds) if args.distributed
          else contextlib.nullcontext()):
      config = configuring.load(args.config)
      overrides = configuring.parse_values(config, texts)
      run = train(configuring.override(config, overrides), args.workdir,
                  config_name=args.config, overrides=overrides, allow_changes=args.allow_changes)
  except (ValueError, OSError, ArithmeticError) as e:
    sys.exit(hosts.told(e))
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  if run["status"] == "interrupted":
    sys.exit(128 + run["signal"])


if __name__ == "__main__":
  main()
