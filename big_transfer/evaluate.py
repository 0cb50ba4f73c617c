"""Evaluators on what is trained already: finished runs, one still training, published models.

    python -m big_transfer.evaluate --workdir runs/first --evals configs/evaluate/layers.py

Each run's own model, data and evaluators serve, with the parameters of its newest checkpoint;
`--evals` names others, and any of their keys can be set (`--config.evals.probes.shots='(5, 25)'`).
The rows go to RUN/evaluations/ID/, where the study reads them as rows of the run; nothing else of
the run is touched, so it may be training meanwhile. The same evaluation again does nothing.

`--init` takes model and parameters from another run, or the parameters from a published `.npz`
(see `models/published.py`); the rows are then of another model than the run's, and `--out` names a
run folder of their own.

Exit codes: 0 done, 1 something could not be evaluated, 130 or 143 stopped by SIGINT or SIGTERM.
"""
import argparse
import collections
import dataclasses
import glob
import os
import pathlib
import signal
import sys
import time
from typing import Any, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from big_transfer import evaluators
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import interrupts as interrupts_lib
from big_transfer.training import objectives
from big_transfer.training import origin as origin_lib
from big_transfer.training import program as program_lib
from big_transfer.training import provenance
from big_transfer.training import settings as settings_lib
from big_transfer.training import sharding
from big_transfer.training import upstream as upstream_lib

# What may be changed where the rows are to be the run's: all else would make them another run's.
CHANGEABLE = ("evals", "eval_batch_size", "mesh", "sharding")
# What an evaluation takes of a config; the other keys are of the training.
_FORWARD = ("model", "upstream", "image_size", "fit", "loss", "evals", "eval_batch_size", "mesh",
            "sharding")
# What goes with the parameters: another run's, where --init names one.
_OF_PARAMETERS = ("model", "image_size", "loss")
# What a record repeats of the run.json of the run that trained the parameters.
_OF_TRAINING = ("config_name", "overrides", "seed", "batch_size", "total_steps", "total_epochs",
                "wall_seconds")
# Kinds of evaluators that compare the model's logits with upstream labels.
OF_UPSTREAM_CLASSES = ("classification", "geometry")


@dataclasses.dataclass(frozen=True)
class _Job:
  """One evaluation, its settings read.

  Attributes:
    folder: where its record goes.
    identity: of the evaluation, 12 hex digits.
    settings: what to evaluate, on what, with which model.
    origin: the parameters.
    name: of the parameters, for people.
    of_run: whether the rows are the run's, not those of a run folder of their own.
  """
  folder: pathlib.Path
  identity: str
  settings: settings_lib.Settings
  origin: origin_lib.Origin
  name: str
  of_run: bool


