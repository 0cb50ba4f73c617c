"""`python -m tests.host_worker WORKDIR ...`: one process of many, for `tests/test_hosts.py`.

Arguments after the folder are those of `big_transfer.train`. Environment: ARGUMENT is the config's;
FAULT is what happens to process FAULT_PROCESS (1) as it reads the batch of step FAULT_STEP: a
signal's number, or "raise"; with "save" it is main that fails, in the first save. What a process
read, drew and restored goes to WORKDIR.PROCESS.jsonl, an object a line.
"""
import errno
import hashlib
import json
import os
import pathlib
import sys

import jax
import numpy as np

from big_transfer import train
from big_transfer import trees
from big_transfer.data import pipeline
from big_transfer.evaluators import fewshot
from big_transfer.training import checkpoint
from big_transfer.training import hosts
from big_transfer.training import members
from tests import toy

STEPS = 20


def get_config(argument="64"):
  """A run of 20 steps of SGD with every evaluator; `eval_batch_size[,fsdp]` its argument."""
  eval_batch_size, *shared = argument.split(",")
  config = toy.config(
      total_steps=STEPS, log_every=1, eval_batch_size=int(eval_batch_size),
      optim=dict(name="sgd", lr=0.3, momentum=None, clip=None, rules=((".*", {}),)),
      checkpoint=dict(every=1, keep=STEPS))
  with config.unlocked():
    config.evals.upstream.every = 10
    config.evals.probes.every = 10
    if shared:
      config.mesh, config.sharding = {"fsdp": -1}, ((".*", "fsdp(min_size=1)"),)
    config.evals.geometry = dict(kind="geometry", every=10, examples=30)
  return config


def digest(params):
  """Of all bytes of a tree of arrays."""
  of = hashlib.sha256()
  for name, value in sorted(trees.flatten(hosts.fetch(params)).items()):
    of.update(name.encode() + np.asarray(value).tobytes())
  return of.hexdigest()


def _full(folder):
  """As main hashes what was saved, for the manifest."""
  raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def _watched(workdir):
  """Lets what is read, drawn and restored be written down."""
  def write(**found):
    with open(f"{workdir}.{jax.process_index()}.jsonl", "a", encoding="utf-8") as file:
      file.write(json.dumps(found) + "\n")

  read, draw, resume = pipeline._TrainSteps.__getitem__, fewshot.draw, members.resume
  images = pipeline._TrainSteps._images

  def reading(self, step):
    place = jax.process_index(), step
    if place == tuple(int(os.environ.get(*of)) for of in (
        ("FAULT_PROCESS", 1), ("FAULT_STEP", -1))):
      if os.environ["FAULT"] == "raise":
        raise ValueError("image 7 is corrupt")
      os.kill(os.getpid(), int(os.environ["FAULT"]))
    return read(self, step)

  def looking(self, indices, positions):
    write(positions=positions.tolist(), examples=indices.tolist())
    return images(self, indices, positions)

  def drawing(*args):
    drawn = draw(*args)
    write(drawn=[d.tolist() for d in drawn])
    return drawn

  def resuming(*args):
    state = resume(*args)
    if state is not None:
      write(restored=digest(state.params), step=int(state.step))
    return state

  pipeline._TrainSteps.__getitem__, pipeline._TrainSteps._images = reading, looking
  fewshot.draw, members.resume = drawing, resuming
  if os.environ.get("FAULT") == "save":
    checkpoint._hashes = _full


if __name__ == "__main__":
  _watched(pathlib.Path(sys.argv[1]))
  config = f"{__file__}:{os.environ.get('ARGUMENT', '64')}"
  train.main(["--config", config, "--workdir", *sys.argv[1:]])
