"""The figures: downstream against upstream accuracy, from the tables of points and fits alone.

A figure is a Vega-Lite specification with its data beside it, so that the same panel serves a
PNG, an SVG and the interactive report. Colours are Okabe and Ito's, which readers with any common
colour vision tell apart, and each family has a shape as well.
"""
import copy
import functools
import pathlib

import altair
import numpy as np
import vl_convert

from big_transfer.study import hull, laws, saturation, table

FAMILIES = {"vit": ("ViT", "#0072B2", "circle"),
            "mixer": ("Mixer", "#E69F00", "triangle-up"),
            "resnet": ("ResNet", "#009E73", "square")}
_OTHER_COLOURS = ("#D55E00", "#56B4E9", "#8C6D31", "#CC79A7")
_OTHER_SHAPES = ("diamond", "cross", "triangle-down", "stroke")
HULL, HULL_FIT, ALL_FIT = "upper hull", "law, fitted to the hull", "law, fitted to all points"
_LINE_COLOURS = {HULL: "#CC79A7", HULL_FIT: "#111111", ALL_FIT: "#7f7f7f"}
_LINE_DASHES = {HULL: [1, 0], HULL_FIT: [1, 0], ALL_FIT: [6, 3]}
_KIND = {"hull": HULL_FIT, "all": ALL_FIT}
_KEY = ("A mark is a run. Dotted: the saturation value of each fit, downstream accuracy as "
        "upstream goes to 100 %, with its interval.")
_LEAST_SPAN = 0.1  # of an axis, in accuracy: less would make a landscape of one run, or of noise
_CURVE = 60  # points of a drawn law: smooth at any size a figure is printed
_FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
_CONFIG = {
    "font": _FONT, "background": "white",
    "view": {"stroke": None},
    "axis": {"gridColor": "#ececec", "domainColor": "#888", "tickColor": "#888",
             "labelColor": "#444", "titleColor": "#222", "titleFontWeight": "normal",
             "labelFontSize": 11, "titleFontSize": 12, "tickSize": 4},
    "title": {"anchor": "start", "frame": "group", "fontSize": 14, "fontWeight": "bold",
              "color": "#111",
              "subtitleFontSize": 12, "subtitleColor": "#555", "offset": 8},
    "legend": {"titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11,
               "labelColor": "#333", "titleColor": "#555", "symbolStrokeWidth": 1.5,
               "labelLimit": 240},
}


def cell_name(cell):
  """A cell's task, with variant and setting where they say more, for titles."""
  _, task, variant, setting, _ = cell
  extra = [part for part in (variant, setting) if part and part != "fewshot"]
  name = str(task or "task").replace("_", " ")
  return name + (f" ({', '.join(extra)})" if extra else "")


def shots_name(shots):
  """'10 shots', for titles; 'all examples' where a cell has no shots."""
  return "all examples" if shots is None else f"{shots} shot{'s' if shots != 1 else ''}"


def verdict(fits):
  """What the hull fit of a cell says of saturation, in a few words."""
  line = next((fit for fit in fits if fit["fit"] == "hull"), None)
  if line is None or line["status"] == "no fit":
    return "too little to fit"
  if line["status"] != "ok":
    return "saturation not identified"
  flat = line["hull_rise"] < saturation.FLAT
  return (f"{'flat' if flat else 'saturates'} at {100 * line['saturation']:.0f} % "
          f"[{100 * line['saturation_low']:.0f}–{100 * line['saturation_high']:.0f}]")


def family_name(family):
  """The name a family goes by in figures."""
  return FAMILIES[family][0] if family in FAMILIES else str(family or "unknown")


