"""One panel: downstream against upstream accuracy of a cell, with hull, laws and saturation values.

A panel's look (`panel`) and its data (`panel_data`) are apart, so that the same panel serves a
figure of many and the interactive report, which fills it with what the reader chooses. Its points
come in three styles:

    family   colour and shape are the architecture
    role     grey, but for runs whose role stands out: one colour
    factor   grey, but for runs whose role stands out: by their `shade` (parameters, epochs, ...)
"""
import copy
import functools
import math

import altair
import numpy as np

from big_transfer.study import hull, laws, saturation
from big_transfer.study.figures import style

STYLES = ("family", "factor", "role")
HULL = "upper hull"
LAWS = {"hull": "law, fitted to the hull", "all": "law, fitted to all points",
        "robust": "robust fit, all points"}
LOWER = {"hull": "law, fitted to the lower runs' hull", "all": "law, fitted to the lower runs"}
REFERENCE = {"hull": "paper's law, hull (JFT)", "all": "paper's law, all (JFT)"}
LINES = {  # kind -> colour, dash
    HULL: ("#CC79A7", [1, 0]),
    LAWS["hull"]: ("#111111", [1, 0]),
    LAWS["all"]: ("#666666", [6, 3]),
    LAWS["robust"]: ("#5D3A9B", [2, 2]),
    LOWER["hull"]: ("#111111", [1, 0]),
    LOWER["all"]: ("#666666", [6, 3]),
    REFERENCE["hull"]: ("#D55E00", [8, 3]),
    REFERENCE["all"]: ("#D55E00", [3, 3]),
}
UNSIZED = (1.0, 1.0)
RUN = "run"  # the role of a point that doesn't stand out
_LEAST_SPAN = 0.1  # of an axis, in accuracy: less would make a landscape of one run, or of noise
_CURVE = 60  # points of a drawn law: smooth at any size a figure is printed
_FEW, _MANY = 100, 3000  # points a panel of _AREA: marks shrink and fade between these
_CLOUD = 600
_AREA = 420 * 320  # square pixels


class Runs:
  """What panels say of runs: read once a figure.

  Attributes:
    family: (U,) names of families; `families` those that occur, in the order of legends.
    columns: name -> (U,) values of what a tooltip shows, None where unknown.
    sizes: fewest and most parameters, where known; `UNSIZED` where none are.
  """

  _SHOWN = ("model", "parameters", "run_name", "run_id", "learning_rate", "upstream_fraction",
            "epochs", "overrides")

  def __init__(self, points):
    self.family, self.families = style.families(points)
    self.columns = {name: [None if value is None or value != value else value
                           for value in points.of_runs(name).tolist()] for name in self._SHOWN}
    self.columns["run_name"] = [
        f"{name or 'run'}; its upstream accuracy is stated, not measured: {source}" if source
        else name for name, source in zip(self.columns["run_name"], points.of_runs("us_stated"))]
    known = [size for size in self.columns["parameters"] if size]
    self.sizes = (min(known), max(known)) if known else UNSIZED


def verdict(lines):
  """What the hull fit of a cell says of saturation, in a few words."""
  line = next((fit for fit in lines if fit["fit"] == "hull"), None)
  if line is None or line["status"] == "no fit":
    return "too little to fit"
  if line["status"] != "ok":
    return "saturation not identified"
  flat = line["hull_rise"] < saturation.FLAT
  return (f"{'flat' if flat else 'saturates'} at {100 * line['saturation']:.0f} % "
          f"[{100 * line['saturation_low']:.0f}–{100 * line['saturation_high']:.0f}]")


def end_of_lines(us_N, axes):
  """The upstream accuracy at which lines end: 1, or beyond the runs on axes that have no 1."""
  return 1.0 if axes == "linear" else 1.0 - (1.0 - float(us_N.max())) / 2.0


def law_curve(params, us_from, us_to=1.0):
  """(us (C,), ds (C,)) of Eq. 1 with parameters (k, alpha, e_IR), between upstream accuracies."""
  us_C = np.linspace(us_from, us_to, _CURVE)
  return us_C, 1.0 - laws.SATURATING.predict(params, 1.0 - us_C)


def _drawn_range(ds_N, known):
  """The downstream accuracies that a panel spans: room for intervals, but not at any price."""
  top = max([float(ds_N.max())] + [fit["saturation"] for fit in known])
  low = float(ds_N.min())
  margin = max(0.15 * (top - low), 0.01)  # a wide interval must not flatten the points
  return max(low - margin, 0.0), min(top + margin, 1.0)


