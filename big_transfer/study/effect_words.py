"""An effect of a head's setting in words: its size, interval and verdict, in a fitting unit."""
import math

BENDS = ("peaks", "dips")  # verdicts on curves that turn
_MOST_DIGITS = 6
# quantity -> scale, decimals (kind "f") or significant digits ("g"), kind, unit
_FORMS = {name: (100.0, 2, "f", " points") for name in ("us", "ds")}
_NORM = (100.0, 1, "f", " %")


def interval(line, name):
  """A value of a line with its interval, in the unit that its quantity is spoken of.

  An interval that leaves out 0 has as many digits as it takes to see that.

  Args:
    line: with `head.EFFECT_COLUMNS`.
    name: "slope" or "change".
  """
  values = [line[f"{name}{end}"] for end in ("", "_low", "_high")]
  form = _FORMS.get(line["quantity"], (1.0, 3, "g", ""))
  if line["quantity"] == "l2_norm" and name == "slope":  # of the logarithm to base 10
    values = [None if value is None else 10.0 ** value - 1.0 for value in values]
    form = _NORM
  scale, digits, kind, unit = form
  known = [scale * value for value in values if value is not None]
  if kind == "f" and len(known) == 3 and (min(known) > 0 or max(known) < 0):
    smallest = min(map(abs, known))
    digits = min(max(digits, -math.floor(math.log10(smallest))), _MOST_DIGITS)
  words = [None if value is None else f"{scale * value:+.{digits}{kind}}".replace("-", "−")
           for value in values]
  return words[0] + unit + ("" if None in words else f" [{words[1]}, {words[2]}]")


def with_verdict(line):
  """The slope of a line, its interval, and what it is called."""
  turn = f" at {line['turn']:g}" if line["verdict"] in BENDS else ""
  return f"{interval(line, 'slope')} ({line['verdict'] or 'undecided'}{turn})"
