"""How far upstream examples lie from the decision boundary, layer by layer, and how large the
weights are: what Abnar et al. 2021 (2110.02095, ICLR appendix C and D) read the effect of the
head's weight decay and learning rate from.

The margin of an example at a layer with activation x^l is, to first order, the distance that x^l
has to move for the strongest competitor j = arg max_{c ≠ y} f_c to draw level with the true class
y (Elsayed et al. 2018, 1803.05598; Jiang et al. 2019, 1810.00113, section 3):

    m_l = (f_y − f_j) / ‖∂(f_y − f_j) / ∂x^l‖₂

x^l is the whole, unpooled output of the stem or a block, after which the gradient is that of all
positions; at `pre_logits` it is the pooled vector that the head sees, and the norm is that of the
difference of two columns of the head's kernel. Divided by √tr Cov(x^l), the root of the total
variance over the same examples (with 1 / n, as there), margins of layers and models compare
whatever the scale of their activations. Jiang et al. leave wrongly classified examples out; here
they stay, with a negative margin, so that a quantile is one of all examples.

Shapes: B examples of a batch, N of all, D width at the head, K classes; (B, …) unpooled.
"""
import collections
import functools
import numbers

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from big_transfer import trees
from big_transfer.data import pipeline
from big_transfer.data import transforms
from big_transfer.models import layers as layers_lib
from big_transfer.models import parts as parts_lib


@functools.lru_cache(maxsize=16)  # one compiled function serves all runs of one model
def _measure(apply, members=False):
  """Returns `measure(params, batch) -> (gap_B, {layer: {...}})`, jitted.

  With `members` it takes stacked parameters, and all that it returns has their axis in front.

  `gap_B` is f_y − f_j. Of each layer: `norm`, (B,), of the gradient of each example's gap, and of
  the activations of the examples that the mask counts `mean`, over the batch, and `spread`, the
  sum of squared differences from it, summed over examples and the last axis.
  """

  def gaps(taps, params, images, batch):
    (logits_BK, out), sown = apply({"params": params}, images, train=False, taps=taps,
                                   mutable=["intermediates"])
    rivals_BK = jnp.where(jax.nn.one_hot(batch["label"], logits_BK.shape[-1], dtype=bool),
                          -jnp.inf, logits_BK)
    pair_B2 = jnp.stack([batch["label"], rivals_BK.argmax(axis=-1)], axis=1)
    of_pair_B2 = jnp.take_along_axis(logits_BK, pair_B2, axis=1)
    gap_B = of_pair_B2[:, 0] - of_pair_B2[:, 1]
    # Examples don't see each other, so the gradient of the sum holds that of every example.
    return gap_B.sum(), (gap_B, pair_B2, _unpooled(sown), out["pre_logits"])

  def measure(params, batch):
    images = transforms.to_float(batch["image"])
    like = jax.eval_shape(gaps, {}, params, images, batch)[1][2]
    taps = {layer: jnp.zeros(x.shape, x.dtype) for layer, x in like.items()}
    gradients, (gap_B, pair_B2, activations, pre_logits_BD) = jax.grad(gaps, has_aux=True)(
        taps, params, images, batch)
    columns_BD2 = params["head"]["kernel"].T[pair_B2].swapaxes(1, 2)
    gradients = {**gradients, "pre_logits": columns_BD2[..., 0] - columns_BD2[..., 1]}
    activations = {**activations, "pre_logits": pre_logits_BD}
    return gap_B, {layer: {"norm": _norms(gradients[layer]), **_moments(x, batch["mask"])}
                   for layer, x in activations.items()}

  return jax.jit(jax.vmap(measure, in_axes=(0, None)) if members else measure)


def _unpooled(sown):
  """`{layer: (B, …)}` of what a model has sown; see `models.layers.tap`."""
  flat = traverse_util.flatten_dict(sown["intermediates"])
  return {path[-1].removeprefix(layers_lib.UNPOOLED): value[0] for path, value in flat.items()
          if path[-1].startswith(layers_lib.UNPOOLED)}


def _norms(g):
  """L2 norm of each example's gradient (B, …), in float32, (B,); no square of it underflows."""
  g = g.astype(jnp.float32).reshape(len(g), -1)
  largest_B = jnp.abs(g).max(axis=1)
  scale_B = jnp.where(largest_B > 0, largest_B, 1.0)
  return scale_B * jnp.sqrt(jnp.square(g / scale_B[:, None]).sum(axis=1))


