"""Points of any table of results: a user's own, or one that somebody published.

    points, left_out, census = external.read(
        ["results.csv"], "us=top1,ds=accuracy,task=dataset,model=model,upstream:=imagenet")

`mapping` says how columns are named, `sheets` how files are read and joined. Here texts become
numbers, percent and errors become accuracies, and rows become runs:

- Numbers may have thousands separators ("1,013.01") and a percent sign. Empty cells and NA, NaN,
  null, none and dashes are missing values.
- Percent or fractions (`scale`): "auto" decides per column. It is percent where its name or one of
  its values has a percent sign, or where a value is above 1. Where some are, but fewer than half,
  nobody can tell a column in percent with many tiny values from fractions with a few mistakes:
  that is an error which asks for ":percent" or ":fraction". Without signs and with no value above
  1 a column is fractions.
- `grouping` says which rows are of one run.
"""
import dataclasses
import re
import typing

import duckdb

from big_transfer.study import gather, grouping, mapping, sheets, table

LEFT_OUT_COLUMNS = {
    "source": ("VARCHAR", "where it was: files or globs as given, or 'fits'"),
    "task": ("VARCHAR", "the downstream task; null where it isn't about one"),
    "points": ("BIGINT", "points (of a folder of runs: runs) left out"),
    "reason": ("VARCHAR", "why"),
}
_TOKENS = "('na', 'n/a', 'nan', 'null', 'none', '-', '–', '—')"
_ERRORS = re.compile(r"(?<![a-z])(err|error|errors|loss)(?![a-z])", re.IGNORECASE)
_MOST = 9e18  # what a BIGINT holds
_PERCENT = re.compile(r"%|(?<![a-z])(percent|pct)(?![a-z])", re.IGNORECASE)


class Read(typing.NamedTuple):
  """What `read` found.

  Attributes:
    points: `table.Points`.
    left_out: dicts with `LEFT_OUT_COLUMNS`.
    census: a `gather.Census`; its "finished" counts runs, its "rows" rows of the files.
  """
  points: table.Points
  left_out: list
  census: gather.Census


@dataclasses.dataclass(frozen=True)
class _Column:
  """One column of accuracies: how it is called in messages, and what its numbers mean."""
  label: str
  source: mapping.Source
  scale: str
  values: str

  def top(self, counts):
    """What a perfect accuracy (or a complete error) is in this column: 1 or 100.

    Args:
      counts: (values, of these above 1, those with a percent sign).
    """
    number, above, signed = counts
    scale = self.source.scale or self.scale
    if scale != "auto":
      return 100.0 if scale == "percent" else 1.0
    if signed or _PERCENT.search(self.label):
      return 100.0
    if 0 < above < 0.5 * number:
      raise ValueError(
          f"--scale: column {self.label}: {above} of {number} values are above 1, so it could be "
          f"percent, or fractions with {above} mistake{'s' if above > 1 else ''}; say which, "
          f"as {self.source.column}:percent or {self.source.column}:fraction, or --scale")
    return 100.0 if above else 1.0

  def accuracy(self, number, top):
    """SQL for the accuracy as a fraction."""
    share = f"({number} / {top})"
    return f"(1 - {share})" if (self.source.values or self.values) == "error" else share


