"""A ViT on ImageNet-21k for 7, 14 or 21 epochs, as the paper's controlled scaling varies them.

    python -m big_transfer.train --config configs/pretrain/vit_i21k.py:S/16,7 \\
        --workdir runs/vit-s-7 --config.upstream.source=imagenet21k:/path/to/classes \\
        --config.upstream.options.release=winter21
    python -m big_transfer.plan --config configs/pretrain/vit_i21k.py:S/16,7 --devices 8 \\
        --memory 32GiB --classes 21841 --examples 14000000

Argument: Ti/16, S/16, B/16 (default), L/16 or another variant of `models/shapes.py`, and after a
comma the epochs: 7 (default), 14 or 21. `toy` in the place of a variant is 0.1 M parameters on
fractals, for a laptop. The folder holds a tar or a folder of images for each class
(`data/class_tars.py`), whose last hundredth by hash is held out. Other data with many labels, as
JFT is (Abnar et al. 2021 varied 7, 14 and 21 epochs on it, sec. 2.3):

    … --config.upstream.name=mine --config.upstream.source=folder:/path \\
      '--config.upstream.options={}'

The toy takes classes of one's own too, with '--config.upstream.options={"release": "mine"}' beside
name and source. A share of the data: --config.upstream.fraction=0.02 and so on. Probes are of the
paper's eight tasks of its main part; where some aren't prepared it stops and says how to get them,
or --config.evals.probes.missing=skip.

The recipe is that of big_vision's configs/vit_i21k.py, shortened: batches of 4,096, Adam at 1e-3
with decoupled decay λ = 0.1, warm-up over 10,000 steps (or half of the run), cosine, sigmoid losses
with the head's bias at −10, inception crops and flips. It trains for 300 epochs and adds
RandAugment and mixup, for S/16 and up, against the overfitting of so many. The recipe of Abnar et
al. themselves isn't printed in their paper.

Hardware: an accelerator, or several; `plan` says what fits and what a step costs. Expected: there
is no published number for this exact recipe, and nobody has run it here at full size; what is
tested are shapes, and the toy.
"""
from ml_collections import ConfigDict

EPOCHS = (7, 14, 21)
TOY = dict(name="vit", width=64, depth=3, mlp_dim=128, heads=4, patch=8)


def get_config(argument="B/16,7"):
  variant, _, epochs = argument.partition(",")
  if (epochs or "7") not in map(str, EPOCHS):
    raise ValueError(f"epochs {epochs!r} in {argument!r}: expected {', '.join(map(str, EPOCHS))} "
                     "after a comma, as in S/16,14; other lengths by --config.total_epochs")
  toy = variant == "toy"
  config = ConfigDict()
  config.seed = 0
  config.image_size = 32 if toy else 224
  config.batch_size = 64 if toy else 4096
  config.accumulate = 1
  config.eval_batch_size = 64 if toy else 1024
  config.total_steps = None
  config.total_epochs = float(epochs or 7)  # the length, where total_steps is None
  config.upstream = dict(
      name="fractals" if toy else "imagenet21k",
      source="fractals" if toy else "imagenet21k:imagenet21k",
      options=dict(classes=60) if toy else dict(release=""), fraction=1.0, fraction_seed=0)
  config.fit = "squash" if toy else "crop"
  config.model = dict(TOY if toy else dict(name="vit", variant=variant), pool="gap",
                      dtype="bfloat16", scan=False, remat="none",
                      head_bias=-4.0 if toy else -10.0)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = None
  config.loss = "sigmoid_xent"
  config.label_smoothing = 0.0
  config.optim = dict(
      name="adamw", lr=3e-3 if toy else 1e-3, clip=1.0, mu_dtype="bfloat16",
      rules=(("head/.*", dict(lr=1.0, wd=0.1)), (".*", dict(wd=0.1))),
      schedule=dict(name="cosine", warmup_steps=50 if toy else 10_000))
  config.augment = dict(crop_padding=2 if toy else 0, flip=not toy, mixup=None,
                        inception_crop=not toy)
  config.evals = dict(
      upstream=dict(kind="classification", every=100 if toy else 5_000),
      probes=dict(kind="fewshot", every=200 if toy else 10_000, shots=(1, 5, 10, 25),
                  seeds=(0, 1, 2), l2=(1024.0,), layers=("pre_logits",),
                  tasks=("digits",) if toy else ("main",), missing="error"))
  config.log_every = 20 if toy else 50
  config.checkpoint = dict(every=100 if toy else 2_000, keep=2)
  config.sinks = ()  # or ("tensorboard", "wandb")
  config.profile = None
  config.init = None  # or, to branch a run, {"source": "runs/first", "what": "full"}
  return config
