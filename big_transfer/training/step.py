"""The state of training and the one pure step that advances it."""
from flax import struct
import jax
import jax.numpy as jnp

from big_transfer import trees
from big_transfer.data import transforms
from big_transfer.training import optim


class TrainState(struct.PyTreeNode):
  """All that a checkpoint holds of a run.

  Attributes:
    step: `()` int32, updates done.
    params: nested dict of arrays.
    opt_state: of the optax transformation, which is given the trained parameters alone.
    bad_step: `()` int32, the first step whose loss, gradients or new parameters were not finite;
      -1 while there was none. Accumulated here so that looking can wait for the next log.
  """
  step: jax.Array
  params: dict
  opt_state: tuple
  bad_step: jax.Array


def make_init(model, image_shape, tx, frozen=frozenset()):
  """Returns `init(seed) -> TrainState`, pure; `image_shape` is (H, W, 3)."""

  def init(seed):
    params = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape), jnp.float32))["params"]
    return start(params, tx, frozen)

  return init


def start(params, tx, frozen=frozenset()):
  """The TrainState before the first step; `frozen` are names of parameters that aren't trained."""
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(parted(params, frozen)[0]),
                    bad_step=jnp.int32(-1))


def parted(params, frozen):
  """Two nested dicts, the parameters that are trained and those of these names."""
  if not frozen:
    return params, {}
  flat = trees.flatten(params)
  return tuple(trees.unflatten({name: leaf for name, leaf in flat.items()
                                if (name in frozen) is part}) for part in (False, True))


def joined(trained, kept):
  """The inverse of `parted`."""
  if not kept:
    return trained
  return trees.unflatten({**trees.flatten(trained), **trees.flatten(kept)})


def make_train_step(apply, objective, tx, prepare, accumulate=1, frozen=frozenset()):
  """Returns the pure `train_step(state, batch, hparams) -> (state, measures)`.

  Args:
    apply: the model's, `apply({"params": p}, images, train=, rngs=)`.
    objective: see `objectives`.
    tx: see `optim`.
    prepare: `prepare(keys_B, batch, hparams) -> batch` for the objective: augmentation and
      targets; each example's key is a function of (seed, step, slot) alone.
    accumulate: number of micro-batches whose gradients are averaged before the update. Memory
      falls with it; on CPU speed may rise, since activations of a smaller batch stay in cache.
    frozen: names of the parameters that aren't trained. Nothing is differentiated by them, so that
      below the lowest trained layer there is no reverse pass.

  The step's `hparams` are arrays: `seed`, `optim` (see `optim.Optimiser`, `lr` being the rate at
  this step) and those of the objective. Measures are `()` float32: the objective's, and
  `l2_gradients`, `l2_params`, `l2_updates`.
  """

  def gradients(params, batch, key, hparams):
    # Jitted, so that `eval_shape` and `scan` below share one tracing, half of all tracing.
    grad = jax.jit(jax.value_and_grad(
        lambda p, kept, b, k: objective(apply, joined(p, kept), b, k, hparams), has_aux=True),
                   inline=True)
    if accumulate == 1:
      (_, measures), grads = grad(*parted(params, frozen), batch, key)
      return grads, measures
    # Strided, not contiguous: each device then splits its own examples, and none moves.
    micro = jax.tree.map(
        lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, inputs):
      part, i = inputs
      # Parameters are the same for all micro-batches, so a compiler would gather those split over
      # devices once before the loop, and hold all of them whole. Tied to `part`, they may change.
      here, part = jax.lax.optimization_barrier((params, part))
      (_, measures), grads = grad(*parted(here, frozen), part, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, (grads, measures)), None

    shapes = jax.eval_shape(grad, *parted(params, frozen), jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1]))
    total, _ = jax.lax.scan(add, zeros, (micro, jnp.arange(accumulate)))
    return jax.tree.map(lambda x: x / accumulate, total)

  def train_step(state, batch, hparams):
    key, dropout = jax.random.split(jax.random.key(hparams["seed"]))
    keys_B = transforms.slot_keys(key, state.step, batch["slot"])
    grads, measures = gradients(state.params, prepare(keys_B, batch, hparams),
                                jax.random.fold_in(dropout, state.step), hparams)
    trained, kept = parted(state.params, frozen)
    updates, opt_state = tx.update(grads, state.opt_state, trained, hparams=hparams["optim"])
    params = joined(jax.tree.map(jnp.add, trained, updates), kept)
    measures = {**measures, "l2_gradients": optim.global_norm(grads),
                "l2_params": optim.global_norm(params), "l2_updates": optim.global_norm(updates)}
    # A norm is finite exactly when all it sums is (barring values beyond 1e19).
    finite = jnp.isfinite(jnp.stack(list(measures.values()))).all()
    bad_step = jnp.where((state.bad_step < 0) & ~finite, state.step, state.bad_step)
    return TrainState(state.step + 1, params, opt_state, bad_step), measures

  return train_step
