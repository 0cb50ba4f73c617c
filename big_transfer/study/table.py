"""The tables of a study: what their columns mean, and the points that laws are fitted to.

`gather.gather` (run folders) writes `rows.parquet`: one line a measured value, with the identity
of its run beside it (`COLUMNS`). `points` reads that file to `Points`: one point a run and cell,
its accuracy upstream and downstream. `external.read` makes `Points` of any other table of results.
A cell is an (upstream, task, variant, setting, shots).

`Points` is columnar: what is true of a run is held once a run, what was measured in flat arrays
sorted by cell, so that 5,000 runs on 25 tasks at 5 numbers of shots take some 60 MB.

Shape legend: U runs, C cells, P points, N points of one cell.
"""
import dataclasses
import functools
import glob
import math
import typing

import duckdb
import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from big_transfer.runs import records

RUN_COLUMNS = {
    "run_id": ("VARCHAR", "the run's identity: a hash of its config, but for logging and saving"),
    "run_name": ("VARCHAR", "the run's name"),
    "run_folder": ("VARCHAR", "the folder, or the table, that was read, as it was given"),
    "family": ("VARCHAR", "architecture: vit, mixer, resnet"),
    "model": ("VARCHAR", "the model's label, such as 'ViT 64x4/8'"),
    "parameters": ("BIGINT", "parameters of the model"),
    "flops_per_example": ("DOUBLE", "floating-point operations of one example's forward pass"),
    "upstream": ("VARCHAR", "the dataset pre-trained on"),
    "upstream_classes": ("BIGINT", "classes upstream"),
    "upstream_fraction": ("DOUBLE", "the share of the upstream training examples trained on"),
    "upstream_train_examples": ("BIGINT", "examples trained on"),
    "upstream_test_examples": ("BIGINT", "examples that upstream accuracy is measured on"),
    "us_stated": ("VARCHAR", "whence the accuracy upstream, where it was stated to the run's "
                             "evaluation; null: measured"),
    "total_steps": ("BIGINT", "optimiser steps of the whole run"),
    "batch_size": ("BIGINT", "examples a step"),
    "epochs": ("DOUBLE", "passes over the examples trained on, by the end"),
    "examples_seen": ("BIGINT", "training examples seen by the end, repeats counted"),
    "run_seed": ("BIGINT", "the run's seed"),
    "config_name": ("VARCHAR", "the base config"),
    "overrides": ("VARCHAR", "what the run changed of it, as JSON"),
    "learning_rate": ("DOUBLE", "the peak learning rate, from the overrides or the config"),
    "head_decay": ("DOUBLE", "weight decay of the head, λ of its rule in the optimiser's equation"),
    "head_rate": ("DOUBLE", "the head's learning rate as a multiple of the body's"),
    "body_decay": ("DOUBLE", "weight decay of all that no rule but the last claims"),
    "recipe": ("VARCHAR", "a hash of what the config says of training, but for the seed, the decays "
                          "and the head's rate"),
    "wall_seconds": ("DOUBLE", "time the run took, in seconds"),
}
COLUMNS = RUN_COLUMNS | {name: (column.duckdb, column.meaning)
                         for name, column in records.ROW_COLUMNS.items()} | {
    "measured_in": ("VARCHAR", "the folder of the record that the row was read from: the run's, an "
                               "evaluation's, or that of a run fine-tuned from it")}


class Cell(typing.NamedTuple):
  """What is fitted by itself: one downstream measurement after one upstream dataset."""
  upstream: str | None
  task: str | None
  variant: str | None
  setting: str | None
  shots: int | None


CELL = Cell._fields
USUAL = ("fewshot", "full")  # a setting and a variant that names of cells need not say


def measure(of):
  """How a cell, or a line of a table, was measured, as far as figures choose by it.

  Args:
    of: a `Cell`, or a mapping with `shots` and, if there is one, `setting`.

  Returns:
    The number of shots; without one the setting, such as "finetune"; None where neither says
    anything.
  """
  of = of._asdict() if isinstance(of, Cell) else of
  if of["shots"] is not None:
    return of["shots"]
  return None if of.get("setting") in USUAL else of.get("setting")


