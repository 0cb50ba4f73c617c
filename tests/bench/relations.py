"""How well is downstream error predicted from upstream error, further on in pre-training?

    .venv/bin/python tests/bench/relations.py FILE.csv [--upstream inet_10]

FILE.csv has the columns of the public benchmark of learning curves (Domain, Task, Model, Seen
Examples, Loss, Training; see `big_transfer.study.benchmark`). One task stands for upstream; each
other task and model is a relation: fitted on its rows with Training = 1, scored on the others by
sqrt(mean((log e_DS - log predicted)^2)). The upstream error at an example count is that of the
upstream curve, interpolated in log-log; rows beyond its end are left out, and so are other shots
of the upstream dataset. Printed: means over relations, by dataset, and what the robust fit's 90 %
intervals held.
"""
import argparse
import time

import duckdb
import numpy as np

from big_transfer.study import methods, robust


def relations(path, upstream):
  """Yields (task, train us, train ds, test us, test ds), accuracies."""
  rows = duckdb.sql(
      'SELECT Task, Model, "Seen Examples" AS x, Loss AS y, Training FROM read_csv(?) ORDER BY x',
      params=[path]).fetchnumpy()
  dataset = upstream.split("_")[0]
  for model in sorted(set(rows["Model"])):
    of_model = rows["Model"] == model
    mine = of_model & (rows["Task"] == upstream)
    log_x, log_y = np.log(rows["x"][mine]), np.log(rows["y"][mine])
    for task in sorted(set(rows["Task"][of_model])):
      part = of_model & (rows["Task"] == task) & (rows["x"] <= rows["x"][mine].max())
      if task.split("_")[0] == dataset:
        continue
      us = 1.0 - np.exp(np.interp(np.log(rows["x"][part]), log_x, log_y))
      ds, train = 1.0 - rows["y"][part], rows["Training"][part] == 1
      if train.any() and not train.all():
        yield task, us[train], ds[train], us[~train], ds[~train]


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("file", metavar="FILE.csv")
  parser.add_argument("--upstream", default="inet_10", help="the task that stands for upstream")
  flags = parser.parse_args()
  found, held = {}, []
  for task, us_N, ds_N, us_Q, ds_Q in relations(flags.file, flags.upstream):
    fitted = {name: method(us_N, ds_N) for name, method in methods.METHODS.items()}
    start = time.process_time()
    relation = robust.fit(us_N, ds_N)
    seconds = time.process_time() - start
    low_Q, high_Q = relation.interval(us_Q)
    held.append((np.mean((ds_Q >= low_Q) & (ds_Q <= high_Q)), seconds))
    for name, predict in (fitted | {"robust": relation.predict}).items():
      predicted_Q = np.maximum(1.0 - predict(us_Q), 1e-9)
      score = np.sqrt(np.mean((np.log(predicted_Q) - np.log(1.0 - ds_Q)) ** 2))
      found.setdefault(name, {}).setdefault(task.split("_")[0], []).append(score)
  for name, by_dataset in found.items():
    every = np.concatenate(list(by_dataset.values()))
    parts = "  ".join(f"{dataset} {np.mean(scores):.4f}" for dataset, scores in by_dataset.items())
    print(f"{name:16s} {every.mean():.4f} over {every.size} relations  ({parts})")
  coverage, seconds = np.mean(held, axis=0)
  print(f"robust: 90 % intervals held {coverage:.3f}; {seconds:.3f} CPU s a fit")


if __name__ == "__main__":
  main()
