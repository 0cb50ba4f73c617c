"""Optimisers: one direction, and ordered rules by parameter name for rate and weight decay.

For a parameter θ claimed by rule r, with η = `lr` (peak rate), s(t) = the unit schedule,
m_r = the rule's `lr` (a multiplier, default 1) and λ_r = the rule's `wd` (default 0):

    θ ← θ − s(t) · η · (m_r · u + λ_r · θ)

u is the direction: Adam's `m̂ / (√v̂ + ε)` for `adamw`, the momentum buffer of the gradients for
`sgd`, and for `adafactor` the mean, running with β = `momentum`, of `g / √v̂`, where v̂ is kept as
the means of g² over rows and over columns alone (Shazeer and Stern 2018, 1804.04235, section 3). It
is Adafactor as Zhai et al. 2021 (2106.04560, section 3.4) modified it: with a first moment, in
bfloat16, without bias correction, with β₂ = 1 − (t + 1)^−0.8 up to 0.999, and with no scaling by
the parameters' size. So the state of a large matrix takes 2 bytes an element instead of 8.

All directions are of gradients clipped by their global norm. Decay is decoupled and follows the
schedule, and a rule's rate multiplier doesn't touch its decay, so a head can be given a smaller
rate at the same decay, or more decay at the same rate. A rule may be `frozen` instead: its
parameters have no gradient, no moments and no decay, and the clipped norm is that of the others.

With `layer_decay` γ the whole step of a parameter, its decay too, is the smaller the further its
layer is from the head (Clark et al. 2020, 2003.10555, and BEiT, Bao et al. 2021, 2106.08254):

    θ ← θ − γ^d · s(t) · η · (m_r · u + λ_r · θ)

d counts layers from the top: 0 for the head and what stands between it and the last block, 1 for
the last block, L for the first of L blocks and L + 1 for the stem (`models.parts`; of a ResNet a
block is a residual unit). Decay goes with the step because slow layers would be decayed more than
they learn otherwise; those of ELECTRA and BEiT do as well.

The same decay elsewhere: optax.adamw and torch.optim.AdamW have `weight_decay = λ_r` at m_r = 1;
big_vision and Zhai et al. 2021 write the product, `wd = η · λ_r` (their 0.03 · lr is λ = 0.03);
L2 regularisation inside the gradient, as in torch.optim.SGD, has no equivalent under Adam.
"""
from typing import Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_transfer import trees
from big_transfer.models import parts as parts_lib


class Optimiser(NamedTuple):
  """What the step needs: `tx` is static, `hparams` are arrays that a sweep may vary.

  Attributes:
    tx: optax transformation; its `update` takes the keyword `hparams` with `lr` (the rate now,
      a scalar) and `rule_lr`, `rule_wd`, each `(rules,)`.
    hparams: `{"lr": (), "rule_lr": (rules,), "rule_wd": (rules,)}`, float32; lr at its peak. With
      `layer_decay` that too, `()`.
    table: one line a rule, for the log, and one for the layers' rates.
    frozen: names of the parameters that aren't trained; `tx` is for the others alone.
    head_alone: whether all that are trained are of the head.
  """
  tx: optax.GradientTransformationExtraArgs
  hparams: dict
  table: str
  frozen: frozenset
  head_alone: bool


