"""One forward contract: the same keys, pooled as said, taps, dtypes, dropout, bad input."""
import functools

from big_transfer import models
from big_transfer.models import shapes
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

TINY = {
    "vit": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch": 8},
    "gap": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch": 8, "pool": "gap"},
    "mixer": {"width": 16, "depth": 2, "tokens_mlp_dim": 12, "channels_mlp_dim": 24, "patch": 8},
    "resnet": {"depths": (1, 1), "width": 0.125, "root_kernel": 3, "root_stride": 2,
               "root_pool": False}}
FAMILIES = tuple(TINY)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on


def build(family, **overrides):
  name = "vit" if family == "gap" else family
  return models.build(name, **{"num_classes": 5, **TINY[family], **overrides})


def images(seed=0, batch=4, size=16):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (batch, size, size, 3)), jnp.float32)


@functools.lru_cache
def params(family):
  """Parameters far from their initial values, so that no zero hides a mistake."""
  shape = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  tree = jax.eval_shape(build(family).init, jax.random.key(0), shape)["params"]
  rng = np.random.default_rng(1)
  return jax.tree_util.tree_map_with_path(
      lambda path, p: jnp.asarray(rng.normal(path[-1].key == "scale", 0.2, p.shape), p.dtype), tree)


@functools.lru_cache
def compiled(family, **overrides):
  """The forward pass with what it sows: (params, images, taps) -> ((logits, out), unpooled)."""
  model = build(family, **overrides)

  def apply(p, x, taps):
    result, sown = model.apply({"params": p}, x, taps=taps, mutable=["intermediates"])
    sown = traverse_util.flatten_dict(sown["intermediates"])
    return result, {path[-1].removeprefix("unpooled_"): value[0] for path, value in sown.items()}
  return jax.jit(apply, compiler_options=QUICK)


def forward(family, p=None, x=None, **overrides):
  p, x = params(family) if p is None else p, images() if x is None else x
  return compiled(family, **overrides)(p, x, None)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_of_one_kind(family):
  logits, out = forward(family)
  assert sorted(out) == ["block_00", "block_01", "logits", "pre_logits", "stem"]
  assert all(value.ndim == 2 and value.shape[0] == 4 for value in out.values())
  assert all(value.dtype == jnp.float32 for value in out.values())
  head = params(family)["head"]
  expected = np.asarray(out["pre_logits"]) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(logits, out["logits"])


@pytest.mark.parametrize("family", FAMILIES)
def test_stem_and_blocks_are_pooled_before_the_final_norm(family):
  (_, out), unpooled = compiled(family)(params(family), images(), None)
  assert set(unpooled) == {"stem", "block_00", "block_01"}
  for name, x in unpooled.items():
    expected = x[:, 0] if family == "vit" else x.reshape(4, -1, x.shape[-1]).mean(axis=1)
    np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-6)


def after_the_last_block(family, p, x):
  """What stands between the last block's unpooled output and the logits, written out."""
  if family == "resnet":
    norm = nn.GroupNorm(num_groups=32, epsilon=1e-5)
    pre_logits = nn.relu(norm.apply({"params": p["norm-pre-head"]}, x)).mean(axis=(1, 2))
  else:
    name, tree = ("pre_head_layer_norm", p) if family == "mixer" else (
        "encoder_norm", p["Transformer"])
    x = nn.LayerNorm().apply({"params": tree[name]}, x)
    pre_logits = x[:, 0] if family == "vit" else x.mean(axis=1)
  return pre_logits @ p["head"]["kernel"] + p["head"]["bias"][None]


