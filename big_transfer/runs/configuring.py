"""Config files, overrides and the checks at the door.

A config file is Python with `get_config()` or `get_config(arg)` that returns a
`ml_collections.ConfigDict`. It is named by its path, `configs/pretrain/cifar10.py` or
`configs/pretrain/cifar10.py:arg`. A sweep file also has `get_sweep()` (or `get_sweep(arg)`), which
yields one dict of overrides a trial.

A path to a value is the Python expression that reads it, without the leading `config.`:
`optim.lr`, `shots[0]`, and for the mapping of the first `(regex, mapping)` pair of the optimiser's
rules `optim.rules[0][1].wd`. The same text works in `get_sweep()`, on the command line
(`'--config.optim.rules[0][1].wd=1.0'`, quoted for the shell), in `ml_collections.config_flags`, and
is what `differences` prints. A mapping given for a whole section replaces it:
`{"model": {"name": "mixer", "width": 64}}`.
"""
import ast
import copy
import difflib
import fnmatch
import hashlib
import importlib.util
import inspect
import json
import math
import numbers
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

# Keys that change what a run costs or leaves behind, not what it computes at a step. The length is
# apart: a run may be made longer, but two trials of a sweep may well differ in it alone.
LENGTH = ("total_steps", "total_epochs")
HOUSEKEEPING = ("log_every", "checkpoint.*", "name", "sinks*", "profile*")
# How a step is computed: numbers differ by rounding, and in models with dropout by its masks.
PLACEMENT = ("mesh.*", "sharding*", "accumulate", "model.remat", "model.scan", "model.attention")
OPERATIONAL = LENGTH + HOUSEKEEPING + PLACEMENT


class ConfigError(ValueError):
  """A config, an override or a sweep that can't be used; the message names the key and the fix."""


class EvaluatorError(ConfigError):
  """A config has no evaluator of that name; the message says how one is added."""


def load(spec: str) -> ConfigDict:
  """Loads a config file by its path and returns its config, locked.

  Args:
    spec: "path/to/file.py" or "path/to/file.py:arg"; the argument is handed to `get_config`.

  Raises:
    ConfigError: there is no such file, it fails, it has no `get_config`, the argument is refused
      or what it returns is no ConfigDict.
  """
  path, argument = _split_spec(spec)
  return _get_config(_module(path), path, argument)


def load_sweep(spec: str) -> tuple[str, ConfigDict, list[dict[str, Any]]]:
  """Loads a sweep file: its name, its base config and the overrides of each trial.

  Args:
    spec: as for `load`; the argument goes to `get_config`, and to `get_sweep` if it takes one.

  Returns:
    The name (the file's stem, with ":arg" if there is one), the base config, locked, and the
    trials in the file's order. A trial's values are those the overridden config holds, so that
    1 and 1.0 for a float key are one trial.

  Raises:
    ConfigError: as for `load`; or no `get_sweep`, no trials, two equal trials, an unknown key or a
      value of the wrong type (the trial is named).
  """
  path, argument = _split_spec(spec)
  module = _module(path)
  base = _get_config(module, path, argument)
  get_sweep = getattr(module, "get_sweep", None)
  if not callable(get_sweep):
    raise ConfigError(f"sweep file '{path}' has no get_sweep(): expected it to yield dicts of "
                      "overrides, such as {'optim.lr': 1e-3}")
  takes_argument = bool(inspect.signature(get_sweep).parameters)
  given = _call(get_sweep, path, argument if takes_argument else None)
  if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
    raise ConfigError(f"get_sweep() of '{path}' must yield dicts of overrides; "
                      f"it returned {type(given).__name__}")
  trials, seen = [], {}
  for index, overrides in enumerate(given):
    trial = _trial(base, overrides, f"trial {index} of sweep '{path}'")
    key = canonical(trial)
    if key in seen:
      raise ConfigError(f"trials {seen[key]} and {index} of sweep '{path}' are the same: {trial}; "
                        "remove one, or vary a seed")
    seen[key] = index
    trials.append(trial)
  if not trials:
    raise ConfigError(f"sweep '{path}' has no trials: get_sweep() yielded nothing; expected dicts "
                      "of overrides ({} runs the base config itself)")
  return path.stem + (f":{argument}" if argument is not None else ""), base, trials


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """Returns a locked copy of `config` in which the values at some paths are replaced, in order.

  A value keeps the type of the one it replaces (an int may stand for a float, a list for a tuple);
  None may replace anything, and be replaced by anything. Fields that refer to an overridden field
  follow it. Of new keys only an evaluator may be added: a mapping with its kind at `evals.NAME`.

  Raises:
    ConfigError: an unknown key (with a did-you-mean), an index out of range or another type.
  """
  result = copy.deepcopy(config).unlock()
  for path, value in overrides.items():
    if _is_new_evaluator(result, path, value):
      result.evals[_parts(path)[1]] = value
    else:
      _replace(result, _parts(path), value, path, result)
  return result.lock()


