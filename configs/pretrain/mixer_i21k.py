"""An MLP-Mixer on ImageNet-21k for 7, 14 or 21 epochs.

    python -m big_transfer.train --config configs/pretrain/mixer_i21k.py:B/16,7 \\
        --workdir runs/mixer-b-7 --config.upstream.source=imagenet21k:/path/to/classes \\
        --config.upstream.options.release=winter21

Argument: S/16, B/16 (default), L/16, … (`models/shapes.py`) and after a comma the epochs; `toy` for
a laptop. Data and probes are those of `vit_i21k.py`, beside this file.

The optimiser is that of big_vision's configs/mlp_mixer_i1k.py (the paper's, Tolstikhin et al. 2021,
2105.01601): batches of 4,096, Adam at 1e-3 with decoupled decay λ = 0.1, warm-up over 10,000 steps
(or half of the run), linear to 1e-5 of the peak, mixup at 0.5. Its RandAugment and stochastic
depth, of 300 epochs on ImageNet-1k, aren't here.

Hardware: an accelerator, or several. Expected: there is no published number for this exact recipe;
big_vision's, on ImageNet-1k from scratch, B/16: 76.3 % in 2 h 11 min on TPU v3-128 (that file's
docstring). Nobody has run this one here at full size.
"""
import pathlib

from big_transfer.runs import configuring

TOY = dict(name="mixer", width=64, depth=3, tokens_mlp_dim=32, channels_mlp_dim=128, patch=8)


def get_config(argument="B/16,7"):
  base = pathlib.Path(__file__).with_name("vit_i21k.py")
  config = configuring.load(f"{base}:{argument}").unlock()
  variant = argument.partition(",")[0]
  toy = variant == "toy"
  kept = {key: config.model[key] for key in ("dtype", "scan", "remat", "head_bias")}
  config.model = dict(TOY if toy else dict(name="mixer", variant=variant), **kept)
  config.optim.schedule = dict(name="linear", end=1e-5,
                               warmup_steps=config.optim.schedule.warmup_steps)
  config.augment.mixup = 0.5
  return config
