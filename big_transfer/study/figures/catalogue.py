"""All figures that a study's tables allow, by the names of their files."""
import re

from big_transfer.study import table
from big_transfer.study.figures import (
    by_setting, head, layers, matrices, scatter, style, trends)

CHOICES = ("all", "main")
_LONGEST = 150  # characters of a file's name, of which file systems take some 255


def catalogue(points, tables, *, shots, which="all", reference=None):
  """The figures of a study, one after the other as they are asked for.

  Args:
    points: a `table.Points`.
    tables: name -> list of dicts; what is absent or empty draws nothing.
    shots: the number of shots of figures that show one.
    which: "all", or "main": only the overview, one figure a task, and that of settings.
    reference: "paper" draws the published laws of tasks of the same name beside; None: none.

  Yields:
    (name of the file without an ending, Vega-Lite specification).

  Raises:
    ValueError: an unknown `which` or `reference`, or no point with so many shots.
  """
  if which not in CHOICES:
    raise ValueError(f"--figures: expected one of {', '.join(CHOICES)}, got {which!r}")
  yield "overview", scatter.overview(points, tables, shots, reference=reference)
  tasks = list(dict.fromkeys(tuple(cell)[:4] for cell in points.cells))
  several = len({task[0] for task in tasks}) > 1
  for task in tasks:
    yield _file_name(task, several), scatter.task_figure(points, tables, task, reference=reference)
  for upstream in dict.fromkeys(task[0] for task in tasks):
    if spec := by_setting.settings(points, upstream=upstream):
      yield _clean(f"settings{f'_{upstream}' if several else ''}"), spec
  if which == "main":
    return
  for axes in ("log", "logit"):
    yield f"overview_{axes}", scatter.overview(points, tables, shots, axes=axes,
                                               reference=reference)
  yield "all_runs", scatter.all_runs(points)
  made = {
      "irreducible_error": trends.irreducible_error(tables),
      "parameters": trends.parameters(tables),
      "sample_size": trends.sample_size(tables)}
  for upstream in dict.fromkeys(cell.upstream for cell in points.cells
                                if table.measure(cell) == shots):
    made |= {f"{name}{f'_{upstream}' if several else ''}": spec
             for name, spec in _of_upstream(points, tables, shots, upstream)}
  for name, spec in made.items():
    if spec is not None:
      yield _clean(name), spec


def _of_upstream(points, tables, shots, upstream):
  chosen = {"upstream": upstream, "shots": shots}
  for fit in ("hull", "all"):
    yield f"curves_{fit}", trends.curves_by_shots(tables, fit, upstream=upstream)
  yield "sample_size_by_task", trends.sample_size_by_task(tables, **chosen)
  yield "high_upstream", scatter.high_upstream(points, tables, **chosen)
  yield "prediction_errors", trends.prediction_errors(tables, **chosen)
  for factor in scatter.FACTORS:
    yield f"controlled_{factor}", scatter.controlled(points, tables, factor, **chosen)
  yield "hull_families", trends.hull_families(tables, **chosen)
  yield "overlay", scatter.overlay(points, tables, **chosen)
  yield "spearman", matrices.spearman_matrix(tables, **chosen)
  yield "spearman_upstream", matrices.spearman_upstream(tables, **chosen)
  yield "peers", matrices.peers(tables, **chosen)
  yield "layer_overlay", layers.layer_overlay(points, tables, **chosen)
  yield "layer_curves", layers.layer_curves(tables, **chosen)
  yield from head.figures(tables, **chosen)


def _file_name(task, several):
  upstream, *rest = task
  words = ([upstream] if several else []) + [part for part in rest if part not in table.USUAL]
  return _clean("_".join(str(word) for word in words if word)) or "task"


def _clean(name):
  return re.sub(r"[^A-Za-z0-9.]+", "_", name)[:_LONGEST]
