"""Memory of a step: exact for the state, near the compiler's own analysis for the peak."""
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer.training import liveness
from big_transfer.training import memory
from big_transfer.training import program as program_lib
from big_transfer.training import sharding
from big_transfer.training import splits

MODELS = {
    "vit": dict(name="vit", width=64, depth=4, heads=4, mlp_dim=256, patch=8, pool="gap"),
    "mixer": dict(name="mixer", width=64, depth=4, tokens_mlp_dim=32, channels_mlp_dim=256,
                  patch=8),
    "resnet": dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3, root_stride=2,
                   root_pool=True),
    "wide": dict(name="vit", width=512, depth=2, heads=8, mlp_dim=2048, patch=8, pool="tok")}
SIZE, CLASSES, RULES = 32, 64, ("head/.*", ".*")


def _program(model, mesh, accumulate=1, optimiser="adamw", rules=(), frozen=(), **more):
  """The pure parts of a program on an abstract mesh, and its compiled one on real devices."""
  arguments = dict(
      model={**MODELS[model], **more}, classes=CLASSES, image_size=SIZE,
      optimiser=dict(name=optimiser), patterns=RULES, loss="softmax_xent",
      augment=dict(crop_padding=2, flip=False), mixup=False, accumulate=accumulate, sharding=rules,
      frozen=frozen)
  sizes = sharding.axis_sizes(mesh, math.prod(mesh.values()))
  abstract = jax.sharding.AbstractMesh(
      tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))
  return arguments, sizes, program_lib.pure(abstract, **arguments)


def _estimated(model, batch, mesh, **settings):
  _, sizes, parts = _program(model, mesh, **settings)
  shards = sizes.get("data", 1) * sizes.get("fsdp", 1)
  return memory.of_step(parts.step, parts.like, parts.of_run,
                        memory.batch_shapes(batch // shards, SIZE),
                        memory.hparam_shapes(len(RULES)), sizes, cpu=True)


def _program_here(monkeypatch, model, batch, mesh, **settings):
  arguments, sizes, _ = _program(model, mesh, **settings)
  devices = jax.devices()[:math.prod(sizes.values())]
  monkeypatch.setattr(sharding, "make_mesh", functools.partial(
      lambda make, axes, members: make(axes, devices, members), sharding.make_mesh))
  program_lib._build.cache_clear()
  program = program_lib.build(mesh=mesh, **arguments)
  program_lib._build.cache_clear()
  return program.step, (program.like, memory.batch_shapes(batch, SIZE),
                        memory.hparam_shapes(len(RULES)))


def _ratio(monkeypatch, model, batch, mesh, **settings):
  step, shapes = _program_here(monkeypatch, model, batch, mesh, **settings)
  return _estimated(model, batch, mesh, **settings).total / memory.compiled(step, *shapes).total


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("mesh, frozen", [
    ({"data": 1}, ()), ({"data": 2, "fsdp": 4}, ()), ({"fsdp": 4, "tensor": 2}, ()),
    ({"data": 2, "fsdp": 4}, (1,))])
def test_state_is_exactly_that_of_real_arrays(optimiser, mesh, frozen):
  rules = "megatron" if "tensor" in mesh else ()
  _, sizes, parts = _program("wide", mesh, optimiser=optimiser, rules=rules, frozen=frozen)
  if frozen:
    moments = sum(x.size for x in jax.tree.leaves(parts.like.opt_state))
    assert moments <= 2 * (512 + 1) * CLASSES + 1, "of the head alone, and a counter"
  devices = jax.devices()[:math.prod(sizes.values())]
  real = sharding.make_mesh(mesh, devices)
  at = sharding.of_tree(real, sharding.state_partition(parts.like, rules, real.shape))
  arrays = jax.tree.map(lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s), parts.like, at)
  held = dict.fromkeys(devices, 0)
  for leaf in jax.tree.leaves(arrays):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  assert set(held.values()) == {memory.shard_bytes(parts.like, parts.of_run)}
  if "fsdp" in mesh:  # or else nothing above was split
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.like))
    assert max(held.values()) < .5 * whole


# `plan` promises 25 %; over 58 programs it was 0.83 to 1.13 of the compiler's.
def _near(ratio):
  return .8 < ratio < 1.2


@pytest.mark.slow  # compiles large programs
def test_peak_is_near_the_compilers_and_micro_batches_gather_in_their_loop(monkeypatch):
  case = ("wide", 16, {"fsdp": 8})
  step, shapes = _program_here(monkeypatch, *case, accumulate=2)
  compiled = step.lower(*shapes).compile()
  found = compiled.memory_analysis()  # as `memory.compiled`, without compiling twice
  total = (found.argument_size_in_bytes + found.temp_size_in_bytes
           + found.output_size_in_bytes - found.alias_size_in_bytes)
  assert _near(_estimated(*case, accumulate=2).total / total)
  loops, entry = re.split(r"^ENTRY ", compiled.as_text(), flags=re.M)
  assert "all-gather(" in loops and "all-gather(" not in entry


