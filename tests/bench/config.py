"""The benchmark's run: the tiny ViT on CIFAR-10 (or, where that is missing, on fractals).

    python -m big_transfer.train --config tests/bench/config.py:cifar10 --workdir runs/tiny

207,946 parameters: width 64, depth 4, 4 heads, hidden width 256, patches of 4×4 at 32 pixels,
mean pooling; batch 256, AdamW, sigmoid cross-entropy, crop and flip. 80 steps take about half a
minute on 2 cores.
"""
from ml_collections import ConfigDict


def get_config(arg="cifar10"):
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32
  config.batch_size = 256
  config.total_steps = 80
  config.log_every = 10
  config.upstream = {
      "cifar10": dict(name="cifar10"),
      "fractals": dict(name="fractals", source="fractals",
                       options=dict(classes=10, per_class=2000, size=32))}[arg]
  config.model = dict(name="vit", width=64, depth=4, heads=4, mlp_dim=256, patch=4, pool="gap")
  # On a CPU small micro-batches are fastest, in training and evaluation: their activations stay in
  # the cache, and in memory that the allocator keeps instead of asking the system for it anew.
  config.accumulate = 8
  config.eval_batch_size = 64
  config.optim = dict(lr=1e-3, rules=((".*", dict(wd=0.1)),), schedule=dict(name="constant"))
  config.augment = dict(crop_padding=4, flip=True)
  config.evals = dict(upstream=dict(kind="classification", every=10**6))  # only at the end
  return config
