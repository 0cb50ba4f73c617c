"""Parameters, memory and time of a run before it starts.

    python -m big_transfer.plan --config configs/pretrain/fractals.py:vit --devices 8 --memory 16GiB
    python -m big_transfer.plan --config FILE.py --devices 256 --memory 32GiB --rate 120TFLOP/s

Nothing is allocated and nothing compiled: shapes are evaluated, split over a mesh of devices that
needn't be here, and the traced step is walked through for what it holds at once (see
`training.memory` for how near that comes). What doesn't fit is told with settings that would bring
it down, each tried. `--compile` asks XLA on this machine as well, on simulated CPU devices where
there are too few; that is exact for this backend alone: a GPU or TPU fuses, pads and orders
otherwise. `--measure` times a few steps on noise, where the devices are those of this machine.

Exit codes: 0, 1 if it doesn't fit in --memory or something is amiss. From Python, `plan(config, devices=256, memory="32GiB")` returns it all as a `Plan`.
"""
import argparse
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, Mapping

import jax
from jax.sharding import AbstractMesh, AxisType
import numpy as np

from big_transfer import trees
from big_transfer.data import subset
from big_transfer.data import tasks
from big_transfer.runs import configuring
from big_transfer.training import initial as initial_lib
from big_transfer.training import memory as memory_lib
from big_transfer.training import program as program_lib
from big_transfer.training import settings as settings_lib
from big_transfer.training import sharding
from big_transfer.training import units