def _moments(x, mask_B):
  """Mean and centred squares of the activations (B, …) that the mask counts; see `_measure`."""
  x = x.astype(jnp.float32)
  mask = mask_B.reshape(-1, *(1,) * (x.ndim - 1))
  mean = (x * mask).sum(axis=0) / mask_B.sum()
  spread = (jnp.square(x - mean[None]) * mask).sum(axis=0).sum(axis=-1)
  return {"mean": mean, "spread": spread}


class _Variance:
  """Total variance tr Cov of vectors that come in batches: Chan, Golub & LeVeque 1983.

  In float64 on the host, so that neither the number of batches nor a mean far from zero costs
  digits.
  """

  def __init__(self):
    self._count, self._mean, self._spread = 0, 0.0, 0.0

  def add(self, count, mean, spread):
    """Adds a batch of `count` vectors, their mean and sum of squared differences from it."""
    total = self._count + count
    shift = np.asarray(mean, np.float64) - self._mean
    self._mean = self._mean + shift * (count / total)
    self._spread += (np.asarray(spread, np.float64).sum()
                     + np.square(shift).sum() * (self._count * count / total))
    self._count = total

  def value(self):
    return float(self._spread / self._count)


class _Gathered:
  """What is known of one model, batch by batch."""

  def __init__(self):
    self._gaps = []
    self._norms, self._variances = collections.defaultdict(list), collections.defaultdict(_Variance)

  def add(self, count, gap_B, by_layer):
    """Adds what `_measure` says of a batch of `count` examples and what fills it up."""
    self._gaps.append(gap_B[:count])
    for layer, found in by_layer.items():
      self._norms[layer].append(found["norm"][:count])
      self._variances[layer].add(count, found["mean"], found["spread"])

  def value(self):
    """Returns f_y − f_j, (N,), and `{layer: (norms_N, total variance)}` in order of depth."""
    return np.concatenate(self._gaps), {
        layer: (np.concatenate(self._norms[layer]), self._variances[layer].value())
        for layer in sorted(self._norms, key=parts_lib.depth)}


@jax.jit
def _sums_of_squares(params):
  """`{name: ()}`, float32."""
  return {name: jnp.square(p.astype(jnp.float32)).sum()
          for name, p in trees.flatten(params).items()}


