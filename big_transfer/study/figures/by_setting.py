"""The figure of the same runs by few-shot probes, linear probes and fine-tuning.

As in `trends`, without `upstream` the rows of the specification hold all.
"""
import collections

import altair
import numpy as np

from big_transfer.study import by_setting, table
from big_transfer.study.figures import style

MOST_MARKS = 5000  # of a figure
_LEAST_MARKS = 30  # of one setting of one task, with so many tasks that it would be fewer
_CROWD = 60  # marks of one setting in a panel, from which on they are small and pale
# Few-shot probes are blue, the darker the more shots; what takes all examples is warm.
_FEW_SHOT = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
_LOOKS = {"linear": ("#E69F00", "diamond"), "finetune": ("#D55E00", "square")}
_OTHERS = ("#009E73", "#CC79A7", "#8C6D31")
_MEAN = "mean of a share of the data"


def _looks(measures):
  """{measure: (name, colour, shape)} of what a figure shows."""
  counts = [name for name in measures if isinstance(name, int)]
  shades = np.linspace(0, len(_FEW_SHOT) - 1, len(counts)).round().astype(int) if (
      len(counts) > 1) else [3]
  looks = {name: (style.shots_name(name), _FEW_SHOT[shade], "circle")
           for name, shade in zip(counts, shades)}
  others = [name for name in measures if name not in counts]
  for i, name in enumerate(others):
    looks[name] = (style.shots_name(name), *_LOOKS.get(
        name, (_OTHERS[i % len(_OTHERS)], "triangle-up")))
  return looks


def _means(view, fraction_N, family_N):
  """(family, fraction, mean us, mean ds) of its runs at each share of upstream data, if several.

  Runs of two families that differ upstream would make a line of means over both run from a family
  to the other.
  """
  for family in sorted(set(family_N)):
    shares = np.unique(fraction_N[(family_N == family) & np.isfinite(fraction_N)])
    for fraction in shares if shares.size > 1 else ():
      mine = (family_N == family) & (fraction_N == fraction)
      yield family, float(fraction), float(view.us[mine].mean()), float(view.ds[mine].mean())


def rows(points):
  """The rows of `by_setting`: a dict a mark, and one a mean over a share of upstream data."""
  tasks = by_setting.by_task(points)
  cells = sum(len(views) for views in tasks.values())
  if not cells:
    return []
  most = max(_LEAST_MARKS, MOST_MARKS // cells)
  looks = _looks(table.measures(view.cell for views in tasks.values() for view in views))
  of = {name: points.of_runs(name) for name in ("upstream_fraction", "model", "run_name")}
  family_U, _ = style.families(points)
  made = []
  for (upstream, task, variant), views in tasks.items():
    panel = style.cell_name([upstream, task, variant, None])
    for view in views:
      common = {"panel": panel, "upstream": upstream or "upstream",
                "setting": looks[table.measure(view.cell)][0]}
      fraction_N, family_N = of["upstream_fraction"][view.run], family_U[view.run]
      made += [common | {
          "mark": "run", "us": round(float(view.us[n]), 5), "ds": round(float(view.ds[n]), 5),
          "family": family_N[n], "fraction": _known(fraction_N[n]),
          "model": of["model"][view.run[n]], "run": of["run_name"][view.run[n]]}
               for n in style.thinned(view.us.size, most)]
      made += [common | {"mark": _MEAN, "us": round(us, 5), "ds": round(ds, 5), "family": family,
                         "fraction": fraction, "model": None, "run": None}
               for family, fraction, us, ds in _means(view, fraction_N, family_N)]
  return made


def _known(value):
  return float(value) if np.isfinite(value) else None


def settings(points, *, upstream=None):
  """Downstream against upstream accuracy of the same runs, by how the task was learnt.

  A panel a task, a colour a setting; a line joins the means of a family's runs at each share of
  the upstream data, from the smallest to the largest.

  Args:
    points: a `table.Points`.
    upstream: the upstream dataset to show; None: all.

  Returns:
    A Vega-Lite specification, or None where there are no several settings (`by_setting.by_task`).
  """
  made = [row for row in rows(points) if upstream in (None, row["upstream"])]
  if not made:
    return None
  looks = {name: rest for name, *rest in _looks(table.measures(points.cells)).values()}
  names = [name for name in looks if any(row["setting"] == name for row in made)]
  colour = altair.Color("setting:N", title="Downstream by", legend=altair.Legend(symbolOpacity=1),
                        scale=altair.Scale(domain=names,
                                           range=[looks[name][0] for name in names]))
  shape = altair.Shape("setting:N", title="Downstream by", scale=altair.Scale(
      domain=names, range=[looks[name][1] for name in names]))
  x = style.accuracy(altair.X, "us", "upstream accuracy")
  y = style.accuracy(altair.Y, "ds", "downstream accuracy")
  marks = collections.Counter((row["panel"], row["upstream"], row["setting"]) for row in made
                              if row["mark"] == "run")
  crowded = max(marks.values()) > _CROWD
  is_mean = altair.datum.mark == _MEAN
  families = [name for name in style.families(points)[1]
              if any((row["mark"], row["family"]) == (_MEAN, name) for row in made)]
  dashes = altair.StrokeDash(
      "family:N", title="Means of", sort=families,
      legend=altair.Legend(symbolType="stroke") if len(families) > 1 else None)
  chart = altair.layer(
      altair.Chart().transform_filter(altair.datum.mark == "run").mark_point(
          filled=True, size=12 if crowded else 28, opacity=0.25 if crowded else 0.6).encode(
              x=x, y=y, color=colour, shape=shape, tooltip=[
                  "setting:N", "model:N", "run:N", "fraction:Q",
                  altair.Tooltip("us:Q", title="upstream accuracy", format=".2%"),
                  altair.Tooltip("ds:Q", title="downstream accuracy", format=".2%")]),
      altair.Chart().transform_filter(is_mean).mark_line(strokeWidth=1.8).encode(
          x=x, y=y, color=colour, order="fraction:Q", detail=["upstream:N", "family:N"],
          strokeDash=dashes),
      altair.Chart().transform_filter(is_mean).mark_point(
          filled=True, size=65, opacity=1, stroke="white", strokeWidth=0.8).encode(
              x=x, y=y, color=colour, shape=shape, tooltip=[
                  "setting:N", "mark:N", "family:N", "fraction:Q",
                  altair.Tooltip("us:Q", title="mean upstream", format=".2%"),
                  altair.Tooltip("ds:Q", title="mean downstream", format=".2%")])
  ).properties(width=230, height=180)
  return style.faceted(chart, made, columns=3, order=list(dict.fromkeys(
      row["panel"] for row in made)), title="The same runs by several ways of transfer",
                       subtitle="Where there are several shares of the upstream data, a line "
                                "joins the means of a family's runs at each." if families else "")
