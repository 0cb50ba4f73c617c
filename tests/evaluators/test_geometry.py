"""Margins against Jacobians and closed forms, variances and norms against NumPy."""
import functools
import signal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer import train
from big_transfer import trees
from big_transfer.data import examples
from big_transfer.data import pipeline
from big_transfer.data import transforms
from big_transfer.evaluators import geometry
from big_transfer.models import layers
from big_transfer.models import shapes
from big_transfer.runs import records
from big_transfer.training import objectives
from big_transfer.training import sharding
from tests import toy
from tests.models import test_contract as tiny
from tests.test_train import _signal_at

N, SIZE, CLASSES = 11, 16, 5
ALL = tuple(np.linspace(0, 1, N))  # these quantiles of N margins are the margins, sorted


class Linear(nn.Module):
  """Logits that are affine in the pixels: every margin is a distance to a hyperplane."""
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, images_BHWC, *, train=False, taps=None):
    x = layers.tap(self, "stem", images_BHWC, taps)
    x_BD = x.reshape(len(x), -1)
    logits = layers.Head(self.num_classes, name="head")(x_BD)
    return logits, {"stem": x_BD, "pre_logits": x_BD, "logits": logits}


@functools.cache
def _source(seed=0, n=N, classes=CLASSES):
  rng = np.random.default_rng(seed)
  labels = rng.integers(classes, size=n)
  images = rng.integers(256, size=(n, SIZE, SIZE, 3), dtype=np.uint8)
  return examples.ArraySource({"name": f"noise {seed}"}, labels, classes, lambda: images)


@functools.cache  # by one `apply`, what is compiled serves all tests of a family
def _apply(family, **overrides):
  return Linear().apply if family == "linear" else tiny.build(family, **overrides).apply


def _context(apply, batch_size=4, chosen=None, train_source=None):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])  # compiles faster; the run below has all
  prepare = lambda source: pipeline.prepare(source, SIZE)
  return evaluators.Context(
      apply=apply, put=lambda batch: sharding.put_batch(batch, mesh), check=lambda: None,
      prepare=prepare, layers=(), batch_size=batch_size,
      upstream=evaluators.Upstream("noise", prepare(train_source or _source()), chosen,
                                   prepare(_source(1, 9)), objectives.sigmoid_xent))


def _rows(apply, params, context=None, **kwargs):
  kwargs = {"quantiles": ALL, **kwargs}
  return list(geometry.Geometry(context or _context(apply), **kwargs).rows(params))


def _values(rows, metric, layer):
  return np.array([r["value"] for r in rows if (r["metric"], r["layer"]) == (metric, layer)])


def _linear(seed=0):
  rng = np.random.default_rng(seed)
  return {"head": {"kernel": jnp.asarray(rng.normal(size=(SIZE * SIZE * 3, CLASSES)), jnp.float32),
                   "bias": jnp.asarray(rng.normal(size=CLASSES), jnp.float32)}}


def _pixels(source=None):
  source = source or _source()
  return source.images.reshape(len(source), -1) / 127.5 - 1, source.labels


def _margin(logits_K, jacobian_KD, y):
  """The definition, in float64; returns the competitor too."""
  j = max(set(range(CLASSES)) - {y}, key=lambda c: logits_K[c])
  g_KD = np.asarray(jacobian_KD, np.float64).reshape(CLASSES, -1)
  return (logits_K[y] - logits_K[j]) / np.linalg.norm(g_KD[y] - g_KD[j]), j


@pytest.mark.parametrize("family", [
    "vit", "mixer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gap", "resnet"))])
def test_margins_are_those_of_each_examples_own_jacobian(family):
  """One example at a time, every logit's gradient by itself, the competitor chosen in NumPy."""
  model, params = tiny.build(family), tiny.params(family)
  like = shapes.tap_shapes(model, (1, SIZE, SIZE, 3))
  assert list(like) == ["stem", "block_00", "block_01"]

  def logits(taps, x):
    logits_1K, _ = model.apply({"params": params}, x, taps=taps)
    return logits_1K[0], logits_1K[0]

  jacobian = jax.jit(jax.jacrev(logits, has_aux=True), compiler_options=tiny.QUICK)
  taps = {layer: jnp.zeros(shape) for layer, shape in like.items()}
  kernel_DK = np.asarray(params["head"]["kernel"])
  expected = {layer: [] for layer in (*like, "pre_logits")}
  competitors, images = set(), np.asarray(transforms.to_float(jnp.asarray(_source().images)))
  for x, y in zip(images, _source().labels):
    by_layer, logits_K = jax.device_get(jacobian(taps, jnp.asarray(x[None])))
    by_layer["pre_logits"] = kernel_DK.T
    for layer, jacobian_KD in by_layer.items():
      margin, j = _margin(logits_K, jacobian_KD, y)
      expected[layer].append(margin)
      competitors.add((int(y), j))
  assert len(competitors) > 2 and min(expected["stem"]) < 0 < max(expected["stem"])
  rows = _rows(_apply(family), params)
  for layer, margins in expected.items():
    # A gap is a difference of logits of some units, each exact to 1e-6 or so.
    np.testing.assert_allclose(_values(rows, "margin", layer), sorted(margins), rtol=1e-4,
                               atol=1e-5 * np.abs(margins).max())
  assert [r["layer"] for r in rows if r["metric"] == "total_variance"] == list(expected)