def measures(cells):
  """What `measure` says of some cells: numbers by size, then texts by alphabet, then None."""
  return sorted({measure(cell) for cell in cells},
                key=lambda name: (name is None, isinstance(name, str), name or 0))


def name_of(task, variant, setting=None):
  """A task with its variant and setting, where these say more: "cifar100 (vtab1k)"."""
  extra = [part for part in (variant, setting) if part and part not in USUAL]
  return str(task) + (f" ({', '.join(extra)})" if extra else "")


CELL_COLUMNS = {name: COLUMNS[name] for name in CELL}
MEASURED_COLUMNS = {
    "step": ("BIGINT", "optimiser steps taken when both accuracies were measured"),
    "last": ("BOOLEAN", "whether that is the run's last evaluation"),
    "us": ("DOUBLE", "accuracy upstream, a fraction of held-out examples"),
    "us_error": ("DOUBLE", "standard error of us; null where unknown"),
    "ds": ("DOUBLE", "accuracy downstream, a fraction, the mean over seeds"),
    "ds_error": ("DOUBLE", "standard error of ds, from the seeds; null with one seed"),
    "ds_seeds": ("BIGINT", "seeds in that mean: of probes, or of fine-tuning runs"),
    "examples_used": ("BIGINT", "fewest training examples that one of the probes got"),
}
POINT_COLUMNS = (RUN_COLUMNS | {name: CELL_COLUMNS[name] for name in CELL if name != "upstream"}
                 | MEASURED_COLUMNS)

