"""Run folders of head ablations with planted truths: probes of every layer, margins and norms.

Two models, two factors (the head's decay at rate 1, its rate at decay `BODY_DECAY` × 10), run
seeds and probe seeds. With x the decades of a setting above the neutral one, everything is a line
in x, or a parabola about a task's best setting, plus noise of a run seed (which a series shares)
and of a run; see `truth`.
"""
import json
import math

import numpy as np
import planted

DECAYS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
NEUTRAL = {"head_decay": 0.1, "head_rate": 1.0}
BODY_DECAY = 0.01
MODELS = {"vit": ("ViT 64x4/8", 4), "mixer": ("Mixer 64x3/8", 3)}
SHOTS = (1, 10)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# task -> (accuracy at its best, best head setting in decades of decay above neutral, share of the
# depth from which it is flat). A lower head rate does what a higher decay does.
TASKS = {"fractals_unseen": (0.75, 0.0, 1.0), "digits": (0.85, 1.0, 0.5),
         "sprites_count": (0.60, 2.0, 0.25)}
CURVATURE = 0.02  # accuracy lost a squared decade from a task's best setting
US_SLOPE = -0.02  # accuracy upstream a decade of decay
# Decades a decade of decay of: a layer's norms, and its margins' medians.
NORM_SLOPES = {"head": -0.3, "body": 0.1}
MARGIN_SLOPES = {"pre_logits": -0.2, "body": 0.1}
NOISE = {"seed": 0.01, "run": 0.004, "probe": 0.006}  # standard deviations, in accuracy


def layers(family):
  """Names of the probed layers of a model, by depth."""
  return ["stem", *(f"block_{i:02d}" for i in range(MODELS[family][1])), "pre_logits"]


def decades(factor, value):
  """Decades of head decay, or what does the same, that a setting is above the neutral one."""
  return math.log10(value / NEUTRAL[factor]) * (1.0 if factor == "head_decay" else -1.0)


def truth(family, factor, value, task=None, shots=None, layer="pre_logits"):
  """Planted accuracy, without noise: upstream where `task` is None."""
  x = decades(factor, value)
  if task is None:
    return {"vit": 0.70, "mixer": 0.62}[family] + US_SLOPE * x
  best, at, flat_from = TASKS[task]
  best += {"vit": 0.0, "mixer": -0.05}[family] - (0.2 if shots == 1 else 0.0)
  names = layers(family)
  depth = names.index(layer) / (len(names) - 1)
  return best - CURVATURE * (x - at) ** 2 - 0.3 * max(flat_from - depth, 0.0)


def _accuracies(rng, family, factor, value, luck, probe_seeds):
  run = {"evaluator": "upstream", "task": "fractals", "split": "test", "metric": "accuracy"}
  yield run | {"value": truth(family, factor, value) + luck + rng.normal(0, NOISE["run"])}
  for task in TASKS:
    for shots in SHOTS:
      own = luck + rng.normal(0, NOISE["run"])
      for seed in range(probe_seeds):
        draw = own + rng.normal(0, NOISE["probe"])  # of a probe's examples: all layers share it
        for layer in layers(family):
          yield {"evaluator": "fewshot", "task": task, "variant": "full", "setting": "fewshot",
                 "split": "test", "shots": shots, "examples_used": 10 * shots, "seed": seed,
                 "layer": layer, "l2": 1024.0, "metric": "accuracy", "status": "ok",
                 "value": truth(family, factor, value, task, shots, layer) + draw
                          + rng.normal(0, NOISE["probe"] / 6)}


def _geometry(rng, family, factor, value):
  common = {"evaluator": "geometry", "task": "fractals", "variant": "full", "setting": "upstream",
            "status": "ok"}
  x, names = decades(factor, value), layers(family)

  def noisy(size, slope):
    return size * 10.0 ** (slope * x + rng.normal(0, 0.02))

  for depth, layer in enumerate(names):
    slope = MARGIN_SLOPES["pre_logits" if layer == "pre_logits" else "body"]
    median, spread = noisy(0.2 * (depth + 1), slope), noisy(4.0 * (depth + 1), 0.0)
    measured = {"split": "train", "examples_used": 512, "seed": 0, "layer": layer}
    yield common | measured | {"metric": "total_variance", "value": spread ** 2}
    for quantile in QUANTILES:
      at = median * (1.0 + 2.0 * (quantile - 0.5))
      for metric, margin in (("margin", at), ("margin_normalised", at / spread)):
        yield common | measured | {"quantile": quantile, "metric": metric, "value": margin}
  for layer in [*names, "head"]:
    slope = NORM_SLOPES["head" if layer == "head" else "body"]
    groups = (["kernel", "bias"] if layer == "head" else
              ["embedding"] if layer == "stem" else ["LayerNorm_0", "MlpBlock_0"])
    parts = [noisy(3.0 + i, slope) for i in range(len(groups))]
    for group, norm in zip([*groups, "all"], [*parts, math.hypot(*parts)]):
      yield common | {"layer": layer, "group": group, "metric": "l2_norm", "value": norm}


def write(root, *, seeds=3, probe_seeds=3, factors=("head_decay", "head_rate"),
          families=tuple(MODELS), geometry=True, seed=0):
  """Writes the runs of both ablations under `root`; returns their folders.

  Args:
    root: folder, made if missing.
    seeds: run seeds a setting.
    probe_seeds: of the probes.
    factors: ablations to write; the neutral setting is a run of both.
    families: of `MODELS`.
    geometry: whether margins, variances and norms are measured too.
    seed: of the noise.
  """
  rng = np.random.default_rng(seed)
  settings = [("head_decay", value) for value in DECAYS if "head_decay" in factors]
  settings += [("head_rate", value) for value in RATES if "head_rate" in factors and not (
      "head_decay" in factors and value == NEUTRAL["head_rate"])]
  folders = []
  for family in families:
    for number in range(seeds):
      luck = rng.normal(0, NOISE["seed"])
      for factor, value in settings:
        rows = list(_accuracies(rng, family, factor, value, luck, probe_seeds))
        rows += _geometry(rng, family, factor, value) if geometry else ()
        folders.append(_write_run(root, len(folders), family, number, {factor: value}, rows))
  return folders


def _write_run(root, index, family, seed, varied, rows):
  head = NEUTRAL | varied
  keys = {"head_decay": "optim.rules[0][1].wd", "head_rate": "optim.rules[0][1].lr"}
  changed = {keys[name]: value for name, value in varied.items()}
  label, blocks = MODELS[family]
  folder = planted.write_run(
      root, index, None, [{"step": 400, "examples": 51200} | row for row in rows], seed=seed,
      name=f"{label}, {', '.join(f'{name} {value:g}' for name, value in varied.items())}, {seed}",
      model={"family": family, "label": label}, parameters=100_000 * blocks,
      flops_per_example=1e7 * blocks,
      overrides={"model": {"name": family, "depth": blocks}, "seed": seed, **changed})
  rules = [["head/.*", {"lr": head["head_rate"], "wd": head["head_decay"]}],
           [".*", {"wd": BODY_DECAY}]]
  (folder / "config.json").write_text(json.dumps({
      "model": {"name": family, "depth": blocks}, "optim": {"lr": 1e-3, "rules": rules},
      "seed": seed}))
  return folder
