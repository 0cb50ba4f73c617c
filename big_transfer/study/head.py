"""What the head's weight decay and learning rate do: upstream, downstream, to margins and norms.

Abnar et al. (arXiv:2110.02095, section 4; appendices C and D at ICLR) raise the decay of the head,
or lower its learning rate, and find upstream accuracy lower, related tasks better, and information
moved from the head to the layers below it, as margins and norms of weights tell. Here runs that
differ in one of the two alone are found among all runs of a study (`settings.numbered`, at least
three values), whatever sweep they were made for; each such series is a set of curves over the
setting, one a measured quantity.

Seeds are paired: runs of one seed see the same data in the same order whatever the setting, so
that a difference between settings, or a slope over them, is taken within each seed, and intervals
are Student's t over seeds. "(all)" pools series of an upstream: its seeds are those of each series.
Means of pooled series compare only where all have the same settings, so "(all)" is of the series
with the most runs and of those that have all its settings, at these.

Shape legend: U runs, A settings, B seeds (or series and seeds), K quantities.
"""
import glob
import json
import re

import duckdb
import numpy as np
import pyarrow as pa

from big_transfer.study import paired, ranks, settings, table

FACTORS = ("head_decay", "head_rate")
ALL = "(all)"
LEAST = paired.LEAST
QUANTILE = 0.5  # of margins