def curves(view, fits, others=()):
  """The lines of a panel.

  Args:
    view: a `table.View`.
    fits: the cell's lines of fits; the curve of one without a `k` is drawn by `others`.
    others: further curves: (kind, among `LINES`, us (C,), ds (C,)) each.

  Returns:
    Plain dicts with `line`, its kind, and `us`, `ds`, accuracies.
  """
  known = [fit for fit in fits if fit["status"] == "ok"]
  _, high = _drawn_range(view.ds, known)
  vertices = hull.upper_hull(view.us, view.ds)
  us_V, ds_V = view.us[vertices], view.ds[vertices]
  # Mixtures of two runs lie on a straight line between accuracies, not between their logarithms.
  us_C = np.union1d(us_V, np.linspace(us_V[0], us_V[-1], _CURVE))
  lines = [(HULL, x, y) for x, y in zip(us_C, np.interp(us_C, us_V, ds_V))]
  drawn = [(LAWS[fit["fit"]], *law_curve([fit[name] for name in laws.SATURATING.parameters],
                                         view.us.min()))
           for fit in fits if fit.get("k") is not None]
  for kind, us_C, ds_C in drawn + list(others):
    lines += [(kind, x, y) for x, y in zip(us_C, ds_C)
              if 0.0 <= y <= high and x >= view.us.min()]
  return [{"line": kind, "us": round(float(x), 4), "ds": round(float(y), 4)}
          for kind, x, y in lines]


def bands(view, fits):
  """The saturation values of a panel: dicts with `line`, `value`, `low`, `high` and the ends drawn.

  `us` is where they begin; they end at an upstream accuracy of 1.
  """
  known = [fit for fit in fits if fit["status"] == "ok"]
  low, high = _drawn_range(view.ds, known)
  return [{"line": LAWS[fit["fit"]], "us": float(view.us.min()), "value": fit["saturation"],
           "low": fit["saturation_low"], "high": fit["saturation_high"],
           "low_drawn": min(max(fit["saturation_low"], low), high),
           "high_drawn": max(min(fit["saturation_high"], high), low)} for fit in known]


def _widened(values):
  """The ends of an axis for accuracies: theirs, at least `_LEAST_SPAN` apart, within 0 and 1."""
  low, high = float(values.min()), float(values.max())
  span = max(high - low, _LEAST_SPAN)
  middle = (low + high) / 2.0
  low = min(max(middle - span / 2.0, 0.0), 1.0 - span)
  return low, low + span


def frame(view):
  """Two places, dicts with `us` and `ds`, that the axes of a panel hold in any case."""
  return [{"us": us, "ds": ds} for us, ds in zip(_widened(view.us), _widened(view.ds))]


def placed(lines, axes):
  """Lines with `x`, `y`: their places on one of `style.AXES`, clipped where these have no end.

  Args:
    lines: dicts with `us` and `ds`.
    axes: "linear", "log" or "logit".

  Returns:
    New dicts.
  """
  x_N, y_N = (style.AXES[axes].forward(np.array([line[name] for line in lines], float))
              for name in ("us", "ds"))
  return [line | {"x": round(float(x), 5), "y": round(float(y), 5)}
          for line, x, y in zip(lines, x_N, y_N)]


def _point_rows(view, runs, chosen, roles, shades):
  columns, rows = runs.columns, []
  lowest = 1.0 if shades is None else float(np.nanmin(shades))  # null would not be drawn at all
  for i in chosen:
    u = view.run[i]
    rows.append({
        "us": round(float(view.us[i]), 5), "ds": round(float(view.ds[i]), 5),
        "us_error": _known(view.us_error[i]), "ds_error": _known(view.ds_error[i]),
        "family": runs.family[u], "model": columns["model"][u],
        "parameters": columns["parameters"][u],
        "size": columns["parameters"][u] or runs.sizes[0], "run": columns["run_name"][u],
        "run_id": columns["run_id"][u], "learning_rate": columns["learning_rate"][u],
        "fraction": columns["upstream_fraction"][u], "epochs": columns["epochs"][u],
        "overrides": columns["overrides"][u], "step": _known(view.step[i]),
        "evaluation": "last" if view.last[i] else "earlier",
        "role": RUN if roles is None else roles[i],
        "shade": lowest if shades is None or np.isnan(shades[i]) else float(shades[i])})
  # Painted last, so on top: what stands out.
  return sorted(rows, key=lambda row: (row["role"] != RUN, row["family"] != style.OTHER_FAMILIES))


def _known(value):
  return None if value is None or not math.isfinite(value) else float(f"{float(value):.6g}")


