"""One self-contained HTML page: what was studied, the figures, the fits, and where they come from.

The drawing library is inlined once and the page asks the network for nothing. Data travels as one
JSON block of columns (`payload`); the page's own script (page/*.js) draws what comes into view. All
text from runs is escaped, or set as text by the script.
"""
import collections
import html
import importlib.resources
import json
import pathlib
import string

import vl_convert

from big_transfer.study import (
    claims, findings, geometry, payload, saturation, sections, table)
from big_transfer.study.figures import layers, scatter, style

_TABLES = {  # name -> columns shown, and their heads
    "fits": {"upstream": "upstream", "task": "task", "shots": "shots", "fit": "fit",
             "runs": "runs", "points": "points", "k": "k", "alpha": "α", "e_IR": "e_IR",
             "rms": "rms", "loglinear_rms": "rms, log-linear", "logit_rms": "rms, logit-linear",
             "logit2_rms": "rms, logit-quadratic", "residual_ratio": "std of residuals / of ds",
             "saturation": "saturation", "saturation_low": "low", "saturation_high": "high",
             "noise": "noise", "status": "status", "reason": "reason"},
    "robust": {"upstream": "upstream", "task": "task", "shots": "shots", "points": "points",
               "alpha": "α", "e_IR": "e_IR", "saturation": "saturation", "saturation_low": "low",
               "saturation_high": "high", "status": "status", "reason": "reason"},
    "settings": {"upstream": "upstream", "task": "task", "by": "measured by", "runs": "runs",
                 "ds_mean": "mean accuracy", "ds_best": "best", "than": "against",
                 "pairs": "runs with both", "gain": "gain", "gain_low": "low", "gain_high": "high",
                 "correlation": "rank correlation", "correlation_low": "low",
                 "correlation_high": "high", "us_correlation": "with upstream",
                 "us_correlation_low": "low", "us_correlation_high": "high",
                 "saturation": "saturation", "saturation_low": "low", "saturation_high": "high",
                 "fit_status": "fit", "reason": "reason"},
    "settings_pairs": {"upstream": "upstream", "task": "task", "by": "measured by",
                       "than": "against", "pairs": "runs with both", "gain": "gain",
                       "gain_low": "low", "gain_high": "high", "correlation": "rank correlation",
                       "correlation_low": "low", "correlation_high": "high", "reason": "reason"},
    "settings_claims": {"upstream": "upstream", "task": "task", "by": "measured by",
                        "than": "against", "runs": "runs with both",
                        "order": "orders runs alike", "upstream_order": "as upstream does",
                        "saturates": "saturates", "verdict": "verdict", "reason": "numbers"},
    "shots": {"upstream": "upstream", "task": "task", "fit": "fit", "parameter": "parameter",
              "shot_counts": "numbers of shots", "pearson": "Pearson", "spearman": "Spearman",
              "pairs": "pairs", "likelihood_up": "rises", "likelihood_down": "falls",
              "status": "status", "reason": "reason"},
    "prediction": {"upstream": "upstream", "task": "task", "shots": "shots", "fit": "fit",
                   "method": "method", "runs_fitted": "runs fitted", "us_from": "held out from",
                   "points_held_out": "held out", "fit_rmse": "rms fitted",
                   "prediction_rmse": "rms held out", "bias": "bias", "status": "status",
                   "reason": "reason"},
    "controlled_tests": {"upstream": "upstream", "task": "task", "shots": "shots",
                         "factor": "factor", "runs": "runs", "series": "series",
                         "doublings": "doublings", "partial_r2": "partial R²", "slope": "slope",
                         "slope_low": "low", "slope_high": "high", "p_value": "p",
                         "same_curve": "same curve", "status": "status", "reason": "reason"},
    "left_out": {"source": "source", "task": "task", "points": "points", "reason": "reason"},
    "best_layers": {"upstream": "upstream", "task": "task", "shots": "shots", "family": "family",
                    "model": "model", "run_name": "run",
                    "us": "upstream accuracy", "layers": "layers",
                    "best_layer": "best layer", "best_ds": "its accuracy",
                    "earliest_layer": "earliest layer",
                    "earliest_depth_share": "its relative depth", "last_ds": "at pre_logits",
                    "gain": "best − pre_logits", "gain_error": "± s.e.", "status": "status",
                    "reason": "reason"},
    "geometry": {"upstream": "upstream", "family": "family", "model": "model", "run_name": "run",
                 "us": "upstream accuracy", "step": "step", "layer": "layer",
                 "margin": "median margin", "margin_normalised": "normalised",
                 "total_variance": "total variance", "l2_norm": "L2 norm of its weights"},
    "explained": {"upstream": "upstream", "task": "task", "shots": "shots", "runs": "runs",
                  "saturation": "saturation", "saturation_low": "low", "saturation_high": "high",
                  "saturation_status": "saturation status", "correlation": "rank correlation",
                  "correlation_low": "low", "correlation_high": "high",
                  "correlation_within": "within architectures",
                  "runs_with_layers": "runs with layers", "model": "best model upstream",
                  "run_name": "its run",
                  "best_layer": "best layer", "best_layer_ds": "its accuracy",
                  "earliest_layer": "earliest layer", "earliest_depth_share": "its relative depth",
                  "last_layer_gain": "best − pre_logits",
                  "mean_earliest_depth_share": "mean relative depth, all runs",
                  "best_head_decay": "best head decay",
                  "upstream_best_head_decay": "upstream's best head decay",
                  "best_head_rate": "best head rate",
                  "upstream_best_head_rate": "upstream's best head rate"},
} | {name: {"upstream": "upstream", "factor": "factor", "series": "series", "quantity": "quantity",
            "task": "task", "shots": "shots", "layer": "layer", "settings": "settings",
            "lowest": "from", "highest": "to", "seeds": "seeds", "slope": "slope a decade",
            "slope_low": "low", "slope_high": "high", "change": "change, all settings",
            "change_low": "low", "change_high": "high", "verdict": "verdict", "turn": "at",
            "status": "status",
            "reason": "reason"} for name in ("accuracy_effects", "geometry_effects")}
