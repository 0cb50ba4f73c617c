"""Fine-tuning on one task, as ViT, Mixer and their kin are: SGD with momentum, cosine, no decay.

    python -m big_transfer.train --config configs/transfer/vit.py:pets --workdir runs/pets \\
        --config.init.source=ViT-B_16.npz

`init.source` is a run's folder or a published .npz, and the model is what it holds. Argument: what
to fine-tune on, and after a comma the side of the images, 384 by default: `cifar10`,
`cifar100:vtab1k`, `pets,224`, or images of your own, which take nothing else:

    … --config configs/transfer/vit.py:folder:/path/to/images,224 --config.init.source=…

likewise npz:/path/file.npz and tfds:NAME.

The recipe of Dosovitskiy et al. 2020 (2010.11929, app. B.1.1) as its authors' code has it (vit_jax,
configs/common.py; big_vision, configs/transfer.py): batches of 512, momentum 0.9, gradients
clipped at norm 1, no weight decay, a new head of zeros, linear warm-up, cosine to 0. Steps by the
number of training examples: 500 below 20,000 (those two: pets and flowers 500), 10,000 below
500,000 (CIFAR 10,000) and 20,000 beyond (ImageNet 20,000). Rates worth trying, on held-out training
examples: 0.001, 0.003, 0.01, 0.03; up to 0.06 for ImageNet. vit_jax begins at 0.03, big_vision at
0.01, which is the default here.

At 64 pixels or less, as of sources that were trained on a laptop: batches of 64, a rate of 0.2 and
no inception crops. These were chosen on the test accuracy of two toy models of CIFAR-10, on digits
and Omniglot.

Hardware: as published for vit_jax at 384 pixels on eight V100, ViT-B/16 pre-trained on ImageNet-21k
took 7.2 to 7.7 hours on CIFAR-10 and reached 0.9892 and 0.9903 in two runs, on CIFAR-100 0.9226 and
0.9264 (its README, November 2020). big_vision gives for the AugReg B/32, as the mean of five runs,
98.55 on CIFAR-10 (rate 0.003), 91.35 on CIFAR-100 (0.01), 93.78 on pets (0.003) and 99.43 on
flowers (0.003); at 448 pixels cropped to 384. Nobody has run this config at that size: no number of
ours exists.
"""
import pathlib

from ml_collections import ConfigDict

from big_transfer.data import catalog
from big_transfer.data import tasks

LAPTOP = 64  # side of the images, in pixels, up to which the recipe is scaled down
# Where an image and its mirror image are of different classes.
ORIENTED = ("digits", "svhn", "omniglot_small", "sprites", "dsprites", "smallnorb", "mnist")


def get_config(argument="cifar10"):
  name, side = _read(argument)
  upstream, task = _task(name)
  small = side <= LAPTOP
  steps = steps_of(_examples(task))
  config = ConfigDict()
  config.seed = 0
  config.image_size = side
  config.batch_size = 64 if small else 512
  config.accumulate = 1
  config.eval_batch_size = 64 if small else 512
  config.total_steps = steps
  config.total_epochs = None  # the length, where total_steps is None
  config.upstream = dict(upstream, fraction=1.0, fraction_seed=0)
  config.fit = "squash"
  config.init = dict(source="", step=None, what="params", head="zero", resample="bilinear")
  config.model = None  # that of the source
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = None
  config.loss = "softmax_xent"
  config.label_smoothing = 0.0
  config.optim = dict(
      name="sgd", momentum=0.9, lr=0.2 if small else 0.01, clip=1.0, layer_decay=None,
      rules=((".*", dict(wd=0.0)),),
      schedule=dict(name="cosine", warmup_steps=min(500, steps // 5)))
  config.augment = dict(
      crop_padding=2 if small else 0, flip=not task.name.startswith(ORIENTED), mixup=None,
      inception_crop=not small)
  config.evals = dict(upstream=dict(kind="classification", every=max(1, steps // 2)))
  config.log_every = 50
  config.checkpoint = dict(every=1000, keep=2)
  config.sinks = None  # or "tensorboard", "wandb"
  config.profile = None
  return config


def steps_of(examples):
  """Steps of 512 by the number of training examples, as BiT-HyperRule has them too."""
  return 500 if examples < 20_000 else 10_000 if examples < 500_000 else 20_000


def _read(argument):
  """The task and the side of the images of "TASK" or "TASK,SIDE"."""
  name, comma, side = argument.rpartition(",")
  if not comma:
    return argument, 384
  if not side.isdigit() or not 8 <= int(side) <= 4096:
    raise ValueError(f"{side!r} after the comma in {argument!r}: expected the side of the images "
                     "in pixels, from 8 to 4096, as in pets,224")
  return name, int(side)


def _task(name):
  """The section `upstream` and the task it stands for."""
  if name.partition(":")[0] in ("folder", "npz", "tars", "tfds"):
    upstream = dict(name=pathlib.PurePath(name.split(":")[1]).stem, source=name)
  else:
    name, _, variant = name.partition(":")
    upstream = dict(name=name, **(dict(variant=variant) if variant else {}))
    if upstream == dict(name="imagenet"):
      upstream["train"] = "train"  # all of it: the few-shot probes draw from a twentieth
  return upstream, tasks.resolve(upstream)


def _examples(task):
  known = catalog.examples(task, "train")
  return len(task.open("train")) if known is None else known
