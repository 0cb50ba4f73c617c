"""Figures of what each layer is worth downstream (Figs 6, F.22 and F.23 of arXiv:2110.02095, ICLR).

A layer's place is its relative depth, 0 the stem and 1 `pre_logits`, what the head sees: networks
of different depth, and of different families, lie side by side.

Shape legend: G places of relative depth.
"""
import copy
import functools

import altair
import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from big_transfer.study import table
from big_transfer.study.figures import panels, scatter, style

LAYERS = "layers"  # the style of points and the name of the dataset of an overlay's panels
EARLIEST = "earliest to reach the best"
_GRID = 24  # steps of relative depth at which networks of different depth are averaged
_CELL = ", ".join(table.CELL)
_DRAWN = ("run_id", "model", "family", "us", "layer", "depth", "depth_share", "ds", "ds_error")
_KEY = ["Pale circles: runs, by upstream accuracy (top axis). Triangles: layers of the run best "
        "upstream, one a family,", "by depth (bottom axis); large: the earliest layer that reaches "
        "the best, within what probes' seeds explain."]


_ANY = "any"


def lines_of(content, columns=None, measure=_ANY, **wanted):
  """The lines of a table that have the given values, as dicts.

  Args:
    content: dicts, or an Arrow table, which may be too long for dicts as a whole; None: no lines.
    columns: names of the columns of an Arrow table that dicts need have; None: all.
    measure: the `table.measure` that lines have.
    **wanted: column -> value; None where it is null.
  """
  if not isinstance(content, pa.Table):
    return [line for line in content or () if measure in (_ANY, table.measure(line))
            and all(line[name] == value for name, value in wanted.items())]
  if measure != _ANY:
    content = content.filter(_measured(content, measure))
  for name, value in wanted.items():
    content = content.filter(_is(content[name], value))
  return (content.select(columns) if columns else content).to_pylist()


def _is(column, value):
  return pc.is_null(column) if value is None else pc.equal(column, value)


def _measured(content, measure):
  """Which rows of an Arrow table have a `table.measure`."""
  if isinstance(measure, int):
    return pc.equal(content["shots"], measure)
  setting = content["setting"]
  usual = pc.or_(pc.is_null(setting), pc.is_in(setting, pa.array(table.USUAL)))
  return pc.and_(pc.is_null(content["shots"]),
                 usual if measure is None else pc.equal(setting, measure))


def best_runs(tables):
  """Of each cell and family, the run best upstream among those with layers.

  Args:
    tables: with `best_layers`.

  Returns:
    Dicts, lines of that table, by cell and family.
  """
  lines = tables.get("best_layers")
  if lines is None or not len(lines):
    return []
  given = lines if isinstance(lines, pa.Table) else pa.Table.from_pylist(lines)
  with duckdb.connect() as database:
    database.register("given", given)
    return database.execute(
        f"SELECT * FROM given WHERE best_layer IS NOT NULL QUALIFY row_number() OVER (PARTITION BY "
        f"{_CELL}, family ORDER BY us DESC, run_id) = 1 ORDER BY {_CELL}, family"
    ).to_arrow_table().to_pylist()


def overlaid(tables):
  """The layers that an overlay draws: {cell: {run_id: rows by depth}}.

  Args:
    tables: with `layers`, an Arrow table, and `best_layers`.

  Returns:
    A dict of dicts; a row is a plain dict with `family` (as runs have it), `model`, `run_id`, `us`,
    `layer`, `depth_share`, `ds`, `ds_error`, `earliest`, a layer's name, and `mark`, which tells
    that layer from the others.
  """
  best = best_runs(tables)
  content = tables.get("layers")
  if not best or content is None:
    return {}
  earliest = {(scatter.cell_of(line), line["run_id"]): line["earliest_layer"] for line in best}
  ids = pa.array(sorted({line["run_id"] for line in best}), pa.string())
  content = content.filter(pc.is_in(content["run_id"], ids)).select([*table.CELL, *_DRAWN])
  found = {}
  for line in sorted(content.to_pylist(), key=lambda line: line["depth"]):
    key = scatter.cell_of(line), line["run_id"]
    if key in earliest and line["ds"] is not None:
      row = {name: line[name] for name in _DRAWN if name != "depth"} | {
          "earliest": earliest[key],
          "mark": EARLIEST if line["layer"] == earliest[key] else "layer"}
      found.setdefault(key[0], {}).setdefault(key[1], []).append(row)
  return found