def build(names, rules, *, lr, name="adamw", clip=1.0, b1=0.9, b2=0.999, eps=1e-8,
          momentum=0.9, nesterov=False, mu_dtype=None, decay_rate=0.8, beta2_cap=0.999,
          min_dim_size_to_factor=32, clip_update=None, layer_decay=None):
  """Builds the optimiser of the equation above.

  Args:
    names: names of all parameters.
    rules: ordered `(regex, {"lr": multiplier, "wd": decay})`; the first that matches the whole
      name wins. With `frozen=True` what it claims isn't trained, whatever else it says.
    lr: peak rate η.
    name: "adamw", "sgd" or "adafactor".
    clip: largest global norm of the gradients; None for no clipping.
    b1, b2, eps: Adam's.
    momentum: of sgd and adafactor; None for none.
    nesterov: of sgd.
    mu_dtype: of the first moment of adamw and adafactor, "float32" or "bfloat16"; None for the
      optimiser's own, float32 and bfloat16.
    decay_rate, beta2_cap: adafactor's β₂ of step t, from 0, is min(beta2_cap, 1 − (t + 1)^−rate).
    min_dim_size_to_factor: adafactor keeps v whole where the second largest dimension is smaller.
    clip_update: adafactor's largest root mean square of a tensor's `g / √v̂`, 1.0 in its paper;
      None, the default, for no clipping beside `clip`.
    layer_decay: γ, above 0 and at most 1; None, the default, is 1 and isn't even compiled.

  Raises:
    ValueError: an unknown optimiser or dtype, a number out of its range, rules that are no pairs,
      an unknown key in one, one that claims nothing, a parameter that none claims, or none that is
      trained.
  """
  if name not in ("adamw", "sgd", "adafactor"):
    raise ValueError(f"optimiser {name!r} is unknown: expected 'adamw', 'sgd' or 'adafactor'")
  if mu_dtype not in (None, "float32", "bfloat16"):
    raise ValueError(f"optim: mu_dtype is {mu_dtype!r}: expected 'float32', 'bfloat16' or None")
  rules = read_rules(rules)
  for pattern, settings in rules:
    if unknown := set(settings) - {"lr", "wd", "frozen"}:
      raise ValueError(f"rule {pattern!r} sets {sorted(unknown)}: expected 'lr' or 'wd', or "
                       "'frozen'")
    if not isinstance(settings.get("frozen", False), bool):
      raise ValueError(f"optim: frozen of rule {pattern!r} is {settings['frozen']!r}: expected "
                       "True or False")
  rates = [("lr", lr)] + [(f"{key} of rule {pattern!r}", value) for pattern, settings in rules
                          for key, value in settings.items() if key != "frozen"]
  for key, value in rates:
    if not (_is_number(value) and 0 <= value < float("inf")):
      raise ValueError(f"optim: {key} is {value!r}: expected a number, at least 0")
  for key, value in (("clip", clip), ("clip_update", clip_update)):
    if value is not None and not (_is_number(value) and value > 0):
      raise ValueError(f"optim: {key} is {value!r}: expected a number above 0, or None for none")
  for key, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
    if not (key == "momentum" and value is None or _is_number(value) and 0 <= value < 1):
      raise ValueError(f"optim: {key} is {value!r}: expected a number, at least 0 and below 1")
  if layer_decay is not None and not (_is_number(layer_decay) and 0 < layer_decay <= 1):
    raise ValueError(f"optim: layer_decay is {layer_decay!r}: expected a number above 0 and at "
                     "most 1, or None")
  claimed = trees.first_match([pattern for pattern, _ in rules], names)
  frozen = frozenset(name for name, rule in claimed.items() if rules[rule][1].get("frozen"))
  if len(frozen) == len(claimed):
    raise ValueError("optim: every parameter is frozen: expected a rule without frozen=True that "
                     "claims some, such as 'head/.*'")
  distances = None if layer_decay is None else from_top(names)
  direction = {
      "adamw": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
      "sgd": lambda: optax.trace(decay=momentum or 0.0, nesterov=nesterov),
      "adafactor": lambda: _adafactor(momentum, mu_dtype or "bfloat16", decay_rate, beta2_cap,
                                      min_dim_size_to_factor, clip_update),
  }[name]()
  clipping = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
  hparams = {
      "lr": np.float32(lr),
      "rule_lr": np.array([r.get("lr", 1.0) for _, r in rules], np.float32),
      "rule_wd": np.array([r.get("wd", 0.0) for _, r in rules], np.float32)}
  if layer_decay is not None:
    hparams["layer_decay"] = np.float32(layer_decay)
  return Optimiser(
      tx=optax.chain(clipping, direction, _apply_rules(claimed, distances)), hparams=hparams,
      table=_table(rules, claimed, lr) + _layers_line(distances, layer_decay), frozen=frozen,
      head_alone=all(name.startswith("head/") for name in claimed if name not in frozen))


