"""The main job at toy size: 30 runs of three architectures on fractals, probed as they train.

    launch/quickstart.sh        # or, once installed:
    python -m big_transfer.sweep --sweep configs/quickstart.py --workdir runs/quickstart/trials
    python -m big_transfer.study --runs 'runs/quickstart/trials/*' --out runs/quickstart/study

Hardware: 2 CPU cores, offline. Sizes, lengths and rates are chosen so that upstream accuracy
spreads widely, not so that any one run is good. Expect upstream accuracy from below 0.25 to
above 0.75.
"""
import pathlib

from big_transfer.runs import configuring

MODELS = {
    "vit-small": dict(name="vit", width=64, depth=2, heads=4, mlp_dim=256, patch=8, pool="gap"),
    "vit-large": dict(name="vit", width=64, depth=4, heads=4, mlp_dim=256, patch=8, pool="gap"),
    "mixer-small": dict(name="mixer", width=64, depth=1, tokens_mlp_dim=32, channels_mlp_dim=256,
                        patch=8),
    "mixer-large": dict(name="mixer", width=64, depth=4, tokens_mlp_dim=32, channels_mlp_dim=256,
                        patch=8),
    "resnet-small": dict(name="resnet", width=0.125, depths=(1, 1, 1), root_kernel=3,
                         root_stride=2, root_pool=True),
    "resnet-large": dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3,
                         root_stride=2, root_pool=True),
}
# Steps, peak rate, weight decay of the head.
SETTINGS = {
    "vit": ((80, 3e-3, 0.1), (160, 3e-3, 0.1), (320, 1e-3, 0.1), (480, 3e-3, 3.0),
            (800, 3e-3, 0.1)),
    "mixer": ((40, 3e-3, 0.1), (80, 3e-3, 0.1), (160, 1e-3, 0.1), (160, 3e-3, 3.0),
              (400, 3e-3, 0.1)),
    "resnet": ((40, 3e-3, 0.1), (80, 3e-3, 0.1), (160, 1e-3, 0.1), (160, 3e-3, 3.0),
               (320, 3e-3, 0.1)),
}


def get_config():
  base = pathlib.Path(__file__).with_name("pretrain") / "fractals.py"
  config = configuring.load(base).unlock()
  at_the_end = 10_000  # steps; more than any run takes
  config.evals.upstream.every = config.evals.probes.every = at_the_end
  config.checkpoint.every = at_the_end
  config.evals.probes.shots = (1, 5, 25)
  with config.evals.probes.ignore_type():  # in the place of a list
    config.evals.probes.layers = "all"
  config.evals.probes.tasks = (
      "fractals_unseen", "digits", "sprites_count", "sprites_location", "sprites_orientation",
      "sprites_scale")
  return config


def get_sweep():
  for model in MODELS.values():
    for steps, rate, decay in SETTINGS[model["name"]]:
      yield {"model": model, "total_steps": steps, "optim.lr": rate,
             "optim.rules[0][1].wd": decay}