def panel_data(view, runs, fits, *, axes="linear", others=(), most=1000, roles=None,
               shades=None):
  """What one panel draws.

  Args:
    view: a `table.View`, the points of one cell.
    runs: `Runs` of the same points.
    fits: the cell's lines of fits, dicts with `saturation.FIT_COLUMNS`.
    axes: see `style.AXES`.
    others: see `curves`.
    most: points to draw; of more, a sample in which the vertices of the hull and what stands out
      are kept.
    roles: (N,) texts; other than `RUN`, a point stands out.
    shades: (N,) numbers, NaN where unknown.

  Returns:
    Datasets by name, each a list of plain dicts: `points`, `lines`, `saturation` and `frame`, two
    places that the axes hold in any case.
  """
  keep = list(hull.upper_hull(view.us, view.ds))
  if roles is not None:
    keep += [i for i, role in enumerate(roles) if role != RUN]
  chosen = style.thinned(view.us.size, most, keep[:4 * most])
  marked = bands(view, fits)
  end = end_of_lines(view.us, axes)
  ends = (placed([{"us": band["us"] if at == "low_drawn" else end, "ds": band[at]}
                  for band in marked], axes) for at in ("low_drawn", "high_drawn"))
  values = placed([{"us": band["us"], "ds": band["value"]} for band in marked], axes)
  saturations = [band | {"x": low["x"], "x_end": high["x"], "y": value["y"],
                         "y_low": low["y"], "y_high": high["y"]}
                 for band, value, low, high in zip(marked, values, *ends)]
  return {"points": placed(_point_rows(view, runs, chosen, roles, shades), axes),
          "lines": placed([line for line in curves(view, fits, others)
                           if line["us"] <= max(end, round(float(view.us.max()), 4))], axes),
          "saturation": saturations, "frame": placed(frame(view), axes)}


_TOOLTIP = (("model", "model", None), ("family", "family", None),
            ("parameters", "parameters", ",d"), ("us", "upstream accuracy", ".2%"),
            ("us_error", "± standard error", ".2%"), ("ds", "downstream accuracy", ".2%"),
            ("ds_error", "± standard error ", ".2%"), ("learning_rate", "learning rate", "~g"),
            ("epochs", "epochs", "~g"), ("fraction", "share of upstream data", "~g"),
            ("step", "step", ",d"), ("overrides", "overrides", None), ("run", "run", None),
            ("run_id", "run id", None))


def panel(families, upstream, *, suffix="", width=420, height=320, titled="xy", axes="linear",
          points="family", kinds=tuple(LINES), crowd=_FEW, sizes=(1e5, 1e8), legend=("value", ())):
  """One panel's look.

  Args:
    families: names of the families that occur in the whole figure.
    upstream: the upstream dataset's name, for the axis.
    suffix: what follows the names of its datasets (see `panel_data`) in the specification.
    width: of the plotting area, in pixels.
    height: of the plotting area, in pixels.
    titled: the axes that carry titles, among "xy".
    axes: see `style.AXES`.
    points: one of `STYLES`.
    kinds: the lines that occur in the whole figure, among `LINES`.
    crowd: points in the fullest panel of the figure: marks shrink as it grows.
    sizes: fewest and most parameters in the whole figure.
    legend: title of the legend of `shade`, and the values that it marks.

  Returns:
    A Vega-Lite view that names its data and holds none.
  """
  view = copy.deepcopy(_panel(tuple(families), upstream or "upstream", width, height, titled,
                              axes, points, tuple(kinds), crowd, tuple(sizes), legend))
  for layer in view["layer"]:
    layer["data"]["name"] += suffix
  return view


def _places(upstream, titled, axes):
  return (style.accuracy(altair.X, "x", f"upstream accuracy, {upstream}" if "x" in titled else None,
                         axes),
          style.accuracy(altair.Y, "y", "downstream accuracy" if "y" in titled else None, axes))


@functools.lru_cache(maxsize=64)  # a figure has many panels of one make, and altair takes its time
def _panel(families, upstream, width, height, titled, axes, points, kinds, crowd, sizes, legend):
  x, y = _places(upstream, titled, axes)
  crowd = crowd * _AREA // (width * height)
  below, above = _ground(upstream, titled, axes, kinds)
  dots = _dots(x, y, families, points, crowd, sizes, legend)
  # Marks lie over lines that they leave to be seen, and under them where they are a cloud.
  layers = (*below, dots, *above) if crowd > _CLOUD else (*below, *above, dots)
  chart = altair.layer(*layers)
  # Not validated: that takes most of the time, and a test validates.
  spec = chart.properties(width=width, height=height).to_dict(validate=False)
  return {key: spec[key] for key in ("layer", "width", "height")}


