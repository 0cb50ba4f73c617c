"""The cost of few-shot probes: extraction and solve, of one layer and of twelve.

Three tasks by (classes, shots, width), each with three seeds and 10,000 test images, probed on a
ViT of 12 blocks at a toy resolution: 32 pixels in patches of 8, so 16 tokens. At 224 pixels in
patches of 16 extraction takes twelve times as long and the solve no longer, so that twelve layers
come nearer to the price of one. Extraction is timed over some images and given for as many as the
probe reads; pixels and features are random, which changes no time.
"""
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import evaluators
from big_transfer import models
from big_transfer.data import pipeline
from big_transfer.evaluators import fewshot

SIZES = ((10, 25, 192), (100, 25, 768), (1000, 10, 768))
SEEDS = (0, 1, 2)
TEST = 10_000
PIXELS, PATCH, BLOCKS = 32, 8, 12
LAYERS = (("pre_logits",), (*(f"block_{i:02d}" for i in range(1, BLOCKS)), "pre_logits"))


def rows(row):
  """The rows of all sizes.

  Args:
    row: makes one, `row(name, unit, repeats, note)`.
  """
  result = []
  for classes, shots, width in SIZES:
    with tempfile.TemporaryDirectory() as folder:
      result += _rows_of_size(row, classes, shots, width, pathlib.Path(folder))
  return result


def _rows_of_size(row, classes, shots, width, folder):
  size = f"{classes}×{shots}×{width}"
  task = _task(folder, classes, len(SEEDS) * shots)
  apply, params = _model(classes, width)
  context = evaluators.Context(
      apply=apply, put=jax.device_put, check=lambda: None, upstream=None, batch_size=64,
      layers=LAYERS[1], prepare=lambda source: pipeline.prepare(source, PIXELS))
  probes = [fewshot.FewShot(context, tasks=[task], shots=(shots,), seeds=SEEDS, layers=layers)
            for layers in LAYERS]
  measured = 2048 if width < 512 else 192
  extract = _in_turns([lambda e=e: _extract(e, params, measured) for e in probes], 3)
  images = _images(probes[0])
  extract = [[t * images / measured for t in seconds] for seconds in extract]
  features = np.random.default_rng(0).normal(size=(images, width)).astype(np.float32)
  solve = _in_turns([lambda e=e, l=l: _solve(e, l, features) for e, l in zip(probes, LAYERS)],
                    1 if classes > 100 else 3)
  note = f"{images:,} images, timed over {measured:,}; 12-block ViT, {PIXELS} pixels / {PATCH}"
  result = [row(f"{size}, {what} {many}", "s", seconds, words)
            for what, each, words in (("extract", extract, note), ("solve", solve, ""))
            for many, seconds in zip(("1 layer", "12 layers"), each)]
  ends = [statistics.median(e) + statistics.median(s) for e, s in zip(extract, solve)]
  return result + [row(f"{size}, 12 layers / 1", "×", [ends[1] / ends[0]], "end to end")]


def _task(folder, classes, per_class):
  rng = np.random.default_rng(0)
  made = lambda n: rng.integers(0, 256, (n, PIXELS, PIXELS, 3), dtype=np.uint8)
  labels = np.repeat(np.arange(classes), 2 * per_class)
  np.savez(folder / "random.npz", x_train=made(len(labels)), y_train=labels,
           x_test=made(TEST), y_test=np.arange(TEST) % classes)
  return {"name": f"random_{classes}", "source": f"npz:{folder}/random.npz"}


def _model(classes, width):
  module = models.build("vit", width=width, depth=BLOCKS, heads=width // 64, mlp_dim=4 * width,
                        patch=PATCH, pool="gap", num_classes=classes)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, PIXELS, PIXELS, 3)))["params"]
  return module.apply, params


def _images(evaluator):
  """How many images a probe reads: those that some seed draws, and the test set."""
  probe, = evaluator.probes
  return len(probe.pool) + len(probe.test)


def _extract(evaluator, params, images):
  probe, = evaluator.probes
  evaluator.features(params, probe.test, np.arange(images))


def _solve(evaluator, layers, features_nD):
  probe, = evaluator.probes
  pool = len(probe.pool)
  evaluator.solve(probe, dict.fromkeys(layers, features_nD[:pool]),
                  dict.fromkeys(layers, features_nD[pool:]))


def _in_turns(functions, repeats):
  """Seconds of each function, `repeats` times in turns once all are compiled."""
  seconds = [[] for _ in functions]
  for round_ in range(repeats + 1):
    for function, times in zip(functions, seconds):
      began = time.perf_counter()
      function()
      if round_:
        times.append(time.perf_counter() - began)
  return seconds
