"""The representations that probes see: which layers, and how they are computed.

A probe names layers of the model's `out` (see `big_transfer.models`); each gives a pooled feature
vector an image, float32.
"""
import collections
import difflib
import functools
import json

import jax
import numpy as np

from big_transfer.data import pipeline
from big_transfer.data import transforms
from big_transfer.models import parts as parts_lib


def resolve(layers, names):
  """The layers that are asked for, each once, by depth.

  Args:
    layers: "all", or names and indices into [stem, block_00 …, pre_logits], -1 the last of them.
    names: keys of the model's `out`, in any order.

  Raises:
    ValueError: a layer that the model has not, or text in the place of a list.
  """
  names = sorted(names, key=parts_lib.depth)
  probed = [name for name in names if name != "logits"]
  if layers == "all":
    return probed
  if isinstance(layers, str):
    raise no_list("layers", layers)
  chosen = set()
  for layer in layers:
    whole = hasattr(layer, "__index__") and not isinstance(layer, bool)
    if isinstance(layer, str) and layer in names:
      chosen.add(layer)
    elif whole and -len(probed) <= layer < len(probed):
      chosen.add(probed[layer])
    else:
      near = difflib.get_close_matches(str(layer), names, n=1)
      raise ValueError(
          f"layer {layer!r} is not of this model"
          + (f" (did you mean {near[0]!r}?)" if near else "")
          + f": expected some of {', '.join(names)}, indices from {-len(probed)} to "
          f"{len(probed) - 1}, or \"all\"")
  return [name for name in names if name in chosen]


def check_lists(**given):
  """Raises ValueError for a setting of a probe that is no list of at least one value.

  `layers` may also be "all".
  """
  for name, values in given.items():
    if name == "layers" and values == "all":
      continue
    if isinstance(values, (str, int, float)) or not len(values):
      raise no_list(name, values)


def no_list(name, values, either=""):
  """The error for what is no list, with how the one that was meant is typed."""
  typed = {"tasks": '["digits"]', "layers": '["stem", "block_00"]'}.get(name)
  if typed and isinstance(values, str) and values:
    typed = json.dumps([part.strip() for part in values.split(",")])
  elif isinstance(values, (int, float)):
    typed = f"({values},)"
  typed = typed or "(5,)"
  either = '"all" or ' if name == "layers" else either
  return ValueError(f"{name} is {values!r}: expected {either}a list of at least one, typed on a "
                    f"command line as '{typed}'")


def extraction(apply, layers, members=False):
  """A jitted `extract(params, images_u8) -> {layer: (B, D) float32}`, shared by all probes.

  With `members` it takes stacked parameters and returns (M, B, D).

  Args:
    apply: the model's.
    layers: those wanted, by depth; there are more in what it returns.
    members: of a population.
  """
  deepest = layers[-1]
  return _extraction(apply, "logits" if deepest == "pre_logits" else deepest, members)


@functools.lru_cache(maxsize=16)  # one compiled function serves all tasks and runs of one model
def _extraction(apply, deepest, members):
  """All layers as far as the deepest that is asked for.

  Pooled outputs cost nothing beside the blocks, and how XLA fuses, so how it rounds, doesn't
  depend on what else is asked for. What lies beyond is not computed.
  """

  def extract(params, images):
    _, out = apply({"params": params}, transforms.to_float(images), train=False)
    names = sorted(out, key=parts_lib.depth)
    return {name: out[name] for name in names[:names.index(deepest) + 1]}

  return jax.jit(jax.vmap(extract, in_axes=(0, None)) if members else extract)


def compute(context, layers, params, examples, indices, members=False):
  """The features of some examples, on the host.

  Args:
    context: see `evaluators.Context`.
    layers: by depth.
    params: the model's; of `members`, stacked.
    examples: a `pipeline.Prepared`.
    indices: which of its examples, (n,).
    members: of a population.

  Returns:
    `{layer: (n, D) float32}`; of members (M, n, D).
  """
  extract = extraction(context.apply, layers, members)
  features, waiting, start = {}, collections.deque(), 0

  def fetch():
    part, at, n = waiting.popleft()
    for layer, x_BD in part.items():
      if layer not in features:
        *stacked, _, width = x_BD.shape
        features[layer] = np.empty((*stacked, len(indices), width), np.float32)
      features[layer][..., at:at + n, :] = context.fetch(x_BD)[..., :n, :]

  for batch in pipeline.batches(examples, indices, context.batch_size, context.process):
    context.check()
    out = extract(params, context.put({"image": batch["image"]})["image"])
    part = {layer: out[layer] for layer in layers}
    for x_BD in part.values():
      x_BD.copy_to_host_async()
    n = min(context.batch_size, len(indices) - start)  # of all processes
    waiting.append((part, start, n))
    start += n
    if len(waiting) > IN_FLIGHT:
      fetch()
  while waiting:
    fetch()
  return features


def widths(context, layers, params_M, side):
  """`{layer: D}` of the layers of a population, for images of `side` pixels."""
  extract = extraction(context.apply, layers, members=True)
  like = jax.eval_shape(extract, params_M, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8))
  return {layer: like[layer].shape[-1] for layer in layers}


def parts_of_members(params_M, bytes_each, held):
  """Yields `(index of the first, stacked parameters)` of parts of a population.

  Args:
    params_M: stacked parameters.
    bytes_each: what a member takes on the host while it is probed.
    held: how much all that are probed at once may take; one of them may take more.
  """
  members = len(jax.tree.leaves(params_M)[0])
  parts = -(-bytes_each * members // held)
  at_once = -(-members // min(parts, members))  # in parts as alike as can be
  for start in range(0, members, at_once):
    yield start, params_M if at_once == members else jax.tree.map(
        lambda p_M, start=start: p_M[start:start + at_once], params_M)


IN_FLIGHT = 4  # batches that the device may work on while what an earlier one gave is copied
HELD = 4 * 10**9  # bytes that the members of a population which are probed at once take on the host