BACKENDS = ("cpu", "accelerator")
# What a process keeps of decoded images, at most, for training and held-out examples together.
PIXELS = 2 << 30


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run will take.

  Attributes:
    model: its label.
    parameters: their number, of one run.
    flops_example: of one example's forward pass, 2 per multiply-add.
    flops_step: of a step of all members, 3 times forward; work that is done again isn't counted.
    steps, batch_size: of the run.
    classes, train_examples: of its data.
    members: runs trained at once; None for one as it is.
    mesh: `{axis: devices}`.
    backend: "cpu" or "accelerator", for which attention, convolutions and the peak are meant.
    tensors: of the largest parameters, `(name, shape, how it is split, bytes on a device)`.
    memory: bytes on a device at the peak of a step, a `memory.Memory`.
    limit: bytes a device has; None where nobody said.
    advice: changes and the total that each comes to with those before it, `(text, bytes)`.
    checkpoint, checkpoints: bytes on disk of one, and of all that are there at once.
    host: bytes in the memory of all hosts together: `pixels`, `batches`, `saving`.
    seconds: of all steps, without evaluations; None where no rate is known.
    compiled: XLA's own analysis, a `memory.Compiled`, if it was asked for.
  """
  model: str
  parameters: int
  flops_example: int
  flops_step: int
  steps: int
  batch_size: int
  classes: int
  train_examples: int
  members: int | None
  mesh: dict
  backend: str
  tensors: list
  memory: memory_lib.Memory
  limit: int | None
  advice: list
  checkpoint: int
  checkpoints: int
  host: dict
  seconds: float | None = None
  compiled: memory_lib.Compiled | None = None

  @property
  def fits(self) -> bool | None:
    """Whether the peak is within the limit; None where there is none."""
    return None if self.limit is None else self.memory.total <= self.limit

  def as_dict(self) -> dict[str, Any]:
    """For JSON: all attributes, totals included."""
    return {**dataclasses.asdict(self), "fits": self.fits,
            "memory": {**self.memory._asdict(), "total": self.memory.total},
            "compiled": self.compiled and {**self.compiled._asdict(), "total": self.compiled.total}}


def plan(config: Mapping, devices: int | None = None, *, memory: str | int | None = None,
         rate: str | float | None = None, classes: int | None = None, examples: int | None = None,
         population: int | None = None, backend: str | None = None) -> Plan:
  """Plans a run.

  Args:
    config: as `train.train` takes it.
    devices: their number; default, those of this machine.
    memory: what each has, bytes or text such as "32GiB".
    rate: FLOP/s that each achieves, or text such as "120TFLOP/s".
    classes, examples: of the training data; where one isn't given the data is opened, but no image
      read.
    population: how many runs train at once, as one program.
    backend: one of BACKENDS; default "cpu" if these are devices of this machine and it is one.

  Raises:
    ValueError: the config isn't as it should be, devices that the mesh doesn't divide, a batch that
      they don't, a text that is no size, or data that isn't here.

  Example:
    plan(configuring.load("configs/pretrain/fractals.py"), 8, memory="16GiB").memory.total
  """
  settings = initial_lib.read_settings(config)
  here = jax.device_count()
  devices = here if devices is None else devices
  if not isinstance(devices, int) or devices < 1:
    raise configuring.ConfigError(f"devices is {devices!r}: expected a whole number, at least 1")
  if population is not None and population < 1:
    raise configuring.ConfigError(f"population is {population}: expected at least 1 run")
  if backend is None:
    backend = "cpu" if jax.default_backend() == "cpu" and devices <= here else "accelerator"
  if backend not in BACKENDS:
    raise configuring.ConfigError(f"backend is {backend!r}: expected {' or '.join(BACKENDS)}")
  limit = memory
  if isinstance(memory, str):
    limit = units.parse_bytes(memory, "memory")
  rate = units.parse_rate(rate) if isinstance(rate, str) else rate
  classes, examples = _data(settings, classes, examples)
  need, parts, sizes = _need(settings, devices, classes, population, backend)
  members = population or 1
  flops = 3 * parts.network.flops * settings.batch_size * members
  steps = settings.steps(examples)
  saving = configuring.build(settings_lib.Saving, settings.checkpoint, "checkpoint")
  checkpoint = members * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.like))
  kept = saving.keep if saving.every and saving.every < steps else 1
  image = settings.image_size ** 2 * 3
  return Plan(
      model=parts.network.label, parameters=parts.network.parameters,
      flops_example=parts.network.flops, flops_step=flops, steps=steps,
      batch_size=settings.batch_size, classes=classes, train_examples=examples,
      members=population, mesh=sizes, backend=backend, tensors=_largest(parts), memory=need,
      limit=limit, checkpoint=checkpoint, checkpoints=(kept + 1) * checkpoint,
      advice=[] if limit is None or need.total <= limit else _advice(
          settings, need.total, limit, devices, classes, population, backend),
      host={"pixels": examples * image if examples * image <= PIXELS else 0,
            "batches": 5 * settings.batch_size * members * image, "saving": checkpoint},
      seconds=None if rate is None else steps * flops / (rate * devices))


def compiled(config: Mapping, classes: int, population: int | None = None) -> memory_lib.Compiled:
  """Compiles the step for the devices of this machine and returns XLA's analysis; see `plan`."""
  settings = initial_lib.read_settings(config)
  program, batch, hparams = _program(settings, classes, population)
  like = program.like if population is None else jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((population, *x.shape), x.dtype), program.like)
  return memory_lib.compiled(program.step, like, batch, hparams)


def measured(config: Mapping, classes: int, steps: int = 5) -> float:
  """Seconds that a step takes on the devices of this machine, the median of some on noise."""
  settings = initial_lib.read_settings(config)
  program, batch, hparams = _program(settings, classes, None)
  rng = np.random.default_rng(0)
  batch = sharding.put_batch({
      "image": rng.integers(0, 256, batch["image"].shape, np.uint8),
      "label": rng.integers(0, classes, batch["label"].shape).astype(np.int32),
      "slot": np.arange(settings.batch_size, dtype=np.int32)}, program.mesh)
  hparams = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), hparams)
  state, took = program.init(np.uint32(0)), []
  for _ in range(2 + steps):  # the first two compile and fill caches
    began = time.perf_counter()
    state, measures = program.step(state, batch, hparams)
    jax.block_until_ready((state, measures))
    took.append(time.perf_counter() - began)
  return float(np.median(took[2:]))


def _program(settings, classes, population):
  """The compiled program, and a batch and hparams for it as shapes."""
  arguments = program_lib.arguments(settings)
  program = program_lib.build(classes=classes, members=population, **arguments)
  return (program, memory_lib.batch_shapes(settings.batch_size, settings.image_size, population),
          _hparam_shapes(arguments, population))


