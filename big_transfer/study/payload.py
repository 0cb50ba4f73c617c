"""What the report's page carries: points and tables by column, templates of plots, words.

A run's identity and an evaluation's upstream accuracy stand once, however many points they have; a
cell's points are arrays of numbers, packed as base64, which the page unpacks when they are drawn.
So 625,000 points take some 8 MB.

Shape legend: U runs, E evaluations (a run's step and its upstream accuracy), P points.
"""
import base64
import math

import numpy as np
import pyarrow as pa

from big_transfer.study import table
from big_transfer.study.figures import (
    by_setting, head, layers, matrices, panels, scatter, style, trends)

_PACKED = {"Uint8": np.uint8, "Uint16": np.uint16, "Uint32": np.uint32, "Float32": np.float32}
_RUN_COLUMNS = {"model": "model", "parameters": "parameters", "run": "run_name",
                "run_id": "run_id", "learning_rate": "learning_rate",
                "fraction": "upstream_fraction", "epochs": "epochs", "overrides": "overrides"}
# Of a figure's rows the page shows those of the chosen upstream and shots, but for these.
_CHOSEN_BY = {"irreducible_error": (), "parameters": (), "sample_size": (),
              "curves_hull": ("upstream",), "curves_all": ("upstream",),
              "settings": ("upstream",)} | {
                  f"{factor}_{name}": ("upstream",) for factor in head.FACTORS
                  for name in ("accuracy", "margins", "norms", "layer_norms")}


def packed(values, kind=None):
  """An array as {"kind": the name of a JavaScript typed array without "Array", "data": base64}.

  Args:
    values: numbers; NaN only where the kind is a float.
    kind: None: the smallest unsigned integer that holds them.
  """
  values = np.asarray(values)
  if kind is None:
    top = int(values.max(initial=0))
    kind = next(name for name in ("Uint8", "Uint16", "Uint32") if top <= np.iinfo(
        _PACKED[name]).max)
  content = np.ascontiguousarray(values, np.dtype(_PACKED[kind]).newbyteorder("<"))
  return {"kind": kind, "data": base64.b64encode(content.tobytes()).decode("ascii")}


def _plain(value):
  """A value as JSON has it: six digits are more than a pixel or a reader needs."""
  if isinstance(value, (float, np.floating)):
    return float(f"{value:.6g}") if math.isfinite(value) else None
  if isinstance(value, np.generic):
    return value.item()
  return value


def by_column(rows):
  """Rows as columns: {name: [values]}, texts as {"words": [...], "codes": packed}.

  Args:
    rows: dicts, all with the same keys, or an Arrow table.
  """
  if isinstance(rows, pa.Table):
    listed = {name: rows[name].to_pylist() for name in rows.column_names}
  else:
    names = list(rows[0]) if rows else []
    listed = {name: [row[name] for row in rows] for name in names}
  columns = {}
  for name, values in listed.items():
    if any(isinstance(value, str) for value in values):
      words = list(dict.fromkeys(values))
      place = {word: i for i, word in enumerate(words)}
      columns[name] = {"words": words, "codes": packed([place[value] for value in values])}
    else:
      columns[name] = [_plain(value) for value in values]
  return columns


def _evaluations(points):
  """(packed columns of E evaluations, (P,) the evaluation of each point)."""
  parts = [np.concatenate([getattr(view, name) for view in points]).astype(float)
           for name in ("run", "step", "us", "us_error", "last")]
  keys = np.nan_to_num(np.stack(parts[:3]), nan=-1.0)
  order = np.lexsort(keys[::-1])
  new = np.ones(order.size, bool)
  new[1:] = (np.diff(keys[:, order]) != 0).any(0)
  number = np.empty(order.size, int)
  number[order] = np.cumsum(new) - 1
  run, step, us, us_error, last = (part[order[new]] for part in parts)
  return {"run": packed(run), "step": packed(step, "Float32"), "us": packed(us, "Float32"),
          "us_error": packed(us_error, "Float32"), "last": packed(last, "Uint8")}, number


def _runs(runs):
  place = {name: i for i, name in enumerate(runs.families)}
  return {"families": runs.families, "family": packed([place[name] for name in runs.family]),
          **{name: by_column([{"value": _plain(value)} for value in runs.columns[column]])["value"]
             for name, column in _RUN_COLUMNS.items()}}


def _lines(rows):
  """Lines of a panel, by kind: {kind: {"us": [...], "ds": [...]}}."""
  found = {}
  for row in rows:
    line = found.setdefault(row["line"], {"us": [], "ds": []})
    line["us"].append(row["us"])
    line["ds"].append(row["ds"])
  return found


