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


@pytest.mark.parametrize("n, d, classes", [(250, 64, 10), (50, 192, 10), (10, 64, 10),
                                           (600, 192, 60)])
@pytest.mark.parametrize("l2, tolerance", [(1024.0, 1e-4), (1.0, 1e-2)])
def test_scores_are_those_of_a_direct_solve(n, d, classes, l2, tolerance):
  x, y, test, _ = _features(n, d, classes, 2000)
  weights, biases = ridge.fit(x, y, jnp.array([l2]), classes)
  scores = np.asarray(ridge.scores(x, test, weights[0], biases[0]))
  expected = _oracle(x, y, test, l2, classes)
  assert abs(scores - expected).max() < tolerance
  assert (scores.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_one_call_serves_all_seeds_and_strengths():
  l2s = jnp.array([1.0, 32.0, 1024.0])
  draws = [_features(40, 24, 4, 300, seed)[:2] for seed in range(3)]
  _, _, test, labels = _features(40, 24, 4, 300, seed=0)
  pool, pool_labels = (np.concatenate(parts) for parts in zip(*draws))
  correct, = ridge.correct(pool[None], pool_labels, np.arange(120).reshape(3, 40), test[None],
                           labels, l2s, classes=4)
  assert correct.shape == (3, 3)
  for s, (x, y) in enumerate(draws):
    for i, l2 in enumerate(l2s):
      expected = (_oracle(x, y, test, float(l2), 4).argmax(1) == labels).sum()
      # One score in a thousand may fall on the other side of a tie.
      assert abs(int(correct[s, i]) - expected) <= 1


def test_features_that_are_constant_over_the_shots_do_no_harm():
  x, y, test, labels = _features(30, 16, 3, 200)
  x[:, 3], test[:, 3] = 0.7, 0.7
  weights, biases = ridge.fit(x, y, jnp.array([1024.0]), 3)
  scores = np.asarray(ridge.scores(x, test, weights[0], biases[0]))
  np.testing.assert_allclose(scores, _oracle(x, y, test, 1024.0, 3), atol=1e-4)


def test_padding_counts_as_wrong():
  x, y, test, labels = _features(30, 16, 3, 50)
  args = (x[None], y, np.arange(30)[None])
  right = ridge.correct(*args, test[None], labels, jnp.array([1.0]), classes=3)
  padded = ridge.correct(*args, np.concatenate([test, test])[None],
                         np.concatenate([labels, np.full(50, -1)]), jnp.array([1.0]), classes=3)
  np.testing.assert_array_equal(right, padded)


def test_works_under_vmap_over_members():
  x, y, test, labels = _features(30, 16, 3, 50)
  members = jnp.stack([x, x * 2 + 1])  # whitening undoes scale and shift
  fit = jax.vmap(lambda m: ridge.fit(m, y, jnp.array([1024.0]), 3)[0])
  first, second = fit(members)
  np.testing.assert_allclose(first, second, atol=1e-4)
