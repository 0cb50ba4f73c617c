"""What all figures share: names, colours, scales of accuracy, the way to a file.

Colours are Okabe and Ito's, which readers with any common colour vision tell apart, and each family
has a shape as well; magnitudes are in viridis, signs in orange and blue, which are safe in the same
sense.
"""
import collections
import copy
import dataclasses
import pathlib
import random
from collections.abc import Callable

import altair
import numpy as np
import vl_convert

from big_transfer.study import methods, table

CLIP = methods.CLIP  # of errors, and of accuracies in logits: their axes have no end

FAMILIES = {"vit": ("ViT", "#0072B2", "circle"),
            "mixer": ("Mixer", "#E69F00", "triangle-up"),
            "resnet": ("ResNet", "#009E73", "square")}
OTHER_FAMILIES = "other families"
MOST_FAMILIES = 8  # told apart by colour and shape; the rarer ones of a table share a name
_RARE = ("#9a9a9a", "circle")
_OTHER_COLOURS = ("#D55E00", "#56B4E9", "#8C6D31", "#CC79A7")
MOST_OTHERS = len(_OTHER_COLOURS)  # beside `FAMILIES`, told apart by colour alone
# Closed ones alone: a line would be painted in the white of the outlines.
_OTHER_SHAPES = ("diamond", "cross", "triangle-down", "triangle-right")
GREY, EMPHASIS = "#c4c4c4", "#D55E00"
SEQUENTIAL, DIVERGING = "viridis", "blueorange"

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
    "header": {"labelFontSize": 12, "labelFontWeight": "bold", "labelColor": "#111",
               "labelAnchor": "start", "title": None, "labelPadding": 4, "labelLimit": 260},
    "legend": {"titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11,
               "labelColor": "#333", "titleColor": "#555", "symbolStrokeWidth": 1.5,
               "labelLimit": 260},
}


def cell_name(cell):
  """A cell's task, with variant and setting where they say more, for titles."""
  _, task, variant, setting = tuple(cell)[:4]
  return table.name_of(str(task or "task").replace("_", " "), variant, setting)


_SETTINGS = {"linear": "linear probe, all examples", "finetune": "fine-tuned"}


def shots_name(shots):
  """'10 shots', or a setting without a number of shots, for titles; see `table.measure`."""
  if shots is None:
    return "shots not given"
  if isinstance(shots, str):
    return _SETTINGS.get(shots, shots)
  return f"{shots} shot{'s' if shots != 1 else ''}"


def at_shots(title, shots):
  """A title with the number of shots, or the setting, where there is one."""
  return title if shots is None else f"{title}, {shots_name(shots)}"


def family_name(family):
  """The name a family goes by in figures."""
  return FAMILIES[family][0] if family in FAMILIES else str(family or "unknown")


def families(points):
  """The families of the runs, as figures name them.

  Args:
    points: a `table.Points`.

  Returns:
    (names (U,) of each run's family, the names that occur, in the order of legends). The rarest of
    more than `MOST_FAMILIES` go by the name `OTHER_FAMILIES`.
  """
  names_U = np.array([family_name(family) for family in points.of_runs("family")], object)
  counts = collections.Counter(names_U)
  known = [name for name, _, _ in FAMILIES.values() if name in counts]
  others = sorted(set(counts) - set(known), key=lambda name: (-counts[name], name))
  if len(known) + len(others) > MOST_FAMILIES:
    others = others[:MOST_FAMILIES - 1 - len(known)]
    names_U[~np.isin(names_U.astype(str), known + others)] = OTHER_FAMILIES
    others.append(OTHER_FAMILIES)
  return names_U, known + others


