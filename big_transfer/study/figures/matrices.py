"""Figures of ranks: how tasks order the runs, and how one task's best runs do on the others.

As in `trends`, without `upstream` and `shots` the rows of a specification hold all.
"""
import altair

from big_transfer.study import table
from big_transfer.study.figures import style

_WORDS = 14  # tasks: with more, no numbers are written into the squares
UPSTREAM = "upstream"


def _spearman_lines(tables, upstream, shots):
  return [line for line in style.chosen(tables.get("spearman", ()), upstream, shots)
          if line["correlation"] is not None]


def _name(task):
  return str(task).replace("_", " ")


def _panel(line):
  """What a matrix is of, where several are side by side."""
  extra = [str(line[name]) for name in ("variant", "setting")
           if line[name] and line[name] not in table.USUAL]
  return ", ".join([line["upstream"] or "upstream", *extra])


def _squares(rows, value, *, x, y, size, written):
  chart = altair.Chart().mark_rect(stroke="white", strokeWidth=1).encode(
      x=x, y=y, color=value, tooltip=[altair.Tooltip("row:N"), altair.Tooltip("column:N"),
                                      *_tooltip(rows)])
  layers = [chart]
  if written:
    layers.append(altair.Chart().mark_text(fontSize=10).encode(
        x=x, y=y, text=altair.Text("value:Q", format=written),
        color=altair.condition("datum.dark", altair.value("white"), altair.value("#111"))))
  return altair.layer(*layers).properties(
      width=size * len({row["column"] for row in rows}),
      height=size * len({row["row"] for row in rows}))


def _tooltip(rows):
  shown = {"value": ".2f", "low": ".2f", "high": ".2f", "rank": ",d", "runs": ",d", "ds": ".1%"}
  return [altair.Tooltip(f"{name}:Q", format=form) for name, form in shown.items()
          if name in rows[0]]


def spearman_matrix(tables, *, upstream=None, shots=style.EVERY):
  """Rank correlations between tasks over the runs (Fig. F.20).

  Args:
    tables: with `spearman`.
    upstream: the upstream dataset to show; None: all, a panel each.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None where nothing was computed.
  """
  rows = [{"panel": _panel(line), "upstream": line["upstream"] or "upstream",
           "shots": table.measure(line), "row": _name(line["row"]), "column": _name(line["column"]),
           "value": line["correlation"], "low": line["low"], "high": line["high"],
           "runs": line["runs"], "dark": abs(line["correlation"]) > 0.75}
          for line in _spearman_lines(tables, upstream, shots) if line["column"] != UPSTREAM]
  if not rows:
    return None
  few = len({row["row"] for row in rows}) <= _WORDS
  colour = altair.Color("value:Q", title="Spearman's correlation", scale=altair.Scale(
      scheme=style.DIVERGING, reverse=True, domain=[-1, 1]))
  chart = _squares(
      rows, colour, size=34 if few else 20, written=".2f" if few else None,
      x=altair.X("column:N", title=None, axis=altair.Axis(labelAngle=-45, labelLimit=160)),
      y=altair.Y("row:N", title=None, axis=altair.Axis(labelLimit=180)))
  return style.faceted(chart, rows, columns=2,
                       title="How alike the tasks rank the runs")


def spearman_upstream(tables, *, upstream=None, shots=style.EVERY):
  """Rank correlation of each task with upstream accuracy, with its interval (Fig. F.21).

  Args:
    tables: with `spearman`.
    upstream: the upstream dataset to show; None: all, a panel each.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None where nothing was computed.
  """
  rows = [{"panel": _panel(line), "upstream": line["upstream"] or "upstream",
           "shots": table.measure(line), "row": _name(line["row"]), "value": line["correlation"],
           "low": line["low"], "high": line["high"], "runs": line["runs"]}
          for line in _spearman_lines(tables, upstream, shots) if line["column"] == UPSTREAM]
  if not rows:
    return None
  y = altair.Y("row:N", title=None, axis=altair.Axis(grid=True, labelLimit=180))
  chart = altair.layer(
      altair.Chart().mark_rule(strokeWidth=1.5, color="#777").encode(
          x=altair.X("low:Q", scale=altair.Scale(domain=[-1, 1]),
                     axis=altair.Axis(format=".1f", tickCount=5),
                     title="Spearman's correlation with upstream accuracy"), x2="high:Q", y=y),
      altair.Chart().mark_point(filled=True, size=60, color="#0072B2", opacity=1).encode(
          x=altair.X("value:Q", title="Spearman's correlation with upstream accuracy"), y=y,
          tooltip=["row:N", *_tooltip(rows)])).properties(
              width=330, height=19 * len({row["row"] for row in rows}))
  return style.faceted(chart, rows, columns=2,
                       title="Does upstream accuracy rank the runs as the task does?")


def peers(tables, *, upstream=None, shots=style.EVERY):
  """For runs of like upstream accuracy: the best run on each task, and its place on the others.

  Args:
    tables: with `peers`.
    upstream: the upstream dataset to show; None: all.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None where nothing was computed.
  """
  lines = [line for line in style.chosen(tables.get("peers", ()), upstream, shots)
           if line["percentile"] is not None]
  if not lines:
    return None
  several = len({_panel(line) for line in lines}) > 1
  rows = [{"panel": f"upstream {100 * line['us_low']:.1f} to {100 * line['us_high']:.1f} %"
                    + (f", {_panel(line)}" if several else ""),
           "order": line["us_low"], "upstream": line["upstream"] or "upstream",
           "shots": table.measure(line), "row": f"best on {_name(line['task'])}",
           "column": _name(line["on_task"]), "value": line["percentile"], "rank": line["rank"],
           "runs": line["runs"], "ds": line["ds"], "dark": line["percentile"] < 0.5}
          for line in sorted(lines, key=lambda line: -line["us_low"])]
  few = len({row["column"] for row in rows}) <= _WORDS
  colour = altair.Color("value:Q", title="Share of peers beaten", legend=altair.Legend(format="%"),
                        scale=altair.Scale(scheme="cividis", domain=[0, 1]))
  chart = _squares(
      rows, colour, size=30 if few else 18, written=".0%" if few else None,
      x=altair.X("column:N", title="measured on", axis=altair.Axis(labelAngle=-45,
                                                                   labelLimit=160)),
      y=altair.Y("row:N", title=None, axis=altair.Axis(labelLimit=200)))
  return style.faceted(chart, rows, columns=2,
                       order=list(dict.fromkeys(row["panel"] for row in rows)),
                       title="Among runs of like upstream accuracy, the best run on each task")
