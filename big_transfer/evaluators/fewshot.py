"""Few-shot linear probes on frozen representations (Abnar et al. 2021, sec. 2; see `ridge`).

For each seed, examples are drawn at random from each class of the train split, nested: the draw
for 5 shots is the start of that for 10. Accuracy is over the whole test split; each seed and
strength gives a row of its own. Only images that some seed draws, and the test split, are ever
read or passed through the model, once for all layers.
"""
import collections
import warnings

import jax
import numpy as np

from big_transfer.data import pipeline
from big_transfer.evaluators import downstream
from big_transfer.evaluators import features as features_lib
from big_transfer.evaluators import ridge


def draw(labels, classes, shots, seed):
  """Draws examples of each class.

  Args:
    labels: classes of all examples, `(n,)` int.
    classes: their number.
    shots: how many to draw of each class; of a smaller class all are taken.
    seed: of the draw.

  Returns:
    A list of `classes` index arrays, each in random order, so that its start is a smaller draw.
  """
  drawn = []
  for label in range(classes):
    rng = np.random.default_rng((seed, label))
    drawn.append(rng.permutation(np.flatnonzero(labels == label))[:shots])
  return drawn


class _Probe:
  """One task made ready: the pool of drawn examples, each seed's draw within it, the test split."""

  def __init__(self, task, prepare, shots, seeds):
    self.task = task
    train, test = task.open_both()
    self.classes = train.num_classes
    labels = np.asarray(train.labels)
    counts = np.bincount(labels, minlength=self.classes)
    self.fewest = int(counts.min())
    self.draws = [draw(labels, self.classes, max(shots), seed) for seed in seeds]
    self.pool = np.unique(np.concatenate([d for draws in self.draws for d in draws]))
    self.place = np.full(len(train), -1)
    self.place[self.pool] = np.arange(len(self.pool))
    self.labels = labels[self.pool]
    self.train, self.test = prepare(train), prepare(test)
    if self.fewest < max(shots):
      warnings.warn(
          f"task {task.name!r}: its smallest class ({int(counts.argmin())}) has {self.fewest} "
          f"examples in train, fewer than {max(shots)} shots; all of them are used", stacklevel=3)

  def indices(self, shots):
    """Places in the pool of each seed's draw, `(seeds, N)`."""
    return np.stack([self.place[np.concatenate([d[:shots] for d in draws])]
                     for draws in self.draws])