@pytest.mark.parametrize("family", FAMILIES)
def test_tap_gradient_equals_direct_gradient(family):
  model, p, x = build(family), params(family), images()
  taps = {name: jnp.zeros(shape) for name, shape in shapes.tap_shapes(model, x.shape).items()}
  weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5)), jnp.float32)

  def loss(taps, p):
    return (model.apply({"params": p}, x, taps=taps)[0] * weights).sum()

  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradients(taps, p, last):
    direct = jax.grad(lambda h: (after_the_last_block(family, p, h) * weights).sum())(last)
    return *jax.grad(loss, argnums=(0, 1))(taps, p), direct

  last = compiled(family)(p, x, None)[1]["block_01"]
  by_tap, by_param, direct = gradients(taps, p, last)
  np.testing.assert_allclose(by_tap["block_01"], direct, rtol=1e-3, atol=1e-5)
  if family in ("gap", "mixer"):  # the stem's bias is added to every position, as its tap is
    bias = by_param["embedding" if family == "gap" else "stem"]["bias"]
    np.testing.assert_allclose(by_tap["stem"].sum(axis=(0, 1)), bias, rtol=1e-3, atol=1e-5)
  assert all(np.abs(g).max() > 0 for g in by_tap.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_computes_close_to_float32(family):
  logits, out = forward(family, dtype="bfloat16")
  reference, expected = forward(family)
  assert all(value.dtype == jnp.float32 for value in out.values())
  assert not np.array_equal(logits, reference)
  for name in out:
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(out[name], expected[name], atol=0.08 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_at_the_head_bias_with_float32_parameters(family):
  model = build(family, head_bias=-10.0, dtype="bfloat16")
  init = jax.jit(lambda rng: model.init(rng, images())["params"]["head"], compiler_options=QUICK)
  abstract = jax.eval_shape(model.init, jax.random.key(0), images())["params"]
  assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
  logits, _ = forward(family, {**params(family), "head": init(jax.random.key(0))},
                      dtype="bfloat16")
  np.testing.assert_array_equal(logits, np.full((4, 5), -10.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_does_not_see_its_neighbours(family):
  x = images()
  np.testing.assert_allclose(
      forward(family, x=x[::-1])[0][::-1], forward(family, x=x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "mixer", "resnet"])
def test_a_sharded_batch_gives_the_same_logits(family):
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  logits = forward(family, x=jax.device_put(images(), sharding))[0]
  np.testing.assert_allclose(logits, forward(family)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_dropout_is_drawn_in_training_only(family):
  model, p = build(family, dropout=0.5), {"params": params(family)}
  apply = jax.jit(lambda seed, train: model.apply(
      p, images(), train=train, rngs={"dropout": jax.random.key(seed)})[0],
                  static_argnums=1, compiler_options=QUICK)
  np.testing.assert_array_equal(apply(0, True), apply(0, True))
  assert not np.allclose(apply(0, True), apply(1, True))
  np.testing.assert_allclose(apply(0, False), forward(family)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments, says", [
    ({"name": "vti"}, "did you mean 'vit'"),
    ({"widht": 8}, "did you mean 'width'"),
    ({"heads": 3}, "heads=2 would do"),
    ({"depth": 0}, "depth must be a whole number"),
    ({"width": 16.5}, "width must be a whole number"),
    ({"pool": "map"}, "one of tok, gap"),
    ({"representation_size": "big"}, "'auto'"),
    ({"dropout": 1.0}, "dropout must be a number in"),
    ({"dtype": "bf16"}, "did you mean 'bfloat16'"),
    ({"num_classes": 0}, "num_classes must be"),
    ({"attention": "flash"}, "attention must be one of"),
    ({"posemb": "sincos2d", "width": 18}, "multiple of 4"),
    ({"name": "resnet", "depths": ()}, "takes no argument 'width'|depths")])
def test_bad_arguments_are_named(arguments, says):
  given = {"name": "vit", "num_classes": 5, **TINY["vit"], **arguments}
  if given["name"] == "resnet":
    given = {"name": "resnet", "num_classes": 5, "depths": arguments["depths"]}
  with pytest.raises(ValueError, match=says):
    models.build(**given)


def test_missing_arguments_are_named():
  with pytest.raises(ValueError, match="needs depth, heads, mlp_dim, patch"):
    models.build("vit", width=64, num_classes=5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("x, says", [
    (jnp.zeros((16, 16, 3)), "batch of shape"), (jnp.zeros((4, 16, 16, 3), "uint8"), "floats")])
def test_bad_images_are_named(family, x, says):
  with pytest.raises(ValueError, match=says):
    jax.eval_shape(build(family).apply, {"params": params(family)}, x)


@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_images_that_do_not_divide_into_patches(family):
  with pytest.raises(ValueError, match="patches of 8 pixels"):
    jax.eval_shape(build(family).apply, {"params": params(family)}, jnp.zeros((1, 20, 16, 3)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["block_02", "blok_00", "pre_logits"])
def test_unknown_tap(family, name):
  with pytest.raises(ValueError, match=f"no such place {name}"):
    jax.eval_shape(functools.partial(build(family).apply, taps={name: jnp.zeros(3)}),
                   {"params": params(family)}, images())


@pytest.mark.parametrize("family", FAMILIES)
def test_tap_of_the_wrong_shape(family):
  with pytest.raises(ValueError, match="block_00.*expected shape"):
    jax.eval_shape(functools.partial(build(family).apply, taps={"block_00": jnp.zeros(3)}),
                   {"params": params(family)}, images())


def test_labels():
  def label(name, variant=None, **kw):
    return models.label(name, variant, models.build(name, variant, num_classes=5, **kw))
  assert label("vit", "Ti/16") == "ViT-Ti/16"
  assert label("vit", "Ti/16", depth=4) == "ViT 192x4/16"
  assert label("mixer", "B/32") == "Mixer-B/32"
  assert label("mixer", **TINY["mixer"]) == "Mixer 16x2/8"
  assert label("resnet", "R50x3") == "BiT-R50x3"
  assert label("resnet", depths=[1, 2], width=0.25) == "BiT 1-2 x0.25"
