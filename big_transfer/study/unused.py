"""Runs and accuracies among the rows that are of no point, as far as that could go unnoticed."""
import duckdb

from big_transfer.study import table

NO_UPSTREAM = "no upstream accuracy"
NO_DOWNSTREAM = "no downstream accuracy"
APART = "no upstream and downstream accuracy at the same step"
# Measured at that step or later; a skipped task has one row, whatever its probes would have been.
_SINCE = ("ds.step >= rows.step AND " + " AND ".join(
    f"ds.{name} IS NOT DISTINCT FROM rows.{name}"
    for name in ("run_id", "evaluator", "task", "variant", "setting"))
          + " AND (rows.status = 'skipped' OR " + " AND ".join(
              f"ds.{name} IS NOT DISTINCT FROM rows.{name}" for name in ("shots", "seed")) + ")")


def runs(rows, names):
  """Which runs no point can be of, for what they lack.

  Args:
    rows: the Parquet file that `gather.gather` wrote.
    names: ids of runs, also of such that have no row.

  Returns:
    {id: `NO_UPSTREAM`, `NO_DOWNSTREAM` or `APART`} of those that lack something.
  """
  with duckdb.connect() as database:
    table.take(database, rows)
    ups, downs, both = ({name for name, in database.execute(query).fetchall()} for query in (
        "SELECT run_id FROM us", "SELECT run_id FROM ds",
        "SELECT run_id FROM ds SEMI JOIN us USING (run_id, step)"))
  return {name: NO_UPSTREAM if name not in ups else NO_DOWNSTREAM if name not in downs else APART
          for name in names if name not in both}


def accuracies(rows):
  """The downstream accuracies in the rows that are no point, as far as that could go unnoticed.

  Args:
    rows: the Parquet file that `gather.gather` wrote.

  Returns:
    Dicts with source, task, points and reason (`external.LEFT_OUT_COLUMNS`): tasks that were
    skipped or diverged, a line a reason, and fine-tuned heads where a linear probe is there too.
    What was measured at that step or later after all isn't told, nor anything twice for its steps.
  """
  with duckdb.connect() as database:
    table.take(database, rows)
    lines = database.execute(
        "SELECT task, variant, setting, count(DISTINCT (run_id, shots, seed, l2)), "
        "count(DISTINCT run_id), status, reason FROM rows "
        f"WHERE evaluator IN {table.DOWNSTREAM} AND {table.OF_PRE_LOGITS} AND (metric = 'accuracy' "
        "OR status = 'skipped') AND (NOT coalesce(isfinite(value), false) "
        f"OR coalesce(status, 'ok') <> 'ok') AND NOT EXISTS (FROM ds WHERE {_SINCE}) "
        "GROUP BY ALL ORDER BY ALL").fetchall()
    lines += database.execute(
        "SELECT task, variant, setting, count(*), count(DISTINCT run_id), 'not used', 'a linear "
        "probe on all examples counts, not the head that was trained' "
        f"FROM ds WHERE {table.DOUBLED} GROUP BY ALL ORDER BY ALL").fetchall()
  return [{"source": "rows", "task": table.name_of(task, variant, setting), "points": points,
           "reason": f"{status or 'no value'} in {runs} run{'s' * (runs != 1)}"
                     + (f": {reason}" if reason else "")}
          for task, variant, setting, points, runs, status, reason in lines]
