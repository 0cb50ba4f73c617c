"""Sizes, rates and times as people write and read them."""
import re

from big_transfer.runs import configuring

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str, what: str) -> int:
  """Reads "32GiB" or "80 gb" as bytes.

  Args:
    text: what was typed.
    what: whose size it is, for the error.

  Raises:
    ConfigError: it is no such size, or has no unit.
  """
  match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?)b\s*", text, re.IGNORECASE)
  if match is None or not float(match[1]):
    raise configuring.ConfigError(
        f"{what} is {text!r}: expected a size with its unit, such as 32GiB or 80GB")
  return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_rate(text: str) -> float:
  """Reads "120TFLOP/s", "120 tflops" or "1.2e14" as FLOP a second.

  Raises:
    ConfigError: it is no such rate.
  """
  match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgtpe]?)flop(?:s|/s)?)?\s*", text,
                       re.IGNORECASE)
  if match is None or not float(match[1]):
    raise configuring.ConfigError(
        f"rate is {text!r}: expected FLOP a second that a device achieves, such as 120TFLOP/s or "
        "1.2e14")
  return float(match[1]) * _UNITS[(match[2] or "").lower()]


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
