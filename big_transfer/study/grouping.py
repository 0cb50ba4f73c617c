"""Rows of a user's table to runs and points: which rows are of one run, and which are its seeds.

A run is what agrees in `upstream`, `model`, `family`, `params` and whatever else is known of it, in
the columns that files were joined on, and (but in learning curves, with `step`) in accuracy
upstream; or what agrees in `upstream` and `run`, if that is given. Rows of one run and one cell are
seeds of the downstream measurement: they are averaged, and their standard error is kept. A row
without a step is left out beside others of its run that have one: it could be any.

All functions work on the table `measured` of a database, which `external` makes: one line a
downstream measurement, with the columns `place` (order), `source` and `folder` ("FILE:ROW" of the
accuracies downstream and upstream), `us`, `ds` and those of the roles in use.
"""
from big_transfer.study import mapping, table

# Rows that differ in these alone are of one run.
OF_A_CELL = ("task", "variant", "setting", "shots", "step", "seed")
_OF_A_RUN = ("upstream", *(role for role, known in mapping.ROLES.items()
                           if known.target and role != "upstream"))

# Of several it is rounded, since the order of a sum's terms moves its last digits, and equals must
# stay equal: ranks and hulls tell them apart.
_MEAN = "if(count(*) > 1, round(avg(ds), 12), any_value(ds))"


def _known(database):
  return [name for name, *_ in database.execute("DESCRIBE measured").fetchall()]


def number_runs(database, sources):
  """Adds `run_number` to `measured`, from what tells runs apart (see the top of this file)."""
  known = _known(database)
  if "run" in sources:
    identity = ["upstream", *(f"run_{number}" for number in range(len(sources["run"])))]
  else:
    # Epochs grow along a learning curve.
    identity = [role for role in _OF_A_RUN
                if role in known and not (role == "epochs" and "step" in sources)]
    identity += [name for name in known if name.startswith("key_")]
    if "us" in sources and "step" not in sources:
      identity.append("us")
  database.execute("CREATE OR REPLACE TABLE measured AS SELECT *, dense_rank() OVER (ORDER BY "
                   f"{', '.join(identity)}) AS run_number FROM measured")


def _error_of_mean(known):
  """SQL for the standard error of a mean: from stated ones where every seed has one."""
  seeds = "stddev_samp(ds) / sqrt(count(*))"
  return seeds if "ds_error" not in known else (
      f"CASE WHEN count(ds_error) < count(*) THEN {seeds} "
      "ELSE sqrt(sum(ds_error * ds_error)) / count(*) END")


def take_upstream(database, task):
  """Gives `measured` the columns us and us_error from the rows of one of its tasks.

  Raises:
    ValueError: no such task, or one measured in several ways, of which none is the upstream one.
  """
  known = _known(database)
  tasks = [name for name, in database.execute(
      "SELECT DISTINCT task FROM measured ORDER BY task").fetchall()]
  if task not in tasks:
    near = mapping.closest(task, tasks, 1)
    raise ValueError(f"--columns: us_task:={task}: no such task; "
                     + (f"did you mean {near[0]}? " if near else "")
                     + f"tasks are {', '.join(tasks)}")
  keys = "run_number, step" if "step" in known else "run_number"
  for role in ("variant", "setting", "shots"):
    found = role in known and database.execute(
        f"SELECT min({role}), max({role}) FROM measured WHERE task = ? GROUP BY {keys} "
        f"HAVING count(DISTINCT {role}) > 1 LIMIT 1", [task]).fetchone()
    if found:
      raise ValueError(f"--columns: us_task:={task}: runs have it with {role} {found[0]} and "
                       f"{found[1]}, but one accuracy upstream; leave the rows of all but one out "
                       "of the table")
  database.execute(
      "CREATE OR REPLACE TABLE measured AS "
      "SELECT * FROM (SELECT * FROM measured WHERE task <> $1) LEFT JOIN ("
      f"SELECT {keys}, {_MEAN} AS us, {_error_of_mean(known)} AS us_error "
      f"FROM measured WHERE task = $1 GROUP BY {keys}) USING ({keys})", [task])


