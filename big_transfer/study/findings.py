"""What the figures show in the rows at hand, in sentences filled in from the tables.

Each function takes the tables, an upstream dataset and a number of shots, and returns plain text,
or None where the tables hold nothing of it. Sentences state numbers; they claim no more than these
say.
"""
import collections
import itertools
import math

import numpy as np

from big_transfer.study import by_setting, table
from big_transfer.study import ranks as ranks_lib
from big_transfer.study.figures import scatter, style


def _of(tables, name, upstream, shots):
  return [line for line in tables.get(name, ())
          if line["upstream"] == upstream and table.measure(line) == shots]


def _name(line):
  return style.cell_name([line[name] for name in ("upstream", "task", "variant", "setting")])


def _percent(value, digits=1):
  return f"{100 * value:.{digits}f} %"


def _tasks(number):
  return f"{number} task" + ("s" if number != 1 else "")


def cell(fits):
  """What the fits of one cell say.

  Args:
    fits: the cell's lines of `fits`, and of `robust` if there are any.
  """
  said = []
  for fit in fits:
    words = {"hull": "Upper hull", "all": "All points", "robust": "Robust fit"}[fit["fit"]]
    if fit["status"] == "no fit":
      said.append(f"{words}: no fit, {fit['reason']}.")
      continue
    law = ""
    if fit.get("k") is not None:
      law = (f" error = {fit['k']:.3g} · upstream error^{fit['alpha']:.2f} + {fit['e_IR']:.3f},"
             f" rms {fit['rms']:.4f} (without saturation {fit['loglinear_rms']:.4f});")
    value = (f" saturation value {_percent(fit['saturation'])}, interval "
             f"{_percent(fit['saturation_low'])} to {_percent(fit['saturation_high'])}.")
    if fit["status"] != "ok":
      value = f" saturation not identified: {fit['reason']}."
    said.append(f"{words}:{law}{value}")
  return " ".join(said)


def overview(tables, upstream, shots):
  """How many tasks saturate, and where."""
  fits = _of(tables, "fits", upstream, shots)
  hulls = [fit for fit in fits if fit["fit"] == "hull"]
  if not hulls:
    return None
  known = sorted((fit for fit in hulls if fit["status"] == "ok"), key=lambda f: f["saturation"])
  text = (f"Of {_tasks(len(hulls))}, {len(known)} have a saturation value that is identified on "
          "the upper hull")
  if len(known) == 1:
    text += f", {_percent(known[0]['saturation'])} ({_name(known[0])})"
  elif known:
    text += (f", from {_percent(known[0]['saturation'])} ({_name(known[0])}) to "
             f"{_percent(known[-1]['saturation'])} ({_name(known[-1])})")
  counts = collections.Counter(fit["status"] for fit in hulls)
  for status, words in (("not identified", "for {} it isn't"),
                        ("no fit", "{} have too little to fit")):
    if counts[status]:
      text += f"; {words.format(counts[status])}"
  text += "."
  both = {}
  for fit in fits:
    if fit["status"] == "ok":
      both.setdefault(_name(fit), {})[fit["fit"]] = fit["saturation"]
  pairs = [(values["hull"], values["all"]) for values in both.values()
           if {"hull", "all"} <= values.keys()]
  if pairs:
    text += (f" Where both fits are identified ({_tasks(len(pairs))}), the hull's value is above "
             f"that of all points for {sum(hull > average for hull, average in pairs)}.")
  return text


_SIGNS = {"k": "k", "alpha": "α", "e_IR": "e_IR"}


def shots(tables, upstream, _):
  """How the law's parameters move with the number of shots."""
  pooled = [line for line in tables.get("shots", ())
            if line["task"] == "(all)" and line["upstream"] == upstream
            and line["likelihood_up"] is not None]
  said = []
  for fit, words in (("hull", "Hull fits"), ("all", "Fits to all points")):
    mine = [line for line in pooled if line["fit"] == fit]
    parts = [f"{_SIGNS[line['parameter']]} rises in {_percent(line['likelihood_up'], 0)} and falls "
             f"in {_percent(line['likelihood_down'], 0)}"
             + (f" (mean correlation {line['pearson']:+.2f})"
                if line["pearson"] is not None else "") for line in mine]
    if parts:
      said.append(f"{words}, of {mine[0]['pairs']} pairs of a task's numbers of shots: with more "
                  f"shots {'; '.join(parts)}.")
  return " ".join(said) or None


