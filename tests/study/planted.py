"""Run folders with planted truths, written as a training writes them."""
import json
import pathlib

import numpy as np

FAMILIES = ("vit", "mixer", "resnet")
# task -> shots -> (k, alpha, e_IR) of the frontier
TASKS = {
    "fractals_unseen": {1: (0.75, 1.6, 0.25), 10: (0.85, 2.2, 0.06)},
    "digits": {1: (0.45, 4.0, 0.38), 10: (0.55, 6.0, 0.12)},
    "sprites_count": {1: (0.04, 2.0, 0.80), 10: (0.06, 2.0, 0.69)},
}


def shortfall_points(rng, n, truth, *, low=0.1, high=0.9, scale=0.06):
  """(us, ds) of n runs that fall short of a planted frontier, one-sidedly."""
  k, alpha, e_ir = truth
  us_N = rng.uniform(low, high, n)
  ds_N = 1.0 - k * (1.0 - us_N) ** alpha - e_ir - rng.exponential(scale, n)
  return us_N, np.clip(ds_N, 0.0, 1.0)


def _rows(rng, us, tasks, seeds, steps):
  rows = []
  for step in steps:
    reached = us * step / steps[-1]
    common = {"step": step, "examples": step * 128}
    rows.append(common | {"evaluator": "train", "metric": "loss", "value": 2.0 - reached})
    rows.append(common | {"evaluator": "upstream", "task": "fractals", "split": "test",
                          "metric": "accuracy", "value": reached})
    for task, by_shots in tasks.items():
      for shots, (k, alpha, e_ir) in by_shots.items():
        short = rng.exponential(0.03)
        for seed in range(seeds):
          for l2 in (1.0, 1024.0):
            ds = 1.0 - k * (1.0 - reached) ** alpha - e_ir - short + rng.normal(0, 0.005)
            rows.append(common | {
                "evaluator": "fewshot", "task": task, "setting": "fewshot", "split": "test",
                "shots": shots, "examples_used": shots * 10, "seed": seed, "layer": "pre_logits",
                "l2": l2, "metric": "accuracy",
                "value": float(np.clip(ds - 0.2 * (l2 == 1.0), 0.0, 1.0))})
  return rows


def write_run(folder, index, us, rows, *, status="finished", **changes):
  """One run folder; returns its path."""
  folder = pathlib.Path(folder) / f"run_{index:04d}"
  folder.mkdir(parents=True)
  family = FAMILIES[index % len(FAMILIES)]
  width = 32 * 2 ** (index // 3 % 3)
  run = {
      "id": f"{index:08x}", "name": f"{family}-{index}", "status": status,
      "model": {"family": family, "label": f"{family} {width}x4"},
      "parameters": 50_000 * width // 32, "flops_per_example": 1e6 * width,
      "upstream": {"name": "fractals", "classes": 60, "train_examples": 12000,
                   "test_examples": 3000},
      "total_steps": 400, "step": 400, "batch_size": 128, "examples_seen": 51200, "seed": 0,
      "config_name": "quickstart", "overrides": {"optim": {"lr": 1e-3}, "seed": index},
      "versions": {"jax": "0.10"}, "wall_seconds": 12.5} | changes
  (folder / "run.json").write_text(json.dumps(run))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def write_runs(root, n, *, tasks=None, seeds=3, steps=(200, 400), seed=0):
  """n finished run folders under root; returns their upstream accuracies."""
  rng = np.random.default_rng(seed)
  us_N = rng.uniform(0.1, 0.95, n)
  for index, us in enumerate(us_N):
    rows = _rows(rng, us, tasks or TASKS, seeds, steps)
    write_run(root, index, us, rows)
  return us_N