class FewShot:
  """Evaluator `fewshot`: accuracy of linear probes on downstream tasks.

  Args:
    context: see `evaluators.Context`.
    tasks: names of tasks and of suites in `data.tasks`, mappings with a task's fields, or one
      suite's name alone.
    shots: examples per class.
    seeds: of the draws.
    l2: ridge strengths; 1024 is that of the paper's protocol.
    layers: whose pooled outputs are probed: "all" (stem, every block, pre_logits), or names and
      indices, see `features.resolve`.
    missing: what to do where a task's data isn't there: "error", at once, or "skip", a row without
      a value for each, of status "skipped" and with the reason.

  Features of all layers are kept on the host while a task is probed: 4 bytes for each example
  drawn or of the test split × layer × width, 0.4 GB for 10,000 at 12 layers of width 768; those
  that are solved at once, at most 1 GB unless one layer takes more, a second time there and on
  the device. Of a population as many members are probed at once as take 4 GB, at least one.

  A probe whose scores are not all finite gives a row without a value, with a reason.

  Attributes:
    probes: the tasks made ready, each with its pool of drawn examples and its test split.
  """

  def __init__(self, context, *, tasks, shots=(1, 5, 10, 25), seeds=(0, 1, 2), l2=(1024.0,),
               layers=("pre_logits",), missing="error"):
    features_lib.check_lists(shots=shots, seeds=seeds, l2=l2, layers=layers)
    if min(shots) < 1 or min(l2) <= 0:
      raise ValueError(f"few-shot shots {tuple(shots)} and strengths {tuple(l2)} must be positive")
    self._context = context
    self._shots, self._seeds = sorted(set(shots)), tuple(seeds)
    self._l2, self._layers = tuple(l2), features_lib.resolve(layers, context.layers)
    opened = downstream.opened(
        tasks, lambda task: _Probe(task, context.prepare, self._shots, self._seeds), missing)
    self.probes = [probe for _, probe, reason in opened if reason is None]
    self._skipped = [downstream.skipped("fewshot", task, reason)
                     for task, _, reason in opened if reason is not None]

  def rows(self, params):
    for probe in self.probes:
      train = self.features(params, probe.train, probe.pool)
      test = self.features(params, probe.test, np.arange(len(probe.test)))
      correct = self.solve(probe, train, test)
      for layer in self._layers:
        yield from self._rows(probe, layer, layer, correct)
    yield from map(dict, self._skipped)

  def rows_members(self, params_M):
    rows = [[] for _ in range(len(jax.tree.leaves(params_M)[0]))]
    for probe in self.probes:
      width = sum(features_lib.widths(
          self._context, self._layers, params_M, probe.test.image_size).values())
      bytes_each = 4 * width * (len(probe.pool) + len(probe.test))
      for start, part_M in features_lib.parts_of_members(
          params_M, bytes_each, features_lib.HELD):
        train, test = ({
            (start + i, layer): x_nD for layer, x_MnD in
            self.features(part_M, examples, indices, members=True).items()
            for i, x_nD in enumerate(x_MnD)}
                       for examples, indices in ((probe.train, probe.pool),
                                                 (probe.test, np.arange(len(probe.test)))))
        correct = self.solve(probe, train, test)
        for i, layer in train:
          rows[i] += self._rows(probe, layer, (i, layer), correct)
    return [own + [dict(row) for row in self._skipped] for own in rows]

  def features(self, params, examples, indices, members=False):
    """`features.compute` of the layers that are probed."""
    return features_lib.compute(self._context, self._layers, params, examples, indices, members)

  def solve(self, probe, train, test):
    """Fits and tests all probes of one of `probes`, many layers at once.

    Args:
      probe: which.
      train: `{layer: (n, D)}`, features of its pool; or of any other keys, such as
        (member, layer).
      test: the same of its test split.

    Returns:
      `{(layer, shots): right predictions (seeds, strengths)}`.
    """
    correct = {}
    labels = np.asarray(probe.test.labels)
    widest = max(x_PD.shape[1] for x_PD in train.values())
    padded = widest if ridge.is_small(len(probe.test), widest, probe.classes) else None
    for layers in _batches(train, len(probe.pool) + len(probe.test), padded):
      train_KPD, test_KMD = (jax.device_put(_stacked([of[layer] for layer in layers], padded))
                             for of in (train, test))  # once for all shots
      for shots in self._shots:
        self._context.check()
        index_SN = probe.indices(shots)
        counts_KSL = np.asarray(ridge.correct(
            train_KPD, probe.labels, index_SN, test_KMD, labels, self._l2, classes=probe.classes))
        correct |= {(layer, shots): counts_SL for layer, counts_SL in zip(layers, counts_KSL)}
    return correct

  def _rows(self, probe, layer, key, correct):
    for shots in self._shots:
      short = probe.fewest < shots
      for seed, draws, correct_L in zip(self._seeds, probe.indices(shots), correct[key, shots]):
        for l2, right in zip(self._l2, correct_L):
          told = {"value": int(right) / len(probe.test), "status": "ok",
                  "reason": f"smallest class has {probe.fewest} examples" if short else None}
          if right < 0:
            told = {"value": None, "status": "non-finite",
                    "reason": "the probe's scores are infinite or NaN"}
          yield {"evaluator": "fewshot", "task": probe.task.name, "variant": probe.task.variant,
                 "setting": "fewshot", "split": "test", "shots": shots,
                 "examples_used": len(draws), "seed": seed, "layer": layer,
                 "l2": float(l2), "metric": probe.task.metric, **told}


def _batches(features, examples, padded):
  """Yields lists of layers of one width, to be solved at once; see `FewShot` for their size.

  Args:
    features: `{layer: (n, D)}`.
    examples: how many there are, of all splits.
    padded: the width that all layers get, None where each keeps its own.
  """
  by_width = collections.defaultdict(list)
  for layer, x_nD in features.items():
    by_width[padded or x_nD.shape[1]].append(layer)
  for width, layers in by_width.items():
    size = max(1, _AT_ONCE // (4 * width * examples))
    for start in range(0, len(layers), size):
      yield layers[start:start + size]


def _stacked(features, padded):
  """Features (n, D) of several layers as one array (K, n, D).

  Zeros that fill up a width are features that are the same in all shots, so they take no weight:
  a ResNet, whose widths differ, then needs one compiled solve instead of four.
  """
  if padded is not None:
    features = [np.pad(x_nD, ((0, 0), (0, padded - x_nD.shape[1]))) for x_nD in features]
  return np.stack(features)


_AT_ONCE = 10**9  # bytes of features that are solved at once