def _curves(points, fits, high):
  us_N = np.array([point["us_accuracy"] for point in points])
  ds_N = np.array([point["ds_accuracy"] for point in points])
  lines = [{"line": HULL, "us": us_N[i], "ds": ds_N[i]} for i in hull.upper_hull(us_N, ds_N)]
  us_C = np.linspace(us_N.min(), 1.0, _CURVE)
  for fit in fits:
    if fit["status"] == "no fit":
      continue
    params = [fit[name] for name in laws.SATURATING.parameters]
    ds_C = 1.0 - laws.SATURATING.predict(params, 1.0 - us_C)
    lines += [{"line": _KIND[fit["fit"]], "us": x, "ds": y}
              for x, y in zip(us_C, ds_C) if 0.0 <= y <= high]
  return [{**line, "us": round(float(line["us"]), 4), "ds": round(float(line["ds"]), 4)}
          for line in lines]


def panel_data(points, fits):
  """What one panel draws.

  Args:
    points: points of one cell, dicts with `table.POINT_COLUMNS`.
    fits: the cell's lines of fits, dicts with `saturation.FIT_COLUMNS`.

  Returns:
    Datasets by name, each a list of plain dicts: `points`, `lines`, `saturation` and `frame`, two
    places that the axes hold in any case.
  """
  known = [fit for fit in fits if fit["status"] == "ok"]
  ds = [point["ds_accuracy"] for point in points]
  top = max(ds + [fit["saturation"] for fit in known])
  low = min(ds)
  # Room for the intervals, but a wide one must not flatten the points.
  margin = max(0.15 * (top - low), 0.01)
  low, high = max(low - margin, 0.0), min(top + margin, 1.0)
  left = min(point["us_accuracy"] for point in points)
  bands = [{"line": _KIND[fit["fit"]], "us": left, "us_end": 1.0, "value": fit["saturation"],
            "low": fit["saturation_low"], "high": fit["saturation_high"],
            "low_drawn": max(fit["saturation_low"], low),
            "high_drawn": min(fit["saturation_high"], high)}
           for fit in known]
  shown = [{"us": point["us_accuracy"], "ds": point["ds_accuracy"],
            "family": family_name(point["family"]), "model": point["model"],
            "parameters": point["parameters"] or 1, "run": point["run_name"],
            "run_id": point["run_id"], "learning_rate": point["learning_rate"],
            "overrides": point["overrides"], "step": point["step"],
            "evaluation": "last" if point["last"] else "earlier",
            "probe_std": point["ds_std"], "probe_seeds": point["ds_seeds"]}
           for point in points]
  frame = [{"us": us, "ds": ds}
           for us, ds in zip(_widened([point["us_accuracy"] for point in points]), _widened(ds))]
  return {"points": shown, "lines": _curves(points, fits, high), "saturation": bands,
          "frame": frame}


def _widened(values):
  """The ends of an axis for accuracies: theirs, at least `_LEAST_SPAN` apart, within 0 and 1."""
  span = max(max(values) - min(values), _LEAST_SPAN)
  middle = (min(values) + max(values)) / 2.0
  low = min(max(middle - span / 2.0, 0.0), 1.0 - span)
  return low, low + span


_TOOLTIP = (("model", "model", None), ("parameters", "parameters", ",d"),
            ("us", "upstream accuracy", ".1%"), ("ds", "downstream accuracy", ".1%"),
            ("probe_std", "std over probe seeds", ".3f"), ("probe_seeds", "probe seeds", None),
            ("learning_rate", "learning rate", "~g"), ("step", "step", ",d"),
            ("overrides", "overrides", None), ("run", "run", None), ("run_id", "run id", None))


def _family_scales(families):
  names = [name for name, _, _ in FAMILIES.values() if name in families]
  names += sorted(families - set(names))
  looks = {name: (colour, shape) for name, colour, shape in FAMILIES.values()}
  others = [name for name in names if name not in looks]
  for i, name in enumerate(others):
    looks[name] = (_OTHER_COLOURS[i % len(_OTHER_COLOURS)], _OTHER_SHAPES[i % len(_OTHER_SHAPES)])
  return (altair.Scale(domain=names, range=[looks[name][0] for name in names]),
          altair.Scale(domain=names, range=[looks[name][1] for name in names]))


