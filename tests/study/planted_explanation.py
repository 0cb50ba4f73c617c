"""The tables of layers and of the head's settings as a study makes them, planted without a study.

For points of `planted_tables.make_points`: on "pets" the last layer is best, on "digits" a block in
the middle; a higher head decay costs upstream accuracy and "pets", and helps "digits".
"""
import math

import pyarrow as pa

BLOCKS = {"vit": 3, "mixer": 2, "resnet": 4}
SETTINGS = {"head_decay": (0.01, 0.1, 1.0, 10.0), "head_rate": (0.1, 0.3, 1.0, 3.0)}
SERIES = {"ViT 64x4": "vit", "Mixer 64x3": "mixer"}
SLOPES = {"us": -0.02, "pets": -0.01, "digits": 0.015}  # of accuracy, a decade of decay
LEVEL = 0.95


def names_of(family):
  """The layers of a network, by depth."""
  return ["stem", *(f"block_{i:02d}" for i in range(BLOCKS[family])), "pre_logits"]


def _layers(points):
  lines, best = [], []
  of = {name: points.of_runs(name) for name in ("run_id", "family", "model", "run_name")}
  for view in points:
    for run, us, ds in zip(view.run.tolist(), view.us.tolist(), view.ds.tolist()):
      identity = view.cell._asdict() | {name: of[name][run] for name in of} | {"us": us}
      names = names_of(identity["family"])
      shares = [depth / (len(names) - 1) for depth in range(len(names))]
      peak = 1.0 if view.cell.task == "pets" else 0.5
      accuracies = [ds + 0.2 * (1.0 - peak) ** 2 - 0.2 * (share - peak) ** 2 for share in shares]
      lines += [identity | {"layer": name, "depth": depth, "depth_share": share, "ds": accuracy,
                            "ds_error": 0.004, "ds_seeds": 3}
                for depth, (name, share, accuracy) in enumerate(zip(names, shares, accuracies))]
      at = max(range(len(names)), key=accuracies.__getitem__)
      best.append(identity | {
          "layers": len(names), "best_layer": names[at], "best_ds": accuracies[at],
          "earliest_layer": names[at], "earliest_depth_share": shares[at],
          "last_ds": accuracies[-1], "gain": accuracies[at] - accuracies[-1],
          "gain_error": 0.004, "status": "ok", "reason": None})
  return pa.Table.from_pylist(lines), best


def _explained(points, best, spearman):
  found = []
  for cell in points.cells:
    mine = [line for line in best
            if all(line[name] == getattr(cell, name) for name in cell._fields)]
    top = max(mine, key=lambda line: line["us"])
    rank = next(line for line in spearman if line["row"] == cell.task and line["column"] ==
                "upstream" and (line["upstream"], line["shots"]) == (cell.upstream, cell.shots))
    found.append(cell._asdict() | {
        "runs": len(mine), "saturation": 0.8, "saturation_low": 0.75, "saturation_high": 0.85,
        "saturation_status": "ok", "correlation": rank["correlation"],
        "correlation_low": rank["low"], "correlation_high": rank["high"],
        "correlation_within": -0.25, "run_id": top["run_id"], "run_name": top["run_name"],
        "model": top["model"], "best_layer": top["best_layer"],
        "best_layer_ds": top["best_ds"], "earliest_layer": top["earliest_layer"],
        "earliest_depth_share": top["earliest_depth_share"], "last_layer_gain": top["gain"],
        "runs_with_layers": len(mine),
        "mean_earliest_depth_share": sum(line["earliest_depth_share"] for line in mine) / len(mine),
        "best_head_decay": 10.0 if cell.task == "digits" else 0.01, "best_head_rate": 0.1,
        "upstream_best_head_decay": 0.01, "upstream_best_head_rate": 3.0})
  return found


def _quantities(cells, family):
  """(keys of a line, value at the neutral setting, slope a decade of decay) of each quantity."""
  none = dict.fromkeys(("task", "variant", "setting", "shots", "layer", "quantile", "group"))
  yield none | {"quantity": "us"}, 0.7, SLOPES["us"]
  for cell in cells:
    yield none | cell._asdict() | {"quantity": "ds"}, 0.5 + 0.01 * cell.shots, SLOPES[cell.task]
  for depth, layer in enumerate(names_of(family)):
    slope = -0.05 if layer == "pre_logits" else 0.03
    for quantity in ("margin", "margin_normalised"):
      yield none | {"quantity": quantity, "layer": layer, "quantile": 0.5}, 0.3 + depth / 10, slope
    yield none | {"quantity": "total_variance", "layer": layer}, 30.0 + depth, 0.0
  for layer in [*names_of(family), "head", "body"]:
    yield (none | {"quantity": "l2_norm", "layer": layer, "group": "all"},
           20.0 if layer == "body" else 5.0, -0.3 if layer == "head" else 0.1)


