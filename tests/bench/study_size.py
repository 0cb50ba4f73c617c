"""How long do the fits of a whole study take, and how much memory?

    python tests/bench/study_size.py [--runs 5000] [--tasks 25] [--shots 5] [--jobs 2]

Plants runs that fall short of a frontier for each task and number of shots, with their standard
errors, puts them into a `table.Points`, and times `saturation.fits` on it: Eq. 1 and its baselines
on the hull and on all points, 200 resamples for each interval. The default is 625,000 points in 125
cells: 15 CPU seconds and 0.5 GB in each of two processes, on 2026-11-22. Printed are wall time, CPU
time and the peak of memory, of this process and of the largest of its own, whose peaks may not
coincide.
"""
import argparse
import resource
import time

import numpy as np
import pyarrow as pa

from big_transfer.study import saturation, table


def planted_points(runs, tasks, shots, *, noise=0.005, seed=0):
  """`table.Points` of so many runs, tasks and numbers of shots."""
  rng = np.random.default_rng(seed)
  names = pa.array([f"{i:06d}" for i in range(runs)])
  us_U = rng.uniform(0.05, 0.9, runs)
  parts = []
  for task in range(tasks):
    alpha = rng.uniform(1.0, 12.0)
    for count in range(shots):
      k, e_ir = rng.uniform(0.3, 0.8), 0.3 / (1 + count) + rng.uniform(0.02, 0.1)
      ds_U = 1.0 - k * (1.0 - us_U) ** alpha - e_ir * (1.0 - k) - rng.exponential(0.05, runs)
      parts.append(pa.table({
          "run_id": names, "task": pa.array([f"task {task:02d}"] * runs),
          "setting": pa.array(["fewshot"] * runs), "shots": pa.array([5 ** count] * runs),
          "us": np.clip(us_U + rng.normal(0.0, noise, runs), 0.0, 1.0),
          "ds": np.clip(ds_U + rng.normal(0.0, noise, runs), 0.0, 1.0),
          "us_error": np.full(runs, noise), "ds_error": np.full(runs, noise),
          "last": np.ones(runs, bool)}))
  about = pa.table({"run_id": names, "upstream": pa.array(["planted"] * runs),
                    "family": pa.array([("vit", "mixer", "resnet")[i % 3] for i in range(runs)])})
  return table.assemble(about, pa.concat_tables(parts))


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=int, default=5000)
  parser.add_argument("--tasks", type=int, default=25)
  parser.add_argument("--shots", type=int, default=5)
  parser.add_argument("--resamples", type=int, default=200)
  parser.add_argument("--jobs", type=int, default=2)
  flags = parser.parse_args()
  points = planted_points(flags.runs, flags.tasks, flags.shots)
  print(f"{len(points):,} points in {len(points.cells)} cells", flush=True)

  def cpu():
    return sum(used.ru_utime + used.ru_stime for used in map(
        resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
  wall, before = time.monotonic(), cpu()
  lines = saturation.fits(points, resamples=flags.resamples, jobs=flags.jobs)
  peaks = [resource.getrusage(who).ru_maxrss / 1e6
           for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  print(f"{len(lines)} fits with {flags.resamples} resamples, {flags.jobs} processes: "
        f"{time.monotonic() - wall:.1f} s, {cpu() - before:.1f} CPU s; peak memory "
        f"{peaks[0]:.2f} GB here, {peaks[1]:.2f} GB in the largest process of its own")


if __name__ == "__main__":
  main()
