"""Figures of the tables: the laws' parameters, their errors, whose runs make the hull.

Each takes the tables of a study and returns a Vega-Lite specification, or None where the tables
have nothing to show. `upstream` and `shots` choose what is shown; without them the rows of the
specification hold all, each with its `upstream` and `shots`, for the report to choose from.
"""
import collections

import altair
import numpy as np

from big_transfer.study import table
from big_transfer.study.figures import panels, style

METHODS = {"saturating": ("#111111", "circle"), "log-linear": ("#D55E00", "square"),
           "logit-linear": ("#0072B2", "triangle-up"), "logit-quadratic": ("#009E73", "diamond"),
           "mean": ("#8C6D31", "cross")}
FITS = {"hull": ("hull", "#D55E00", [1, 0], "circle"),
        "all": ("all points", "#0072B2", [5, 3], "square")}
_ERRORS = {"fit_error": ("fitted", [4, 3]), "prediction_error": ("held out", [1, 0])}
_PALE = altair.condition("datum.status == 'ok'", altair.value(1), altair.value(0.35))
_LEAST_ERROR = 1e-7  # in accuracy squared: a log axis has no 0


def _panel(line):
  return style.cell_name([line[name] for name in ("upstream", "task", "variant", "setting")])


def _upstream(line):
  return line["upstream"] or "upstream"


def _fitted(tables, upstream):
  """Lines of fits that have parameters and a number of shots."""
  return [line for line in style.chosen(tables.get("fits", ()), upstream, style.EVERY)
          if line["k"] is not None and line["shots"] is not None]


def _by_shots(tables, upstream):
  """Those lines where there are several numbers of shots, else none."""
  lines = _fitted(tables, upstream)
  return lines if len({line["shots"] for line in lines}) > 1 else []


def _fit_channels(kinds):
  names = [FITS[kind][0] for kind in FITS if kind in kinds]
  looks = {name: rest for name, *rest in FITS.values()}

  def scale(part):
    return altair.Scale(domain=names, range=[looks[name][part] for name in names])
  return {"strokeDash": altair.StrokeDash("fit:N", scale=scale(1), title="Fit"),
          "shape": altair.Shape("fit:N", scale=scale(2), title="Fit")}


def _upstream_colour():
  return altair.Color("upstream:N", title="Upstream", legend=altair.Legend(symbolOpacity=1),
                      scale=altair.Scale(range=["#0072B2", "#E69F00", "#009E73", "#CC79A7"]))


def _shots_axis(lines, title="shots a class (log scale)"):
  counts = sorted({line["shots"] for line in lines})
  return altair.X("shots:Q", scale=altair.Scale(type="log", nice=False, padding=8), title=title,
                  axis=altair.Axis(format="d", values=counts, grid=False))


def irreducible_error(tables, *, upstream=None):
  """e_IR against the number of shots, by upstream dataset and fit (Fig. 2).

  Args:
    tables: with `fits`.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None without fits at several numbers of shots.
  """
  lines = _by_shots(tables, upstream)
  if not lines:
    return None
  rows = [{"panel": _panel(line), "upstream": _upstream(line), "shots": line["shots"],
           "fit": FITS[line["fit"]][0], "value": line["e_IR"], "status": line["status"],
           "low": 1.0 - line["saturation_high"] if line["status"] == "ok" else None,
           "high": 1.0 - line["saturation_low"] if line["status"] == "ok" else None}
          for line in lines]
  y = altair.Y("value:Q", title="irreducible error e_IR", axis=altair.Axis(format="~%"))
  colour = _upstream_colour()
  channels = _fit_channels({line["fit"] for line in lines})
  tooltip = ["panel:N", "upstream:N", "fit:N", "shots:Q", "status:N",
             *(altair.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))]
  chart = altair.layer(
      altair.Chart().mark_rule(opacity=0.5).encode(
          x=_shots_axis(lines), y=altair.Y("low:Q", title="irreducible error e_IR"), y2="high:Q",
          color=colour),
      altair.Chart().mark_line(strokeWidth=1.4).encode(
          x=_shots_axis(lines), y=y, color=colour, strokeDash=channels["strokeDash"]),
      altair.Chart().mark_point(filled=True, size=45, opacity=1).encode(
          x=_shots_axis(lines), y=y, color=colour, shape=channels["shape"], tooltip=tooltip,
          opacity=_PALE)
  ).properties(width=180, height=140)
  return style.faceted(chart, rows, title="Irreducible error against the number of shots",
                       subtitle="Bars: intervals. Pale: saturation not identified.")


