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
    "vit-small": dict(name="vit", width=48, depth=2, heads=3, mlp_dim=192, patch=8, pool="gap"),
    "vit-large": dict(name="vit", width=96, depth=3, heads=3, mlp_dim=384, patch=8, pool="gap"),
    "mixer-small": dict(name="mixer", width=48, depth=2, tokens_mlp_dim=24, channels_mlp_dim=192,
                        patch=8),
    "mixer-large": dict(name="mixer", width=96, depth=3, tokens_mlp_dim=48, channels_mlp_dim=384,
                        patch=8),
    "resnet-small": dict(name="resnet", width=0.125, depths=(1, 1), root_kernel=3, root_stride=2,
                         root_pool=True),
    "resnet-large": dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3, root_stride=2,
                         root_pool=True),
}
# (steps, learning rate as a multiple of the base, weight decay of the head)
SETTINGS = ((40, 1.0, 0.1), (80, 1.0, 0.1), (160, 0.2, 0.1), (160, 1.0, 3.0), (320, 1.0, 0.1))


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32
  config.batch_size = 128
  config.eval_batch_size = 500
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
      probes=dict(kind="fewshot", every=10_000, shots=(1, 5, 10), seeds=(0, 1, 2), l2=(1024.0,),
                  tasks=("fractals_unseen", "digits", "sprites_count", "sprites_location",
                         "sprites_orientation", "sprites_scale")))
  config.log_every = 20
  return config


def get_sweep():
  for index, model in enumerate(MODELS.values()):
    for steps, rate, decay in SETTINGS:
      yield {"model": model, "total_steps": steps, "optim.lr": 3e-3 * rate,
             "optim.rules[0][1].wd": decay, "seed": index}
