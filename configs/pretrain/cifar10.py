"""Tiny models on CIFAR-10."""
from ml_collections import ConfigDict


def get_config(arg="resnet"):
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32
  config.batch_size = 128
  config.total_steps = 300
  config.upstream = dict(name="cifar10")
  if arg == "resnet":
    config.model = dict(name="resnet", width=0.25, depths=(1, 1, 1))
  else:
    config.model = dict(name="vit", width=64, depth=4, heads=4, mlp_dim=256, patch=4)
  config.optim = dict(
      name="adamw", lr=3e-3, clip=1.0, rules=(("head/.*", dict(wd=0.1)), (".*", dict(wd=0.1))),
      schedule=dict(name="cosine", warmup_steps=50))
  config.augment = dict(crop_padding=4, flip=True)
  config.evals = dict(
      upstream=dict(kind="classification", every=100),
      probes=dict(kind="fewshot", every=100, tasks=("digits", "omniglot_small"), shots=(1, 5, 10)))
  config.checkpoint = dict(every=100, keep=2)
  return config
