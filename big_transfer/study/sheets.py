"""Files of results, read as texts: CSV, TSV, Parquet, JSONL; several are joined, or stacked.

Every column is read as text and turned into numbers by its role (`external`), so that no inference
over the first rows decides what the last ones mean. Each row keeps where it was read: "PATH:ROW",
where a line of names above the rows is row 1, as in a spreadsheet, and empty lines don't count.
"""
import collections
import csv
import dataclasses
import glob
import gzip
import pathlib
import re

import duckdb

from big_transfer.study import mapping, table

_SEPARATED = (".csv", ".tsv", ".txt", ".tab")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")


@dataclasses.dataclass(frozen=True)
class Sheet:
  """One file.

  Attributes:
    path: as it was given.
    label: the file's name without its ending, which tells its columns from another file's.
    relation: its table in the database: the columns below, `#source` ("PATH:ROW") and `#row`.
    columns: names of its columns.
    rows: how many it has.
  """
  path: str
  label: str
  relation: str
  columns: tuple[str, ...]
  rows: int


@dataclasses.dataclass(frozen=True)
class Sheets:
  """All files as one relation.

  Attributes:
    relation: what to select from, as SQL; its rows are one sheet's, or a join's.
    sheets: the files.
    keys: columns that they were joined on.
    stacked: whether rows of one file come below those of another.
  """
  relation: str
  sheets: tuple[Sheet, ...]
  keys: tuple[str, ...]
  stacked: bool = False

  def resolve(self, name, role):
    """Where a column is: (SQL for its texts, SQL for "PATH:ROW").

    Raises:
      ValueError: no such column, or several.
    """
    if name in self.keys:
      firsts = ", ".join(f"{sheet.relation}.{table.quoted('#source')}" for sheet in self.sheets)
      return f"keys.{table.quoted(name)}", f"coalesce({firsts})"
    sheets = self.sheets[:1] if self.stacked else self.sheets
    found = [(sheet, name) for sheet in sheets if name in sheet.columns]
    found += [(sheet, name[len(sheet.label) + 1:]) for sheet in sheets
              if name.startswith(sheet.label + ".")
              and name[len(sheet.label) + 1:] in sheet.columns]
    if len(found) > 1:
      raise ValueError(f"--columns: {role}={name}: several files have this column; choose one of "
                       + ", ".join(f"{sheet.label}.{column}" for sheet, column in found))
    if not found:
      if self.stacked and name == "file":
        return f"{sheets[0].relation}.{table.quoted('#file')}", _source_of(sheets[0])
      raise ValueError(self._absent(name, role, sheets))
    sheet, column = found[0]
    return f"{sheet.relation}.{table.quoted(column)}", _source_of(sheet)

  @property
  def order(self):
    """SQL to order the rows by: as they stand in the files."""
    if self.stacked:
      return '"#file", "#row"'
    return ", ".join(f'{sheet.relation}."#row" NULLS LAST' for sheet in self.sheets)

  def _absent(self, name, role, sheets):
    several = len(sheets) > 1
    known = {(f"{sheet.label}.{column}" if several else column): column
             for sheet in sheets for column in sheet.columns}
    bare = mapping.closest(name, known.values(), 1)
    near = mapping.closest(name, known, 1) + [full for full in known if known[full] in bare]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    lists = "; ".join((f"{sheet.label}: " if several else "") + ", ".join(sheet.columns)
                      for sheet in sheets)
    return (f"--columns: {role}={name}: no such column in "
            f"{', '.join(sheet.path for sheet in self.sheets)}; {hint}columns are {lists}")


def _source_of(sheet):
  return f"{sheet.relation}.{table.quoted('#source')}"


def _text(value):
  """A text as SQL wants it."""
  return "'" + str(value).replace("'", "''") + "'"


