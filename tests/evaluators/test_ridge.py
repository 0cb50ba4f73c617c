"""Closed-form probes against a direct solve in float64."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer.evaluators import ridge


def _features(n, d, classes, m, seed=0):
  """Correlated features with means far from zero: where float32 has it hard."""
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(d, d)) * np.exp(-6 * np.arange(d) / d)[None]
  centres = rng.normal(size=(classes, d)) @ mix
  y, t = np.arange(n) % classes, rng.integers(0, classes, m)
  draw = lambda labels: (centres[labels] + 2 * rng.normal(size=(len(labels), d)) @ mix + 5)
  return draw(y).astype(np.float32), y, draw(t).astype(np.float32), t


def _oracle(x, y, test, l2, classes):
  """The protocol word for word, in float64: constant feature 100 and all."""
  x, test = x.astype(np.float64), test.astype(np.float64)
  mean, std = x.mean(0), x.std(0) + 1e-5
  x = np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], 1)
  test = np.concatenate([(test - mean) / std, np.full((len(test), 1), 100.0)], 1)
  w = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ (2 * np.eye(classes)[y] - 1))
  return test @ w


def _scores(x, y, test, l2s, classes):
  """As `correct` makes them, one array (M, C) for each strength."""
  with jax.default_matmul_precision("highest"):
    x, test = ridge.centred(x, test)
    weights, biases = jax.jit(lambda x: ridge.fit(x, y, jnp.array(l2s), classes))(x)
    return np.asarray(test[None] @ weights + biases[:, None])


L2S = (1e-3, 1.0, 1024.0, 1e6)


@pytest.mark.parametrize("n, d, classes, offset", [
    (250, 64, 10, 0), (50, 192, 10, 0), (10, 64, 10, 0), (600, 192, 60, 0),
    (250, 64, 10, 300), (50, 192, 10, 300)])
def test_scores_are_those_of_a_direct_solve(n, d, classes, offset):
  x, y, test, _ = _features(n, d, classes, 2000)
  x, test = x + np.float32(offset), test + np.float32(offset)
  # Measured: 6e-5, 8e-6, 3e-7 and 7e-8. The smaller the strength, the worse the condition.
  for scores, l2, tolerance in zip(_scores(x, y, test, L2S, classes), L2S,
                                   (5e-4, 5e-5, 5e-6, 1e-6)):
    expected = _oracle(x, y, test, l2, classes)
    assert abs(scores - expected).max() < tolerance, l2
    assert (scores.argmax(1) == expected.argmax(1)).mean() >= 0.999, l2


def test_copied_features_whose_gram_matrix_has_no_full_rank():
  """64 features three times over; the factor of the Gram matrix alone would be of noise."""
  x, y, test, _ = _features(192, 64, 4, 1000)
  x, test = np.tile(x, 3), np.tile(test, 3)
  for scores, l2 in zip(_scores(x, y, test, L2S, 4), L2S):
    np.testing.assert_allclose(scores, _oracle(x, y, test, l2, 4), atol=5e-4 if l2 < 1 else 5e-5)


def test_a_tiny_strength_of_an_ill_conditioned_problem():
  """As many shots as features, the worst there is: the condition is 1e8 at strength 1e-3."""
  x, y, test, _ = _features(192, 192, 4, 1000)
  scores, = _scores(x, y, test, (1e-3,), 4)
  expected = _oracle(x, y, test, 1e-3, 4)
  assert abs(scores - expected).max() < 3e-2  # measured 6e-3, of scores up to 5
  assert (scores.argmax(1) == expected.argmax(1)).mean() >= 0.99


def test_refinement_is_spared_only_where_it_changes_nothing():
  x, y, test, _ = _features(600, 192, 60, 1000)
  x, test = ridge.centred(x, test)
  l2s = (1e-2, 1024.0)
  fit = jax.jit(ridge.fit, static_argnums=(3, 4))
  with_it, without = (fit(x, y, jnp.array(l2s), 60, refine)[0] for refine in (True, False))
  differences = abs(test[None] @ with_it - test[None] @ without).max(axis=(1, 2))
  assert [bool(ridge.needs_refinement(l2, 600, 192)) for l2 in l2s] == [True, False]
  assert differences[0] > 1e-3 and differences[1] == 0


def test_one_call_serves_all_seeds_and_strengths():
  l2s = (1.0, 32.0, 1024.0)
  draws = [_features(40, 24, 4, 300, seed)[:2] for seed in range(3)]
  _, _, test, labels = _features(40, 24, 4, 300, seed=0)
  pool, pool_labels = (np.concatenate(parts) for parts in zip(*draws))
  correct, = ridge.correct(pool[None], pool_labels, np.arange(120).reshape(3, 40), test[None],
                           labels, l2s, classes=4)
  assert correct.shape == (3, 3)
  for s, (x, y) in enumerate(draws):
    for i, l2 in enumerate(l2s):
      expected = (_oracle(x, y, test, l2, 4).argmax(1) == labels).sum()
      # One score in a thousand may fall on the other side of a tie.
      assert abs(int(correct[s, i]) - expected) <= 1


def test_features_that_are_constant_over_the_shots_do_no_harm():
  x, y, test, labels = _features(30, 16, 3, 200)
  x[:, 3], test[:, 3] = 0.7, 0.7
  scores, = _scores(x, y, test, (1024.0,), 3)
  np.testing.assert_allclose(scores, _oracle(x, y, test, 1024.0, 3), atol=1e-4)


def test_padding_counts_as_wrong():
  x, y, test, labels = _features(30, 16, 3, 50)
  args = (x[None], y, np.arange(30)[None])
  right = ridge.correct(*args, test[None], labels, (1.0,), classes=3)
  padded = ridge.correct(*args, np.concatenate([test, test])[None],
                         np.concatenate([labels, np.full(50, -1)]), (1.0,), classes=3)
  np.testing.assert_array_equal(right, padded)


def test_works_under_vmap_over_members():
  x, y, test, labels = _features(30, 16, 3, 50)
  members = jnp.stack([x, x * 2 + 1])  # whitening undoes scale and shift
  fit = jax.jit(jax.vmap(lambda m: ridge.fit(m, y, jnp.array([1024.0, 1e-2]), 3)[0]))
  first, second = fit(members)
  np.testing.assert_allclose(first, 2 * second, rtol=2e-3, atol=1e-4)  # so ill-conditioned is it
