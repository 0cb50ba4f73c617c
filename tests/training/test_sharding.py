"""Sharding: rules to partitions, and the same training on any mesh."""
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from big_transfer import models
from big_transfer import trees
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import optim
from big_transfer.training import program
from big_transfer.training import sharding
from big_transfer.training import step as step_lib
from tests import toy

ONE, COPIED, FSDP = {"data": 1}, {"data": 8}, {"data": 1, "fsdp": 8}
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
EVERY = ((".*", "fsdp(min_size=1)"),)
# As "megatron", for parameters of any size.
CUBE_RULES = tuple((pattern, tactic.replace("fsdp", "fsdp(min_size=1)"))
                   for pattern, tactic in sharding.MEGATRON) + EVERY
MODEL = dict(name="vit", width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool="tok")
BATCH, SIZE, CLASSES = 32, 16, 6


def test_axis_sizes():
  assert sharding.axis_sizes(None, 8) == {"data": 8}
  assert list(sharding.axis_sizes({"tensor": 2, "data": -1}, 8).items()) == [
      ("tensor", 2), ("data", 4)]
  assert sharding.axis_sizes({"data": -1, "fsdp": 4}, 4096) == {"data": 1024, "fsdp": 4}
  assert sharding.axis_sizes({"data": 8}, 8, members=6) == {"population": 2, "data": 4}
  assert sharding.axis_sizes({"fsdp": 8}, 8, members=4) == {"population": 1, "fsdp": 8}


@pytest.mark.parametrize("axes, says", [
    ({"model": 8}, "expected any of data, fsdp, tensor, not 'model'"),
    ({"data": -1, "fsdp": -1}, "-1 twice"), ({"data": 0}, "config.mesh.data is 0"),
    (8, "config.mesh is 8: expected axes"), ({"data": 2.0}, "config.mesh.data is 2.0"), ({"fsdp": 4}, "needs 4 devices, here are 8"),
    ({"data": -1, "fsdp": 3}, "needs a multiple of 3 devices")])
def test_bad_meshes(axes, says):
  with pytest.raises(ValueError, match=says):
    sharding.axis_sizes(axes, 8)


SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("shape, tactic, expected", [
    ((400, 600), "copy", P()), ((400, 600), "fsdp", P(None, "fsdp")),
    ((400, 602), "fsdp", P("fsdp")),  # the largest that divides
    ((401, 602), "fsdp", P()), ((40, 60), "fsdp", P()),
    ((40, 60), "fsdp(min_size=2400)", P(None, "fsdp")), ((40, 60), "fsdp(min_size=2401)", P()),
    ((40, 60), "fsdp(0)", P("fsdp")), ((40, 60), "tensor(-1)", P(None, "tensor")),
    ((40, 2, 30), "tensor(1)", P(None, "tensor")),
    ((600, 400), "fsdp+tensor(0)", P("tensor", "fsdp")),
    ((600, 400), "tensor(0)+fsdp", P("tensor", "fsdp")), ((3, 3, 64, 256), "fsdp",
                                                          P(None, None, None, "fsdp"))])
def test_tactics(shape, tactic, expected):
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  assert sharding.partition({"a": leaf}, [("a", tactic)], SIZES) == {"a": expected}
  # Where the mesh doesn't have the axes, or they are of one device, nothing is split.
  for sizes in ({}, {"data": 8}, {"fsdp": 1, "tensor": 1}):
    assert sharding.partition({"a": leaf}, [("a", tactic)], sizes) == {"a": P()}