def test_margin_at_the_last_block_without_taps():
  """What follows the last block, written out, differentiated by its input."""
  params, images = tiny.params("gap"), transforms.to_float(jnp.asarray(_source().images))
  last = tiny.compiled("gap")(params, images, None)[1]["block_01"]
  after = functools.partial(tiny.after_the_last_block, "gap", params)
  logits_BK = np.asarray(after(last))
  jacobians = jax.jit(jax.vmap(jax.jacrev(lambda x: after(x[None])[0])),
                      compiler_options=tiny.QUICK)(last)
  margins = [_margin(*each)[0] for each in zip(logits_BK, jacobians, _source().labels)]
  rows = _rows(_apply("gap"), params)
  # `after_the_last_block` takes Flax's norms, which compute a variance in another order.
  np.testing.assert_allclose(_values(rows, "margin", "block_01"), sorted(margins), rtol=1e-3,
                             atol=1e-4 * np.abs(margins).max())


def test_a_linear_model_is_as_far_from_its_boundary_as_geometry_says():
  params = _linear()
  x, y = _pixels()
  kernel, bias = (np.asarray(params["head"][k], np.float64) for k in ("kernel", "bias"))
  distances = []
  for x_D, label in zip(x, y):
    logits = x_D @ kernel + bias
    j = np.argmax(np.where(np.arange(CLASSES) == label, -np.inf, logits))
    normal = kernel[:, label] - kernel[:, j]
    distance = (logits[label] - logits[j]) / np.linalg.norm(normal)
    moved = (x_D - distance * normal / np.linalg.norm(normal)) @ kernel + bias
    assert moved[label] == pytest.approx(moved[j], abs=1e-9)  # there, the two draw level
    distances.append(distance)
  rows = _rows(_apply("linear"), params)
  for layer in "stem", "pre_logits":
    np.testing.assert_allclose(_values(rows, "margin", layer), sorted(distances), rtol=1e-4)
    variance = _values(rows, "total_variance", layer)
    np.testing.assert_allclose(variance, x.var(axis=0).sum(), rtol=1e-6)
    np.testing.assert_allclose(_values(rows, "margin_normalised", layer),
                               np.sort(distances) / variance ** 0.5, rtol=1e-4)
  some = _rows(_apply("linear"), params, quantiles=(0.9, 0.1, 0.33))
  assert [r["quantile"] for r in some if r["metric"] == "margin"] == [0.1, 0.33, 0.9] * 2
  np.testing.assert_allclose(_values(some, "margin", "stem"),
                             np.quantile(distances, [0.1, 0.33, 0.9]), rtol=1e-4)


def test_batches_and_padding_change_nothing():
  apply, params = _apply("vit"), tiny.params("vit")
  one, other = (_rows(apply, params, _context(apply, batch_size)) for batch_size in (4, 11))
  assert [{**a, "value": 0} for a in one] == [{**b, "value": 0} for b in other]
  np.testing.assert_allclose([a["value"] for a in one], [b["value"] for b in other], rtol=1e-4,
                             atol=1e-5)


def test_total_variance_of_activations():
  params = tiny.params("mixer")
  images = transforms.to_float(jnp.asarray(_source().images))
  (_, out), unpooled = tiny.compiled("mixer")(params, images, None)
  rows = _rows(_apply("mixer"), params)
  for layer, x in {**unpooled, "pre_logits": out["pre_logits"]}.items():
    x_ND = np.asarray(x, np.float64).reshape(N, -1)
    np.testing.assert_allclose(_values(rows, "total_variance", layer),
                               np.trace(np.cov(x_ND.T, bias=True)), rtol=1e-5)


def test_a_mean_far_from_zero_costs_the_variance_no_digits():
  """The sum of squares less the square of the sum would be wrong by half here in float32."""
  rng = np.random.default_rng(0)
  x_ND = rng.normal(size=(100, 50)).astype(np.float32) + np.linspace(0, 3000, 50, dtype=np.float32)
  variance = geometry._Variance()
  for start in range(0, 100, 16):
    batch = np.zeros((16, 50), np.float32)
    part = x_ND[start:start + 16]
    batch[:len(part)] = part
    mask = jnp.asarray(np.arange(16) < len(part), jnp.float32)
    found = jax.device_get(geometry._moments(jnp.asarray(batch), mask))
    variance.add(len(part), found["mean"], found["spread"])
  # A batch's mean is exact to 1e-4 (float32 at 3000); times its distance from the mean of all, a
  # quarter of a deviation, that is some 1e-5 of a variance of 1, of either sign over the columns.
  assert variance.value() == pytest.approx(x_ND.astype(np.float64).var(axis=0).sum(), rel=1e-5)


