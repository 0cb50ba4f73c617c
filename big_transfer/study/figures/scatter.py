"""Figures of points: downstream against upstream accuracy, one panel a task or number of shots.

Numbers of figures are those of Abnar et al., arXiv:2110.02095 (ICLR 2022), which these redraw from
a study's own rows.
"""
import altair
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_transfer.study import reference as published
from big_transfer.study import table, targets
from big_transfer.study.figures import panels, style

_KEY = ("A mark is a run. Level dotted: the saturation value of each plain fit, if identified: "
        "downstream accuracy as upstream goes to 100 %, with its interval.")
MOST_MARKS = 24_000  # of a figure: more make an SVG of many MB that looks the same
_LEAST_MARKS = 300  # of a panel


def fits_by_cell(tables):
  """The lines of fits of each cell, {cell: list}, robust ones included."""
  grouped = {}
  for line in [*tables.get("fits", ()), *tables.get("robust", ())]:
    grouped.setdefault(cell_of(line), []).append(line)
  return grouped


def cell_of(line):
  """The cell that a line of a table speaks of, as a tuple."""
  return tuple(line[name] for name in table.CELL)


def references_of(cell, reference):
  """The reference laws of the cell's task and shots, as `panels.curves` takes them.

  Args:
    cell: a `table.Cell`.
    reference: "paper", or None for none.

  Raises:
    ValueError: another source.
  """
  if reference not in (None, "paper"):
    raise ValueError(f"--reference: expected 'paper', the published fits, got {reference!r}")
  if (reference is None or published.known_as(cell.task) is None
      or table.measure(cell) not in (None, published.SHOTS)
      or (cell.variant or "full") not in table.USUAL
      or (cell.setting or "fewshot") not in table.USUAL):
    return []
  return [(kind, *panels.law_curve(published.law(cell.task, fit), 0.0))
          for fit, kind in panels.REFERENCE.items()]


def chosen_views(points, shots, upstream=None):
  """The views of the cells measured so (`table.measure`), of one upstream or of all.

  Raises:
    ValueError: there are none.
  """
  views = [view for view in points if table.measure(view.cell) == shots
           and (upstream is None or view.cell.upstream == upstream)]
  if not views:
    known = [style.shots_name(name) for name in table.measures(points.cells)]
    raise ValueError(f"points: expected some with {style.shots_name(shots)}"
                     + (f" from {upstream}" if upstream else "")
                     + f", got none; choose shots that were probed: {', '.join(known)}")
  return views


def titles_of(views):
  """Titles of panels that tell the cells apart."""
  several = len({view.cell.upstream for view in views}) > 1
  return [style.cell_name(view.cell) + (f", from {view.cell.upstream}" if several else "")
          for view in views]


