"""How often do the study's intervals hold parameters that are known?

    python tests/bench/coverage.py [--runs 20 200 1000] [--sets 40] [--resamples 200] [--jobs 1]

About 2 CPU minutes; with `--seed 1` it prints the table in the docstring of
`big_transfer.study.intervals`, whose constants were chosen on other draws. Not a test: coverage is
a property to know, with an error of its own, and tests/study holds a short form.

Planted are five frontiers e_DS = k e_US^alpha + e_IR, `LAWS`, from nearly straight to one that
saturates at once, and for each the runs of five designs, `DESIGNS`: the runs fall short of the
frontier one-sidedly (what the hull is for) or scatter about it (what a fit to all points is for);
each without noise, and with normal noise of standard deviation 0.01 on both accuracies, whose size
the study is told, or isn't. A data set is drawn for each frontier, design and number of runs,
`--sets` times over. Printed for each design and number of runs: the percentage of data sets whose
nominal 90 % intervals hold the planted k / alpha / e_IR, over all frontiers; in brackets that of
the worst parameter of the worst frontier; and the median width of the interval of e_IR, which is
that of the saturation value. The plain percentile bootstrap of the hull stands beside it.

Shape legend: N runs, R resamples.
"""
import argparse
import concurrent.futures
import math
import time

import numpy as np

from big_transfer.study import saturation, targets

LEVEL = 0.9
NOISE = 0.01
# k, alpha, e_IR: sprites-like, ImageNet-, CIFAR-100- and Pets-like, and one that hardly moves.
LAWS = ((0.60, 1.6, 0.30), (0.80, 3.2, 0.12), (0.57, 3.8, 0.10), (0.87, 9.7, 0.04),
        (0.03, 9.0, 0.11))
NAMES = ("k", "alpha", "e_IR")


def frontier(law, us_N):
  """Downstream accuracy of the planted law at upstream accuracies (N,)."""
  k, alpha, e_ir = law
  return 1.0 - k * (1.0 - us_N) ** alpha - e_ir


def exponential(rng, law, n):
  """Exponential shortfalls of mean 0.06 below the frontier; upstream uniform, 0.1 to 0.9."""
  us_N = rng.uniform(0.1, 0.9, n)
  return us_N, frontier(law, us_N) - rng.exponential(0.06, n)


def half_normal(rng, law, n):
  """Half-normal shortfalls (0.06); upstream uniform, 0.1 to 0.75."""
  us_N = rng.uniform(0.1, 0.75, n)
  return us_N, frontier(law, us_N) - np.abs(rng.normal(0.0, 0.06, n))


def lumped(rng, law, n):
  """Exponential shortfalls; upstream 0.04 to 1, few runs in between, as a small sweep has it."""
  us_N = 0.04 + 0.96 * rng.beta(0.5, 0.5, n)
  return us_N, frontier(law, us_N) - rng.exponential(0.06, n)


def few_near(rng, law, n):
  """Gamma shortfalls (shape 2, mean 0.06): ever fewer runs near the frontier; 0.1 to 0.9."""
  us_N = rng.uniform(0.1, 0.9, n)
  return us_N, frontier(law, us_N) - rng.gamma(2.0, 0.03, n)


def scatter(rng, law, n):
  """Normal scatter about the curve, of 0.06 sqrt(a (1 - a)) at accuracy a; upstream 0.1 to 0.9."""
  us_N = rng.uniform(0.1, 0.9, n)
  curve_N = frontier(law, us_N)
  return us_N, curve_N + 0.06 * np.sqrt(curve_N * (1.0 - curve_N)) * rng.normal(size=n)


DESIGNS = (("hull", exponential), ("hull", half_normal), ("hull", lumped), ("hull", few_near),
           ("all", scatter))


def drawn(design, law, n, noise, seed):
  """(us_N, ds_N) of one data set."""
  rng = np.random.default_rng(seed)
  us_N, ds_N = design(rng, law, n)
  return (np.clip(us_N + noise * rng.normal(size=n), 0.0, 1.0),
          np.clip(ds_N + noise * rng.normal(size=n), 0.0, 1.0))


def subsampled(kind, us_N, ds_N, noise, resamples):
  """name -> (low, high) as the study states it; told the noise."""
  errors_N = np.full(us_N.size, noise if noise else np.nan)
  return saturation.interval(kind, us_N, ds_N, us_error_N=errors_N, ds_error_N=errors_N,
                             level=LEVEL, resamples=resamples).ends


