"""Linear probes on all training examples of a task: ridge regression in closed form, in one pass.

The same classifier as the few-shot probe's (see `ridge`): features are whitened one by one with
their mean and standard deviation (+ 1e-5) over the training examples, targets are +1 and −1, the
bias is not regularised, and `W = (XᵀX + l2 I)⁻¹ XᵀY`. But it is fitted to every training example,
and its strength is chosen, since no fixed one suits 1,000 examples and a million: with whitened
features XᵀX grows as N, so the strengths tried are `l2 = N · s` for each s of `strengths`, and the
one with the highest accuracy on held-out training examples is taken (the strongest among equals).
Then the probe is fitted anew to all training examples, at N · s of these, and measured on the
whole test split.

Held out is the task's own validation split where it has one, apart from train or the end of it (as
in VTAB-1k), else a tenth of each class drawn with `seed`; of either at most 10,000 examples. A
validation split that is apart from train is never fitted to.

Features are never all held. Of each batch the device adds to three sums, XᵀX, XᵀY and Σx, in
float32 and from an origin amid the features, lest their means drown what they vary by; every few
thousand examples the host takes them over in float64. What is held are the features held out. An
eigendecomposition of XᵀX in float64 serves all strengths; a second is that of all examples.

Shapes: B examples of a batch, N training examples, H held-out ones, D features, C classes.
"""
import dataclasses
import functools
import re
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from big_transfer.data import pipeline
from big_transfer.evaluators import downstream
from big_transfer.evaluators import features as features_lib

STRENGTHS = tuple(10.0**k for k in range(-6, 2))  # shares of the number of examples


@dataclasses.dataclass(frozen=True)
class Sums:
  """What a ridge regression needs of its examples, in float64, features counted from an origin.

  Attributes:
    gram: Σ xxᵀ, `(D, D)`.
    by_class: Σ x of each class, `(C, D)`.
    counts: examples of each class, `(C,)`.
  """
  gram: np.ndarray
  by_class: np.ndarray
  counts: np.ndarray

  @classmethod
  def of(cls, x_ND, y_N, classes):
    """The sums over features and classes that are here."""
    x_ND = x_ND.astype(np.float64)
    by_class = np.zeros((classes, x_ND.shape[1]))
    np.add.at(by_class, y_N, x_ND)
    return cls(x_ND.T @ x_ND, by_class, np.bincount(y_N, minlength=classes))

  def __add__(self, other):
    return Sums(self.gram + other.gram, self.by_class + other.by_class, self.counts + other.counts)