def depth_axis(title="layer, by relative depth", **options):
  """The axis of relative depth."""
  return altair.X("depth_share:Q", title=title, scale=altair.Scale(domain=[0, 1], padding=9),
                  axis=altair.Axis(values=[0, 0.25, 0.5, 0.75, 1], grid=False, labelFlush=False,
                                   labelExpr="datum.value == 0 ? 'stem' : datum.value == 1 ? "
                                             "'pre_logits' : format(datum.value, '.0%')",
                                   **options))


@functools.lru_cache(maxsize=64)  # a figure has many panels of one make, and altair takes its time
def _overlay(families, upstream, width, height, titled, axes, crowd):
  look = style.looks(families)
  colour = altair.Color("family:N", scale=altair.Scale(
      domain=list(families), range=[look[name][0] for name in families]),
      legend=altair.Legend(title="Architecture", orient="bottom", columns=4, symbolOpacity=1,
                           symbolType="circle"))
  y = style.accuracy(altair.Y, "y", "downstream accuracy" if "y" in titled else None, axes)
  x = style.accuracy(altair.X, "x", f"upstream accuracy, {upstream}" if "t" in titled else None,
                     axes)
  x["axis"]["orient"], x["axis"]["grid"] = "top", False
  words = "layer of the best run, by relative depth" if "x" in titled else None
  hidden = depth_axis()
  hidden["axis"] = None  # the layers of an overlay share the axis of the lines
  tooltip = [altair.Tooltip("model:N"), altair.Tooltip("layer:N"),
             altair.Tooltip("ds:Q", title="downstream accuracy", format=".2%"),
             altair.Tooltip("ds_error:Q", title="± standard error", format=".2%"),
             altair.Tooltip("earliest:N", title=EARLIEST),
             altair.Tooltip("us:Q", title="upstream accuracy", format=".2%"),
             altair.Tooltip("run_id:N", title="run id")]
  layers = altair.Chart(altair.NamedData(name=LAYERS))
  at_earliest = f"datum.mark == '{EARLIEST}'"
  chart = altair.layer(
      altair.Chart(altair.NamedData(name="points")).mark_point(
          filled=True, shape="circle", opacity=0.3 if crowd < 500 else 0.15,
          size=30 if crowd < 500 else 9, aria=altair.Undefined if crowd < 500 else False).encode(
              x=x, y=y, color=colour, tooltip=["model:N", altair.Tooltip("us:Q", format=".2%"),
                                               altair.Tooltip("ds:Q", format=".2%"), "run_id:N"]),
      layers.mark_line(strokeWidth=1.6).encode(x=depth_axis(words), y=y, color=colour,
                                               detail="run_id:N"),
      layers.mark_point(shape="triangle-up", filled=True, opacity=1, stroke="white").encode(
          x=hidden, y=y, color=colour, tooltip=tooltip,
          size=altair.condition(at_earliest, altair.value(190), altair.value(55)),
          stroke=altair.condition(at_earliest, altair.value("#111"), altair.value("white")),
          strokeWidth=altair.condition(at_earliest, altair.value(1.6), altair.value(0.5)))
  ).resolve_scale(x="independent").properties(width=width, height=height)
  spec = chart.to_dict(validate=False)
  return {key: spec[key] for key in ("layer", "resolve", "width", "height")}