_PARAMETERS = {"k": "k", "alpha": "α", "e_IR": "e_IR"}


def parameters(tables, *, upstream=None):
  """k, alpha and e_IR against the number of shots, a row a task (Figs F.4, F.5).

  Args:
    tables: with `fits`.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None without fits at several numbers of shots.
  """
  lines = _by_shots(tables, upstream)
  if not lines:
    return None
  rows = [{"panel": _panel(line), "upstream": _upstream(line), "shots": line["shots"],
           "fit": FITS[line["fit"]][0], "parameter": words, "value": line[name],
           "status": line["status"]}
          for line in lines for name, words in _PARAMETERS.items()]
  channels = _fit_channels({line["fit"] for line in lines})
  colour = _upstream_colour()
  y = altair.Y("value:Q", title=None, scale=altair.Scale(zero=False),
               axis=altair.Axis(tickCount=4, format="~r"))
  chart = altair.layer(
      altair.Chart().mark_line(strokeWidth=1.3).encode(
          x=_shots_axis(lines, "shots a class"), y=y, color=colour,
          strokeDash=channels["strokeDash"]),
      altair.Chart().mark_point(filled=True, size=40, opacity=1).encode(
          x=_shots_axis(lines, "shots a class"), y=y, color=colour, shape=channels["shape"],
          opacity=_PALE,
          tooltip=["panel:N", "upstream:N", "fit:N", "shots:Q", "parameter:N", "status:N",
                   altair.Tooltip("value:Q", format=".3g")])).properties(width=170, height=90)
  spec = style.faceted(chart, rows, title="The law's parameters against the number of shots",
                       subtitle="Pale: saturation not identified.")
  del spec["columns"]
  header = {"title": None}
  return spec | {"facet": {
      "row": {"field": "panel", "type": "nominal",
              "header": header | {"labelAngle": 0, "labelAlign": "left", "labelLimit": 130}},
      "column": {"field": "parameter", "type": "nominal", "sort": list(_PARAMETERS.values()),
                 "header": header}}}


def curves_by_shots(tables, fit, *, upstream=None):
  """The fitted laws of each task, a curve a number of shots (F.6 for hulls, F.7 for all points).

  Args:
    tables: with `fits`.
    fit: "hull" or "all".
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None without fits.
  """
  lines = [line for line in _fitted(tables, upstream) if line["fit"] == fit]
  if not lines:
    return None
  rows = []
  for line in lines:
    for part, ends in (("within the runs", (line["us_low"], line["us_high"])),
                       ("beyond", (line["us_high"], 1.0))):
      curve = panels.law_curve([line[name] for name in _PARAMETERS], *ends)
      rows += [{"panel": _panel(line), "upstream": _upstream(line), "of": line["shots"],
                "part": part, "us": round(float(us), 4), "ds": round(float(ds), 4)}
               for us, ds in zip(*(values[::3] for values in curve)) if ds >= 0]
      rows.append(rows[-1] | {"us": round(float(ends[1]), 4), "ds": round(float(curve[1][-1]), 4)})
  chart = altair.Chart().mark_line(strokeWidth=1.6).encode(
      x=style.accuracy(altair.X, "us", "upstream accuracy"),
      y=style.accuracy(altair.Y, "ds", "downstream accuracy"),
      color=altair.Color("of:O", title="Shots a class",
                         scale=altair.Scale(scheme=style.SEQUENTIAL, reverse=True)),
      strokeDash=altair.StrokeDash("part:N", title="Law", scale=altair.Scale(
          domain=["within the runs", "beyond"], range=[[1, 0], [3, 3]])),
      detail="upstream:N", tooltip=["panel:N", "of:O"]).properties(width=180, height=140)
  return style.faceted(chart, rows, title=f"The laws fitted to {_FITTED[fit]}")


_FITTED = {"hull": "the upper hulls", "all": "all points"}