def _accuracy(channel, field, title):
  return channel(f"{field}:Q", title=title,
                 scale=altair.Scale(zero=False, nice=False, padding=9),
                 axis=altair.Axis(format="%", tickCount=5))


@functools.lru_cache(maxsize=32)  # a figure has many panels of one make, and altair takes its time
def _panel(families, upstream, width, height, titled):
  chart = _chart(families, upstream, titled).properties(width=width, height=height)
  # Not validated: that takes most of the time, and a test validates.
  spec = chart.to_dict(validate=False)
  return {key: spec[key] for key in ("layer", "width", "height")}


def panel(families, upstream, *, suffix="", width=420, height=320, titled="xy"):
  """One panel: points, hull, both laws, saturation lines with their intervals.

  Args:
    families: names of the families that occur in the whole figure.
    upstream: the upstream dataset's name, for the axis.
    suffix: what follows the names of its datasets (see `panel_data`) in the specification.
    width: of the plotting area, in pixels.
    height: of the plotting area, in pixels.
    titled: the axes that carry titles, among "xy".

  Returns:
    A Vega-Lite view that names its data and holds none.
  """
  view = copy.deepcopy(_panel(tuple(sorted(families)), upstream or "upstream", width, height,
                              titled))
  for layer in view["layer"]:
    layer["data"]["name"] += suffix
  return view


def _chart(families, upstream, titled):
  """The altair chart of one panel, its data named and not there."""
  colour, shape = _family_scales(set(families))
  names = list(_LINE_COLOURS)

  def legend(title, **options):
    return altair.Legend(title=title, orient="bottom", **options)

  def scale(values):
    return altair.Scale(domain=names, range=[values[name] for name in names])

  x = _accuracy(altair.X, "us", f"upstream accuracy, {upstream}" if "x" in titled else None)
  y = _accuracy(altair.Y, "ds", "downstream accuracy" if "y" in titled else None)
  bands = altair.Chart(altair.NamedData(name="saturation"))
  band = bands.mark_rect(opacity=0.1).encode(
      x=x, x2="us_end:Q", y=altair.Y("low_drawn:Q"), y2="high_drawn:Q",
      # A scale here, with its legend off, would take the lines' legend away with it.
      fill=altair.condition(f"datum.line == '{HULL_FIT}'", altair.value(_LINE_COLOURS[HULL_FIT]),
                            altair.value(_LINE_COLOURS[ALL_FIT])))
  rule = bands.mark_rule(strokeDash=[2, 3], strokeWidth=1.3).encode(
      x=x, x2="us_end:Q", y=altair.Y("value:Q"),
      stroke=altair.Stroke("line:N", scale=scale(_LINE_COLOURS), legend=legend("Lines")),
      tooltip=[altair.Tooltip("line:N", title="saturation of the"),
               *(altair.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))])
  lines = altair.Chart(altair.NamedData(name="lines")).mark_line().encode(
      x=x, y=y,
      stroke=altair.Stroke("line:N", scale=scale(_LINE_COLOURS), legend=legend("Lines")),
      strokeDash=altair.StrokeDash("line:N", scale=scale(_LINE_DASHES), legend=legend("Lines")),
      strokeWidth=altair.condition(f"datum.line == '{HULL}'", altair.value(1.2),
                                   altair.value(1.9)))
  dots = altair.Chart(altair.NamedData(name="points")).mark_point(
      filled=True, stroke="white", strokeWidth=0.5).encode(
          x=x, y=y,
          color=altair.Color("family:N", scale=colour, legend=legend("Architecture")),
          shape=altair.Shape("family:N", scale=shape, legend=legend("Architecture")),
          size=altair.Size("parameters:Q", scale=altair.Scale(type="log", range=[45, 200]),
                           legend=legend("Parameters", format="~s", tickCount=3,
                                         symbolFillColor="#777", symbolStrokeWidth=0)),
          opacity=altair.condition("datum.evaluation == 'earlier'", altair.value(0.3),
                                   altair.value(0.85)),
          tooltip=[altair.Tooltip(field, title=title, type="quantitative" if form else "nominal",
                                  format=form or altair.Undefined)
                   for field, title, form in _TOOLTIP])
  frame = altair.Chart(altair.NamedData(name="frame")).mark_point(opacity=0).encode(x=x, y=y)
  return altair.layer(frame, band, rule, lines, dots)