def _hparam_shapes(arguments, members):
  return memory_lib.hparam_shapes(len(arguments["patterns"]), members,
                                  "layer_decay" in arguments["optimiser"])


def _data(settings, classes, examples):
  """The number of classes and of training examples, as the config's data has them."""
  for name, value in (("classes", classes), ("examples", examples)):
    if value is not None and value < 1:
      raise configuring.ConfigError(f"{name} is {value}: expected at least 1")
  if classes is not None and examples is not None:
    return classes, examples
  try:
    train, _ = tasks.resolve(settings.task).open_both()
    fraction, seed = settings.fraction
    found = len(train) if fraction == 1 else len(subset.nested(train.labels, fraction, seed))
  except (ValueError, OSError) as e:
    raise configuring.ConfigError(
        f"{e}\nTo plan where the data isn't, say --classes and --examples (of training)") from e
  return classes or train.num_classes, examples or found


def _need(settings, devices, classes, population, backend):
  """The memory of a step, the program's parts and the mesh's sizes."""
  settings_lib.check_model(settings)
  arguments = program_lib.arguments(settings)  # the one list of what a program is made of
  arguments["model"] = _for_backend(settings.model, backend)
  sizes = sharding.axis_sizes(arguments.pop("mesh"), devices, population)
  shards = sizes.get("data", 1) * sizes.get("fsdp", 1)
  if settings.batch_size % (shards * settings.accumulate):
    step = shards * settings.accumulate
    near = max(step, round(settings.batch_size / step) * step)
    raise configuring.ConfigError(
        f"config key 'batch_size' is {settings.batch_size}: expected a multiple of {step}, "
        f"{shards} devices that split a batch (config.mesh) × {settings.accumulate} "
        f"micro-batches, such as {near}")
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes),
                      axis_types=(AxisType.Auto,) * len(sizes))
  parts = program_lib.pure(mesh, classes=classes, **arguments)
  members = None if population is None else population // sizes["population"]
  need = memory_lib.of_step(
      parts.step if members is None else program_lib.for_members(parts.step), parts.like,
      parts.of_run, memory_lib.batch_shapes(settings.batch_size // shards, settings.image_size,
                                            members),
      _hparam_shapes(arguments, members), sizes, members=members,
      cpu=backend == "cpu")
  return need, parts, sizes


def _for_backend(model, backend):
  """The model with what it takes there for attention or convolutions if left to itself."""
  key, there = {"vit": ("attention", "xla"), "resnet": ("convolution", "conv")}.get(
      model["name"], (None, None))
  if key is None or model.get(key, "auto") != "auto":
    return dict(model)
  return {**model, key: "matmul" if backend == "cpu" else there}


def _largest(parts, count=5):
  """The largest parameters, one of each shape and split."""
  found = {}
  flat, at = trees.flatten(parts.like.params), trees.flatten(parts.of_run.params)
  for name, leaf in flat.items():
    spec = ", ".join("+".join(axes) if isinstance(axes, tuple) else axes or "–"
                     for axes in at[name].spec) or "whole"
    found.setdefault((leaf.shape, spec), (name, list(leaf.shape), spec,
                                          memory_lib.shard_bytes(leaf, at[name])))
  return sorted(found.values(), key=lambda t: -math.prod(t[1]))[:count]


def _advice(settings, best, limit, devices, classes, population, backend, most=6):
  """Changes that bring the peak down from `best`, added one after another, until it fits."""
  tried, tries = [], 0
  for turn in (_over_fsdp, _rematerialised, _accumulated, _halved):
    while tries < most and (change := turn(settings, devices, population)) is not None:
      words, keys = change
      candidate = dataclasses.replace(settings, **keys)
      total = _need(candidate, devices, classes, population, backend)[0].total
      tries += 1
      if total >= best:
        break
      settings, best = candidate, total
      tried.append((words, total))
      if total <= limit:
        return tried
  return tried


def _shards(settings, devices, population):
  sizes = sharding.axis_sizes(settings.mesh, devices, population)
  return sizes.get("data", 1) * sizes.get("fsdp", 1)


