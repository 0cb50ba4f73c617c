"""Evaluators on what is trained already: finished runs, one still training, published models.

    python -m big_transfer.evaluate --workdir runs/first --evals configs/evaluate/layers.py
    python -m big_transfer.evaluate --workdir runs/first --suite vtab --skip-missing
    python -m big_transfer.evaluate --init FILE.npz --suite paper --out runs/published

Each run's own model, data and evaluators serve, with the parameters of its newest checkpoint;
`--evals` names others, `--suite` other tasks for its probes, and any key of an evaluator can be set
(`--config.evals.probes.shots='(5, 25)'`). The rows go to RUN/evaluations/ID/, where the study reads
them as rows of the run; nothing else of the run is touched, so it may be training meanwhile. The
same evaluation again does nothing.

`--init` takes model and parameters from another run, or from a published `.npz`, local or at a URL
(see `models/published.py`); the rows are then of another model than the run's, and `--out` names a
run folder of their own. Of a published file nothing else is needed: its arrays say which model it
is of. For a place among the runs of a study it needs an accuracy upstream, too: measured, where
`--upstream TASK` has the classes of its head and its data is here, or else stated:

    --upstream imagenet21k --upstream-accuracy 0.5 --upstream-source "AUTHORS YEAR, table N"

Exit codes: 0 done, 1 something could not be evaluated, 130 or 143 stopped by SIGINT or SIGTERM.
"""
import argparse
import collections
import functools
import glob
import os
import pathlib
import signal
import sys
import time
from typing import Any, Mapping

import jax

from big_transfer import evaluation
from big_transfer import evaluators
from big_transfer.data import examples
from big_transfer.data import pipeline
from big_transfer.evaluators import downstream
from big_transfer.models import adapting
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import interrupts as interrupts_lib
from big_transfer.training import objectives
from big_transfer.training import program as program_lib
from big_transfer.training import provenance
from big_transfer.training import sharding
from big_transfer.training import upstream as upstream_lib

# What a record repeats of the run.json of the run that trained the parameters.
_OF_TRAINING = ("config_name", "overrides", "seed", "batch_size", "total_steps", "total_epochs",
                "wall_seconds")
# Kinds of evaluators that compare the model's logits with upstream labels.
OF_UPSTREAM_CLASSES = ("classification", "geometry")


def evaluate(workdir: str | os.PathLike | None = None, *, evals=None, step: int | None = None,
             init: str | os.PathLike | None = None, config=None,
             out: str | os.PathLike | None = None,
             overrides: Mapping[str, Any] | None = None, suite: str | None = None,
             skip_missing: bool = False, image_size: int | None = None,
             upstream: str | None = None, upstream_accuracy: float | None = None,
             upstream_source: str | None = None) -> dict[str, Any]:
  """Evaluates trained parameters and leaves a record of it.

  Args:
    workdir: a run's folder, whose config gives model, data and evaluators, and whose newest
      checkpoint the parameters. None with `init` and `config`, or with a published `init`.
    evals: the evaluators, `{name: {"kind", ...}}` as in a config, or the path of a file whose
      get_config() returns that. A section that has the name and kind of one of the run's own is
      laid over it: what it doesn't say is the run's. None for the run's own. `every` and `first`
      mean nothing here.
    step: of which checkpoint; None for the newest.
    init: another run's folder, for its model and parameters (then `step` is of that run), or a
      published `.npz`, for its parameters.
    config: in the place of a run's: a ConfigDict, a mapping or a config file's path. Without it
      and without `workdir` the model is what a published file's parameters say.
    out: a run folder for the record, needed with `init`; None for `workdir`/evaluations/ID.
    overrides: `{path: value}`, such as `{"evals.probes.layers": "all"}`.
    suite: a suite of `data.tasks`, whose tasks the probes take; where there are none, few-shot
      probes of all layers.
    skip_missing: whether a task whose data isn't there is a row that says so, not an error.
    image_size: of a published model without `config`; None for that of its parameters.
    upstream: of such a model the task it was trained on, whose accuracy is measured.
    upstream_accuracy: its accuracy on `upstream`, a fraction, where that can't be measured; then
      `upstream` is but a name, and
    upstream_source: says where the accuracy is stated.

  Returns:
    The content of the record's run.json; its `status` is "finished", or "interrupted" after SIGINT
    or SIGTERM, when there are no rows. `folder` is where the record lies.

  Raises:
    ValueError: something isn't there, or doesn't fit; the message names it and the fix.

  Example:
    evaluate("runs/first", overrides={"evals.probes.layers": "all"})
  """
  request = evaluation.Request(
      workdir, evals, step, init, config, out, overrides or {}, {}, suite, skip_missing, image_size,
      upstream, _stated(upstream_accuracy, upstream_source))
  with interrupts_lib.Interrupts() as interrupts:
    return _evaluate(interrupts, request)


