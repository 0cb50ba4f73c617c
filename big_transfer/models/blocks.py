"""A stack of equal blocks, one after the other or as one scanned loop, with rematerialisation.

Parameters are always those of the blocks one by one, `encoderblock_0` and so on. For the loop they
are stacked here, inside `apply`, at the price of a copy of the blocks' parameters a pass and one of
their gradients in the reverse pass; kernels are rounded to the computation's dtype before, so that
in bfloat16 both are half as large. A loop also keeps every intermediate result of a block that the
reverse pass asks for, where the compiler would else have computed the cheap ones again: take it
with a policy. On a CPU, of a ViT with 12 blocks of width 64 at batch 16, temporary memory was 90 MB
one by one, 140 MB as a loop, 54 with "dots", 38 with "dots_no_batch" and 16 with "full"; on a CPU a
policy changes nothing without the loop, since its compiler joins what is computed twice. At width
512 and batch 2, where parameters are nearly all there is, the loop took 309 MB with "full" against
86 one by one, most of it the two copies of 151 MB, and 1.3 times a step's time. Compiling, tracing
included, took no less for a CPU: 13 s against 11 s for 48 blocks. (2026-11-22.) The table is
printed by `tests/bench/depth.py`.

Shapes: B batch, L positions, D width, N blocks.
"""
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_transfer.models import layers

# Which of a block's intermediate results are kept for the reverse pass; the others are computed
# again. Below ours stand the names that `jax.checkpoint_policies` has for the same.
POLICIES = MappingProxyType({
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable})


def rematerialised(block: type[nn.Module], remat: str, static: tuple[int, ...] = ()
                   ) -> type[nn.Module]:
  """The class of a block whose reverse pass computes it again.

  Args:
    block: the class.
    remat: a key of POLICIES: "none", all results are kept; "full", none but the block's input;
      "dots", those of matrix products; "dots_no_batch", those of products with a kernel alone,
      not attention's.
    static: places of its call's arguments that are no arrays, self being 0.
  """
  if remat == "none":
    return block
  return nn.remat(block, policy=POLICIES[remat], static_argnums=static)


# Says where a block's parameters are to be when they are used, see `placed`.
Place = Callable[[str, dict], dict]


def placed(block: type[nn.Module], place: Place | None, module: nn.Module, name: str
           ) -> type[nn.Module]:
  """The class of a block that takes its parameters from `place(path, parameters)`.

  So a mesh's devices gather a block's parameters when it runs, and again for its reverse pass where
  that computes the block again; gathered before, all blocks' would lie there at once.

  Args:
    block: the class.
    place: or None for the parameters as they are.
    module: whose block it is.
    name: of the block in it; the path is that of both, "Transformer/encoderblock_0".
  """
  if place is None or module.is_initializing():
    return block
  path = "/".join((*module.path, name))
  return nn.map_variables(block, "params",
                          trans_in_fn=lambda tree: {"params": place(path, tree["params"])})


def run(module: nn.Module, block: type[nn.Module], arguments: tuple, names: Sequence[str],
        x_BLD: jax.Array, *, taps: Mapping[str, jax.Array] | None,
        pool: Callable[[jax.Array], jax.Array], train: bool, scan: bool, remat: str,
        place: Place | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs N equal blocks.

  Args:
    module: whose blocks they are; this is called within its compact method.
    block: their class; `block(*arguments)(x_BLD, train)` gives (B, L, D).
    arguments: of the class.
    names: of the blocks among the module's parameters.
    x_BLD: the input.
    taps: see `layers.tap`; those of other names are not looked at.
    pool: from (B, L, D) to (B, D).
    train: whether dropout acts.
    scan: whether the blocks run as a loop. Dropout draws other masks in it.
    remat: see `rematerialised`.
    place: see `placed`; kernels come to it rounded to the computation's dtype.

  Returns:
    The last output, and every block's pooled, {"block_00": (B, D), …}.
  """
  if scan and not module.is_initializing():
    return _scanned(module, block(*arguments, parent=None), names, x_BLD, taps, pool, train, remat,
                    place)
  dtype, outputs = x_BLD.dtype, {}
  rounded = place and (lambda path, params: place(path, _rounded(params, dtype)))
  for i, name in enumerate(names):
    this = rematerialised(placed(block, rounded, module, name), remat, static=(2,))
    x_BLD = this(*arguments, name=name)(x_BLD, train)
    x_BLD = layers.tap(module, layers.block_name(i), x_BLD, taps)
    outputs[layers.block_name(i)] = pool(x_BLD)
  return x_BLD, outputs


def _scanned(module, block, names, x_BLD, taps, pool, train, remat, place):
  N, keys = len(names), [layers.block_name(i) for i in range(len(names))]
  params = module.variables["params"]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves),
                         *[_rounded(params[name], x_BLD.dtype) for name in names])
  taps_N = None
  if any(key in (taps or {}) for key in keys):
    taps_N = jnp.stack([layers.checked_tap(key, x_BLD, taps) for key in keys])
  rngs_N = None
  if train and module.has_rng("dropout"):
    rngs_N = jax.random.split(module.make_rng("dropout"), N)
  sown = module.is_mutable_collection("intermediates")

  def body(x_BLD, inputs):
    params, tap, rng = inputs
    if place is not None:  # as the first block's, since one program serves all
      params = place("/".join((*module.path, names[0])), params)
    x_BLD = block.apply({"params": params}, x_BLD, train,
                        rngs=None if rng is None else {"dropout": rng})
    if tap is not None:
      x_BLD = x_BLD + tap
    return x_BLD, (pool(x_BLD), x_BLD if sown else None)

  if remat != "none":
    body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=False)
  x_BLD, (pooled_NBD, x_NBLD) = jax.lax.scan(body, x_BLD, (stacked, taps_N, rngs_N))
  if sown:
    for i, key in enumerate(keys):
      module.sow("intermediates", layers.UNPOOLED + key, x_NBLD[i])
  return x_BLD, {key: pooled_NBD[i] for i, key in enumerate(keys)}


def _rounded(params, dtype):
  """A block's parameters with the kernels in the dtype that its layers round them to."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params)
