"""The train step: the same on any number of devices and micro-batches; what it counts as bad."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import models
from big_transfer import trees
from big_transfer.data import transforms
from big_transfer.training import objectives
from big_transfer.training import optim
from big_transfer.training import sharding
from big_transfer.training import step as step_lib

MODELS = {
    "vit": dict(width=16, depth=2, heads=2, mlp_dim=32, patch=8, pool="tok"),
    "mixer": dict(width=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=32, patch=8),
    "resnet": dict(depths=(1, 1), width=0.125, root_kernel=3, root_stride=2, root_pool=False)}
BATCH, SIZE, CLASSES = 32, 16, 5


def _batches(count):
  rng = np.random.default_rng(0)
  return [{"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
           "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
           "slot": np.arange(BATCH, dtype=np.int32)} for _ in range(count)]


@functools.lru_cache(maxsize=None)
def _compiled(family, devices, accumulate, optimiser):
  """One program for all tests that differ in arrays alone."""
  model = models.build(family, num_classes=CLASSES, **MODELS[family])
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
  opt = optim.build(list(trees.flatten(params["params"])), [(".*", {})], lr=1.0, name=optimiser,
                    clip=None, momentum=0.0)

  def prepare(keys_B, batch, hparams):
    images = transforms.augment(keys_B, batch["image"], crop_padding=2, flip=True)
    targets = objectives.one_hot(batch["label"], CLASSES)
    images, targets = transforms.mixup(keys_B, images, targets, hparams["mixup"])
    return {"image": images, "target": targets}

  everywhere, split = sharding.replicated(mesh), sharding.batched(mesh)
  init = jax.jit(step_lib.make_init(model, (SIZE, SIZE, 3), opt.tx), out_shardings=everywhere)
  step = jax.jit(
      step_lib.make_train_step(model.apply, objectives.classification("softmax_xent"), opt.tx,
                               prepare, accumulate),
      in_shardings=(everywhere, split, everywhere), out_shardings=everywhere)
  return mesh, opt, init, step


def _train(family, devices, steps, lr, accumulate=1, optimiser="sgd"):
  """Trains with augmentation, mixup and smoothing; returns parameters before, after, and losses."""
  mesh, opt, init, step = _compiled(family, devices, accumulate, optimiser)
  state = init(3)
  # The head starts at zero, where no gradient reaches the body: begin elsewhere.
  kernel = 0.1 * jax.random.normal(jax.random.key(1), state.params["head"]["kernel"].shape)
  state = state.replace(params={**state.params, "head": {
      **state.params["head"], "kernel": jax.device_put(kernel, sharding.replicated(mesh))}})
  hparams = {"seed": np.uint32(3), "optim": {**opt.hparams, "lr": np.float32(lr)},
             "mixup": np.float32(0.2), "label_smoothing": np.float32(0.1)}
  before, losses = jax.tree.map(np.asarray, state.params), []
  for batch in _batches(steps):
    state, measures = step(state, sharding.put_batch(batch, mesh), hparams)
    losses.append(float(measures["loss"]))
  assert int(state.bad_step) == -1 and int(state.step) == steps
  return before, jax.tree.map(np.asarray, state.params), np.array(losses)


def _gradients(*args, **kwargs):
  before, after, _ = _train(*args, steps=1, lr=1.0, **kwargs)
  return np.concatenate([(b - a).ravel() for b, a in
                         zip(jax.tree.leaves(before), jax.tree.leaves(after))]).astype(np.float64)


@pytest.mark.parametrize("family", [  # the others compile for long
    "vit", *(pytest.param(family, marks=pytest.mark.slow) for family in MODELS if family != "vit")])
def test_gradients_on_one_device_and_on_eight(family):
  one, eight = _gradients(family, 1), _gradients(family, 8)
  assert np.linalg.norm(one) > 1e-2
  assert np.linalg.norm(one - eight) <= 1e-5 * np.linalg.norm(one)


def test_gradients_of_micro_batches_are_those_of_the_batch():
  whole = _gradients("vit", 8)
  parts = _gradients("vit", 8, accumulate=2)
  assert np.linalg.norm(whole - parts) <= 1e-5 * np.linalg.norm(whole)


def test_twenty_sgd_steps_on_one_device_and_on_eight():
  _, _, one = _train("vit", 1, 20, lr=0.03)
  _, _, eight = _train("vit", 8, 20, lr=0.03)
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  assert one[-1] != one[0]


@pytest.mark.slow
def test_twenty_adamw_steps_on_one_device_and_on_eight():
  _, _, one = _train("vit", 1, 20, lr=1e-3, optimiser="adamw")
  _, _, eight = _train("vit", 8, 20, lr=1e-3, optimiser="adamw")
  np.testing.assert_allclose(one, eight, rtol=1e-3)


@pytest.mark.parametrize("loss, expected", [("sigmoid_xent", 3 * np.log(2)),
                                            ("softmax_xent", np.log(3))])
def test_losses_of_indifferent_logits(loss, expected):
  value = objectives.LOSSES[loss](np.zeros((2, 3), np.float32), np.eye(3, dtype=np.float32)[:2])
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def _bf16_gradient(params, model, images):
  return jax.grad(lambda p: (model.apply({"params": p}, images, train=True)[0] ** 2).sum())(params)


def test_bfloat16_keeps_masters_gradients_head_and_probes_in_float32():
  model = models.build("vit", num_classes=CLASSES, dtype="bfloat16", **MODELS["vit"])
  images = np.zeros((2, SIZE, SIZE, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  grads = jax.eval_shape(lambda p: _bf16_gradient(p, model, images), params)
  assert {str(x.dtype) for x in jax.tree.leaves((params, grads))} == {"float32"}
  _, out = jax.eval_shape(model.apply, {"params": params}, images)
  assert {str(x.dtype) for x in out.values()} == {"float32"}
  jaxpr = jax.make_jaxpr(model.apply)({"params": params}, images).jaxpr
  dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
  head = [str(v.aval.dtype) for v in dots[-1].invars]
  assert head == ["float32", "float32"]
  assert {str(eqn.invars[0].aval.dtype) for eqn in dots[:-1]} == {"bfloat16"}


def test_updates_below_the_resolution_of_bfloat16_add_up():
  """At 1 neighbours in bfloat16 are 2^-8 apart: a hundred steps of 2^-12 are lost to a bfloat16."""
  params = {"kernel": jnp.ones((4, 4))}
  opt = optim.build(["kernel"], [(".*", {})], lr=2.0 ** -12, name="sgd", clip=None, momentum=None)

  def objective(apply, params, batch, key, hparams):
    loss = (params["kernel"].astype(jnp.bfloat16) * batch["image"].astype(jnp.bfloat16)).sum()
    return loss.astype(jnp.float32), {"loss": loss.astype(jnp.float32)}

  step = jax.jit(step_lib.make_train_step(
      None, objective, opt.tx, lambda keys, batch, hparams: batch))
  state = step_lib.start(params, opt.tx)
  batch = {"image": -jnp.ones((4, 4)), "slot": np.arange(4, dtype=np.int32)}
  for _ in range(100):
    state, _ = step(state, batch, {"seed": np.uint32(0), "optim": opt.hparams})
  np.testing.assert_allclose(state.params["kernel"], 1 + 100 * 2.0 ** -12, rtol=1e-6)
  assert jnp.bfloat16(1) + jnp.bfloat16(2.0 ** -12) == jnp.bfloat16(1)


def test_smoothing_keeps_the_sum():
  targets = objectives.smooth(objectives.one_hot(np.array([1]), 4), 0.2)
  np.testing.assert_allclose(targets, [[0.05, 0.85, 0.05, 0.05]], atol=1e-6)


def test_unknown_loss():
  with pytest.raises(ValueError, match="expected one of"):
    objectives.classification("hinge")


@pytest.mark.parametrize("axes, message", [
    ({"data": 3}, "needs 3 devices"), ({"model": -1}, "expected any of data, fsdp, tensor")])
def test_bad_meshes(axes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(axes)