def evaluate(workdir: str | os.PathLike | None = None, *, evals=None, step: int | None = None,
             init: str | os.PathLike | None = None, config=None,
             out: str | os.PathLike | None = None,
             overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Evaluates trained parameters and leaves a record of it.

  Args:
    workdir: a run's folder, whose config gives model, data and evaluators, and whose newest
      checkpoint the parameters. None with `config` and `init`.
    evals: the evaluators, `{name: {"kind", ...}}` as in a config, or the path of a file whose
      get_config() returns that. A section that has the name and kind of one of the run's own is
      laid over it: what it doesn't say is the run's. None for the run's own. `every` and `first`
      mean nothing here.
    step: of which checkpoint; None for the newest.
    init: another run's folder, for its model and parameters (then `step` is of that run), or a
      published `.npz`, for parameters of the model that the config names.
    config: in the place of a run's: a ConfigDict, a mapping or a config file's path.
    out: a run folder for the record, needed with `init`; None for `workdir`/evaluations/ID.
    overrides: `{path: value}`, such as `{"evals.probes.layers": "all"}`.

  Returns:
    The content of the record's run.json; its `status` is "finished", or "interrupted" after SIGINT
    or SIGTERM, when there are no rows. `folder` is where the record lies.

  Raises:
    ValueError: something isn't there, or doesn't fit; the message names it and the fix.

  Example:
    evaluate("runs/first", overrides={"evals.probes.layers": "all"})
  """
  with interrupts_lib.Interrupts() as interrupts:
    return _evaluate(interrupts, workdir, evals, step, init, config, out, overrides or {}, {})


def _evaluate(interrupts, workdir, evals, step, init, config, out, overrides, texts):
  """`evaluate`, also with changes as they were typed: `texts`, path → text."""
  started = time.time()
  job = _job(workdir, evals, step, init, config, out, overrides, texts)
  if _is_done(job):
    print(f"{job.folder} is evaluated already; nothing to do", flush=True)
    return _answer(job)
  items, params, facts = _prepare(job, interrupts.check)
  with records.Record(job.folder) as record:
    if _is_done(job):  # by another process, while this one got ready
      return _answer(job)
    record.truncate(0)  # rows of an evaluation that was killed: all is measured again
    record.update_run(**facts, status="running", error=None, signal=None)
    record.write_config({**(job.origin.config or {}),
                         **{key: getattr(job.settings, key) for key in _FORWARD}})
    timings = {}
    try:
      print(f"{job.name}, {facts['model']['label']}, step {job.origin.step}:", flush=True)
      rows = _rows(job, items, params, timings)
      record.append(rows)
    except interrupts_lib.Interrupted:
      print(f"stopped by {interrupts.signal}; the same command starts over", flush=True)
      record.update_run(status="interrupted", signal=interrupts.number)
      return _answer(job)
    except Exception as e:
      record.update_run(status="failed", error=f"{type(e).__name__}: {e}")
      raise
    record.update_run(status="finished", evaluation_seconds=time.time() - started,
                      timings=timings)
  print(f"  {len(rows)} rows in {job.folder}", flush=True)
  return _answer(job)


def _answer(job):
  return records.read_run(job.folder) | {"folder": str(job.folder)}


def _job(workdir, evals, step, init, config, out, overrides, texts):
  """Reads the settings and finds the parameters; a typo or a missing file is told here."""
  _check_given(workdir, config, init, out, step)
  if workdir is None:
    base = configuring.load(config) if isinstance(config, (str, os.PathLike)) else config
  else:
    workdir = pathlib.Path(workdir).expanduser()
    _check_run(workdir)
    base = records.read_config(workdir)
  config = _configured(configuring.plain(base), evals, overrides, texts, of_run=bool(workdir))
  if init is not None and _is_file(init):
    origin = origin_lib.of_file(init)
  else:
    _check_run(pathlib.Path(init or workdir).expanduser())
    origin = origin_lib.of_run(init or workdir, step)
  if init and origin.config:
    if workdir is None and config["model"] != origin.config["model"]:
      print(f"note: the model is that of {origin.where}, {origin.config['model']['name']}; what "
            "--config says of the model is not used", flush=True)
    config = _with_parameters_of(origin, config, [*overrides, *texts])
  settings = configuring.build(settings_lib.Settings, config, "")
  settings_lib.check_forward(settings)
  objectives.classification(settings.loss)  # raises where there is no such loss
  identity = configuring.identity("evaluation", {
      "evals": settings.evals, "step": origin.step, "parameters": origin.identity,
      "upstream": settings.upstream, "fit": settings.fit,
      # A run's identity says these; a file may fit models and images of several kinds.
      **({key: getattr(settings, key) for key in _OF_PARAMETERS} if origin.config is None else {})})
  folder = workdir / records.EVALUATIONS / identity if out is None else pathlib.Path(out)
  source = pathlib.Path(init or workdir).absolute()
  return _Job(folder.expanduser().absolute(), identity, settings, origin,
              origin.run.get("name") or source.name, of_run=out is None)


def _check_given(workdir, config, init, out, step):
  if (workdir is None) == (config is None):
    raise ValueError("expected one of --workdir (a run) and --config (data and evaluators for a "
                     f"model given by --init), got {'neither' if config is None else 'both'}")
  if config is not None and init is None:
    raise ValueError("--config says nothing of parameters: give --init, a run or a published .npz")
  if init is not None and out is None:
    raise ValueError("--init: the rows are not of the run's own parameters; give --out, a run "
                     "folder for them")
  if step is not None and init is not None and _is_file(init):
    raise ValueError(f"--step {step}: '{init}' holds parameters of one step only; leave it out")


def _check_run(folder):
  """Raises ValueError unless a training left its record in `folder`, not an evaluation."""
  origin_lib.check_run(folder)
  run = records.read_run(folder)
  if "parameters_from" in run:
    inside = folder.absolute().parent
    name = inside.parent if inside.name == records.EVALUATIONS else run.get("name")
    raise ValueError(
        f"'{folder}' is an evaluation, which has no parameters: name its run, '{name}'")


def _is_file(init):
  return pathlib.Path(init).suffix == ".npz" or pathlib.Path(init).expanduser().is_file()


def _configured(base, evals, overrides, texts, of_run):
  """The config with the evaluators and changes that are asked for, plain."""
  if of_run:
    for path in [*overrides, *texts]:
      if path.partition(".")[0].partition("[")[0] not in CHANGEABLE:
        raise configuring.ConfigError(
            f"config key '{path}' can't change when a run is evaluated: its rows would not be of "
            f"this run. Only {', '.join(CHANGEABLE)} may; train another run, or see --init")
  base = {"eval_batch_size": settings_lib.Settings.eval_batch_size, "mesh": {"data": -1},
          "sharding": (), **base}
  base["evals"] = _sections(evals, base.get("evals") or {})
  config = ConfigDict(base)
  for path in [*overrides, *texts]:
    keys = path.split(".")
    if len(keys) == 3 and keys[0] == "evals" and keys[1] in config.evals and (
        keys[2].isidentifier()):
      # A key may stand at its default so far, or change its type; the evaluator checks both.
      config.evals[keys[1]][keys[2]] = None
  try:
    values = {**overrides, **configuring.parse_values(config, texts)}
    config = configuring.plain(configuring.override(config, values))
  except configuring.EvaluatorError as error:
    raise configuring.EvaluatorError(f"{error}, or in a file that --evals names, such as "
                                     "configs/evaluate/layers.py") from None
  config["evals"] = {name: {key: value for key, value in section.items()
                            if key not in ("every", "first")}
                     for name, section in config["evals"].items()}
  if not config["evals"]:
    raise configuring.ConfigError("nothing to evaluate: the config has no evaluators; name a file "
                                  "of them by --evals, such as configs/evaluate/layers.py")
  return config


def _with_parameters_of(origin, config, paths):
  """The config with what goes with another run's parameters; what it leaves out is the default.

  Raises:
    ConfigError: a change of it, among the `paths` to be changed.
  """
  for path in paths:
    if path.partition(".")[0] in _OF_PARAMETERS:
      raise configuring.ConfigError(
          f"config key '{path}' can't change with --init of a run: {', '.join(_OF_PARAMETERS)} go "
          f"with the parameters, {origin.where}; leave it out")
  others = {key: value for key, value in config.items() if key not in _OF_PARAMETERS}
  return others | {key: origin.config[key] for key in _OF_PARAMETERS if key in origin.config}


def _sections(evals, own):
  """The evaluators asked for, each laid over the run's own of that name and kind."""
  if evals is None:
    return own
  given = configuring.plain(
      configuring.load(evals) if isinstance(evals, (str, os.PathLike)) else evals)
  for name, section in given.items():
    if not isinstance(section, dict):
      raise configuring.ConfigError(
          f"evals section '{name}' is {section!r}: expected a mapping with the evaluator's kind, "
          "such as dict(kind='fewshot'). The file's get_config() returns such sections alone, as "
          "configs/evaluate/layers.py does, not a whole config")

  def complete(name, section):
    mine = own.get(name, {})
    return {**mine, **section} if section.get("kind") in (None, mine.get("kind")) else section

  return {name: complete(name, section) for name, section in given.items()}


def _is_done(job):
  """Whether the record is there and whole; a folder of something else is an error."""
  if not (job.folder / records.RUN).exists():
    if (job.folder / records.CONFIG).exists() or (job.folder / "checkpoints").exists():
      raise ValueError(f"--out '{job.folder}' holds something of a run: use another folder")
    return False
  run = records.read_run(job.folder)
  if run.get("id") != job.identity:
    raise ValueError(f"--out '{job.folder}' holds another run or evaluation (id {run.get('id')}): "
                     "use another folder")
  return run.get("status") == "finished"


def _prepare(job, stop_check):
  """Builds the evaluators and reads the parameters."""
  if jax.process_count() > 1:
    raise ValueError(f"evaluate is one process's work, here are {jax.process_count()}: start it in "
                     "one, without jax.distributed")
  s, outputs = job.settings, job.origin.classes
  net = program_lib.network(model=s.model, classes=outputs, image_size=s.image_size)
  mesh = sharding.make_mesh(s.mesh)
  places = sharding.of_tree(mesh, sharding.partition(net.shapes, s.sharding, mesh.shape))
  params = job.origin.placed(jax.tree.map(
      lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), net.shapes, places))
  if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
    raise ValueError("the parameters hold infinities or NaN: their training diverged, and nothing "
                     "measured of them would mean anything; take an earlier --step")
  data = upstream_lib.open_data(s)
  classes = data.train.num_classes
  trained_on = (job.origin.run.get("upstream") or {}).get("name", data.name)
  for name, section in s.evals.items():
    if section.get("kind") not in OF_UPSTREAM_CLASSES:
      continue
    if outputs != classes:
      raise ValueError(
          f"config.evals.{name} ({section['kind']}) compares the model's {outputs} logits with the "
          f"labels of '{data.name}', which has {classes} classes: name evaluators without it by "
          "--evals, or data of the same classes")
    if trained_on != data.name:
      print(f"note: the head was trained on '{trained_on}'; {name} compares its logits with the "
            f"labels of '{data.name}'", flush=True)
  context = evaluators.Context(
      apply=net.apply, put=lambda batch: sharding.put_batch(batch, mesh), check=stop_check,
      prepare=data.prepare, layers=net.layers,
      batch_size=sharding.whole_batch(s.eval_batch_size, mesh),
      upstream=evaluators.Upstream(data.name, data.train, data.examples, data.test,
                                   objectives.LOSSES[s.loss]))
  always = {name: {**section, "every": 1} for name, section in s.evals.items()}
  return (evaluators.build(always, context, configuring.build), params,
          _facts(job, data, net))