def _stated(accuracy, source):
  return None if accuracy is None and source is None else evaluation.Stated(accuracy, source)


def _evaluate(interrupts, request):
  started = time.time()
  job = evaluation.job(request)
  if _is_done(job):
    print(f"{job.folder} is evaluated already; nothing to do", flush=True)
    return _answer(job)
  items, params, facts = _prepare(job, interrupts.check)
  with records.Record(job.folder) as record:
    if _is_done(job):  # by another process, while this one got ready
      return _answer(job)
    record.truncate(0)  # rows of an evaluation that was killed: all is measured again
    record.update_run(**facts, status="running", error=None, signal=None, skipped=None)
    record.write_config({**(job.origin.config or {}),
                         **{key: getattr(job.settings, key) for key in evaluation.FORWARD}})
    timings = {}
    try:
      images = f"{job.settings.image_size} px, fit={job.settings.fit!r}"
      print(f"{job.name}, {facts['model']['label']}, step {job.origin.step}, images at {images}:",
            flush=True)
      rows = _rows(job, items, params, timings)
      record.append(rows)
    except interrupts_lib.Interrupted:
      print(f"stopped by {interrupts.signal}; the same command starts over", flush=True)
      record.update_run(status="interrupted", signal=interrupts.number)
      return _answer(job)
    except Exception as e:
      record.update_run(status="failed", error=f"{type(e).__name__}: {e}")
      raise
    skipped = sorted({(row["task"], row["variant"]) for row in rows
                      if row.get("status") == "skipped"})
    record.update_run(status="finished", evaluation_seconds=time.time() - started,
                      timings=timings, **({"skipped": skipped} if skipped else {}))
  if skipped:
    print(f"  skipped, their data isn't here: {', '.join(task for task, _ in skipped)}; the same "
          "command measures them once it is", flush=True)
  print(f"  {len(rows)} rows in {job.folder}", flush=True)
  return _answer(job)


def _answer(job):
  return records.read_run(job.folder) | {"folder": str(job.folder)}


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
  return run.get("status") == "finished" and not _came(job, run.get("skipped") or ())


def _came(job, skipped):
  """Whether data of tasks that were skipped, [name, variant] each, is here by now."""
  for section in job.settings.evals.values():
    if skipped and section["kind"] in evaluation.OF_TASKS:
      for task in downstream.named(section["tasks"]):
        if [task.name, task.variant] in list(skipped) and not _is_missing(task):
          print(f"task '{task.name}' was skipped before, and its data is here now", flush=True)
          return True
  return False


def _is_missing(task):
  try:
    task.open_both()
  except examples.MissingError:
    return True
  return False


def _prepare(job, stop_check):
  """Builds the evaluators and reads the parameters."""
  if jax.process_count() > 1:
    raise ValueError(f"evaluate is one process's work, here are {jax.process_count()}: start it in "
                     "one, without jax.distributed")
  s, origin = job.settings, job.origin
  net = program_lib.network(model=s.model, classes=origin.classes, image_size=s.image_size)
  mesh = sharding.make_mesh(s.mesh)
  places = sharding.of_tree(mesh, sharding.partition(net.shapes, s.sharding, mesh.shape))
  origin.check_finite()
  if origin.config is None:
    try:
      origin = origin._replace(params=adapting.adapt(origin.params, net.shapes))
    except ValueError as error:
      raise ValueError(f"{origin.where}: {error}") from error
  params = origin.placed(jax.tree.map(
      lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), net.shapes, places))
  data = upstream_lib.open_data(s) if s.upstream else None
  _check_upstream(job, data)
  run = origin.run
  context = evaluators.Context(
      apply=net.apply, put=lambda batch: sharding.put_batch(batch, mesh), check=stop_check,
      prepare=data.prepare if data else functools.partial(
          pipeline.prepare, image_size=s.image_size, fit=s.fit),
      layers=net.layers, batch_size=sharding.whole_batch(s.eval_batch_size, mesh),
      upstream=data and evaluators.Upstream(
          data.name, data.train, data.examples, data.test, objectives.LOSSES[s.loss], data.variant,
          run.get("setting") or "upstream", [run.get("seed") or 0]))
  always = {name: {**section, "every": 1} for name, section in s.evals.items()}
  return (evaluators.build(always, context, configuring.build), params,
          _facts(job, data, net))


