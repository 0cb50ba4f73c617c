"""Figures of the head's weight decay and learning rate (arXiv:2110.02095; ICLR, appendices C, D).

What is drawn are series of runs that differ in one setting of the head alone, `factor`, means over
their seeds. As in `trends`, without `upstream` and `shots` the rows of a specification hold all.
"""
import altair
import numpy as np

from big_transfer.study import ablations, table
from big_transfer.study.figures import scatter, style

FACTORS = {"head_decay": "head weight decay", "head_rate": "head learning rate, × the body's"}
MOST_SERIES = 4  # told apart by dash and shape
UPSTREAM_PANEL = "upstream accuracy"
_DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])
_SHAPES = ("circle", "triangle-up", "square", "diamond")
_MARGINS = {"margin": "margin", "margin_normalised": "normalised margin"}
_PARTS = {"head": "head", "body": "body, sum over layers"}
_PARTS_OF = {"head": "#D55E00", "body, sum over layers": "#0072B2"}
_FEW_TICKS, _FEW_SHADES = 6, 10  # settings with a label: of more every second or so, or all
_CHARACTER, _LINE = 5.6, 12  # pixels of a label's letter, on average, and of its height
_WIDTH, _HEIGHTS = 430, (230, 620)  # pixels of a panel of `head_best`
_ERROR_WORDS = "± standard error"


def series_of(tables, factor, upstream=None):
  """The series of a factor, those of most settings and seeds first, and which figures draw.

  Args:
    tables: with `head_curves`.
    factor: one of `FACTORS`.
    upstream: the upstream dataset; None: any.

  Returns:
    (all series, the at most `MOST_SERIES` that are drawn), texts.
  """
  counts = {}
  for line in tables.get("head_curves", ()):
    if (line["factor"] == factor and line["quantity"] == "us"
        and line["series"] != ablations.ALL and upstream in (None, line["upstream"])):
      counts[line["series"]] = counts.get(line["series"], 0) + (line["seeds"] or 1)
  names = sorted(counts, key=lambda name: (-counts[name], name))
  return names, names[:MOST_SERIES]


def _lines(tables, factor, upstream, quantities):
  """Lines of curves to draw, each with `series` cut to what is drawn."""
  drawn = {name: series_of(tables, factor, name)[1] for name in {
      line["upstream"] for line in tables.get("head_curves", ())}}
  return [line for line in tables.get("head_curves", ())
          if line["factor"] == factor and line["quantity"] in quantities
          and line["mean"] is not None and line["series"] in drawn[line["upstream"]]
          and upstream in (None, line["upstream"])]


