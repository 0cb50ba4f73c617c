"""A run's parameters as a public `.npz`, or as a folder of `transformers`, for others to load.

    python -m big_transfer.export --workdir runs/first --out first.npz
    python -m big_transfer.export --workdir runs/first --out first --layout transformers

A file is checked before it gets its name: read back, all outputs of the model on fixed images are
those of the run's; a folder, by `transformers` itself where that is installed. What they hold is in
`models/layouts.py` and `models/transformers_folder.py`; printed is how others load it. An `.npz`
may go to any URL that fsspec knows.

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
from big_transfer.models import transformers_folder
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
    model: what the parameters describe, the result of `published.describe`.
  """
  label: str
  step: int
  saved: published.Saved
  model: dict[str, object]


def export(workdir: str | os.PathLike, out: str | os.PathLike, *, layout: str = "auto",
           step: int | None = None) -> Exported:
  """Writes a run's parameters for others to load; the run is only read.

  Args:
    workdir: the run's folder.
    out: the `.npz`, a path or a URL, or the folder; one that is there is replaced.
    layout: a key of `layouts.LAYOUTS`; or "auto": "vit_jax" for a ViT or Mixer, "bit" for a ResNet;
      or "transformers", a folder.
    step: of which checkpoint; None for the newest.

  Raises:
    ValueError: there is no such run or checkpoint, the layout can't hold its model, or the file
      can't be written.

  Example:
    export("runs/first", "first.npz")
  """
  is_folder = layout == "transformers"
  if str(out).endswith(".npz") == is_folder:
    raise ValueError(f"--out '{out}': expected "
                     + ("a folder" if is_folder else "a file's name that ends in .npz"))
  origin = origin_lib.of_run(workdir, step)
  arguments = dict(origin.config["model"])
  name, variant = arguments.pop("name"), arguments.pop("variant", None)
  model = models.build(name, variant, num_classes=origin.classes, **arguments)
  about = {"model": model, "image_size": origin.config["image_size"]}
  if is_folder:
    saved, params = transformers_folder.save(out, origin.params, **about), origin.params
  else:
    saved = published.save(out, origin.params, layout, **about)
    params = published.load(out)  # fixed positions, for one, may be learned ones there
  return Exported(models.label(name, variant, model), origin.step, saved,
                  published.describe(params))


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
      description="Writes a run's parameters as a public .npz, or as a folder of transformers.")
  parser.add_argument("--workdir", required=True, metavar="RUN", help="the run's folder")
  parser.add_argument("--out", required=True, metavar="FILE.npz|DIR", help="a path or a URL")
  parser.add_argument("--layout", default="auto",
                      choices=("auto", *layouts.LAYOUTS, "transformers"),
                      help="whose names the arrays have (default: what most others read: vit_jax "
                           "for a ViT or Mixer, bit for a ResNet); transformers is a folder")
  parser.add_argument("--step", type=int, help="of which checkpoint (default: the newest)")
  args = parser.parse_args(argv)
  try:
    done = export(args.workdir, args.out, layout=args.layout, step=args.step)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(f"{done.label}, step {done.step}, as {done.saved.layout}: {args.out}\n"
        f"sha256 {done.saved.sha256}\n"
        f"check: {_checked(done.saved)}\n"
        f"images: floats in [-1, 1], that is x / 127.5 - 1, trained at "
        f"{done.model['image_size'] or 'any'} pixels\n"
        f"{_how_to_load(args.out, done)}")


def _checked(saved):
  if saved.layout != "transformers":
    return (f"read back, all outputs are the run's (largest difference {saved.difference:.1g} of "
            "the largest value)")
  if saved.difference is None:
    return "none: torch and transformers are not installed here"
  return f"transformers computes the run's logits (largest difference {saved.difference:.1g})"


def _how_to_load(path, done):
  if done.saved.layout == "transformers":
    return ("transformers: transformers.AutoModelForImageClassification.from_pretrained("
            f"{path!r})")
  return f"timm: {how_timm_loads(path, done.saved.layout, done.model)}"


if __name__ == "__main__":
  main()