def prediction(tables, upstream, shots):
  """Which method predicts the held-out runs best."""
  lines = [line for line in _of(tables, "prediction", upstream, shots) if line["status"] == "ok"]
  if not lines:
    return None
  said = [f"{_percent(lines[0]['held_out'], 0)} of the runs were held out, those with the highest "
          "upstream accuracy."]
  for fit, words in (("hull", "Their hull, from the hull of the others"),
                     ("all", "Themselves, from the others")):
    errors = {}
    for line in lines:
      if line["fit"] == fit:
        errors.setdefault(line["method"], {})[_name(line)] = line["prediction_rmse"]
    if errors:
      medians = {method: float(np.median(list(values.values())))
                 for method, values in errors.items()}
      best = collections.Counter(
          min(errors, key=lambda method, task=task: errors[method].get(task, np.inf))
          for task in sorted({task for values in errors.values() for task in values}))
      said.append(f"{words}: root mean squared error, median over tasks, "
                  + ", ".join(f"{method} {value:.4f}" for method, value in sorted(
                      medians.items(), key=lambda item: item[1]))
                  + "; least, by number of tasks: "
                  + ", ".join(f"{method} ({count})" for method, count in best.most_common()) + ".")
  return " ".join(said)


def sample_size(tables, upstream, shots):
  """How the errors fall with the number of runs."""
  lines = [line for line in _of(tables, "sample_size", upstream, shots) if line["status"] == "ok"]
  said = []
  for fit, words in (("hull", "Hull"), ("all", "All points")):
    by_size = {}
    for line in lines:
      if line["fit"] == fit:
        # All the runs are one size, though one task may have been measured on a few more of them.
        by_size.setdefault(math.inf if line["all"] else line["size"], {})[_name(line)] = line
    if len(by_size) < 2:
      continue
    ends = by_size[min(by_size)], by_size[max(by_size)]
    both = ends[0].keys() & ends[1].keys()  # means over other tasks could not be compared
    if both:
      first, last = (float(np.mean([end[task]["prediction_error"] for task in sorted(both)]))
                     for end in ends)
      small, large = (max(end[task]["size"] for task in both) for end in ends)
      said.append(f"{words}: the mean squared error held out goes from {first:.1e} with {small} "
                  f"runs to {last:.1e} with {large} (root: {first ** 0.5:.3f} to "
                  f"{last ** 0.5:.3f}), on average over {_tasks(len(both))}.")
  return " ".join(said) or None


def controlled(tables, upstream, shots):
  """Whether scale adds anything, given upstream accuracy."""
  lines = [line for line in _of(tables, "controlled_tests", upstream, shots)
           if line["partial_r2"] is not None]
  said = []
  for factor, words in scatter.FACTOR_TITLES.items():
    mine = [line for line in lines if line["factor"] == factor]
    if not mine:
      continue
    answers = collections.Counter(line["same_curve"] for line in mine)
    text = (f"Scaling {words}, {_tasks(len(mine))}: the same curve on {answers['yes']}, not the "
            f"same on {answers['no']}, undecided on {answers['undecided']}; median partial R² "
            f"{np.median([line['partial_r2'] for line in mine]):.2f}, median slope "
            f"{np.median([line['slope'] for line in mine]):+.4f} of accuracy a doubling.")
    if any(line["status"] == "uncontrolled" for line in mine):
      text += " Other settings of these runs aren't known, so they may differ too."
    said.append(text)
  return " ".join(said) or None


