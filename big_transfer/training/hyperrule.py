"""BiT-HyperRule: what to fine-tune with, from the size of a task alone (1912.11370, section 3.3).

Kolesnikov et al. 2019 transfer every model to every task without tuning, by the number of training
examples and the size of the images. The values are those of the code published with it
(bit_hyperrule.py of google-research/vision_transformer). There the rate of small tasks drops at 40,
60 and 80 % of the steps; the paper's words are 30, 60 and 90 % for all.

A test image is brought to the size of the crop whole, `fit="squash"`.
"""

SMALL, LARGE = 20_000, 500_000  # examples at which a task is of middle size, and large
SMALL_AREA = 96 * 96  # pixels, from which an image is large
BATCH, RATE = 512, 0.003  # the rate is for this batch, and as large a share of it as the batch is


def bit_hyperrule(examples: int, image_pixels: tuple[int, int], batch_size: int = BATCH) -> dict:
  """The settings of a fine-tuning run.

  Args:
    examples: for training.
    image_pixels: (height, width) of the task's images, as they are stored.
    batch_size: examples a step; the rate is in proportion.

  Returns:
    `total_steps`; `schedule`, the section `optim.schedule`; `lr`, the peak rate of SGD with momentum
    0.9, without decay; `batch_size`; `mixup`, α or None; `resize`, to which an image is brought
    before a random part of `crop` pixels is taken (`augment.resize_crop` and `image_size`).

  Raises:
    ValueError: no examples, or a size that is none.

  Example:
    >>> bit_hyperrule(50_000, (32, 32))["total_steps"]
    10000
  """
  if examples < 1 or batch_size < 1 or min(image_pixels) < 1:
    raise ValueError(f"BiT-HyperRule of {examples} examples of {image_pixels} pixels in batches of "
                     f"{batch_size}: expected at least one of each")
  if examples < SMALL:
    steps, warmup, drops = 500, 100, (0.4, 0.6, 0.8)
  else:
    steps, warmup, drops = 10_000 if examples < LARGE else 20_000, 500, (0.3, 0.6, 0.9)
  small = image_pixels[0] * image_pixels[1] < SMALL_AREA
  resize, crop = (160, 128) if small else (512, 480)
  return {"total_steps": steps, "lr": RATE * batch_size / BATCH, "batch_size": batch_size,
          "schedule": {"name": "staircase", "warmup_steps": warmup, "drops": drops},
          "mixup": None if examples < SMALL else 0.1, "resize": resize, "crop": crop}