class Geometry:
  """Evaluator `geometry`: margins and activations' variance by layer, and L2 norms of weights.

  Metrics `margin` and `margin_normalised` (quantiles over the examples) and `total_variance`, for
  the stem, every block and pre_logits; `l2_norm`, for these and the head, of each group of
  parameters (`models.parts`) and, as group "all", of the whole layer.

  Where the gradient is zero, as everywhere while the head's kernel is, no move of the activation
  changes the gap to first order: the margin is 0 if the gap is 0 (the example is on the boundary)
  and else infinite, with the gap's sign. A quantile that is infinite is written without a value,
  with a status and a reason.

  Args:
    context: see `evaluators.Context`.
    examples: how many upstream examples, drawn by `seed` from those trained on (or those held
      out): the same at every step and in every run on the same data. All, where there are fewer.
    split: "train" or "test".
    quantiles: of the margins, in [0, 1]; between two examples' margins by linear interpolation.
    seed: of the draw, non-negative.

  Raises:
    ValueError: an argument that is not as said here, or data of fewer than two classes.
  """

  def __init__(self, context, *, examples=512, split="train",
               quantiles=(0.1, 0.25, 0.5, 0.75, 0.9), seed=0):
    if split not in ("train", "test"):
      raise ValueError(f"geometry split is {split!r}: expected 'train' or 'test'")
    for name, value, least in ("examples", examples, 2), ("seed", seed, 0):
      if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"geometry {name} is {value!r}: expected a whole number, at least {least}")
    if isinstance(quantiles, (str, int, float)) or not len(quantiles) or not all(
        isinstance(q, numbers.Real) and 0 <= q <= 1 for q in quantiles):
      raise ValueError(f"geometry quantiles is {quantiles!r}: expected a list of at least one "
                       "number in [0, 1]")
    upstream = context.upstream
    self._prepared = upstream.train if split == "train" else upstream.test
    if self._prepared.num_classes < 2:
      raise ValueError(f"geometry: {upstream.name} has {self._prepared.num_classes} class; a "
                       "margin takes a competitor, so at least 2")
    self._context, self._split, self._seed = context, split, int(seed)
    self._quantiles = sorted({float(q) for q in quantiles})
    pool = upstream.examples if split == "train" else None
    self._indices = _draw(np.arange(len(self._prepared)) if pool is None else pool, examples, seed)

  def rows(self, params):
    [gathered] = self._gather(params)
    yield from self._told(gathered, jax.device_get(_sums_of_squares(params)))

  def rows_members(self, params_M):
    squares = jax.device_get(jax.vmap(_sums_of_squares)(params_M))
    return [list(self._told(gathered, {name: value_M[i] for name, value_M in squares.items()}))
            for i, gathered in enumerate(self._gather(params_M, members=True))]

  def _told(self, gathered, squares):
    shared = {"evaluator": "geometry", "task": self._context.upstream.name, "variant": "full",
              "setting": "upstream", "status": "ok"}
    measured = {**shared, "split": self._split, "examples_used": len(self._indices),
                "seed": self._seed}
    gaps_N, by_layer = gathered.value()
    for layer, (norms_N, variance) in by_layer.items():
      margins_N = _ratio(gaps_N, norms_N)
      unreached = int(np.isinf(margins_N).sum())
      why = f"{unreached} of {len(margins_N)} examples have a gradient of zero, yet no gap of zero"
      if unknown := int(np.isnan(margins_N).sum()):
        why = f"{unknown} of {len(margins_N)} examples have logits or gradients that are not finite"
      of_quantile = dict(zip(self._quantiles, _quantiles(margins_N, self._quantiles)))
      for q, value in of_quantile.items():
        yield _row(measured, why, layer=layer, quantile=q, metric="margin", value=value)
      if not variance and not unknown:
        why = "the activations' total variance is zero"
      for q, value in of_quantile.items():  # a quantile over √ν is that of the margins over √ν
        value = value / variance ** 0.5 if variance else np.nan
        yield _row(measured, why, layer=layer, quantile=q, metric="margin_normalised", value=value)
      yield _row(measured, "the activations are not finite", layer=layer, metric="total_variance",
                 value=variance)
    for (layer, group), value in _l2_norms(squares).items():
      yield {**shared, "layer": layer, "group": group, "metric": "l2_norm", "value": value}

  def _gather(self, params, members=False):
    """Returns a list of `_Gathered`, one a member."""
    measure = _measure(self._context.apply, members)
    gathered, left = collections.defaultdict(_Gathered), len(self._indices)
    for batch in pipeline.batches(self._prepared, self._indices, self._context.batch_size,
                                  self._context.process):
      self._context.check()
      n = min(self._context.batch_size, left)  # of all processes
      left -= n
      found = self._context.fetch(measure(params, self._context.put(batch)))
      for i in range(len(found[0]) if members else 1):
        gathered[i].add(n, *(jax.tree.map(lambda x, i=i: x[i], found) if members else found))
    return list(gathered.values())


def _draw(pool, examples, seed):
  """The first `examples` of `pool` (n,) in the random order that the seed gives it, ascending."""
  # Raw bits, as for the order of the epochs: NumPy promises them for all its versions (NEP 19).
  # The 2 keeps them apart from the bits of that order and of nested subsets of the data.
  bits = np.random.PCG64(np.random.SeedSequence((seed, 0, 2))).random_raw(len(pool))
  return np.sort(np.asarray(pool)[np.argsort(bits, kind="stable")[:examples]])


def _ratio(gaps_N, norms_N):
  """Margins in float64, NaN where logits or gradients overflowed; see `Geometry` for norms of 0."""
  gaps_N = np.asarray(gaps_N, np.float64)
  margins_N = np.where(gaps_N == 0, 0.0, np.copysign(np.inf, gaps_N))
  margins_N = np.divide(gaps_N, norms_N, out=margins_N, where=norms_N != 0)
  return np.where(np.isfinite(gaps_N) & np.isfinite(norms_N), margins_N, np.nan)


def _quantiles(values_N, quantiles):
  with np.errstate(invalid="ignore"):  # ∞ − ∞ between two infinite margins: a row with a reason
    return np.quantile(values_N, quantiles)


def _row(shared, why, *, value, **columns):
  """A row; one without a value, with the reason `why`, where the value is not finite."""
  if np.isfinite(value):
    return {**shared, **columns, "value": float(value)}
  return {**shared, **columns, "value": None, "status": "non-finite", "reason": why}


def _l2_norms(squares):
  """`{(layer, group): norm}` in order of depth; group "all" is a layer's whole."""
  sums = {}
  for name, part in parts_lib.parts(squares).items():
    for group in "all", part.group:
      key = (part.layer, group)
      sums[key] = sums.get(key, 0.0) + float(squares[name])
  return {key: value ** 0.5 for key, value in sums.items()}
