"""What is measured inside a process of its own: the step, the forward pass, the probes.

    python -m tests.bench.workloads step --model flax.linen

prints its rows as the last line, a JSON list. A row is `{"name", "unit", "repeats", "note"}`; the
repeats are the values measured one after another once everything is compiled.
"""
import argparse
import importlib
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import evaluators
from big_transfer import models
from big_transfer import trees
from big_transfer.data import pipeline
from big_transfer.data import tasks
from big_transfer.data import transforms
from big_transfer.evaluators import fewshot as fewshot_lib
from big_transfer.runs import configuring
from big_transfer.training import objectives
from big_transfer.training import optim
from big_transfer.training import step as step_lib
from tests.bench import accelerator as accelerator_lib
from tests.bench import inputs as inputs_lib
from tests.bench import linen_vit
from tests.bench import probes as probes_lib

CLASSES = 10


class Trainer:
  """The step of `training.step` around any model, with its state and one batch.

  Args:
    module: Linen module; returns logits (B, CLASSES) and a dict.
    config: see `config.py`.
    accumulate: micro-batches a step.
  """

  def __init__(self, module, config, accumulate):
    shape = (config.image_size, config.image_size, 3)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    settings = {k: v for k, v in config.optim.items() if k != "schedule"}
    optimiser = optim.build(list(trees.flatten(params)), **settings)

    def prepare(keys_B, batch, hparams):
      del hparams
      return {"image": transforms.augment(keys_B, batch["image"], **config.augment),
              "target": objectives.one_hot(batch["label"], CLASSES)}

    self.images = config.batch_size
    self.state = jax.jit(step_lib.make_init(module, shape, optimiser.tx))(np.uint32(0))
    self._step = jax.jit(
        step_lib.make_train_step(module.apply, objectives.classification(), optimiser.tx, prepare,
                                 accumulate), donate_argnums=0)
    self._hparams = {"seed": np.uint32(0), "optim": optimiser.hparams,
                     "label_smoothing": np.float32(0), "mixup": np.float32(0)}
    self._batch = batch_of(config)

  def __call__(self):
    """One step; returns when it is done."""
    self.state, measures = self._step(self.state, self._batch, self._hparams)
    jax.block_until_ready(measures)


class Forward:
  """The forward pass of any model on one batch, of `size` images; arguments as of `Trainer`."""

  def __init__(self, module, config, size):
    self.images = size
    self._images = transforms.to_float(batch_of(config)["image"][:size])
    self._params = jax.jit(module.init)(jax.random.key(0), self._images[:1])
    self._apply = jax.jit(lambda params, images: module.apply(params, images)[0])

  def __call__(self):
    jax.block_until_ready(self._apply(self._params, self._images))


def batch_of(config):
  """A batch as the pipeline gives it: uint8 images (B, H, W, 3), labels and slots (B,)."""
  rng = np.random.default_rng(0)
  shape = (config.batch_size, config.image_size, config.image_size, 3)
  return jax.device_put({
      "image": rng.integers(0, 256, shape, np.uint8),
      "label": rng.integers(0, CLASSES, config.batch_size, np.int32),
      "slot": np.arange(config.batch_size, dtype=np.int32)})


def rates(function, repeats=5, seconds=0.7):
  """Images a second of `function` (which has the attribute `images`), once it is compiled.

  Args:
    function: what is timed; returns when it is done.
    repeats: how many rates.
    seconds: about how long each is measured.
  """
  function()
  once = _seconds(function)
  calls = max(1, round(seconds / once))
  return [calls * function.images / _seconds(lambda: [function() for _ in range(calls)])
          for _ in range(repeats)]


def row(name, unit, repeats, note=""):
  return {"name": name, "unit": unit, "repeats": [float(v) for v in repeats], "note": note}


def ours(config):
  """The config's model."""
  return models.build(**config.model, num_classes=CLASSES)


def linen(config):
  """The baseline, once it is sure that it computes what ours does."""
  sizes = {k: v for k, v in config.model.items() if k not in ("name", "pool")}
  module = linen_vit.LinenViT(CLASSES, **sizes)
  images = transforms.to_float(batch_of(config)["image"][:4])
  variables = jax.jit(module.init)(jax.random.key(1), images)
  variables["params"]["head"]["kernel"] += 0.1
  theirs, our = (m.apply(variables, images)[0] for m in (module, ours(config)))
  difference = jnp.abs(theirs - our).max()
  if not difference < 1e-3:
    raise ValueError(f"the baseline's logits differ from ours by {difference}: expected "
                     "below 1e-3; one of the two models has changed")
  return module


def big_vision(config, args):
  """big_vision's own model, of the checkout `args.big_vision`."""
  sys.path.insert(0, args.big_vision)
  vit = importlib.import_module("big_vision.models.vit")
  m = config.model
  return vit.Model(num_classes=CLASSES, width=m.width, depth=m.depth, mlp_dim=m.mlp_dim,
                   num_heads=m.heads, patch_size=(m.patch, m.patch), pool_type=m.pool)


