"""The figure of the benchmark: errors by method, and how some of the curves were continued."""
import altair
import numpy as np

from big_transfer.study.figures import style

# Okabe and Ito's colours, which readers with any common colour vision tell apart.
_COLOURS = {"m1": "#E69F00", "m2": "#56B4E9", "m3": "#009E73", "m4": "#0072B2", "bnsl": "#D55E00",
            "mean3": "#CC79A7", "big_transfer": "#111111"}
_DRAWN = 80  # points of a drawn curve
_LEAST_ERROR = 1e-6  # that is drawn
_LEAST_BEFORE = 5  # a panel begins at a size so many times below the last one fitted


def _start(curve):
  """Where a panel begins: as far before the last point fitted as the last held out is beyond."""
  last = curve.x_N[-1]
  return max(curve.x_N[0], last * min(last / curve.x_Q[-1], 1 / _LEAST_BEFORE))


def _continued(example, methods):
  """Datasets of one panel: the measured points, and the line and interval of each method."""
  curve = example.curve
  start = _start(curve)
  points = [{"x": float(x), "y": float(y), "kind": kind}
            for kind, xs, ys in (("fitted", curve.x_N, curve.y_N),
                                 ("held out", curve.x_Q, curve.y_Q))
            for x, y in zip(xs, ys) if x >= start]
  lines, bands = [], []
  x_D = np.geomspace(start, max(curve.x_Q[-1], curve.x_N[-1]), _DRAWN)
  for method in methods:
    fitted = example.fits.get(method)
    if fitted is None:
      continue
    lines += [{"x": float(x), "y": float(y), "method": method}
              for x, y in zip(x_D, fitted.predict(x_D)) if np.isfinite(y) and y > 0]
    if method == "big_transfer":
      ahead_D = x_D[x_D >= curve.x_N[-1]]
      bands = [{"x": float(x), "low": float(low), "high": float(high)}
               for x, low, high in zip(ahead_D, *fitted.interval(ahead_D))]
  return {"points": points, "lines": lines, "bands": bands}


def _panel(i, curve, methods, titles):
  values = np.concatenate([curve.y_N[curve.x_N >= _start(curve)], curve.y_Q])
  # To the points, with a little room: a curve that leaves the panel is wrong by more than that.
  room = (values.max() / values.min()) ** 0.08
  x = altair.X("x:Q", title=titles["x"],
               scale=altair.Scale(type="log", nice=False, padding=6),
               axis=altair.Axis(labelExpr=style.COUNT_LABEL, tickCount=4))
  y = altair.Y("y:Q", title=titles["y"],
               scale=altair.Scale(type="log", nice=False,
                                  domain=[values.min() / room, values.max() * room]),
               axis=altair.Axis(format="~g", tickCount=5))
  colour = _colour(methods)
  dots = altair.Chart(altair.NamedData(name=f"points_{i}")).mark_point(
      size=20, filled=True, clip=True).encode(
          x=x, y=y, opacity=altair.value(0.8),
          fill=altair.Fill("kind:N", title="Measurements", scale=altair.Scale(
              domain=["fitted", "held out"], range=["#555", "#bdbdbd"])))
  band = altair.Chart(altair.NamedData(name=f"bands_{i}")).mark_area(
      opacity=0.13, color=_COLOURS["big_transfer"], clip=True).encode(
          x=x, y=altair.Y("low:Q"), y2="high:Q")
  lines = altair.Chart(altair.NamedData(name=f"lines_{i}")).mark_line(clip=True).encode(
      x=x, y=y, color=colour,
      strokeWidth=altair.condition("datum.method == 'big_transfer'", altair.value(2.4),
                                   altair.value(1.5)))
  return altair.layer(dots, band, lines).properties(
      width=390, height=230, title=f"{curve.domain}: {curve.task}, {curve.model}")


def _colour(methods):
  return altair.Color(
      "method:N", title="Method", legend=altair.Legend(symbolOpacity=1), scale=altair.Scale(
          domain=list(methods), range=[_COLOURS[method] for method in methods]))


def _errors(methods):
  x = altair.X("log_rmse:Q", title="root mean squared error of log loss on the sizes held out",
               scale=altair.Scale(type="log", nice=False, padding=12),
               axis=altair.Axis(format="~g", tickCount=6, grid=True))
  y = altair.Y("method:N", title=None, sort=list(methods),
               axis=altair.Axis(ticks=False, domain=False, labelFontSize=12))
  dots = altair.Chart(altair.NamedData(name="errors")).mark_point(
      filled=True, size=26, opacity=0.5).encode(
          x=x, y=y, yOffset=altair.YOffset("offset:Q", scale=altair.Scale(domain=[-1.4, 1.4])),
          color=_colour(methods))
  means = altair.Chart(altair.NamedData(name="means")).mark_tick(
      color="#111", thickness=2.5, size=24).encode(x=x, y=y)
  words = altair.Chart(altair.NamedData(name="means")).mark_text(
      align="left", dx=6, fontSize=11, fontWeight="bold", baseline="bottom", dy=-4).encode(
          x=x, y=y, text=altair.Text("log_rmse:Q", format=".4f"))
  return altair.layer(dots, means, words).properties(
      width=860, height=38 * len(methods), title=altair.Title(
          "Errors by method", subtitle="A mark is a curve, the bar the mean over curves."))


def benchmark_figure(scores, examples, methods, level, names):
  """Errors of every curve by method; below, some curves and how each method continued them.

  Args:
    scores: dicts with `benchmark.CURVE_COLUMNS`.
    examples: `benchmark.Example`s, the curves to show.
    methods: the methods scored, in the order to show them.
    level: nominal coverage of the intervals.
    names: {"x": what sizes are called, "y": what losses are}.

  Returns:
    A Vega-Lite specification.

  Raises:
    ValueError: no curve has a score.
  """
  scored = [line for line in scores if line["status"] == "ok"]
  if not scored:
    raise ValueError("scores: expected at least one curve with a score; got none")
  # Zero, an exact prediction, has no place on a logarithmic axis.
  datasets = {
      "errors": [{"method": line["method"], "log_rmse": max(line["log_rmse"], _LEAST_ERROR),
                  # Apart in an order that has nothing to do with the error.
                  "offset": 2 * ((i * 0.618034) % 1) - 1} for i, line in enumerate(scored)],
      "means": [{"method": method, "log_rmse": max(float(np.mean(errors)), _LEAST_ERROR)}
                for method in methods
                if (errors := [line["log_rmse"] for line in scored if line["method"] == method])]}
  panels = []
  for i, example in enumerate(examples):
    titles = {"x": names["x"] if i + 2 >= len(examples) else None,
              "y": names["y"] if i % 2 == 0 else None}
    panels.append(_panel(i, example.curve, methods, titles))
    datasets |= {f"{name}_{i}": rows for name, rows in _continued(example, methods).items()}
  shown = altair.concat(*panels, columns=2).properties(title=altair.Title(
      "Curves of middle error, one a group of tasks",
      subtitle=f"Lines are fitted to the dark points. Shaded: big_transfer's {100 * level:.0f} % "
               "interval. Where the dark points are a running minimum, its line runs above them."))
  spec = altair.vconcat(_errors(methods), shown).to_dict(validate=False)
  return style.specification(
      {key: value for key, value in spec.items() if key in ("vconcat", "resolve", "spacing")},
      datasets)