def read(files, columns, *, join=(), scale="auto", values="accuracy", steps="last"):
  """Points of files of results.

  Args:
    files: paths (CSV, TSV, Parquet, JSONL); see `sheets.read`.
    columns: what is where, as text or texts; see `mapping`.
    join: columns to join the files on; see `sheets.read`.
    scale: "auto", "percent" or "fraction": accuracies in columns that don't say it themselves.
    values: "accuracy" or "error": what such columns hold.
    steps: "last", or "all" where `step` is mapped: every step is a point.

  Returns:
    A `Read`: points, what was left out, and a census.

  Raises:
    ValueError: an unreadable file, an absent column, a value out of range (of one downstream task
      among many: that task is left out), runs that can't be told apart, or no points at all.
  """
  for name, given, known in (("scale", scale, mapping.SCALES), ("values", values, mapping.VALUES),
                             ("steps", steps, ("last", "all"))):
    if given not in known:
      raise ValueError(f"--{name}: expected one of {', '.join(known)}, got {given!r}")
  files = [str(file) for file in ([files] if isinstance(files, str) else files)]
  sources = mapping.parse(columns)
  with duckdb.connect() as database:
    database.execute(
        "CREATE MACRO bare(x) AS CASE WHEN lower(x) NOT IN " + _TOKENS + " THEN "
        "trim(rtrim(x, '%')) END")
    database.execute(
        "CREATE MACRO number(x) AS try_cast(CASE WHEN regexp_full_match(bare(x), "
        r"'[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?') THEN replace(bare(x), ',', '') ELSE bare(x) END "
        "AS DOUBLE)")
    together = sheets.read(database, files, [join] if isinstance(join, str) else join)
    labels = _lay_out(database, together, sources)
    _check_numbers(database, sources, labels)
    kinds = {role: [_Column(label, source, scale, values)
                    for label, source in zip(labels[role], sources[role])]
             for role in ("us", "ds") if role in sources}
    lost = _Lost(database, ", ".join(files))
    lost.tasks(_measure(database, sources, kinds))
    lost.rows("task IS NULL", "no task")
    lost.rows("ds IS NULL", "no accuracy downstream")
    if "us" in sources:
      lost.rows("us IS NULL", "no accuracy upstream")
    grouping.number_runs(database, sources)
    if "step" in sources:
      lost.rows("step IS NULL AND run_number IN (SELECT run_number FROM measured WHERE step IS NOT "
                "NULL)", "no step, in a run with steps")
    if "us_task" in sources:
      grouping.take_upstream(database, sources["us_task"][0].constant)
      lost.rows("us IS NULL", "no accuracy upstream (no row of the upstream task)")
    if not database.execute("SELECT count(*) FROM measured").fetchone()[0]:
      raise ValueError("--table: expected rows with an accuracy upstream and one downstream, none "
                       f"has both; left out: {lost.words()}")
    grouping.check(database, sources)
    points = grouping.points(database, sources, steps)
    doubts = (*_doubts(database, kinds), *filter(None, [grouping.averaged(database, sources)]))
  census = gather.Census(tuple(files), points.runs.num_rows, lost.counted(),
                         sum(sheet.rows for sheet in together.sheets), doubts)
  return Read(points, lost.lines, census)


def _doubts(database, kinds):
  """Sentences on columns whose names speak against what they were taken for."""
  for role, columns in kinds.items():
    for number, column in enumerate(columns):
      _, above, signed = _counts(database, f"{role}_{number}")
      scale = column.source.scale or column.scale
      if _PERCENT.search(column.label) and not above and not signed and scale == "auto":
        yield (f"column {column.label} was read as percent, as its name says, but no value is "
               f"above 1; if they are fractions, write {column.source.column}:fraction")
      if _ERRORS.search(column.label) and not column.source.values and column.values != "error":
        yield (f"column {column.label} was read as an accuracy; if it is an error, write "
               f"{column.source.column}:error, or --values error")


def _lay_out(database, together, sources):
  """Table `laid`: one line a row of the files, each role's texts beside where they stand.

  Returns:
    {role: what its columns are called}.
  """
  columns, labels = [f"row_number() OVER (ORDER BY {together.order}) AS place"], {}
  for role, given in sources.items():
    labels[role] = [source.column for source in given]
    for number, source in enumerate(given):
      if source.column is None:
        text, where = "'" + source.constant.replace("'", "''") + "'", "NULL"
      else:
        text, where = together.resolve(source.column, role)
      if source.pattern is not None:
        group = 1 if re.compile(source.pattern).groups else 0
        pattern = source.pattern.replace("'", "''")
        text = f"nullif(regexp_extract({text}, '{pattern}', {group}), '')"
      columns.append(f"{text} AS {role}_{number}, {where} AS {role}_{number}_source")
  mapped = {source.column for role in grouping.OF_A_CELL for source in sources.get(role, ())}
  for number, key in enumerate(together.keys):
    if key not in mapped:
      columns.append(f"{together.resolve(key, 'run')[0]} AS key_{number}")
  try:
    database.execute(f"CREATE TABLE laid AS SELECT {', '.join(columns)} FROM {together.relation}")
  except duckdb.Error as error:
    raise ValueError(f"--columns: {str(error).splitlines()[0]}; correct the regular expression, "
                     "of RE2's syntax") from error
  return labels


