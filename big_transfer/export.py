"""A run's parameters as a public `.npz`, for other code to load.

    python -m big_transfer.export --workdir runs/first --out first.npz

The file is checked before it gets its name: read back, all outputs of the model on fixed images are
those of the run's. What it holds is in `models/layouts.py`; printed is how timm loads it, where it
can. It may go to any URL that fsspec knows.

Exit codes: 0 done, 1 the parameters could not be exported.
"""
import argparse
from collections.abc import Mapping
import os
import sys
from typing import NamedTuple

from big_transfer import models
from big_transfer.models import layouts
from big_transfer.models import published
from big_transfer.training import origin as origin_lib

# The BiTs that timm has a name for: depths and width.
_TIMM_BIT = {((3, 4, 6, 3), 1): "50x1", ((3, 4, 6, 3), 3): "50x3", ((3, 4, 23, 3), 1): "101x1",
             ((3, 4, 23, 3), 3): "101x3", ((3, 8, 36, 3), 2): "152x2",
             ((3, 8, 36, 3), 4): "152x4"}


class Exported(NamedTuple):
  """What was exported.

  Attributes:
    label: of the model, for people, such as "ViT-Ti/16".
    step: of the checkpoint.
    saved: the file's layout, sha256 and check.
    model: what the file describes, the result of `published.describe`.
  """
  label: str
  step: int
  saved: published.Saved
  model: dict[str, object]


def export(workdir: str | os.PathLike, out: str | os.PathLike, *, layout: str = "auto",
           step: int | None = None) -> Exported:
  """Writes a run's parameters as an `.npz`; the run is only read.

  Args:
    workdir: the run's folder.
    out: the file, a path or a URL; one that is there is replaced.
    layout: a key of `layouts.LAYOUTS`, or "auto": "vit_jax" for a ViT or Mixer, "bit" for a ResNet.
    step: of which checkpoint; None for the newest.

  Raises:
    ValueError: there is no such run or checkpoint, the layout can't hold its model, or the file
      can't be written.

  Example:
    export("runs/first", "first.npz")
  """
  if not str(out).endswith(".npz"):
    raise ValueError(f"--out '{out}': expected a file's name that ends in .npz")
  origin = origin_lib.of_run(workdir, step)
  arguments = dict(origin.config["model"])
  name, variant = arguments.pop("name"), arguments.pop("variant", None)
  model = models.build(name, variant, num_classes=origin.classes, **arguments)
  saved = published.save(out, origin.params, layout, model=model,
                         image_size=origin.config["image_size"])
  return Exported(models.label(name, variant, model), origin.step, saved,
                  published.describe(published.load(out)))


def how_timm_loads(path: str, layout: str, model: Mapping[str, object]) -> str:
  """The call by which timm (1.0) makes a model with a file's parameters, or why it can't.

  Args:
    path: of the file.
    layout: its layout.
    model: the result of `published.describe` for it.
  """
  classes = f"num_classes={model['num_classes']}"
  if model["name"] == "mixer":
    return "timm reads no .npz of a Mixer"
  if model["name"] == "resnet":
    known = _TIMM_BIT.get((model["depths"], model["width"]))
    if known is None or model["root_kernel"] != 7 or layout != "bit":
      return "timm reads BiT's own sizes alone, in the layout \"bit\""
    return f"timm.create_model(\"resnetv2_{known}_bit\", checkpoint_path={path!r}, {classes})"
  if model["representation_size"] is not None:
    return "timm's ViTs have no layer before the head: its logits would be others"
  if model["posemb"] != "learn":
    return "timm's ViTs have no fixed positions: take the layout \"vit_jax\", which writes them out"
  width, ratio = model["width"], model["mlp_dim"] / model["width"]
  choices = [classes, f"img_size={model['image_size']}", f"patch_size={model['patch']}",
             f"embed_dim={width}", f"depth={model['depth']}", f"num_heads={model['heads']}",
             f"mlp_ratio={ratio:g}" if int(width * float(f"{ratio:g}")) == model["mlp_dim"]
             else f"mlp_ratio={model['mlp_dim']}/{width}",
             # Flax's GELU is the tanh approximation, timm's the exact one: logits differ by 1e-3.
             "act_layer=\"gelu_tanh\""]
  if model["pool"] == "gap":
    choices += ["class_token=False", "global_pool=\"avg\"", "fc_norm=False"]
  elif layout == "big_vision":
    choices += ["no_embed_class=True"]
  return (f"timm.create_model(\"vit_base_patch16_224\", checkpoint_path={path!r}, "
          f"{', '.join(choices)})")


def main(argv=None) -> None:
  """The command; see the module."""
  parser = argparse.ArgumentParser(
      prog="python -m big_transfer.export", allow_abbrev=False,
      description="Writes a run's parameters as a public .npz, for other code to load.")
  parser.add_argument("--workdir", required=True, metavar="RUN", help="the run's folder")
  parser.add_argument("--out", required=True, metavar="FILE.npz", help="a path or a URL")
  parser.add_argument("--layout", default="auto", choices=("auto", *layouts.LAYOUTS),
                      help="whose names the arrays have (default: what most others read: vit_jax "
                           "for a ViT or Mixer, bit for a ResNet)")
  parser.add_argument("--step", type=int, help="of which checkpoint (default: the newest)")
  args = parser.parse_args(argv)
  try:
    done = export(args.workdir, args.out, layout=args.layout, step=args.step)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(f"{done.label}, step {done.step}, as {done.saved.layout}: {args.out}\n"
        f"sha256 {done.saved.sha256}\n"
        f"check: read back, all outputs are the run's (largest difference "
        f"{done.saved.difference:.1g} of the largest value)\n"
        f"images: floats in [-1, 1], that is x / 127.5 - 1, trained at "
        f"{done.model['image_size'] or 'any'} pixels\n"
        f"timm: {how_timm_loads(args.out, done.saved.layout, done.model)}")


if __name__ == "__main__":
  main()