def module_of(config, args):
  """The model that `args.model` names."""
  if args.model == "big_vision":
    return big_vision(config, args)
  return linen(config) if args.model == "flax.linen" else ours(config)


def step(config, args):
  """The train step alone."""
  trainer = Trainer(module_of(config, args), config, args.accumulate)
  return [row("step", "images/s", rates(trainer))]


def forward(config, args):
  """The forward pass alone."""
  return [row("forward", "images/s", rates(Forward(module_of(config, args), config, args.batch)))]


def ridge(config, args):
  """Our few-shot maths and big_vision's on the same features."""
  del config
  sys.path.insert(0, args.big_vision)
  return _ridge_beside(importlib.import_module("big_vision.evaluators.fewshot_lsr"))


def _ridge_beside(theirs):
  """Both solvers on the same features: 25 shots of 10 classes, 10,000 test examples."""
  rng = np.random.default_rng(0)
  y_N, y_M = np.repeat(np.arange(CLASSES), 25), rng.integers(0, CLASSES, 10_000)
  means = rng.normal(size=(CLASSES, 64)).astype(np.float32)
  x_ND, x_MD = (means[y] + rng.normal(size=(len(y), 64)).astype(np.float32) for y in (y_N, y_M))

  def our():
    draw = np.arange(len(y_N))[None]
    return int(evaluators.fewshot.ridge.correct(
        x_ND[None], y_N, draw, x_MD[None], y_M, (1024.0,), classes=CLASSES).sum())

  def their():
    cache = theirs._precompute_cache(x_ND, y_N, CLASSES)
    return round(float(theirs._eig_fewshot_acc_fn(cache, x_MD, y_M, 1024.0)) * len(y_M))

  note = f"{our()} right, big_vision {their()} of {len(y_M)}"
  return [row(f"few-shot maths, {name}", "s", [_seconds(solve) for _ in range(7)], note)
          for name, solve in (("ours", our), ("big_vision", their))]


def fewshot(config, args):
  """FewShot on CIFAR-10, shots 1/5/10/25 × 3 seeds, from a cold start and again."""
  read = []

  def prepare(source):
    prepared = pipeline.prepare(source, config.image_size)
    images = prepared.images
    prepared.images = lambda indices: (read.append(len(indices)), images(indices))[1]
    return prepared

  module = ours(config)
  shape = (config.image_size, config.image_size, 3)
  init = jax.jit(module.init)
  params = [init(jax.random.key(i), jnp.zeros((1, *shape)))["params"] for i in range(4)]
  context = evaluators.Context(
      apply=module.apply, put=jax.device_put, check=lambda: None, prepare=prepare,
      upstream=None, layers=("pre_logits",), batch_size=config.eval_batch_size)
  task = tasks.resolve(config.upstream.to_dict() if args.data == "fractals" else args.data)

  began = time.perf_counter()
  evaluator = fewshot_lib.FewShot(context, tasks=[task], shots=(1, 5, 10, 25), seeds=(0, 1, 2))
  rows = list(evaluator.rows(params[0]))
  cold, extracted = time.perf_counter() - began, sum(read)
  warm = [_seconds(lambda p=p: list(evaluator.rows(p))) for p in params[1:]]
  note = f"{task.name}, {len(rows)} probes; labels, decoding and compiling included"
  return [row("few-shot, first time", "s", [cold], note), row("few-shot, again", "s", warm),
          row("few-shot, examples extracted", "images", [extracted])]


def probes(config, args):
  """Extraction and solve of probes at larger sizes, see `probes.py`."""
  del config, args
  return probes_lib.rows(row)


def inputs(config, args):
  """The input pipeline alone, see `inputs.py`."""
  del config, args
  return inputs_lib.rows(row)


def accelerator(config, args):
  """Large ViTs in bfloat16, see `accelerator.py`."""
  del config, args
  return accelerator_lib.rows(row)


def _seconds(function):
  began = time.perf_counter()
  function()
  return time.perf_counter() - began


WORKLOADS = {f.__name__: f for f in (step, forward, ridge, fewshot, probes, inputs, accelerator)}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
  parser.add_argument("name", choices=WORKLOADS)
  parser.add_argument("--data", default="cifar10", choices=("cifar10", "fractals"))
  parser.add_argument("--model", default="ours", choices=("ours", "flax.linen", "big_vision"))
  parser.add_argument("--accumulate", type=int, default=1)
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--big-vision")
  args = parser.parse_args()
  config = configuring.load(f"{pathlib.Path(__file__).with_name('config.py')}:{args.data}")
  print(json.dumps(WORKLOADS[args.name](config, args)))


if __name__ == "__main__":
  main()
