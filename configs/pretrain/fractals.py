"""A first run, offline: a small model on fractals that the package draws itself.

    python -m big_transfer.train --config configs/pretrain/fractals.py:vit --workdir runs/first

Argument: vit (default), mixer or resnet. Hardware: a laptop; under two minutes on 2 CPU cores.
To pre-train on images of your own, a folder of them for each class:

    … --config.upstream.name=mine --config.upstream.source=folder:/path/to/images \\
      '--config.upstream.options={}'
"""
from ml_collections import ConfigDict

MODELS = {
    "vit": dict(name="vit", width=64, depth=4, heads=4, mlp_dim=256, patch=8, pool="gap"),
    "mixer": dict(name="mixer", width=64, depth=4, tokens_mlp_dim=32, channels_mlp_dim=256,
                  patch=8),
    "resnet": dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3, root_stride=2,
                   root_pool=True),
}


def get_config(model="vit"):
  if model not in MODELS:
    raise ValueError(f"model {model!r}: expected one of {', '.join(MODELS)}")
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32
  config.batch_size = 128
  config.accumulate = 4  # on CPU, micro-batches of 32 stay in cache: twice as fast
  config.eval_batch_size = 64
  config.total_steps = 400
  config.total_epochs = None  # the length, where total_steps is None
  config.upstream = dict(name="fractals", source="fractals", options=dict(classes=60),
                         fraction=1.0, fraction_seed=0)
  config.fit = "squash"
  config.model = dict(MODELS[model], dtype="float32", head_bias=0.0, remat="none")
  if model != "resnet":
    config.model.scan = False
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = None
  config.loss = "softmax_xent"
  config.label_smoothing = 0.0
  config.optim = dict(
      name="adamw", lr=3e-3, clip=1.0,
      rules=(("head/.*", dict(lr=1.0, wd=0.1)), (".*", dict(wd=0.01))),
      schedule=dict(name="cosine", warmup_steps=20))
  config.augment = dict(crop_padding=2, flip=False, mixup=None)
  config.evals = dict(
      upstream=dict(kind="classification", every=100),
      probes=dict(kind="fewshot", every=200, shots=(1, 5, 10, 25), seeds=(0, 1, 2), l2=(1024.0,),
                  layers=("pre_logits",), tasks=("fractals_unseen", "digits", "sprites_location"),
                  missing="error"))
  config.log_every = 20
  config.checkpoint = dict(every=100, keep=2)
  config.sinks = None  # or "tensorboard", "wandb"
  config.profile = None
  config.init = None  # or, to branch a run, {"source": "runs/first", "what": "full"}
  return config