def families(tables, upstream, shots):
  """Whose runs make the hull."""
  shares = {}
  for line in _of(tables, "hull_families", upstream, shots):
    if line["share_of_hull"] is not None:
      shares.setdefault(style.family_name(line["family"]), []).append(
          (line["share_of_runs"], line["share_of_hull"]))
  if not shares:
    return None
  means = {name: np.mean(pairs, 0) for name, pairs in shares.items()}
  ordered = sorted(means, key=lambda name: -means[name][1])
  text = "; ".join(f"{name} {_percent(means[name][0], 0)} of the runs and "
                   f"{_percent(means[name][1], 0)} of the hull" for name in ordered[:6])
  return f"On average over tasks: {text}" + ("; and others." if len(ordered) > 6 else ".")


def ranks(tables, upstream, shots):
  """How alike tasks rank the runs."""
  lines = [line for line in _of(tables, "spearman", upstream, shots)
           if line["correlation"] is not None and line["row"] != line["column"]]
  between = [line for line in lines if line["column"] != "upstream"]
  ups = sorted((line for line in lines if line["column"] == "upstream"),
               key=lambda line: line["correlation"])
  said = []
  if between:
    low = min(between, key=lambda line: line["correlation"])
    said.append(f"Between tasks the median correlation is "
                f"{np.median([line['correlation'] for line in between]):.2f}; least alike are "
                f"{_ranked(low)} and {_ranked(low, 'column')} ({low['correlation']:+.2f}).")
  if ups:
    said.append(f"With upstream accuracy it is from {ups[0]['correlation']:+.2f} "
                f"({_ranked(ups[0])}) to {ups[-1]['correlation']:+.2f} ({_ranked(ups[-1])}).")
  return " ".join(said) or None


def _ranked(line, name="row"):
  """The task of a line of rank correlations."""
  return style.cell_name([None, line[name], line["variant"], line["setting"]])


def overlay(tables, upstream, shots):
  """How far one task's best runs fall short of the other tasks' hulls."""
  lines = [line for line in _of(tables, "overlay", upstream, shots) if line["gap"] is not None]
  ends = [line["us"] for line in lines]
  gaps = {}
  for line in lines:
    # The first and the last run upstream are on every task's hull, so their gaps say nothing.
    if min(ends) < line["us"] < max(ends):
      gaps.setdefault(_name(line), []).append((line["us"], line["gap"]))
  if not gaps:
    return None
  means = {task: float(np.mean([gap for _, gap in pairs])) for task, pairs in gaps.items()}
  low, high = min(means, key=means.get), max(means, key=means.get)
  text = (f"Between the first and the last run upstream, the runs on the hull of "
          f"{str(lines[0]['reference']).replace('_', ' ')} fall short of a task's own hull by "
          + (f"{100 * means[low]:.1f} ({low}) to " if low != high else "")
          + f"{100 * means[high]:.1f} ({high}) points of accuracy on average.")
  halves = {task: np.array_split([gap for _, gap in sorted(pairs)], 2)
            for task, pairs in gaps.items() if len(pairs) > 1}
  if halves:
    shrinks = sum(upper.mean() < lower.mean() for lower, upper in halves.values())
    text += (f" On {shrinks} of {_tasks(len(halves))} the upper half of them upstream falls less "
             "short than the lower half.")
  return text


def peers(tables, upstream, shots):
  """How the best run on one task ranks on others."""
  lines = [line for line in _of(tables, "peers", upstream, shots)
           if line["percentile"] is not None and line["task"] != line["on_task"]]
  if not lines:
    return None
  return (f"The best run on one task is the best on another in "
          f"{_percent(np.mean([line['rank'] == 1 for line in lines]), 0)} of the comparisons, "
          f"and beats a median {_percent(np.median([line['percentile'] for line in lines]), 0)} of "
          "its peers there.")