@pytest.mark.parametrize("rules, says", [
    ([("a", "tensor(1)")], r"dimension 1 of a \(400, 601\) doesn't divide by 2.*'tensor'"),
    ([("a", "tensor(2)")], "which has 2 dimensions"), ([("a", "tensor")], r"'tensor\(-1\)'"),
    ([("a", "fsdp+fsdp")], "names an axis twice"), ([("a", "zero")], "'zero' is unknown"),
    ([("a", "fsdp(0)+tensor(0)")], "split over fsdp and tensor"),
    ([("b", "copy")], "first match of no parameter"), (["a"], "expected .regex, tactic."),
    ([("(", "copy")], "not a regular expression"), ("megatorn", "expected 'megatron'"),
    ("megatron", "this model has none"), (5, "config.sharding is 5"),
    ([5], "expected .regex, tactic."), ([(5, "copy")], "expected .regex, tactic.")])
def test_bad_rules(rules, says):
  leaf = jax.ShapeDtypeStruct((400, 601), jnp.float32)
  with pytest.raises(ValueError, match=says):
    sharding.partition({"a": leaf}, rules, SIZES)


def _shapes(name, **arguments):
  model = models.build(name, num_classes=arguments.pop("classes", 1000), **arguments)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def test_megatron_on_a_vit():
  specs = trees.flatten(sharding.partition(_shapes("vit", variant="S/16"), "megatron", SIZES))
  block = "Transformer/encoderblock_3/"
  attention, mlp = block + "MultiHeadDotProductAttention_0/", block + "MlpBlock_0/"
  assert {name: specs[name] for name in specs if name.startswith((block, "head"))} == {
      **{f"{attention}{part}/kernel": P("fsdp", "tensor") for part in ("query", "key", "value")},
      **{f"{attention}{part}/bias": P("tensor") for part in ("query", "key", "value")},
      f"{attention}out/kernel": P("tensor", None, "fsdp"), f"{attention}out/bias": P(),
      f"{mlp}Dense_0/kernel": P("fsdp", "tensor"), f"{mlp}Dense_0/bias": P("tensor"),
      f"{mlp}Dense_1/kernel": P("tensor", "fsdp"), f"{mlp}Dense_1/bias": P(),
      **{f"{block}LayerNorm_{i}/{part}": P() for i in (0, 1) for part in ("scale", "bias")},
      "head/kernel": P("fsdp", "tensor"), "head/bias": P("tensor")}


def test_megatron_where_heads_or_classes_do_not_divide():
  with pytest.raises(ValueError, match="key/bias .3, 64. doesn't divide by 2"):
    sharding.partition(_shapes("vit", variant="Ti/16"), "megatron", SIZES)
  specs = sharding.partition(_shapes("mixer", classes=7, depth=1, width=256, patch=16,
                                     tokens_mlp_dim=8, channels_mlp_dim=512), "megatron", SIZES)
  assert specs["head"] == {"kernel": P(), "bias": P()}
  assert specs["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"] == P(None, "tensor")


def _state(params, **optimiser):
  tx = optim.build(list(trees.flatten(params)), [(".*", {})], lr=1.0, **optimiser).tx
  return jax.eval_shape(lambda p: step_lib.start(p, tx), params)


def test_moments_lie_with_their_parameters():
  state = _state(_shapes("vit", variant="S/16"))
  specs = sharding.state_partition(state, "megatron", SIZES)
  assert jax.tree.structure(specs) == jax.tree.structure(state)
  assert specs.opt_state[1].mu == specs.opt_state[1].nu == specs.params
  assert specs.step == specs.bad_step == specs.opt_state[1].count == P()


