"""Objectives: a batch and the model's outputs → the loss and its measures.

`objective(apply, params, batch, rng, hparams) -> (loss, measures)`: the loss is a mean over the
batch, so the mean over equal micro-batches is the loss of the whole; measures are scalars.

Shapes: B examples, C classes.
"""
import jax
import jax.numpy as jnp
import optax


def sigmoid_xent(logits_BC, targets_BC):
  """Sum over classes of binary cross-entropies, in nats, `(B,)` (the loss of ViT on JFT/I21k)."""
  return optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(axis=-1)


def softmax_xent(logits_BC, targets_BC):
  """Cross-entropy of the softmax, in nats, `(B,)`; targets sum to 1."""
  return optax.softmax_cross_entropy(logits_BC, targets_BC)


LOSSES = {"sigmoid_xent": sigmoid_xent, "softmax_xent": softmax_xent}


def smooth(targets_BC, amount):
  """Label smoothing: `targets · (1 − amount) + amount / C` (Szegedy et al. 2016)."""
  return targets_BC * (1 - amount) + amount / targets_BC.shape[-1]


def classification(loss="sigmoid_xent"):
  """Returns the objective of image classification.

  Its batch holds `image` (B, H, W, 3) float and `target` (B, C); its hparams `label_smoothing`,
  a scalar. Measures: `loss` and `accuracy` (the arg max is that of the targets).

  Raises:
    ValueError: an unknown loss.
  """
  if loss not in LOSSES:
    raise ValueError(f"config.loss is {loss!r}: expected one of {sorted(LOSSES)}")

  def objective(apply, params, batch, rng, hparams):
    logits_BC, _ = apply({"params": params}, batch["image"], train=True, rngs={"dropout": rng})
    targets_BC = smooth(batch["target"], hparams["label_smoothing"])
    value = LOSSES[loss](logits_BC, targets_BC).mean()
    correct_B = logits_BC.argmax(axis=-1) == batch["target"].argmax(axis=-1)
    return value, {"loss": value, "accuracy": correct_B.astype(jnp.float32).mean()}

  return objective


def one_hot(labels_B, classes):
  """`(B,)` integers → `(B, C)` float32."""
  return jax.nn.one_hot(labels_B, classes, dtype=jnp.float32)
