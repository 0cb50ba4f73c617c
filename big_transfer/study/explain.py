"""Why downstream accuracy saturates: layers, head, margins (arXiv:2110.02095, sections 3 and 4).

`layers` says which layer serves a task best, `head` what the head's decay and learning rate do,
`geometry` what margins and norms any run has; `explained` puts layers and head beside a cell's
saturation value and its correlation with upstream accuracy.
"""
import duckdb
import numpy as np

from big_transfer.study import ablations, geometry, head, layers, ranks, saturation, table

EXPLAINED_COLUMNS = table.CELL_COLUMNS | {
    "runs": ("BIGINT", "runs in the cell"),
    "saturation": ("DOUBLE", "saturation value of the upper hull; null without a fit"),
    "saturation_low": ("DOUBLE", "low end of its interval"),
    "saturation_high": ("DOUBLE", "high end of its interval"),
    "saturation_status": ("VARCHAR", "status of that fit: 'ok', 'not identified' or 'no fit'"),
    "correlation": ("DOUBLE", "Spearman's correlation of the task with upstream accuracy, over "
                              "all runs, architectures pooled"),
    "correlation_low": ("DOUBLE", "low end of its interval"),
    "correlation_high": ("DOUBLE", "high end of its interval"),
    "correlation_within": ("DOUBLE", "the same inside an architecture, the mean over those with at "
                                     f"least {ranks.MIN_RUNS} runs; null without"),
    "run_id": ("VARCHAR", "the run best upstream among those with several layers probed, of "
                          "equals the first by run_id; the layers that follow are its"),
    "run_name": table.RUN_COLUMNS["run_name"],
    "model": ("VARCHAR", "its model"),
    "best_layer": ("VARCHAR", "its best layer"),
    "best_layer_ds": ("DOUBLE", "accuracy of that layer"),
    "earliest_layer": ("VARCHAR", "the earliest layer that reaches the best"),
    "earliest_depth_share": ("DOUBLE", "its depth as a share of that of pre_logits"),
    "last_layer_gain": ("DOUBLE", "accuracy of the best layer less that of pre_logits"),
    "runs_with_layers": ("BIGINT", "runs with several layers probed"),
    "mean_earliest_depth_share": ("DOUBLE", "mean over these runs of their earliest_depth_share"),
    "best_head_decay": ("DOUBLE", "the head's decay of the highest accuracy, '(all)' of head_best"),
    "best_head_rate": ("DOUBLE", "the head's learning rate, likewise"),
    "upstream_best_head_decay": ("DOUBLE", "the head's decay of the highest accuracy upstream"),
    "upstream_best_head_rate": ("DOUBLE", "the head's learning rate, likewise"),
}
COLUMNS = {
    "layers": layers.LAYER_COLUMNS, "best_layers": layers.BEST_COLUMNS,
    "head_curves": head.CURVE_COLUMNS, "head_effects": head.EFFECT_COLUMNS,
    "head_best": head.BEST_COLUMNS, "explained": EXPLAINED_COLUMNS,
    "geometry": geometry.COLUMNS,
}

_LAYERS_OF_CELLS = f"""
SELECT {", ".join(table.CELL)}, arg_min(given, (-us, run_id)) AS best,
       count(*) AS runs, avg(earliest_depth_share) AS share FROM given GROUP BY ALL
"""


def tables(points, rows, fits, spearman, *, l2=table.L2, level=0.9):
  """The tables that say why accuracy saturates.

  Args:
    points: `table.Points`.
    rows: the Parquet file that `gather.gather` wrote; points of other sources may be among
      `points`.
    fits: dicts with `saturation.FIT_COLUMNS`, of the same points.
    spearman: dicts with `ranks.SPEARMAN_COLUMNS`, of the same points; may be empty.
    l2: ridge strength of the probes.
    level: nominal coverage of the intervals.

  Returns:
    {name: lines} of `COLUMNS`: `layers`, `best_layers` and `geometry` are Arrow tables, the others
    dicts. Absent are `layers` and `best_layers` where no run has several layers probed, the tables
    of the head where no runs differ in its decay or rate alone, `explained` without either, and
    `geometry` where no margins or norms were measured.

  Raises:
    ValueError: a level out of range.
  """
  by_layer, best = layers.tables(points, rows, l2=l2)
  made = {"layers": by_layer, "best_layers": best} if best.num_rows else {}
  of_head = head.tables(points, rows, spearman, level=level)
  if of_head["head_curves"]:
    made |= of_head
  if made:
    made["explained"] = _explained(points, fits, spearman, made)
  measured = geometry.lines(points, rows)
  return made | ({"geometry": measured} if measured.num_rows else {})


def _explained(points, fits, spearman, made):
  found = {cell: dict.fromkeys(EXPLAINED_COLUMNS) | cell._asdict() for cell in points.cells}
  family_U = points.of_runs("family")
  for cell, view in zip(points.cells, points):
    inside = saturation.within_families(view.take(view.last), family_U, least=ranks.MIN_RUNS)
    found[cell] |= {"runs": len(set(view.run.tolist())), "runs_with_layers": 0,
                    "correlation_within": float(np.mean([*inside.values()])) if inside else None}
  for fit in fits:
    if fit["fit"] == "hull":
      names = ("saturation", "saturation_low", "saturation_high")
      found[_cell(fit)] |= {name: fit[name] for name in names} | {
          "saturation_status": fit["status"]}
  for line in spearman:
    if line["column"] == ranks.UPSTREAM:
      found[_cell(line | {"task": line["row"]})] |= {
          "correlation": line["correlation"], "correlation_low": line["low"],
          "correlation_high": line["high"]}
  if "best_layers" in made:
    with duckdb.connect() as database:
      database.register("given", made["best_layers"])
      for line in database.execute(_LAYERS_OF_CELLS).to_arrow_table().to_pylist():
        best = line["best"]
        found[_cell(line)] |= {name: best[name] for name in (
            "run_id", "run_name", "model", "best_layer", "earliest_layer",
            "earliest_depth_share")} | {
            "best_layer_ds": best["best_ds"], "last_layer_gain": best["gain"],
            "runs_with_layers": line["runs"], "mean_earliest_depth_share": line["share"]}
  upstream = {}
  for line in made.get("head_best", ()):
    if line["series"] == ablations.ALL:
      if line["task"] is None:
        upstream[line["upstream"], line["factor"]] = line["best"]
      else:
        found[_cell(line)]["best_" + line["factor"]] = line["best"]
  for cell, line in found.items():
    for factor in ablations.FACTORS:
      line["upstream_best_" + factor] = upstream.get((cell.upstream, factor))
  return list(found.values())


def _cell(line):
  return table.Cell(*(line[name] for name in table.CELL))