def test_factored_moments_lie_with_what_is_left_of_their_parameters():
  shape = jax.ShapeDtypeStruct
  params = {"wide": shape((400, 800), "float32"), "square": shape((512, 512), "float32"),
            "heads": shape((384, 6, 64), "float32"), "bias": shape((8,), "float32")}
  rules = [("wide|square", "fsdp+tensor(0)"), ("heads", "fsdp+tensor(1)"), ("bias", "tensor(0)")]
  specs = sharding.state_partition(_state(params, name="adafactor"), rules, SIZES)
  assert specs.params["wide"] == specs.params["square"] == P("tensor", "fsdp")
  [factored] = [s for s in jax.tree.leaves(specs.opt_state, is_leaf=lambda x: hasattr(x, "v_row"))
                if hasattr(s, "v_row")]
  [mean] = [s for s in jax.tree.leaves(specs.opt_state, is_leaf=lambda x: hasattr(x, "ema"))
            if hasattr(s, "ema")]
  assert mean.ema == specs.params
  # optax takes the mean over the largest dimension for v_row, over the second largest for v_col.
  assert factored.v_row == {"wide": P("tensor"), "square": P("tensor"), "heads": P("tensor"),
                            "bias": P()}
  assert factored.v_col == {"wide": P("fsdp"), "square": P("fsdp"), "heads": P("fsdp", "tensor"),
                            "bias": P()}
  assert factored.v == {"wide": P(), "square": P(), "heads": P(), "bias": P("tensor")}


@functools.lru_cache
def _compiled(mesh, devices, rules, scan=False, optimiser="sgd"):
  """The pure parts of a program and its jitted init and step, on the first `devices` devices."""
  mesh = sharding.make_mesh(dict(mesh), jax.devices()[:devices])
  parts = program.pure(
      mesh, model={**MODEL, **({"scan": True, "remat": "full"} if scan else {})}, classes=CLASSES,
      image_size=SIZE, optimiser=dict(name=optimiser, clip=None, momentum=None), patterns=[".*"],
      loss="softmax_xent", augment=dict(crop_padding=2, flip=True), mixup=False, accumulate=2,
      sharding=rules)
  everywhere = sharding.replicated(mesh)
  quick = {"xla_backend_optimization_level": 0}
  step = jax.jit(parts.step, in_shardings=(parts.of_run, sharding.batched(mesh), everywhere),
                 out_shardings=(parts.of_run, everywhere), compiler_options=quick)
  return mesh, parts, step


def _train(mesh, devices, rules, steps, lr, **kwargs):
  """Parameters before and after, as NumPy arrays, losses, and the state."""
  mesh, parts, step = _compiled(tuple(mesh.items()), devices, rules, **kwargs)
  rng = np.random.default_rng(0)
  whole = jax.tree.map(lambda p: np.float32(rng.normal(0, 0.2, p.shape)), parts.like.params)
  state = jax.tree.map(lambda x, at: jax.device_put(np.zeros(x.shape, x.dtype), at), parts.like,
                       parts.of_run)
  state = state.replace(params=jax.device_put(whole, parts.of_run.params))
  hparams = {"seed": np.uint32(3), "label_smoothing": np.float32(0.1), "mixup": np.float32(0),
             "optim": {"lr": np.float32(lr), "rule_lr": np.ones(1, np.float32),
                       "rule_wd": np.zeros(1, np.float32)}}
  losses = []
  for _ in range(steps):
    batch = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
             "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
             "slot": np.arange(BATCH, dtype=np.int32)}
    state, measures = step(state, sharding.put_batch(batch, mesh), hparams)
    losses.append(float(measures["loss"]))
  return whole, jax.tree.map(np.asarray, state.params), np.array(losses), state


def _flat(before, after):
  return np.concatenate([np.float64(b - a).ravel() for b, a in zip(
      jax.tree.leaves(before), jax.tree.leaves(after))])


MESHES = {"eight, copied": (COPIED, 8, ()), "fsdp": (FSDP, 8, EVERY),
          "data, fsdp and tensor": (CUBE, 8, CUBE_RULES)}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_changes_neither_gradients_nor_losses(name):
  before, after, expected, _ = _train(ONE, 1, (), 1, lr=1.0)
  one = _flat(before, after)
  before, after, loss, _ = _train(*MESHES[name], 1, lr=1.0)
  assert np.linalg.norm(one) > 0.1
  assert np.linalg.norm(_flat(before, after) - one) <= 1e-5 * np.linalg.norm(one)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  expected = _train(ONE, 1, (), 20, lr=0.03)[2]
  losses = _train(*MESHES[name], 20, lr=0.03)[2]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert np.ptp(losses) > 0.01