def read_rules(rules):
  """Rules as pairs of a regex and a dict; raises ValueError unless they are a list of such."""
  fix = ('expected a list of pairs such as ("head/.*", {"wd": 0.1}), typed on a command line as '
         '\'--config.optim.rules=(("head/.*", {}), (".*", {"frozen": True}))\'')
  if isinstance(rules, (str, Mapping)) or not isinstance(rules, Sequence):
    raise ValueError(f"optim: rules are {rules!r}: {fix}")
  for rule in rules:
    if not (isinstance(rule, Sequence) and len(rule) == 2 and isinstance(rule[0], str)
            and isinstance(rule[1], Mapping)):
      raise ValueError(f"optim: a rule is {rule!r}: {fix}")
  return tuple((pattern, dict(settings)) for pattern, settings in rules)


def from_top(names):
  """How many layers a parameter's is below the top, `{name: d}`; see the module."""
  layers = {name: part.layer for name, part in parts_lib.parts(names).items()}
  blocks = sorted({layer for layer in layers.values() if layer.startswith("block_")},
                  key=parts_lib.depth)
  order = ["stem", *blocks]
  return {name: len(order) - order.index(layer) if layer in order else 0
          for name, layer in layers.items()}


def _is_number(value):
  return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _adafactor(momentum, mu_dtype, decay_rate, beta2_cap, min_dim_size_to_factor, clip_update):
  """The direction of `adafactor`; see the module."""

  def beta2(step, exponent):
    # Without a cap β₂ goes to 1, and v stops to follow the gradients in a long run.
    return jnp.minimum(beta2_cap, 1 - (step + 1.0) ** -exponent)

  return optax.chain(
      optax.scale_by_factored_rms(decay_rate=decay_rate, decay_rate_fn=beta2,
                                  min_dim_size_to_factor=min_dim_size_to_factor),
      optax.identity() if clip_update is None else optax.clip_by_block_rms(clip_update),
      optax.identity() if momentum is None else
      optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype))


def _apply_rules(claimed, distances):
  """The last link of the chain: the equations of this module, from direction to update."""

  def update(directions, state, params, *, hparams):
    def leaf(u, p, name):
      m, wd = hparams["rule_lr"][claimed[name]], hparams["rule_wd"][claimed[name]]
      step = -hparams["lr"] * (m * u + wd * p)
      return step if distances is None else hparams["layer_decay"] ** distances[name] * step

    names = trees.map_named(lambda name, _: name, params)
    return jax.tree.map(leaf, directions, params, names), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _table(rules, claimed, lr):
  counts = np.bincount(list(claimed.values()), minlength=len(rules))
  lines = ["rule                             tensors    rate  decay λ  big_vision's wd = η·λ"]
  for (pattern, r), count in zip(rules, counts):
    if r.get("frozen"):
      lines.append(f"{pattern:<32} {count:>7}  frozen")
      continue
    rate, wd = lr * r.get("lr", 1.0), r.get("wd", 0.0)
    lines.append(f"{pattern:<32} {count:>7}  {rate:6.2g}  {wd:7.3g}  {lr * wd:.3g}")
  return "\n".join(lines)


def _layers_line(distances, layer_decay):
  """What of these rates a layer's is, for the log."""
  if distances is None:
    return ""
  top = max(distances.values())
  shares = [f"{name} {layer_decay ** d:.3g}" for name, d in (
      ("stem", top), ("first block", top - 1), ("last block", 1), ("head", 0))]
  return f"\nof rate and decay, by layer ({layer_decay:g} a layer): {', '.join(shares)}"


def global_norm(tree):
  """The L2 norm of all leaves together, `()` float32."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32)))
                      for leaf in jax.tree.leaves(tree)))
