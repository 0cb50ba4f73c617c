"""What the head's weight decay and learning rate do: upstream, downstream, to margins and norms.

Abnar et al. (arXiv:2110.02095, section 4; appendices C and D at ICLR) raise the decay of the head,
or lower its learning rate, and find upstream accuracy lower, related tasks better, and information
moved from the head to the layers below it, as margins and norms of weights tell. Here each series
of runs that differ in one of the two alone (`ablations`) is a set of curves over the setting, one
a measured quantity. A difference between settings, or a slope over them, is taken within each seed,
and intervals are Student's t over seeds (`paired`); "(all)" takes the seeds of all its series as
draws alike, so that series which differ widen its interval. Where all runs have one seed, nothing
is decided, however many series there are. Of a curve that bends, as where a high decay ends all
learning, a slope tells little: one that is above both its ends in between "peaks", and counts as
neither rising nor falling; `head_best` says whether a task is best at some other setting.

Shape legend: A settings, B seeds (or series and seeds), K quantities.
"""
import numpy as np

from big_transfer.study import ablations, paired, ranks, table

SERIES_COLUMNS = {
    "upstream": table.CELL_COLUMNS["upstream"],
    "factor": ("VARCHAR", "what differs in the series: 'head_decay' or 'head_rate'"),
    "series": ("VARCHAR", "what is held fixed, as far as it differs between series; '(all)' pools "
                          "them"),
}
_OF_SERIES = {
    "model": ("VARCHAR", "the series' model; null where series of several are pooled"),
    "family": ("VARCHAR", "its family, likewise"),
    "pooled": ("BIGINT", "series in the line: 1, but for '(all)'; a layer that not all have is of "
                         "those that have it"),
}
CURVE_COLUMNS = SERIES_COLUMNS | _OF_SERIES | {
    "value": ("DOUBLE", "the factor's setting; a decay may be 0"),
} | ablations.QUANTITY_COLUMNS | {
    "mean": ("DOUBLE", "mean over seeds; where some lack settings, as if all had all"),
    "error": ("DOUBLE", "its standard error over the seeds of each series; null with one seed"),
    "seeds": ("BIGINT", "run seeds in that mean; of '(all)', over its series"),
}
_STATUS_COLUMNS = {
    "level": ("DOUBLE", "nominal coverage of the intervals"),
    "status": ("VARCHAR", "'ok', 'one seed' or 'left out'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
EFFECT_COLUMNS = SERIES_COLUMNS | _OF_SERIES | ablations.QUANTITY_COLUMNS | {
    "settings": ("BIGINT", "settings above 0"),
    "lowest": ("DOUBLE", "the lowest of them"),
    "highest": ("DOUBLE", "the highest of them"),
    "seeds": ("BIGINT", "seeds with a slope; of '(all)', over its series"),
    "slope": ("DOUBLE", "change of the quantity (of a norm: of its decimal logarithm) a decade of "
                        "the setting, by least squares; mean over seeds"),
    "slope_low": ("DOUBLE", "low end of its interval"),
    "slope_high": ("DOUBLE", "high end of its interval"),
    "change": ("DOUBLE", "the quantity (of a norm: the norm itself) at the highest setting less "
                         "that at the lowest; mean over seeds that have both"),
    "change_low": ("DOUBLE", "low end of its interval"),
    "change_high": ("DOUBLE", "high end of its interval"),
    "verdict": ("VARCHAR", "'peaks' or 'dips' where some setting in between is above, or below, "
                           "both ends beyond what seeds explain; else 'rises' or 'falls' where the "
                           "slope's interval excludes 0; else 'undecided'"),
    "turn": ("DOUBLE", "that setting; null where it neither peaks nor dips"),
} | _STATUS_COLUMNS
BEST_COLUMNS = SERIES_COLUMNS | ablations.OF_CELL | {
    "best": ("DOUBLE", "the setting of the highest mean accuracy; upstream accuracy where task is "
                       "null"),
    "best_low": ("DOUBLE", "lowest setting that can't be told from the best: its interval of the "
                           "difference, paired over seeds, holds 0"),
    "best_high": ("DOUBLE", "highest such setting"),
    "mean": ("DOUBLE", "accuracy at the best"),
    "neutral": ("DOUBLE", "the setting to compare with: of rates 1, of decays the body's; the "
                          "lowest where that wasn't tried"),
    "gain": ("DOUBLE", "accuracy at the best less that at the neutral setting, mean over seeds; "
                       "the best is chosen after the fact, so that chance alone makes some gain"),
    "gain_low": ("DOUBLE", "low end of its interval; null where the best is neutral"),
    "gain_high": ("DOUBLE", "high end of its interval, likewise"),
    "correlation": ("DOUBLE", "the task's Spearman correlation with upstream accuracy over all "
                              "runs of the study"),
} | _STATUS_COLUMNS


def _plain(value):
  """A number as a table has it: None for NaN."""
  return None if np.isnan(value) else float(value)


def _curves(keys, series):
  mean_AK, seeds_AK = paired.means(series.y), np.isfinite(series.y).sum(0)
  # What seeds change within series; that series differ is no error of their mean.
  square_AK = np.zeros(mean_AK.shape)
  for part in np.unique(series.parts):
    y_BAK = series.y[series.parts == part]
    number_AK = np.isfinite(y_BAK).sum(0)
    square_AK += np.where(number_AK > 0, np.square(number_AK * paired.standard_error(y_BAK)), 0.0)
  error_AK = np.sqrt(square_AK) / np.maximum(seeds_AK, 1)
  # Keys that a table of one upstream has not, such as another's tasks, are NaN throughout.
  return [key | series.line | {"value": float(value), "mean": float(mean_AK[a, k]),
                               "error": _plain(error_AK[a, k]), "seeds": int(seeds_AK[a, k])}
          for k, key in enumerate(keys) for a, value in enumerate(series.values)
          if seeds_AK[a, k]]


def _effects(keys, series, level):
  above = series.values > 0
  values_A, y_BAK = series.values[above], series.y[:, above]
  tried_AK = np.isfinite(y_BAK).any(0)
  norms = np.array([key["quantity"] == "l2_norm" for key in keys])
  with np.errstate(divide="ignore"):
    logs_BAK = np.log10(np.where(norms, y_BAK, 1.0))
  fitted_BAK = np.where(norms, np.where(np.isfinite(logs_BAK), logs_BAK, np.nan), y_BAK)
  slope_BK = paired.slopes(fitted_BAK, np.log10(values_A))
  slope, distinct_K = paired.interval(slope_BK, level), series.distinct(np.isfinite(slope_BK))
  low_K, high_K = tried_AK.argmax(0), len(values_A) - 1 - tried_AK[::-1].argmax(0)
  ends = [np.take_along_axis(y_BAK, at_K[None, None], axis=1)[:, 0] for at_K in (high_K, low_K)]
  change = paired.interval(np.where(low_K < high_K, ends[0] - ends[1], np.nan), level)
  bend_K, turn_K = paired.turns(fitted_BAK, level)
  lines = []
  for k, key in enumerate(keys):
    number = int(tried_AK[:, k].sum())
    if not np.isfinite(series.y[..., k]).any():
      continue
    line = key | series.line | {
        "settings": number, "lowest": float(values_A[low_K[k]]) if number else None,
        "highest": float(values_A[high_K[k]]) if number else None, "seeds": int(slope[3][k]),
        "level": level}
    for name, found in (("slope", slope), ("change", change)):
      line |= {name + end: _plain(part[k]) for end, part in zip(("", "_low", "_high"), found)}
    lines.append(line | _verdict(line, number, int(distinct_K[k]), int(bend_K[k]),
                                 float(values_A[turn_K[k]]) if number else None))
  return lines


def _verdict(line, number, distinct, bend, turn):
  if number < paired.LEAST or not distinct:
    reason = (f"no seed has {paired.LEAST} settings" if number >= paired.LEAST else
              f"{number} settings above 0, at least {paired.LEAST} are needed")
    return {"verdict": "undecided", "turn": None, "status": "left out", "reason": reason}
  if distinct == 1:
    ends = ("slope_low", "slope_high", "change_low", "change_high")
    return dict.fromkeys(ends) | {
        "verdict": "undecided", "turn": None, "status": "one seed",
        "reason": "with one run seed there is no telling an effect from chance"}
  low, high = line["slope_low"], line["slope_high"]
  verdict = ("peaks" if bend > 0 else "dips" if bend < 0 else
             "rises" if low > 0 else "falls" if high < 0 else "undecided")
  return {"verdict": verdict, "turn": turn if bend else None, "status": "ok", "reason": None}


def _neutral(series, tried_A):
  wanted = 1.0 if series.line["factor"] == "head_rate" else series.body_decay
  at = np.flatnonzero(tried_A & (series.values == wanted))
  return int(at[0]) if at.size else int(tried_A.argmax())


def _best(keys, series, level, correlations):
  accuracies = [k for k, key in enumerate(keys) if key["quantity"] in ("us", "ds")]
  y_BAK = series.y[..., accuracies]
  best_K, mean_AK, near_AK = paired.best(y_BAK, level)
  several_K = series.distinct((np.isfinite(y_BAK).sum(1) > 1)) > 1
  lines = []
  for k, key in enumerate(keys[k] for k in accuracies):
    tried_A = np.isfinite(y_BAK[..., k]).any(0)
    if not tried_A.any():
      continue
    best, neutral = best_K[k], _neutral(series, tried_A)
    gain, low, high, _ = paired.interval(y_BAK[:, best, k] - y_BAK[:, neutral, k], level)
    near = series.values[near_AK[:, k]]
    several, itself = several_K[k], best == neutral
    if itself or not several:
      low = high = np.nan
    line = {name: series.line[name] for name in SERIES_COLUMNS} | {
        name: key[name] for name in ablations.OF_CELL} | {
        "best": float(series.values[best]), "best_low": float(near[0]) if several else None,
        "best_high": float(near[-1]) if several else None, "mean": float(mean_AK[best, k]),
        "neutral": float(series.values[neutral]), "gain": _plain(gain),
        "gain_low": _plain(low), "gain_high": _plain(high), "level": level,
        "correlation": correlations.get(tuple(key[name] for name in ablations.OF_CELL))}
    lines.append(line | ({"status": "ok", "reason": None} if several else {
        "status": "one seed", "reason": "with one run seed no setting can be told from the best"}))
  return lines


def tables(points, rows, spearman, *, level=0.9):
  """The tables of head ablations.

  Args:
    points: `table.Points`.
    rows: the Parquet file that `gather.gather` wrote, of the same runs.
    spearman: dicts with `ranks.SPEARMAN_COLUMNS`, of the same points; may be empty.
    level: nominal coverage of the intervals.

  Returns:
    {"head_curves", "head_effects", "head_best"}: dicts with `CURVE_COLUMNS`, `EFFECT_COLUMNS` and
    `BEST_COLUMNS`, by factor, upstream, series (those pooled last), quantity; empty where no runs
    differ in their head's decay or rate alone.

  Raises:
    ValueError: a level out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  keys, found = ablations.find(points, rows)
  correlations = {}
  for line in spearman:
    if line["column"] == ranks.UPSTREAM:
      cell = (line["row"], line["variant"], line["setting"], line["shots"])
      correlations.setdefault(line["upstream"], {})[cell] = line["correlation"]
  made = {"head_curves": [], "head_effects": [], "head_best": []}
  for series in found:
    made["head_curves"] += _curves(keys, series)
    made["head_effects"] += _effects(keys, series, level)
    made["head_best"] += _best(keys, series, level,
                               correlations.get(series.line["upstream"], {}))
  return made
