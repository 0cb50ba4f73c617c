"""Which runs and which model families make up the upper hull.

The runs on the hull are those that some mixture of the best needs (see `hull`). The paper asks
whether one architecture sets the trend; a family's share of the hull answers that by the length,
in upstream accuracy, along which its runs are the nearest vertices, so that a cluster of vertices
close together doesn't count for more than the stretch it covers.
"""
import numpy as np

from big_transfer.study import hull, table

RUN_COLUMNS = table.CELL_COLUMNS | {
    "run_id": table.RUN_COLUMNS["run_id"],
    "family": table.RUN_COLUMNS["family"],
    "us": table.MEASURED_COLUMNS["us"],
    "ds": table.MEASURED_COLUMNS["ds"],
    "order": ("BIGINT", "place along the hull, 1 at the lowest upstream accuracy"),
}
FAMILY_COLUMNS = table.CELL_COLUMNS | {
    "family": table.RUN_COLUMNS["family"],
    "runs": ("BIGINT", "runs of the family in the cell"),
    "share_of_runs": ("DOUBLE", "their share of the cell's runs"),
    "vertices": ("BIGINT", "vertices of the upper hull that are points of theirs"),
    "share_of_hull": ("DOUBLE", "share of the hull's upstream range that is nearest to those; null "
                                "where the hull has no length"),
}


def hull_runs(points):
  """The runs on the upper hull of each cell.

  Args:
    points: a `table.Points`.

  Returns:
    Dicts with `RUN_COLUMNS`, by rising upstream accuracy within a cell. With several points a run
    ("--steps all") a run may occur more than once.
  """
  name_U, family_U = points.of_runs("run_id"), points.of_runs("family")
  lines = []
  for view in points:
    for order, i in enumerate(hull.upper_hull(view.us, view.ds), 1):
      lines.append(view.cell._asdict() | {
          "run_id": name_U[view.run[i]], "family": family_U[view.run[i]],
          "us": float(view.us[i]), "ds": float(view.ds[i]), "order": order})
  return lines


def hull_families(points):
  """How much of the upper hull of each cell is each family's.

  Args:
    points: a `table.Points`.

  Returns:
    Dicts with `FAMILY_COLUMNS`: every family of a cell, also those with no vertex, by name.
  """
  family_U = points.of_runs("family")
  names, code_U = np.unique([name or "" for name in family_U], return_inverse=True)
  lines = []
  for view in points:
    vertices = hull.upper_hull(view.us, view.ds)
    length_V = _nearest_lengths(view.us[vertices])
    code_V, runs = code_U[view.run[vertices]], np.unique(view.run)
    in_cell = np.bincount(code_U[runs], minlength=names.size)
    on_hull = np.bincount(code_V, minlength=names.size)
    lengths = np.bincount(code_V, length_V, minlength=names.size)
    total = length_V.sum()
    for code in np.flatnonzero(in_cell):
      lines.append(view.cell._asdict() | {
          "family": str(names[code]) or None, "runs": int(in_cell[code]),
          "share_of_runs": float(in_cell[code] / runs.size), "vertices": int(on_hull[code]),
          "share_of_hull": float(lengths[code] / total) if total > 0 else None})
  return lines


def _nearest_lengths(at_V):
  """Length of the range, from the first place to the last, that is nearest to each place (V,)."""
  halves = np.diff(at_V) / 2.0
  return np.append(halves, 0.0) + np.insert(halves, 0, 0.0)
