"""Learning-rate schedules as unit shapes: a value in [0, 1] for each step, times a peak rate.

The shape is a table made before training, so the peak stays an array that a sweep can vary and
runs of different lengths share one compiled step. In NumPy: evaluating optax's schedules here cost
0.3 s at every start, for compiling one small operation after another.
"""
import numpy as np


def unit_schedule(total_steps, *, name="cosine", warmup_steps=0, cooldown_steps=0,
                  timescale=10_000, end=0.0):
  """Returns the rate of each step as a fraction of the peak, `(total_steps,)` float32.

  All rise linearly from 0 over `warmup_steps`; what follows is
    cosine: half a cosine from 1 to `end` at the last step (Loshchilov & Hutter 2017);
    linear: a straight line from 1 to `end`;
    rsqrt: `sqrt(timescale / (timescale + steps since warm-up))` (Zhai et al. 2021, App. A),
      usually with `cooldown_steps`, which take it linearly to `end`;
    constant: 1.

  Args:
    total_steps: length of training, in steps.
    name: "cosine", "linear", "rsqrt" or "constant".
    warmup_steps: length of the rise, in steps; below `total_steps`.
    cooldown_steps: length of the last linear descent, for rsqrt and constant, in steps.
    timescale: of rsqrt, in steps.
    end: final fraction of the peak.

  Raises:
    ValueError: an unknown name, or lengths that don't fit into `total_steps`.
  """
  if name not in _DECAYS:
    raise ValueError(f"schedule {name!r} is unknown: expected one of {sorted(_DECAYS)}")
  if min(warmup_steps, cooldown_steps) < 0 or warmup_steps + cooldown_steps >= total_steps:
    raise ValueError(
        f"warm-up of {warmup_steps} and cool-down of {cooldown_steps} steps do not fit into "
        f"{total_steps} steps of training: shorten them (config.optim.schedule) or train longer")
  if cooldown_steps and name in ("cosine", "linear"):
    raise ValueError(f"a {name} schedule ends by itself: cooldown_steps is for rsqrt and constant")
  steps = np.arange(total_steps)
  since = np.maximum(steps - warmup_steps, 0)
  decay = _DECAYS[name](since, total_steps - warmup_steps, timescale, end)
  shape = np.where(steps < warmup_steps, steps / max(warmup_steps, 1), decay)
  if cooldown_steps:
    left = (total_steps - steps) / cooldown_steps
    shape = np.where(left < 1, end + (shape - end) * left, shape)
  return shape.astype(np.float32)


_DECAYS = {
    "cosine": lambda since, length, timescale, end: (
        end + (1 - end) * 0.5 * (1 + np.cos(np.pi * since / length))),
    "linear": lambda since, length, timescale, end: 1 + (end - 1) * since / length,
    "rsqrt": lambda since, length, timescale, end: np.sqrt(timescale / (timescale + since)),
    "constant": lambda since, length, timescale, end: np.ones(len(since)),
}
