"""Scikit-learn's handwritten digits: 1,797 real images, 8x8, that come with the library.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), test part.
"""
import functools

import numpy as np

from big_transfer.data.examples import ArraySource, did_you_mean, three_channels


def digits(split: str, *, test_fraction: float = 1 / 3, seed: int = 0) -> ArraySource:
  """One side of a deterministic, stratified split of the digits.

  Args:
    split: "train", "test" or "all".
    test_fraction: share of each class in "test".
    seed: which split.

  Raises:
    ValueError: unknown split, or a fraction outside (0, 1).
  """
  if split not in ("train", "test", "all"):
    raise ValueError(f"digits: no split {split!r}: "
                     f"{did_you_mean(split, ['train', 'test', 'all'])}")
  if not 0 < test_fraction < 1:
    raise ValueError(f"digits: test_fraction is {test_fraction}; expected between 0 and 1.")
  images, labels = _load()
  chosen = np.arange(len(labels))
  if split != "all":
    from sklearn import model_selection
    train, test = model_selection.train_test_split(
        chosen, test_size=test_fraction, stratify=labels, random_state=seed)
    chosen = np.sort(train if split == "train" else test)
  spec = {"name": "digits", "version": 1, "split": split, "test_fraction": test_fraction,
          "seed": seed}
  return ArraySource(spec, labels[chosen], 10, lambda: images[chosen],
                     tuple(str(k) for k in range(10)))


@functools.lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
  from sklearn import datasets
  data = datasets.load_digits()
  # Ink is 0 to 16 in the original.
  images = np.round(data.images * (255 / 16)).astype(np.uint8)
  return three_channels(images), data.target
