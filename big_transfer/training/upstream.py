"""The data that a config trains on, opened."""
from typing import Any, Callable, NamedTuple

import numpy as np

from big_transfer.data import pipeline
from big_transfer.data import subset
from big_transfer.data import tasks
from big_transfer.training import settings as settings_lib


class Data(NamedTuple):
  """What a config says of its images.

  Attributes:
    name: of the upstream data.
    variant: which form of it, as rows have it.
    train: its training examples, a `pipeline.Prepared`.
    examples: of `train`, the indices of those trained on; None for all.
    test: the held-out examples, a `pipeline.Prepared`.
    prepare: makes of any source the `pipeline.Prepared` examples that the model takes.
  """
  name: str
  variant: str
  train: Any
  examples: np.ndarray | None
  test: Any
  prepare: Callable

  @property
  def train_examples(self):
    """How many examples are trained on."""
    return len(self.train) if self.examples is None else len(self.examples)


def open_data(settings: settings_lib.Settings) -> Data:
  """Opens the upstream data; no image is read.

  Raises:
    ValueError: it isn't there, or not as the config says.
  """
  upstream = tasks.resolve(settings.task)

  def prepare(source):
    return pipeline.prepare(source, settings.image_size, fit=settings.fit)

  train, test = map(prepare, upstream.open_both())
  fraction, fraction_seed = settings.fraction
  # All labels are read for a part; for the whole nothing is, before training asks for it.
  examples = None if fraction == 1 else subset.nested(train.labels, fraction, fraction_seed)
  return Data(upstream.name, upstream.variant, train, examples, test, prepare)