@pytest.mark.parametrize("family", ["gap", "resnet"])
def test_a_larger_head_is_no_larger_margin(family):
  """Its logits and their gradients grow alike; the head's norm alone tells."""
  apply, params = _apply(family), tiny.params(family)
  larger = {**params, "head": {k: 10 * v for k, v in params["head"].items()}}
  one, other = _rows(apply, params), _rows(apply, larger)
  for a, b in zip(one, other):
    factor = 10 if a["layer"] == "head" else 1
    assert b["value"] == pytest.approx(factor * a["value"], rel=1e-4, abs=1e-5), a


def test_bfloat16_margins_are_those_of_float32_to_its_digits():
  params = tiny.params("vit")
  exact = _rows(_apply("vit"), params)
  rough = _rows(_apply("vit", dtype="bfloat16"), params)
  for layer in "stem", "block_00", "block_01", "pre_logits":
    expected, found = (_values(rows, "margin", layer) for rows in (exact, rough))
    # 8 bits a rounding, over two blocks and their gradients.
    np.testing.assert_allclose(found, expected, atol=0.08 * np.abs(expected).max())
    assert not np.array_equal(found, found.astype(jnp.bfloat16))
    np.testing.assert_allclose(*(_values(r, "total_variance", layer) for r in (rough, exact)),
                               rtol=0.05)


def test_gradients_too_small_to_square_in_float32_still_have_a_norm():
  g = jnp.asarray([[3e-25, 4e-25], [0.0, 0.0], [3e25, -4e25]])
  np.testing.assert_allclose(geometry._norms(g), [5e-25, 0, 5e25], rtol=1e-6)


@pytest.mark.parametrize("family", ["vit", "mixer", "resnet"])
def test_norms_are_those_of_numpy_by_layer_and_group(family):
  params = tiny.params(family)
  rows = [r for r in _rows(_apply(family), params) if r["metric"] == "l2_norm"]
  found = {(r["layer"], r["group"]): r["value"] for r in rows}
  assert len(found) == len(rows) and not {"split", "seed", "quantile"} & set().union(*rows)
  flat = {k: np.asarray(v, np.float64) for k, v in trees.flatten(params).items()}

  def norm(start):
    chosen = [v.ravel() for k, v in flat.items() if k.startswith(start)]
    return np.linalg.norm(np.concatenate(chosen))

  block, group, stem = {
      "vit": ("Transformer/encoderblock_1", "MlpBlock_0", None),
      "mixer": ("MixerBlock_1", "token_mixing", "stem"),
      "resnet": ("block2/unit01", "conv_proj", "root_block")}[family]
  assert found["block_01", "all"] == pytest.approx(norm(f"{block}/"), rel=1e-6)
  assert found["block_01", group] == pytest.approx(norm(f"{block}/{group}/"), rel=1e-6)
  assert found["head", "kernel"] == pytest.approx(norm("head/kernel"), rel=1e-6)
  if stem:
    assert found["stem", "all"] == pytest.approx(norm(f"{stem}/"), rel=1e-6)
  everything = sum(v ** 2 for (_, g), v in found.items() if g == "all") ** 0.5
  assert everything == pytest.approx(norm(""), rel=1e-6)
  by_group = sum(v ** 2 for (_, g), v in found.items() if g != "all") ** 0.5
  assert by_group == pytest.approx(everything, rel=1e-6)


def test_a_head_of_zeros_puts_every_example_on_the_boundary():
  params = {"head": jax.tree.map(jnp.zeros_like, _linear()["head"])}
  rows = _rows(_apply("linear"), params)
  assert all(r["status"] == "ok" and np.isfinite(r["value"]) for r in rows)
  for metric in "margin", "margin_normalised":
    np.testing.assert_array_equal(_values(rows, metric, "pre_logits"), np.zeros(N))


def test_a_gap_that_nothing_can_close_has_no_margin_but_a_reason(tmp_path):
  bias = jnp.arange(CLASSES, dtype=jnp.float32)
  params = {"head": {"kernel": _linear()["head"]["kernel"] * 0, "bias": bias}}
  rows = _rows(_apply("linear"), params)
  margins = [r for r in rows if r["metric"].startswith("margin")]
  assert len(margins) == 4 * N
  for row in margins:
    assert (row["value"], row["status"]) == (None, "non-finite")
    assert row["reason"] == f"{N} of {N} examples have a gradient of zero, yet no gap of zero"
  with records.Record(tmp_path) as record:
    record.append({"step": 0, **row} for row in rows)
  assert len(records.read_rows(tmp_path)) == len(rows)