def overlay_panel(families, upstream, *, suffix="", width=420, height=320, titled="txy",
                  axes="linear", crowd=100):
  """The look of one panel of `layer_overlay`; see `panels.panel`.

  Args:
    families: names of the families that occur in the whole figure.
    upstream: the upstream dataset's name, for the axis.
    suffix: what follows the names of its datasets, "points" and "layers", in the specification.
    width: of the plotting area, in pixels.
    height: of the plotting area, in pixels.
    titled: the axes that carry titles, among "t" (the top one), "x" and "y".
    axes: see `style.AXES`.
    crowd: points in the fullest panel of the figure.

  Returns:
    A Vega-Lite view that names its data and holds none.
  """
  view = copy.deepcopy(_overlay(tuple(families), upstream or "upstream", width, height, titled,
                                axes, crowd))
  for layer in view["layer"]:
    layer["data"]["name"] += suffix
  return view


def overlay_rows(runs, ids, rows_by_run):
  """The rows of one cell of `overlaid`, by the families that figures name: one run each.

  Args:
    runs: `panels.Runs`.
    ids: {run_id: row of the runs}.
    rows_by_run: {run_id: rows}.

  Returns:
    Plain dicts, of each family the rows of its run best upstream.
  """
  chosen = {}
  for name, rows in rows_by_run.items():
    if name in ids:
      family = runs.family[ids[name]]
      if family not in chosen or rows[0]["us"] > chosen[family][0]["us"]:
        chosen[family] = [row | {"family": family} for row in rows]
  return [row for family in runs.families for row in chosen.get(family, ())]