def test_devices_exchange_parameters_and_gradients_not_activations():
  mesh, parts, step = _compiled(tuple(FSDP.items()), 8, EVERY, scan=True)
  batch = {"image": (112, SIZE, SIZE, 3), "label": (112,), "slot": (112,)}
  batch = {key: jax.ShapeDtypeStruct(shape, "uint8" if key == "image" else "int32")
           for key, shape in batch.items()}
  hparams = {"seed": np.uint32(3), "label_smoothing": np.float32(0), "mixup": np.float32(0),
             "optim": {"lr": np.float32(1), "rule_lr": np.ones(1, np.float32),
                       "rule_wd": np.zeros(1, np.float32)}}
  text = step.lower(parts.like, batch, hparams).compile().as_text()
  lines = [line for line in text.splitlines()
           if re.search(r" (all-gather|all-reduce|reduce-scatter|all-to-all)(-start)?\(", line)]
  assert len(lines) > 3
  # Two micro-batches of 56 images, 7 a device, of 5 tokens: numbers that no parameter has.
  tokens = re.compile(r"[\[,](7|56|35|280)[\],]")
  assert not [line for line in lines if tokens.search(line.split(" all-")[0])]


@pytest.mark.slow
def test_nor_do_scanned_blocks_on_a_mesh():
  before, after, _, _ = _train(ONE, 1, (), 1, lr=1.0)
  one = _flat(before, after)
  before, after, _, _ = _train(CUBE, 8, CUBE_RULES, 1, lr=1.0, scan=True)
  assert np.linalg.norm(_flat(before, after) - one) <= 1e-5 * np.linalg.norm(one)


def _run_of_two_steps(mesh, rules, seeds, members=None):
  """Losses (2, …) of a program with all that a step may do, and its state."""
  built = program.build(
      model={**MODEL, "dropout": 0.3, "scan": True, "remat": "full"}, classes=CLASSES,
      image_size=SIZE, optimiser=dict(name="adafactor", min_dim_size_to_factor=8),
      patterns=[".*"], loss="softmax_xent", augment=dict(crop_padding=2, flip=True), mixup=True,
      accumulate=2, mesh=mesh, sharding=rules, members=members)
  each = [{"seed": np.uint32(seed), "label_smoothing": np.float32(0.1), "mixup": np.float32(0.3),
           "optim": {"lr": np.float32(3e-3), "rule_lr": np.ones(1, np.float32),
                     "rule_wd": np.full(1, 0.1, np.float32)}} for seed in seeds]
  hparams = each[0] if members is None else jax.tree.map(lambda *x: np.stack(x), *each)
  state = built.init(hparams["seed"])
  rng, losses = np.random.default_rng(0), []
  for _ in range(2):
    batch = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
             "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
             "slot": np.arange(BATCH, dtype=np.int32)}
    state, measures = built.step(state, sharding.put_batch(batch, built.mesh), hparams)
    losses.append([measures["loss"], measures["l2_gradients"], measures["l2_params"]])
  return built, state, np.array(losses)


@pytest.mark.slow
def test_a_population_over_fsdp_is_its_members_on_one_copy():
  """With accumulation, mixup, dropout, scanned and rematerialised blocks and Adafactor."""
  built, state, found = _run_of_two_steps({"data": 2, "fsdp": 4}, EVERY, [3, 4], members=2)
  assert dict(built.mesh.shape) == {"population": 2, "data": 1, "fsdp": 4}
  for i, seed in enumerate([3, 4]):
    np.testing.assert_allclose(
        found[..., i], _run_of_two_steps({"data": 8}, (), [seed])[2], rtol=1e-5)
  assert np.abs(found[..., 0] - found[..., 1]).max() > 1e-3
  members = built.split(state)
  for member in members:
    jax.tree.map(lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim)
                 or pytest.fail(), member, built.like)
  jax.tree.map(np.testing.assert_array_equal, built.stack(members), state)