L2 = 1024.0  # 2^10, the protocol's ridge strength
ARROW = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(),
         "BOOLEAN": pa.bool_()}


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """The points of one cell.

  Attributes:
    cell: the `Cell`.
    run: (N,) rows of `Points.runs`.
    us, ds: (N,) accuracies, fractions.
    us_error, ds_error: (N,) their standard errors, NaN where unknown.
    step: (N,) steps at the measurement, NaN where unknown.
    last: (N,) whether it is the run's last evaluation.
  """
  cell: Cell
  run: np.ndarray
  us: np.ndarray
  ds: np.ndarray
  us_error: np.ndarray
  ds_error: np.ndarray
  step: np.ndarray
  last: np.ndarray

  def take(self, chosen):
    """A view of the points chosen by a mask or by indices (of the view)."""
    arrays = {field.name: getattr(self, field.name)[chosen]
              for field in dataclasses.fields(self) if field.name != "cell"}
    return View(self.cell, **arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """All points of a study, by cell.

  Attributes:
    runs: a table of U runs with `RUN_COLUMNS`, ordered by run_id.
    measured: a table of P points with `MEASURED_COLUMNS`, ordered by cell, run and step.
    run: (P,) rows of `runs`.
    cells: the C cells; texts by alphabet, numbers by size, what is missing first.
    first: (C + 1,) where the points of each cell begin; the last is P.
  """
  runs: pa.Table
  measured: pa.Table
  run: np.ndarray
  cells: tuple[Cell, ...]
  first: np.ndarray

  def __len__(self):
    return self.run.size

  def __iter__(self):
    return (self.view(c) for c in range(len(self.cells)))

  @functools.cached_property
  def _columns(self):
    return {name: values(self.measured, name)
            for name in ("us", "ds", "us_error", "ds_error", "step", "last")}

  def view(self, cell):
    """The points of one cell, a `Cell` or its index, as a `View` (no copies)."""
    index = cell if isinstance(cell, int) else self.cells.index(cell)
    part = slice(self.first[index], self.first[index + 1])
    return View(self.cells[index], self.run[part],
                **{name: column[part] for name, column in self._columns.items()})

  def of_runs(self, name):
    """A column of `runs` as an array (U,): numbers as floats with NaN, texts as objects."""
    return values(self.runs, name)

  def table(self):
    """All of it as one flat table of `POINT_COLUMNS`, a line a point."""
    parts = {name: self.runs[name].take(self.run) for name in RUN_COLUMNS}
    counts = np.diff(self.first)
    for name in CELL:
      kind = ARROW[CELL_COLUMNS[name][0]]
      per_cell = pa.array([getattr(cell, name) for cell in self.cells], kind)
      parts[name] = per_cell.take(pa.array(np.repeat(np.arange(len(self.cells)), counts)))
    parts |= {name: self.measured[name] for name in MEASURED_COLUMNS}
    return pa.table({name: parts[name] for name in POINT_COLUMNS})


def values(content, name):
  """A column of an Arrow table as an array: numbers as floats with NaN, texts as objects."""
  column = content[name]
  if pa.types.is_boolean(column.type):
    return column.to_numpy().astype(bool)
  if pa.types.is_integer(column.type):
    column = column.cast(pa.float64())
  return column.to_numpy()


def assemble(runs, measured):
  """Points from two relations.

  Args:
    runs: an Arrow table of `RUN_COLUMNS` (absent columns are null), a line a run, run_id unique.
    measured: an Arrow table with run_id, task, variant, setting and shots (absent: null) and
      `MEASURED_COLUMNS` (absent: null, but for us, ds and last). Upstream is the run's.

  Returns:
    `Points`.

  Raises:
    ValueError: no points.
  """
  if not measured.num_rows:
    raise ValueError("points: expected at least one run with an accuracy upstream and one "
                     "downstream, got none; add such runs")
  runs = runs.select([name for name in runs.column_names if name in RUN_COLUMNS])
  with duckdb.connect() as database:
    database.register("given_runs", _completed(runs, RUN_COLUMNS))
    database.register("given", _completed(measured, {
        "run_id": RUN_COLUMNS["run_id"], **{name: CELL_COLUMNS[name] for name in CELL[1:]},
        **MEASURED_COLUMNS}))
    # Only runs with a point; their number is their place by run_id.
    database.execute(
        "CREATE TABLE runs AS SELECT row_number() OVER (ORDER BY run_id) - 1 AS number, * "
        "FROM given_runs SEMI JOIN given USING (run_id) ORDER BY run_id")
    order = ", ".join(f"{name} NULLS FIRST" for name in CELL)
    database.execute(
        f"CREATE TABLE placed AS SELECT number, upstream, given.*, "
        f"dense_rank() OVER (ORDER BY {order}) - 1 AS cell FROM given JOIN runs USING (run_id)")
    cells = database.execute(f"SELECT DISTINCT cell, {', '.join(CELL)} FROM placed "
                             "ORDER BY cell").fetchall()
    flat = database.execute(
        f"SELECT number, cell, {', '.join(quoted(name) for name in MEASURED_COLUMNS)} FROM placed "
        "ORDER BY cell, number, step").to_arrow_table()
    runs = database.execute("SELECT * EXCLUDE (number) FROM runs ORDER BY number").to_arrow_table()
  cell_P = flat["cell"].to_numpy()
  return Points(runs, flat.select(list(MEASURED_COLUMNS)), flat["number"].to_numpy(),
                tuple(Cell(*cell[1:]) for cell in cells),
                np.searchsorted(cell_P, np.arange(len(cells) + 1)))


def together(parts):
  """Points of several sources as one; what they call upstream keeps them apart.

  Args:
    parts: `Points`, at least one.

  Returns:
    `Points`.

  Raises:
    ValueError: two of them have a run of the same run_id.
  """
  if len(parts) == 1:
    return parts[0]
  runs = pa.concat_tables([part.runs for part in parts])
  counts = runs["run_id"].value_counts().to_pylist()
  twice = next((count["values"] for count in counts if count["counts"] > 1), None)
  if twice is not None:
    raise ValueError(f"--runs and --table: run {twice!r} is in both; leave it out of one")
  columns = ["run_id", *(name for name in CELL if name != "upstream"), *MEASURED_COLUMNS]
  return assemble(runs, pa.concat_tables([part.table().select(columns) for part in parts]))


def _completed(content, columns):
  """The table with exactly these columns, in their types; those it lacks are null."""
  return pa.table({name: content[name].cast(ARROW[kind]) if name in content.column_names
                   else pa.nulls(content.num_rows, ARROW[kind])
                   for name, (kind, _) in columns.items()})


def quoted(name):
  """A column's name as SQL wants it."""
  return '"' + name.replace('"', '""') + '"'


def points(rows, *, steps="last", l2=L2):
  """The points of the study: per finished run and cell, accuracy upstream and downstream.

  A run's last evaluation is its last step with both an upstream accuracy and some downstream one.
  Downstream are few-shot probes, linear probes on all examples and fine-tuning (`DOWNSTREAM`), each
  a setting, and so a cell, of its own. Only probes of `pre_logits` count; values that are skipped
  or not finite are left out; what else is, module `unused` tells.

  Args:
    rows: the Parquet file that `gather.gather` wrote.
    steps: "last", or "all" for every step at which both accuracies were measured.
    l2: ridge strength of the few-shot probes; linear ones chose their own.

  Returns:
    `Points`.

  Raises:
    ValueError: an unknown `steps`, no upstream accuracy, no probe, none at this strength, or
      several upstream accuracies of one run at one step.
  """
  if steps not in ("last", "all"):
    raise ValueError(f"--steps: expected 'last' or 'all', got {steps!r}")
  with duckdb.connect() as database:
    take(database, rows)
    database.execute(_PREFERRED)
    _check_accuracies(database, l2)
    columns = ", ".join(f"any_value({quoted(name)}) AS {quoted(name)}"
                        for name in RUN_COLUMNS if name != "run_id")
    runs = database.execute(
        f"SELECT run_id, {columns} FROM rows GROUP BY run_id ORDER BY run_id").to_arrow_table()
    measured = database.execute(_MEASURED, {"l2": l2, "all": steps == "all"}).to_arrow_table()
  if not measured.num_rows:
    raise ValueError("rows: no run has an upstream accuracy and a downstream one at the same step; "
                     "evaluate both at the last step (evaluators 'upstream' and 'fewshot')")
  return assemble(runs, measured)


DOWNSTREAM = ("fewshot", "linear", "finetune")  # evaluators whose accuracies are points
GOOD = "metric = 'accuracy' AND isfinite(value) AND coalesce(status, 'ok') = 'ok'"
OF_PRE_LOGITS = "coalesce(layer, 'pre_logits') = 'pre_logits' AND \"group\" IS NULL"
# A linear probe is of setting "linear"; so is fine-tuning where the head alone is trained.
DOUBLED = ("evaluator = 'finetune' AND EXISTS (FROM ds other WHERE other.evaluator = 'linear' "
            "AND other.run_id = ds.run_id AND other.step = ds.step "
            + "".join(f"AND other.{name} IS NOT DISTINCT FROM ds.{name} "
                      for name in ("task", "variant", "setting")) + ")")
_PREFERRED = f"DELETE FROM ds WHERE {DOUBLED}"


def take(database, rows):
  """Makes in a DuckDB `database` the tables `us` and `ds`: the accuracies that may be points.

  Args:
    database: the connection; the file's lines are its view `rows`.
    rows: the Parquet file that `gather.gather` wrote.
  """
  database.register("rows", database.read_parquet(glob.escape(str(rows))))
  database.execute(
      "CREATE TABLE us AS SELECT run_id, step, value, count(*) OVER (PARTITION BY run_id, step) "
      f"AS n FROM rows WHERE evaluator = 'upstream' AND {GOOD} "
      "AND coalesce(split, 'test') <> 'train'")
  database.execute(
      f"CREATE TABLE ds AS SELECT * FROM rows WHERE evaluator IN {DOWNSTREAM} AND {GOOD} "
      f"AND coalesce(split, 'test') = 'test' AND {OF_PRE_LOGITS}")


# A probe's standard error is over its seeds: what a new draw of shots would change; that of
# fine-tuning is over its runs. Means are rounded: the order of a sum's terms moves its last digits,
# and equals must stay equal, for ranks.
_MEASURED = """
WITH probes AS (
  SELECT run_id, step, task, variant, setting, shots, round(avg(value), 12) AS ds,
         stddev_samp(value) / sqrt(count(value)) AS ds_error,
         count(DISTINCT coalesce(seed, 0)) AS ds_seeds, min(examples_used) AS examples_used,
         any_value(upstream_test_examples) AS held_out
  FROM ds WHERE evaluator <> 'fewshot' OR coalesce(l2, $l2) = $l2
  GROUP BY run_id, step, task, variant, setting, shots
), joined AS (
  SELECT probes.*, us.value AS us,
         sqrt(us.value * (1 - us.value) / nullif(held_out, 0)) AS us_error,
         step = max(step) OVER (PARTITION BY run_id) AS "last"
  FROM probes JOIN us USING (run_id, step)
)
SELECT * FROM joined WHERE "last" OR $all
"""


def _check_accuracies(database, l2):
  def one(query, **values):
    return database.execute(query, values or None).fetchone()
  if not one("SELECT count(*) FROM us")[0]:
    raise ValueError("rows: no upstream accuracy (evaluator 'upstream', metric 'accuracy') in any "
                     "finished run; add the upstream evaluator to the config, or name what "
                     "published parameters were trained on by evaluate --upstream")
  if not one("SELECT count(*) FROM ds")[0]:
    raise ValueError("rows: no few-shot accuracy (evaluator 'fewshot', metric 'accuracy', layer "
                     "'pre_logits') in any finished run, nor one of a linear probe or of fine-"
                     "tuning; add the few-shot evaluator to the config")
  twice = one("SELECT run_id, step, n FROM us WHERE n > 1 ORDER BY ALL LIMIT 1")
  if twice:
    raise ValueError(f"rows: run {twice[0]} has {twice[2]} upstream accuracies at step {twice[1]}, "
                     "expected one on held-out examples; keep one such evaluator in the config")
  probes = "FROM ds WHERE evaluator = 'fewshot'"
  if one(f"SELECT count(*) {probes}")[0] and not one(
      f"SELECT count(*) {probes} AND coalesce(l2, $l2) = $l2", l2=l2)[0]:
    measured = database.execute(f"SELECT DISTINCT l2 {probes} ORDER BY l2").fetchall()
    raise ValueError(f"--l2: no probe has ridge strength {l2:g}; measured were "
                     f"{', '.join(f'{value:g}' for value, in measured)}: choose one of these")


def as_records(content):
  """A table as a list of dicts, with NaN (which JSON lacks) as None."""
  return [{key: None if isinstance(value, float) and not math.isfinite(value) else value
           for key, value in row.items()} for row in content.to_pylist()]


_MOST_CSV = 100_000  # lines: more make a file that no spreadsheet opens, of hundreds of MB


def write(stem, lines, columns):
  """Writes a table as STEM.parquet, and as STEM.csv where it has at most 100,000 lines.

  Args:
    stem: path without an ending.
    lines: an Arrow table, or dicts (a key that is absent is null).
    columns: name -> (type, meaning), such as `POINT_COLUMNS`.
  """
  schema = pa.schema([(name, ARROW[kind]) for name, (kind, _) in columns.items()])
  content = (lines if isinstance(lines, pa.Table)
             else pa.Table.from_pylist(lines, schema=schema)).cast(schema)
  parquet.write_table(content, f"{stem}.parquet", compression="zstd")
  if content.num_rows <= _MOST_CSV:
    csv.write_csv(content, f"{stem}.csv")
