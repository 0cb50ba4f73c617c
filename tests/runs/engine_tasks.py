"""Tasks of `worker_functions` that the tests of clusters share."""
from big_transfer.runs import engines


def act(folder, name, do="work"):
  return engines.Task(name, "g", {"do": do, "name": name, "folder": str(folder)},
                      str(folder / "logs" / f"{name}.log"))


def trial(folder, name, rows, seconds):
  workdir = str(folder / name)
  return engines.Task(name, "g", {"workdir": workdir, "rows": rows, "seconds": seconds},
                      f"{workdir}/log.txt")
