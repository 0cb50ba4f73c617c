"""The same runs by few-shot probes, by linear probes on all examples, and fine-tuned.

Abnar et al. (arXiv:2110.02095, section 5; appendix E at ICLR) state that what they find with
few-shot probes holds for transfer by fine-tuning too. `claims` tests three parts of that, a task
at a time, against the few-shot probe with the most shots: both order the runs alike (Spearman's
correlation above 0), both go with upstream accuracy in one direction, and both saturate (the
saturation value's interval of the upper hull ends below 1). A part is confirmed or contradicted
where intervals say so, and else undecided.

Shape legend: M runs that two cells share.
"""
import collections

import numpy as np

from big_transfer.study import paired, ranks, table

EVERY = "(all)"  # stands for a task in lines that speak of all
CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"
FLAT = 0.01  # of accuracy: a saturation value nearer to 1 is none

_TASK = ("upstream", "task", "variant")
_INTERVAL = {"level": ("DOUBLE", "nominal coverage of the intervals")}
_PAIRED = {
    "pairs": ("BIGINT", "runs that have both"),
    "gain": ("DOUBLE", "accuracy above the other's, the mean over these runs"),
    "gain_low": ("DOUBLE", "low end of its interval, Student's t over runs, at least -1; null with "
                           "one"),
    "gain_high": ("DOUBLE", "high end of its interval, at most 1"),
    "correlation": ("DOUBLE", "Spearman's correlation between the two over these runs; null with "
                              f"fewer than {ranks.MIN_RUNS}"),
    "correlation_low": ("DOUBLE", "low end of its interval"),
    "correlation_high": ("DOUBLE", "high end of its interval"),
} | _INTERVAL
SETTING_COLUMNS = table.CELL_COLUMNS | {
    "runs": ("BIGINT", "runs measured so"),
    "ds_mean": ("DOUBLE", "their mean accuracy downstream"),
    "ds_best": ("DOUBLE", "their best"),
    "than_shots": ("BIGINT", "shots of the few-shot probe that the gain is over, the most there "
                             "are; null: there is none, or it is this one"),
} | _PAIRED | {
    "us_correlation": ("DOUBLE", "Spearman's correlation with upstream accuracy over the runs"),
    "us_correlation_low": ("DOUBLE", "low end of its interval"),
    "us_correlation_high": ("DOUBLE", "high end of its interval"),
    "k": ("DOUBLE", "of Eq. 1 on the upper hull; null without a fit"),
    "alpha": ("DOUBLE", "likewise"),
    "e_IR": ("DOUBLE", "likewise"),
    "saturation": ("DOUBLE", "its saturation value"),
    "saturation_low": ("DOUBLE", "low end of its interval"),
    "saturation_high": ("DOUBLE", "high end of its interval"),
    "fit_status": ("VARCHAR", "status of that fit: 'ok', 'not identified' or 'no fit'"),
    "reason": ("VARCHAR", "what could not be computed, and why"),
}
PAIR_COLUMNS = table.CELL_COLUMNS | {
    "than_setting": ("VARCHAR", "the setting it is compared with"),
    "than_shots": ("BIGINT", "and that setting's number of shots; null where it has none"),
} | _PAIRED | {"reason": ("VARCHAR", "what could not be computed, and why")}
CLAIM_COLUMNS = {name: table.CELL_COLUMNS[name] for name in (*_TASK, "setting")} | {
    "than_shots": SETTING_COLUMNS["than_shots"],
    "runs": ("BIGINT", "runs that have both; of '(all)': tasks"),
    "order": ("VARCHAR", "whether both order the runs alike: 'confirmed', 'contradicted' or "
                         "'undecided'; of '(all)': its tasks, such as '3 confirmed'"),
    "upstream_order": ("VARCHAR", "whether both go with upstream accuracy in one direction"),
    "saturates": ("VARCHAR", "whether both saturate"),
    "verdict": ("VARCHAR", "'confirmed' where all three parts are, 'contradicted' where one is, "
                           "else 'undecided'; of '(all)': what more tasks say, if any says it"),
    "reason": ("VARCHAR", "the numbers behind it"),
}
COLUMNS = {"settings": SETTING_COLUMNS, "settings_pairs": PAIR_COLUMNS,
           "settings_claims": CLAIM_COLUMNS}


