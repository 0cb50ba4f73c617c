"""How the parameters of Eq. 1 change with the number of shots (Tables F.1 and F.2).

The paper reports, for each pair of an upstream and a downstream task, the correlation of k, alpha
and e_IR with the number of shots, and the likelihood that a parameter rises between two numbers of
shots (Abnar et al., arXiv:2110.02095, "correlation" and "binary correlation"). It finds alpha to
rise, k and e_IR to fall. Neither its numbers nor its formula of the likelihood could be had; here
it is the share of pairs of numbers of shots, each weighing the same.
"""
import itertools

import numpy as np
from scipy import stats

from big_transfer.study import table

PARAMETERS = ("k", "alpha", "e_IR")
EVERY = "(all)"  # stands for a task or an upstream in the lines that pool them
MIN_COUNTS = 3  # numbers of shots: a correlation of two is 1 or -1 by itself

SHOT_COLUMNS = {name: table.CELL_COLUMNS[name] for name in table.CELL if name != "shots"} | {
    "fit": ("VARCHAR", "'hull': the upper hull; 'all': all points"),
    "parameter": ("VARCHAR", "'k', 'alpha' or 'e_IR' of Eq. 1"),
    "shot_counts": ("BIGINT", "numbers of shots with a fit; where pooled, the most of any task"),
    "pearson": ("DOUBLE", "Pearson's correlation with the number of shots; pooled: the mean"),
    "spearman": ("DOUBLE", "Spearman's correlation with the number of shots; pooled: the mean"),
    "pairs": ("BIGINT", "pairs of numbers of shots; pooled: of all tasks together"),
    "likelihood_up": ("DOUBLE", "share of pairs in which the parameter rises with the shots"),
    "likelihood_down": ("DOUBLE", "share of pairs in which it falls; the rest are equal"),
    "status": ("VARCHAR", "'ok', or 'left out' where it can't be computed"),
    "reason": ("VARCHAR", "why the status isn't ok, or what to hold against the line"),
}


def _trend(shots_S, values_S):
  """Correlations and counts of one parameter's values at rising numbers of shots."""
  values_S = np.round(values_S, 6)  # finer than any fit: what differs by less is equal
  signs = [np.sign(later - earlier) for earlier, later in itertools.combinations(values_S, 2)]
  line = {"shot_counts": len(shots_S), "pairs": len(signs)}
  if signs:
    line |= {"likelihood_up": signs.count(1) / len(signs),
             "likelihood_down": signs.count(-1) / len(signs)}
  if len(shots_S) >= MIN_COUNTS and np.ptp(values_S) > 0:
    ranks_S = stats.rankdata(values_S)  # the shots rise, so their ranks are their places
    line |= {"pearson": float(np.corrcoef(shots_S, values_S)[0, 1]),
             "spearman": float(np.corrcoef(np.arange(len(shots_S)), ranks_S)[0, 1])}
  return line


def _judged(line, doubtful):
  """The line with its status and reason; `doubtful` fits have no identified saturation value."""
  if not line["pairs"]:
    number = line["shot_counts"]
    return line | {"status": "left out", "reason":
                   f"{number or 'no'} number{'s' * (number != 1)} of shots with a fit; at least 2 "
                   "are needed"}
  notes = []
  if line["shot_counts"] < MIN_COUNTS:
    notes.append(f"no correlation from fewer than {MIN_COUNTS} numbers of shots")
  elif line["pearson"] is None:
    notes.append("no correlation: the parameter is the same at every number of shots")
  if doubtful:
    notes.append(f"fits that don't identify a saturation value: {doubtful}")
  return line | {"status": "ok", "reason": "; ".join(notes) or None}


def _pooled(lines):
  """One line for all of some tasks: means of correlations, and likelihoods over all pairs."""
  line = {"shot_counts": max(line["shot_counts"] for line in lines),
          "pairs": sum(line["pairs"] for line in lines)}
  for name in ("likelihood_up", "likelihood_down"):
    if line["pairs"]:
      line[name] = sum((one[name] or 0.0) * one["pairs"] for one in lines) / line["pairs"]
  for name in ("pearson", "spearman"):
    known = [one[name] for one in lines if one[name] is not None]
    line[name] = float(np.mean(known)) if known else None
  return line


def trends(fits):
  """k, alpha and e_IR against the number of shots, a task at a time and pooled.

  Args:
    fits: dicts with `saturation.FIT_COLUMNS`; those without parameters are left out, those whose
      saturation value isn't identified are kept (their parameters are still the best fit) and
      counted in `reason`.

  Returns:
    A list of dicts with `SHOT_COLUMNS`: for each (upstream, task, variant, setting), fit and
    parameter; then, with task "(all)", for each upstream; then, with several upstreams, with both
    "(all)": the paper's "for all (US, DS)".
  """
  series = {}
  for fit in fits:
    if fit["shots"] is not None:
      key = (fit["upstream"], fit["task"], fit["variant"], fit["setting"], fit["fit"])
      known = series.setdefault(key, {})
      if fit["k"] is not None:
        known[fit["shots"]] = fit
  lines, doubts = [], []
  for (upstream, task, variant, setting, kind), by_shots in series.items():
    shots = sorted(by_shots)
    doubtful = sum(by_shots[shot]["status"] != "ok" for shot in shots)
    for parameter in PARAMETERS:
      trend = _trend(np.array(shots, float), [by_shots[shot][parameter] for shot in shots])
      lines.append(_judged(dict.fromkeys(SHOT_COLUMNS) | {
          "upstream": upstream, "task": task, "variant": variant, "setting": setting, "fit": kind,
          "parameter": parameter} | trend, doubtful))
      doubts.append(doubtful)
  upstreams = list(dict.fromkeys(line["upstream"] for line in lines))
  return lines + [pooled for chosen in [[name] for name in upstreams]
                  + ([upstreams] if len(upstreams) > 1 else [])
                  for pooled in _pools(lines, doubts, chosen)]


def _pools(lines, doubts, upstreams):
  """Pooled lines over all tasks after these upstreams, a fit and a parameter each."""
  for kind in dict.fromkeys(line["fit"] for line in lines):
    for parameter in PARAMETERS:
      chosen = [(line, doubt) for line, doubt in zip(lines, doubts)
                if (line["fit"], line["parameter"]) == (kind, parameter)
                and line["upstream"] in upstreams]
      if chosen:
        upstream = upstreams[0] if len(upstreams) == 1 else EVERY
        yield _judged(dict.fromkeys(SHOT_COLUMNS) | {
            "upstream": upstream, "task": EVERY, "fit": kind, "parameter": parameter}
            | _pooled([line for line, _ in chosen]), sum(doubt for _, doubt in chosen))
