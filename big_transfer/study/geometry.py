"""Margins and norms of every run that had them measured, a line a run and layer.

What `evaluators.geometry` measures, while a run trained or afterwards (`big_transfer.evaluate`), of
any run; `head` follows the same over the head's settings.
"""
import glob

import duckdb
import pyarrow as pa

from big_transfer.study import layers, table

QUANTILE = 0.5  # of margins

COLUMNS = {name: table.RUN_COLUMNS[name]
           for name in ("upstream", "run_id", "run_name", "family", "model")} | {
    "us": ("DOUBLE", "accuracy upstream at the run's last evaluation"),
    "step": ("BIGINT", "optimiser steps taken when the margins and norms were measured, the last "
                       "time they were"),
    "layer": ("VARCHAR", "'stem', 'block_00', ..., 'pre_logits', and of norms 'head'"),
    "depth": ("BIGINT", "its place, 0 the stem; the head comes after pre_logits"),
    "margin": ("DOUBLE", "median margin of upstream examples there"),
    "margin_normalised": ("DOUBLE", "the same over the square root of total_variance"),
    "total_variance": ("DOUBLE", "of the activations there, over the same examples"),
    "l2_norm": ("DOUBLE", "of all the layer's parameters; null where it has none"),
}

# `averaged`: (run_id, metric, layer, value) of the runs in `chosen`, at the last step at which a
# run's geometry was measured. Margins of one split for all runs, where several were measured: that
# trained on, if it is among them.
LAST = """
WITH measured AS (
  SELECT run_id, step, metric, coalesce(layer, '') AS layer, split, value
  FROM rows SEMI JOIN chosen USING (run_id)
  WHERE evaluator = 'geometry' AND isfinite(value) AND coalesce(status, 'ok') = 'ok' AND (
    (metric IN ('margin', 'margin_normalised') AND abs(quantile - $quantile) < 1e-9)
    OR metric = 'total_variance' OR (metric = 'l2_norm' AND "group" = 'all'))
), last AS (
  SELECT run_id, step, metric, layer, value FROM measured
  WHERE split IS NULL OR split = (SELECT split FROM measured WHERE split IS NOT NULL
                                  GROUP BY split ORDER BY split <> 'train', split LIMIT 1)
  QUALIFY step IS NOT DISTINCT FROM max(step) OVER (PARTITION BY run_id)
), averaged AS (
  SELECT run_id, metric, layer, any_value(step) AS step, avg(value) AS value FROM last
  GROUP BY run_id, metric, layer
)
"""
_METRICS = ("margin", "margin_normalised", "total_variance", "l2_norm")
_LINES = f"""
, lines AS (
  SELECT run_id, layer, any_value(step) AS step,
         {", ".join(f"any_value(value) FILTER (metric = '{name}') AS {name}" for name in _METRICS)},
         TRY_CAST(regexp_extract(layer, '^block_(\\d+)$', 1) AS BIGINT) AS block
  FROM averaged WHERE layer <> '' GROUP BY run_id, layer
), placed AS (
  SELECT *, CASE layer WHEN 'stem' THEN 0
    WHEN 'pre_logits' THEN coalesce(max(block) OVER of_run, -1) + 2
    WHEN 'head' THEN coalesce(max(block) OVER of_run, -1) + 3 ELSE block + 1 END AS depth
  FROM lines WINDOW of_run AS (PARTITION BY run_id)
)
SELECT {", ".join(("placed." if name == "step" else "") + name for name in COLUMNS)}
FROM placed JOIN chosen USING (run_id) ORDER BY upstream, run, depth
"""


def lines(points, rows):
  """Margins and norms by layer, of the runs that had some measured.

  Args:
    points: `table.Points`.
    rows: the Parquet file that `gather.gather` wrote, of the same runs.

  Returns:
    An Arrow table of `COLUMNS`, by upstream, run and depth; at the last step at which a run's
    margins or norms were measured.
  """
  with duckdb.connect() as database:
    database.register("rows", database.read_parquet(glob.escape(str(rows))))
    database.register("chosen", layers.last_of_runs(points))
    found = database.execute(LAST + _LINES, {"quantile": QUANTILE}).to_arrow_table()
  return found.cast(pa.schema([(name, table.ARROW[kind]) for name, (kind, _) in COLUMNS.items()]))


def best_runs(content):
  """The lines of the run best upstream of each upstream and family; of equals the first by run_id.

  Args:
    content: the table of `lines`, or its lines as dicts; None: no lines.

  Returns:
    Dicts, by upstream, family and depth.
  """
  if content is None or not len(content):
    return []
  given = content if isinstance(content, pa.Table) else pa.Table.from_pylist(content)
  with duckdb.connect() as database:
    database.register("given", given)
    return database.execute(
        "SELECT * FROM given QUALIFY dense_rank() OVER (PARTITION BY upstream, family "
        "ORDER BY us DESC, run_id) = 1 ORDER BY upstream, family, depth"
    ).to_arrow_table().to_pylist()