class Ridge:
  """The ridge regression of a set of examples, at any strength.

  Args:
    sums: over its examples.
  """

  def __init__(self, sums):
    n = sums.counts.sum()
    self._mean_D = sums.by_class.sum(axis=0) / n
    covariance = sums.gram / n - np.outer(self._mean_D, self._mean_D)
    # Rounding can leave the variance of a constant feature a little below zero.
    self._scale_D = np.sqrt(np.maximum(np.diag(covariance), 0)) + 1e-5
    self._gram = n * covariance / np.outer(self._scale_D, self._scale_D)
    centred_CD = sums.by_class - sums.counts[:, None] * self._mean_D
    self._target_DC = 2 * centred_CD.T / self._scale_D[:, None]  # Xᵀ(Y − its mean), Y = ±1
    self._bias_C = 2 * sums.counts / n - 1

  @functools.cached_property
  def _rotated(self):
    """Eigenvalues and vectors of XᵀX, and XᵀY along them; one decomposition serves all strengths.

    Rounding leaves some values below zero: as they are, they would cancel a small l2.
    """
    values_D, vectors_DD = scipy.linalg.eigh(self._gram)
    return np.maximum(values_D, 0), vectors_DD, vectors_DD.T @ self._target_DC

  def solve(self, l2):
    """Returns weights `(D, C)` and biases `(C,)`, whitening included: scores are `x @ W + b`."""
    values_D, vectors_DD, target_DC = self._rotated
    weights = vectors_DD @ (target_DC / (values_D + l2)[:, None]) / self._scale_D[:, None]
    return weights, self._bias_C - self._mean_D @ weights

  def right(self, x_HD, y_H, l2s):
    """Right predictions on H examples at each strength."""
    values_D, vectors_DD, target_DC = self._rotated
    right = np.zeros(len(l2s), int)
    block = max(1, _SCORES // len(self._bias_C))
    for start in range(0, len(y_H), block):
      here = slice(start, start + block)
      rotated_HD = ((x_HD[here] - self._mean_D) / self._scale_D) @ vectors_DD
      for i, l2 in enumerate(l2s):
        scores_HC = rotated_HD @ (target_DC / (values_D + l2)[:, None]) + self._bias_C
        right[i] += (scores_HC.argmax(axis=1) == y_H[here]).sum()
    return right


def hold_out(labels, classes, seed):
  """Draws the training examples by which a strength is chosen: a tenth of each class.

  Args:
    labels: `(n,)` int, at least two.
    classes: their number.
    seed: of the draw.

  Returns:
    Sorted indices, `(H,)`: at least one, at most 10,000, and not all of any class unless every
    class has but one example.
  """
  wanted = max(1, min(int(_SHARE * len(labels)), _MOST))
  return _stratified(labels, classes, wanted, seed)


def _stratified(labels, classes, wanted, seed):
  """Indices of so many examples, of each class its share; classes to round up are random."""
  rng = np.random.default_rng(seed)
  counts = np.bincount(labels, minlength=classes)
  exact = wanted * counts / len(labels)
  take = np.floor(exact).astype(int)
  by_remainder = np.lexsort((rng.random(classes), -(exact - take)))
  take[by_remainder[:wanted - take.sum()]] += 1
  take = np.minimum(take, np.maximum(counts - 1, 0))
  if not take.any():
    return rng.permutation(len(labels))[:1]
  return np.sort(np.concatenate([
      rng.permutation(np.flatnonzero(labels == label))[:n] for label, n in enumerate(take)]))


class _Passes(NamedTuple):
  """What is computed of each batch, jitted.

  Attributes:
    add: `add(params, batch, origins) -> {layer: [gram, by_class]}`, sums over a batch.
    plus: `plus(a, b)`, two of these together.
    count: `count(params, batch, origins, weights) -> {layer: (right predictions, all finite)}`.
    both: `both(a, b)`, two of those together.
  """
  add: Callable
  plus: Callable
  count: Callable
  both: Callable


@functools.lru_cache(maxsize=16)  # one compiled function serves all runs of one model
def _passes(apply, layers, classes, stacked):
  """Returns the `_Passes` of a model; of stacked parameters, origins and weights if `stacked`."""
  extract = features_lib.extraction(apply, layers)

  def shifted(params, batch, origins):
    out = extract(params, batch["image"])
    return {layer: out[layer] - origins[layer][None] for layer in layers}

  def add(params, batch, origins):
    real_B1 = batch["mask"][:, None] > 0
    y_BC = jnp.where(real_B1, jax.nn.one_hot(batch["label"], classes), 0)
    found = {}
    for layer, x_BD in shifted(params, batch, origins).items():
      x_BD = jnp.where(real_B1, x_BD, 0)  # what fills a batch may be NaN, so no product
      with jax.default_matmul_precision("highest"):
        found[layer] = [x_BD.T @ x_BD, y_BC.T @ x_BD]
    return found

  def count(params, batch, origins, weights):
    real_B = batch["mask"] > 0
    found = {}
    for layer, x_BD in shifted(params, batch, origins).items():
      weights_DC, bias_C = weights[layer]
      with jax.default_matmul_precision("highest"):
        scores_BC = x_BD @ weights_DC + bias_C[None]
      right_B = (scores_BC.argmax(axis=-1) == batch["label"]) & real_B
      finite_B = jnp.isfinite(scores_BC).all(axis=-1) | ~real_B
      found[layer] = right_B.sum(), finite_B.all()
    return found

  def both(a, b):
    return {layer: (a[layer][0] + b[layer][0], a[layer][1] & b[layer][1]) for layer in layers}

  if stacked:
    add = jax.vmap(add, in_axes=(0, None, 0))
    count = jax.vmap(count, in_axes=(0, None, 0, 0))
  return _Passes(*map(jax.jit, (add, lambda a, b: jax.tree.map(jnp.add, a, b), count, both)))


class _Probe:
  """One task made ready.

  Attributes:
    task: what it is.
    classes: their number.
    train, test: `pipeline.Prepared`.
    fitted: examples of `train` that the strength is chosen for, indices.
    choosing: the `Prepared` of the examples it is chosen by.
    held: which of these they are, indices.
    apart: whether they are no training examples.
  """

  def __init__(self, task, prepare, seed):
    self.task = task
    train, test = task.open_both()
    labels = np.asarray(train.labels)
    if len(labels) < 2:
      raise ValueError(f"task {task.name!r} has one training example: a linear probe needs one to "
                       "fit and another to choose its strength by")
    self.classes = train.num_classes
    self.train, self.test = prepare(train), prepare(test)
    self.choosing, self.fitted = self.train, np.arange(len(labels))
    self.apart = task.validation is not None and not _named(task.train) & _named(task.validation)
    if self.apart:
      self.choosing = prepare(task.open("validation"))
      self.held = np.arange(len(self.choosing))
      if len(self.held) > _MOST:
        self.held = _stratified(np.asarray(self.choosing.labels), self.classes, _MOST, seed)
    else:
      if task.validation and task.train.endswith(f"+{task.validation}"):
        self.held = self.fitted[-len(task.open("validation")):]
      else:
        self.held = hold_out(labels, self.classes, seed)
      self.fitted = np.setdiff1d(self.fitted, self.held)

  @property
  def held_labels(self):
    return np.asarray(self.choosing.labels)[self.held]


def _named(split):
  """The splits that a TFDS expression is made of: {"train", "test"} of "train[:80%]+test"."""
  return {re.split(r"\W", part.strip())[0] for part in split.split("+")}


class Linear:
  """Evaluator `linear`: accuracy of a linear probe on all training examples of downstream tasks.

  Args:
    context: see `evaluators.Context`.
    tasks: as few-shot's.
    layers: as few-shot's.
    strengths: those tried, as shares of the number of examples.
    seed: of the held-out draw, where there is one.
    missing: as few-shot's.

  A row's `l2` is the strength chosen, times the number of training examples, which is its
  `examples_used`; its `reason` says where it is the weakest or the strongest of those tried. A
  probe whose scores are not all finite has no value, and says so.

  Costs, beside a forward pass of each training and test image and 4 H D bytes of held-out
  features: for each layer some 40 D² bytes on the host, two eigendecompositions, some 20 D³
  operations, and scores of 2 H D C at each strength. On the device, 8 D² bytes a layer. Of a
  population as many members are probed at once as take 4 GB on the host, at least one.

  Attributes:
    probes: the tasks made ready.
  """

  def __init__(self, context, *, tasks, layers=("pre_logits",), strengths=STRENGTHS, seed=0,
               missing="error"):
    features_lib.check_lists(layers=layers, strengths=strengths)
    if not 0 < min(strengths) <= max(strengths) < np.inf:
      raise ValueError(f"linear strengths {tuple(strengths)} must be positive and finite")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
      raise ValueError(f"linear seed is {seed!r}: expected a whole number, at least 0")
    self._context, self._seed = context, seed
    self._layers = features_lib.resolve(layers, context.layers)
    self._strengths = sorted(set(strengths), reverse=True)  # of equals the strongest comes first
    opened = downstream.opened(tasks, lambda task: _Probe(task, context.prepare, seed), missing)
    self.probes = [probe for _, probe, reason in opened if reason is None]
    self._skipped = [downstream.skipped("linear", task, reason)
                     for task, _, reason in opened if reason is not None]

  def rows(self, params):
    for probe in self.probes:
      [found] = self._probed(probe, params, stacked=False)
      for layer, told in found.items():
        yield self._row(probe, layer, *told)
    yield from map(dict, self._skipped)

  def rows_members(self, params_M):
    rows = [[] for _ in range(len(jax.tree.leaves(params_M)[0]))]
    for probe in self.probes:
      widths = features_lib.widths(
          self._context, self._layers, params_M, probe.test.image_size).values()
      bytes_each = sum(40 * width**2 + 4 * width * len(probe.held) for width in widths)
      for start, part_M in features_lib.parts_of_members(params_M, bytes_each, features_lib.HELD):
        for i, found in enumerate(self._probed(probe, part_M, stacked=True), start):
          rows[i] += [self._row(probe, layer, *told) for layer, told in found.items()]
    return [own + [dict(row) for row in self._skipped] for own in rows]

  def _probed(self, probe, params, stacked):
    """`{layer: (strength, right predictions, all finite)}` of each member, a list; else of one.

    On the host everything has a first dimension of members, M, be it of one alone.
    """
    held = _first(features_lib.compute(
        self._context, self._layers, params, probe.choosing, probe.held, stacked), stacked)
    # From an origin amid the features they keep the digits by which they differ.
    origins = {layer: x_MHD.mean(axis=1, dtype=np.float64).astype(np.float32)
               for layer, x_MHD in held.items()}
    passes = _passes(self._context.apply, tuple(self._layers), probe.classes, stacked)
    fitted = self._sums(probe, params, passes, origins, stacked)
    counts = np.bincount(probe.train.labels[probe.fitted], minlength=probe.classes)
    strengths, weights = {}, {}
    for layer in self._layers:
      solved = []
      for gram, by_class, x_HD, origin in zip(*fitted[layer], held[layer], origins[layer]):
        self._context.check()
        solved.append(self._solved(probe, Sums(gram, by_class, counts), x_HD - origin))
      strengths[layer] = [strength for strength, _, _ in solved]
      weights[layer] = tuple(np.stack([w[part] for w in solved]).astype(np.float32)
                             for part in (1, 2))
    counted = self._counted(probe, params, passes, origins, weights, stacked)
    return [{layer: (strengths[layer][i], int(counted[layer][0][i]), bool(counted[layer][1][i]))
             for layer in self._layers} for i in range(len(held[self._layers[0]]))]

  def _sums(self, probe, params, passes, origins, stacked):
    """`{layer: [gram, by_class]}` of the examples fitted to, float64, (M, …) each."""
    origins = _on_devices(params, _unless(stacked, origins))
    total, part, since = None, None, 0
    for batch in self._batches(probe.train, probe.fitted):
      more = passes.add(params, batch, origins)
      part = more if part is None else passes.plus(part, more)
      since += self._context.batch_size
      if since >= _ON_DEVICE:
        total, part, since = self._moved(total, part), None, 0
    if part is not None:
      total = self._moved(total, part)
    return _first(total, stacked)

  def _moved(self, total, part):
    part = jax.tree.map(lambda x: np.asarray(x, np.float64), self._context.fetch(part))
    return part if total is None else jax.tree.map(np.add, total, part)

  def _solved(self, probe, fitted, x_HD):
    """The strength chosen, as a share, and weights and biases fitted to all examples."""
    whole = fitted if probe.apart else fitted + Sums.of(x_HD, probe.held_labels, probe.classes)
    if not np.isfinite(whole.gram).all():
      return None, np.full(fitted.by_class.T.shape, np.nan), np.full(probe.classes, np.nan)
    n = fitted.counts.sum()
    right = Ridge(fitted).right(
        x_HD, probe.held_labels, [n * strength for strength in self._strengths])
    best = self._strengths[int(np.argmax(right))]
    return best, *Ridge(whole).solve(best * whole.counts.sum())

  def _counted(self, probe, params, passes, origins, weights, stacked):
    """`{layer: (right predictions (M,), all scores finite (M,))}` on the test split."""
    lent = _on_devices(params, _unless(stacked, (origins, weights)))
    total = None
    for batch in self._batches(probe.test, np.arange(len(probe.test))):
      more = passes.count(params, batch, *lent)
      total = more if total is None else passes.both(total, more)
    return _first(self._context.fetch(total), stacked)

  def _batches(self, examples, indices):
    """Batches on the devices, few of which are ahead of what is computed of them."""
    waiting = []
    for batch in pipeline.batches(examples, indices, self._context.batch_size,
                                  self._context.process):
      self._context.check()
      waiting.append(self._context.put(batch))
      if len(waiting) > features_lib.IN_FLIGHT:
        jax.block_until_ready(waiting.pop(0)["image"])
      yield waiting[-1]

  def _row(self, probe, layer, strength, right, finite):
    examples = len(probe.train)
    told = {"value": right / len(probe.test), "status": "ok", "reason": None,
            "l2": strength and strength * examples}
    if not finite:
      told |= {"value": None, "status": "non-finite",
               "reason": "the probe's scores are infinite or NaN"}
    elif strength in (self._strengths[0], self._strengths[-1]) and len(self._strengths) > 1:
      told["reason"] = ("the strongest" if strength == self._strengths[0] else "the weakest") + (
          " of the strengths tried was best")
    return {"evaluator": "linear", "task": probe.task.name, "variant": probe.task.variant,
            "setting": "linear", "split": "test", "examples_used": examples, "seed": self._seed,
            "layer": layer, "metric": probe.task.metric, **told}


def _first(tree, stacked):
  """A tree of NumPy arrays with a first dimension of members, made where there is none."""
  return tree if stacked else jax.tree.map(lambda x: np.asarray(x)[None], tree)


def _unless(stacked, tree):
  """The inverse of `_first`."""
  return tree if stacked else jax.tree.map(lambda x: x[0], tree)


def _on_devices(params, tree):
  """Arrays that every process has, whole on every device that the parameters are on."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.device_put(tree, jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec()))
  return jax.device_put(tree)


_SHARE, _MOST = 0.1, 10_000  # of the training examples that are held out
_ON_DEVICE = 4096  # examples whose sums are kept in float32 before the host takes them over
_SCORES = 2 * 10**7  # scores of held-out examples at a time