@pytest.mark.parametrize("name", MESHES)
def test_a_device_holds_what_the_partition_says(name):
  axes, _, rules = MESHES[name]
  _, _, _, state = _train(*MESHES[name], 1, lr=0.03)
  sizes = sharding.axis_sizes(axes, 8)
  specs = sharding.state_partition(state, rules, sizes)

  def expected(leaf, spec):
    return leaf.nbytes // int(np.prod([sizes[axis] for axis in spec if axis]))

  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
  assert held == sum(jax.tree.leaves(jax.tree.map(expected, state, specs)))
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert held == whole if axes == COPIED else held < 0.55 * whole


def test_a_checkpoint_of_one_mesh_is_restored_on_another(tmp_path):
  _, _, _, state = _train(CUBE, 8, CUBE_RULES, 1, lr=0.03)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(state, {"metrics_bytes": 0})
    checkpoints.wait()
    for axes, devices, rules in ((FSDP, 8, EVERY), (ONE, 1, ()), ({"fsdp": 2}, 2, EVERY)):
      mesh = sharding.make_mesh(axes, jax.devices()[:devices])
      specs = sharding.of_tree(mesh, sharding.state_partition(state, rules, mesh.shape))
      like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                          state, specs)
      restored, _ = checkpoints.restore(like)
      jax.tree.map(np.testing.assert_array_equal, restored, state)
      jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim) or pytest.fail(),
                   restored, like)


def test_moments_in_bfloat16_are_restored_bit_by_bit(tmp_path):
  params = {"kernel": jax.random.normal(jax.random.key(0), (64, 40)), "bias": jnp.ones(40)}
  opt = optim.build(list(params), [(".*", {})], lr=0.1, name="adafactor")
  state = step_lib.start(params, opt.tx)
  update = jax.jit(lambda s: opt.tx.update(jax.tree.map(jnp.sin, params), s, params,
                                           hparams=opt.hparams)[1])
  state = state.replace(opt_state=update(update(state.opt_state)))
  assert {str(x.dtype) for x in jax.tree.leaves(state.opt_state)} == {
      "int32", "float32", "bfloat16"}
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(state, {"metrics_bytes": 0})
    checkpoints.wait()
    restored, _ = checkpoints.restore(like)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
  assert restored.opt_state[1][2].ema["kernel"].dtype == jnp.bfloat16


CONFIGS = {"copied": dict(mesh={"data": -1}, sharding=()),
           "fsdp": dict(mesh=FSDP, sharding=EVERY),
           "cube": dict(mesh=CUBE, sharding=CUBE_RULES)}


def _toy(**changes):
  """Plain gradient descent, so that rounding stays as small as it is in the gradients."""
  return toy.config(
      total_steps=4, optim=dict(
          name="sgd", lr=0.05, momentum=0.0, rules=((".*", dict(wd=0.1)),),
          schedule=dict(name="constant")),  # the same whatever the length
      evals=dict(upstream=dict(kind="classification", every=4),
                 probes=dict(kind="fewshot", every=4, tasks=("digits",), shots=(5,), seeds=(0,),
                             layers="all"),
                 geometry=dict(kind="geometry", every=4, examples=32)), **changes)


def _rows(folder):
  return {tuple(row.get(key) for key in ("evaluator", "task", "split", "shots", "layer", "group",
                                         "quantile", "metric", "step")): row["value"]
          for row in records.read_rows(folder) if row["value"] is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "cube"])