def _figure(points, views, *, title, titles, subtitles, details, columns=3, width=250, height=185,
            axes="linear", points_style="family", legend=("value", ()), key=_KEY):
  """Several cells side by side under one set of legends; `details` are options of panel_data."""
  runs = panels.Runs(points)
  most = max(_LEAST_MARKS, MOST_MARKS // len(views))
  fullest = max(view.us.size for view in views)
  data = [panels.panel_data(view, runs, axes=axes, most=most, **options)
          for view, options in zip(views, details)]
  kinds = {line["line"] for datasets in data for line in datasets["lines"]}
  made, datasets = [], {}
  for i, view in enumerate(views):
    titled = ("y" if i % columns == 0 else "") + ("x" if i + columns >= len(views) else "")
    look = panels.panel(runs.families, view.cell.upstream, suffix=f"_{i}", width=width,
                        height=height, titled=titled, axes=axes, points=points_style,
                        kinds=sorted(kinds), crowd=min(fullest, most), sizes=runs.sizes,
                        legend=legend)
    made.append(look | {"title": {"text": titles[i], "limit": width + 30} | (
        {"subtitle": subtitles[i]} if subtitles[i] else {})})
    datasets |= {f"{name}_{i}": rows for name, rows in data[i].items()}
  if fullest > most:
    key = [key, f"Of up to {fullest:,} points a panel {most:,} are drawn; the lines use all."]
  if not all(view.last.all() for view in views):
    title += " (all evaluations)"
  scales = dict.fromkeys(("color", "shape", "size", "stroke", "strokeDash"), "shared")
  return style.specification(
      {"concat": made, "columns": columns, "bounds": "flush",
       "spacing": {"row": 84, "column": 52}, "resolve": {"scale": scales},
       "title": style.headline(title, key)}, datasets)


def robust_curves(tables):
  """The curves of the robust fits, {cell: [(kind, us, ds)]}.

  They end half-way between the best run upstream and 1: beyond, the interval of a prediction soon
  spans all accuracies, and a line alone would hide that.
  """
  ends = {cell_of(line): (1.0 + line["us_high"]) / 2.0 for line in tables.get("robust", ())}
  grouped = {}
  for line in tables.get("robust_curves", ()):
    if line["us"] <= ends.get(cell_of(line), 1.0):
      grouped.setdefault(cell_of(line), []).append((line["us"], line["ds"]))
  return {cell: [(panels.LAWS["robust"], *np.array(sorted(pairs)).T)]
          for cell, pairs in grouped.items()}


def _with_fits(views, tables, reference):
  by_cell, robust = fits_by_cell(tables), robust_curves(tables)
  # The robust fit is drawn as a line alone: three bands, one above the other, say nothing.
  return [{"fits": [fit for fit in by_cell.get(tuple(view.cell), []) if fit["fit"] != "robust"],
           "others": robust.get(tuple(view.cell), []) + references_of(view.cell, reference)}
          for view in views]


def overview(points, tables, shots, *, upstream=None, axes="linear", reference=None):
  """All tasks at one number of shots: the figure to start from (Figs 1 and F.3; F.2 on other axes).

  Args:
    points: a `table.Points`.
    tables: with `fits`, and `robust` if there is one.
    shots: the number of shots to show.
    upstream: the upstream dataset to show; None: all.
    axes: "linear", "log" (of the errors) or "logit".
    reference: "paper" draws the published laws of tasks of the same name beside; None: none.

  Returns:
    A Vega-Lite specification.

  Raises:
    ValueError: no task was probed at so many shots.
  """
  views = chosen_views(points, shots, upstream)
  details = _with_fits(views, tables, reference)
  return _figure(points, views, titles=titles_of(views), details=details, axes=axes,
                 subtitles=[panels.verdict(options["fits"]) for options in details],
                 title=style.at_shots("What pre-training buys downstream", shots)
                       + ("" if axes == "linear" else f", on {axes} axes"))


def task_figure(points, tables, task, *, axes="linear", reference=None):
  """One task, a panel for each number of shots.

  Args:
    points: a `table.Points`.
    tables: with `fits`, and `robust` if there is one.
    task: (upstream, task, variant, setting), as in a cell.
    axes: "linear", "log" or "logit".
    reference: "paper" draws the published laws of tasks of the same name beside; None: none.

  Returns:
    A Vega-Lite specification.

  Raises:
    ValueError: no points.
  """
  views = [view for view in points if tuple(view.cell)[:4] == tuple(task)]
  if not views:
    raise ValueError(f"task: expected one of the study's, got {tuple(task)}; choose among its "
                     "cells")
  details = _with_fits(views, tables, reference)
  return _figure(points, views, columns=min(len(views), 2), width=330, height=240, axes=axes,
                 titles=[style.shots_name(table.measure(view.cell)) for view in views],
                 subtitles=[panels.verdict(options["fits"]) for options in details],
                 details=details,
                 title=f"{style.cell_name(views[0].cell)}: downstream against upstream")


def all_runs(points):
  """Every run on every task, fewest and most shots, all upstreams in one panel a task (Fig. F.1).

  Args:
    points: a `table.Points`.

  Returns:
    A Vega-Lite specification.
  """
  known = table.measures(points.cells)
  ends = {known[0], known[-1]}
  views = [view.take(view.last) for view in points if table.measure(view.cell) in ends]
  most = max(100, MOST_MARKS // len(views))
  rows = []
  for view in views:
    for i in style.thinned(view.us.size, most):
      rows.append({"panel": style.cell_name(view.cell), "us": round(float(view.us[i]), 4),
                   "ds": round(float(view.ds[i]), 4), "upstream": view.cell.upstream or "upstream",
                   "shots": style.shots_name(table.measure(view.cell))})
  many = len(rows) > 4000
  names = [style.shots_name(count) for count in known if count in ends]
  chart = altair.Chart().mark_point(
      filled=True, opacity=0.4 if many else 0.7, size=18,
      aria=False if many else altair.Undefined).encode(
      x=style.accuracy(altair.X, "us", "upstream accuracy"),
      y=style.accuracy(altair.Y, "ds", "downstream accuracy"),
      color=altair.Color("shots:N", sort=names, title="Shots a class",
                         scale=altair.Scale(domain=names, range=["#E69F00", "#0072B2"])),
      shape=altair.Shape("upstream:N", title="Upstream"),
      tooltip=["upstream:N", "shots:N", altair.Tooltip("us:Q", format=".1%"),
               altair.Tooltip("ds:Q", format=".1%")]).properties(width=190, height=150)
  thinned = any(view.us.size > most for view in views)
  return style.faceted(chart, rows, title="All runs, all tasks", subtitle=(
      "A mark is a run's last evaluation."
      + (f" {most:,} points a task, upstream and number of shots are drawn." if thinned else "")))


def high_upstream(points, tables, shots, *, upstream=None):
  """The law fitted to the lower runs, and the held-out best ones upstream (Figs F.8, F.9).

  Args:
    points: a `table.Points`.
    tables: with `prediction`, which says what was held out.
    shots: the number of shots to show.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where nothing was held out at so many shots.
  """
  views, details, subtitles = [], [], []
  for view in chosen_views(points, shots, upstream):
    options, words = held_out(view, tables)
    if options:
      views.append(view.take(view.last))
      details.append({name: options[name] for name in ("fits", "others", "roles")})
      subtitles.append(words)
  if not views:
    return None
  return _figure(points, views, titles=titles_of(views), subtitles=subtitles, details=details,
                 points_style="role",
                 title=style.at_shots("Predicting the best runs upstream", shots),
                 key="Orange: runs held out, those best upstream. The laws are fitted to the "
                     "others (grey) alone.")


def held_out(view, tables):
  """What the panel of one cell draws of held-out prediction.

  Args:
    view: a `table.View`; of its points, each run's last counts.
    tables: with `prediction`.

  Returns:
    (options of `panels.panel_data` and `us_from`, the lowest upstream accuracy held out, or None
    where there is no prediction; a line of words).
  """
  lines = {line["fit"]: line for line in tables.get("prediction", ())
           if line["method"] == "saturating" and cell_of(line) == tuple(view.cell)
           and line["status"] == "ok"}
  if not lines:
    return None, ""
  view = view.take(view.last)
  us_from = next(iter(lines.values()))["us_from"]
  low_N = view.us < us_from
  others = [(panels.LOWER[kind], *panels.law_curve(
      targets.fit_points(kind, view.us[low_N], view.ds[low_N]).params[0], view.us.min()))
            for kind in lines]
  words = ", ".join(f"{kind} {line['prediction_rmse']:.3f}" for kind, line in lines.items())
  roles = np.where(low_N, panels.RUN, "held out").tolist()
  options = {"fits": [], "others": others, "roles": roles, "us_from": us_from}
  return options, f"error held out: {words}"


def controlled(points, tables, factor, shots, *, upstream=None):
  """Runs that differ in one factor alone, coloured, over all others in grey (Figs 4, F.17).

  Args:
    points: a `table.Points`.
    tables: with `controlled`, and `fits` for the lines.
    factor: "data", "model" or "epochs".
    shots: the number of shots to show.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where no runs differ in that factor alone.
  """
  values = controlled_values(tables, factor)
  ids_U = points.of_runs("run_id")
  by_cell = fits_by_cell(tables)
  views, details = [], []
  for view in chosen_views(points, shots, upstream):
    mine = values.get(tuple(view.cell))
    if mine:
      view = view.take(view.last)
      views.append(view)
      shades = np.array([mine.get(ids_U[u], np.nan) for u in view.run], float)
      details.append({"shades": shades,
                      "roles": np.where(np.isnan(shades), panels.RUN, "scaled").tolist(),
                      "fits": [fit for fit in by_cell.get(tuple(view.cell), [])
                               if fit["fit"] == "hull"]})
  if not views:
    return None
  marked = style.shades_legend(np.concatenate([options["shades"] for options in details]))
  return _figure(points, views, titles=titles_of(views), details=details, points_style="factor",
                 subtitles=[""] * len(views), legend=(FACTORS[factor], marked),
                 title=style.at_shots(f"Scaling {FACTOR_TITLES[factor]} alone", shots),
                 key="Coloured: runs in series in which nothing else that is known differs. Grey: "
                     "all other runs.")


FACTORS = {"data": "upstream data, share or examples", "model": "parameters", "epochs": "epochs"}
FACTOR_TITLES = {"data": "the upstream data", "model": "the model", "epochs": "the epochs"}


def controlled_values(tables, factor):
  """{cell: {run_id: value of the factor}} of the runs that differ in that factor alone."""
  lines = tables.get("controlled", ())
  if isinstance(lines, pa.Table):  # it may be too long for dicts as a whole
    lines = lines.filter(pc.equal(lines["factor"], factor)).select(
        [*table.CELL, "factor", "run_id", "value"]).to_pylist()
  values = {}
  for line in lines:
    if line["factor"] == factor and line["run_id"] is not None and line["value"] is not None:
      values.setdefault(cell_of(line), {})[line["run_id"]] = line["value"]
  return values


def overlay(points, tables, shots, *, upstream=None):
  """The runs on one task's hull, shown on every other task (Figs 5, F.19).

  Args:
    points: a `table.Points`.
    tables: with `overlay`, and `fits` for the lines.
    shots: the number of shots to show.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where the table says nothing of so many shots.
  """
  marked, base = overlaid(tables)
  ids_U, by_cell = points.of_runs("run_id"), fits_by_cell(tables)
  views, details = [], []
  for view in chosen_views(points, shots, upstream):
    mine = marked.get(tuple(view.cell))
    if mine:
      view = view.take(view.last)
      views.append(view)
      details.append({"roles": [f"on the hull of {base[tuple(view.cell)]}"
                                if ids_U[u] in mine else panels.RUN for u in view.run],
                      "fits": [fit for fit in by_cell.get(tuple(view.cell), [])
                               if fit["fit"] == "hull"]})
  if not views:
    return None
  names = ", ".join(sorted({base[tuple(view.cell)] for view in views}))
  return _figure(points, views, titles=titles_of(views), details=details, points_style="role",
                 subtitles=[""] * len(views),
                 title=style.at_shots(f"The best runs on {names}, on every task", shots),
                 key=f"Orange: the runs on the upper hull of {names}. Grey: all other runs.")


def overlaid(tables):
  """({cell: ids of the runs overlaid on it}, {cell: the task whose hull they are on})."""
  marked, base = {}, {}
  for line in tables.get("overlay", ()):
    if line["run_id"] is not None:
      marked.setdefault(cell_of(line), set()).add(line["run_id"])
      base[cell_of(line)] = str(line["reference"]).replace("_", " ")
  return marked, base
