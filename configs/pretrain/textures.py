"""Upstream data of another kind than fractals: textures, which have statistics instead of shapes.

    python -m big_transfer.train --config configs/pretrain/textures.py:vit --workdir runs/textures

Argument: vit (default), mixer or resnet. All else is as in `fractals.py`, beside this file.
"""
import pathlib

from big_transfer.runs import configuring


def get_config(model="vit"):
  config = configuring.load(f"{pathlib.Path(__file__).with_name('fractals.py')}:{model}").unlock()
  config.upstream.name = config.upstream.source = "textures"
  config.evals.probes.tasks = ("textures_unseen", "digits", "sprites_location")
  return config