def untold(kind, us_N, ds_N, noise, resamples):
  """The same, where the noise isn't known to the study."""
  del noise
  return saturation.interval(kind, us_N, ds_N, level=LEVEL, resamples=resamples).ends


def bootstrapped(kind, us_N, ds_N, noise, resamples):
  """The same by the plain percentile bootstrap: runs drawn with replacement.

  A run drawn twice is one point of a hull, so a mask of the runs drawn says it all.
  """
  del noise
  drawn_RN = np.random.default_rng(0).integers(us_N.size, size=(resamples, us_N.size))
  mask_RN = np.zeros((resamples, us_N.size), bool)
  np.put_along_axis(mask_RN, drawn_RN, True, 1)
  params_R3 = targets.fit_points(kind, us_N, ds_N, mask_RN, steps=10, grid=41).params
  low_3, high_3 = np.quantile(params_R3, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0], axis=0)
  return dict(zip(NAMES, zip(low_3, high_3)))


def measure(method, kind, design, n, noise, *, sets, resamples, seed):
  """Coverage (3,) of k, alpha and e_IR, the worst of a law's, and the median width for e_IR."""
  covered, widths = [], []
  for index, law in enumerate(LAWS):
    hits = []
    for number in range(sets):
      us_N, ds_N = drawn(design, law, n, noise, (seed, n, index, number))
      ends = method(kind, us_N, ds_N, noise, resamples)
      hits.append([ends[name][0] <= truth <= ends[name][1] for name, truth in zip(NAMES, law)])
      widths.append(ends["e_IR"][1] - ends["e_IR"][0])
    covered.append(np.mean(hits, 0))
  return np.mean(covered, 0), np.min(covered), float(np.median(widths))


def _lines():
  lines = [(f"{kind}, {design.__name__}" + (", noise" if noise else ""), subsampled, kind, design,
            noise) for kind, design in DESIGNS for noise in (0.0, NOISE)]
  lines.append(("half-normal, noise not told", untold, "hull", half_normal, NOISE))
  return lines + [("bootstrap, exponential", bootstrapped, "hull", exponential, 0.0)]


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=int, nargs="+", default=[20, 200, 1000],
                      help="runs of a data set (default: 20 200 1000)")
  parser.add_argument("--sets", type=int, default=40, help="data sets a frontier (default: 40)")
  parser.add_argument("--resamples", type=int, default=200, help="of a set (default: 200)")
  parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  if (min(flags.sets, flags.jobs) < 1 or flags.resamples < 20
      or min(flags.runs) < saturation.MIN_RUNS):
    parser.error("expected --sets and --jobs of at least 1, --resamples of at least 20 and --runs "
                 f"of at least {saturation.MIN_RUNS}, got {flags.sets}, {flags.jobs}, "
                 f"{flags.resamples} and {flags.runs}")
  start = time.monotonic()
  errors = [100.0 * math.sqrt(LEVEL * (1.0 - LEVEL) / n) for n in (flags.sets * len(LAWS),
                                                                  flags.sets)]
  print(f"nominal {100 * LEVEL:.0f} %; {len(LAWS)} laws x {flags.sets} sets a number: one standard "
        f"error at the nominal\ncoverage is {errors[0]:.1f} points (worst law: {errors[1]:.1f})\n"
        f"{'runs':28s}" + "".join(f"{n:22d}" for n in flags.runs))
  with concurrent.futures.ProcessPoolExecutor(flags.jobs) as pool:
    found = [(name, [pool.submit(measure, method, kind, design, n, noise, sets=flags.sets,
                                 resamples=flags.resamples, seed=flags.seed) for n in flags.runs])
             for name, method, kind, design, noise in _lines()]
    for name, futures in found:
      cells = []
      for covered, worst, width in (future.result() for future in futures):
        shares = "/".join(f"{100 * share:.0f}" for share in covered)
        cells.append(f"{shares} ({100 * worst:.0f}) {width:.3f}".replace(" 0.", " ."))
      print(f"{name.replace('_', '-'):28s}" + "".join(f"{cell:>22s}" for cell in cells), flush=True)
  print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
  main()