def _bottom(title, **options):
  return altair.Legend(title=title, orient="bottom", **options)


@functools.lru_cache(maxsize=64)
def _ground(upstream, titled, axes, kinds):
  """The layers of lines: (what is below the points in any case, what may be above)."""
  x, y = _places(upstream, titled, axes)
  names = [name for name in LINES if name in kinds]

  def scale(part):
    return altair.Scale(domain=names, range=[LINES[name][part] for name in names])

  marked = altair.Chart(altair.NamedData(name="saturation"))
  band = marked.mark_rect(opacity=0.1).encode(
      x=x, x2="x_end:Q", y=altair.Y("y_low:Q"), y2="y_high:Q",
      # A scale here, with its legend off, would take the lines' legend away with it.
      fill=altair.condition(f"datum.line == '{LAWS['hull']}'", altair.value("#111111"),
                            altair.value("#666666")))
  stroke = altair.Stroke("line:N", scale=scale(0), legend=_bottom("Lines", columns=3))
  rule = marked.mark_rule(strokeDash=[2, 3], strokeWidth=1.3).encode(
      x=x, x2="x_end:Q", y=y, stroke=stroke,
      tooltip=[altair.Tooltip("line:N", title="saturation of the"),
               *(altair.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))])
  lines = altair.Chart(altair.NamedData(name="lines")).mark_line().encode(
      x=x, y=y, stroke=stroke,
      strokeDash=altair.StrokeDash("line:N", scale=scale(1),
                                   legend=_bottom("Lines", columns=3)),
      strokeWidth=altair.condition(f"datum.line == '{HULL}'", altair.value(1.2),
                                   altair.value(1.9)))
  frame = altair.Chart(altair.NamedData(name="frame")).mark_point(opacity=0).encode(x=x, y=y)
  return (frame, band), (rule, lines)


# Shares of the data are up to 1, parameters and examples many; epochs are in between.
_SHADE_LABEL = "replace(format(datum.value, datum.value < 1000 ? '.3~g' : '.3~s'), 'G', 'B')"


def _dots(x, y, families, points, crowd, sizes, legend):
  """The layer of points in one of `STYLES`."""
  share = min(max(math.log(max(crowd, 1) / _FEW) / math.log(_MANY / _FEW), 0.0), 1.0)
  smallest, largest, opacity = 45 - 38 * share, 200 - 160 * share, 0.85 - 0.4 * share
  channels = {
      "x": x, "y": y,
      "size": altair.Size("size:Q",
                          scale=altair.Scale(type="log", range=[smallest, largest],
                                             domain=list(sizes)),
                          legend=None if sizes == UNSIZED else _bottom(
                              "Parameters", labelExpr=style.COUNT_LABEL, symbolFillColor="#777",
                              values=style.sizes_legend(*sizes), symbolStrokeWidth=0)),
      "opacity": altair.condition("datum.evaluation == 'earlier'", altair.value(0.35 * opacity),
                                  altair.value(opacity)),
      "tooltip": [altair.Tooltip(field, title=title,
                                 type="quantitative" if form else "nominal",
                                 format=form or altair.Undefined)
                  for field, title, form in _TOOLTIP]}
  if points == "family":
    look = style.looks(families)
    for channel, part in ((altair.Color, 0), (altair.Shape, 1)):
      channels[("color", "shape")[part]] = channel(
          "family:N", legend=_bottom("Architecture", columns=4),
          scale=altair.Scale(domain=list(families), range=[look[name][part] for name in families]))
  elif points == "factor":
    shade = altair.Color("shade:Q", scale=altair.Scale(type="log", scheme=style.SEQUENTIAL),
                         legend=_bottom(legend[0], values=list(legend[1]),
                                        labelExpr=_SHADE_LABEL, gradientLength=170))
    channels["color"] = altair.condition(f"datum.role != '{RUN}'", shade,
                                         altair.value(style.GREY))
  else:
    channels["color"] = altair.condition(f"datum.role != '{RUN}'", altair.value(style.EMPHASIS),
                                         altair.value(style.GREY))
  return altair.Chart(altair.NamedData(name="points")).mark_point(
      # A description of each of thousands of marks would be most of an SVG, and read by nobody.
      filled=True, aria=altair.Undefined if crowd < 500 else False, stroke="white",
      strokeWidth=0.5 if crowd < 500 else 0.2).encode(**channels)
