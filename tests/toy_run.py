"""`python -m tests.toy_run WORKDIR [MEMBERS]`: a run of some seconds for tests that kill it.

With MEMBERS it is a population, in WORKDIR/0, WORKDIR/1, … of a seed each.
"""
import pathlib
import sys

from big_transfer import train
from tests import toy

STEPS, TOGETHER = 400, 150  # of a run alone, and of a population


def config(total_steps=STEPS, **changes):
  """What is trained."""
  return toy.config(
      total_steps=total_steps, log_every=20, checkpoint=dict(every=10),
      evals=dict(upstream=dict(kind="classification", every=35),
                 probes=dict(kind="fewshot", every=70, tasks=("digits",), shots=(5,))), **changes)


def main(workdir, members=None):
  """Trains to the end and says how it went."""
  if members is None:
    print(train.train(config(), workdir)["status"])
    return
  runs = train.train_population([
      dict(config=config(TOGETHER, seed=seed), workdir=pathlib.Path(workdir) / str(seed))
      for seed in range(int(members))])
  print(*{run["status"] for run in runs})


if __name__ == "__main__":
  main(*sys.argv[1:])