def test_logits_that_are_not_finite_have_no_margin_and_say_so():
  params = {"head": {**_linear()["head"], "bias": jnp.full(CLASSES, jnp.nan)}}
  rows = [r for r in _rows(_apply("linear"), params) if r["metric"].startswith("margin")]
  assert {(r["value"], r["status"], r["reason"]) for r in rows} == {(
      None, "non-finite", f"{N} of {N} examples have logits or gradients that are not finite")}


def test_activations_that_are_all_alike_have_no_normalised_margin():
  images = np.full((N, SIZE, SIZE, 3), 255, np.uint8)  # 1.0, whose mean is exact
  source = examples.ArraySource({"name": "white"}, _source().labels, CLASSES, lambda: images)
  rows = _rows(_apply("linear"), _linear(), _context(_apply("linear"), train_source=source))
  assert all(_values(rows, "total_variance", "stem") == 0)
  assert np.isfinite(_values(rows, "margin", "stem")).all()
  reasons = {r.get("reason") for r in rows if r["metric"] == "margin_normalised"}
  assert reasons == {"the activations' total variance is zero"}


def test_the_examples_are_a_seeds_draw_from_those_trained_on():
  apply, params = _apply("linear"), _linear()
  chosen = np.array([0, 2, 3, 7, 9, 10])
  x, _ = _pixels()

  def variance(context, **kwargs):
    rows = _rows(apply, params, context, quantiles=(0.5,), **kwargs)
    assert len({(r["split"], r["seed"]) for r in rows if "split" in r}) == 1
    used = {r["examples_used"] for r in rows if "split" in r}.pop()
    return used, float(_values(rows, "total_variance", "stem")[0])

  subset = _context(apply, chosen=chosen)
  assert variance(subset) == (6, pytest.approx(x[chosen].var(axis=0).sum(), rel=1e-6))
  assert variance(subset, examples=4) == variance(subset, examples=4)
  assert len({variance(subset, examples=4, seed=seed)[1] for seed in range(4)}) > 1
  assert set(geometry._draw(chosen, 4, 0)) < set(geometry._draw(chosen, 5, 0)) < set(chosen)
  assert variance(subset, split="test") == (9, pytest.approx(
      _pixels(_source(1, 9))[0].var(axis=0).sum(), rel=1e-6))


@pytest.mark.parametrize("arguments, says", [
    ({"split": "validation"}, "split is 'validation': expected 'train' or 'test'"),
    ({"examples": 1}, "examples is 1: expected a whole number, at least 2"),
    ({"examples": 2.5}, "examples is 2.5"), ({"seed": -1}, "seed is -1"),
    ({"seed": True}, "seed is True"), ({"quantiles": 0.5}, "quantiles is 0.5: expected a list"),
    ({"quantiles": ()}, r"quantiles is \(\)"), ({"quantiles": (50,)}, "number in \\[0, 1\\]"),
    ({"quantiles": ("a",)}, "number in \\[0, 1\\]")])
def test_bad_arguments_are_named(arguments, says):
  with pytest.raises(ValueError, match=f"geometry {says}" if "is" in says else says):
    geometry.Geometry(_context(_apply("linear")), **arguments)


def test_one_class_has_no_competitor():
  with pytest.raises(ValueError, match="noise has 1 class; a margin takes a competitor"):
    geometry.Geometry(_context(_apply("linear"), train_source=_source(2, 9, 1)))


@pytest.mark.slow
def test_geometry_in_a_run_that_is_stopped_and_goes_on(tmp_path, monkeypatch):
  config = toy.config(total_steps=4, evals=dict(
      shape=dict(kind="geometry", every=2, first=True, examples=20, quantiles=(0.5,))))
  train.train(config, tmp_path / "one")
  with monkeypatch.context() as patch:
    _signal_at(patch, signal.SIGTERM, 3)
    assert train.train(config, tmp_path / "two")["status"] == "interrupted"
  assert train.train(config, tmp_path / "two")["status"] == "finished"
  one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
  assert one == two
  rows = [r for r in records.read_rows(tmp_path / "one") if r["evaluator"] == "geometry"]
  assert {r["step"] for r in rows} == {0, 2, 4}
  assert {r["task"] for r in rows} == {"toy"} and {r["setting"] for r in rows} == {"upstream"}
  medians = [r for r in rows if r["metric"] == "margin"]
  assert [r["layer"] for r in medians] == ["stem", "block_00", "pre_logits"] * 3
  assert all(r["value"] == 0 for r in medians[:3]) and all(r["value"] for r in medians[3:])