def _over_fsdp(settings, devices, population):
  """Parameters and moments in parts over what so far only the examples are split over."""
  sizes = sharding.axis_sizes(settings.mesh, devices, population)
  if sizes.get("fsdp", 1) > 1 or sizes.get("data", 1) == 1:
    return None
  axes = {**settings.mesh, "data": 1, "fsdp": settings.mesh["data"]}
  words = " ".join(f"--config.mesh.{axis}={axes[axis]}" for axis in ("data", "fsdp"))
  return words, {"mesh": axes}


def _rematerialised(settings, devices, population):
  """Blocks computed again in the reverse pass, as a loop where there can be one."""
  del devices, population
  if settings.model.get("remat", "none") != "none":
    return None
  change = {"remat": "full"} | ({} if settings.model["name"] == "resnet" else {"scan": True})
  return (" ".join(f"--config.model.{key}={value}" for key, value in change.items()),
          {"model": {**settings.model, **change}})


def _accumulated(settings, devices, population):
  """Twice as many micro-batches."""
  accumulate = 2 * settings.accumulate
  if settings.batch_size % (accumulate * _shards(settings, devices, population)):
    return None
  return f"--config.accumulate={accumulate}", {"accumulate": accumulate}


def _halved(settings, devices, population):
  """Half the batch, which changes what is trained: the last resort."""
  shards, batch = _shards(settings, devices, population), settings.batch_size // 2
  if settings.batch_size % 2 or batch % shards:
    return None
  accumulate = math.gcd(settings.accumulate, batch // shards)
  return f"--config.batch_size={batch} --config.accumulate={accumulate}", {
      "batch_size": batch, "accumulate": accumulate}


def text(plan_: Plan) -> str:
  """A plan for people to read."""
  p, m = plan_, plan_.memory
  devices = math.prod(p.mesh.values())
  runs = "" if p.members is None else f", {p.members} runs at once"
  lines = [
      f"{p.model}: {p.parameters / 1e6:,.1f} M parameters, "
      f"{units.flop_text(p.flops_example)} forward an example, {units.flop_text(p.flops_step)} a "
      f"step of {p.batch_size} examples{runs}",
      f"{p.steps:,} steps, {p.steps * p.batch_size:,} examples seen of {p.train_examples:,} "
      f"({p.classes:,} classes)",
      f"{devices} device{'s' if devices > 1 else ''}: " +
      ", ".join(f"{axis} {n}" for axis, n in p.mesh.items() if n > 1 or devices == 1)]
  lines += [f"  {name} {tuple(shape)}: {split}, {units.bytes_text(size_)} each"
            for name, shape, split, size_ in p.tensors]
  lines += ["", f"on each device, at the peak of a step (as on {_article(p.backend)}):"]
  rest = ("" if 2 * m.gradients > m.parameters else
          f"  (of {units.bytes_text(m.parameters)}: the others come when activations are gone)")
  lines += [f"  {name:<24}{units.bytes_text(value):>12}{note}" for name, value, note in (
      ("parameters", m.parameters, ""), ("optimiser", m.optimiser, ""), ("batch", m.batch, ""),
      ("gradients", m.gradients, rest), ("activations", m.activations, ""),
      ("in all", m.total, ""))]
  if p.compiled is not None:
    lines.append(f"  {'XLA here, compiled':<24}{units.bytes_text(p.compiled.total):>12}  "
                 f"(estimated at {m.total / p.compiled.total:.2f} of it)")
  if p.limit is not None:
    over = m.total - p.limit
    limit, gap = units.bytes_text(p.limit), units.bytes_text(abs(over))
    lines.append(f"fits in {limit}, {gap} to spare" if p.fits else
                 f"DOES NOT FIT in {limit}: {gap} too much")
  else:
    lines.append("whether it fits was not asked: --memory says what a device has")
  if p.fits is False:
    lines.append("added one after another:")
    lines += [f"  {change:<52}{units.bytes_text(total):>12}{'  fits' if total <= p.limit else ''}"
              for change, total in p.advice]
  if p.fits is False and (not p.advice or p.advice[-1][1] > p.limit):
    lines.append("  that is not enough: more devices, a smaller model, a mesh whose fsdp "
                 "divides more of it, or optim.name=adafactor")
  lines += ["", f"a checkpoint: {units.bytes_text(p.checkpoint)}; on disk at once at most: "
            f"{units.bytes_text(p.checkpoints)}",
            "memory of the hosts together: " + ", ".join(
                f"{name} {units.bytes_text(value)}" for name, value in p.host.items())]
  if p.seconds is not None:
    rate = p.steps * p.flops_step / p.seconds / devices
    lines.append(f"time: {units.time_text(p.seconds)} for all steps, evaluations not counted "
                 f"({units.flop_text(rate)}/s of the model's own on each device: what "
                 "rematerialisation computes again comes on top)")
  return "\n".join(lines)


def _article(backend):
  return {"cpu": "a CPU", "accelerator": "an accelerator"}[backend]


def main(argv=None):
  """The command; see the module."""
  argv = sys.argv[1:] if argv is None else argv
  texts, others = configuring.split_arguments(argv)
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.plan", description=__doc__.split("\n", maxsplit=1)[0])
  parser.add_argument("--config", required=True, help="configs/….py or configs/….py:argument")
  parser.add_argument("--devices", type=int, help="their number; default, those of this machine")
  parser.add_argument("--memory", help="of a device, such as 32GiB")
  parser.add_argument("--rate", help="the model's FLOP/s that a device achieves, such as 120TFLOP/s: often "
                           "a third to a half of the chip's peak")
  parser.add_argument("--measure", action="store_true", help="time a few steps here instead")
  parser.add_argument("--compile", action="store_true",
                      help="XLA's own analysis beside the estimate; simulates devices on the CPU")
  parser.add_argument("--population", type=int, help="runs trained at once as one program")
  parser.add_argument("--backend", choices=BACKENDS, help="for which the peak is meant")
  parser.add_argument("--classes", type=int, help="of the training data, where it isn't here")
  parser.add_argument("--examples", type=int, help="to train on, where the data isn't here")
  parser.add_argument("--json", help="a file to write the plan to as well")
  args = parser.parse_args(others)
  if args.compile and (args.devices or jax.device_count()) != jax.device_count():
    sys.exit(_again_with_devices(argv, args.devices))
  try:
    found = _run(args, texts)
    if args.json:
      pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
      with open(args.json, "w") as f:
        json.dump(found.as_dict(), f, indent=1)
  except (ValueError, OSError) as e:
    sys.exit(f"error: {e}")
  print(text(found), flush=True)
  sys.exit(found.fits is False)


def _run(args, texts):
  config = configuring.load(args.config)
  config = configuring.override(config, configuring.parse_values(config, texts))
  if args.measure and args.rate:
    raise configuring.ConfigError("--rate and --measure both say how fast: give one of them")
  if args.measure and args.population:
    raise configuring.ConfigError("--measure times one run: leave out --population")
  if args.measure and (args.devices or jax.device_count()) != jax.device_count():
    raise configuring.ConfigError(
        f"--measure runs on this machine's {jax.device_count()} devices, not on {args.devices}: "
        "give a --rate, or measure there")
  backend = args.backend or ("cpu" if args.compile and jax.default_backend() == "cpu" else None)
  found = plan(config, args.devices, memory=args.memory, rate=args.rate, classes=args.classes,
               examples=args.examples, population=args.population, backend=backend)
  if args.compile:
    found = dataclasses.replace(found, compiled=compiled(config, found.classes, args.population))
  if args.measure:
    found = dataclasses.replace(found, seconds=found.steps * measured(config, found.classes))
  return found


def _again_with_devices(argv, devices):
  """Runs the command in a process with so many simulated CPU devices; returns its exit code."""
  if devices < 1:
    return f"error: devices is {devices}: expected a whole number, at least 1"
  flags = (f"--xla_force_host_platform_device_count={devices} "
           "--xla_backend_optimization_level=0")  # which changes code, not buffers
  return subprocess.run([sys.executable, "-m", "big_transfer.plan", *argv], check=False,
                        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}).returncode


if __name__ == "__main__":
  main()
