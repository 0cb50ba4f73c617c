"""What the tests of engines and sweeps run in worker processes; imports nothing slow."""
import functools
import os
import pathlib
import signal
import threading
import time

from big_transfer.runs import records


def act(payload):
  """Does what `payload["do"]` says, keeping account in `payload["folder"]`."""
  do, name = payload["do"], payload["name"]
  folder = pathlib.Path(payload["folder"])
  with open(folder / "calls", "a") as calls:
    calls.write(f"{name}\n")
  first = (folder / "calls").read_text().splitlines().count(name) == 1
  os.write(1, f"{name} at work\n".encode())
  if do == "refuse":
    raise ValueError(f"{name} is refused")
  if do == "raise" or (do == "raise once" and first):
    raise RuntimeError(f"{name} went wrong")
  if do == "die once" and first:
    os.kill(os.getpid(), signal.SIGKILL)
  if do == "unsendable":
    return threading.Lock()
  if do == "compile":
    compiled(payload["program"])
    time.sleep(0.01)
  if do in ("save", "ignore"):
    work_until_told(folder / name, saves=do == "save")
  return {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}


@functools.lru_cache(maxsize=None)
def compiled(program):
  time.sleep(0.3)
  return program


def work_until_told(path, saves):
  """Works until SIGTERM, then saves as training does, or doesn't heed it."""
  stopped = []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
  path.with_suffix(".started").write_text(str(os.getpid()))
  while not (stopped and saves):
    time.sleep(0.01)
  path.with_suffix(".saved").touch()
  raise RuntimeError("stopped early")


def train(payload):
  """Stands for training: leaves a record; a learning rate of 10 diverges, any above is refused."""
  config = payload["config"]
  with records.Record(payload["workdir"]) as record:
    record.write_config(config)
    runs = record.update_run().get("runs", 0) + 1
    record.update_run(status="running", runs=runs, name=payload["name"])
    if config["optim"]["lr"] > 10:
      raise ValueError("no such folder")
    if config["optim"]["lr"] == 10:
      raise FloatingPointError("loss is nan at step 3")
    return record.update_run(status="finished", overrides=payload["overrides"])


def resume(payload):
  """A run of a few rows that goes on where it was; returns how often it was started.

  Told to stop, it keeps its rows and says so, as training does.
  """
  stopped = []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
  with records.Record(payload["workdir"]) as record:
    starts = record.update_run().get("starts", 0) + 1
    record.update_run(status="running", starts=starts, pid=os.getpid())
    for step in range(len(records.read_rows(payload["workdir"])), payload["rows"]):
      time.sleep(payload["seconds"])
      record.append([{"step": step, "metric": "loss", "value": 1.0 / (step + 1)}])
      if stopped:
        record.update_run(status="interrupted")
        raise RuntimeError("stopped early")
    record.update_run(status="finished")
  return starts


def group_of(config):
  """Trials of one width share programs, and there are no models of width 0."""
  if not config["model"]["width"]:
    raise ValueError("config key 'model.width' is 0: expected at least 1")
  return str(config["model"]["width"])


def pairs(folder):
  """A sweep of three trials, of which two can be one program."""
  path = folder / "pairs.py"
  path.write_text(f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from tests import toy
def get_config():
  return toy.config(total_steps=4, evals={{}}, checkpoint={{}})
def get_sweep():
  yield {{"seed": 1}}
  yield {{"seed": 2}}
  yield {{"total_steps": 5}}
""")
  return str(path)