def layer_overlay(points, tables, shots, *, upstream=None):
  """Accuracy by layer over downstream against upstream accuracy, a panel a task (Fig. 6).

  Args:
    points: a `table.Points`.
    tables: with `layers` and `best_layers`.
    shots: the number of shots to show.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where no run has probes of several layers at so many shots.
  """
  drawn = overlaid(tables)
  views = [view.take(view.last) for view in scatter.chosen_views(points, shots, upstream)
           if tuple(view.cell) in drawn]
  if not views:
    return None
  runs = panels.Runs(points)
  ids = {name: i for i, name in enumerate(points.of_runs("run_id"))}
  most, columns = max(300, scatter.MOST_MARKS // len(views)), 3
  fullest = max(view.us.size for view in views)
  made, datasets = [], {}
  for i, (view, title) in enumerate(zip(views, scatter.titles_of(views))):
    titled = ("y" if i % columns == 0 else "") + ("x" if i + columns >= len(views) else "") + (
        "t" if i < columns else "")
    made.append(overlay_panel(runs.families, view.cell.upstream, suffix=f"_{i}", width=250,
                              height=200, titled=titled, crowd=min(fullest, most))
                | {"title": {"text": title, "limit": 280}})
    rows = overlay_rows(runs, ids, drawn[tuple(view.cell)])
    chosen = style.thinned(view.us.size, most)
    datasets |= {
        f"points_{i}": [{"x": round(float(view.us[n]), 5), "y": round(float(view.ds[n]), 5),
                         "us": float(view.us[n]), "ds": float(view.ds[n]),
                         "family": runs.family[view.run[n]],
                         "model": runs.columns["model"][view.run[n]],
                         "run_id": runs.columns["run_id"][view.run[n]]} for n in chosen],
        f"{LAYERS}_{i}": [row | {"y": row["ds"]} for row in rows]}
  key = _KEY + ([f"Of up to {fullest:,} points a panel {most:,} are drawn."]
                if fullest > most else [])
  return style.specification(
      {"concat": made, "columns": columns, "spacing": {"row": 60, "column": 52},
       "resolve": {"scale": {"color": "shared"}},
       "title": style.headline(style.at_shots("Where in the layers the accuracy is", shots), key)},
      datasets)


# Between two layers a curve is a straight line; a place between two layers counts to the earlier.
_MEANS = f"""
WITH probed AS (
  SELECT {_CELL}, family, run_id, depth_share AS share, lead(depth_share) OVER upwards AS next,
         ds, lead(ds) OVER upwards AS next_ds, last_value(ds) OVER whole AS last_ds
  FROM given WHERE ds IS NOT NULL
  WINDOW upwards AS (PARTITION BY {_CELL}, run_id, family ORDER BY depth),
         whole AS (upwards ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
  QUALIFY last_value(depth_share) OVER whole = 1
), placed AS (
  SELECT *, unnest(CASE WHEN next IS NULL THEN [CAST(round(share * $steps) AS BIGINT)] ELSE
                   range(CAST(ceil(share * $steps) AS BIGINT),
                         CAST(ceil(next * $steps) AS BIGINT)) END) AS step
  FROM probed
), curves AS (
  SELECT *, ds - last_ds + CASE WHEN next IS NULL THEN 0 ELSE
              (next_ds - ds) * (step / $steps - share) / (next - share) END AS gain FROM placed
)
SELECT {_CELL}, family, step / $steps AS depth_share, avg(gain) AS mean,
       quantile_cont(gain, 0.1) AS low, quantile_cont(gain, 0.9) AS high, count(*) AS runs
FROM curves GROUP BY {_CELL}, family, step ORDER BY {_CELL}, family, step
"""


def mean_curves(content):
  """Accuracy by relative depth, less that of pre_logits: means over the runs of a family.

  Args:
    content: the table `layers`, an Arrow table; runs without a probe of pre_logits don't count.

  Returns:
    Dicts with the columns of a cell, `family`, `depth_share` (G places from 0 to 1), `mean`, `low`
    and `high` (quantiles 0.1 and 0.9 over runs), and `runs`.
  """
  with duckdb.connect() as database:
    database.register("given", content.select(
        [*table.CELL, "family", "run_id", "depth", "depth_share", "ds"]))
    return database.execute(_MEANS, {"steps": _GRID}).to_arrow_table().to_pylist()


def layer_curves(tables, *, upstream=None, shots=style.EVERY):
  """Accuracy by relative depth less that of what the head sees, a line a family, a panel a task.

  Args:
    tables: with `layers`.
    upstream: the upstream dataset to show; None: all.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None without probes of several layers.
  """
  content = tables.get("layers")
  if content is None or not content.num_rows:
    return None
  if upstream is not None:
    content = content.filter(pc.equal(content["upstream"], upstream))
  if shots != style.EVERY:
    content = content.filter(_measured(content, shots))
  rows = [{"panel": style.cell_name(scatter.cell_of(line)),
           "upstream": line["upstream"] or "upstream", "shots": table.measure(line),
           "family": style.family_name(line["family"]),
           **{name: line[name] for name in ("depth_share", "mean", "low", "high", "runs")}}
          for line in mean_curves(content)]
  if not rows:
    return None
  names = {row["family"] for row in rows}
  known = [name for name, *_ in style.FAMILIES.values() if name in names]
  look = style.looks(known + sorted(names - set(known)))
  colour = altair.Color("family:N", title="Architecture", scale=altair.Scale(
      domain=list(look), range=[colour for colour, _ in look.values()]),
      legend=altair.Legend(symbolOpacity=1))
  title = "accuracy less that of pre_logits"
  axis = altair.Axis(format="+.0%", tickCount=5)
  chart = altair.layer(
      altair.Chart().mark_area(opacity=0.15).encode(
          x=depth_axis(), y=altair.Y("low:Q", title=title, axis=axis), y2="high:Q", color=colour),
      altair.Chart().mark_line(strokeWidth=1.8).encode(
          x=depth_axis(), y=altair.Y("mean:Q", title=title, axis=axis), color=colour,
          tooltip=["family:N", "runs:Q", altair.Tooltip("depth_share:Q", format=".0%"),
                   *(altair.Tooltip(f"{name}:Q", format="+.2%")
                     for name in ("mean", "low", "high"))])).properties(width=230, height=160)
  return style.faceted(chart, rows, columns=3, title="Accuracy by layer",
                       subtitle="Means over a family's runs; bands: 10 to 90 % of them.")
