"""Checks of a model's arguments at the door, so that a bad one never shows as a shape error."""
from collections.abc import Callable, Iterable, Mapping
import difflib
import numbers

import jax.numpy as jnp

from big_transfer.models import attention
from big_transfer.models import blocks
from big_transfer.models import resnet

DTYPES = ("float32", "bfloat16", "float16")


def hint(word: str, known: Iterable[str]) -> str:
  """"; did you mean 'x'?" for the known word nearest to this one, "." where none is near."""
  known = list(known)
  close = ([k for k in known if k.lower() == str(word).lower()]
           or difflib.get_close_matches(str(word), known, n=1, cutoff=0.5))
  return f"; did you mean {close[0]!r}?" if close else "."


def checked(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
  """The arguments of a family's class with dtypes as names and sequences as tuples.

  Raises:
    ValueError: a value of the wrong kind, out of range, or at odds with another.
  """
  arguments = dict(arguments)
  arguments["dtype"] = _dtype_name(arguments["dtype"])
  if "depths" in arguments:
    depths = arguments["depths"]
    arguments["depths"] = tuple(depths) if isinstance(depths, Iterable) else depths
  for key, value in arguments.items():
    expected, holds = _WIDTHS[name] if key == "width" else _KINDS[key]
    if not holds(value):
      near = hint(value, blocks.POLICIES) if key == "remat" else ""
      raise ValueError(f"model: {name}'s {key} must be {expected}, got {value!r}{near}")
  if name == "vit":
    _check_heads(arguments["width"], arguments["heads"])
    if arguments.get("posemb") == "sincos2d" and arguments["width"] % 4:
      raise ValueError(f"model: posemb='sincos2d' needs a width that is a multiple of 4, got "
                       f"{arguments['width']}; change it, or take posemb='learn'")
  return arguments


def _check_heads(width: int, heads: int) -> None:
  if width % heads:
    near = [h for h in range(1, width + 1) if width % h == 0]
    best = min(near, key=lambda h: abs(h - heads))
    raise ValueError(f"model: width {width} does not divide into {heads} heads; "
                     f"heads={best} would do")


def _dtype_name(dtype) -> str:
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = str(dtype)
  if name not in DTYPES:
    raise ValueError(f"model: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}"
                     f"{hint(name, DTYPES)}")
  return name


def _is_count(value: object) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _one_of(*choices: str) -> tuple[str, Callable[[object], bool]]:
  return f"one of {', '.join(choices)}", lambda value: value in choices


_COUNT = ("a whole number of at least 1", _is_count)
_WIDTHS = {
    "vit": _COUNT, "mixer": _COUNT,
    "resnet": ("a factor on 64 channels that leaves at least one",
               lambda v: _is_number(v) and v >= 1 / 64)}
_KINDS = {
    "dtype": _one_of(*DTYPES),
    **dict.fromkeys(("num_classes", "depth", "heads", "mlp_dim", "tokens_mlp_dim",
                     "channels_mlp_dim", "patch", "root_kernel", "root_stride"), _COUNT),
    "depths": ("at least one whole number, each at least 1",
               lambda v: isinstance(v, tuple) and bool(v) and all(map(_is_count, v))),
    "root_pool": ("True or False", lambda v: isinstance(v, bool)),
    "representation_size": ("None, 'auto' or a whole number of at least 1",
                            lambda v: v is None or v == "auto" or _is_count(v)),
    "pool": _one_of("tok", "gap"),
    "posemb": _one_of("learn", "sincos2d"),
    "attention": _one_of(*attention.METHODS),
    "convolution": _one_of(*resnet.CONVOLUTIONS),
    "dropout": ("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1),
    "head_bias": ("a number", _is_number),
    "scan": ("True or False", lambda v: isinstance(v, bool)),
    "remat": _one_of(*blocks.POLICIES),
}
