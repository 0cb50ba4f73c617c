"""Fine-tuning runs, joined to the runs they began from: what they reach is a value of those.

A run that began from another's parameters (`config.init`) and was trained on a downstream task
says in run.json what it began from (`pretrained`) and that it is a `setting` of transfer,
"finetune" or, where the head alone was trained, "linear". It is no pre-training run of its own:
its last rows of evaluator "finetune" on the test split become rows of the run it began from, at
that run's last step, beside its few-shot probes.

Fine-tuning runs that differ in their seed alone are averaged, as probe seeds are. Those that differ
in more are of several recipes, of which one counts for a run and task: that which most pre-trained
runs of the study have on the task, of equals the first by alphabet.
"""
import collections
import dataclasses
import difflib
import fnmatch
import json
import pathlib

import pyarrow as pa

from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.study import table

SETTINGS = ("finetune", "linear")  # of run.json: what says that a run is no pre-training
OF_A_CELL = ("task", "variant", "setting")
# What differs between fine-tuning runs of one recipe: chance, the pre-trained run, how it is run.
_NO_RECIPE = configuring.HOUSEKEEPING + configuring.PLACEMENT + (
    "seed", "init.source", "init.step", "evals.*", "eval_batch_size")
NO_ROWS = "fine-tuning run without an accuracy on the test split"
SAME_SEED = "fine-tuned again with the same recipe and seed"
OTHER_RECIPE = "fine-tuned by another recipe"
_MOST_KEYS, _MOST_VALUES, _LONGEST = 4, 3, 40  # of a recipe, that a warning names


@dataclasses.dataclass(frozen=True)
class Join:
  """A fine-tuning run and where its rows belong.

  Attributes:
    base: id of the pre-trained run.
    step: of that run, its last.
    folder: of the fine-tuning run.
    recipe: its config as sorted (dotted key, JSON) pairs, but for what makes no recipe.
  """
  base: str
  step: int
  folder: pathlib.Path
  recipe: tuple[tuple[str, str], ...]


def is_tuned(run):
  """Whether a run.json is of a run whose accuracy is another run's transfer."""
  return run.get("setting") in SETTINGS