def settings(tables, upstream, _):
  """How few-shot probes, linear probes and fine-tuning compare, and what that says of the paper."""
  lines = [line for line in tables.get("settings", ()) if line["upstream"] == upstream]
  if not lines:
    return None
  claims = {(line["setting"], line["variant"]): line for line in tables.get("settings_claims", ())
            if (line["upstream"], line["task"]) == (upstream, by_setting.EVERY)}
  said, open_, variants = [], {}, sorted({line["variant"] for line in lines}, key=str)
  names = table.measures(line for line in lines if isinstance(table.measure(line), str))
  for name, variant in itertools.product(names, variants):  # no mean is over two variants
    mine = [line for line in lines
            if (table.measure(line), line["variant"]) == (name, variant)]
    if not mine:
      continue
    words = style.cell_name([None, style.shots_name(name), variant, None])
    gains = [line for line in mine if line["gain"] is not None]
    said.append(_gains(words, gains, mine) if gains else
                f"{_capital(words)}, {_tasks(len(mine))}: on none has a run few-shot probes, too, "
                "to compare with.")
    known = [line["correlation"] for line in gains if line["correlation"] is not None]
    if known:
      said.append(f"It ranks the runs as few-shot does with a median correlation of "
                  f"{np.median(known):.2f} over {_tasks(len(known))}.")
    fitted = [line["saturation"] for line in mine if line["fit_status"] == "ok"]
    if fitted:
      said.append(f"Its saturation value is identified on the upper hull for {len(fitted)} of "
                  f"{_tasks(len(mine))}, from {_percent(min(fitted))} to {_percent(max(fitted))}.")
    claim = claims.get((name, variant))
    if claim and not by_setting.is_open(claim):
      said.append(_claimed(claim))
    elif claim:
      open_[words] = gains
  return " ".join(said + ([_undecided(open_)] if open_ else []))


def _undecided(ways):
  """One sentence on the ways of which nothing the paper claims is decided: {words: lines}."""
  most = max(line["pairs"] for lines in ways.values() for line in lines or [{"pairs": 0}])
  why = (f": at most {most} run{'s have' if most != 1 else ' has'} both, and even a correlation "
         f"takes {ranks_lib.MIN_RUNS}" if most < ranks_lib.MIN_RUNS else "")
  return ("Whether the picture is the same as with few-shot probes, as the paper states of "
          "fine-tuning (arXiv:2110.02095, section 5), is undecided here for "
          f"{' and '.join(f'“{words}”' for words in ways)}, on every task{why}.")


def _capital(words):
  return words[0].upper() + words[1:]


def _gains(words, gains, mine):
  """The sentence on what a setting gains over few-shot probes."""
  above = [line for line in gains if line["gain_low"] is not None and line["gain_low"] > 0]
  below = [line for line in gains if line["gain_high"] is not None and line["gain_high"] < 0]
  shots = sorted({line["than_shots"] for line in gains if line["than_shots"] is not None})
  against = (f"few-shot probes ({' or '.join(map(str, shots))} shots)" if shots
             else "few-shot probes")
  low, high = (end(gains, key=lambda line: line["gain"]) for end in (min, max))
  return (f"{_capital(words)}, against {against} of the same runs, "
          f"{_tasks(len(gains))}"
          + (f" of {len(mine)}" if len(mine) > len(gains) else "") + ": "
          + f"{100 * np.mean([line['gain'] for line in gains]):+.1f} points of accuracy on average"
          + (f", from {100 * low['gain']:+.1f} ({_task(low)}) to {100 * high['gain']:+.1f} "
             f"({_task(high)})" if len(gains) > 1 else "")
          + f"; the interval over runs is above 0 for {len(above)} and below for {len(below)}."
          ).replace("-0.0 ", "0.0 ")


def _task(line):
  return style.cell_name([None, line["task"], line["variant"], None])


def _claimed(line):
  """The finding on what the paper claims, of all tasks after an upstream."""
  return ("That the picture is the same as with few-shot probes, as the paper states of "
          f"fine-tuning (arXiv:2110.02095, section 5), is {line['verdict']} here: of "
          f"{_tasks(line['runs'])} "
          f"{line['reason']} (both order the runs alike: {line['order']}; as upstream accuracy "
          f"does: {line['upstream_order']}; both saturate: {line['saturates']}).")


FINDINGS = {"overview": overview, "settings": settings, "shots": shots, "prediction": prediction,
            "sample_size": sample_size, "controlled": controlled, "families": families,
            "ranks": ranks, "overlay": overlay, "peers": peers}
