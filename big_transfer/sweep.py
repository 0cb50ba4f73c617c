"""Many runs: the trials of a sweep file, as local processes or on a cluster.

    python -m big_transfer.sweep --sweep configs/quickstart.py --workdir runs/quickstart --jobs 2
    python -m big_transfer.sweep --sweep FILE.py --workdir DIR --engine ray --resources num_gpus=1
    python -m big_transfer.sweep --sweep FILE.py --workdir DIR --engine slurm \\
        --slurm partition=gpu,gpus_per_node=1,timeout_min=600

Each trial trains in a folder of its own under `--workdir`, named by a hash of the base config's
name and of what the trial overrides, without the keys of logging and saving. The rest of the base
config has no part in it, so that a setting the base gains later leaves finished trials where they
are. Running the command again skips what is finished, continues what isn't, and tries again what
failed. `--config.key=value` changes the base config, and counts as an override of every trial.

Local workers divide the cores. On an accelerator, which takes one process at a time, use
`--jobs 1`. On a cluster, `--workdir` and the data are on storage that all its nodes see, and this
package is installed on each; a trial lost with its node is continued elsewhere.

With `--population N|auto`, trials that differ in rates, decays, seeds, smoothing or mixup alone are
trained as one program, at most N at once, each with the record it would have had alone; with
`auto` only where that was timed to be faster (log.txt and run.json say so); see `population`.

Exit codes: 0 all finished, 1 some failed, 2 bad input, 130 or 143 stopped by SIGINT or SIGTERM.
"""
import argparse
import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import sys
import time
from typing import Any, Callable, Mapping, Sequence, TextIO

from big_transfer import population as population_lib
from big_transfer.runs import configuring
from big_transfer.runs import engines
from big_transfer.runs import records

LOG = "log.txt"
# How often progress is printed where there is no terminal to rewrite a line on.
PRINT_SECONDS = 5.0
# How much of a failed trial's log the summary shows.
TAIL_LINES = 8
# How many trials that failed alike it names.
NAMES = 3
# Where under the workdir the jobs of a Slurm cluster are kept.
SLURM = ".slurm"


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep.

  Attributes:
    name: its overrides, for people.
    config_name: the sweep's file.
    folder: its run folder, absolute.
    config: its config, plain.
    overrides: path → value, those of the command line included.
    finished: whether it had finished before.
  """
  name: str
  config_name: str
  folder: pathlib.Path
  config: dict[str, Any]
  overrides: dict[str, Any]
  finished: bool


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a sweep; `signal` is the number of what stopped it, if anything did."""
  trials: list[Trial]
  outcomes: list[engines.Outcome]
  signal: int | None

  def having(self, status: str) -> list[engines.Outcome]:
    """Returns the outcomes with a status: "done", "failed" or "unfinished"."""
    return [outcome for outcome in self.outcomes if outcome.status == status]


def run_trial(payload: Mapping[str, Any]) -> dict[str, Any]:
  """Trains one trial, in a worker; returns the content of its run.json.

  The payload of several trials goes to `population.run_trials`, whose list is returned.

  Raises:
    RuntimeError: it stopped before its end.
  """
  if "members" in payload:
    return population_lib.run_trials(payload)
  from big_transfer import train  # here, since only a worker's cores are bound before jax starts
  # Logging and saving may have changed since the trial began; `trials_of` saw that no more has.
  run = train.train(**payload, allow_changes=True)
  if run["status"] != "finished":
    raise RuntimeError(f"training stopped early: {run['status']}")
  return run


def program_of(config: Mapping[str, Any]) -> str:
  """Returns a key that trials with the same compiled programs have in common."""
  from big_transfer import train  # here, so that a sweep with nothing left to do answers at once
  return train.program_key(config)


def population_of(config: Mapping[str, Any]) -> str:
  """Returns a key that trials which can be trained as one program have in common."""
  from big_transfer import train  # as above
  return train.population_key(config)