def leaves(tree, prefix=""):
  """(dotted key, value) pairs of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def twice(bases):
  """Warnings of parameters that count as two runs: records of `evaluate --init` beside them.

  Args:
    bases: {id: (run.json, folder)} of those that count, that have both accuracies.

  Returns:
    One sentence each.
  """
  notes, of_parameters = [], {name: folder for name, (_, folder) in bases.items()}
  for run, folder in bases.values():
    source = (run.get("parameters_from") or {}).get("identity")
    if source is None:
      continue
    other = of_parameters.setdefault(source, folder)
    if other is not folder:
      notes.append(f"{folder} holds what was measured of the parameters that {other} is of, so "
                   "they count as two runs; leave one out of --runs"
                   + (", or evaluate the run itself (evaluate --workdir)"
                      if source in bases else ""))
  return notes


def joins(tuned, bases, unfinished, recipe=""):
  """Which fine-tuning run belongs to which pre-trained run.

  Args:
    tuned: {id: (run.json, folder)} of the fine-tuning runs.
    bases: the same of all other finished runs, and of records of `evaluate --init`.
    unfinished: ids of runs that are there and not finished.
    recipe: KEY=VALUE,...: those whose config says otherwise are left out.

  Returns:
    (list of `Join`, counter of the reasons why others are none).

  Raises:
    ValueError: a damaged file, or a recipe that no fine-tuning run has.
  """
  by_identity = {}
  # A file's parameters are known by its hash; of its records one that has an upstream comes first.
  for name, (run, _) in sorted(bases.items(), key=lambda item: not (
      item[1][0].get("upstream") or {}).get("name")):
    by_identity.setdefault((run.get("parameters_from") or {}).get("identity"), name)
  by_identity |= {name: name for name in bases}
  found, lost = [], collections.Counter()
  recipes = {}  # each once: of 100,000 runs there are few
  for run, folder in tuned.values():
    source = _source(run, folder)
    base = by_identity.get(source["identity"])
    chain = source["identity"] in tuned or is_tuned(source.get("run") or {})
    reason = ("fine-tuned from a fine-tuned run" if chain else
              "fine-tuned from a run that isn't finished" if source["identity"] in unfinished else
              "fine-tuned from a run that isn't here" if base is None else
              "fine-tuned from an earlier step of its run"
              if bases[base][0].get("step") not in (None, source["step"]) else None)
    if reason:
      lost[reason] += 1
    else:
      mine = _recipe(folder, bases[base][0].get("model") or {})
      found.append(Join(base, source["step"], folder, recipes.setdefault(mine, mine)))
  if recipe:
    kept = _of_recipe(found, recipe)
    lost += collections.Counter({f"fine-tuned otherwise than by --recipe {recipe}":
                                 len(found) - len(kept)})
    found = kept
  return found, lost


def _source(run, folder):
  source = run.get("pretrained")
  if not isinstance(source, dict) or not isinstance(source.get("identity"), str) or not (
      isinstance(source.get("step"), int)):
    raise ValueError(f"{folder / records.RUN}: its setting is {run['setting']!r}, so 'pretrained' "
                     "should say from which run (identity, step) it began, but is "
                     f"{source!r}; restore the file, or leave its folder out of --runs")
  return source


def _recipe(folder, of_base):
  """`Join.recipe` of a fine-tuning run from a run, or a file, of the model `of_base`."""
  path = folder / records.CONFIG
  try:
    config = dict(json.loads(path.read_text())) if path.is_file() else {}
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: expected a JSON object, but {error}; restore the file, or leave its "
                     "folder out of --runs") from error
  model = config.get("model") or {}
  # What it has of the pre-trained model, it has from that.
  config["model"] = {key: value for key, value in model.items() if of_base.get(key) != value}
  return tuple(sorted(
      (key, json.dumps(value, sort_keys=True)) for key, value in leaves(config)
      if not any(fnmatch.fnmatchcase(key, pattern) for pattern in _NO_RECIPE)))


def _of_recipe(found, text):
  """Those whose config has all of KEY=VALUE,... ."""
  for pair in text.split(","):
    key, equals, value = (part.strip() for part in pair.partition("="))
    recipes = {join.recipe: dict(join.recipe) for join in found}
    known = sorted({name for recipe in recipes.values() for name in recipe})
    if not equals or key not in known:
      near = difflib.get_close_matches(key, known, 1)
      raise ValueError(f"--recipe: expected KEY=VALUE,... of the configs of fine-tuning runs, got "
                       f"{pair!r}; " + (f"did you mean {near[0]}? " if near else "")
                       + f"their keys are {', '.join(known) or 'none: no such run is here'}")
    values = {recipe: own.get(key, "null") for recipe, own in recipes.items()}
    kept = [join for join in found if _plain(values[join.recipe]) == _plain(value)]
    if not kept:
      raise ValueError(f"--recipe: no fine-tuning run has {key}={value}; there are "
                       + ", ".join(sorted(set(values.values()))))
    found = kept
  return found


def _plain(text):
  try:
    return json.loads(text)
  except ValueError:
    return text


def choose(database, found):
  """Keeps of `measured` the rows of fine-tuning runs that count, and dates them as their run's.

  Args:
    database: with the tables `measured` (rows, with `file`) and `runs` (`gather`'s, with `file`,
      `tuned`, `measured_in`, `final` and `examples_seen`).
    found: the `Join`s, as `joins` made them.

  Returns:
    (counter of the reasons why a fine-tuning run's accuracy isn't a row, warnings).
  """
  database.execute(
      "DELETE FROM measured WHERE rowid IN (SELECT number FROM (SELECT m.rowid AS number, "
      "evaluator = 'finetune' AND coalesce(split, 'test') = 'test' AS of_test, step, max(step) "
      "FILTER (evaluator = 'finetune') OVER (PARTITION BY file) AS latest "
      "FROM measured m JOIN runs USING (file) WHERE tuned) "
      "WHERE NOT coalesce(of_test AND step = latest, false))")
  places = {str(join.folder): i for i, join in enumerate(found)}
  files = dict(database.execute("SELECT measured_in, file FROM runs WHERE tuned").fetchall())
  by_cell = collections.defaultdict(list)  # (task, variant, setting) -> [(seed, index of a join)]
  for folder, seed, *cell in database.execute(
      f"SELECT DISTINCT measured_in, seed, {', '.join(OF_A_CELL)} FROM measured JOIN runs "
      "USING (file) WHERE tuned AND metric = 'accuracy' ORDER BY ALL").fetchall():
    by_cell[tuple(cell)].append((seed, places[folder]))
  lost, notes, kept, others = collections.Counter(), [], set(), []
  for cell, measured in by_cell.items():
    chosen, reasons, note = _choose(found, measured)
    lost += reasons
    notes += [f"{table.name_of(*cell)}: {note}"] if note else []
    others += [(files[str(found[i].folder)], *cell) for i in {i for _, i in measured} - chosen]
    kept |= {i for _, i in measured}
  names = ("file", *OF_A_CELL)
  database.register("others", pa.table(
      {name: pa.array([line[i] for line in others], pa.string()) for i, name in enumerate(names)}))
  database.execute("DELETE FROM measured USING others WHERE " + " AND ".join(
      f"measured.{name} IS NOT DISTINCT FROM others.{name}" for name in names))
  lost += collections.Counter({NO_ROWS: len(found) - len(kept)})
  database.execute("UPDATE measured SET step = r.final, examples = r.examples_seen FROM runs r "
                   "WHERE r.file = measured.file AND r.tuned")
  return lost, notes


def _choose(found, measured):
  """(indices of the joins that count on one task, counter of reasons, a warning or None)."""
  of_recipe = collections.defaultdict(set)  # recipe -> pre-trained runs
  for _, i in measured:
    of_recipe[found[i].recipe].add(found[i].base)
  words = _words(of_recipe)
  order = sorted(of_recipe, key=lambda recipe: (-len(of_recipe[recipe]), words[recipe], recipe))
  best = {}
  for recipe in reversed(order):
    best |= dict.fromkeys(of_recipe[recipe], recipe)
  chosen, reasons, seen = set(), collections.Counter(), set()
  for seed, i in measured:
    join = found[i]
    if join.recipe != best[join.base]:
      reasons[OTHER_RECIPE] += 1
    elif (join.base, seed) in seen:
      reasons[SAME_SEED] += 1
    else:
      seen.add((join.base, seed))
      chosen.add(i)
  if len(of_recipe) == 1:
    return chosen, reasons, None
  counted = [f"{words[recipe]} ({_runs(len(of_recipe[recipe]), 'pre-trained')})"
             for recipe in order[:_MOST_VALUES]]
  used = len(set(best.values()))
  note = (f"runs were fine-tuned by {len(of_recipe)} recipes, {'; '.join(counted)}"
          + ("; …" if len(order) > _MOST_VALUES else "")
          + (f": {_runs(reasons[OTHER_RECIPE], 'fine-tuning')} left out, the first that a pre-"
             "trained run has counts; choose with --recipe KEY=VALUE" if reasons[OTHER_RECIPE]
             else "")
          + ("; what is compared differs in them, too" if used > 1 else ""))
  return chosen, reasons, note


def _runs(number, kind):
  return f"{number} {kind} run{'s' * (number != 1)}"


def _words(recipes):
  """{recipe: what tells it from the others, in words}."""
  settings = {recipe: dict(recipe) for recipe in recipes}
  keys = sorted({key for own in settings.values() for key in own})
  differ = [key for key in keys if len({own.get(key) for own in settings.values()}) > 1]
  return {recipe: ", ".join(
      f"{key}={_short(own.get(key, 'null'))}" for key in differ[:_MOST_KEYS])
          + (", …" if len(differ) > _MOST_KEYS else "") for recipe, own in settings.items()}


def _short(text):
  return text if len(text) <= _LONGEST else text[:_LONGEST - 1] + "…"