_OF_ACCURACY = {"us": "upstream accuracy", "ds": "accuracy on the task"}  # quantities of effects
_MOST_LEFT_OUT = 1000  # lines of the page; the file has all
_MOST_STATED = 20  # runs that the page's head names


def _embedded(content):
  """JSON that can't close the script element it stands in."""
  return json.dumps(content, ensure_ascii=False, allow_nan=False,
                    separators=(",", ":")).replace("<", "\\u003c")


def _asset(name):
  return (importlib.resources.files("big_transfer.study") / "page" / name).read_text("utf-8")


def _facts(points, census, sources, tables):
  names = style.families(points)[0].tolist()
  families = ", ".join(f"{number:,} {name}"
                       for name, number in collections.Counter(names).most_common())
  low = min(float(view.us.min()) for view in points)
  high = max(float(view.us.max()) for view in points)
  left_out = [f"{number:,} ({reason})" for reason, number in sorted(census.left_out.items())]
  if any(line["task"] for line in tables.get("left_out") or ()):
    left_out.append("points of some tasks, in the last table")
  joined = f" and {census.joined:,} fine-tuned from them" if census.joined else ""
  facts = {
      "runs": f"{census.finished:,} found{joined}, {len(names):,} with both accuracies "
              f"({families})",
      "left out": ", ".join(left_out) or "none",
      "upstream": ", ".join(sorted({str(cell.upstream) for cell in points.cells}))
                  + f"; accuracy {100 * low:.1f} % to {100 * high:.1f} %",
      "points": f"{len(points):,}, "
                + ("each a run's last evaluation" if all(view.last.all() for view in points)
                   else "every evaluation of the runs (--steps all), so not independent"),
      "read from": ", ".join(census.patterns),
  } | ({"warnings": "; ".join(census.warnings)} if census.warnings else {}) | _stated(points)
  return _listed(facts), _listed(sources)


def _stated(points):
  """The fact that says whose accuracy upstream was stated, where there are such runs."""
  stated = [f"{name or run} ({source})" for name, run, source in zip(
      *(points.of_runs(column) for column in ("run_name", "run_id", "us_stated"))) if source]
  more = len(stated) - _MOST_STATED
  return {"upstream accuracy stated, not measured here": "; ".join(stated[:_MOST_STATED]) + (
      f" and {more} more, in points.parquet" if more > 0 else "")} if stated else {}


def _listed(facts):
  return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
                          for name, value in facts.items()) + "</dl>"


def _lines(tables, name):
  """The lines of a table that the page holds; of long ones the file has all."""
  if name == "left_out":
    return list(tables.get(name) or ())[:_MOST_LEFT_OUT]
  if name == "best_layers":
    return layers.best_runs(tables)
  if name == "geometry":
    return geometry.best_runs(tables.get(name))
  if name.endswith("_effects"):
    return [line | {"quantity": _OF_ACCURACY.get(line["quantity"], line["quantity"])}
            for line in tables.get("head_effects", ())
            if (line["quantity"] in _OF_ACCURACY) == (name == "accuracy_effects")]
  if name.startswith("settings"):
    return [_compared(line) for line in tables.get(name) or ()]
  return list(tables.get(name) or ())


