"""Points with planted truths, without files: one accuracy upstream a run, many tasks downstream."""
import numpy as np
import pyarrow as pa

from big_transfer.study import table


def make(us_U, ds, *, shots=10, upstream="fractals", us_error=None, **runs):
  """`table.Points` of U runs.

  Args:
    us_U: upstream accuracies.
    ds: {task: (U,)} or {(task, shots): (U,)} downstream accuracies; NaN leaves a run out.
    shots: shots of the tasks that name none.
    upstream: one name, or one a run.
    us_error: standard error of all upstream accuracies.
    **runs: further columns of `table.RUN_COLUMNS`.

  Returns:
    `table.Points`; run ids are "r00000", "r00001", …
  """
  names = np.array([f"r{i:05d}" for i in range(len(us_U))])
  identity = pa.table({"run_id": names} | {"upstream": np.broadcast_to(upstream, names.shape)}
                      | {name: pa.array(values, table.ARROW[table.RUN_COLUMNS[name][0]])
                         for name, values in runs.items()})
  parts = []
  for key, ds_U in ds.items():
    task, number = key if isinstance(key, tuple) else (key, shots)
    known = np.isfinite(ds_U)
    parts.append(pa.table({
        "run_id": names[known], "us": np.asarray(us_U)[known], "ds": np.asarray(ds_U)[known],
        "task": [task] * known.sum(), "shots": pa.array([number] * known.sum(), pa.int64()),
        "us_error": pa.array([us_error] * known.sum(), pa.float64()),
        "last": np.ones(known.sum(), bool)}))
  return table.assemble(identity, pa.concat_tables(parts))


def law(us, k=0.7, alpha=3.0, e_ir=0.2):
  """Downstream accuracy by Eq. 1."""
  return 1.0 - k * (1.0 - us) ** alpha - e_ir