def _facts(job, data, net):
  """The fields of run.json that are known before anything is measured."""
  s, origin, run = job.settings, job.origin, job.origin.run
  # Of a published model, what the config calls upstream is all that is known.
  upstream = {**(run.get("upstream") or {"name": data.name, "classes": origin.classes}),
              "test_examples": len(data.test)}
  seen, examples = _examples(origin), upstream.get("train_examples")
  return dict(
      {key: run.get(key) for key in _OF_TRAINING}, id=job.identity, name=job.name,
      **({"evaluates": origin.identity} if job.of_run else {}),
      parameters_from={"identity": origin.identity, "step": origin.step},
      model={"family": s.model["name"], "label": net.label, **s.model},
      parameters=net.parameters, flops_per_example=net.flops, upstream=upstream, step=origin.step,
      examples_seen=seen, epochs=seen / examples if seen is not None and examples else None,
      **provenance.provenance())


def _examples(origin):
  """How many examples were seen in training, repeats counted; None for a file."""
  return None if origin.config is None else origin.step * origin.config["batch_size"]


def _rows(job, items, params, timings):
  """Runs the evaluators; the rows, and in `timings` the seconds of each."""
  measured = []
  examples = _examples(job.origin)
  for item in items:
    began = time.time()
    rows = item.run(params, job.origin.step)
    seconds = timings[f"evaluate {item.name}"] = time.time() - began
    print(f"  {item.name}: {len(rows)} rows, {seconds:.1f} s{_accuracies(rows)}", flush=True)
    measured += [{"step": job.origin.step, "examples": examples, **row} for row in rows]
  return measured


