"""Sizes, rates and times as people write and read them."""
import re

from big_transfer.runs import configuring

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse(text: str, what: str) -> int:
  """Reads "32GiB", "80 GB" or "120TFLOP/s" as a number.

  Args:
    text: what was typed.
    what: whose size it is, for the error; "rate" for FLOP/s, anything else for bytes.

  Raises:
    ConfigError: it is no such size.
  """
  match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGTPE]|[KMGT]i)?(B|FLOPs?(?:/s)?)?\s*", text)
  wanted = (what == "rate") == bool(match and (match[3] or "B").startswith("FLOP"))
  if match is None or not wanted or not float(match[1]):
    example = "120TFLOP/s" if what == "rate" else "32GiB or 80GB"
    raise configuring.ConfigError(f"{what} is {text!r}: expected a size such as {example}")
  return int(float(match[1]) * _UNITS[match[2] or ""])


def bytes_text(count: float) -> str:
  """Bytes in the largest binary unit that they fill."""
  for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
    if count >= unit:
      return f"{count / unit:,.2f} {name}"
  return f"{count / 2**10:,.1f} KiB"


def flop_text(count: float) -> str:
  """Floating-point operations in the largest unit that they fill."""
  for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
    if count >= unit:
      return f"{count / unit:,.1f} {name}FLOP"
  return f"{count / 1e6:,.1f} MFLOP"


def time_text(seconds: float) -> str:
  """Seconds, hours or days."""
  if seconds < 600:
    return f"{seconds:,.0f} seconds"
  return f"{seconds / 3600:,.1f} hours" if seconds < 96 * 3600 else f"{seconds / 86400:,.1f} days"
