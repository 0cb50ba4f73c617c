"""CIFAR-10 at 10 % and 100 % of its training data: what more of it buys on other tasks.

    export TFDS_DATA_DIR=...
    python -m big_transfer.sweep --sweep configs/sweeps/cifar10_fractions.py \\
        --workdir runs/fractions --jobs 2
    python -m big_transfer.sweep \\
        --sweep 'configs/sweeps/transfer.py:runs/fractions/*,omniglot_small,digits' \\
        --workdir runs/transfer --jobs 2
    python -m big_transfer.study --runs 'runs/fractions/*' 'runs/transfer/*' --out runs/study

The first pre-trains a ResNet and a ViT (those of `pretrain/cifar10.py`) on each part, two seeds,
equally many steps, and measures few-shot and linear probes at the end; the second fine-tunes each
on both tasks; the study compares the three settings. Data: `cifar10` and `omniglot_small` as
ArrayRecord under TFDS_DATA_DIR.

Hardware: a laptop; the 8 runs took 24 CPU-minutes, the 32 of fine-tuning 18 (22 November 2026).
Expect upstream 0.52 (10 %) and 0.55 for the ViT, 0.61 and 0.64 for the ResNet; on omniglot_small
and digits 0.20 and 0.70 by 10 shots, 0.22 and 0.94 linearly, 0.35 and 0.98 fine-tuned, means over
the 8.
"""
import itertools
import pathlib

from big_transfer.runs import configuring

FRACTIONS = (0.1, 1.0)
MODELS = ("resnet", "vit")
SEEDS = (0, 1)
TASKS = ("omniglot_small", "digits")


def _pretrain(model):
  path = pathlib.Path(__file__).parents[1] / "pretrain" / "cifar10.py"
  return configuring.load(f"{path}:{model}").unlock()


def get_config():
  config = _pretrain("resnet")
  config.name = ""
  config.batch_size, config.accumulate, config.total_steps = 128, 4, 1500
  config.optim.schedule.warmup_steps = 100
  at_the_end = 10_000  # steps; more than any run takes
  config.evals.upstream.every = config.evals.probes.every = at_the_end
  config.evals.linear = dict(kind="linear", every=at_the_end, tasks=TASKS,
                             layers=("pre_logits",), seed=0)
  config.checkpoint.every = at_the_end
  return config


def get_sweep():
  for fraction, name, seed in itertools.product(FRACTIONS, MODELS, SEEDS):
    yield {"name": f"{name}, {fraction:.0%}, seed {seed}", "model": _pretrain(name).model.to_dict(),
           "upstream.fraction": fraction, "seed": seed}