def _head(points, upstream, seeds):
  cells = [cell for cell in points.cells if cell.upstream == upstream]
  curves, effects = [], []
  for factor, settings in SETTINGS.items():
    for series in (*SERIES, "(all)"):
      family = SERIES.get(series, "vit")
      for keys, base, slope in _quantities(cells, family):
        line = {"upstream": upstream, "factor": factor, "series": series, "model": series,
                "family": SERIES.get(series),
                "pooled": len(SERIES) if series == "(all)" else 1} | keys | {"upstream": upstream}
        slope *= 1.0 if factor == "head_decay" else -1.0
        values = [base * 10 ** (slope * math.log10(value)) if keys["quantity"] == "l2_norm"
                  else base + slope * math.log10(value) for value in settings]
        if series != "(all)":
          curves += [line | {"value": value, "mean": mean, "seeds": seeds,
                             "error": 0.004 * base if seeds > 1 else None}
                     for value, mean in zip(settings, values)]
        known = seeds > 1
        effects.append(line | {
            "settings": len(settings), "lowest": settings[0], "highest": settings[-1],
            "seeds": seeds, "slope": slope, "slope_low": slope - 0.004 if known else None,
            "slope_high": slope + 0.004 if known else None, "change": values[-1] - values[0],
            "change_low": values[-1] - values[0] - 0.01 if known else None,
            "change_high": values[-1] - values[0] + 0.01 if known else None, "level": LEVEL,
            "verdict": ("undecided" if not known or abs(slope) <= 0.004
                        else "rises" if slope > 0 else "falls"), "turn": None,
            "status": "ok" if known else "one seed",
            "reason": None if known else "one run seed a setting"})
  return curves, effects


def _best(points, upstream, spearman, seeds):
  lines = []
  for factor, settings in SETTINGS.items():
    upwards = 1.0 if factor == "head_decay" else -1.0
    for series in (*SERIES, "(all)"):
      for cell in (None, *(cell for cell in points.cells if cell.upstream == upstream)):
        high = (SLOPES[cell.task if cell else "us"] * upwards) > 0
        keys = (cell._asdict() if cell else
                dict.fromkeys(("task", "variant", "setting", "shots")) | {"upstream": upstream})
        rank = None if cell is None else next(
            line["correlation"] for line in spearman if line["row"] == cell.task
            and line["column"] == "upstream"
            and (line["upstream"], line["shots"]) == (upstream, cell.shots))
        ends = settings[-2:] if high else settings[:2]
        lines.append({"upstream": upstream, "factor": factor, "series": series} | keys | {
            "neutral": 1.0, "best": settings[-1 if high else 0],
            "best_low": ends[0] if seeds > 1 else None,
            "best_high": ends[1] if seeds > 1 else None, "mean": 0.6, "gain": 0.02,
            "gain_low": 0.01 if seeds > 1 else None, "gain_high": 0.03 if seeds > 1 else None,
            "correlation": rank, "level": LEVEL, "status": "ok" if seeds > 1 else "one seed",
            "reason": None if seeds > 1 else "one run seed a setting"})
  return lines


def make(points, spearman, *, seeds=3):
  """The tables of the explanation of planted points, with head ablations after each upstream.

  Args:
    points: `planted_tables.make_points()`.
    spearman: the table of that name.
    seeds: run seeds a setting; of one there are no intervals.
  """
  layers, best = _layers(points)
  made = {"layers": layers, "best_layers": best, "explained": _explained(points, best, spearman),
          "head_curves": [], "head_effects": [], "head_best": []}
  for upstream in dict.fromkeys(cell.upstream for cell in points.cells):
    curves, effects = _head(points, upstream, seeds)
    made["head_curves"] += curves
    made["head_effects"] += effects
    made["head_best"] += _best(points, upstream, spearman, seeds)
  return made