SERIES_COLUMNS = {
    "upstream": table.CELL_COLUMNS["upstream"],
    "factor": ("VARCHAR", "what differs in the series: 'head_decay' or 'head_rate'"),
    "series": ("VARCHAR", "what is held fixed, as far as it differs between series; '(all)' pools "
                          "them"),
}
_OF_SERIES = {
    "model": ("VARCHAR", "the series' model; null where series of several are pooled"),
    "family": ("VARCHAR", "its family, likewise"),
    "pooled": ("BIGINT", "series in the line: 1, but for '(all)'"),
}
_OF_CELL = {name: table.CELL_COLUMNS[name] for name in table.CELL if name != "upstream"}
QUANTITY_COLUMNS = {
    "quantity": ("VARCHAR", "'us', 'ds', 'margin', 'margin_normalised', 'total_variance', "
                            "'l2_norm'; see `evaluators.geometry`"),
} | _OF_CELL | {
    "layer": ("VARCHAR", "of margins, variances and norms; 'body' is the sum of the norms of all "
                         "layers but the head"),
    "quantile": ("DOUBLE", "of margins: 0.5, the median over examples"),
    "group": ("VARCHAR", "of norms: 'all', everything in the layer"),
}
CURVE_COLUMNS = SERIES_COLUMNS | _OF_SERIES | {
    "value": ("DOUBLE", "the factor's setting; a decay may be 0"),
} | QUANTITY_COLUMNS | {
    "mean": ("DOUBLE", "mean over seeds"),
    "error": ("DOUBLE", "its standard error; null with one seed"),
    "seeds": ("BIGINT", "run seeds in that mean; of '(all)', over its series"),
}
_STATUS_COLUMNS = {
    "level": ("DOUBLE", "nominal coverage of the intervals"),
    "status": ("VARCHAR", "'ok', 'one seed' or 'left out'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}
EFFECT_COLUMNS = SERIES_COLUMNS | _OF_SERIES | QUANTITY_COLUMNS | {
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
    "verdict": ("VARCHAR", "'rises' or 'falls' where the slope's interval excludes 0, else "
                           "'undecided'"),
} | _STATUS_COLUMNS
BEST_COLUMNS = SERIES_COLUMNS | _OF_CELL | {
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


# -- What was measured --------------------------------------------------------------------------

_GEOMETRY = """
WITH measured AS (
  SELECT run_id, step, metric, coalesce(layer, '') AS layer, quantile, "group", split, value
  FROM rows SEMI JOIN chosen USING (run_id)
  WHERE evaluator = 'geometry' AND isfinite(value) AND coalesce(status, 'ok') = 'ok' AND (
    (metric IN ('margin', 'margin_normalised') AND abs(quantile - $quantile) < 1e-9)
    OR metric = 'total_variance' OR (metric = 'l2_norm' AND "group" = 'all'))
), last AS (
  SELECT run_id, metric, layer, value FROM measured
  -- One split for all runs, where several were measured: that trained on, if it is among them.
  WHERE split IS NULL OR split = (SELECT split FROM measured WHERE split IS NOT NULL
                                  GROUP BY split ORDER BY split <> 'train', split LIMIT 1)
  QUALIFY step IS NOT DISTINCT FROM max(step) OVER (PARTITION BY run_id)
), averaged AS (
  SELECT run_id, metric, layer, avg(value) AS value FROM last GROUP BY ALL
)
SELECT * FROM averaged
UNION ALL
SELECT run_id, metric, 'body', sum(value) FROM averaged
WHERE metric = 'l2_norm' AND layer <> 'head' GROUP BY run_id, metric
"""
_DEPTH = ("stem", "block", "pre_logits", "head", "body")


def _by_depth(quantity):
  metric, layer = quantity
  kind = next((i for i, name in enumerate(_DEPTH) if layer.startswith(name)), len(_DEPTH))
  number = re.search(r"\d+$", layer)
  return metric, kind, int(number.group()) if number else 0, layer


def _quantities(points, rows, run_U):
  """What was measured of some runs, at their last evaluation.

  Args:
    points: `table.Points`.
    rows: the Parquet file of `gather.gather`.
    run_U: the runs, rows of `points.runs`.

  Returns:
    (K dicts of `QUANTITY_COLUMNS` with upstream beside; (U, K) values, NaN where not measured).
  """
  place = np.full(points.runs.num_rows, -1)
  place[run_U] = np.arange(run_U.size)
  keys, columns = [], [np.full(run_U.size, np.nan)]
  for view in points:
    last = view.take(view.last & (place[view.run] >= 0))
    keys.append(view.cell._asdict() | {"quantity": "ds"})
    columns[0][place[last.run]] = last.us
    columns.append(np.full(run_U.size, np.nan))
    columns[-1][place[last.run]] = last.ds
  keys.insert(0, {"quantity": "us"})
  chosen = pa.table({"run_id": points.runs["run_id"].take(pa.array(run_U))})
  with duckdb.connect() as database:
    database.register("rows", database.read_parquet(glob.escape(str(rows))))
    database.register("chosen", chosen)
    found = database.execute(_GEOMETRY, {"quantile": QUANTILE}).fetchall()
  number = {name: i for i, name in enumerate(chosen["run_id"].to_pylist())}
  measured = {}
  for name, metric, layer, value in found:
    measured.setdefault((metric, layer), []).append((number[name], value))
  for metric, layer in sorted(measured, key=_by_depth):
    keys.append({"quantity": metric, "layer": layer,
                 "quantile": QUANTILE if metric.startswith("margin") else None,
                 "group": "all" if metric == "l2_norm" else None})
    columns.append(np.full(run_U.size, np.nan))
    places, values = zip(*measured[metric, layer])
    columns[-1][list(places)] = values
  return [dict.fromkeys(QUANTITY_COLUMNS) | key for key in keys], np.stack(columns, 1)


# -- Which runs are compared ----------------------------------------------------------------------


def _own(known, values, columns):
  """Names in `known` of overrides that say no more than these columns do, by base config.

  Such is a key of the optimiser's rules whose value is a column's in every run that sets it.
  """
  told = {}
  for u, of_run in enumerate(known):
    for name in of_run:
      if name.startswith(f"{settings.OVERRIDE}optim.rules"):
        same = {column for column in columns if json.loads(of_run[name]) == values[column][u]}
        key = of_run["base"], name
        told[key] = told.get(key, same) & same
  return {key for key, same in told.items() if same}


def _with_rules_apart(known):
  """`known` with an override of all the optimiser's rules at once as one of each of its values."""
  whole = f"{settings.OVERRIDE}optim.rules"
  for of_run in known:
    if whole in of_run:
      rules = json.loads(of_run.pop(whole))
      for i, (pattern, of_rule) in enumerate(rules):
        of_run |= {f"{whole}[{i}][0]": json.dumps(pattern)} | {
            f"{whole}[{i}][1].{key}": json.dumps(value) for key, value in of_rule.items()}
  return known


def _all_series(points):
  """{factor: (number of each run's series (U,), -1 for none; the texts)}."""
  columns = (*FACTORS, "body_decay")
  values = {name: points.of_runs(name) for name in columns}
  known = _with_rules_apart(settings.known(points))
  own = _own(known, values, columns)
  found = {}
  for factor in FACTORS:
    others = [name for name in columns if name != factor]
    fixed = [{name: value for name, value in of_run.items() if (of_run["base"], name) not in own}
             | {name: None if np.isnan(values[name][u]) else values[name][u] for name in others}
             for u, of_run in enumerate(known)]
    found[factor] = settings.numbered(fixed, points.of_runs("upstream"), values[factor],
                                      least=LEAST)
  return found


class _Series:
  """A series, or several pooled: what its lines say of it, and what was measured."""

  def __init__(self, line, values_A, y_BAK, body_decay):
    self.line, self.values, self.y, self.body_decay = line, values_A, y_BAK, body_decay

  def at(self, values_A):
    """The measured at these settings alone, all of them the series' own."""
    return self.y[:, np.searchsorted(self.values, values_A)]


def _one(line, value_U, seed_U, y_UK, body_decay):
  """A `_Series` of runs; runs of one seed and setting are averaged."""
  values_A, at_U = np.unique(value_U, return_inverse=True)
  seeds_B, of_U = np.unique(np.nan_to_num(seed_U, nan=-1.0), return_inverse=True)
  shape = (seeds_B.size, values_A.size, y_UK.shape[1])
  total, number = np.zeros(shape), np.zeros(shape)
  np.add.at(total, (of_U, at_U), np.nan_to_num(y_UK))
  np.add.at(number, (of_U, at_U), np.isfinite(y_UK))
  y_BAK = np.divide(total, number, out=np.full(shape, np.nan), where=number > 0)
  return _Series(line, values_A, y_BAK, body_decay)


def _pooled(upstream, factor, several):
  """The `_Series` "(all)"; see the module on which are in it."""
  fullest = max(several, key=lambda one: np.isfinite(one.y[..., 0]).sum())
  parts = [one for one in several if np.isin(fullest.values, one.values).all()]
  shared = {name: parts[0].line[name] if len({one.line[name] for one in parts}) == 1 else None
            for name in ("model", "family")}
  decays = {one.body_decay for one in parts}
  line = {"upstream": upstream, "factor": factor, "series": ALL} | shared | {"pooled": len(parts)}
  return _Series(line, fullest.values,
                 np.concatenate([one.at(fullest.values) for one in parts]),
                 decays.pop() if len(decays) == 1 else np.nan)


def _series(points, rows):
  """(dicts of quantities, the `_Series` of all factors and upstreams, "(all)" after its parts)."""
  numbers = _all_series(points)
  run_U = np.flatnonzero(np.any([number_U >= 0 for number_U, _ in numbers.values()], axis=0))
  if not run_U.size:
    return [], []
  keys, y_UK = _quantities(points, rows, run_U)
  of = {name: points.of_runs(name)[run_U] for name in (
      "upstream", "model", "family", "run_seed", "body_decay", *FACTORS)}
  found = []
  for factor, (number_U, texts) in numbers.items():
    number_U = number_U[run_U]
    by_upstream = {}
    for number in np.unique(number_U[number_U >= 0]):
      mine = np.flatnonzero(number_U == number)
      first = {name: of[name][mine[0]] for name in ("upstream", "model", "family")}
      text = texts[number] if texts[number] != settings.ALL_ELSE else first["model"] or texts[number]
      line = {"upstream": first["upstream"], "factor": factor, "series": text,
              "model": first["model"], "family": first["family"], "pooled": 1}
      by_upstream.setdefault(first["upstream"], []).append(_one(
          line, of[factor][mine], of["run_seed"][mine], y_UK[mine], of["body_decay"][mine[0]]))
    for upstream, several in by_upstream.items():
      found += [*several, _pooled(upstream, factor, several)]
  return keys, found


# -- What the tables say --------------------------------------------------------------------------


def _plain(value):
  """A number as a table has it: None for NaN."""
  return None if np.isnan(value) else float(value)


def _curves(keys, series):
  mean_AK, seeds_AK = paired.mean(series.y)
  error_AK = paired.standard_error(series.y)
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
  slope = paired.interval(paired.slopes(fitted_BAK, np.log10(values_A)), level)
  low_K, high_K = tried_AK.argmax(0), len(values_A) - 1 - tried_AK[::-1].argmax(0)
  ends = [np.take_along_axis(y_BAK, at_K[None, None], axis=1)[:, 0] for at_K in (high_K, low_K)]
  change = paired.interval(ends[0] - ends[1], level)
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
    lines.append(line | _verdict(line, number))
  return lines


def _verdict(line, number):
  if number < LEAST or not line["seeds"]:
    reason = (f"{number} settings above 0, at least {LEAST} are needed" if number < LEAST else
              f"no seed has {LEAST} settings")
    return {"change": None, "verdict": "undecided", "status": "left out", "reason": reason}
  if line["seeds"] == 1:
    return {"verdict": "undecided", "status": "one seed",
            "reason": "with one run seed there is no telling an effect from chance"}
  low, high = line["slope_low"], line["slope_high"]
  return {"verdict": "rises" if low > 0 else "falls" if high < 0 else "undecided", "status": "ok",
          "reason": None}


def _neutral(series, tried_A):
  wanted = 1.0 if series.line["factor"] == "head_rate" else series.body_decay
  at = np.flatnonzero(tried_A & (series.values == wanted))
  return int(at[0]) if at.size else int(tried_A.argmax())


def _best(keys, series, level, correlations):
  accuracies = [k for k, key in enumerate(keys) if key["quantity"] in ("us", "ds")]
  y_BAK = series.y[..., accuracies]
  best_K, mean_AK, near_AK = paired.best(y_BAK, level)
  lines = []
  for k, key in enumerate(keys[k] for k in accuracies):
    tried_A = np.isfinite(y_BAK[..., k]).any(0)
    if not tried_A.any():
      continue
    best, neutral = best_K[k], _neutral(series, tried_A)
    gain, low, high, pairs = paired.interval(y_BAK[:, best, k] - y_BAK[:, neutral, k], level)
    near = series.values[near_AK[:, k]]
    several = (np.isfinite(y_BAK[..., k]).sum(1) > 1).sum() > 1
    itself = best == neutral
    line = {name: series.line[name] for name in SERIES_COLUMNS} | {
        name: key[name] for name in _OF_CELL} | {
        "best": float(series.values[best]), "best_low": float(near[0]) if several else None,
        "best_high": float(near[-1]) if several else None, "mean": float(mean_AK[best, k]),
        "neutral": float(series.values[neutral]), "gain": _plain(gain),
        "gain_low": None if itself else _plain(low), "gain_high": None if itself else _plain(high),
        "correlation": correlations.get(tuple(key[name] for name in _OF_CELL)), "level": level}
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
  keys, found = _series(points, rows)
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
