"""Scanned and rematerialised blocks: the outputs, gradients and names of those one by one."""
import functools

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import models
from big_transfer import trees
from big_transfer.models import blocks
from big_transfer.models import shapes

TINY = {
    "vit": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch": 8},
    "mixer": {"width": 16, "depth": 2, "tokens_mlp_dim": 12, "channels_mlp_dim": 24, "patch": 8},
    "resnet": {"depths": (1, 1), "width": 0.125, "root_kernel": 3, "root_pool": False}}
QUICK = {"xla_backend_optimization_level": 0}


def build(family, **overrides):
  return models.build(family, **{"num_classes": 5, **TINY[family], **overrides})


def images(size=16):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, size, size, 3)), jnp.float32)


@functools.lru_cache
def params(family, seed=1):
  """Parameters far from their initial values, so that no zero hides a mistake."""
  tree = jax.eval_shape(build(family).init, jax.random.key(0), images())["params"]
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
      lambda path, p: jnp.asarray(rng.normal(path[-1].key == "scale", 0.2, p.shape), p.dtype), tree)


def taps(family, names):
  found = shapes.tap_shapes(build(family), images().shape)
  return {name: jnp.full(found[name], 0.1) for name in names}


@functools.lru_cache
def results(family, **overrides):
  """Outputs, what is sown, and gradients by parameters and by two of the three taps."""
  model = build(family, **overrides)

  def loss(p, t):
    (logits, out), sown = model.apply({"params": p}, images(), train=True, taps=t,
                                      mutable=["intermediates"])
    return (logits ** 2).sum() + out["block_01"].sum(), (out, sown["intermediates"])

  compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
                     compiler_options=QUICK)
  (_, (out, sown)), gradients = compiled(params(family), taps(family, ["stem", "block_01"]))
  sown = {jax.tree_util.keystr(path[-2:], simple=True, separator="/"): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(sown)}
  return out, sown, gradients


@pytest.mark.parametrize("family, overrides", [
    ("vit", dict(scan=True, remat="dots_no_batch")), ("mixer", dict(scan=True)),
    pytest.param("vit", dict(scan=True), marks=pytest.mark.slow),
    pytest.param("vit", dict(remat="full"), marks=pytest.mark.slow),
    pytest.param("mixer", dict(scan=True, remat="full"), marks=pytest.mark.slow),
    pytest.param("resnet", dict(remat="dots"), marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_blocks_one_by_one(family, overrides):
  (out, sown, gradients), (expected, sown_expected, expected_gradients) = (
      results(family, **overrides), results(family))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6)
  jax.tree.map(close, out, expected)
  jax.tree.map(close, sown, sown_expected)
  for ours, theirs in zip(gradients, expected_gradients):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
      assert np.linalg.norm(b) > 0, path
      assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-6, path


@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_parameters_have_the_same_names(family):
  def names(**overrides):
    init = build(family, **overrides).init
    return trees.shapes(jax.eval_shape(init, jax.random.key(0), images())["params"])
  assert names(scan=True, remat="full") == names()


def _dots(jaxpr):
  """Matrix products that run, those of a loop as often as it turns."""
  total = 0
  for eqn in jaxpr.eqns:
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    total += eqn.primitive.name == "dot_general"
    total += times * sum(map(_dots, core.jaxprs_in_params(eqn.params)))
  return total


@pytest.mark.parametrize("family, scan, kernels, others", [
    # Products of a block whose results its reverse pass needs (so not its last), and attention's.
    ("vit", True, 5, 2), ("mixer", False, 3, 0), ("resnet", False, 2, 0)])
def test_what_is_computed_again(family, scan, kernels, others):
  blocks_ = 2

  def dots(remat):
    model = build(family, **({"scan": True} if scan else {}), remat=remat,
                  **({"attention": "matmul"} if family == "vit" else {"convolution": "matmul"}
                     if family == "resnet" else {}))
    grad = jax.grad(lambda p: model.apply({"params": p}, images(), train=True)[0].sum())
    return _dots(jax.make_jaxpr(grad)(params(family)).jaxpr)

  none = dots("none")
  assert dots("full") == none + blocks_ * (kernels + others)
  if others:
    assert dots("dots_no_batch") == none + blocks_ * others
    assert dots("dots") == none


@pytest.mark.slow
def test_a_population_of_scanned_models():
  model = build("vit", scan=True, remat="full")
  members = [params("vit", seed) for seed in (1, 2)]

  def gradient(p):
    return jax.grad(lambda p: (model.apply({"params": p}, images(), train=True)[0] ** 2).sum())(p)

  stacked = jax.jit(jax.vmap(gradient), compiler_options=QUICK)(
      jax.tree.map(lambda *p: jnp.stack(p), *members))
  alone = jax.jit(gradient, compiler_options=QUICK)
  for i, member in enumerate(members):
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4),
                 stacked, alone(member))