@pytest.mark.slow  # compiles large programs
def test_a_frozen_body_costs_its_forward_pass_alone(monkeypatch):
  """No reverse pass, no gradients and no residuals: XLA's own count of what is done and held."""
  found = {}
  for frozen in ((), (1,)):
    with monkeypatch.context() as patch:
      step, shapes = _program_here(patch, "vit", 64, {"data": 1}, frozen=frozen)
    compiled = step.lower(*shapes).compile()
    memory_ = compiled.memory_analysis()
    found[frozen] = compiled.cost_analysis()["flops"], memory_.temp_size_in_bytes
  forward = 64 * program_lib.network(
      model=MODELS["vit"], classes=CLASSES, image_size=SIZE).flops
  assert 2.7 < found[()][0] / forward < 3.5 and 0.9 < found[1,][0] / forward < 1.2
  assert found[1,][1] < 0.5 * found[()][1]
  estimated = _estimated("vit", 64, {"data": 1}, frozen=(1,)).total
  assert estimated < 0.7 * _estimated("vit", 64, {"data": 1}).total


@pytest.mark.slow
@pytest.mark.parametrize("model,batch,mesh,settings", [
    ("vit", 512, {"data": 1}, {}),
    ("mixer", 128, {"data": 8}, dict(accumulate=2, dtype="bfloat16")),
    ("wide", 32, {"data": 1}, dict(optimiser="adafactor", remat="full")),
    ("wide", 64, {"fsdp": 8}, dict(accumulate=4, scan=True, remat="full")),
    ("wide", 32, {"fsdp": 4, "tensor": 2}, dict(accumulate=2, rules="megatron")),
    ("resnet", 32, {"data": 1}, dict(remat="full")), ("resnet", 512, {"data": 1}, {}),
    ("resnet", 256, {"data": 1}, dict(dtype="bfloat16")),
    ("resnet", 120, {"data": 1}, dict(accumulate=3, optimiser="sgd"))])
def test_peak_is_near_the_compilers(monkeypatch, model, batch, mesh, settings):
  assert _near(_ratio(monkeypatch, model, batch, mesh, **settings))


def _peak(function, *shapes, in_place=0, cpu=False):
  jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr
  return liveness.peak(jaxpr, [splits.whole(s) for s in shapes], {}, in_place=in_place, cpu=cpu)


def test_a_chain_of_elementwise_operations_makes_one_array():
  assert _peak(lambda x: jnp.abs(2 * x + 1) - 3, (100,)).bytes == 400


def test_an_output_written_over_an_input_takes_nothing():
  assert _peak(lambda x: x + 1, (100,), in_place=1).bytes == 0


def test_what_is_dead_is_not_counted():
  def function(x):
    unused = x @ x
    y = (x @ x.T) @ x  # the first product dies with the second
    return y @ x, unused.shape[0]

  # Two products are alive at once, and what is neither (10, 10) nor an array counts for 4 bytes.
  assert _peak(function, (10, 10)).bytes <= 3 * 400


def test_what_a_cpu_computes_again_keeps_what_it_was_made_of():
  def function(x, w, v, u):
    total = x @ w + x @ v  # read by a product through a reshape, and by the sum at the end
    return total + (total.reshape(20, 5) @ u).reshape(10, 10)

  shapes = (10, 10), (10, 10), (10, 10), (5, 5)
  # The sum and the product of it are alive at once; on a CPU the addends are too.
  assert _peak(function, *shapes).bytes == 2 * 400
  assert _peak(function, *shapes, cpu=True).bytes == 4 * 400


def test_a_sum_of_products_on_a_cpu_keeps_no_factor_that_repeats():
  def function(x, w, v):
    scale = jnp.exp(v)[None]  # the same all along what is summed first, and not what second
    return lambda axis: ((x @ w) * scale).sum(axis)

  def bytes_of(axis):
    return _peak(lambda *arrays: function(*arrays)(axis), (10, 10), (10, 10), (10,), cpu=True).bytes

  assert bytes_of(0) <= 400 + 2 * 40  # exp(v), and a product that is multiplied where it lies
  assert bytes_of(1) == 2 * 400 + 40


def test_residuals_grow_with_depth_unless_rematerialised():
  def loss(x, w, depth, remat):
    block = lambda y: jnp.tanh(y @ w)
    block = jax.checkpoint(block) if remat else block
    for _ in range(depth):
      y = x = block(x)
    return y.sum()

  def peak(depth, remat):
    gradient = jax.grad(functools.partial(loss, depth=depth, remat=remat), argnums=1)
    return _peak(gradient, (1000, 10), (10, 10)).bytes

  unit = 1000 * 10 * 4
  kept = [peak(depth, False) / unit for depth in (4, 8)]
  assert 3.5 < kept[1] - kept[0] < 4.5  # tanh's result a block
  assert peak(8, True) <= peak(8, False)


def test_a_loop_stacks_what_its_reverse_pass_reads():
  def loss(x, w):
    return jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, None, length=6)[0].sum()

  unit = 1000 * 10 * 4
  found = _peak(jax.grad(loss, argnums=1), (1000, 10), (10, 10)).bytes / unit
  assert 12 < found < 21  # two or three arrays an iteration, and what one of them holds at once


def test_a_split_follows_products_reshapes_and_sums():
  sizes = {"fsdp": 4, "tensor": 2}
  split = splits.of_spec(jax.sharding.PartitionSpec("fsdp", "tensor"), (8, 16))

  def function(w, x):
    y = x @ w  # whole along fsdp, in parts along tensor
    return y.reshape(5, 4, 4), w * 2

  jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32)
                                     for s in ((8, 16), (5, 8)))).jaxpr
  found = liveness.peak(jaxpr, [split, splits.whole((5, 8))], sizes, in_place=0)
  gathered, product, doubled = 8 * 16 // 2, 5 * 16 // 2, 8 * 16 // 8
  assert found.bytes == 4 * max(gathered + product, product + doubled)
  assert splits.bytes_of((8, 16), 4, split, sizes) == 4 * doubled