def _accuracies(rows):
  """Mean accuracies by layer, over tasks, shots and seeds, for people."""
  by_layer = collections.defaultdict(list)
  for row in rows:
    if row["metric"] == "accuracy" and row.get("value") is not None:
      by_layer[row.get("layer")].append(row["value"])
  means = [f"{layer or ''} {sum(values) / len(values):.3f}".strip()
           for layer, values in by_layer.items()]
  return f"; mean accuracy {', '.join(means)}" if means else ""


def _runs(patterns):
  """The folders that are named, those of quoted globs each in their place."""
  found = []
  for pattern in patterns:
    path = pathlib.Path(pattern).expanduser()
    matches = [] if path.exists() else sorted(glob.glob(f"{path}/"))  # folders alone
    found += [match.rstrip(os.sep) for match in matches] or [pattern]
  return found


def main(argv=None):
  """The command; see the module."""
  texts, others = configuring.split_arguments(sys.argv[1:] if argv is None else argv)
  args = _parser().parse_args(others)
  workdirs = _runs(args.workdir) if args.workdir else [None]
  failed = []
  with interrupts_lib.Interrupts() as interrupts:
    for number, workdir in enumerate(workdirs, 1):
      out = args.out
      if len(workdirs) > 1:
        print(f"[{number}/{len(workdirs)}] {workdir}", flush=True)
        out = out and pathlib.Path(out) / pathlib.Path(workdir).name
      try:
        _evaluate(interrupts, workdir, args.evals, args.step, args.init, args.config, out, {},
                  texts)
      except (ValueError, OSError) as e:
        notes = [note for note in getattr(e, "__notes__", ()) if note.startswith("in evaluator")]
        failed.append("\n  ".join([f"error: {e}", *notes]))
        if failed[-1] not in failed[:-1]:  # one mistake in the command is told once, not per run
          print(failed[-1], file=sys.stderr, flush=True)
      except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
      if interrupts.signal:  # also one that came too late to stop this run's
        sys.exit(128 + interrupts.number)
  if failed and len(workdirs) > 1:
    print(f"{len(failed)} of {len(workdirs)} runs could not be evaluated", file=sys.stderr)
  sys.exit(bool(failed))


def _parser():
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.evaluate", allow_abbrev=False,
      description="Runs evaluators on what is trained already: finished runs, one still training, "
                  "published models.",
      epilog="Keys of the evaluators can be set, and with --config any other:\n"
             "  --config.evals.probes.layers=all\n  '--config.evals.probes.shots=(5, 25)'",
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", nargs="+", metavar="RUN",
                      help="runs, one after another; a quoted glob is several")
  parser.add_argument("--evals", metavar="FILE.py[:ARG]",
                      help="the evaluators; what a section doesn't say is that of the run's "
                           "section of its name (default: the run's own)")
  parser.add_argument("--step", type=int, help="of which checkpoint (default: the newest)")
  parser.add_argument("--init", metavar="RUN|FILE.npz",
                      help="another run, for its model and parameters, or published parameters of "
                           "the config's model")
  parser.add_argument("--config", metavar="FILE.py[:ARG]",
                      help="in the place of a run's: model, data and evaluators, with --init")
  parser.add_argument("--out", metavar="DIR",
                      help="a run folder for the rows, with several runs DIR/NAME for each (needed "
                           "with --init; default: RUN/evaluations/ID)")
  return parser


if __name__ == "__main__":
  main()
