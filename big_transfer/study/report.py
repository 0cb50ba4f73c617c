"""One self-contained HTML page: what was studied, the figures, the fits, and where they come from.

The drawing library is inlined once and the page asks the network for nothing. Data travels as one
JSON block, in which a run's identity stands once however many points it has; the page's own
script joins the two. All text from runs is escaped, or set as text by the script.
"""
import copy
import html
import json
import pathlib

import vl_convert

from big_transfer.study import figures, saturation, table

_STYLE = """
:root { --ink: #1b1b1b; --soft: #5c5c5c; --line: #dedede; --tint: #f6f6f4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 40px 32px 80px; color: var(--ink);
  background: #fff; font: 16px/1.55 "Helvetica Neue", Helvetica, Arial, sans-serif; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 48px 0 10px; }
p { max-width: 76ch; margin: 0 0 12px; }
.soft, caption, figcaption { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 20px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.choice { position: sticky; top: 0; z-index: 2; background: #fff; padding: 10px 0;
  border-bottom: 1px solid var(--line); }
select { font: inherit; padding: 3px 8px; border: 1px solid #aaa; border-radius: 4px;
  background: #fff; }
#figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(530px, 1fr));
  gap: 28px 20px; margin-top: 20px; }
#legend { min-height: 44px; }
figure { margin: 0; min-height: 400px; } figure h3 { margin: 0; font-size: 17px; }
figure p { margin: 0 0 6px; font-size: 14px; }
.wide { overflow-x: auto; }
sub, sup { line-height: 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums;
  width: 100%; }
th { text-align: right; font-weight: 600; border-bottom: 1.5px solid #999; padding: 5px 9px;
  vertical-align: bottom; }
td { text-align: right; border-bottom: 1px solid var(--line); padding: 3px 9px;
  vertical-align: top; white-space: nowrap; }
th.t, td.t { text-align: left; } tr.hull td { background: var(--tint); }
td.why { white-space: normal; min-width: 30ch; color: var(--soft); }
details { margin-top: 12px; } summary { cursor: pointer; }
@media print { .choice { position: static; } figure { break-inside: avoid; } }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const choice = document.getElementById("shots"), room = document.getElementById("figures");
const text = (tag, words, kind) => { const node = document.createElement(tag);
  node.textContent = words; if (kind) node.className = kind; return node; };
const plots = data.panels.map(panel => {
  const figure = document.createElement("figure"), verdict = text("p", "", "soft");
  const plot = document.createElement("div");
  figure.append(text("h3", panel.title), verdict, plot);
  room.append(figure);
  return {panel, verdict, plot};
});
const drawn = {mode: "vega-lite", renderer: "canvas"};
vegaEmbed(document.getElementById("legend"), data.legend, {...drawn, actions: false});
let turns = 0;
async function draw() {
  const turn = ++turns;
  for (const {panel, verdict, plot} of plots) {
    if (turn !== turns) return;  // another choice was made meanwhile
    if (plot.view) { plot.view.finalize(); plot.view = null; }
    const cell = panel.cells[choice.value];
    if (!cell) { verdict.textContent = "not probed with so many shots"; plot.textContent = "";
      continue; }
    verdict.textContent = cell.verdict;
    const points = cell.points.map(row => {
      const point = Object.fromEntries(data.point_columns.map((name, i) => [name, row[i]]));
      return Object.assign({}, data.runs[point.run], point, {run: data.runs[point.run].run});
    });
    const spec = structuredClone(data.specs[panel.spec]);
    spec.datasets = {points, lines: cell.lines, saturation: cell.saturation,
      frame: cell.frame};
    plot.view = (await vegaEmbed(plot, spec, {...drawn,
      actions: {export: true, source: false, compiled: false, editor: false}})).view;
  }
}
choice.addEventListener("change", draw);
draw();
"""

_RUN_FIELDS = ("family", "model", "parameters", "run", "run_id", "learning_rate", "overrides")
_POINT_FIELDS = ("us", "ds", "step", "evaluation", "probe_std", "probe_seeds")


def _embedded(content):
  """JSON that can't close the script element it stands in."""
  return json.dumps(content, ensure_ascii=False, allow_nan=False,
                    separators=(",", ":")).replace("<", "\\u003c")


