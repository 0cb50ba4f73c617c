"""A ViT whose head is decayed a hundred times as strongly as its body, after Zhai et al. 2021.

    python -m big_transfer.train --config configs/pretrain/vit_head_decay.py:B/16,3.0 \\
        --workdir runs/vit-b-decay-3 --config.upstream.source=imagenet21k:/path/to/classes \\
        --config.upstream.options.release=winter21

Argument: a variant (B/16 by default, `toy` for a laptop) and after a comma λ of the head, 3.0 by
default; the body's is 0.03. A decay like the body's, `B/16,0.03`, is what to compare with:
`configs/sweeps/head_weight_decay.py` does so at toy size. What Abnar et al. 2021 vary in sec. 4.

Optimiser, schedule and losses are those of `vit_g.py`, beside this file: Adafactor at 8e-4, sigmoid
losses, the head's bias at −10, an inverse square root after 10,000 steps of warm-up and 50,000 of
cool-down, as big_vision's configs/proj/scaling_laws/train_vit_g.py has them. (It writes the
products with the rate, 3.0 · lr and 0.03 · lr; what λ is says `training/optim.py`.) That is for
1,000,000 steps of 16,384 images of JFT-3B; here for 200,000 steps of 4,096. Data and probes are
those of `vit_i21k.py`.

Hardware: an accelerator, or several. Expected: there is no published number for this exact recipe,
and nobody has run it here at full size.
"""
import pathlib

from big_transfer.runs import configuring


def get_config(argument="B/16,3.0"):
  variant, _, decay = argument.partition(",")
  try:
    decay = float(decay or 3.0)
  except ValueError:
    raise ValueError(f"{decay!r} after the comma in {argument!r}: expected the decay of the head, "
                     "as in B/16,3.0") from None
  toy = variant == "toy"
  here = pathlib.Path(__file__)
  config = configuring.load(f"{here.with_name('vit_i21k.py')}:{variant},7").unlock()
  zhai = configuring.load(f"{here.with_name('vit_g.py')}:{'toy' if toy else 'G'}").unlock()
  for key in ("optim", "loss"):
    config[key] = zhai[key]
  config.total_steps, config.total_epochs = 200 if toy else 200_000, None
  config.optim.rules = (("head/.*", dict(lr=1.0, wd=decay)), (".*", dict(wd=0.03)))
  return config