def check(database, sources):
  """Raises ValueError where rows of one run contradict each other, or one seed comes twice."""
  step = ["step"] if "step" in sources else []
  constant = [role for role in _OF_A_RUN if role in sources and not (role == "epochs" and step)]
  for role, within in [("us", step), *((role, []) for role in constant)]:
    found = database.execute(
        f"SELECT min({role}), max({role}), arg_min(folder, {role}), arg_max(folder, {role}) "
        f"FROM measured GROUP BY {', '.join(['run_number', *within])} "
        f"HAVING count(DISTINCT {role}) > 1 ORDER BY ALL LIMIT 1").fetchone()
    if found:
      one, other, *places = found
      raise ValueError(
          f"{places[0]} and {places[1]}: rows of one run, but its {role} is {one} and {other}; "
          "tell the runs apart, with run=COLUMN|COLUMN"
          + (", or the steps of a learning curve, with step=COLUMN"
             if role == "us" and not step else ""))
  if "seed" in sources:
    cell = [role for role in OF_A_CELL if role in _known(database)]
    found = database.execute(
        "SELECT min(source), max(source), seed, task FROM measured WHERE seed IS NOT NULL "
        f"GROUP BY {', '.join(['run_number', *cell])} HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
        ).fetchone()
    if found:
      raise ValueError(f"{found[0]} and {found[1]}: seed {found[2]} of task {found[3]} comes twice "
                       "in one run; leave one out, or tell the runs apart, with run=COLUMN|COLUMN")


def averaged(database, sources):
  """A sentence on rows that were taken for seeds though nothing says so, or None."""
  if "seed" in sources:
    return None
  cell = [role for role in OF_A_CELL if role in _known(database)]
  number, one, other = database.execute(
      "SELECT count(*), arg_min(one, place), arg_min(other, place) FROM (SELECT min(place) AS "
      "place, arg_min(source, place) AS one, arg_max(source, place) AS other FROM measured GROUP "
      f"BY {', '.join(['run_number', *cell])} HAVING count(*) > 1)").fetchone()
  return number and (
      f"{number} of the points are the mean of several rows (such as {one} and {other}), taken "
      "for seeds of one run; if they are runs, tell them apart, with run=COLUMN|COLUMN; if seeds, "
      "say seed=COLUMN")


def _runs(database, sources):
  """An Arrow table of runs, and table `named` with their run_id by run_number."""
  known = _known(database)
  name = (" || ' ' || ".join(f"coalesce(run_{number}, '')"
                             for number in range(len(sources["run"]))) if "run" in sources
          else "model" if "model" in known else "folder")
  columns = [("max(epochs)" if role == "epochs" else
              f"first({role} ORDER BY place) FILTER ({role} IS NOT NULL)")
             + f" AS {mapping.ROLES[role].target}" for role in _OF_A_RUN if role in known]
  # A name that several runs share gets a number, in the order of the rows; so does one that ends
  # like such a number, lest it be another's.
  database.execute(
      "CREATE TABLE named AS SELECT *, run_name || CASE "
      "WHEN count(*) OVER (PARTITION BY run_name) > 1 OR regexp_matches(run_name, ' #\\d+$') THEN "
      "' #' || row_number() OVER (PARTITION BY run_name ORDER BY place, run_number) ELSE '' END "
      "AS run_id FROM (SELECT run_number, min(place) AS place, "
      f"first(coalesce({name}, folder) ORDER BY place) AS run_name, "
      f"first(folder ORDER BY place) AS run_folder, {', '.join(columns)} "
      "FROM measured GROUP BY run_number)")
  return database.execute("SELECT * EXCLUDE (run_number, place) FROM named").to_arrow_table()


def points(database, sources, steps):
  """`table.Points` of `measured`; see `external.read`."""
  runs, known = _runs(database, sources), _known(database)
  cell = [name for name in ("task", "variant", "setting", "shots", "step") if name in known]
  us_error = "NULL"
  if "test_examples" in known:
    us_error = "sqrt(any_value(us) * (1 - any_value(us)) / nullif(any_value(test_examples), 0))"
  if "us_error" in known:
    us_error = f"coalesce(max(us_error), {us_error})"
  ds_seeds = "CAST(sum(ds_seeds) AS BIGINT)" if "ds_seeds" in known else "count(*)"
  last = "step = max(step) OVER (PARTITION BY run_number)" if "step" in known else "true"
  measured = database.execute(
      f"WITH grouped AS (SELECT run_number, {', '.join(cell)}, any_value(us) AS us, "
      f"{us_error} AS us_error, {_MEAN} AS ds, {_error_of_mean(known)} AS ds_error, "
      f"{ds_seeds} AS ds_seeds "
      f"FROM measured GROUP BY {', '.join(['run_number', *cell])}), "
      f'dated AS (SELECT *, coalesce({last}, true) AS "last" FROM grouped) '
      "SELECT * EXCLUDE (run_number) FROM dated "
      "JOIN (SELECT run_number, run_id FROM named) USING (run_number) "
      'WHERE "last" OR $1', [steps == "all"]).to_arrow_table()
  return table.assemble(runs, measured)