def _check_numbers(database, sources, labels):
  """Raises at the first text of a numeric role that isn't a number as it should be."""
  for role, given in sources.items():
    kind = mapping.ROLES[role].kind
    if kind in ("text", "accuracy"):
      continue
    for number, source in enumerate(given):
      text = f"{role}_{number}"
      wrong = f"number({text}) IS NULL OR NOT isfinite(number({text})) OR number({text}) < 0"
      if kind == "share":
        wrong += f" OR number({text}) > {_top_of_share(source, text)}"
      if kind == "count":
        wrong += f" OR number({text}) * {source.factor!r} > {_MOST:g}"
        if source.factor == 1.0:
          wrong += f" OR number({text}) <> round(number({text}))"
      found = database.execute(
          f"SELECT {text}_source, {text} FROM laid WHERE bare({text}) IS NOT NULL AND ({wrong}) "
          "ORDER BY place LIMIT 1").fetchone()
      if found:
        expected = {"count": f"a whole number up to {_MOST:.0e}",
                    "share": "a share from 0 to 1 (or say :percent)",
                    "number": "a number of at least 0", "error bar": "a number of at least 0"}[kind]
        raise ValueError(f"{found[0] or '--columns'}: column {labels[role][number] or role}: "
                         f"expected {expected}, got {found[1]!r}; correct it")


def _top_of_share(source, text):
  top = 100.0 if source.scale == "percent" else 1.0
  return f"(CASE WHEN contains({text}, '%') THEN 100.0 ELSE {top} END)"


def _number(role, source, text):
  """SQL for the number that a text of a numeric role is."""
  kind = mapping.ROLES[role].kind
  if kind == "share":
    return f"number({text}) / {_top_of_share(source, text)}"
  value = f"number({text}) * {source.factor!r}"
  return f"CAST(round({value}) AS BIGINT)" if kind == "count" else value


def _counts(database, text):
  """(finite numbers, of these above 1, texts with a percent sign) in a column of `laid`."""
  return database.execute(
      "SELECT count(*) FILTER (isfinite(x)), count(*) FILTER (isfinite(x) AND x > 1), "
      f"count(*) FILTER (contains(t, '%')) FROM (SELECT {text} AS t, number({text}) AS x FROM laid)"
      ).fetchone()


def _measure(database, sources, kinds):
  """Table `measured`: one line a downstream measurement, its run's and its cell's columns beside.

  Returns:
    {task: (points, reason)} of the tasks with values out of range.
  """
  common = ["place"]
  for role, (source, *_) in sources.items():
    if role in ("us", "us_error", "ds", "ds_error", "us_task", "run"):
      continue
    value = (f"{role}_0" if mapping.ROLES[role].kind == "text"
             else _number(role, source, f"{role}_0"))
    common.append(f"{value} AS {role}")
  common += [f"run_{number}" for number in range(len(sources.get("run", ())))]
  common += [name for name, *_ in database.execute("DESCRIBE laid").fetchall()
             if name.startswith("key_")]
  if "upstream" not in sources:
    label = kinds["us"][0].label if "us" in kinds else sources["us_task"][0].constant
    common.append("'" + label.replace("'", "''") + "' AS upstream")
  if "us" in kinds:
    column, = kinds["us"]
    top = column.top(_counts(database, "us_0"))
    _check_upstream(database, column, top)
    common.append(f"{column.accuracy('number(us_0)', top)} AS us")
    if "us_error" in sources:
      common.append(f"number(us_error_0) / {top} AS us_error")
  parts = []
  for number, (column, source) in enumerate(zip(kinds["ds"], sources["ds"])):
    text = f"ds_{number}"
    top = column.top(_counts(database, text))
    extra = [f"{text} AS ds_text", f"{text}_source AS source", f"{number} AS ds_number",
             f"{'us_0_source' if 'us' in kinds else text + '_source'} AS folder",
             f"{column.accuracy(f'number({text})', top)} AS ds"]
    if "ds_error" in sources:
      extra.append(f"number(ds_error_{number}) / {top} AS ds_error")
    if "task" not in sources:
      extra.append("'" + (source.name or source.column).replace("'", "''") + "' AS task")
    if source.shots is not None:
      extra.append(f"{source.shots} AS shots")
    parts.append(f"SELECT {', '.join(common + extra)} FROM laid")
  database.execute("CREATE TABLE measured AS " + " UNION ALL BY NAME ".join(parts))
  return _out_of_range(database, kinds["ds"])