def by_task(points):
  """Tasks of a study of several settings: {(upstream, task, variant): [View]}, last evaluations.

  Of an upstream with several settings all its tasks but those of few-shot probes alone, of which
  there is nothing to compare. The views of a task are in the order of `table.measures`.
  """
  found = collections.defaultdict(list)
  for view in points:
    found[tuple(getattr(view.cell, name) for name in _TASK)].append(view.take(view.last))
  order = table.measures(points.cells)
  settings = collections.defaultdict(set)
  for (upstream, _, _), views in found.items():
    settings[upstream] |= {view.cell.setting or table.USUAL[0] for view in views}
  return {task: sorted(views, key=lambda view: order.index(table.measure(view.cell)))
          for task, views in found.items()
          if len(settings[task[0]]) > 1 and not all(map(_is_few_shot, views))}


def _is_few_shot(view):
  return (view.cell.setting or table.USUAL[0]) == table.USUAL[0]


def reference(views):
  """The few-shot probe of one task that others are compared with: of the most shots, or None."""
  few = [view for view in views if _is_few_shot(view)]
  return max(few, key=lambda view: view.cell.shots or 0, default=None)


def _correlation(x_M, y_M, level):
  """({"", "_low", "_high": of Spearman's correlation}, why there is none)."""
  found = dict.fromkeys(("", "_low", "_high"))
  if x_M.size < ranks.MIN_RUNS:
    return found, (f"{x_M.size} run{'s have' if x_M.size != 1 else ' has'} both, a correlation "
                   f"takes {ranks.MIN_RUNS}")
  value = ranks.rank_correlation(x_M, y_M)
  if value is None:
    return found, "one of the two accuracies is the same in all runs"
  low, high = ranks.correlation_interval(value, x_M.size, level)
  return {"": value, "_low": low, "_high": high}, None


def _compared(view, other, level):
  """`_PAIRED` of two views, and the reason of what is missing."""
  _, mine, theirs = np.intersect1d(view.run, other.run, assume_unique=True, return_indices=True)
  x_M, y_M = view.ds[mine], other.ds[theirs]
  line = {"pairs": int(mine.size), "level": level}
  if not mine.size:
    return line | {"reason": "no run has both"}
  centre, *ends, _ = paired.interval(x_M - y_M, level)
  values = (centre, *np.clip(ends, -1.0, 1.0))  # accuracies are no further apart
  line |= {name: float(value) if np.isfinite(value) else None
           for name, value in zip(("gain", "gain_low", "gain_high"), values)}
  found, reason = _correlation(x_M, y_M, level)
  return line | {f"correlation{end}": value for end, value in found.items()} | {"reason": reason}


def tables(points, fits, *, level=0.9):
  """The tables of the tasks of `by_task`.

  Args:
    points: `table.Points`; runs count at their last evaluation.
    fits: dicts with `saturation.FIT_COLUMNS`, of the same points.
    level: nominal coverage of the intervals.

  Returns:
    {name: dicts with the columns of `COLUMNS`}; empty where there are no several settings.
  """
  hulls = {table.Cell(*(fit[name] for name in table.CELL)): fit for fit in fits
           if fit["fit"] == "hull"}
  made = {name: [] for name in COLUMNS}
  for views in by_task(points).values():
    base = reference(views)
    lines = [_setting(view, base, hulls[view.cell], level) for view in views]
    made["settings"] += lines
    for i, view in enumerate(views):
      made["settings_pairs"] += [dict.fromkeys(PAIR_COLUMNS) | view.cell._asdict() | {
          "than_setting": other.cell.setting, "than_shots": other.cell.shots}
                                 | _compared(view, other, level) for other in views[:i]]
    if base is not None:
      few = lines[next(i for i, view in enumerate(views) if view is base)]
      made["settings_claims"] += [_claim(line, few) for view, line in zip(views, lines)
                                  if not _is_few_shot(view)]
  made["settings_claims"] += list(_over_tasks(made["settings_claims"]))
  return made if made["settings"] else {}