def _size_rows(line, panel, values):
  return [{"panel": panel, "upstream": _upstream(line), "shots": table.measure(line),
           "size": line["size"], "fit": FITS[line["fit"]][0], "error": words,
           "series": f"{FITS[line['fit']][0]}, {words}",
           "value": max(values[name], _LEAST_ERROR),
           "low": max(values[f"{name}_low"], _LEAST_ERROR),
           "high": max(values[f"{name}_high"], _LEAST_ERROR)}
          for name, (words, _) in _ERRORS.items()]


def _size_chart(rows, **properties):
  fits = [name for name, *_ in FITS.values()]
  colour = altair.Color("fit:N", title="Fit to", scale=altair.Scale(
      domain=fits, range=[FITS["hull"][1], FITS["all"][1]]), legend=altair.Legend(symbolOpacity=1))
  x = altair.X("size:Q", title="runs fitted", axis=altair.Axis(format="d", tickCount=5))
  y = altair.Y("value:Q", title="mean squared error, accuracy²",
               scale=altair.Scale(type="log"), axis=altair.Axis(format=".0e", tickCount=4))
  words = [name for name, _ in _ERRORS.values()]
  return altair.layer(
      altair.Chart().mark_area(opacity=0.15).encode(
          x=x, y=altair.Y("low:Q", title="mean squared error, accuracy²",
                          scale=altair.Scale(type="log")), y2="high:Q",
          color=colour, detail="error:N"),
      altair.Chart().mark_line(strokeWidth=1.6).encode(
          x=x, y=y, color=colour,
          strokeDash=altair.StrokeDash("error:N", title="Error on points", scale=altair.Scale(
              domain=words, range=[dash for _, dash in _ERRORS.values()]))),
      altair.Chart().mark_point(filled=True, size=28, opacity=1).encode(
          x=x, y=y, color=colour, tooltip=[
              "series:N", "size:Q",
              *(altair.Tooltip(f"{name}:Q", format=".2e") for name in ("value", "low", "high"))])
  ).properties(**properties)


def sample_size(tables, *, upstream=None, shots=style.EVERY):
  """Errors of the fits against the number of runs, averaged over tasks (Fig. 3).

  Args:
    tables: with `sample_size`.
    upstream: the upstream dataset to show; None: all, a panel each.
    shots: the number of shots to show; by default all, a panel each.

  Returns:
    A Vega-Lite specification, or None where nothing was computed.
  """
  grouped = {}
  for line in style.chosen(tables.get("sample_size", ()), upstream, shots):
    if line["status"] == "ok":
      # The size called "all" may differ from task to task and still is one place of the axis.
      key = (line["upstream"], table.measure(line), line["fit"],
             "all" if line["all"] else line["size"])
      grouped.setdefault(key, []).append(line)
  rows = []
  most = {}
  for key, lines in grouped.items():
    most[key[:2]] = max(most.get(key[:2], 0), len(lines))
  for key, lines in grouped.items():
    if len(lines) == most[key[:2]]:  # else a mean over other tasks, which isn't comparable
      values = {name + end: float(np.mean([line[name + end] for line in lines]))
                for name in _ERRORS for end in ("", "_low", "_high")}
      size = round(float(np.mean([line["size"] for line in lines])))
      rows += _size_rows(lines[0] | {"size": size},
                         style.at_shots(_upstream(lines[0]), key[1]), values)
  if not rows:
    return None
  return style.faceted(_size_chart(rows, width=250, height=190), rows, columns=3, share=("y",),
                       order=list(dict.fromkeys(row["panel"] for row in rows)),
                       title="How many runs a law needs", subtitle=(
                           "Means over tasks; bands: 10 to 90 % of the samples."))


def sample_size_by_task(tables, *, upstream=None, shots=style.EVERY):
  """Errors of the fits against the number of runs, a panel a task (Figs F.11 to F.16).

  Args:
    tables: with `sample_size`.
    upstream: the upstream dataset to show; None: all.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None where nothing was computed.
  """
  rows = [row for line in style.chosen(tables.get("sample_size", ()), upstream, shots)
          if line["status"] == "ok" for row in _size_rows(line, _panel(line), line)]
  if not rows:
    return None
  return style.faceted(_size_chart(rows, width=180, height=130), rows,
                       title="How many runs a law needs, by task",
                       subtitle="Bands: 10 to 90 % of the samples.")


