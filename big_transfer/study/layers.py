"""How good each layer is downstream, and the earliest that is as good as the best.

Abnar et al. (arXiv:2110.02095, section 3; Figs 6, F.22, F.23 at ICLR) probe every layer and take
the depth of the earliest layer that attains the best accuracy for what a task asks of pre-training:
accuracy by depth overlays accuracy by upstream accuracy.

The best of many layers is above the others by chance alone. So the earliest layer that reaches the
best is the first whose shortfall from it is no more than what probe seeds explain: t times its
standard error, paired over seeds (a seed draws the same examples for every layer). That error is
pooled over a run's layers, as in a randomised block design, since three seeds alone say little of
it: it has (layers - 1) (seeds - 1) degrees of freedom. t is that of a 95 % interval. In simulations
with 6 to 14 layers and 3 probe seeds, accuracy flat from some layer on, that layer is found 9 times
in 10, and a later one else. Where the layer before lies but 1.5 standard deviations of the noise
lower, it is found 7 times in 10, an earlier one twice.

Means are over the probe seeds that all of a run's layers have.
"""
import glob

import duckdb
import numpy as np
import pyarrow as pa
from scipy import stats

from big_transfer.study import table

COVERAGE = 0.95  # of the interval of a shortfall

_OF_RUN = {name: table.RUN_COLUMNS[name] for name in ("run_id", "family", "model")}
LAYER_COLUMNS = table.CELL_COLUMNS | _OF_RUN | {
    "layer": ("VARCHAR", "the layer probed: 'stem', 'block_00', ..., 'pre_logits'"),
    "depth": ("BIGINT", "its place, 0 the stem; pre_logits is the last, after the deepest block "
                        "that any row of the run names"),
    "depth_share": ("DOUBLE", "the same as a share of that of pre_logits"),
    "us": ("DOUBLE", "accuracy upstream of the run"),
    "ds": ("DOUBLE", "accuracy downstream of the layer, the mean over probe seeds"),
    "ds_error": ("DOUBLE", "its standard error over probe seeds; null with one"),
    "ds_seeds": ("BIGINT", "probe seeds in that mean"),
}
BEST_COLUMNS = table.CELL_COLUMNS | _OF_RUN | {
    "run_name": table.RUN_COLUMNS["run_name"],
    "us": LAYER_COLUMNS["us"],
    "layers": ("BIGINT", "layers probed"),
    "best_layer": ("VARCHAR", "the layer of the highest accuracy; the earliest of equals"),
    "best_ds": ("DOUBLE", "its accuracy"),
    "earliest_layer": ("VARCHAR", "the earliest whose shortfall from it is within what probe seeds "
                                  "explain; the best itself with one seed"),
    "earliest_depth_share": ("DOUBLE", "its depth as a share of that of pre_logits"),
    "last_ds": ("DOUBLE", "accuracy of pre_logits; null where it wasn't probed"),
    "gain": ("DOUBLE", "best_ds - last_ds; never below 0, since the best is chosen"),
    "gain_error": ("DOUBLE", "its standard error, paired over probe seeds; null with one, and "
                             "where pre_logits is the best"),
    "status": ("VARCHAR", "'ok', or 'one seed'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}

_BATCH = 3_000_000  # probes that are averaged at a time: some 0.5 GB

# A line a probe of a run's last evaluation, of cells that the points have; runs and cells as
# numbers. A layer's depth needs the number of blocks: the highest that any of the run's rows names.
_PROBES = r"""
CREATE TABLE probes AS
WITH named AS (
  SELECT run_id, step, task, variant, setting, shots, coalesce(seed, 0) AS seed, value,
         coalesce(layer, 'pre_logits') AS layer
  FROM rows WHERE evaluator = 'fewshot' AND metric = 'accuracy' AND isfinite(value)
  AND coalesce(status, 'ok') = 'ok' AND "group" IS NULL AND coalesce(l2, $l2) = $l2
  AND regexp_full_match(coalesce(layer, 'pre_logits'), 'stem|block_\d+|pre_logits')
)
SELECT run, cell, seed, (CASE layer WHEN 'stem' THEN 0 WHEN 'pre_logits' THEN deepest
                         ELSE 1 + split_part(layer, '_', 2)::INT END)::INT AS depth, value
FROM named JOIN runs USING (run_id, step)
JOIN cells ON runs.upstream IS NOT DISTINCT FROM cells.upstream
  AND named.task IS NOT DISTINCT FROM cells.task
  AND named.variant IS NOT DISTINCT FROM cells.variant
  AND named.setting IS NOT DISTINCT FROM cells.setting
  AND named.shots IS NOT DISTINCT FROM cells.shots
"""
_RUNS = r"""
CREATE TABLE runs AS
SELECT given.*, coalesce(blocks, 0) + 1 AS deepest FROM given JOIN (
  SELECT run_id, 1 + max(TRY_CAST(regexp_extract(layer, '^block_(\d+)$', 1) AS INT)) AS blocks
  FROM rows GROUP BY run_id) USING (run_id)
"""
# Of seeds that all of a run's layers have, where there are several layers.
_KEPT = """
CREATE OR REPLACE TABLE kept AS
WITH once AS (
  SELECT run, cell, seed, depth, avg(value) AS value FROM probes
  WHERE cell BETWEEN $first AND $last GROUP BY ALL
), counted AS (
  SELECT *, count(*) OVER (PARTITION BY run, cell, seed) AS of_seed FROM once
)
SELECT counted.* EXCLUDE (of_seed), layers FROM counted JOIN (
  SELECT run, cell, count(DISTINCT depth) AS layers FROM once GROUP BY ALL) USING (run, cell)
WHERE layers > 1 AND of_seed = layers
"""
_MEANS = """
CREATE OR REPLACE TABLE means AS
SELECT run, cell, depth, any_value(layers) AS layers, round(avg(value), 12) AS ds,
       stddev_samp(value) / sqrt(count(*)) AS ds_error, count(*) AS seeds
FROM kept GROUP BY run, cell, depth
"""
# `variance` is the mean square of the interaction of layers and seeds: what varies within layers,
# less what seeds share.
_BEST = """
CREATE OR REPLACE TABLE best AS
WITH of_seeds AS (
  SELECT run, cell, var_samp(value) AS variance FROM (
    SELECT run, cell, seed, avg(value) AS value FROM kept GROUP BY ALL) GROUP BY ALL
), found AS (
  SELECT run, cell, any_value(layers) AS layers, any_value(seeds) AS seeds, max(ds) AS best_ds,
         arg_max(depth, (ds, -depth)) AS best, max_by(ds, depth) AS last_ds, max(depth) AS last,
         (sum(ds_error * ds_error * seeds) - any_value(of_seeds.variance) * any_value(layers))
         / (any_value(layers) - 1) AS variance
  FROM means JOIN of_seeds USING (run, cell) GROUP BY ALL
), judged AS (
  SELECT found.*, CASE WHEN seeds > 1 THEN sqrt(greatest(variance, 0) * 2 / seeds) END AS error, t
  FROM found LEFT JOIN quantiles ON free = (layers - 1) * (seeds - 1)
)
SELECT judged.*, earliest FROM judged JOIN (
  SELECT run, cell, min(depth) AS earliest FROM means JOIN judged USING (run, cell)
  WHERE depth = best OR best_ds - ds <= coalesce(t * error, -1) + 1e-12 GROUP BY ALL)
USING (run, cell)
"""


def _layer(depth):
  """SQL for the name of a layer."""
  return (f"CASE {depth} WHEN 0 THEN 'stem' WHEN deepest THEN 'pre_logits' "
          f"ELSE format('block_{{:02d}}', {depth} - 1) END")


_IDENTITY = ", ".join(f"cells.{table.quoted(name)}" for name in table.CELL) + (
    ", run_id, family, model")
_LAYERS = f"""
SELECT {_IDENTITY}, {_layer("depth")} AS layer, depth::BIGINT AS depth, depth / deepest AS
       depth_share, us, ds, ds_error, seeds AS ds_seeds
FROM means JOIN runs USING (run) JOIN cells USING (cell) ORDER BY cell, run, depth
"""
_BEST_LAYERS = f"""
SELECT {_IDENTITY}, run_name, us, layers, {_layer("best")} AS best_layer, best_ds,
       {_layer("earliest")} AS earliest_layer, earliest / deepest AS earliest_depth_share,
       CASE WHEN last = deepest THEN last_ds END AS last_ds,
       CASE WHEN last = deepest THEN best_ds - last_ds END AS gain,
       CASE WHEN last = deepest AND best < deepest THEN error END AS gain_error,
       CASE WHEN seeds > 1 THEN 'ok' ELSE 'one seed' END AS status,
       CASE WHEN seeds = 1 THEN 'one probe seed says nothing of what others would change' END
       AS reason
FROM best JOIN runs USING (run) JOIN cells USING (cell) ORDER BY cell, run
"""


def last_of_runs(points):
  """A table of the runs: their number, what identifies them, their last evaluation."""
  last = points.measured["last"].to_numpy().astype(bool)
  runs, first = np.unique(points.run[last], return_index=True)
  of_runs = points.runs.select([*_OF_RUN, "run_name", "upstream"]).take(pa.array(runs))
  at = pa.array(np.flatnonzero(last)[first])
  columns = {name: points.measured[name].take(at) for name in ("step", "us")}
  return of_runs.append_column("run", pa.array(runs, pa.int32())).append_column(
      "step", columns["step"]).append_column("us", columns["us"])


def _batches(database):
  """(first, last) cells of so many that a batch of probes is no larger than it should be."""
  first, filled = None, 0
  counts = database.execute("SELECT cell, count(*) FROM probes GROUP BY cell ORDER BY cell")
  for cell, number in counts.fetchall():
    if first is not None and filled + number > _BATCH:
      yield first, before
      first, filled = None, 0
    first, before, filled = cell if first is None else first, cell, filled + number
  if first is not None:
    yield first, before


def tables(points, rows, *, l2=table.L2):
  """Accuracy downstream by layer, of the runs that had more than one layer probed.

  Args:
    points: `table.Points`.
    rows: the Parquet file that `gather.gather` wrote, of the same runs.
    l2: ridge strength of the probes.

  Returns:
    (an Arrow table of `LAYER_COLUMNS`, by cell, run and depth; one of `BEST_COLUMNS`, a line a run
    and cell). Runs count at their last evaluation.
  """
  numbers = {"cell": pa.array(range(len(points.cells)), pa.int32())}
  cells = pa.table(numbers | {
      name: pa.array([getattr(cell, name) for cell in points.cells], table.ARROW[kind])
      for name, (kind, _) in table.CELL_COLUMNS.items()})
  parts = {"layers": [], "best": []}
  with duckdb.connect() as database:
    database.register("rows", database.read_parquet(glob.escape(str(rows))))
    database.register("given", last_of_runs(points))
    database.register("cells", cells)
    database.execute(_RUNS)
    database.execute(_PROBES, {"l2": l2})
    for first, last in list(_batches(database)):
      database.execute(_KEPT, {"first": first, "last": last})
      database.execute(_MEANS)
      free = database.execute("SELECT DISTINCT (layers - 1) * (seeds - 1) FROM means "
                              "WHERE seeds > 1").fetchnumpy()
      free = next(iter(free.values()))
      database.register("quantiles", pa.table({
          "free": free, "t": stats.t.ppf(0.5 + COVERAGE / 2.0, free)}))
      database.execute(_BEST)
      parts["layers"].append(database.execute(_LAYERS).to_arrow_table())
      parts["best"].append(database.execute(_BEST_LAYERS).to_arrow_table())
  return tuple(_typed(parts[name], columns)
               for name, columns in (("layers", LAYER_COLUMNS), ("best", BEST_COLUMNS)))


def _typed(parts, columns):
  schema = pa.schema([(name, table.ARROW[kind]) for name, (kind, _) in columns.items()])
  return pa.concat_tables([part.cast(schema) for part in parts]) if parts else (
      schema.empty_table())