def _page_data(points, fits):
  """Runs once, then panels: one an (upstream, task, variant, setting), a cell a shot count."""
  families = {figures.family_name(point["family"]) for point in points}
  sizes = [point["parameters"] or 1 for point in points]
  by_cell = {}
  for fit in fits:
    by_cell.setdefault(tuple(fit[name] for name in table.CELL), []).append(fit)
  runs, index, panels, specs = [], {}, {}, {}
  for cell, members in saturation.cells(points).items():
    mine = by_cell.get(cell, [])
    drawn = figures.panel_data(members, mine)
    rows = []
    for point in drawn["points"]:
      if point["run_id"] not in index:
        index[point["run_id"]] = len(runs)
        runs.append({name: point[name] for name in _RUN_FIELDS})
      rows.append([index[point["run_id"]]] + [_short(point[name]) for name in _POINT_FIELDS])
    if cell[0] not in specs:
      specs[cell[0]] = _panel_spec(families, cell[0], [min(sizes), max(sizes)])
    panel = panels.setdefault(cell[:4], {"title": figures.cell_name(cell), "cells": {},
                                         "spec": list(specs).index(cell[0])})
    panel["cells"][figures.shots_name(cell[4])] = {
        "verdict": f"{figures.verdict(mine)}; {len(members)} points", "points": rows,
        **{name: drawn[name] for name in ("lines", "saturation", "frame")}}
  legend = _legend_spec(next(iter(specs.values())))
  for spec in specs.values():
    for layer in spec["layer"]:
      for channel in layer["encoding"].values():
        if "legend" in channel:
          channel["legend"] = None
  return {"runs": runs, "point_columns": ("run", *_POINT_FIELDS), "specs": list(specs.values()),
          "legend": legend, "panels": list(panels.values())}


def _panel_spec(families, upstream, sizes):
  """A panel's specification, its scales the same in all panels so that one legend serves all."""
  spec = figures.specification(
      figures.panel(families, upstream, width=430, height=300), {})
  del spec["$schema"]  # an address, if one that nothing loads; the script names the mode instead
  for layer in spec["layer"]:
    if "size" in layer["encoding"]:
      layer["encoding"]["size"]["scale"]["domain"] = sizes
  return spec


def _legend_spec(panel):
  """A panel with nothing in it but its legends."""
  spec = copy.deepcopy(panel) | {"width": 1, "height": 1}
  spec["datasets"] = dict.fromkeys(("points", "lines", "saturation", "frame"), [])
  for layer in spec["layer"]:
    for channel in {"x", "y"} & layer["encoding"].keys():
      layer["encoding"][channel]["axis"] = None
  return spec


def _short(value):
  return round(value, 5) if isinstance(value, float) else value


def _number(value, digits=3):
  return "" if value is None else f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"


def _fit_row(fit, shown):
  ends = fit["saturation_low"], fit["saturation_high"]
  interval = "" if None in ends else f"[{ends[0]:.3f}, {ends[1]:.3f}]"
  flat = ", flat" if fit["fit"] == "hull" and fit["hull_rise"] < saturation.FLAT else ""
  words = {"upstream": fit["upstream"],
           "task": figures.cell_name(tuple(fit[name] for name in table.CELL))}
  numbers = {"shots": fit["shots"], "runs": fit["runs"], "points": fit["points"],
             "fit": {"hull": "hull", "all": "all points"}[fit["fit"]], "k": _number(fit["k"]),
             "alpha": _number(fit["alpha"], 2), "e_IR": _number(fit["e_IR"]),
             "rms": _number(fit["rms"], 4), "loglinear_rms": _number(fit["loglinear_rms"], 4)}
  cells = [f'<td class="t">{html.escape(str(word or ""))}</td>'
           for name, word in words.items() if name in shown]
  cells += [f"<td>{html.escape(str('' if number is None else number))}</td>"
            for name, number in numbers.items() if name in shown]
  cells.append(
      f'<td class="t">{_number(fit["saturation"])} {interval}{flat}</td>' if fit["status"] == "ok"
      else f'<td class="t why">{html.escape(fit["status"])}: {html.escape(fit["reason"])}</td>')
  return f'<tr class="{fit["fit"]}">{"".join(cells)}</tr>'


_HEADS = {"upstream": "upstream", "task": "task", "shots": "shots", "runs": "runs",
          "points": "points", "fit": "fit", "k": "k", "alpha": "α", "e_IR": "e<sub>IR</sub>",
          "rms": "rms", "loglinear_rms": "rms, log-linear"}


def _fit_table(fits):
  """The table of fits; columns that would say the same in every line are left out."""
  shown = dict(_HEADS)
  if len({fit["upstream"] for fit in fits}) <= 1:
    del shown["upstream"]
  if all(fit["points"] == fit["runs"] for fit in fits):
    del shown["points"]
  head = "".join(f'<th class="t">{words}</th>' if name in ("upstream", "task") else
                 f"<th>{words}</th>" for name, words in shown.items())
  head += '<th class="t">saturation, with interval</th>'
  body = "\n".join(_fit_row(fit, shown) for fit in fits)
  return (f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
          "</div>")