def split_arguments(argv: Sequence[str], flag: str = "config") -> tuple[dict[str, str], list[str]]:
  """Takes the `--config.key=value` arguments out of a command line.

  Returns path → text, for `parse_values`, and the other arguments in their order; raises
  ConfigError if such an argument has no value.
  """
  texts, others = {}, []
  arguments = iter(argv)
  for argument in arguments:
    name, equals, text = argument.partition("=")
    if not argument.startswith((f"--{flag}.", f"-{flag}.")):
      others.append(argument)
      continue
    if not equals:
      text = next(arguments, None)
      if text is None or text.startswith("--"):
        raise ConfigError(f"argument '{argument}' has no value: expected {argument}=value")
    texts[name.split(".", 1)[1]] = text
  return texts, others


def parse_values(config: ConfigDict, texts: Mapping[str, str]) -> dict[str, Any]:
  """Reads values typed on a command line as what stands in `config` at their paths.

  Where text stands it is taken as it is (but for `None`), else as a Python literal: `1e-3`,
  `(1, 5)`, `true`; where nothing stands (None), what is no literal is text. `all` may take the
  place of a list, and a list that of "all". What may be new, see `override`.

  Raises:
    ConfigError: an unknown key, or a text that isn't of the type of the value it replaces.
  """
  values = {}
  for path, text in texts.items():
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    old = None if _is_new_evaluator(config, path, value) else _value(config, path)
    as_it_is = isinstance(old, str) and value is not None and not (
        old == "all" and isinstance(value, (list, tuple)))
    values[path] = text if as_it_is else value
  return plain(_read_back(config, values))