def cells(points, tables, reference, runs):
  """What the page draws of each cell, but for its points: a dict each."""
  by_cell, robust = scatter.fits_by_cell(tables), scatter.robust_curves(tables)
  marked, base = scatter.overlaid(tables)
  row = {name: i for i, name in enumerate(points.of_runs("run_id"))}
  probed = layers.overlaid(tables)
  found = []
  for view in points:
    cell = tuple(view.cell)
    fits = by_cell.get(cell, [])
    # As in the figures, the robust fit is a line alone; its value is in the words below the plot.
    plain = [fit for fit in fits if fit["fit"] != "robust"]
    others = robust.get(cell, []) + scatter.references_of(view.cell, reference)
    held, words = scatter.held_out(view, tables)
    drawn = {"lines": _lines(panels.curves(view, plain, others)),
             "saturation": panels.bands(view, plain), "frame": panels.frame(view)}
    if held:
      lower = view.us < held["us_from"]
      drawn["held_out"] = {
          "us_from": held["us_from"], "verdict": words, "fitted": int(lower.sum()),
          "lines": _lines(panels.curves(view.take(view.last), [], held["others"]))}
    if cell in marked:
      drawn["overlay"] = {"base": base[cell], "runs": sorted(row[name] for name in marked[cell])}
    if cell in probed:
      drawn["layers"] = by_column(layers.overlay_rows(runs, row, probed[cell]))
    found.append(drawn | {"verdict": panels.verdict(plain)})
  return found


def _factors(points, tables):
  """{factor: {"runs": [...], "values": [...]}} of the runs in controlled series."""
  row = {name: i for i, name in enumerate(points.of_runs("run_id"))}
  found = {}
  for factor in scatter.FACTORS:
    values = {}
    for of_cell in scatter.controlled_values(tables, factor).values():
      values |= {row[name]: value for name, value in of_cell.items()}
    if values:
      found[factor] = {"runs": list(values), "values": [_plain(v) for v in values.values()],
                       "title": scatter.FACTORS[factor]}
  return found


def templates(points, runs, kinds):
  """Specifications of a panel without data: {style of points: {axes: specification}}."""
  fullest = int(np.diff(points.first).max())
  made = {}
  for look in panels.STYLES:
    made[look] = {}
    for axes in style.AXES:
      spec = style.specification(panels.panel(
          runs.families, "UPSTREAM", axes=axes, points=look, kinds=kinds, crowd=fullest,
          sizes=runs.sizes), {})
      made[look][axes] = {key: spec[key] for key in ("config", "layer")}
  made[layers.LAYERS] = {}
  for axes in style.AXES:
    spec = style.specification(layers.overlay_panel(runs.families, "UPSTREAM", axes=axes,
                                                    crowd=fullest), {})
    made[layers.LAYERS][axes] = {key: spec[key] for key in ("config", "layer", "resolve")}
  return made


def figures(points, tables):
  """The figures of tables, all their rows by column: {name: {"spec", "rows"}}."""
  made = {
      "settings": by_setting.settings(points),
      "irreducible_error": trends.irreducible_error(tables),
      "parameters": trends.parameters(tables),
      "curves_hull": trends.curves_by_shots(tables, "hull"),
      "curves_all": trends.curves_by_shots(tables, "all"),
      "sample_size": trends.sample_size(tables),
      "sample_size_by_task": trends.sample_size_by_task(tables),
      "prediction_errors": trends.prediction_errors(tables),
      "hull_families": trends.hull_families(tables),
      "spearman": matrices.spearman_matrix(tables),
      "spearman_upstream": matrices.spearman_upstream(tables),
      "peers": matrices.peers(tables),
      "layer_curves": layers.layer_curves(tables)} | dict(head.figures(tables))
  found = {}
  for name, spec in made.items():
    if spec is not None:
      rows = spec.pop("datasets")["rows"]
      # The page has its own headings; and an address, if one that nothing loads, isn't needed.
      bare = {key: value for key, value in spec.items() if key not in ("title", "$schema")}
      found[name] = {"by": _CHOSEN_BY.get(name, ("upstream", "shots")), "spec": bare,
                     "rows": by_column(rows)}
  return found


def page_data(points, tables, reference=None):
  """All that the page's script reads, as JSON has it.

  Args:
    points: a `table.Points`.
    tables: name -> list of dicts (`controlled`: or an Arrow table).
    reference: see `figures.overview`.

  Returns:
    A dict.
  """
  runs = panels.Runs(points)
  evaluations, number = _evaluations(points)
  drawn = cells(points, tables, reference, runs)
  for view, first, cell in zip(points, points.first, drawn):
    errors = view.ds_error
    cell |= {"upstream": view.cell.upstream or "upstream", "shots": table.measure(view.cell),
             "task": style.cell_name(view.cell),
             "evaluation": packed(number[first:first + view.us.size]),
             "ds": packed(view.ds, "Float32"),
             "ds_error": None if np.isnan(errors).all() else packed(errors, "Float32")}
  kinds = {kind for cell in drawn
           for kind in (*cell["lines"], *cell.get("held_out", {}).get("lines", ()))}
  return {"runs": _runs(runs), "evaluations": evaluations, "cells": drawn,
          "factors": _factors(points, tables), "figures": figures(points, tables),
          "templates": templates(points, runs, sorted(kinds)),
          "looks": style.looks(runs.families),
          "lines": {kind: panels.LINES[kind] for kind in panels.LINES if kind in kinds},
          "plain": [panels.HULL, panels.LAWS["hull"]], "rare": style.OTHER_FAMILIES,
          "clip": style.CLIP, "sizes": runs.sizes}