def test_dropout_of_a_scanned_model():
  model = build("mixer", scan=True, remat="full", dropout=0.5)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def logits(seed):
    return model.apply({"params": params("mixer")}, images(), train=True,
                       rngs={"dropout": jax.random.key(seed)})[0]

  assert not np.allclose(logits(0), logits(1))
  np.testing.assert_array_equal(logits(0), logits(0))
  expected = results("mixer")[0]["stem"]  # nothing is dropped when not training
  _, out = model.apply({"params": params("mixer")}, images(), taps=taps("mixer", ["stem"]))
  np.testing.assert_allclose(out["stem"], expected, rtol=1e-6, atol=1e-6)


def test_masks_of_a_scanned_model_differ_from_block_to_block():
  """Blocks whose parameters are alike add the same to a stream of zeros, but for their masks."""
  model = build("mixer", scan=True, dropout=0.5)
  same = {**params("mixer")}
  for i in range(2):
    block = jax.tree.map(jnp.zeros_like, same["MixerBlock_0"])
    block["channel_mixing"]["Dense_0"]["bias"] = jnp.ones(24)
    block["channel_mixing"]["Dense_1"]["kernel"] = same["MixerBlock_0"]["channel_mixing"][
        "Dense_1"]["kernel"]
    same[f"MixerBlock_{i}"] = block
  _, out = model.apply({"params": same}, images(), train=True, rngs={"dropout": jax.random.key(0)})
  steps = [out["block_00"] - out["stem"], out["block_01"] - out["block_00"]]
  assert np.abs(steps[0] - steps[1]).max() > 1e-2


def test_counts_are_those_of_blocks_one_by_one():
  for family in ("vit", "mixer"):
    one, scanned = build(family), build(family, scan=True, remat="full")
    assert shapes.flops_per_example(scanned, (16, 16, 3)) == (
        shapes.flops_per_example(one, (16, 16, 3)))
    assert shapes.tap_shapes(scanned, (2, 16, 16, 3)) == shapes.tap_shapes(one, (2, 16, 16, 3))


def test_kernels_are_rounded_before_they_are_stacked():
  """Else the copy for the loop, and that of the gradients, would be twice as large."""
  model = build("vit", scan=True, dtype="bfloat16")
  jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, images())[0])(params("vit"))
  [scan] = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
  stacked = [v.aval for v in scan.invars if v.aval.ndim >= 3 and v.aval.shape[0] == 2]
  assert len([v for v in stacked if v.ndim >= 3 and v.shape[1:] in ((16, 24), (24, 16))]) == 2
  assert {str(v.dtype) for v in stacked if v.shape[1:] in ((16, 24), (24, 16))} == {"bfloat16"}


@pytest.mark.parametrize("overrides, says", [
    (dict(remat="dots_nobatch"), "did you mean 'dots_no_batch'"), (dict(scan=1), "True or False")])
def test_bad_arguments(overrides, says):
  with pytest.raises(ValueError, match=says):
    build("vit", **overrides)


def test_resnets_are_not_scanned():
  with pytest.raises(ValueError, match="resnet takes no argument 'scan'"):
    build("resnet", scan=True)


def test_jaxs_names_of_policies_exist():
  assert {"dots_saveable", "nothing_saveable"} < set(blocks.POLICIES)
  for name, policy in blocks.POLICIES.items():
    if name.endswith("saveable"):
      assert policy is getattr(jax.checkpoint_policies, name)
