"""Learning-rate schedules as unit shapes: a value in [0, 1] for each step, times a peak rate.

The shape is a table made before training, so the peak stays an array that a sweep can vary and
runs of different lengths share one compiled step.
"""
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def unit_schedule(total_steps, *, name="cosine", warmup_steps=0, cooldown_steps=0,
                  timescale=10_000, end=0.0, drops=(0.3, 0.6, 0.9), factor=0.1):
  """Returns the rate of each step as a fraction of the peak, `(total_steps,)` float32.

  All rise linearly from 0 over `warmup_steps`; what follows is
    cosine: half a cosine from 1 to `end` at the last step (Loshchilov & Hutter 2017);
    linear: a straight line from 1 to `end`;
    rsqrt: `sqrt(timescale / (timescale + steps since warm-up))` (Zhai et al. 2021, App. A),
      usually with `cooldown_steps`, which take it linearly to `end`;
    constant: 1;
    staircase: 1, times `factor` after each of `drops` (Kolesnikov et al. 2019, 1912.11370, 3.3).

  Args:
    total_steps: length of training, in steps.
    name: "cosine", "linear", "rsqrt", "constant" or "staircase".
    warmup_steps: length of the rise, in steps; below `total_steps`.
    cooldown_steps: length of the last linear descent, for rsqrt and constant, in steps.
    timescale: of rsqrt, in steps.
    end: final fraction of the peak.
    drops: of staircase, fractions of `total_steps`, rising.
    factor: of staircase.

  Raises:
    ValueError: an unknown name, lengths that don't fit into `total_steps`, or drops that aren't
      fractions.
  """
  if name not in NAMES:
    raise ValueError(f"schedule {name!r} is unknown: expected one of {sorted(NAMES)}")
  if min(warmup_steps, cooldown_steps) < 0 or warmup_steps + cooldown_steps >= total_steps:
    raise ValueError(
        f"warm-up of {warmup_steps} and cool-down of {cooldown_steps} steps do not fit into "
        f"{total_steps} steps of training: lower optim.schedule.warmup_steps or .cooldown_steps, or "
        "train longer")
  if cooldown_steps and name not in ("rsqrt", "constant"):
    raise ValueError(f"a {name} schedule ends by itself: cooldown_steps is for rsqrt and constant")
  if (not isinstance(drops, Sequence) or not all(map(_is_share, (*drops, factor)))
      or list(drops) != sorted(drops)):
    raise ValueError(f"schedule: drops are {drops!r} and factor {factor!r}: expected rising "
                     "fractions of the training, between 0 and 1, and a factor between 0 and 1")
  if name == "staircase":
    decay = _staircase(total_steps, warmup_steps, drops, factor)
  else:
    decay = _DECAYS[name](total_steps - warmup_steps, timescale, end)
  schedule = optax.join_schedules(
      [optax.linear_schedule(0.0, 1.0, max(warmup_steps, 1)), decay], [warmup_steps])
  steps = np.arange(total_steps)
  # As one program: one small operation after another would take four times as long to compile.
  shape = np.asarray(jax.jit(schedule)(steps))
  if cooldown_steps:
    left = (total_steps - steps) / cooldown_steps
    shape = np.where(left < 1, end + (shape - end) * left, shape)
  return shape.astype(np.float32)


def _is_share(value):
  return isinstance(value, (int, float)) and 0 < value < 1


def _staircase(total_steps, warmup_steps, drops, factor):
  """Of steps since the warm-up; a drop takes effect at the step at which its fraction is done."""
  steps = [round(drop * total_steps) - warmup_steps for drop in drops]
  return lambda count: factor ** sum((count >= step).astype(jnp.float32) for step in steps)


_DECAYS = {
    "cosine": lambda steps, timescale, end: optax.cosine_decay_schedule(1.0, steps, alpha=end),
    "linear": lambda steps, timescale, end: optax.linear_schedule(1.0, end, steps),
    "rsqrt": lambda steps, timescale, end: (
        lambda count: jnp.sqrt(timescale / (timescale + jnp.maximum(count, 0)))),
    "constant": lambda steps, timescale, end: (lambda count: jnp.ones_like(count, jnp.float32)),
}
NAMES = (*_DECAYS, "staircase")