def specification(view, datasets):
  """A view, as `panel` gives it, with its data and the house's looks: a whole specification."""
  return {"$schema": altair.SCHEMA_URL, "config": copy.deepcopy(_CONFIG), "datasets": datasets
          } | view


def _panels(cells_points, fits, titles, *, columns, width, height, title):
  """Several cells side by side under one set of legends."""
  families = {family_name(point["family"]) for points in cells_points.values() for point in points}
  views, datasets = [], {}
  for i, (cell, points) in enumerate(cells_points.items()):
    mine = _fits_of(cell, fits)
    titled = ("y" if i % columns == 0 else "") + ("x" if i + columns >= len(cells_points) else "")
    view = panel(families, cell[0], suffix=f"_{i}", width=width, height=height, titled=titled)
    views.append(view | {"title": {"text": titles[i], "subtitle": verdict(mine)}})
    datasets |= {f"{name}_{i}": rows for name, rows in panel_data(points, mine).items()}
  scales = dict.fromkeys(("color", "shape", "size", "stroke", "strokeDash"), "shared")
  return specification(
      {"concat": views, "columns": columns, "bounds": "flush",
       "spacing": {"row": 84, "column": 52}, "resolve": {"scale": scales},
       "title": {"text": title, "subtitle": _KEY, "fontSize": 16, "offset": 18}}, datasets)


def _fits_of(cell, fits):
  return [fit for fit in fits if tuple(fit[name] for name in table.CELL) == cell]


def _marked(points, title):
  """The title, saying so where points are more than the last evaluations."""
  return title if all(point["last"] for point in points) else f"{title} (all evaluations)"


def task_figure(points, fits):
  """Downstream against upstream accuracy of one task, a panel for each number of shots.

  Args:
    points: the points of one upstream, task, variant and setting.
    fits: lines of fits; those of other cells are ignored.

  Returns:
    A Vega-Lite specification.

  Raises:
    ValueError: no points.
  """
  grouped = _grouped(points)
  first = next(iter(grouped))
  return _panels(grouped, fits, [shots_name(cell[4]) for cell in grouped],
                 columns=min(len(grouped), 2), width=330, height=240,
                 title=_marked(points, f"{cell_name(first)}: downstream against upstream"))


def overview(points, fits, shots):
  """All tasks at one number of shots, as small multiples: the figure to start from.

  Args:
    points: all points.
    fits: all lines of fits.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification.

  Raises:
    ValueError: no task was probed at so many shots.
  """
  shown = [point for point in points if point["shots"] == shots]
  grouped = _grouped(shown, f" with {shots_name(shots)}")
  upstreams = {cell[0] for cell in grouped}
  titles = [cell_name(cell) + (f", from {cell[0]}" if len(upstreams) > 1 else "")
            for cell in grouped]
  return _panels(grouped, fits, titles, columns=3, width=250, height=185,
                 title=_marked(shown, f"What pre-training buys downstream, {shots_name(shots)}"))


def _grouped(points, what=""):
  grouped = saturation.cells(points)
  if not grouped:
    raise ValueError(f"points: expected some{what}, got none; choose shots that were probed")
  return grouped


def save(spec, stem):
  """Writes a figure as STEM.png (twice the size, for print) and STEM.svg.

  Args:
    spec: a Vega-Lite specification.
    stem: path without an ending.

  Returns:
    The two paths.
  """
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
  drawing = vl_convert.vegalite_to_svg(spec)  # once for both: this is what takes the time
  svg.write_text(drawing, encoding="utf-8")
  png.write_bytes(vl_convert.svg_to_png(drawing, scale=2))
  return png, svg
