"""Points with planted truths and the tables of a study of them, for figures and the report."""
import json

import numpy as np
import planted_points

from big_transfer.study import controlled, gather, protocols, ranks, saturation, shots

FRACTIONS, SIZES = (0.1, 0.3, 1.0), (1e5, 3e5, 1e6)


def make_points(runs=54, tasks=("pets", "digits"), shot_counts=(1, 10), seed=0):
  """Points of two upstreams; data and model size are crossed, the rest is luck."""
  rng = np.random.default_rng(seed)
  us_U = rng.uniform(0.1, 0.95, runs)
  number_U = np.arange(runs)
  fraction_U = np.array(FRACTIONS)[number_U % 3]
  size_U = np.array(SIZES)[number_U // 3 % 3]
  ds = {(task, count): planted_points.law(us_U, alpha=2.0 + t, e_ir=0.1 + 0.2 / count)
        - rng.exponential(0.04, runs) for t, task in enumerate(tasks) for count in shot_counts}
  changed = [json.dumps({"seed": int(u // 9), "upstream": {"fraction": float(f)}})
             for u, f in zip(number_U, fraction_U)]
  return planted_points.make(
      us_U, ds, upstream=np.array(["fractals", "textures"])[number_U // 9 % 2],
      us_error=0.005, family=np.array(["vit", "mixer", "resnet"])[number_U // 18 % 3].tolist(),
      parameters=size_U.astype(int).tolist(), upstream_fraction=fraction_U.tolist(),
      model=[f"model {size:g}" for size in size_U], run_name=[f"run {u}" for u in number_U],
      overrides=changed, epochs=[7.0] * runs)


def make_tables(points):
  """Tables of the analyses that take little time; those that don't are planted."""
  fits = saturation.fits(points, resamples=20)
  sizes = [view.cell._asdict() | {
      "fit": kind, "size": size, "all": size == 20, "repeats": 3, "status": "ok", "reason": None,
      **{f"{name}{end}": 1e-3 / size * by for name in ("fit_error", "prediction_error")
         for end, by in (("", 1.0), ("_low", 0.5), ("_high", 2.0))}}
           for view in points for kind in ("hull", "all") for size in (10, 20)]
  families = [view.cell._asdict() | {"family": name, "runs": 9, "share_of_runs": 1 / 3,
                                     "vertices": 2, "share_of_hull": share}
              for view in points for name, share in (("vit", 0.7), ("mixer", 0.2), ("resnet", 0.1))]
  robust = [view.cell._asdict() | {"us": us, "ds": 0.5 + 0.2 * us, "low": 0.4, "high": 0.8}
            for view in points for us in (0.2, 0.6, 0.9)]
  return {"fits": fits, "sample_size": sizes, "hull_families": families, "robust_curves": robust,
          "prediction": protocols.prediction(points), "shots": shots.trends(fits),
          "controlled": controlled.series(points, fits), "spearman": ranks.spearman(points),
          "controlled_tests": controlled.tests(points), "overlay": ranks.overlay(points),
          "peers": ranks.peers(points, bins=2),
          "left_out": [{"source": "x.csv", "task": "odd", "points": 3, "reason": "too <odd>"}]}


CENSUS = gather.Census(("runs/*",), 54, {"running": 2}, 1, ())
