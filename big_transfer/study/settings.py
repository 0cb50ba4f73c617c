"""What is known of each run's settings, and the series of runs that differ in one of them alone.

A series is a set of runs after one upstream with all else equal that is known of them: the base
config, what they override of it, family and model, learning rate, batch size, share and number of
upstream examples, epochs. Seeds and names may differ: they are chance, not a setting. Epochs are
compared, not steps, since with fewer examples as many epochs take fewer steps; epochs that differ
by at most one step's worth are equal.

Shape legend: U runs.
"""
import collections
import json
import math
import re

import numpy as np

from big_transfer.study import joining

ALL_ELSE = "all else equal"  # the text of a series that no other one is told from
OVERRIDE = "set "  # before an override's dotted key
_NEVER = ("name", "seed", "total_steps", "total_epochs")  # lengths are compared as epochs


def _known(value):
  """A value that can be compared: None for what isn't known, NaN among it."""
  return None if value is None or value != value else value


def same_epochs(epochs_U, step_U):
  """Epochs with those that differ by at most one step made equal.

  Args:
    epochs_U: passes over the data, NaN where unknown.
    step_U: what one step is in epochs; NaN where unknown, which counts as 0.

  Returns:
    (U,) epochs; a run takes those of the nearest run with finer steps within one step of its own.
  """
  epochs_U, step_U = np.array(epochs_U, float), np.nan_to_num(step_U)
  anchors, found_U = np.empty(0), epochs_U.copy()
  pairs, inverse = np.unique(np.stack([step_U, epochs_U], 1), axis=0, return_inverse=True)
  for i, (step, epochs) in enumerate(pairs):  # by rising step
    if math.isnan(epochs):
      continue
    at = np.abs(anchors - epochs).argmin() if anchors.size else None
    if at is not None and abs(anchors[at] - epochs) <= step + 1e-9 * epochs:
      found_U[inverse.ravel() == i] = anchors[at]
    else:
      anchors = np.append(anchors, epochs)
  return found_U


def known(points):
  """What is known of each run that could tell it from others, but for its seed and name.

  Args:
    points: `table.Points`.

  Returns:
    A dict a run, {name: value}, None for what isn't known: base, lr, batch, family, patch (the
    number after a "/" that ends a model's label), model, parameters, data, examples, epochs, and
    "set KEY" for what the run overrides of its base config, as JSON.
  """
  columns = {"base": "config_name", "lr": "learning_rate", "batch": "batch_size",
             "family": "family", "patch": "model", "model": "model", "parameters": "parameters",
             "data": "upstream_fraction", "examples": "upstream_train_examples",
             "epochs": "epochs"}
  of = {name: points.of_runs(column) for name, column in columns.items()}
  of["patch"] = [(re.findall(r"/(\d+)$", label or "") or [None])[0] for label in of["model"]]
  of["epochs"] = same_epochs(of["epochs"], of["batch"] / np.where(of["examples"] > 0,
                                                                  of["examples"], np.nan))
  found = []
  for u, text in enumerate(points.of_runs("overrides")):
    changed = dict(joining.leaves(json.loads(text))) if text else {}
    found.append({name: _known(of[name][u]) for name in columns} | {
        OVERRIDE + key: json.dumps(value) for key, value in changed.items() if key not in _NEVER})
  return found


def numbered(fixed, upstream_U, value_U, *, least=2, same=None):
  """The series that runs form.

  Args:
    fixed: a dict a run, of what the runs of a series have in common.
    upstream_U: what they were pre-trained on.
    value_U: what differs within a series; NaN leaves a run out.
    least: different values that make a series.
    same: what decides instead which runs are one series, a hashable a run; `fixed` then only says
      in words what it is.

  Returns:
    (number of each run's series (U,), -1 for none; the series' texts: what is held fixed, as far
    as it differs between the series of an upstream).
  """
  members = collections.defaultdict(list)
  if same is None:
    same = [tuple(sorted(shared.items(), key=str)) for shared in fixed]
  for u, shared in enumerate(same):
    if not math.isnan(value_U[u]):
      members[upstream_U[u], shared].append(u)
  number_U, texts = np.full(len(fixed), -1), []
  found = [(upstream, runs) for (upstream, _), runs in members.items()
           if np.unique(value_U[runs]).size >= least]
  varying = {}
  for upstream in {upstream for upstream, _ in found}:
    heads = [fixed[runs[0]] for other, runs in found if other == upstream]
    names = dict.fromkeys(name for head in heads for name in head)
    varying[upstream] = [name for name in names if len({head.get(name) for head in heads}) > 1]
  taken = collections.Counter()
  for upstream, runs in found:
    text = _text(fixed[runs[0]], varying[upstream])
    taken[upstream, text] += 1
    if taken[upstream, text] > 1:
      text += f" [{taken[upstream, text]}]"
    number_U[runs] = len(texts)
    texts.append(text)
  return number_U, texts


def _text(fixed, varying):
  """What is held fixed, in words, as far as it differs between series."""
  words = {"base": "{}", "family": "{}", "model": "{}", "patch": "patch {}",
           "parameters": "{:.4g} parameters", "data": "{:.3g} of the data",
           "examples": "{:.6g} examples", "epochs": "{:.3g} epochs", "lr": "learning rate {:g}",
           "batch": "batch {:g}", "body_decay": "body decay {:g}",
           "head_decay": "head decay {:g}", "head_rate": "head rate {:g}"}
  # What a model, a share of the data or a learning rate is, needs saying once.
  doubled = {"family": "model", "patch": "model", "parameters": "model", "examples": "data"}
  parts = []
  for name in varying:
    value, other = fixed.get(name), doubled.get(name)
    if value is None or (other in varying and fixed.get(other) is not None):
      continue
    if name.startswith(OVERRIDE):
      key = name.removeprefix(OVERRIDE)
      said = key.split(".")[0] == "model" or key == "upstream.fraction" or (
          key.rpartition(".")[2] in ("lr", "learning_rate"))
      parts += [] if said else [f"{key} {value}"]
    else:
      parts.append(words[name].format(value))
  return ", ".join(parts) or ALL_ELSE