def looks(names):
  """The colour and the shape of each family: {name: (colour, shape)}."""
  found = {name: (colour, shape) for name, colour, shape in FAMILIES.values()}
  found[OTHER_FAMILIES] = _RARE
  others = [name for name in names if name not in found]
  for i, name in enumerate(others):
    # Shapes move on by one with every round of colours, so that no two families look alike.
    found[name] = (_OTHER_COLOURS[i % len(_OTHER_COLOURS)],
                   _OTHER_SHAPES[(i + i // len(_OTHER_COLOURS)) % len(_OTHER_SHAPES)])
  return {name: found[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Axis:
  """A scale of accuracy, drawn as a linear axis over transformed values.

  Attributes:
    forward: accuracies -> places on the axis.
    label: the Vega expression that names a place by its accuracy.
    ticks: accuracies to mark; None leaves it to the drawing library.
    words: what the axis' title adds.
  """
  forward: Callable
  label: str
  ticks: tuple[float, ...] | None
  words: str


_TICKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99,
          0.995, 0.998, 0.999)
AXES = {
    "linear": Axis(lambda a: np.asarray(a, float), "format(datum.value, '~%')", None, ""),
    "log": Axis(lambda a: -np.log10(np.maximum(1.0 - np.asarray(a, float), CLIP)),
                "format(1 - pow(10, -datum.value), '.1~%')", (0.0,) + _TICKS,
                " (log error)"),
    "logit": Axis(methods.logit, "format(1 / (1 + exp(-datum.value)), '.1~%')",
                  (0.001, 0.005, 0.01, 0.02, 0.05) + _TICKS, " (logit)"),
}


def accuracy(channel, field, title, axes="linear"):
  """An encoding of `field`, places on one of `AXES`, with labels in accuracy."""
  axis = AXES[axes]
  ticks = altair.Undefined if axis.ticks is None else [
      round(float(place), 5) for place in axis.forward(np.array(axis.ticks))]
  return channel(f"{field}:Q", title=title and title + axis.words,
                 scale=altair.Scale(zero=False, nice=False, padding=9),
                 axis=altair.Axis(labelExpr=axis.label, values=ticks, labelOverlap="greedy",
                                  # A label beyond the end would move the title of its panel.
                                  tickCount=5, labelFlush=8))


# A thousand million parameters or examples are a billion (B), not a giga.
COUNT_LABEL = "replace(format(datum.value, '~s'), 'G', 'B')"

EVERY = "every"  # in place of a `table.measure`, of which None is one


def chosen(lines, upstream=None, shots=EVERY):
  """Lines of a table that speak of one upstream (None: any) and one `table.measure`."""
  return [line for line in lines if (upstream is None or line["upstream"] == upstream)
          and (shots == EVERY or table.measure(line) == shots)]


def sizes_legend(low, high):
  """At most four sizes between the ends, for a legend of a log scale: 1, 3, 10, … or the ends."""
  steps = [step * 10 ** power for power in range(0, 16) for step in (1, 3)]
  within = [step for step in steps if low <= step <= high]
  if len(within) < 2:
    return sorted({float(f"{low:.2g}"), float(f"{high:.2g}")})
  return within[::-(-len(within) // 4)] if len(within) > 4 else within


def shades_legend(values):
  """Values to mark in the legend of a log colour scale: all of a few, else four from end to end."""
  known = sorted({float(value) for value in values if np.isfinite(value)})
  if len(known) <= 5:
    return tuple(known)
  return tuple(float(f"{value:.2g}") for value in np.geomspace(known[0], known[-1], 4))


def specification(view, datasets):
  """A view with its data and the house's looks: a whole specification."""
  return {"$schema": altair.SCHEMA_URL, "config": copy.deepcopy(_CONFIG),
          "datasets": datasets} | view


def faceted(chart, rows, *, title, subtitle="", by="panel", columns=4, share=(), order=None):
  """A chart over the dataset "rows", once a value of a column: a whole specification.

  Args:
    chart: an altair chart without data of its own.
    rows: the data, plain dicts.
    title: of the figure; `subtitle` a line below it.
    by: the column whose values get a panel each.
    columns: panels side by side.
    share: the positions, among "x" and "y", whose scales all panels share.
    order: the values of `by` in the order of their panels; None: by alphabet.

  Returns:
    A Vega-Lite specification.
  """
  # Not validated: that takes most of the time, and a test validates.
  view = chart.to_dict(validate=False)
  view = {key: value for key, value in view.items()
          if key not in ("$schema", "config", "data", "datasets")}
  for layer in view.get("layer", ()):
    layer.pop("data", None)  # altair names an empty dataset, which would hide the facet's
  scales = {side: "shared" if side in share else "independent" for side in ("x", "y")}
  return specification(
      {"data": {"name": "rows"}, "spec": view, "columns": columns,
       "facet": {"field": by, "type": "nominal", "sort": order or "ascending",
                 "header": {"title": None}},
       "resolve": {"scale": scales, "axis": {"x": "independent", "y": "independent"}},
       "spacing": {"row": 34, "column": 28}, "title": headline(title, subtitle)}, {"rows": rows})


def headline(title, subtitle=""):
  """The title of a whole figure, with a line or several below it."""
  return {"text": title, "fontSize": 16, "offset": 18} | (
      {"subtitle": subtitle} if subtitle else {})


def thinned(count, most, keep=()):
  """Which of so many points to draw: (at most) `most`, at random but always the same ones.

  Args:
    count: points there are.
    most: points to draw.
    keep: indices that are drawn in any case, such as the vertices of a hull.

  Returns:
    Indices, rising.
  """
  if count <= most:
    return np.arange(count)
  chosen = set(random.Random(0).sample(range(count), most)) | {int(i) for i in keep}
  return np.array(sorted(chosen))


FORMATS = ("png", "svg", "pdf")


def save(spec, stem, formats=("png", "svg")):
  """Writes a figure as STEM.png (twice the size, for print), STEM.svg, STEM.pdf.

  Args:
    spec: a Vega-Lite specification.
    stem: path without an ending.
    formats: which, among `FORMATS`.

  Returns:
    The paths.

  Raises:
    ValueError: a format that isn't one of them.
  """
  unknown = [name for name in formats if name not in FORMATS]
  if unknown:
    raise ValueError(f"--formats: expected some of {', '.join(FORMATS)}, got {unknown[0]!r}")
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  drawing = vl_convert.vegalite_to_svg(spec)  # once for all: this is what takes the time
  contents = {"png": lambda: vl_convert.svg_to_png(drawing, scale=2),
              "svg": lambda: drawing.encode("utf-8"),
              "pdf": lambda: vl_convert.svg_to_pdf(drawing)}
  paths = []
  for name in formats:
    paths.append(stem.with_name(f"{stem.name}.{name}"))
    paths[-1].write_bytes(contents[name]())
  return paths