def _reader(path):
  """SQL that reads a file, and how many rows stand above the first one it gives."""
  name = path.name.lower().removesuffix(".gz")
  file = _text(glob.escape(str(path)))
  if name.endswith(_PARQUET):
    return f"read_parquet({file})", 0
  if name.endswith(_JSON):
    # To depth 1 everything stays JSON: no type is inferred from the first rows.
    return f"read_json({file}, maximum_depth=1, sample_size=-1)", 0
  delimiter, names = _header(path)
  types = ", ".join(f"{_text(column)}: 'VARCHAR'" for column in names)
  return (f"read_csv({file}, auto_detect=false, header=true, quote='\"', escape='\"', "
          f"delim={_text(delimiter)}, columns={{{types}}})"), 1


def _header(path):
  """(what cells are divided by, the columns' names) from the first line, which has them all.

  Not from a look at the rows: where one of them is too short that sees a table of one column.
  """
  opened = gzip.open if path.name.endswith(".gz") else open
  with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
    line = file.readline()
    bare = re.sub(r'"[^"]*"', "", line)
    delimiter = max(",;\t|", key=bare.count)
    file.seek(0)
    names = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
  if not any(names):
    raise ValueError("its first line should name the columns, but is empty")
  counts = collections.Counter()
  for place, name in enumerate(names):
    counts[name.lower()] += 1
    names[place] = (name or "column") + (f"_{counts[name.lower()] - 1}"
                                         if counts[name.lower()] > 1 else "")
  return delimiter, names


