"""What a population is worth: 16 runs batched, as `auto` has it, and one after the other.

    python -m big_transfer.sweep --sweep tests/bench/population.py:vit --workdir DIR --jobs 1 \\
        --population auto

Sweeps: `tiny` (a ViT of 5,000 parameters at 16 pixels, whose step takes a millisecond or two),
`vit` and `resnet` (the small ones of configs/quickstart.py at 32 pixels), and `vit_ti` (ViT-Ti/4 at
32 pixels in bfloat16, for an accelerator). The runs differ in rate and seed.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from ml_collections import ConfigDict

RUNS = 16
MODES = {"batched": str(RUNS), "auto": "auto", "one by one": "1"}
# Model, pixels, examples a step, steps.
SWEEPS = {
    "tiny": (dict(name="vit", width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool="gap"),
             16, 16, 3000),
    "vit": (dict(name="vit", width=64, depth=2, heads=4, mlp_dim=256, patch=8, pool="gap"),
            32, 128, 100),
    "resnet": (dict(name="resnet", width=0.125, depths=(1, 1, 1), root_kernel=3, root_stride=2,
                    root_pool=True), 32, 128, 100),
    "vit_ti": (dict(name="vit", variant="Ti/4", dtype="bfloat16"), 32, 128, 2000)}


def get_config(name):
  model, pixels, batch, steps = SWEEPS[name]
  return ConfigDict(dict(
      seed=0, image_size=pixels, batch_size=batch, total_steps=steps, log_every=steps,
      accumulate=1 if name in ("tiny", "vit_ti") else 4,
      upstream=dict(name="fractals", source="fractals",
                    options=dict(classes=10, per_class=200, test_per_class=20, size=pixels)),
      model=model, optim=dict(lr=1e-3, rules=((".*", dict(wd=0.1)),)),
      augment=dict(crop_padding=2, flip=True),
      evals=dict(upstream=dict(kind="classification", every=10**6),
                 probes=dict(kind="fewshot", every=10**6, tasks=("digits",), shots=(5,)))))


def get_sweep(name):
  del name
  for i in range(RUNS):
    yield {"optim.lr": 1e-3 * 1.2 ** (i // 2), "seed": i % 2}


def measure(name, mode):
  """Rows of a sweep: its runs an hour, and its CPU seconds.

  Raises:
    RuntimeError: it failed.
  """
  with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
    began = time.time()
    child = subprocess.Popen(
        [sys.executable, "-m", "big_transfer.sweep", "--jobs=1", "--sweep", f"{__file__}:{name}",
         "--workdir", folder, "--population", MODES[mode]], stdout=said, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.time() - began
    if child.returncode:
      said.seek(0)
      raise RuntimeError(said.read().strip().splitlines()[-1])
    why = next((line.split(": ", 1)[1].strip() for log in pathlib.Path(folder).glob("*/log.txt")
                for line in log.read_text().splitlines() if line.startswith(f"{RUNS} trials: ")),
               "start and compiling included")
  what = f"population, {name}, {mode}"
  return [{"name": what, "unit": "runs/h", "repeats": [RUNS * 3600 / seconds], "note": why},
          {"name": f"{what}, CPU", "unit": "s", "repeats": [usage.ru_utime + usage.ru_stime],
           "note": f"of all {RUNS} runs"}]


def main():
  """Prints the rows as the last line; in a process with an accelerator those of `vit_ti` alone."""
  found = subprocess.run([sys.executable, "-c", "import jax; print(jax.default_backend())"],
                         text=True, capture_output=True, check=True)
  names = ("tiny", "vit", "resnet") if found.stdout.strip() == "cpu" else ("vit_ti",)
  print(json.dumps([row for name in names for mode in MODES for row in measure(name, mode)]))


if __name__ == "__main__":
  main()