def trials_of(spec: str, workdir: str | os.PathLike,
              texts: Mapping[str, str] | None = None) -> list[Trial]:
  """Returns the trials of a sweep file, in its order.

  Args:
    spec: "path/to/sweep.py" or "path/to/sweep.py:arg".
    workdir: the folder of their folders.
    texts: path → text of the command line's changes to the base config.

  Raises:
    ConfigError: as `configuring.load_sweep`; or a key both varied and on the command line, two
      trials that differ in logging and saving only, a folder whose recorded config differs.
  """
  name, base, given = configuring.load_sweep(spec)
  common = configuring.parse_values(base, texts or {})
  base = configuring.override(base, common)
  root = pathlib.Path(workdir).expanduser().absolute()
  trials, names = [], {}
  for varied in given:
    both = sorted(common.keys() & varied.keys())
    if both:
      raise configuring.ConfigError(f"config key '{both[0]}' is varied by the sweep '{spec}': take "
                                    "it off the command line, or edit the sweep")
    overrides = common | varied
    key = configuring.identity(name, overrides, configuring.HOUSEKEEPING)
    label = varied.get("name") or _label(varied)
    if key in names:
      raise configuring.ConfigError(f"trials '{names[key]}' and '{label}' of sweep '{spec}' differ "
                                    "only in logging or saving: they would be the same run")
    names[key] = label
    config = configuring.plain(configuring.override(base, varied))
    config, finished = _recorded(root / key, config, label)
    trials.append(Trial(label, str(spec), root / key, config, overrides, finished))
  return trials


def sweep(
    spec: str,
    workdir: str | os.PathLike,
    jobs: int | None = None,
    *,
    retries: int = 1,
    texts: Mapping[str, str] | None = None,
    function: Callable[[dict[str, Any]], Any] = run_trial,
    group_of: Callable[[dict[str, Any]], str] = program_of,
    out: TextIO | None = None,
    engine: str = "local",
    options: Mapping[str, Any] | None = None,
    population: int | str = 1,
    alike_of: Callable[[dict[str, Any]], str] = population_of,
) -> Result:
  """Runs what isn't finished of a sweep, telling how far it is.

  Args:
    spec: "path/to/sweep.py" or "path/to/sweep.py:arg".
    workdir: the folder of the trials' folders.
    jobs: trials at once; by default as many as cores this process may use, or what the cluster
      has room for.
    retries: further attempts for a trial that fails, but for a ValueError, which is a mistake in
      what was asked for.
    texts: path → text of changes to the base config, as on the command line.
    function: what runs a trial, importable; called with `config`, `workdir`, `name`,
      `config_name`, `overrides` in one dict.
    group_of: config → key that trials with the same compiled programs have in common.
    out: where progress and summary go; standard output by default.
    engine: "local", "ray" or "slurm".
    options: further arguments of `engines.run_ray` (address, resources) or `engines.run_slurm`
      (parameters).
    population: how many trials may be trained as one program, or "auto", see `population`.
      `function` is called for several with a payload as of `population.run_trials`.
    alike_of: config → key that trials have in common of which one program can be made.

  Raises:
    ConfigError: see `trials_of`, or a trial that `group_of` refuses, named.
    ValueError: an unknown engine, or jobs, retries or options out of range.
    EngineError: the engine isn't installed or can't be reached, or workers can't be started.
  """
  started = time.monotonic()
  root = pathlib.Path(workdir).expanduser().absolute()
  run = _engine(engine, jobs, root, options or {})
  trials = trials_of(spec, workdir, texts)
  todo = [trial for trial in trials if not trial.finished]
  before = len(trials) - len(todo)
  tasks = {trial.folder: _task(trial, group_of) for trial in todo}
  most = population_lib.parse(population)
  members = [[trial] for trial in todo] if most == 1 else population_lib.chunks(
      todo, lambda trial: alike_of(trial.config), most,
      jobs or (_cores() if engine == "local" else None))
  line = _LiveLine(out or sys.stdout, before, len(trials))
  found, number = run(
      [population_lib.task([tasks[trial.folder] for trial in trials], most) for trials in members],
      function, retries=retries, report=population_lib.InTrials(members, line.show))
  line.end()
  outcomes = {outcome.task.key: outcome for outcome in population_lib.outcomes(found, members)}
  result = Result(trials, [outcomes[trial.folder.name] for trial in todo], number)
  _summarise(result, root, time.monotonic() - started, out or sys.stdout)
  return result