class _Setting:
  """The axis, or the colours, of a head's settings: logarithmic, 0 a little below the lowest."""

  def __init__(self, values, factor):
    self.values = sorted(set(values))
    self.title = FACTORS[factor]
    above = [value for value in self.values if value > 0] or [1.0]
    lowest = above[0]
    self.zero = lowest * (lowest / above[1] if len(above) > 1 else 0.3)  # one step down
    self.label = f"datum.value < {0.9 * lowest:g} ? '0' : format(datum.value, '~g')"

  def _ticks(self, few):
    """Places of settings to label: of all, or of every second, third, … of many."""
    return [self.place(value) for value in self.values[::-(-len(self.values) // few)]]

  def place(self, value):
    return value if value > 0 else self.zero

  def height(self, lines):
    """Pixels that leave room for so many lines of text between settings, within reason."""
    places = np.log10([self.place(value) for value in self.values])
    if places.size < 2:
      return _HEIGHTS[0]
    return float(np.clip(_LINE * lines * np.ptp(places) / np.diff(places).min(), *_HEIGHTS))

  def x(self):
    return altair.X("place:Q", title=self.title,
                    scale=altair.Scale(type="log", nice=False, padding=9),
                    axis=altair.Axis(values=self._ticks(_FEW_TICKS), labelExpr=self.label,
                                     grid=False, labelOverlap="greedy"))

  def y(self, field):
    return altair.Y(f"{field}:Q", title=f"best {self.title}",
                    scale=altair.Scale(
                        type="log", nice=False, padding=12,
                        domain=[self.place(self.values[0]), self.place(self.values[-1])]),
                    axis=altair.Axis(values=self._ticks(_FEW_SHADES), labelExpr=self.label,
                                     labelOverlap="greedy"))

  def colour(self):
    return altair.Color("place:Q", title=self.title,
                        scale=altair.Scale(type="log", scheme=style.SEQUENTIAL),
                        legend=altair.Legend(values=self._ticks(_FEW_SHADES),
                                             labelExpr=self.label, gradientLength=130))


def _row(line, panel, setting):
  error = line["error"] or 0.0  # an unknown one has a bar without length
  return {"panel": panel, "upstream": line["upstream"] or "upstream",
          "shots": table.measure(line), "series": line["series"], "value": line["value"],
          "place": setting.place(line["value"]),
          "mean": line["mean"], "error": line["error"], "seeds": line["seeds"],
          "low": line["mean"] - error, "high": line["mean"] + error}


def _series_channels(rows):
  names = list(dict.fromkeys(row["series"] for row in rows))

  def scale(looks):
    # Drawn are at most so many of an upstream; several upstreams may have more, in turn.
    return altair.Scale(domain=names, range=[looks[i % len(looks)] for i in range(len(names))])
  legend = altair.Legend(symbolFillColor="#333", symbolDash=[1, 0], symbolStrokeWidth=0)
  return {"strokeDash": altair.StrokeDash("series:N", title="Series", scale=scale(_DASHES),
                                          legend=legend),
          "shape": altair.Shape("series:N", title="Series", scale=scale(_SHAPES), legend=legend)}


def head_accuracy(tables, factor, *, upstream=None):
  """Accuracies against a setting of the head: upstream, then each task at all numbers of shots.

  Args:
    tables: with `head_curves`.
    factor: "head_decay" or "head_rate".
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None without such runs.
  """
  lines = _lines(tables, factor, upstream, ("us", "ds"))
  if not lines:
    return None
  setting = _Setting([line["value"] for line in lines], factor)
  neutral = {(line["upstream"], line["series"], line["neutral"])
             for line in tables.get("head_best", ())
             if line["factor"] == factor and line["task"] is None}
  rows = []
  for line in lines:
    panel = UPSTREAM_PANEL if line["quantity"] == "us" else style.cell_name(scatter.cell_of(line))
    rows.append(_row(line, panel, setting) | {
        "of": table.measure(line),
        "neutral": (line["upstream"], line["series"], line["value"]) in neutral})
  x, channels = setting.x(), _series_channels(rows)
  title = "accuracy"
  y = style.accuracy(altair.Y, "mean", title)
  y_low = style.accuracy(altair.Y, "low", title)
  colour = altair.condition("datum.of === null", altair.value("#111111"), altair.Color(
      "of:O", title="Shots a class", scale=altair.Scale(
          scheme=style.SEQUENTIAL, reverse=True, domain=[
              name for name in table.measures(lines) if name is not None])))
  tooltip = ["series:N", altair.Tooltip("value:Q", title=FACTORS[factor], format="~g"), "of:O",
             altair.Tooltip("mean:Q", title="accuracy", format=".2%"),
             altair.Tooltip("error:Q", title=_ERROR_WORDS, format=".2%"), "seeds:Q"]
  chart = altair.layer(
      altair.Chart().mark_rule(color="#dddddd", strokeWidth=2).encode(
          x=x, opacity=altair.condition("datum.neutral", altair.value(1), altair.value(0))),
      altair.Chart().mark_rule(strokeWidth=1.2).encode(x=x, y=y_low, y2="high:Q", color=colour),
      altair.Chart().mark_line(strokeWidth=1.5).encode(
          x=x, y=y, color=colour, detail="of:O", strokeDash=channels["strokeDash"]),
      altair.Chart().mark_point(filled=True, size=38, opacity=1).encode(
          x=x, y=y, color=colour, shape=channels["shape"], tooltip=tooltip)
  ).properties(width=200, height=150)
  panels = sorted({row["panel"] for row in rows} - {UPSTREAM_PANEL})
  return style.faceted(
      chart, rows,
      title=f"Accuracy against {_words(factor)}", order=[UPSTREAM_PANEL, *panels],
      subtitle="Means over run seeds, bars ± a standard error.")


def _words(factor):
  return FACTORS[factor].split(",")[0]


def _lifted(rows, low, high):
  """Adds `lift`, lines of text that a label is moved up by so that it stands on no other."""
  ends = {}
  for row in sorted(rows, key=lambda row: row["correlation"]):
    at = (row["correlation"] - low) / (high - low) * _WIDTH
    half = _CHARACTER * len(row["label"]) / 2.0
    taken = ends.setdefault(row["best"], [])
    level = next((i for i, end in enumerate(taken) if end < at - half), len(taken))
    taken[level:level + 1] = [at + half]
    row["lift"] = level
  return rows


def _best_rows(tables, factor, upstream, shots):
  """(rows of `head_best`, their `_Setting`, the ends of the axis of correlations), or None."""
  of_upstream, lines = {}, []
  for line in tables.get("head_best", ()):
    if line["factor"] != factor or line["best"] is None or upstream not in (
        None, line["upstream"]):
      continue
    if line["task"] is None:
      of_upstream[line["upstream"], line["series"]] = line
    elif line["correlation"] is not None and shots in (style.EVERY, table.measure(line)):
      lines.append(line)
  series = {name: series_of(tables, factor, name)
            for name in {line["upstream"] for line in lines}}
  drawn = {name: {*chosen, *([ablations.ALL] if len(every) > 1 else [])}  # the pool of one is it
           for name, (every, chosen) in series.items()}
  lines = [line for line in lines if line["series"] in drawn[line["upstream"]]]
  if not lines:
    return None
  # All that was tried, so that a best one at either end is seen to be there.
  setting = _Setting([line["value"] for line in tables.get("head_curves", ())
                      if line["factor"] == factor and upstream in (None, line["upstream"])], factor)
  ends = min(0.0, min(line["correlation"] for line in lines)) - 0.12, 1.12
  groups = {}
  for line in lines:
    mine = of_upstream.get((line["upstream"], line["series"]))
    row = {"panel": "all series" if line["series"] == ablations.ALL else line["series"],
           "upstream": line["upstream"] or "upstream", "shots": table.measure(line),
           "label": style.cell_name(scatter.cell_of(line)), "upstream_best": mine and mine["best"],
           **{name: line[name] for name in ("correlation", "best", "best_low", "best_high", "gain",
                                            "gain_low", "gain_high")}}
    for name, source in (("best", line), ("upstream_best", mine)):
      for end in ("", "_low", "_high"):
        value = source and source[f"best{end}"]
        if source and value is None:
          value = source["best"]  # an unknown range has a bar without length
        row[f"{name}{end}_place"] = None if value is None else setting.place(value)
    groups.setdefault((row["upstream"], row["shots"], row["panel"]), []).append(row)
  return [row for group in groups.values() for row in _lifted(group, *ends)], setting, ends


def head_best(tables, factor, *, upstream=None, shots=style.EVERY):
  """Each task's best setting of the head against how upstream accuracy ranks the task's runs.

  Args:
    tables: with `head_best`, and `head_curves` for the series.
    factor: "head_decay" or "head_rate".
    upstream: the upstream dataset to show; None: all, a panel each.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None without tasks that have both.
  """
  made = _best_rows(tables, factor, upstream, shots)
  if made is None:
    return None
  rows, setting, (low, high) = made
  x = altair.X("correlation:Q", scale=altair.Scale(domain=[low, high], nice=False),
               axis=altair.Axis(format=".1f", grid=False,
                                values=[v / 2 for v in range(-2, 3) if low <= v / 2 <= 1]),
               title="Spearman's correlation of the task with upstream accuracy")
  y = setting.y("best_place")
  tooltip = ["label:N", altair.Tooltip("correlation:Q", format=".2f"),
             altair.Tooltip("best:Q", title=f"best {_words(factor)}", format="~g"),
             altair.Tooltip("best_low:Q", title="not told from it, from", format="~g"),
             altair.Tooltip("best_high:Q", title="to", format="~g"),
             altair.Tooltip("upstream_best:Q", title="best for upstream accuracy", format="~g"),
             *(altair.Tooltip(f"{name}:Q", format="+.2%")
               for name in ("gain", "gain_low", "gain_high"))]
  chart = altair.layer(
      altair.Chart().mark_rect(color="#fbe3d3").encode(
          y=setting.y("upstream_best_low_place"), y2="upstream_best_high_place:Q"),
      altair.Chart().mark_rule(color=style.EMPHASIS, strokeDash=[5, 3]).encode(
          y=setting.y("upstream_best_place")),
      altair.Chart().mark_rule(strokeWidth=1.3, color="#777").encode(
          x=x, y=setting.y("best_low_place"), y2="best_high_place:Q"),
      altair.Chart().mark_point(filled=True, size=55, color="#0072B2", opacity=1).encode(
          x=x, y=y, tooltip=tooltip),
      # The outline parts a label from a bar that it stands on.
      *(altair.Chart().mark_text(fontSize=10, dy=altair.expr(f"-11 - {_LINE} * datum.lift"),
                                 **look).encode(x=x, y=y, text="label:N")
        for look in ({"stroke": "white", "strokeWidth": 3}, {"color": "#222"}))
  ).properties(width=_WIDTH, height=setting.height(max(row["lift"] for row in rows) + 2))
  return style.faceted(
      chart, rows, columns=2, order=sorted({row["panel"] for row in rows},
                                           key=lambda name: (name != "all series", name)),
      title=f"The best {_words(factor)}, by task",
      subtitle="Bars: settings that aren't told from the best. Orange: best for upstream accuracy.")


def _depth(name):
  """A key that sorts names of layers by depth."""
  ends = {"stem": 0, "pre_logits": 2, "head": 3}
  return ends.get(name, 1), name


def _by_layer(lines, factor, panel_of, title, axis, scale):
  setting = _Setting([line["value"] for line in lines], factor)
  rows = [_row(line, panel_of(line), setting) | {"layer": line["layer"]} for line in lines]
  x = altair.X("layer:N", title=None, sort=sorted({row["layer"] for row in rows}, key=_depth),
               axis=altair.Axis(labelAngle=-45, labelLimit=90))
  colour = setting.colour()
  tooltip = ["series:N", "layer:N", altair.Tooltip("value:Q", title=FACTORS[factor], format="~g"),
             altair.Tooltip("mean:Q", title=title, format=".4g"),
             altair.Tooltip("error:Q", title=_ERROR_WORDS, format=".2g"), "seeds:Q"]
  chart = altair.layer(
      altair.Chart().mark_rule(strokeWidth=1.2, opacity=0.7).encode(
          x=x, y=altair.Y("low:Q", title=title, scale=scale, axis=axis), y2="high:Q",
          color=colour),
      altair.Chart().mark_line(strokeWidth=1.5).encode(
          x=x, y=altair.Y("mean:Q", title=title, scale=scale, axis=axis), color=colour,
          detail="value:Q"),
      altair.Chart().mark_point(filled=True, size=30, opacity=1).encode(
          x=x, y=altair.Y("mean:Q", title=title, scale=scale, axis=axis), color=colour,
          tooltip=tooltip)).properties(width=240, height=170)
  return chart, rows


def margins(tables, factor, *, upstream=None):
  """Median margins by layer, raw and normalised, a line a setting of the head.

  Args:
    tables: with `head_curves`.
    factor: "head_decay" or "head_rate".
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where no margins were measured in such runs.
  """
  lines = _lines(tables, factor, upstream, _MARGINS)
  if not lines:
    return None
  chart, rows = _by_layer(
      lines, factor, lambda line: f"{line['series']}: {_MARGINS[line['quantity']]}",
      "median margin", altair.Axis(tickCount=5, format="~r"), altair.Scale(zero=False))
  return style.faceted(chart, rows, columns=2, title=f"Margins by layer, by {_words(factor)}",
                       order=list(dict.fromkeys(row["panel"] for row in rows)),
                       subtitle="Medians over upstream examples; means over run seeds, bars ± a "
                                "standard error.")


def layer_norms(tables, factor, *, upstream=None):
  """The L2 norm of each layer's weights, a line a setting of the head.

  Args:
    tables: with `head_curves`.
    factor: "head_decay" or "head_rate".
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where no norms were measured in such runs.
  """
  lines = [line for line in _lines(tables, factor, upstream, ("l2_norm",))
           if line["layer"] != "body" and line["mean"] > 0]
  if not lines:
    return None
  chart, rows = _by_layer(lines, factor, lambda line: line["series"], "L2 norm",
                          altair.Axis(tickCount=4, format="~r", grid=False),
                          altair.Scale(type="log", nice=False, padding=9))
  return style.faceted(chart, rows, columns=2, title=f"Norms by layer, by {_words(factor)}",
                       subtitle="Means over run seeds, bars ± a standard error.")


def norms(tables, factor, *, upstream=None):
  """The L2 norms of the head and of the body, summed over layers, against a setting of the head.

  Args:
    tables: with `head_curves`.
    factor: "head_decay" or "head_rate".
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where no norms were measured in such runs.
  """
  lines = [line for line in _lines(tables, factor, upstream, ("l2_norm",))
           if line["layer"] in _PARTS]
  if not lines:
    return None
  setting = _Setting([line["value"] for line in lines], factor)
  lines.sort(key=lambda line: (line["series"], line["layer"] == "body"))
  rows = [_row(line, f"{line['series']}: {line['layer']}", setting) | {
      "part": _PARTS[line["layer"]]} for line in lines]
  x = setting.x()
  colour = altair.Color("part:N", title="Part", scale=altair.Scale(
      domain=list(_PARTS_OF), range=list(_PARTS_OF.values())))

  def y(field):
    return altair.Y(f"{field}:Q", title="L2 norm", scale=altair.Scale(zero=False),
                    axis=altair.Axis(tickCount=4, format="~r"))
  chart = altair.layer(
      altair.Chart().mark_rule(strokeWidth=1.2).encode(x=x, y=y("low"), y2="high:Q", color=colour),
      altair.Chart().mark_line(strokeWidth=1.5).encode(x=x, y=y("mean"), color=colour),
      altair.Chart().mark_point(filled=True, size=38, opacity=1).encode(
          x=x, y=y("mean"), color=colour, tooltip=[
              "series:N", "part:N", altair.Tooltip("value:Q", title=setting.title, format="~g"),
              altair.Tooltip("mean:Q", title="L2 norm", format=".4g"),
              altair.Tooltip("error:Q", title=_ERROR_WORDS, format=".2g"), "seeds:Q"])
  ).properties(width=200, height=140)
  return style.faceted(chart, rows, title=f"Norms of head and body, by {_words(factor)}",
                       order=list(dict.fromkeys(row["panel"] for row in rows)),
                       subtitle="Means over run seeds, bars ± a standard error.")


def figures(tables, *, upstream=None, shots=style.EVERY):
  """All figures of this file: yields (name, specification or None)."""
  for factor in FACTORS:
    yield f"{factor}_accuracy", head_accuracy(tables, factor, upstream=upstream)
    yield f"{factor}_best", head_best(tables, factor, upstream=upstream, shots=shots)
    yield f"{factor}_margins", margins(tables, factor, upstream=upstream)
    yield f"{factor}_norms", norms(tables, factor, upstream=upstream)
    yield f"{factor}_layer_norms", layer_norms(tables, factor, upstream=upstream)
