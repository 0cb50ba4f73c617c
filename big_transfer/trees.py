"""Parameter trees by name: flatten, rebuild, match against rules, describe a mismatch.

A parameter tree is a nested dict of arrays; the name of a leaf is its path joined by "/",
for example `Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel`.
"""
import re

from flax import traverse_util
import jax


def flatten(tree):
  """Returns `{name: leaf}` of a nested dict, in sorted order of names."""
  flat = traverse_util.flatten_dict(tree, sep="/")
  return {name: flat[name] for name in sorted(flat)}


def unflatten(flat):
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def map_named(function, tree):
  """Returns the tree with each leaf replaced by `function(name, leaf)`."""
  return unflatten({name: function(name, leaf) for name, leaf in flatten(tree).items()})


def first_match(patterns, names, default=False):
  """Assigns each name to the first pattern that matches the whole of it.

  Args:
    patterns: ordered regular expressions, used with `re.fullmatch`.
    names: parameter names.
    default: whether there is something else for a name that no pattern matches; its index is None.

  Returns:
    `{name: index into patterns}`.

  Raises:
    ValueError: a pattern is no regular expression, a pattern is the first match of no name, or
      a name is matched by none and there is no default.
  """
  compiled = []
  for pattern in patterns:
    try:
      compiled.append(re.compile(pattern))
    except re.error as e:
      raise ValueError(f"rule {pattern!r} is not a regular expression: {e}") from e
  found = {}
  for name in names:
    found[name] = next((i for i, p in enumerate(compiled) if p.fullmatch(name)), None)
  unclaimed = [name for name, index in found.items() if index is None]
  if unclaimed and not default:
    raise ValueError(
        f"no rule claims {_some(unclaimed)}; rules are {list(patterns)}, tried in order on the "
        "whole name. Add a last rule ('.*', {...}) for the rest")
  for i, pattern in enumerate(patterns):
    if i not in found.values():
      raise ValueError(
          f"rule {pattern!r} is the first match of no parameter (a rule matches the whole name, "
          f"and an earlier one wins). Parameters are {_some(sorted(names))}")
  return found


def shapes(tree):
  """Returns `{name: "float32[3,4]"}` of any pytree of arrays or shape structs."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"):
          f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves}


def shape_diff(expected, found):
  """Returns the lines, marked - (expected) and + (found), by which two `shapes` differ."""
  lines = []
  for name in sorted(expected.keys() | found.keys()):
    if expected.get(name) != found.get(name):
      lines += [f"{mark} {name} {side[name]}" for mark, side in (("-", expected), ("+", found))
                if name in side]
  return lines


def diff_text(expected, found, most=20):
  """The lines of `shape_diff` as a text: `most` of them, half of either mark, and their number."""
  lines = shape_diff(expected, found)
  shown = []
  for line in lines:
    if sum(other[0] == line[0] for other in shown) < most // 2:
      shown.append(line)
  if len(shown) < len(lines):
    shown.append(f"… ({len({line.split(' ')[1] for line in lines})} parameters differ)")
  return "\n".join(f"  {line}" for line in shown)


def _some(names, most=6):
  shown = ", ".join(names[:most])
  return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
