"""The main job at toy size: 30 runs of three architectures on fractals, probed as they train.

    launch/quickstart.sh        # or, once installed:
    python -m big_transfer.sweep --sweep configs/quickstart.py --workdir runs/quickstart/trials
    python -m big_transfer.study --runs 'runs/quickstart/trials/*' --out runs/quickstart/study

Hardware: 2 CPU cores, offline. Sizes, lengths and rates are chosen so that upstream accuracy
spreads widely, not so that any one run is good. Expect upstream accuracy from below 0.25 to
above 0.75.
"""
from ml_collections import ConfigDict

CLASSES = 60
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
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32
  config.batch_size = 128
  config.accumulate = 4  # on CPU, micro-batches of 32 stay in cache: twice as fast
  config.eval_batch_size = 64
  config.total_steps = 320
  config.upstream = dict(name="fractals", source="fractals", options=dict(classes=CLASSES))
  config.model = MODELS["vit-small"]
  config.loss = "softmax_xent"
  config.optim = dict(
      name="adamw", lr=3e-3, clip=1.0,
      rules=(("head/.*", dict(lr=1.0, wd=0.1)), (".*", dict(wd=0.01))),
      schedule=dict(name="cosine", warmup_steps=20))
  config.augment = dict(crop_padding=2)
  config.evals = dict(
      upstream=dict(kind="classification", every=10_000),
      probes=dict(kind="fewshot", every=10_000, shots=(1, 5, 25), seeds=(0, 1, 2), l2=(1024.0,),
                  tasks=("fractals_unseen", "digits", "sprites_count", "sprites_location",
                         "sprites_orientation", "sprites_scale")))
  config.log_every = 20
  return config


def get_sweep():
  for model in MODELS.values():
    for steps, rate, decay in SETTINGS[model["name"]]:
      yield {"model": model, "total_steps": steps, "optim.lr": rate,
             "optim.rules[0][1].wd": decay}
