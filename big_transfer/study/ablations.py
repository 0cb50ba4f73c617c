"""Which runs differ in their head's decay or learning rate alone, and what was measured of them.

Such a series has at least three values of the one setting, and all else in the runs' configs is
equal (`recipe`, the body's decay, the head's other setting), whatever sweeps they were made for.
Seeds are paired: runs of one seed see the same data in the same order whatever the setting.

"(all)" pools series of an upstream; its seeds are those of each series. Means of pooled series
compare only where all have the same settings, so it is of the series with the most runs and of
those that have all its settings, at these.

Shape legend: U runs, A settings, B seeds (or series and seeds), K quantities.
"""
import glob
import json
import re
import typing

import duckdb
import numpy as np
import pyarrow as pa

from big_transfer.study import geometry, paired, settings, table

FACTORS = ("head_decay", "head_rate")
ALL = "(all)"

OF_CELL = {name: table.CELL_COLUMNS[name] for name in table.CELL if name != "upstream"}
QUANTITY_COLUMNS = {
    "quantity": ("VARCHAR", "'us', 'ds', 'margin', 'margin_normalised', 'total_variance', "
                            "'l2_norm'; see `evaluators.geometry`"),
} | OF_CELL | {
    "layer": ("VARCHAR", "of margins, variances and norms; 'body' is the sum of the norms of all "
                         "layers but the head"),
    "quantile": ("DOUBLE", "of margins: 0.5, the median over examples"),
    "group": ("VARCHAR", "of norms: 'all', everything in the layer"),
}


# -- What was measured ----------------------------------------------------------------------------

_BODY = """
SELECT run_id, metric, layer, value FROM averaged
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
    found = database.execute(geometry.LAST + _BODY,
                             {"quantile": geometry.QUANTILE}).fetchall()
  number = {name: i for i, name in enumerate(chosen["run_id"].to_pylist())}
  measured = {}
  for name, metric, layer, value in found:
    measured.setdefault((metric, layer), []).append((number[name], value))
  for metric, layer in sorted(measured, key=_by_depth):
    keys.append({"quantity": metric, "layer": layer,
                 "quantile": geometry.QUANTILE if metric.startswith("margin") else None,
                 "group": "all" if metric == "l2_norm" else None})
    columns.append(np.full(run_U.size, np.nan))
    places, values = zip(*measured[metric, layer])
    columns[-1][list(places)] = values
  return [dict.fromkeys(QUANTITY_COLUMNS) | key for key in keys], np.stack(columns, 1)


# -- Which runs are compared ----------------------------------------------------------------------


def _all_series(points):
  """{factor: (number of each run's series (U,), -1 for none; the texts)}."""
  columns = (*FACTORS, "body_decay")
  values = {name: points.of_runs(name) for name in columns}
  recipes = points.of_runs("recipe")
  rules = settings.OVERRIDE + "optim.rules"
  said = [{name: value for name, value in of_run.items()
           if name != "base" and not name.startswith(rules)} for of_run in settings.known(points)]
  found = {}
  for factor in FACTORS:
    others = [{name: None if np.isnan(values[name][u]) else values[name][u]
               for name in columns if name != factor} for u in range(len(said))]
    found[factor] = settings.numbered(
        [of_run | other for of_run, other in zip(said, others)], points.of_runs("upstream"),
        values[factor], least=paired.LEAST,
        same=[(recipe, *other.values()) for recipe, other in zip(recipes, others)])
  return found


class Series(typing.NamedTuple):
  """A series, or several pooled.

  Attributes:
    line: what all lines say of it.
    values: (A,) settings, rising.
    y: (B, A, K) what was measured.
    seeds: (B,) run seeds.
    parts: (B,) which of the series that are pooled each is of.
    body_decay: NaN where it is unknown or differs.
  """
  line: dict
  values: np.ndarray
  y: np.ndarray
  seeds: np.ndarray
  parts: np.ndarray
  body_decay: float

  def at(self, values_A):
    """What was measured at these settings alone, all of them the series' own."""
    return self.y[:, np.searchsorted(self.values, values_A)]

  def distinct(self, known_BK):
    """(K,) different run seeds among the known."""
    return sum(known_BK[self.seeds == seed].any(0).astype(int) for seed in np.unique(self.seeds))


def _one(line, value_U, seed_U, y_UK, body_decay):
  """A `Series` of runs; runs of one seed and setting are averaged."""
  values_A, at_U = np.unique(value_U, return_inverse=True)
  seeds_B, of_U = np.unique(np.nan_to_num(seed_U, nan=-1.0), return_inverse=True)
  shape = (seeds_B.size, values_A.size, y_UK.shape[1])
  total, number = np.zeros(shape), np.zeros(shape)
  np.add.at(total, (of_U, at_U), np.nan_to_num(y_UK))
  np.add.at(number, (of_U, at_U), np.isfinite(y_UK))
  y_BAK = np.divide(total, number, out=np.full(shape, np.nan), where=number > 0)
  return Series(line, values_A, y_BAK, seeds_B, np.zeros(seeds_B.size, int), body_decay)


def _pooled(upstream, factor, several):
  """The `Series` "(all)"; see the module on which are in it."""
  fullest = max(several, key=lambda one: np.isfinite(one.y[..., 0]).sum())
  parts = [one for one in several if np.isin(fullest.values, one.values).all()]
  shared = {name: parts[0].line[name] if len({one.line[name] for one in parts}) == 1 else None
            for name in ("model", "family")}
  decays = {one.body_decay for one in parts}
  line = {"upstream": upstream, "factor": factor, "series": ALL} | shared | {"pooled": len(parts)}
  return Series(line, fullest.values,
                 np.concatenate([one.at(fullest.values) for one in parts]),
                 np.concatenate([one.seeds for one in parts]),
                 np.repeat(np.arange(len(parts)), [one.seeds.size for one in parts]),
                 decays.pop() if len(decays) == 1 else np.nan)


def find(points, rows):
  """(dicts of quantities, the `Series` of all factors and upstreams, "(all)" after its parts)."""
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
      text = (first["model"] if texts[number] == settings.ALL_ELSE else None) or texts[number]
      line = {"upstream": first["upstream"], "factor": factor, "series": text,
              "model": first["model"], "family": first["family"], "pooled": 1}
      by_upstream.setdefault(first["upstream"], []).append(_one(
          line, of[factor][mine], of["run_seed"][mine], y_UK[mine], of["body_decay"][mine[0]]))
    for upstream, several in by_upstream.items():
      found += [*several, _pooled(upstream, factor, several)]
  return keys, found
