"""Learning rate of the head over two decades relative to the body's: does it push information down?

    python -m big_transfer.sweep --sweep configs/sweeps/head_learning_rate.py \\
        --workdir runs/head-rate --jobs 2
    python -m big_transfer.study --runs 'runs/head-decay/*' 'runs/head-rate/*' --out runs/head-study

The companion of `head_weight_decay.py`, beside this file, with the same data, models and tasks and
the same argument: a slower head leaves more to the body, as a more decayed one does (Abnar et al.
2021, sec. 4; app. C at ICLR). The head's rate is m · η, that of the body η; the decay of both is
λ · η, whatever m: a rule's rate multiplier doesn't touch its decay (`training/optim.py`).

Hardware: 2 CPU cores.
"""
import itertools
import pathlib

from big_transfer.runs import configuring

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the head, as multiples of the body's
SEEDS = (0, 1, 2)
MODELS = ("vit", "resnet")
_HERE = pathlib.Path(__file__)


def get_config(data="fractals"):
  return configuring.load(f"{_HERE.with_name('head_weight_decay.py')}:{data}").unlock()


def get_sweep():
  fractals = _HERE.parents[1] / "pretrain" / "fractals.py"
  for seed, name in itertools.product(SEEDS, MODELS):
    model = configuring.load(f"{fractals}:{name}").model.to_dict()
    for rate in RATES:
      yield {"name": f"{name}, head rate {rate:g}, seed {seed}", "model": model, "seed": seed,
             "optim.rules[0][1].lr": rate}
