"""Few-shot linear probes on frozen representations (Abnar et al. 2021, sec. 2; see `ridge`).

For each seed, examples are drawn at random from each class of the train split, nested: the draw
for 5 shots is the start of that for 10. Accuracy is over the whole test split; each seed and
strength gives a row of its own. Only images that some seed draws, and the test split, are ever
read or passed through the model.
"""
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from big_transfer.data import pipeline
from big_transfer.data import tasks as tasks_lib
from big_transfer.data import transforms
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


@functools.lru_cache(maxsize=16)  # one compiled function serves all tasks and runs of one model
def _extract(apply, layers):
  """Returns `extract(params, images_u8) -> {layer: (B, D) float32}`, jitted."""

  def extract(params, images):
    _, out = apply({"params": params}, transforms.to_float(images), train=False)
    if unknown := set(layers) - set(out):
      raise ValueError(f"layers {sorted(unknown)} are not of this model: expected some of "
                       f"{list(out)}")
    return {layer: out[layer] for layer in layers}

  return jax.jit(extract)


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
    tasks: names in `data.tasks.TASKS`, or mappings with a task's fields.
    shots: examples per class.
    seeds: of the draws.
    l2: ridge strengths; 1024 is that of the paper's protocol.
    layers: names in the model's `out`.
  """

  def __init__(self, context, *, tasks, shots=(1, 5, 10, 25), seeds=(0, 1, 2), l2=(1024.0,),
               layers=("pre_logits",)):
    for name, values in {"tasks": tasks, "shots": shots, "seeds": seeds, "l2": l2,
                         "layers": layers}.items():
      if isinstance(values, (str, int, float)) or not len(values):
        raise ValueError(f"few-shot {name} is {values!r}: expected a list of at least one")
    if min(shots) < 1 or min(l2) <= 0:
      raise ValueError(f"few-shot shots {tuple(shots)} and strengths {tuple(l2)} must be positive")
    self._context = context
    self._shots, self._seeds = sorted(set(shots)), tuple(seeds)
    self._l2, self._layers = tuple(l2), tuple(layers)
    self._probes = [_Probe(tasks_lib.resolve(task), context.prepare, self._shots, self._seeds)
                    for task in tasks]

  def rows(self, params):
    for probe in self._probes:
      train = self._features(params, probe.train, probe.pool)
      test = self._features(params, probe.test, np.arange(len(probe.test)))
      for layer in self._layers:
        yield from self._solve(probe, layer, train[layer], test[layer])

  def _features(self, params, examples, indices):
    extract = _extract(self._context.apply, self._layers)
    parts = []
    for batch in pipeline.batches(examples, indices, self._context.batch_size):
      self._context.check()
      parts.append((extract(params, self._context.put({"image": batch["image"]})["image"]),
                    int(batch["mask"].sum())))
    return {layer: np.concatenate([np.asarray(part[layer])[:n] for part, n in parts])
            for layer in self._layers}

  def _solve(self, probe, layer, train_PD, test_MD):
    for shots in self._shots:
      self._context.check()
      index_SN = probe.indices(shots)
      correct_SL = np.asarray(ridge.correct(
          train_PD[index_SN], probe.labels[index_SN], test_MD, np.asarray(probe.test.labels),
          jnp.asarray(self._l2, jnp.float32), classes=probe.classes))
      short = probe.fewest < shots
      for seed, correct_L in zip(self._seeds, correct_SL):
        for l2, correct in zip(self._l2, correct_L):
          yield {"evaluator": "fewshot", "task": probe.task.name, "variant": probe.task.variant,
                 "setting": "fewshot", "split": "test", "shots": shots,
                 "examples_used": index_SN.shape[1], "seed": seed, "layer": layer,
                 "l2": float(l2), "metric": probe.task.metric,
                 "value": int(correct) / len(test_MD), "status": "ok",
                 "reason": f"smallest class has {probe.fewest} examples" if short else None}