def _labels(paths):
  """The shortest ends of the paths, without endings, that differ from each other."""
  parts = [path.resolve().with_name(path.name.removesuffix(".gz")).with_suffix("").parts
           for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    labels = ["/".join(part[-length:]) for part in parts]
    if len(set(labels)) == len(labels):
      return labels
  raise ValueError("--table: the same file is given twice: "
                   f"{', '.join(map(str, paths))}; give each once")


def _read(database, path, label, relation):
  if not path.is_file():
    raise ValueError(f"--table: {path}: no such file; expected a table of results")
  if not path.name.lower().removesuffix(".gz").endswith(_SEPARATED + _PARQUET + _JSON):
    raise ValueError(f"--table: {path}: expected a file that ends in "
                     f"{', '.join(_SEPARATED + _PARQUET + _JSON)}; rename or convert it")
  try:
    reader, above = _reader(path)
    described = database.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
    columns = tuple(row[0] for row in described)
    texts = [(f"json_extract_string({table.quoted(name)}, '$')" if kind == "JSON" else
              f"CAST({table.quoted(name)} AS VARCHAR)") for name, kind, *_ in described]
    select = ", ".join(f"nullif(trim({text}), '') AS {table.quoted(name)}"
                       for name, text in zip(columns, texts))
    database.execute(
        f"CREATE TABLE {relation} AS SELECT {select}, {_text(label)} AS \"#file\", "
        f"{_text(path)} || ':' || (row_number() OVER () + {above}) AS \"#source\", "
        f"row_number() OVER () AS \"#row\" FROM {reader}")
  except (duckdb.Error, OSError, EOFError, ValueError, csv.Error) as error:
    raise ValueError(f"--table: {path} can't be read as a table: {_shortened(error)}; correct the "
                     "file") from error
  rows = database.execute(f"SELECT count(*) FROM {relation}").fetchone()[0]
  if not rows:
    raise ValueError(f"--table: {path} has no rows; expected a table of results")
  return Sheet(str(path), label, relation, columns, rows)


def _shortened(error):
  """What an error says, without DuckDB's advice on options."""
  if "state machine" in str(error):
    return "its lines end in different ways, some in CR LF and some in LF, or it is no CSV"
  lines = [line.strip() for line in str(error).split("LINE 1:")[0].splitlines() if line.strip()]
  return " ".join(lines[:3])[:300].rstrip(".; ")


def read(database, files, join=()):
  """Reads files into a database, as one relation.

  Args:
    database: a DuckDB connection.
    files: paths; endings say the format, and .gz after them is fine.
    join: columns that all of them have. Rows that agree in these are put side by side; one file at
      most may have several rows of one key (as a long table has), and a row whose key another file
      lacks stays, with nothing in that file's columns. Without `join` files must have the same
      columns, and their rows are stacked; a column `file` then says which file a row is of.

  Returns:
    `Sheets`.

  Raises:
    ValueError: no such file, not readable, no rows, keys that are absent, agree nowhere or don't
      tell rows apart, several files without `join` whose columns differ.
  """
  paths = [pathlib.Path(file).expanduser() for file in files]
  if not paths:
    raise ValueError("--table: expected at least one file of results, got none")
  sheets = tuple(_read(database, path, label, f"sheet_{number}")
                 for number, (path, label) in enumerate(zip(paths, _labels(paths))))
  if join:
    return _joined(database, sheets, tuple(join))
  if len(sheets) == 1:
    return Sheets(sheets[0].relation, sheets, ())
  return _stacked(database, sheets)


def _stacked(database, sheets):
  for sheet in sheets[1:]:
    odd = sorted(set(sheet.columns) ^ set(sheets[0].columns))
    if odd:
      common = [name for name in sheets[0].columns
                if all(name in other.columns for other in sheets)]
      raise ValueError(
          f"--table: {sheets[0].path} and {sheet.path} have different columns (such as {odd[0]}), "
          "so their rows can't be stacked; join them, with --join and the columns that name a row"
          + (f", some of {', '.join(common)}" if common else ""))
  parts = " UNION ALL BY NAME ".join(f"SELECT * FROM {sheet.relation}" for sheet in sheets)
  database.execute(f"CREATE TABLE stacked AS {parts}")
  return Sheets("stacked", tuple(dataclasses.replace(sheet, relation="stacked")
                                 for sheet in sheets), (), stacked=True)


def _joined(database, sheets, keys):
  for sheet in sheets:
    for key in keys:
      if key not in sheet.columns:
        near = mapping.closest(key, sheet.columns, 1)
        raise ValueError(f"--join: {sheet.path} has no column {key}; "
                         + (f"did you mean {near[0]}? " if near else "")
                         + f"its columns are {', '.join(sheet.columns)}")
  if len(sheets) < 2:
    raise ValueError(f"--join: expected several files to join, got {sheets[0].path} alone; give "
                     "--table another, or leave --join away")
  names = ", ".join(map(table.quoted, keys))
  repeated = [sheet for sheet in sheets if _repeated(database, sheet, names)]
  if len(repeated) > 1:
    raise ValueError(_not_unique(database, sheets, repeated, keys, names))
  selects = [f"SELECT DISTINCT {names} FROM {sheet.relation}" for sheet in sheets]
  if not database.execute(" INTERSECT ".join(selects)).fetchall():
    seen = "; ".join(f"{sheet.path} begins with " + " ".join(map(str, database.execute(
        f"SELECT {names} FROM {sheet.relation} LIMIT 1").fetchone())) for sheet in sheets)
    raise ValueError(f"--join: no {', '.join(keys)} is in all of the files: {seen}; join on "
                     "columns that name the same thing in each")
  joins = " ".join(f"LEFT JOIN {sheet.relation} USING ({names})" for sheet in sheets)
  return Sheets(f"({' UNION '.join(selects)}) AS keys {joins}", sheets, keys)


def _repeated(database, sheet, names):
  """A key that several rows have, with two of the rows, or None."""
  return database.execute(
      f"SELECT {names}, min(\"#source\"), max(\"#source\") FROM {sheet.relation} "
      f"GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchone() if names else None


def _not_unique(database, sheets, repeated, keys, names):
  *value, one, other = _repeated(database, repeated[0], names)
  common = [name for name in sheets[0].columns
            if name not in keys and all(name in sheet.columns for sheet in sheets)]
  more = next((name for name in common if not any(
      _repeated(database, sheet, f"{names}, {table.quoted(name)}") for sheet in sheets)), None)
  return (f"--join: {', '.join(keys)} doesn't tell the rows of "
          f"{' and '.join(sheet.path for sheet in repeated)} apart: "
          f"{' '.join(map(str, value))} is in {one} and {other}; "
          + (f"join on {','.join(keys)},{more}" if more else "join on more columns, or leave the "
             "repeated rows out"))
