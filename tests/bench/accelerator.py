"""The train step of ViT-S/16, B/16 and L/16 at 224 pixels in bfloat16, and its share of the peak.

The model FLOPs of a step are counted as 3 × forward × examples (`models.shapes.flops_per_example`:
2 for each multiply-add of matrix products and convolutions, nothing elementwise; the reverse pass
costs twice the forward one; what remat computes again is not counted). They are set against the
dense bfloat16 peak of the chip's data sheet, and against the measured rate of one plain product
with the shape of the model's MLP, (batch · tokens, width) by (width, 4 · width). A batch that the
memory doesn't hold is halved until it does; the note has the one that was timed.

Where there is no accelerator the same code runs at toy size, in float32, with nothing to compare
but the plain product.
"""
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import models
from big_transfer.training import program
from big_transfer.training import sharding

# Dense bfloat16 TFLOP/s of one chip, from its maker's data sheet; the first name that is in
# `device_kind`. A v5p calls itself "TPU v5".
PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
         "L40S": 362, "L40": 181, "L4": 121,
         "TPU v6": 918, "TPU v5 lite": 197, "TPU v5": 459, "TPU v4": 275}
# Variant, examples a step, side of the images, classes.
SIZES = (("S/16", 512, 224, 1000), ("B/16", 256, 224, 1000), ("L/16", 128, 224, 1000))
TOY = (("mu/16", 64, 64, 10),)
# What is tried of each model: the first line is the default of the configs.
TRIED = ({}, {"attention": "cudnn"}, {"remat": "full"}, {"scan": True})
REPEATS, STEPS = 5, 10


def rows(row):
  """The rows of all models and of what is tried of them; `row(name, unit, repeats, note)`."""
  on_cpu = jax.default_backend() == "cpu"
  kind = jax.devices()[0].device_kind
  peak = peak_of(kind)
  result = []
  for variant, batch, pixels, classes in TOY if on_cpu else SIZES:
    for tried in TRIED:
      if on_cpu and tried.get("attention") == "cudnn":
        continue
      result += _of_model(row, variant, batch, pixels, classes, tried, peak, kind)
  return result


def peak_of(kind):
  """Dense bfloat16 TFLOP/s of the chip that JAX calls `kind`; None where it isn't known."""
  return next((tera for name, tera in PEAKS.items() if name in kind), None)


def _of_model(row, variant, batch, pixels, classes, tried, peak, kind):
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  devices = jax.device_count()
  model = {"name": "vit", "variant": variant, "dtype": dtype, "pool": "gap", **tried}
  built = program.build(
      model=model, classes=classes, image_size=pixels, optimiser={}, patterns=[".*"],
      loss="sigmoid_xent", augment={}, mixup=False, accumulate=1, mesh={"data": -1})
  name = f"ViT-{variant} at {pixels}" + "".join(f", {k}={v}" for k, v in tried.items())
  seconds = None
  while seconds is None:
    try:
      seconds = _seconds_a_step(built, batch * devices, pixels, classes)
    except Exception as error:  # a kernel that this chip has not, or a batch of 1 too large
      if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
        why = str(error).strip().split("\n", maxsplit=1)[0][:200]
        return [row(name, "images/s", [], f"could not be run: {type(error).__name__}: {why}")]
      batch //= 2
  tera = [3 * built.flops * batch / s / 1e12 for s in seconds]
  note = f"{kind}, {dtype}, batch {batch} a device"
  result = [row(name, "images/s", [batch * devices / s for s in seconds], note),
            row(f"{name}, model", "TFLOP/s", tera, "a device; 3 × forward, remat not counted")]
  if peak:
    result.append(row(f"{name}, of peak", "%", [100 * t / peak for t in tera],
                      f"{peak} TFLOP/s dense bfloat16 by the data sheet"))
  if not tried:
    plain = _product(variant, batch, pixels, dtype)
    shares = [100 * t / statistics.median(plain) for t in tera]
    result += [row(f"{name}, plain product", "TFLOP/s", plain, "its MLP's first, alone"),
               row(f"{name}, of the product", "%", shares)]
  return result


def _seconds_a_step(built, batch, pixels, classes):
  """Seconds of a step, averaged over STEPS, REPEATS times, once all is compiled."""
  rng = np.random.default_rng(0)
  on_device = sharding.put_batch({
      "image": rng.integers(0, 256, (batch, pixels, pixels, 3), np.uint8),
      "label": rng.integers(0, classes, batch, np.int32),
      "slot": np.arange(batch, dtype=np.int32)}, built.mesh)
  hparams = {"seed": np.uint32(0), "label_smoothing": np.float32(0), "mixup": np.float32(0),
             "optim": {"lr": np.float32(1e-4), "rule_lr": np.ones(1, np.float32),
                       "rule_wd": np.zeros(1, np.float32)}}
  state = built.init(np.uint32(0))
  seconds = []
  for repeat in range(REPEATS + 1):
    began = time.perf_counter()
    for _ in range(STEPS):
      state, measures = built.step(state, on_device, hparams)
    jax.block_until_ready(measures)
    if repeat:
      seconds.append((time.perf_counter() - began) / STEPS)
  return seconds


def _product(variant, batch, pixels, dtype):
  """TFLOP/s of (batch · tokens, D) @ (D, 4 D), chained so that no launch is waited for.

  Of random numbers: a chip clocks higher on constants, which take less power.
  """
  module = models.build("vit", variant, num_classes=1)
  L, D = (pixels // module.patch) ** 2, module.width
  of_x, of_up, of_down = jax.random.split(jax.random.key(0), 3)
  operands = (jax.random.normal(of_x, (batch * L, D), dtype),
              jax.random.normal(of_up, (D, 4 * D), dtype) / D**0.5,  # so that sizes stay as they are
              jax.random.normal(of_down, (4 * D, D), dtype) / (4 * D)**0.5)
  loops = 20

  @jax.jit
  def chain(x_ND, up_DF, down_FD):
    return jax.lax.fori_loop(0, loops, lambda _, x: (x @ up_DF) @ down_FD, x_ND)

  chain(*operands).block_until_ready()
  rates = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    chain(*operands).block_until_ready()
    rates.append(loops * 16 * batch * L * D * D / (time.perf_counter() - began) / 1e12)
  return rates
