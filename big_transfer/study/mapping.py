"""Which column of a user's table plays which role: what `--columns` says.

    role=COLUMN             the values of a column
    role:=VALUE             one value for every row
    us=COLUMN:error         errors, not accuracies; `:percent` or `:fraction` says the scale
    ds=A:pets|B:cars@25     several columns, each a task: its name, and shots a class after an @
    params=COLUMN:M         in thousands K, millions M, billions B (or G), or T
    family=COLUMN:/REGEX/   the part of a text that matches (the first group, where there is one)
    run=A|B                 several columns that tell runs apart together

Several go into one text with commas between them, or into several texts. A name with , | : or " in
it stands in double quotes.
"""
import dataclasses
import difflib
import re


@dataclasses.dataclass(frozen=True)
class Role:
  """What a column can be.

  Attributes:
    kind: "accuracy", "error bar", "text", "count" (whole), "number" or "share".
    meaning: in words.
    target: the column of `table.RUN_COLUMNS` that it fills, or None.
  """
  kind: str
  meaning: str
  target: str | None = None


ROLES = {
    "us": Role("accuracy", "accuracy upstream"),
    "ds": Role("accuracy", "accuracy downstream; several columns are several tasks"),
    "task": Role("text", "the downstream task of the row, in a table with a row a task"),
    "us_task": Role("text", "the task whose ds is the accuracy upstream, instead of us; a value"),
    "model": Role("text", "the model's label", "model"),
    "family": Role("text", "architecture", "family"),
    "params": Role("count", "parameters of the model", "parameters"),
    "flops": Role("number", "floating-point operations of one example", "flops_per_example"),
    "upstream": Role("text", "the dataset pre-trained on; else the us column's name", "upstream"),
    "fraction": Role("share", "share of the upstream examples trained on", "upstream_fraction"),
    "examples": Role("count", "upstream examples trained on", "upstream_train_examples"),
    "epochs": Role("number", "passes over them", "epochs"),
    "test_examples": Role("count", "examples that us was measured on, for its standard error",
                          "upstream_test_examples"),
    "lr": Role("number", "peak learning rate", "learning_rate"),
    "shots": Role("count", "downstream training examples a class"),
    "variant": Role("text", "variant of the task"),
    "setting": Role("text", "how downstream accuracy was had, such as fewshot or finetune"),
    "step": Role("count", "optimiser steps, or examples seen, at the measurement"),
    "seed": Role("text", "seed of the downstream measurement; seeds are averaged"),
    "us_error": Role("error bar", "standard error of us, on its scale"),
    "ds_error": Role("error bar", "standard error of ds, on its scale; as many columns as ds"),
    "ds_seeds": Role("count", "measurements that ds is the mean of"),
    "run": Role("text", "what tells runs apart, if model and the rest of the identity don't"),
}
_ALIASES = {"parameters": "params", "flops_per_example": "flops", "learning_rate": "lr",
            "upstream_fraction": "fraction", "upstream_train_examples": "examples",
            "run_id": "run", "upstream_accuracy": "us", "downstream": "ds"}
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_MANY = ("ds", "ds_error", "run")
SCALES = ("auto", "percent", "fraction")
VALUES = ("accuracy", "error")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the values of a role come from.

  Attributes:
    column: a column's name; None where `constant` is the value of every row.
    constant: that value.
    name: of the task, for ds.
    shots: a class, for ds.
    factor: what numbers are multiplied by.
    pattern: a regular expression that picks a part of a text.
    scale: "percent" or "fraction"; None: as everywhere.
    values: "accuracy" or "error"; None: as everywhere.
  """
  column: str | None
  constant: str | None = None
  name: str | None = None
  shots: int | None = None
  factor: float = 1.0
  pattern: str | None = None
  scale: str | None = None
  values: str | None = None


def closest(name, names, most=3):
  """The names most like one, whatever their case."""
  by_case = {str(other).lower(): other for other in names}
  return [by_case[found] for found in
          difflib.get_close_matches(str(name).lower(), list(by_case), n=most, cutoff=0.5)]


def _split(text, separator):
  """Parts between separators that stand outside of "..." and :/.../."""
  parts = re.findall(rf'(?:"(?:[^"]|"")*"|:/(?:\\.|[^\\/])*/|[^{re.escape(separator)}"])+', text)
  return [part.strip() for part in parts if part.strip()]


def _unquoted(text):
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] == '"':
    return text[1:-1].replace('""', '"')
  return text


def _option(role, word, given):
  """What one :word after a column says, as fields of a `Source`."""
  kind = ROLES[role].kind
  if len(word) > 1 and word[0] == word[-1] == "/" and kind == "text":
    try:
      re.compile(word[1:-1])
    except re.error as error:
      raise ValueError(f"--columns: {given!r}: {word} is no regular expression ({error}); correct "
                       "it") from error
    return {"pattern": word[1:-1]}
  if kind == "accuracy" and word in VALUES:
    return {"values": word}
  if kind in ("accuracy", "share") and word in SCALES[1:]:
    return {"scale": word}
  if kind in ("count", "number") and word.upper() in _UNITS:
    return {"factor": _UNITS[word.upper()]}
  if role == "ds":
    name, at, shots = _unquoted(word).partition("@")
    if at and not shots.isdecimal():
      raise ValueError(f"--columns: {given!r}: expected a number of shots after the @, got "
                       f"{shots!r}; correct it")
    return {"name": name or None, "shots": int(shots) if at else None}
  allowed = {"accuracy": "error, accuracy, percent or fraction", "share": "percent or fraction",
             "text": "a regular expression such as /^[a-z]+/", "count": "K, M, B or T",
             "number": "K, M, B or T", "error bar": "nothing"}[kind]
  raise ValueError(f"--columns: {given!r}: after a colon {role} takes {allowed}, got {word!r}; put "
                   'a name that has a colon in it in double quotes')


def _source(role, given):
  column, *words = _split(given, ":") or [""]
  # A regular expression takes its colon with it.
  if "/" in column and ":/" in column:
    column, _, pattern = column.partition(":/")
    words = ["/" + pattern, *words]
  if not _unquoted(column):
    raise ValueError(f"--columns: {role}= lacks the name of a column; write {role}=COLUMN, or "
                     f"{role}:=VALUE for one value in every row")
  fields = {}
  for word in words:
    fields |= _option(role, word, given)
  return Source(_unquoted(column), **fields)


def parse(columns):
  """The sources of each role.

  Args:
    columns: a text such as "us=top1:percent,ds=acc,task=dataset,upstream:=imagenet", or several.

  Returns:
    {role: tuple of `Source`}; more than one only for ds, ds_error and run.

  Raises:
    ValueError: an unknown or repeated role, a malformed text, or us or ds missing.
  """
  found = {}
  for text in [columns] if isinstance(columns, str) else columns:
    if text.count('"') % 2:
      raise ValueError(f"--columns: {text!r} has a double quote without its partner; add it")
    for part in _split(text, ","):
      match = re.fullmatch(r"(\w+)\s*(:?=)\s*(.*)", part, re.DOTALL)
      if not match:
        raise ValueError(f"--columns: expected role=COLUMN or role:=VALUE, got {part!r}; put a "
                         "name that has a comma in it in double quotes")
      role = _ALIASES.get(match[1].lower(), match[1].lower())
      if role not in ROLES:
        near = closest(role, [*ROLES, *_ALIASES], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--columns: {match[1]!r} is no role; {hint}roles are {', '.join(ROLES)}")
      sources = ((Source(None, _unquoted(match[3])),) if match[2] == ":=" else
                 tuple(_source(role, piece) for piece in _split(match[3], "|") or [""]))
      if role not in _MANY and (role in found or len(sources) > 1):
        raise ValueError(f"--columns: {role} is given twice, expected one column; leave one away")
      found[role] = found.get(role, ()) + sources
  return _checked(found)


def _checked(found):
  if "us_task" in found:
    if found["us_task"][0].column or "us" in found or "task" not in found:
      raise ValueError("--columns: us_task:=NAME needs task=COLUMN and goes without us=; "
                       "correct it")
  elif "us" not in found:
    raise ValueError("--columns: us is missing, the accuracy upstream; add us=COLUMN")
  if "ds" not in found:
    raise ValueError("--columns: ds is missing, the accuracy downstream; add ds=COLUMN, or several "
                     "as ds=A|B")
  for role in ("us", "ds", "run"):
    if any(source.column is None for source in found.get(role, ())):
      raise ValueError(f"--columns: {role}:=VALUE makes all rows alike; name a column instead")
  if len(found.get("ds_error", found["ds"])) != len(found["ds"]):
    raise ValueError(f"--columns: {len(found['ds'])} columns for ds but {len(found['ds_error'])} "
                     "for ds_error; give one each, in the same order")
  _check_distinct(found)
  return found


def _check_distinct(found):
  """Several ds columns must be several cells."""
  if "shots" in found and any(source.shots is not None for source in found["ds"]):
    raise ValueError("--columns: shots are given twice, by shots= and after an @ of ds; leave one "
                     "away")
  long = "task" in found
  cells = [(None if long else source.name or source.column, source.shots)
           for source in found["ds"]]
  if long and any(source.name for source in found["ds"]):
    raise ValueError("--columns: task= names the task of a row, so ds= takes no other name; leave "
                     "one away")
  for cell in cells:
    if cells.count(cell) > 1:
      raise ValueError("--columns: several ds columns of " + (
          "one task" if long else f"task {cell[0]!r}") + " with the same number of shots; tell "
          "them apart, as in ds=A:pets@1|B:pets@25")