def prediction_errors(tables, *, upstream=None, shots=style.EVERY):
  """Errors on held-out runs, those best upstream, by method and task (Figs F.10, F.18).

  Args:
    tables: with `prediction`.
    upstream: the upstream dataset to show; None: all.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None where nothing was held out.
  """
  names = {"hull": "predicting the hull from a hull", "all": "predicting runs from runs"}
  rows = [{"panel": names[line["fit"]], "upstream": _upstream(line), "shots": table.measure(line),
           "task": _panel(line), "method": line["method"], "bias": line["bias"],
           "value": max(line["prediction_rmse"], 1e-4)}
          for line in style.chosen(tables.get("prediction", ()), upstream, shots)
          if line["status"] == "ok" and line["fit"] in names]
  if not rows:
    return None
  methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
  methods += sorted({row["method"] for row in rows} - set(methods))

  def scale(part, other):
    return altair.Scale(domain=methods,
                        range=[METHODS.get(name, other)[part] for name in methods])
  spare = ("#CC79A7", "triangle-down")
  chart = altair.Chart().mark_point(filled=True, size=60, opacity=0.9).encode(
      x=altair.X("value:Q", title="root mean squared error held out, accuracy",
                 scale=altair.Scale(type="log", padding=8),
                 axis=altair.Axis(format=".1~%", tickCount=5)),
      y=altair.Y("task:N", title=None, axis=altair.Axis(grid=True, labelLimit=180)),
      color=altair.Color("method:N", title="Method", scale=scale(0, spare)),
      shape=altair.Shape("method:N", title="Method", scale=scale(1, spare)),
      tooltip=["task:N", "method:N", altair.Tooltip("value:Q", format=".4f"),
               altair.Tooltip("bias:Q", format="+.4f")]).properties(
                   width=300, height=19 * len({row["task"] for row in rows}))
  return style.faceted(chart, rows, columns=2, title="Errors on the best runs upstream, held out")


def hull_families(tables, *, upstream=None, shots=style.EVERY):
  """Whose runs make the hull: each architecture's share of its length, beside that of the runs.

  Args:
    tables: with `hull_families`.
    upstream: the upstream dataset to show; None: all.
    shots: the number of shots to show.

  Returns:
    A Vega-Lite specification, or None without hulls.
  """
  names = {"share_of_runs": "share of the runs", "share_of_hull": "share of the upper hull"}
  lines = [line for line in style.chosen(tables.get("hull_families", ()), upstream, shots)
           if line["share_of_hull"] is not None]
  if not lines:
    return None
  shares = collections.Counter()
  for line in lines:
    shares[style.family_name(line["family"])] += line["share_of_hull"] + line["share_of_runs"]
  known = [name for name, *_ in style.FAMILIES.values() if name in shares]
  others = sorted(shares.keys() - set(known), key=lambda name: (-shares[name], name))
  families = known + others
  kept = known + others[:style.MOST_OTHERS]  # bars have colours alone, of which there are so many
  rows = [{"panel": words, "upstream": _upstream(line), "shots": table.measure(line),
           "task": _panel(line), "value": line[name],
           "family": (style.family_name(line["family"])
                      if style.family_name(line["family"]) in kept else style.OTHER_FAMILIES)}
          for line in lines for name, words in names.items()]
  domain = kept + ([style.OTHER_FAMILIES] if len(families) > len(kept) else [])
  look = style.looks(domain)
  chart = altair.Chart().mark_bar(height=12).encode(
      x=altair.X("sum(value):Q", title=None, axis=altair.Axis(format="~%"),
                 scale=altair.Scale(domain=[0, 1])),
      y=altair.Y("task:N", title=None, axis=altair.Axis(labelLimit=180)),
      color=altair.Color("family:N", title="Architecture", scale=altair.Scale(
          domain=domain, range=[look[name][0] for name in domain])),
      tooltip=["task:N", "family:N", altair.Tooltip("sum(value):Q", format=".1%")]).properties(
          width=260, height=19 * len({row["task"] for row in rows}))
  return style.faceted(chart, rows, columns=2, title="Whose runs make the hull",
                       order=list(names.values()))