def _facts(points, census, sources):
  runs = {point["run_id"]: point for point in points}
  families = {}
  for point in runs.values():
    families.setdefault(figures.family_name(point["family"]), []).append(point)
  low, high = (pick(point["us_accuracy"] for point in points) for pick in (min, max))
  left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(census.left_out.items()))
  facts = {
      "runs": f"{census.finished} finished, {len(runs)} with both accuracies ("
              + ", ".join(f"{len(members)} {name}" for name, members in sorted(families.items()))
              + ")",
      "left out": left_out or "none",
      "upstream": ", ".join(sorted({str(point["upstream"]) for point in points}))
                  + f"; accuracy {100 * low:.1f} % to {100 * high:.1f} %",
      "points": f"{len(points)}, "
                + ("each a run's last evaluation" if all(point["last"] for point in points)
                   else "every evaluation of the runs (--steps all), so not independent"),
      "read from": ", ".join(census.patterns),
  } | ({"warnings": " ".join(census.warnings)} if census.warnings else {}) | sources
  return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
                          for name, value in facts.items()) + "</dl>"


def write(path, points, fits, census, *, shots, sources, title="What pre-training buys downstream"):
  """Writes the report.

  Args:
    path: the HTML file.
    points: dicts with `table.POINT_COLUMNS`.
    fits: dicts with `saturation.FIT_COLUMNS`.
    census: the `table.Census` of the runs.
    shots: the number of shots shown first.
    sources: what a number comes from -> the file, shown as given.
    title: of the page.

  Returns:
    The path.
  """
  options = sorted({point["shots"] for point in points},
                   key=lambda count: (count is None, count or 0))
  chosen = "".join(
      f'<option{" selected" if count == shots else ""}>{figures.shots_name(count)}</option>'
      for count in options)
  runs = sorted({(point["run_id"], str(point["run_name"]), str(point["model"]))
                 for point in points})
  listed = "".join(f'<tr>{"".join(f"<td class=t>{html.escape(word)}</td>" for word in run)}</tr>'
                   for run in runs)
  library = vl_convert.javascript_bundle().replace("</script", "<\\/script")
  level = next((fit["level"] for fit in fits), 0.9)
  page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="soft">Each mark is one pre-training run, probed downstream by a linear classifier on a few
labelled examples a class. The law e<sub>DS</sub> = k · e<sub>US</sub><sup>α</sup> +
e<sub>IR</sub> between the errors downstream and upstream is fitted to the upper hull of the runs
(what the best mixtures of them reach) and to all of them (what the average run does). The
saturation value, 1 − e<sub>IR</sub>, is downstream accuracy as upstream accuracy goes to 1.</p>
{_facts(points, census, sources)}
<h2>Downstream against upstream</h2>
<p>Point at a mark to see its run. Dotted lines are the saturation values, with {100 * level:g} %
intervals in grey; where one is not identified there is no line.</p>
<div class="choice"><label>Probed with <select id="shots">{chosen}</select> a class</label>
<div id="legend"></div></div>
<div id="figures"></div>
<h2>The fits</h2>
<p>Least squares in accuracy. Hull fits use the upper hull at evenly spaced upstream accuracies,
without its first and its last edge where these are short (at most {saturation.SHORT:g} of the
upstream range of the runs) and there are others. “Flat”: the hull moves by less than
{100 * saturation.FLAT:.0f} points downstream over all upstream accuracies, so that the value is
where it lies rather than something it rises to. “Not identified”: the interval covers most of what
lies above the best run or all that the runs reached, the law fits best with no irreducible error,
or no run comes near enough to an upstream accuracy of 1.</p>
<p>Intervals are by subsampling runs, nominally {100 * level:g} %. In trials with planted laws, at
24 to 200 runs, a nominal 90 % held the truth in 96 to 100 % of data sets for hulls (90 % for the
hardest law) and in 90 to 94 % for all points (85 %); but noise in the accuracies themselves lifts
a hull, and an interval doesn't see that: with a noise of 0.01 it held the truth in 89 % at 24
runs (78 %), 96 % at 50, 84 % at 200 (65 %) and 30 % at 1,000.</p>
{_fit_table(fits)}
<h2>Where the numbers come from</h2>
<p>Every number on this page is computed from the rows the runs wrote, through the files named
above: one line a measured value, then one a run and cell, then one a fit.</p>
<details><summary>The {len(runs)} runs</summary><div class="wide"><table><thead><tr>
<th class="t">id</th><th class="t">name</th><th class="t">model</th></tr></thead>
<tbody>{listed}</tbody></table></div></details>
<script type="application/json" id="data">{_embedded(_page_data(points, fits))}</script>
<script>{library}</script>
<script>{_SCRIPT}</script>
</body></html>
"""
  path = pathlib.Path(path)
  path.write_text(page, encoding="utf-8")
  return path
