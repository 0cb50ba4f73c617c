"""Fine-tuning on one task by BiT-HyperRule: nothing to tune (Kolesnikov et al. 2019, 1912.11370).

    python -m big_transfer.train --config configs/transfer/bit.py:pets --workdir runs/pets \\
        --config.init.source=BiT-M-R50x1.npz

Argument: a task, or images of your own, and after a comma the side of the images, as for `vit.py`
beside this file. Without a side it is the rule's: 128 pixels, cropped from 160, where the task's
images have fewer than 96 × 96 pixels, else 480 from 512. What else depends on the task, its number
of training examples alone, says `training/hyperrule.py`: 500, 10,000 or 20,000 steps of 512, a
rate of 0.003 that falls in steps, and mixup at 0.1 from 20,000 examples on. SGD with momentum 0.9,
no decay, a new head of zeros.

At 64 pixels or less: batches of 64 and a rate of 0.2, as in `vit.py`; the rule was made for larger
models and has no say there.

Hardware: as large as the model asks for; `--config.accumulate=8` where a batch of 512 doesn't fit.
Expected: the authors give accuracies for their checkpoints (README of
google-research/big_transfer); none of this config's exist, and nobody has run it at full size.
"""
import pathlib

from big_transfer.data import tasks
from big_transfer.runs import configuring
from big_transfer.training import hyperrule

PARTS = ("fraction", "fraction_seed")  # of the section `upstream`, not of a task


def get_config(argument="cifar10"):
  vit = pathlib.Path(__file__).with_name("vit.py")
  config = configuring.load(f"{vit}:{argument}").unlock()
  task = tasks.resolve({key: value for key, value in config.upstream.to_dict().items()
                        if key not in PARTS})
  train = task.open("train")
  rule = hyperrule.bit_hyperrule(len(train), train[0]["image"].shape[:2])
  small = config.batch_size < rule["batch_size"]
  if "," not in argument:
    config.image_size = rule["crop"]
  config.total_steps = rule["total_steps"]
  config.optim = dict(
      name="sgd", momentum=0.9, lr=config.optim.lr if small else rule["lr"],
      clip=1.0 if small else None, layer_decay=None,
      rules=((".*", dict(wd=0.0)),), schedule=rule["schedule"])
  config.augment = dict(
      crop_padding=0, flip=config.augment.flip, mixup=rule["mixup"], inception_crop=False,
      resize_crop=round(config.image_size * rule["resize"] / rule["crop"]))
  return config
