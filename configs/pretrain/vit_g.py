"""A ViT-G-like model, after Zhai et al. 2021 (2106.04560), and larger and smaller ones.

    python -m big_transfer.plan --config configs/pretrain/vit_g.py --devices 256 --memory 32GiB
    python -m big_transfer.train --config configs/pretrain/vit_g.py --workdir runs/vit-g \\
        --config.upstream.name=mine --config.upstream.source=folder:/path/to/images

Argument: G (default), ViT-G/14 of 1.9 B parameters; 10b, 9.8 B parameters, each split over 16
devices and those over 4 for the heads; toy, the same config at 0.1 M parameters, which runs on a
laptop. The first two read a folder of images for each class, `images/` unless told otherwise. No
number to expect: nothing of that size was trained with this code; what is tested are shapes,
shardings and the toy.
"""
from ml_collections import ConfigDict

# 10b: the shape of ViT-22B (Dehghani et al. 2023, 2302.05442, table 1), two thirds as wide.
MODELS = {
    "G": dict(name="vit", variant="G/14"),
    "10b": dict(name="vit", width=4096, depth=48, mlp_dim=16384, heads=32, patch=14),
    "toy": dict(name="vit", width=64, depth=3, mlp_dim=128, heads=4, patch=8),
}
MESHES = {"G": dict(data=-1, fsdp=16), "10b": dict(data=-1, fsdp=16, tensor=4),
          "toy": dict(data=-1)}


def get_config(model="G"):
  if model not in MODELS:
    raise ValueError(f"model {model!r}: expected one of {', '.join(MODELS)}")
  toy = model == "toy"
  config = ConfigDict()
  config.seed = 0
  config.init = None  # or, to branch a run, {"source": "runs/first", "what": "full"}
  config.image_size = 32 if toy else 224
  config.batch_size = 64 if toy else 4096
  config.accumulate = 1
  config.eval_batch_size = 64 if toy else 1024
  config.total_steps = 200 if toy else 1_000_000
  config.total_epochs = None  # the length, where total_steps is None
  config.upstream = dict(
      name="fractals" if toy else "images", source="fractals" if toy else "folder:images",
      options=dict(classes=20) if toy else dict(), fraction=1.0, fraction_seed=0)
  config.fit = "squash"
  config.model = dict(MODELS[model], pool="gap", dtype="bfloat16", scan=True, remat="full",
                      head_bias=-3.0 if toy else -10.0)
  config.mesh = MESHES[model]
  config.sharding = "megatron"
  config.loss = "sigmoid_xent"
  config.label_smoothing = 0.0
  config.optim = dict(
      name="adafactor", lr=3e-3 if toy else 8e-4, clip=1.0,
      # The paper's section 3.1; what it writes is the product with the rate.
      rules=(("head/.*", dict(lr=1.0, wd=3.0)), (".*", dict(wd=0.03))),
      schedule=dict(name="rsqrt", warmup_steps=20 if toy else 10_000,
                    timescale=50 if toy else 10_000, cooldown_steps=50 if toy else 50_000))
  config.augment = dict(crop_padding=2 if toy else 0, flip=not toy, mixup=None,
                        inception_crop=not toy)
  config.evals = dict(
      upstream=dict(kind="classification", every=100 if toy else 10_000),
      probes=dict(kind="fewshot", every=100 if toy else 50_000, shots=(1, 5, 10, 25),
                  seeds=(0, 1, 2), l2=(1024.0,), layers=("pre_logits",), tasks=("digits",),
                  missing="error"))
  config.log_every = 20 if toy else 50
  config.checkpoint = dict(every=100 if toy else 2_000, keep=2)
  config.sinks = ()  # or ("tensorboard", "wandb")
  config.profile = None
  return config