def _check_upstream(job, data):
  """Raises ValueError where evaluators compare logits with labels that the head isn't of."""
  outputs = job.origin.classes
  for name, section in job.settings.evals.items():
    if section.get("kind") not in OF_UPSTREAM_CLASSES:
      continue
    if data is None:
      raise ValueError(
          f"config.evals.{name} ({section['kind']}) compares the model's {outputs} logits with the "
          "labels of what it was trained on, of which nothing is said: name a task of the head's "
          "classes, whose data is here, by --upstream, or evaluators without it by --evals")
    if outputs != data.train.num_classes:
      raise ValueError(
          f"config.evals.{name} ({section['kind']}) compares the model's {outputs} logits with the "
          f"labels of '{data.name}', which has {data.train.num_classes} classes: name evaluators "
          "without it by --evals, or data of the same classes")
    trained_on = (job.origin.run.get("upstream") or {}).get("name")
    if trained_on != data.name:
      print(f"note: the head was trained on {repr(trained_on) if trained_on else 'what its file'} "
            f"{'' if trained_on else 'does not name'}; {name} compares its logits with the labels "
            f"of '{data.name}', in their order", flush=True)


def _facts(job, data, net):
  """The fields of run.json that are known before anything is measured."""
  s, origin, run = job.settings, job.origin, job.origin.run
  # Of a published model, what is called upstream is all that is known.
  upstream = run.get("upstream") or {"name": data.name if data else job.upstream,
                                     "classes": origin.classes}
  upstream |= {"test_examples": len(data.test)} if data else {}
  upstream |= {"stated": job.stated.source} if job.stated else {}
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
  if job.stated:
    measured.append({
        "step": job.origin.step, "evaluator": "upstream", "task": job.upstream, "variant": "full",
        "setting": "upstream", "split": "test", "metric": "accuracy",
        "value": job.stated.accuracy, "status": "ok", "reason": f"stated: {job.stated.source}"})
  elif not any(row["evaluator"] == "upstream" for row in measured) and not job.of_run:
    print("  note: without an accuracy upstream a study has no place for it; see --upstream and "
          "--upstream-accuracy", flush=True)
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
        _evaluate(interrupts, evaluation.Request(
            workdir, args.evals, args.step, args.init, args.config, out, {}, texts, args.suite,
            args.skip_missing, args.image_size, args.upstream,
            _stated(args.upstream_accuracy, args.upstream_source)))
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
                      help="another run, for its model and parameters, or published parameters, "
                           "a path or a URL")
  parser.add_argument("--config", metavar="FILE.py[:ARG]",
                      help="in the place of a run's: model, data and evaluators, with --init "
                           "(of a published file not needed)")
  parser.add_argument("--suite", metavar="NAME",
                      help="tasks of the probes: a suite of data/tasks.py, such as vtab; where "
                           "there are no probes, few-shot ones of all layers")
  parser.add_argument("--skip-missing", action="store_true",
                      help="a task whose data isn't here is a row that says so, not an error")
  parser.add_argument("--image-size", type=int, metavar="PIXELS",
                      help="of a published model (default: that of its parameters)")
  parser.add_argument("--upstream", metavar="TASK",
                      help="of a published model: the task of its head's classes, a name or a "
                           "mapping in JSON; accuracy on it is measured, unless it is stated")
  parser.add_argument("--upstream-accuracy", type=float, metavar="FRACTION",
                      help="stated accuracy on --upstream, whose data isn't needed then")
  parser.add_argument("--upstream-source", metavar="TEXT", help="where that is stated")
  parser.add_argument("--out", metavar="DIR",
                      help="a run folder for the rows, with several runs DIR/NAME for each (needed "
                           "with --init; default: RUN/evaluations/ID)")
  return parser


if __name__ == "__main__":
  main()