def _check_upstream(database, column, top):
  found = database.execute(
      "SELECT us_0_source, us_0 FROM laid WHERE bare(us_0) IS NOT NULL AND coalesce("
      f"NOT number(us_0) BETWEEN 0 AND {top}, true) ORDER BY place LIMIT 1").fetchone()
  if found:
    raise ValueError(f"{found[0]}: column {column.label}: {_wanted(top)}, got {found[1]!r}; "
                     "correct it, or say what the column holds (:percent, :fraction, --scale)")


def _wanted(top):
  return (f"expected a number from 0 to {top:g} ("
          + ("percent" if top == 100.0 else "a fraction") + ", decimals with a point)")


def _out_of_range(database, columns):
  """{task: (points, reason)}; see `_measure`."""
  found = database.execute(
      "SELECT task, count(*), first(ds_number ORDER BY place) FILTER (wrong), "
      "first(source ORDER BY place) FILTER (wrong), first(ds_text ORDER BY place) FILTER (wrong) "
      "FROM (SELECT *, bare(ds_text) IS NOT NULL AND coalesce(NOT ds BETWEEN 0 AND 1, true) "
      "AS wrong FROM measured WHERE task IS NOT NULL) GROUP BY task HAVING bool_or(wrong) "
      "ORDER BY task").fetchall()
  bad = {}
  for task, number, ds_number, source, text in found:
    top = columns[ds_number].top(_counts(database, f"ds_{ds_number}"))
    bad[task] = number, (f"{source}: column {columns[ds_number].label}: {_wanted(top)}, got "
                         f"{text!r}")
  tasks = database.execute("SELECT count(DISTINCT task) FROM measured").fetchone()[0]
  if bad and len(bad) == tasks:
    raise ValueError(next(iter(bad.values()))[1] + "; correct it, or say what the column holds "
                     "(:percent, :fraction, --scale)")
  return bad


class _Lost:
  """What is left out of `measured`, as `LEFT_OUT_COLUMNS`."""

  def __init__(self, database, source):
    self.lines = []
    self._database, self._source = database, source

  def _add(self, task, points, reason):
    self.lines.append({"source": self._source, "task": task, "points": points, "reason": reason})

  def tasks(self, bad):
    """Leaves out whole tasks: {task: (points, reason)}."""
    for task, (points, reason) in bad.items():
      self._database.execute("DELETE FROM measured WHERE task = ?", [task])
      self._add(task, points, reason)

  def rows(self, condition, reason):
    """Leaves out the rows for which some SQL holds, counted by task."""
    for task, points in self._database.execute(
        f"SELECT task, count(*) FROM measured WHERE {condition} GROUP BY task ORDER BY task"
        ).fetchall():
      self._add(task, points, reason)
    self._database.execute(f"DELETE FROM measured WHERE {condition}")

  def counted(self):
    """{reason: points}."""
    counts = {}
    for line in self.lines:
      counts[line["reason"]] = counts.get(line["reason"], 0) + line["points"]
    return counts

  def words(self):
    """The same as a text."""
    return ", ".join(f"{points} {reason}" for reason, points in self.counted().items()) or "none"