def check(function: Callable, section: Mapping, where: str, given: Sequence[str] = ()) -> None:
  """Checks that `function(**section, **given)` can be called: each key known, none missing.

  Args:
    function: a function, a dataclass or a Flax module class.
    section: the part of the config that holds the arguments.
    where: the section's path in the config, "optim" or "" for the top; for messages.
    given: names of arguments that the code provides, which the config therefore may not.

  Raises:
    ConfigError: a key that is no parameter, or a required parameter that is missing.
  """
  prefix = f"{where}." if where else ""
  signature = inspect.signature(function).parameters
  parameters = {name: p for name, p in signature.items()
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
  if any(base.__module__.startswith("flax.") for base in getattr(function, "__mro__", ())):
    # Linen adds these to every module; they place it in a tree and are no setting of ours.
    parameters = {n: p for n, p in parameters.items() if n not in ("parent", "name")}
  open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
  expected = [name for name in parameters if name not in given]
  for key in section:
    if key in given:
      raise ConfigError(f"config key '{prefix}{key}' is set by the code, from other parts of the "
                        "config: remove it")
    if key not in parameters and not open_ended:
      raise _unknown(prefix + key, key, [prefix + name for name in expected])
  missing = [name for name in expected
             if parameters[name].default is inspect.Parameter.empty and name not in section]
  if missing:
    raise ConfigError(f"config section '{where or 'config'}' lacks "
                      f"{_listing([prefix + name for name in missing])}, which "
                      f"{function.__name__} needs; got {_listing(section) or 'nothing'}")


def build(function: Callable, section: Mapping | None, where: str, **given) -> Any:
  """Calls `function(**section, **given)` once `check` has passed; None is an empty section."""
  section = {} if section is None else {key: section[key] for key in section}
  check(function, section, where, tuple(given))
  return function(**section, **given)


def plain(tree: Any, where: str = "", finite: bool = True) -> Any:
  """Returns a config, or any tree of settings, as what JSON can hold.

  Tuples become lists, numpy scalars Python's, references their values.

  Args:
    tree: mappings with string keys, sequences, strings, numbers, booleans and None.
    where: the path of `tree`, for messages.
    finite: refuse nan and infinities, which JSON has no word for; if False they become None.

  Raises:
    ConfigError: a value that JSON can't hold, named by its path.
  """
  if tree is None or isinstance(tree, (str, bool)):
    return tree
  if isinstance(tree, Mapping | ConfigDict):
    bad = [key for key in tree if not isinstance(key, str)]
    if bad:
      raise ConfigError(f"config section '{where}' has the key {bad[0]!r}: expected a string")
    return {key: plain(tree[key], f"{where}.{key}".lstrip("."), finite) for key in tree}
  if isinstance(tree, (list, tuple)):
    return [plain(value, f"{where}[{i}]", finite) for i, value in enumerate(tree)]
  if hasattr(tree, "dtype") and getattr(tree, "shape", None) == ():
    return plain(tree.item(), where, finite)
  if isinstance(tree, numbers.Integral):
    return int(tree)
  if isinstance(tree, numbers.Real):
    if math.isfinite(tree):
      return float(tree)
    if not finite:
      return None
    raise ConfigError(f"config key '{where}' is {tree}: expected a finite number, or None for "
                      "'no limit'")
  raise ConfigError(f"config key '{where}' holds {type(tree).__name__} {tree!r}: expected text, "
                    "numbers, booleans, None, or lists and dicts of them; name things by strings")


def differences(old: Mapping, new: Mapping, ignore: Sequence[str] = ()) -> list[str]:
  """Lists the paths at which two plain configs differ, with both values.

  Args:
    old, new: as `plain` returns them.
    ignore: patterns of paths to leave out, such as OPERATIONAL.

  Returns:
    Lines like "optim.lr: 0.001, now 0.003", sorted by path.
  """
  was, now = dict(_leaves(old)), dict(_leaves(new))
  lines = []
  for path in sorted(was.keys() | now.keys()):
    sides = [repr(side[path]) if path in side else "absent" for side in (was, now)]
    equal = path in was and path in now and was[path] == now[path]
    if not equal and not _matches(path, ignore):
      lines.append(f"{path}: {sides[0]}, now {sides[1]}")
  return lines


def identity(name: str, mapping: Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
  """Returns 12 hex digits that stand for a name and a mapping, whatever the order of its keys.

  They are the start of the sha256 of canonical JSON, hence the same in every process and year.

  Args:
    name: such as a base config's.
    mapping: path → value, or a whole config: a section and its paths are the same thing here.
    ignore: patterns of paths to leave out, such as HOUSEKEEPING.
  """
  kept = {path: value for path, value in _leaves(plain(mapping)) if not _matches(path, ignore)}
  return hashlib.sha256(canonical([name, kept]).encode()).hexdigest()[:12]


def canonical(tree: Any) -> str:
  """Returns a tree of settings as JSON with sorted keys and no spaces: equal trees, equal text."""
  return json.dumps(plain(tree), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _split_spec(spec):
  path, colon, argument = str(spec).partition(":")
  return pathlib.Path(path), argument if colon else None


def _module(path):
  if path.suffix != ".py" or not path.is_file():
    raise ConfigError(f"config file '{path}' doesn't exist: expected the path of a .py file, "
                      f"relative to {pathlib.Path.cwd()}")
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except Exception as error:
    raise ConfigError(f"config file '{path}' can't be run: {_described(error, path)}") from error
  return module


def _get_config(module, path, argument):
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise ConfigError(f"config file '{path}' has no get_config(): expected it to return a config")
  config = _call(get_config, path, argument)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"get_config() of '{path}' returned {type(config).__name__}: expected a "
                      "ml_collections.ConfigDict")
  return config.lock()


def _call(function, path, argument):
  """Calls a config file's function with the spec's argument, if there is one."""
  arguments = () if argument is None else (argument,)
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    raise ConfigError(
        f"{function.__name__}() of '{path}' takes no argument: use '{path}', not "
        f"'{path}:{argument}'" if arguments else
        f"{function.__name__}() of '{path}' needs an argument: use '{path}:argument'") from None
  try:
    result = function(*arguments)
    # A generator runs here, so that its errors are told as the file's too.
    return list(result) if inspect.isgenerator(result) else result
  except Exception as error:
    what = f"refused the argument '{argument}'" if arguments else "failed"
    raise ConfigError(f"{function.__name__}() of '{path}' {what}: "
                      f"{_described(error, path)}") from error


def _described(error, path):
  """Returns an error in one line, with the line of the config file it came from."""
  lines = [error.lineno] if isinstance(error, SyntaxError) else []
  trace = error.__traceback__
  while trace is not None:
    if trace.tb_frame.f_code.co_filename == str(path.absolute()):
      lines.append(trace.tb_lineno)
    trace = trace.tb_next
  line = f" (line {lines[-1]})" if lines else ""
  return f"{type(error).__name__}: {error}{line}"


def _trial(base, overrides, where):
  if not isinstance(overrides, Mapping):
    raise ConfigError(f"{where} is {type(overrides).__name__} {overrides!r}: expected a dict of "
                      "overrides, such as {'optim.lr': 1e-3}")
  try:
    return plain(_read_back(base, overrides))
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None


def _read_back(config, overrides):
  """Returns the overrides with the values that the overridden config holds."""
  changed = override(config, overrides)
  return {path: _value(changed, path) for path in overrides}


def _value(config, path):
  node = config
  for key in _parts(path):
    node = _child(node, key, path, config)
  return node


def _parts(path):
  try:
    return config_path.split(path)
  except (ValueError, TypeError):
    raise ConfigError(f"config path {path!r} can't be read: expected one like 'optim.lr'") from None


def _is_new_evaluator(config, path, value):
  """Whether `path` is evals.NAME, with no such section yet, and `value` a mapping with a kind."""
  parts = _parts(path)
  return (len(parts) == 2 and parts[0] == "evals" and isinstance(parts[1], str)
          and isinstance(config.get("evals"), ConfigDict) and parts[1] not in config.evals
          and isinstance(value, Mapping | ConfigDict) and "kind" in value)


def _child(node, key, path, config):
  """Returns `node[key]`, where `path` is the whole path being walked in `config`."""
  if isinstance(node, (list, tuple)):
    if isinstance(key, int) and -len(node) <= key < len(node):
      return node[key]
    if isinstance(key, int):
      raise ConfigError(f"config path '{path}' is out of range: index {key} of {len(node)}")
    raise ConfigError(f"config path '{path}' asks for {key!r} of a sequence of {len(node)}: "
                      "expected an index; the mapping of a (regex, mapping) pair is its [1], as in "
                      "'optim.rules[0][1].wd'")
  if not isinstance(node, Mapping | ConfigDict):
    raise ConfigError(f"config path '{path}' goes too deep: {node!r} has no '{key}'")
  if key not in node:
    prefix = path.rpartition(".")[0] if path.endswith(f".{key}") else ""
    siblings = [f"{prefix}.{name}".lstrip(".") for name in node]
    everything = [leaf for leaf, _ in _leaves(plain(config, finite=False))]
    unknown = _unknown(path, str(key), siblings, everything)
    if path.startswith("evals.") and node is config.get("evals"):
      raise EvaluatorError(f"{unknown}; a new evaluator is given whole, with its kind, as in "
                           f"'--config.evals.{key}={{\"kind\": \"geometry\", \"every\": 500}}'")
    raise unknown
  return node[key]


def _replace(node, keys, value, path, config):
  """Replaces the value at `keys` below `node`; returns the node, anew if it's a tuple."""
  old = _child(node, keys[0], path, config)
  new = _replace(old, keys[1:], value, path, config) if keys[1:] else _as_type(old, value, path)
  if new is old:
    return node
  if isinstance(node, tuple):
    items = list(node)
    items[keys[0]] = new
    return tuple(items)
  if "all" in (old, new):
    del node[keys[0]]  # else ConfigDict would hold on to the type
  try:
    node[keys[0]] = new
  except TypeError as error:  # ConfigDict's own check, for typed placeholders that hold None
    raise ConfigError(f"config key '{path}' refuses {value!r}: {error}") from None
  return node


def _as_type(old, new, path):
  """Returns `new` as a value of `old`'s type."""
  if isinstance(new, ConfigDict):
    new = new.to_dict()
  if old is None or new is None:
    return new
  for kind in ((Mapping, ConfigDict), (list, tuple)):
    if isinstance(old, kind) and isinstance(new, kind):
      return type(old)(new)
  if "all" in (old, new) and isinstance(new if old == "all" else old, (list, tuple)):
    return tuple(new) if isinstance(new, list) else new  # "all" may stand for any list
  if isinstance(old, bool) == isinstance(new, bool):
    if isinstance(old, float) and isinstance(new, numbers.Real):
      return float(new)
    if isinstance(new, type(old)):
      return new
    if isinstance(old, int) and isinstance(new, numbers.Integral):  # numpy's
      return int(new)
  kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
          list: "a list", tuple: "a list"}.get(type(old), "a mapping")
  raise ConfigError(f"config key '{path}' expects {kind}, like {plain(old)!r}; got {new!r}")


def _leaves(tree, path=""):
  """Yields (path, value) for each value of a plain tree, empty containers included."""
  if isinstance(tree, Mapping) and tree:
    for key, value in tree.items():
      yield from _leaves(value, f"{path}.{key}" if path else key)
  elif isinstance(tree, list) and tree:
    for index, value in enumerate(tree):
      yield from _leaves(value, f"{path}[{index}]")
  else:
    yield path, tree


def _matches(path, patterns):
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _unknown(path, name, siblings, everything=()):
  """Returns the error for a name in a path that nothing takes, with the nearest that exists."""
  # Siblings share a long prefix, which would make them all look near.
  by_name = {sibling.rpartition(".")[2]: sibling for sibling in siblings}
  near = ([by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)]
          or [leaf for leaf in everything if leaf.rpartition(".")[2] == name][:1]
          or difflib.get_close_matches(path, everything, n=1, cutoff=0.7))
  hint = f"; did you mean '{near[0]}'?" if near else ""
  return ConfigError(f"config key '{path}' is unknown: expected one of "
                     f"{_listing(siblings) or 'none'}{hint}")


def _listing(names):
  return ", ".join(sorted(names))
