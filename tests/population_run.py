"""Populations beside the same runs alone; also in a process, for other devices than the tests'.

    python -m tests.population_run FOLDER resnet different
"""
import contextlib
import json
import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from big_transfer import train
from big_transfer.training import checkpoint
from tests import toy

MEMBERS = 4  # of which 8 devices take two each along the axis of the population
STEPS = 20
MODELS = {
    "vit": dict(name="vit", width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool="gap"),
    "mixer": dict(name="mixer", width=16, depth=1, tokens_mlp_dim=8, channels_mlp_dim=32, patch=8),
    "resnet": dict(name="resnet", width=0.125, depths=(1,), root_kernel=3, root_stride=2,
                   root_pool=True)}


def configs(model, seeds, **changes):
  """Configs that differ in every kind of array: rates, decays, seeds, smoothing and mixup."""
  made = []
  for i in range(MEMBERS):
    config = toy.config(
        model=MODELS[model], total_steps=STEPS, log_every=1, checkpoint={},
        seed=i if seeds == "different" else 5, label_smoothing=0.02 * i,
        augment=dict(crop_padding=1, flip=True, mixup=0.1 + 0.1 * i),
        optim=dict(name="sgd", lr=0.01 * (1 + i), clip=None, schedule=dict(name="constant"),
                   rules=(("head/.*", dict(lr=1.0 + i, wd=0.1 * i)), (".*", dict(wd=0.01)))),
        evals=dict(upstream=dict(kind="classification", every=100)))
    made.append(config.unlock())
    for key, value in changes.items():  # whole: `update` would leave what a section has beside
      made[-1][key] = value
  return made


def population(folder, configs, **more):
  """Trains them as one; their folders are FOLDER/0, FOLDER/1, …"""
  return train.train_population([
      dict(config=config, workdir=pathlib.Path(folder) / str(i), **more)
      for i, config in enumerate(configs)])


def rows(folder):
  """What a run has measured."""
  text = (pathlib.Path(folder) / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def state(folder, step):
  """A checkpoint as `{name: array}`."""
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(
        pathlib.Path(folder).absolute() / "checkpoints" / str(step) / "state")
  return {"/".join(map(str, name)): np.asarray(value)
          for name, value in ocp.utils.to_flat_dict(tree).items()}


def compare(folder, model, seeds, **changes):
  """By how much runs of a population differ from the same runs alone.

  Returns:
    `gradients`: of the first step, the norm of the difference over their own, the largest of any
    member; `losses`: the largest relative difference; `accuracy`: the largest difference of any
    accuracy; `draws`: whether all rows have equal columns but for their values; `spread`: how far
    the members' own losses are apart.
  """
  folder, made = pathlib.Path(folder), configs(model, seeds, **changes)
  first = configs(model, seeds, total_steps=1, evals={})  # the momentum buffer is then the gradient
  for part, of_part in ("first", first), ("whole", made):
    population(folder / part / "together", of_part)
    for i, config in enumerate(of_part):
      train.train(config, folder / part / "alone" / str(i))
  gradients = max(_difference(*(_gradients(folder / "first" / how / str(i)) for how in
                                ("alone", "together"))) for i in range(MEMBERS))
  alone, together = ([rows(folder / "whole" / how / str(i)) for i in range(MEMBERS)]
                     for how in ("alone", "together"))
  bare = lambda found: [[{**row, "value": 0} for row in of_run] for of_run in found]
  pairs = [(a, b) for one, other in zip(alone, together) for a, b in zip(one, other)]
  gap = lambda metric, scaled: max(
      abs(a["value"] - b["value"]) / (abs(a["value"]) if scaled else 1)
      for a, b in pairs if a["metric"] == metric and (a["evaluator"] == "train") == scaled)
  last = [[row["value"] for row in of_run if row["evaluator"] == "train" and
           row["metric"] == "loss"][-1] for of_run in alone]
  return {"gradients": float(gradients), "losses": gap("loss", True),
          "accuracy": gap("accuracy", False), "draws": bare(alone) == bare(together),
          "spread": max(last) - min(last), "devices": jax.device_count()}


def _gradients(folder):
  found = {name: value for name, value in state(folder, 1).items() if "trace" in name}
  assert found, "the state of sgd has no buffer called trace any more"
  return found


def _difference(one, other):
  norm = lambda of: np.sqrt(sum(np.square(value.astype(np.float64)).sum() for value in of))
  return norm([one[name] - other[name] for name in one]) / norm(one.values())


def saving(**changes):
  """Configs of a short population with several saves and no evaluators."""
  return configs("vit", "different", **{
      "total_steps": 8, "checkpoint": dict(every=2), "evals": {}, **changes})


@contextlib.contextmanager
def dying_at_save(number, die):
  """Makes checkpoints call `die` in the place of a save, those before it being complete."""
  before, save = [], checkpoint.Checkpoints.save

  def counted(self, *args, **kwargs):
    if len(before) == number:
      for checkpoints in before:
        checkpoints.wait()
      die()
    before.append(self)
    save(self, *args, **kwargs)

  checkpoint.Checkpoints.save = counted
  try:
    yield
  finally:
    checkpoint.Checkpoints.save = save


def main(folder, model, seeds):
  evals = dict(upstream=dict(kind="classification", every=10),
               probes=dict(kind="fewshot", every=10, tasks=("digits",), shots=(1, 5)))
  print(json.dumps(compare(folder, model, seeds, evals=evals)))


if __name__ == "__main__":
  main(*sys.argv[1:])