def main(argv: Sequence[str]) -> int:
  """Runs the command; `argv` without the program's name. Returns the exit code."""
  try:
    texts, others = configuring.split_arguments(argv)
    arguments = _parser().parse_args(others)
    result = sweep(arguments.sweep, arguments.workdir, arguments.jobs, retries=arguments.retries,
                   texts=texts, engine=arguments.engine, options=_options(arguments),
                   population=_population(arguments))
  except (ValueError, engines.EngineError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:  # before the workers started; after that the engine takes care
    return 128 + signal.SIGINT
  if result.signal is not None:
    return 128 + result.signal
  return 1 if result.having("failed") else 0


def _parser():
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.sweep", allow_abbrev=False,
      description="Runs the trials of a sweep file, as local processes or on a cluster.",
      epilog="--config.key=value changes the base config, for every trial.")
  parser.add_argument("--sweep", required=True, metavar="FILE.py[:ARG]",
                      help="a config file with get_sweep()")
  parser.add_argument("--workdir", required=True,
                      help="the folder of the trials' folders; for ray and slurm on storage that "
                           "all nodes see under this path")
  parser.add_argument("--jobs", type=int,
                      help="trials at once (default: the number of cores; ray: what fits in the "
                           "cluster; slurm: what the cluster lets run)")
  parser.add_argument("--retries", type=int, default=1,
                      help="further attempts for a trial that fails other than by a mistake in its "
                           "config or by the loss of a cluster's node (default: 1)")
  parser.add_argument("--population", metavar="N|auto",
                      help="how many trials that differ in rates, decays, seeds, smoothing or "
                           "mixup alone may be trained as one program; auto times it against one "
                           "after the other and takes the faster (default: auto with --jobs 1 on "
                           "this machine, as on an accelerator; else 1: workers fill the cores)")
  parser.add_argument("--engine", choices=("local", "ray", "slurm"), default="local",
                      help="where trials run: processes here (default), a Ray cluster (pip install "
                           "'big_transfer[ray]'), a Slurm cluster ('big_transfer[slurm]')")
  parser.add_argument("--address", metavar="HOST:PORT",
                      help="ray: the cluster (default: RAY_ADDRESS, else Ray is started here)")
  parser.add_argument("--resources", metavar="NAME=AMOUNT,…",
                      help="ray: what a trial needs, such as num_gpus=0.5,num_cpus=4 or "
                           "TPU-v5e-8-head=1 (default: num_cpus=1; a trial sees no GPU that isn't "
                           "asked for)")
  parser.add_argument("--slurm", metavar="NAME=VALUE,…",
                      help="slurm: submitit's parameters for a trial's job, such as "
                           "partition=gpu,gpus_per_node=1,timeout_min=600")
  return parser


def _options(arguments):
  """Returns the options of the engine; those of another one are an error."""
  given = {"address": ("ray", arguments.address), "resources": ("ray", arguments.resources),
           "slurm": ("slurm", arguments.slurm)}
  for flag, (engine, value) in given.items():
    if value is not None and engine != arguments.engine:
      raise ValueError(f"--{flag} is for --engine {engine}; got --engine {arguments.engine}")
  if arguments.engine == "ray":
    resources = _pairs("resources", arguments.resources)
    for name, amount in resources.items():
      if isinstance(amount, (str, bool)):
        raise ValueError(f"--resources {name} expects a number; got '{amount}'")
    return {"address": arguments.address, "resources": resources}
  if arguments.engine == "slurm":
    return {"parameters": _pairs("slurm", arguments.slurm)}
  return {}


def _population(arguments):
  """The most members of a population; workers that divide the cores are a population of theirs."""
  if arguments.population is not None:
    return arguments.population
  return population_lib.AUTO if arguments.engine == "local" and arguments.jobs == 1 else 1


def _pairs(flag, text):
  """Returns "name=value,…" as a dict, values as numbers and truth values where they look so."""
  pairs = {}
  for item in filter(None, (text or "").split(",")):
    name, equals, value = (part.strip() for part in item.partition("="))
    if not (name and equals and value):
      raise ValueError(f"--{flag} expects NAME=VALUE,NAME=VALUE…; got '{item}'")
    pairs[name] = _value(value)
  return pairs


def _value(text):
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  for kind in (int, float):
    with contextlib.suppress(ValueError):  # then it is text
      return kind(text)
  return text


def _engine(name, jobs, root, options):
  """Returns the engine as a function of tasks, function, retries and report."""
  if name == "local":
    return functools.partial(engines.run_local, jobs=_cores() if jobs is None else jobs, **options)
  if name == "ray":
    return functools.partial(engines.run_ray, jobs=jobs, **options)
  if name == "slurm":
    return functools.partial(engines.run_slurm, jobs=jobs, folder=root / SLURM, **options)
  raise ValueError(f"engine '{name}' is unknown: expected 'local', 'ray' or 'slurm'")


def _cores():
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _label(overrides):
  return ", ".join(f"{path}={_short(value)}" for path, value in overrides.items()) or "base config"


def _short(value):
  if isinstance(value, dict):
    return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
  return f"{value:g}" if isinstance(value, float) else str(value)


