"""A BiT ResNet on ImageNet-21k, as BiT-M is (Kolesnikov et al. 2019, 1912.11370).

    python -m big_transfer.train --config configs/pretrain/bit_i21k.py:R50x1 \\
        --workdir runs/bit-m-r50x1 --config.upstream.source=imagenet21k:/path/to/classes \\
        --config.upstream.options.release=winter21

Argument: R50x1 (default), R101x1, R50x3, R101x3, R152x4, …, or `toy` for a laptop. Data and probes
are those of `vit_i21k.py`, beside this file.

90 epochs, batches of 4,096, SGD with momentum 0.9 at 0.03 · batch / 256 = 0.48, warm-up over 5,000
steps, and a tenth of the rate after each of 30, 60 and 80 epochs; decoupled decay 3e-5 · batch /
256 as a product with the rate, so λ = 0.001, sigmoid losses with the head's bias at −10, inception
crops and flips. All but the staircase is as in big_vision's configs/bit_i21k.py, of the same
authors, which has a cosine in its place (--config.optim.schedule.name=cosine) and decays kernels
alone.

Hardware: an accelerator, or several. Expected: there is no published number for this exact recipe
with few-shot probes, and nobody has run it here at full size.
"""
import pathlib

from big_transfer.runs import configuring

TOY = dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3, root_stride=2,
           root_pool=True)


def get_config(variant="R50x1"):
  toy = variant == "toy"
  base = pathlib.Path(__file__).with_name("vit_i21k.py")
  config = configuring.load(f"{base}:{'toy' if toy else 'B/16'}").unlock()
  kept = {key: config.model[key] for key in ("dtype", "remat", "head_bias")}
  config.model = dict(TOY if toy else dict(name="resnet", variant=variant), **kept)
  config.total_epochs = 7.0 if toy else 90.0
  config.optim = dict(
      name="sgd", momentum=0.9, lr=0.03 / 256 * config.batch_size * (10 if toy else 1), clip=1.0,
      rules=(("head/.*", dict(lr=1.0, wd=1e-3)), (".*", dict(wd=1e-3))),
      schedule=dict(name="staircase", drops=(30 / 90, 60 / 90, 80 / 90),
                    warmup_steps=50 if toy else 5_000))
  return config
