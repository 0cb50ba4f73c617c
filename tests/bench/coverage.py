"""How often do the study's intervals hold a saturation value that is known?

    .venv/bin/python tests/bench/coverage.py [--runs 24 50 200] [--sets 40] [--resamples 100]

About 40 CPU seconds; prints the table in the docstring of `big_transfer.study.saturation`. Not a
test: coverage is a property to know, with an error of its own, and tests/study holds a short form.

Planted are five frontiers e_DS = k e_US^alpha + e_IR, `LAWS`, from nearly straight to one that
saturates at once, and for each the runs of four designs, `DESIGNS`: the runs fall short of the
frontier one-sidedly (what the hull is for) or scatter about it (what a fit to all points is for).
A data set is drawn for each frontier, design and number of runs, `--sets` times over. Printed for
each design and number of runs: the share of data sets whose nominal 90 % interval holds the
planted 1 - e_IR, over all frontiers and for the worst one; the interval's median width; the
median error of the estimate. The plain percentile bootstrap of the hull stands beside it.

Shape legend: N runs, R resamples.
"""
import argparse
import math
import time

import numpy as np

from big_transfer.study import saturation

LEVEL = 0.9
# k, alpha, e_IR: sprites-like, ImageNet-, CIFAR-100- and Pets-like, and one that hardly moves.
LAWS = ((0.60, 1.6, 0.30), (0.80, 3.2, 0.12), (0.57, 3.8, 0.10), (0.87, 9.7, 0.04),
        (0.03, 9.0, 0.11))


def frontier(law, us_N):
  """Downstream accuracy of the planted law at upstream accuracies (N,)."""
  k, alpha, e_ir = law
  return 1.0 - k * (1.0 - us_N) ** alpha - e_ir


def exponential(rng, law, n):
  """Exponential shortfalls of mean 0.06 below the frontier; upstream uniform, 0.1 to 0.9."""
  us_N = rng.uniform(0.1, 0.9, n)
  return us_N, frontier(law, us_N) - rng.exponential(0.06, n)


def half_normal(rng, law, n):
  """Half-normal shortfalls (0.06) and noise (0.01) on both accuracies; upstream 0.1 to 0.75."""
  us_N = rng.uniform(0.1, 0.75, n)
  ds_N = frontier(law, us_N) - np.abs(rng.normal(0.0, 0.06, n))
  return us_N + rng.normal(0.0, 0.01, n), ds_N + rng.normal(0.0, 0.01, n)


def lumped(rng, law, n):
  """Exponential shortfalls; upstream 0.04 to 1, few runs in between, as a small sweep has it."""
  us_N = 0.04 + 0.96 * rng.beta(0.5, 0.5, n)
  return us_N, frontier(law, us_N) - rng.exponential(0.06, n)


def scatter(rng, law, n):
  """Normal scatter of 0.03 about the curve, as a fit to all points assumes; 0.1 to 0.9."""
  us_N = rng.uniform(0.1, 0.9, n)
  return us_N, frontier(law, us_N) + rng.normal(0.0, 0.03, n)


DESIGNS = (("hull", exponential), ("hull", half_normal), ("hull", lumped), ("all", scatter))


def subsampled(kind, us_N, ds_N, resamples):
  """(low, value, high) as the study states it."""
  found = saturation.interval(kind, us_N, ds_N, level=LEVEL, resamples=resamples)
  return found.low, found.value, found.high


def bootstrapped(kind, us_N, ds_N, resamples):
  """(low, value, high) by the plain percentile bootstrap: runs drawn with replacement.

  A run drawn twice is one point of a hull, so a mask of the runs drawn says it all.
  """
  rng = np.random.default_rng(0)
  drawn_RN = rng.integers(us_N.size, size=(resamples, us_N.size))
  mask_RN = np.zeros((resamples, us_N.size), bool)
  np.put_along_axis(mask_RN, drawn_RN, True, 1)
  values_R = 1.0 - saturation.fit_points(kind, us_N, ds_N, mask_RN, steps=8).params[:, 2]
  low, high = np.quantile(values_R, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
  return low, 1.0 - saturation.fit_points(kind, us_N, ds_N).params[0, 2], high


def measure(method, kind, draw, n, *, sets, resamples, seed):
  """Coverage, coverage of the worst law, median width and median error of one line."""
  covered, widths, errors = [], [], []
  for index, law in enumerate(LAWS):
    rng = np.random.default_rng((seed, n, index))
    truth, hits = 1.0 - law[2], []
    for _ in range(sets):
      us_N, ds_N = (np.clip(values, 0.0, 1.0) for values in draw(rng, law, n))
      low, value, high = method(kind, us_N, ds_N, resamples)
      hits.append(low <= truth <= high)
      widths.append(high - low)
      errors.append(value - truth)
    covered.append(np.mean(hits))
  return np.mean(covered), min(covered), np.median(widths), np.median(errors)


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=int, nargs="+", default=[24, 50, 200],
                      help="runs of a data set (default: 24 50 200)")
  parser.add_argument("--sets", type=int, default=40, help="data sets a frontier (default: 40)")
  parser.add_argument("--resamples", type=int, default=100, help="of a set (default: 100)")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  if flags.sets < 1 or flags.resamples < 20 or min(flags.runs) < saturation.MIN_RUNS:
    parser.error("expected --sets of at least 1, --resamples of at least 20 and --runs of at least "
                 f"{saturation.MIN_RUNS}, got {flags.sets}, {flags.resamples} and {flags.runs}")
  start = time.process_time()
  errors = [100.0 * math.sqrt(LEVEL * (1.0 - LEVEL) / n) for n in (flags.sets * len(LAWS),
                                                                  flags.sets)]
  print(f"nominal {100 * LEVEL:.0f} %: covered (worst law) | median width | median error\n"
        f"{len(LAWS)} laws x {flags.sets} sets a number; one standard error at the nominal "
        f"coverage is {errors[0]:.1f} points (worst law: {errors[1]:.1f})")
  print(f"{'runs':28s}" + "".join(f"{n:>27d}" for n in flags.runs))
  lines = [(kind, draw, subsampled, "") for kind, draw in DESIGNS]
  lines += [("hull", draw, bootstrapped, ", bootstrap") for draw in (exponential, half_normal)]
  for kind, draw, method, words in lines:
    cells = []
    for n in flags.runs:
      covered, worst, width, error = measure(method, kind, draw, n, sets=flags.sets,
                                             resamples=flags.resamples, seed=flags.seed)
      cells.append(f"{100 * covered:4.0f} % ({100 * worst:3.0f} %) {width:5.3f} {error:+6.3f}")
    name = f"{kind}, {draw.__name__}{words}".replace("_", "-")
    print(f"{name:28s}" + "".join(f"{cell:>27s}" for cell in cells), flush=True)
  print(f"CPU seconds: {time.process_time() - start:.0f}")


if __name__ == "__main__":
  main()
