"""A head to begin fine-tuning with, made of a linear probe (Kumar et al. 2022, 2202.10054).

A new head that knows nothing sends gradients into the body that distort what it has learned; one
that fits the body's features does not. Here it is the ridge regression of `linear`, fitted to the
training examples of what is to be trained on. Its scores aim at ±1, which is no scale for a
cross-entropy, so they are made logits, `scale · score + shift`, with the two numbers at which the
loss on held-out training examples is least (for the softmax the shift is without effect). Scale,
shift and strength are chosen on examples held out, since on those fitted the scale would grow
without end where there are fewer examples than features; then the probe is fitted to all.

Kumar et al. fit their probe with the loss itself, by L-BFGS, which takes many passes where this
takes one.

Shapes: N training examples, H held-out ones, D features, C classes.
"""
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from big_transfer.evaluators import features as features_lib
from big_transfer.evaluators import linear

MOST = 50_000  # examples whose features are computed, drawn at random where there are more
SCALES = (0.01, 30.0)  # a bound lest an easy task begin with certainty, where no gradient is left


def from_probe(context, params, seed):
  """The head that a linear probe makes for what is trained on.

  Args:
    context: see `evaluators.Context`; `upstream` says the examples and the loss.
    params: the model's; its head isn't looked at.
    seed: of the draws.

  Returns:
    `(kernel (D, C), bias (C,))`, float32.

  Raises:
    ValueError: the features are not all finite, or there are fewer than two examples.
  """
  upstream = context.upstream
  train, classes = upstream.train, upstream.train.num_classes
  chosen = np.arange(len(train)) if upstream.examples is None else np.asarray(upstream.examples)
  if len(chosen) > MOST:
    chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:MOST])
  if len(chosen) < 2:
    raise ValueError(f"init.head is 'probe', but '{upstream.name}' has {len(chosen)} training "
                     "example: expected two at least, one of which is held out; take 'zero'")
  y_N = np.asarray(train.labels)[chosen]
  [x_ND] = features_lib.compute(context, ["pre_logits"], params, train, chosen).values()
  if not np.isfinite(x_ND).all():
    raise ValueError("init.head is 'probe', but the features of some training images are infinite "
                     "or NaN: take 'zero', or another init.source")
  held = np.isin(np.arange(len(chosen)), linear.hold_out(y_N, classes, seed))
  sums = linear.Sums.of(x_ND[~held], y_N[~held], classes)
  fitted = linear.Ridge(sums)
  strengths = sorted(linear.STRENGTHS, reverse=True)  # of equals the strongest comes first
  count = int((~held).sum())
  right = fitted.right(x_ND[held], y_N[held], [count * strength for strength in strengths])
  strength = strengths[int(np.argmax(right))]
  weights_DC, bias_C = fitted.solve(count * strength)
  scale, shift = scaled(x_ND[held] @ weights_DC + bias_C, y_N[held], upstream.loss)
  both = linear.Ridge(sums + linear.Sums.of(x_ND[held], y_N[held], classes))
  weights_DC, bias_C = both.solve(len(chosen) * strength)
  return ((scale * weights_DC).astype(np.float32), (scale * bias_C + shift).astype(np.float32))


def scaled(scores_HC, y_H, loss):
  """The scale, within SCALES, and the shift of scores that make a convex loss least.

  Args:
    scores_HC: of some examples.
    y_H: their classes.
    loss: `loss(logits_HC, targets_HC) -> (H,)`.
  """
  scores_HC = jnp.asarray(scores_HC, jnp.float32)
  targets_HC = jax.nn.one_hot(y_H, scores_HC.shape[1])
  found = jax.jit(jax.value_and_grad(
      lambda v: loss(v[0] * scores_HC + v[1], targets_HC).mean()))

  def value(v):
    at, slope = found(jnp.asarray(v, jnp.float32))
    return float(at), np.asarray(slope, np.float64)

  scale, shift = optimize.minimize(value, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B",
                                   bounds=[SCALES, (None, None)]).x
  return float(scale), float(shift)