def test_every_evaluator_measures_the_same_on_any_mesh(name, tmp_path):
  from big_transfer import train as train_lib  # the command is slow to import
  for which in ("copied", name):
    assert train_lib.train(_toy(**CONFIGS[which]), tmp_path / which)["status"] == "finished"
  expected, found = _rows(tmp_path / "copied"), _rows(tmp_path / name)
  assert set(found) == set(expected) and len(found) > 30
  for key, value in expected.items():
    # An accuracy is a count of examples, two of which may lie as near to the border as rounding.
    tolerance = 2 / 300 if "accuracy" in key else 1e-4 * abs(value) + 1e-5
    assert found[key] == pytest.approx(value, abs=tolerance), key


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh(tmp_path):
  from big_transfer import train as train_lib
  whole = train_lib.train(_toy(**CONFIGS["fsdp"]), tmp_path / "whole")
  begun = configuring.override(_toy(**CONFIGS["fsdp"]), {"total_steps": 2})
  train_lib.train(begun, tmp_path / "parts")
  train_lib.train(_toy(**CONFIGS["cube"]), tmp_path / "parts", allow_changes=True)
  expected, found = _rows(tmp_path / "whole"), _rows(tmp_path / "parts")
  assert whole["status"] == "finished"
  losses = [key for key in expected if "loss" in key]
  assert losses and {key: found[key] for key in losses} == pytest.approx(
      {key: expected[key] for key in losses}, rel=1e-5)


@pytest.mark.parametrize("size, parameters, gib", [
    pytest.param("G", 1.88e9, 0.67, marks=pytest.mark.slow), ("10b", 9.75e9, 0.89)])
def test_a_state_of_billions_of_parameters_is_split_over_256_devices(size, parameters, gib):
  """From shapes alone: nothing of that size is ever allocated."""
  root = pathlib.Path(__file__).parents[2]
  config = configuring.plain(configuring.load(f"{root}/configs/pretrain/vit_g.py:{size}"))
  model = dict(config["model"])
  net = models.build(model.pop("name"), model.pop("variant", None), num_classes=21841, **model)
  params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
  flat = trees.flatten(params)
  assert sum(p.size for p in flat.values()) == pytest.approx(parameters, rel=0.02)
  optimiser = {k: v for k, v in config["optim"].items() if k not in ("schedule", "lr", "rules")}
  tx = optim.build(list(flat), config["optim"]["rules"], lr=1.0, **optimiser).tx
  state = jax.eval_shape(lambda p: step_lib.start(p, tx), params)
  sizes = sharding.axis_sizes(config["mesh"], 256)
  specs = sharding.state_partition(state, config["sharding"], sizes)

  def held(leaf, spec):
    split = [leaf.shape[i] % sizes[axis] for i, axis in enumerate(spec) if axis]
    assert not any(split) and len(spec) <= len(leaf.shape)
    return leaf.size * leaf.dtype.itemsize / np.prod([sizes[axis] for axis in spec if axis])

  total = sum(jax.tree.leaves(jax.tree.map(held, state, specs)))
  assert total / 2**30 == pytest.approx(gib, abs=0.02)
  # All but norms, biases and the like lies on no device whole.
  whole = [name for name, spec in trees.flatten(specs.params).items() if spec == P()]
  assert sum(flat[name].size for name in whole) < 1e-3 * parameters


def test_an_axis_that_splits_nothing_is_refused_and_what_is_split_is_told():
  shapes = {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32),
            "bias": jax.ShapeDtypeStruct((64,), jnp.float32)}
  mesh = sharding.make_mesh({"data": -1, "tensor": 2})
  with pytest.raises(ValueError, match="splits nothing over it.*'megatron'"):
    sharding.check_tensor(sharding.partition(shapes, (), mesh.shape), mesh.shape)
  specs = sharding.partition(shapes, [("kernel", "tensor(1)")], mesh.shape)
  sharding.check_tensor(specs, mesh.shape)
  placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes,
                        sharding.of_tree(mesh, specs))
  assert sharding.summary(placed) == (
      "8 devices: data 4, tensor 2; 1 of 2 tensors are split, 0.00806 of 0.0159 MiB of parameters "
      "lie on each")