def _compared(line):
  """A line of `by_setting` that says in words what is compared, whatever the page's choice."""
  than = {"setting": line.get("than_setting"), "shots": line["than_shots"]}
  return line | {"by": style.shots_name(table.measure({"shots": None} | line)), "setting": None,
                 "than": None if table.measure(than) is None else
                         style.shots_name(table.measure(than))}


def _tables(tables):
  """The tables that have lines, their shown columns: {name: {"heads", "columns", "any"}}.

  `any` are the columns in which a line without a value goes with whatever is chosen.
  """
  found = {}
  for name, heads in _TABLES.items():
    lines = _lines(tables, name)
    known = [column for column in heads
             if any(line.get(column) is not None for line in lines)]
    if known:
      rows = []
      for line in lines:
        row = {column: line.get(column) for column in known}
        if "shots" in row:
          row["shots"] = table.measure(line)
        if "task" in row and "variant" in line and row["task"]:
          row["task"] = style.cell_name([None, line["task"], line["variant"], line["setting"]])
        rows.append(row)
      found[name] = {"heads": [heads[column] for column in known],
                     "columns": payload.by_column(rows),
                     "any": ["shots"] if name.endswith("_effects") else []}
  return found


def _available(part, data):
  if part.kind == "figure":
    return part.name in data["figures"]
  if part.kind == "table":
    return part.name in data["tables"]
  return (bool(data["factors"]) if part.name == "controlled"
          else any(part.name in cell for cell in data["cells"]))


def _sections(data):
  """The sections that have something to show, as HTML; the page's script fills them."""
  made = []
  for section in sections.SECTIONS:
    parts = [part for part in section.parts if _available(part, data)]
    if not parts:
      continue
    made.append(f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>')
    for part in parts:
      finding = (f'<p class="finding" data-finding="{part.finding}"></p>' if part.finding else "")
      made.append(
          f'<div class="part"><p class="what">{html.escape(part.caption)}</p>{finding}'
          f'<div class="{part.kind}" data-{part.kind}="{part.name}"></div></div>')
    made.append("</section>")
  return "\n".join(made)


def _findings(points, tables):
  """({"upstream|shots": {finding: text}}, a text a cell)."""
  said, makers = {}, findings.FINDINGS | claims.FINDINGS
  for cell in points.cells:
    shots = table.measure(cell)
    key = f"{cell.upstream or 'upstream'}|{'' if shots is None else shots}"
    if key not in said:
      said[key] = {name: text for name, make in makers.items()
                   if (text := make(tables, cell.upstream, shots))}
  by_cell = scatter.fits_by_cell(tables)
  return said, [findings.cell(by_cell.get(tuple(cell), [])) for cell in points.cells]


def _intervals(tables):
  """How intervals were made, in words, with this study's numbers."""
  fit = next((fit for fit in tables.get("fits", ()) if fit["status"] == "ok"), None)
  if fit is None:
    return "No interval was made."
  return (f"Intervals of the plain fits are nominally {100 * fit['level']:g} %, from "
          f"{fit['resamples']} subsamples of the runs each; of a saturation value that is “not "
          "identified” the reason is in the table.")


def write(path, points, tables, census, *, shots, sources, reference=None,
          title="What pre-training buys downstream"):
  """Writes the report.

  Args:
    path: the HTML file.
    points: a `table.Points`.
    tables: name -> list of dicts (`controlled`: or an Arrow table); what is absent has no section.
    census: the `gather.Census` of what was read.
    shots: the number of shots shown first.
    sources: what a number comes from -> the file, shown as given.
    reference: "paper" draws the published laws of tasks of the same name; None: none.
    title: of the page.

  Returns:
    The path.
  """
  data = payload.page_data(points, tables, reference) | {"tables": _tables(tables)}
  said, of_cells = _findings(points, tables)
  for cell, text in zip(data["cells"], of_cells):
    cell["finding"] = text
  data |= {"findings": said, "first_shots": shots}
  facts, files = _facts(points, census, sources, tables)
  page = string.Template(_asset("report.html")).substitute(
      title=html.escape(title), style=_asset("report.css"), facts=facts, files=files,
      intervals=html.escape(_intervals(tables)), sections=_sections(data),
      fitted=html.escape(_fitted(tables)), flat=f"{100 * saturation.FLAT:.0f}",
      data=_embedded(data),
      library=vl_convert.javascript_bundle().replace("</script", "<\\/script"),
      script="\n".join(_asset(f"{name}.js") for name in ("columns", "plots", "tables", "report")))
  path = pathlib.Path(path)
  path.write_text(page, encoding="utf-8")
  return path


def _fitted(tables):
  """What each plain fit was fitted to, in the words of the table of fits."""
  words = {fit["fit"]: fit["data"] for fit in reversed(tables.get("fits", ())) if fit.get("data")}
  return "; ".join(words[kind] for kind in ("hull", "all") if kind in words) or "nothing"
