"""`python -m tests.toy_run WORKDIR`: a run of some seconds for tests that kill it."""
import sys

from big_transfer import train
from tests import toy

STEPS = 600

if __name__ == "__main__":
  print(train.train(toy.config(
      total_steps=STEPS, log_every=20, checkpoint=dict(every=10),
      evals=dict(upstream=dict(kind="classification", every=35),
                 probes=dict(kind="fewshot", every=70, tasks=("digits",), shots=(5,)))),
      sys.argv[1])["status"])