def _setting(view, base, fit, level):
  line = dict.fromkeys(SETTING_COLUMNS) | view.cell._asdict() | {
      "runs": int(view.run.size), "ds_mean": float(view.ds.mean()), "level": level,
      "ds_best": float(view.ds.max()), "fit_status": fit["status"]}
  reasons = ["no few-shot probe of the task to compare with"] if base is None else []
  if base is not None and base is not view:
    line |= {"than_shots": base.cell.shots} | _compared(view, base, level)
    reasons.append(line["reason"])
  found, reason = _correlation(view.ds, view.us, level)
  line |= {f"us_correlation{end}": value for end, value in found.items()}
  line |= {name: fit[name] for name in ("k", "alpha", "e_IR", "saturation", "saturation_low",
                                        "saturation_high")}
  reasons += [reason, None if fit["status"] == "ok" else f"{fit['status']}: {fit['reason']}"]
  return line | {"reason": "; ".join(dict.fromkeys(filter(None, reasons))) or None}


def _sign(line, name):
  """1 or -1 where the interval of a correlation lies on one side of 0; else 0."""
  if line[name] is None:
    return 0
  return int(line[f"{name}_low"] > 0) - int(line[f"{name}_high"] < 0)


def _claim(line, few):
  """The claim on one task and setting: a dict with `CLAIM_COLUMNS`."""
  verdicts = {1: CONFIRMED, -1: CONTRADICTED, 0: UNDECIDED}
  parts = {"order": verdicts[_sign(line, "correlation")],
           "upstream_order": verdicts[_sign(line, "us_correlation")
                                      * _sign(few, "us_correlation")],
           "saturates": _saturates(line, few)}
  return {name: line[name] for name in (*_TASK, "setting", "than_shots")} | parts | {
      "runs": line["pairs"], "verdict": _verdict(parts.values()), "reason": _numbers(line, few)}


def _saturates(line, few):
  ends = [(one["saturation_low"], one["saturation_high"]) for one in (line, few)
          if one["fit_status"] == "ok"]
  if len(ends) < 2:
    return UNDECIDED
  below = [high < 1.0 - FLAT for _, high in ends]
  at_one = [low > 1.0 - FLAT for low, _ in ends]
  return (CONFIRMED if all(below) else
          CONTRADICTED if any(below) and any(at_one) else UNDECIDED)


def _verdict(parts):
  counts = collections.Counter(parts)
  return (CONTRADICTED if counts[CONTRADICTED] else
          UNDECIDED if counts[UNDECIDED] else CONFIRMED)


def _numbers(line, few):
  said = []
  for words, one, name in (("correlation with few-shot", line, "correlation"),
                           ("with upstream", line, "us_correlation"),
                           ("few-shot with upstream", few, "us_correlation")):
    said.append(f"{words} " + (
        "unknown" if one[name] is None else
        f"{one[name]:+.2f} [{one[name + '_low']:+.2f}, {one[name + '_high']:+.2f}]"))
  for words, one in (("saturation", line), ("few-shot's", few)):
    said.append(f"{words} " + (one["fit_status"] if one["fit_status"] != "ok" else
                               f"{one['saturation']:.3f} [{one['saturation_low']:.3f}, "
                               f"{one['saturation_high']:.3f}]"))
  return "; ".join([*said, *([line["reason"]] if line["reason"] else [])])


def _over_tasks(claims):
  """A line an upstream, variant and setting: what its tasks say together."""
  groups = collections.defaultdict(list)
  for claim in claims:
    groups[claim["upstream"], claim["variant"], claim["setting"]].append(claim)
  for (upstream, variant, setting), mine in groups.items():
    counts = {name: collections.Counter(claim[name] for claim in mine)
              for name in ("order", "upstream_order", "saturates", "verdict")}
    whole = counts["verdict"]
    verdict = (CONTRADICTED if whole[CONTRADICTED] > whole[CONFIRMED] else
               CONFIRMED if whole[CONFIRMED] > whole[CONTRADICTED] else UNDECIDED)
    yield dict.fromkeys(CLAIM_COLUMNS) | {
        "upstream": upstream, "task": EVERY, "variant": variant, "setting": setting,
        "runs": len(mine), "verdict": verdict, "reason": _counted(whole)} | {
            name: _counted(counts[name]) for name in ("order", "upstream_order", "saturates")}


def is_open(claim):
  """Whether a claim of '(all)' is undecided in each of its parts on each of its tasks."""
  return all(claim[name] == f"{claim['runs']} {UNDECIDED}"
             for name in ("order", "upstream_order", "saturates"))


def _counted(verdicts):
  return ", ".join(f"{verdicts[name]} {name}" for name in (CONFIRMED, CONTRADICTED, UNDECIDED)
                   if verdicts[name])