def _recorded(folder, config, label):
  """The config a trial goes on with, and whether its folder holds a finished run of it.

  Settings that the base config gained since the trial began are left out: it began without them.
  """
  if not (folder / records.CONFIG).exists():
    return config, False
  recorded = records.read_config(folder)
  # None is what the trial starts from, whose model it recorded.
  model = config.get("model") or recorded.get("model")
  config = _shared({**config, "model": model}, recorded)
  changed = configuring.differences(
      recorded, config, configuring.HOUSEKEEPING + configuring.PLACEMENT)
  if changed:
    raise configuring.ConfigError(
        f"trial '{label}' was begun in '{folder}' with another base config: "
        f"{'; '.join(changed)}. Restore those values, or use another --workdir")
  finished = (folder / records.RUN).exists() and (
      records.read_run(folder).get("status") == "finished")
  return config, finished


def _shared(new, old):
  """Returns `new` without the keys that `old` doesn't know: settings that came later."""
  if not (isinstance(new, dict) and isinstance(old, dict)):
    return new
  return {key: _shared(value, old[key]) for key, value in new.items() if key in old}


def _task(trial, group_of):
  try:
    group = group_of(trial.config)
  except ValueError as error:
    raise configuring.ConfigError(f"trial '{trial.name}': {error}") from error
  payload = {"config": trial.config, "workdir": str(trial.folder), "name": trial.name,
             "config_name": trial.config_name, "overrides": trial.overrides}
  return engines.Task(trial.folder.name, group, payload, str(trial.folder / LOG))


class _LiveLine:
  """The line of progress: rewritten on a terminal, elsewhere printed on change, now and then."""

  def __init__(self, out, before, total):
    self._out, self._before, self._total = out, before, total
    self._told, self._counts, self._printed = None, None, -PRINT_SECONDS

  def show(self, progress):
    counts = (f"done {progress.done + self._before} · running {progress.running} · "
              f"failed {progress.failed} of {self._total}")
    left = progress.seconds_left
    text = counts + ("" if left is None else f" · time left ~{_clock(left)}")
    now = time.monotonic()
    if self._out.isatty():
      if text != self._told:
        self._out.write(f"\r{text}\x1b[K")
    elif (progress.running and counts != self._counts
          and now - self._printed >= PRINT_SECONDS):
      self._out.write(f"{text}\n")
      self._counts, self._printed = counts, now
    self._told = text
    self._out.flush()

  def end(self):
    if self._out.isatty() and self._told is not None:
      self._out.write("\n")


def _summarise(result, root, seconds, out):
  counts = collections.Counter(outcome.status for outcome in result.outcomes)
  before = len(result.trials) - len(result.outcomes)
  names = {trial.folder.name: trial.name for trial in result.trials}
  by_error = collections.defaultdict(list)
  for outcome in result.having("failed"):
    by_error[outcome.error].append(outcome)
  for error, alike in by_error.items():
    first = alike[0]
    which = "; ".join(names[outcome.task.key] for outcome in alike[:NAMES])
    if alike[1:]:
      others = f"; and {len(alike) - NAMES} more" if alike[NAMES:] else ""
      which = f"{len(alike)} trials: {which}{others}"
    attempts = max(outcome.attempts for outcome in alike)
    of = " of the first" if alike[1:] else ""
    print(f"\nfailed: {which} (attempts: {attempts}; log{of}: {first.task.log})\n"
          f"  {error}\n  the log{of} ends:", file=out)
    for line in _tail(pathlib.Path(first.task.log)):
      print(f"    {line}", file=out)
  stopped = f"stopped by {signal.Signals(result.signal).name}, " if result.signal else ""
  print(f"{stopped}{len(result.trials)} trials in {_clock(seconds)}: "
        f"{counts['done'] + before} finished ({before} before), {counts['failed']} failed, "
        f"{counts['unfinished']} unfinished; runs in {root}", file=out)
  if counts["failed"] or counts["unfinished"]:
    print("the same command continues what is unfinished and tries again what failed", file=out)
  out.flush()


def _tail(log):
  """Returns the last lines of a log that say something, from its last 16 KiB."""
  if not log.exists():
    return ["(nothing was printed)"]
  with open(log, "rb") as file:
    file.seek(max(0, log.stat().st_size - 2**14))
    lines = file.read().decode(errors="replace").splitlines()
  return [line for line in lines if line.strip(" ^~")][-TAIL_LINES:]


def _clock(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
