"""The three families written out in NumPy from the papers, over the names of the public files.

float64, one image's worth of loops avoided but nothing else: an oracle for the converters and for
the models. `w` is a file, {name: array}; images are (B, H, W, C) in [-1, 1]; the result is the
logits (B, K).
"""
import math

import numpy as np


def vit(w, images, block=("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3"),
        positions="Transformer/posembed_input/pos_embedding"):
  """2010.11929, equations 1–4; the names' defaults are vit_jax's, a class token is in front."""
  norm2, attention, mlp = block
  x = patches(images, w["embedding/kernel"], w["embedding/bias"])
  cls = w.get("cls")
  if cls is not None and w[positions].shape[1] > x.shape[1]:  # a position for it as well
    x = np.concatenate([np.repeat(cls, len(x), 0), x], axis=1) + w[positions]
  else:
    x = x + w[positions]
    if cls is not None:
      x = np.concatenate([np.repeat(cls, len(x), 0), x], axis=1)
  depth = sum(name.endswith("MlpBlock_3/Dense_0/bias") or name.endswith("MlpBlock_0/Dense_0/bias")
              for name in w)
  for i in range(depth):
    p = f"Transformer/encoderblock_{i}/"
    x = x + self_attention(w, f"{p}{attention}/", layer_norm(w, f"{p}LayerNorm_0/", x))
    x = x + perceptron(w, f"{p}{mlp}/", layer_norm(w, f"{p}{norm2}/", x))
  x = layer_norm(w, "Transformer/encoder_norm/", x)
  x = x[:, 0] if cls is not None else x.mean(axis=1)
  if "pre_logits/kernel" in w:
    x = np.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"])
  return x @ w["head/kernel"] + w["head/bias"]


def mixer(w, images):
  """2105.01601, equation 1."""
  x = patches(images, w["stem/kernel"], w["stem/bias"])
  for i in range(sum(name.endswith("token_mixing/Dense_0/bias") for name in w)):
    p = f"MixerBlock_{i}/"
    y = layer_norm(w, f"{p}LayerNorm_0/", x).transpose(0, 2, 1)
    x = x + perceptron(w, f"{p}token_mixing/", y).transpose(0, 2, 1)
    x = x + perceptron(w, f"{p}channel_mixing/", layer_norm(w, f"{p}LayerNorm_1/", x))
  x = layer_norm(w, "pre_head_layer_norm/", x).mean(axis=1)
  return x @ w["head/kernel"] + w["head/bias"]


def bit(w, images, prefix="resnet/"):
  """1912.11370, section 2.1 and its public code's paddings, under TensorFlow's names."""
  w = {name.removeprefix(prefix): value for name, value in w.items()}
  x = standard_conv(w, "root_block/", images, stride=2)
  x = pad(x, 1, 1)  # zeros, so that no negative number wins at the border
  x = windows(x, 3, 2).max(axis=(-2, -1))
  for unit in sorted({"/".join(name.split("/")[:2]) for name in w if "/unit" in name}):
    stride = 2 if unit.endswith("unit01") and not unit.startswith("block1/") else 1
    y = np.maximum(group_norm(w, f"{unit}/a/", x), 0)
    if f"{unit}/a/proj/standardized_conv2d/kernel" in w:
      x = standard_conv(w, f"{unit}/a/proj/", y, stride)
    y = standard_conv(w, f"{unit}/a/", y, 1)
    y = standard_conv(w, f"{unit}/b/", np.maximum(group_norm(w, f"{unit}/b/", y), 0), stride)
    x = x + standard_conv(w, f"{unit}/c/", np.maximum(group_norm(w, f"{unit}/c/", y), 0), 1)
  x = np.maximum(group_norm(w, "", x), 0).mean(axis=(1, 2))
  return x @ w["head/conv2d/kernel"][0, 0] + w["head/conv2d/bias"]


def patches(images, kernel, bias):
  p = kernel.shape[0]
  x = windows(images.astype(np.float64), p, p)
  return np.einsum("bhwcij,ijcd->bhwd", x, kernel).reshape(len(images), -1, len(bias)) + bias


def windows(x, size, stride):
  """(B, H, W, C) -> (B, H', W', C, size, size)."""
  return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def pad(x, before, after):
  return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def standard_conv(w, name, x, stride):
  kernel = w[f"{name}standardized_conv2d/kernel"].astype(np.float64)
  kernel = kernel - kernel.mean(axis=(0, 1, 2))
  kernel = kernel / np.sqrt((kernel ** 2).mean(axis=(0, 1, 2)) + 1e-10)
  size = len(kernel)
  x = windows(pad(x, (size - 1) // 2, size // 2), size, stride)
  return np.einsum("bhwcij,ijcd->bhwd", x, kernel, optimize=True)


def group_norm(w, name, x):
  B, H, W, C = x.shape
  x = x.reshape(B, H, W, 32, C // 32)
  mean = x.mean(axis=(1, 2, 4), keepdims=True)
  x = (x - mean) / np.sqrt(x.var(axis=(1, 2, 4), keepdims=True) + 1e-5)
  return x.reshape(B, H, W, C) * w[f"{name}group_norm/gamma"] + w[f"{name}group_norm/beta"]


def layer_norm(w, name, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * w[f"{name}scale"] + w[f"{name}bias"]


def perceptron(w, name, x):
  h = x @ w[f"{name}Dense_0/kernel"] + w[f"{name}Dense_0/bias"]
  # Flax's GELU, the tanh approximation of 1606.08415, is what all these files were trained with.
  h = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h ** 3)))
  return h @ w[f"{name}Dense_1/kernel"] + w[f"{name}Dense_1/bias"]


def self_attention(w, name, x):
  q, k, v = (np.einsum("bld,dnk->bnlk", x, w[f"{name}{part}/kernel"])
             + w[f"{name}{part}/bias"][None, :, None] for part in ("query", "key", "value"))
  z = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
  a = np.exp(z - z.max(axis=-1, keepdims=True))
  a = a / a.sum(axis=-1, keepdims=True)
  return np.einsum("bnlk,nkd->bld", a @ v, w[f"{name}out/kernel"]) + w[f"{name}out/bias"]
