"""The benchmark: how fast the tiny ViT trains, starts and is probed, and in how much memory.

    launch/bench.sh [--out FILE.json] [--only NAME …] [--big-vision PATH]

Each part runs in a fresh process, so that its start and its peak memory are its own. The whole
takes about 7 minutes on 2 idle cores, and 5 GB of memory for the probes of 1000 classes; prints a
table, and writes all repeats as JSON. The part `population` takes some 10 minutes more and is run
only where it is named.
"""
import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ACCUMULATE = 8  # as in config.py
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint")

# big_vision at the same model and work, measured elsewhere: on 2 cores of another machine, whose
# few-shot evaluation extracts the whole train split. Never from this run.
ELSEWHERE = {
    "step, accumulate=1": "728-825", "forward, batch 256": "1,077-1,491", "loop": "642-667",
    "first step": "16-18", "few-shot, first time": "44-55", "peak memory, loop": "2,400",
}


def main(argv=None):
  parser = argparse.ArgumentParser(prog="launch/bench.sh",
                                   description=__doc__.split("\n", maxsplit=1)[0])
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/bench.json",
                      help="where the JSON goes (default: runs/bench.json)")
  parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", default=None,
                      help=f"parts to run, of {', '.join(PARTS)}")
  parser.add_argument("--big-vision", type=pathlib.Path, metavar="PATH",
                      help="a checkout of big_vision, whose model is timed beside ours")
  args = parser.parse_args(argv)
  if args.big_vision and not (args.big_vision / "big_vision").is_dir():
    parser.error(f"--big-vision {args.big_vision}: no folder big_vision in it; expected the root "
                 "of a checkout")
  if args.only and "big_vision" in args.only and not args.big_vision:
    parser.error("--only big_vision needs --big-vision PATH, the root of a checkout")
  data, env = _data(dict(os.environ))
  chosen = args.only or [
      part for part in PARTS if part != "population" and (part != "big_vision" or args.big_vision)]
  report = {"machine": _machine(), "data": data, "rows": []}
  for part in chosen:
    print(f"measuring {part} …", file=sys.stderr, flush=True)
    try:
      rows = PARTS[part](data, env, args)
    except RuntimeError as e:
      sys.exit(f"error: the benchmark's part {part} failed: {e}")
    report["rows"] += [{**_summary(row), "part": part} for row in rows]
  report["machine"]["load after"] = os.getloadavg()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
  print(_table(report))
  print(f"\nwritten to {args.out}")
  return report


def _workload(name, data, env, *arguments):
  """Runs a function of `workloads.py` in a process; returns its rows and its peak memory row.

  Raises:
    RuntimeError: it failed; the message is the last line it printed.
  """
  run = _Process([sys.executable, "-m", "tests.bench.workloads", name, "--data", data,
                  *map(str, arguments)], env)
  lines = [line for line, _ in run.lines()]
  code, peak, _, others = run.end()
  if code:
    raise RuntimeError(lines[-1].strip() if lines else f"exit code {code}")
  return [{**row, "others": others} for row in json.loads(lines[-1])], _peak(name, peak, others)


def _step(data, env, args):
  """The step by the number of micro-batches."""
  del args
  return [{**_workload("step", data, env, "--accumulate", n)[0][0], "name": f"step, accumulate={n}"}
          for n in (1, 4, ACCUMULATE)]


def _forward(data, env, args):
  """The forward pass, at the training batch and at the evaluators'."""
  del args
  return [{**_workload("forward", data, env, "--batch", n)[0][0], "name": f"forward, batch {n}"}
          for n in (256, 64)]


def _fewshot(data, env, args):
  del args
  rows, peak = _workload("fewshot", data, env)
  return rows + [peak]


def _probes(data, env, args):
  del args
  rows, peak = _workload("probes", data, env)
  return rows + [peak]


def _inputs(data, env, args):
  """The input pipeline alone."""
  del args
  return _workload("inputs", data, env)[0]


def _accelerator(data, env, args):
  """Large ViTs and the chip's peak; at toy size where there is only a CPU."""
  del args
  env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", **env}  # of a GPU, which is ours alone
  return _workload("accelerator", data, env)[0]


def _beside(other, data, env, *arguments):
  """Ours and another model in turns, each in a process of its own; ratios pair by pair."""
  rows = []
  for name, ours in (("step", ("--accumulate", ACCUMULATE)), ("forward", ("--batch", 64))):
    theirs = ("--model", other, *arguments)
    pairs = [[statistics.median(_workload(name, data, env, *which)[0][0]["repeats"])
              for which in (ours, theirs)] for _ in range(3)]
    rows.append(_row(f"{name}, {other}", "images/s", [b for _, b in pairs]))
    rows.append(_row(f"{name}, ours / {other}", "×", [a / b for a, b in pairs],
                     "ours with " + " ".join(map(str, ours)) + "; in turns"))
  return rows


def _ratio(data, env, args):
  """Ours beside the same architecture composed of flax.linen's modules, as big_vision's is."""
  del args
  return _beside("flax.linen", data, env)


def _big_vision(data, env, args):
  """Ours beside big_vision's model and few-shot maths; what can't be run is a row that says why."""
  path, rows = ("--big-vision", args.big_vision.resolve()), []
  for what, measure in (("model", lambda: _beside("big_vision", data, env, *path)),
                        ("few-shot maths", lambda: _workload("ridge", data, env, *path)[0])):
    try:
      rows += measure()
    except RuntimeError as e:
      rows.append(_row(f"big_vision's {what}", "", [], f"could not be run: {e}"))
  return rows


def _first_step(data, env, args):
  """Seconds from the start of the command `train` to the end of the first step, three times."""
  del args
  seconds, cpu, others = [], [], []
  for _ in range(3):
    with tempfile.TemporaryDirectory() as folder:
      run = _Process(_train(data, folder) + ["--config.log_every=1"], env)
      for line, when in run.lines():
        if line.startswith("step 1/"):
          seconds.append(when - run.started)
          run.kill()
      _, _, own, other = run.end()
      cpu.append(own)
      others.append(other)
  if len(seconds) < 3:
    sys.exit("error: the benchmark's part first_step failed: training reported no first step; "
             f"see {' '.join(_train(data, 'WORKDIR'))}")
  return [{**_row("first step", "s", seconds, "from the start of the process"),
           "others": max(others)},
          _row("first step, CPU time", "s", cpu, "of all threads; says more on a busy machine")]


def _loop(data, env, args):
  """The rate of `train` between its logs, warm-up, compiling and evaluation excluded."""
  del args
  with tempfile.TemporaryDirectory() as folder:
    run = _Process(_train(data, folder), env)
    lines = list(run.lines())
    code, peak, _, others = run.end()
    if code:
      sys.exit(f"error: the benchmark's part loop failed: {lines[-1][0] if lines else code}")
    batch = json.loads((pathlib.Path(folder) / "run.json").read_text())["batch_size"]
  logs = [(int(m[1]), when) for line, when in lines if (m := re.match(r"step (\d+)/", line))]
  rates = [(b - a) * batch / (then - now) for (a, now), (b, then) in zip(logs, logs[1:])]
  note = f"{data}, crop and flip, {logs[-1][0] - logs[0][0]} steps after warm-up"
  return [{**_row("loop", "images/s", rates, note), "others": others}, _peak("loop", peak, others)]


def _population(data, env, args):
  """Runs an hour of a sweep of 16, as a population and one after the other."""
  del data, args
  run = _Process([sys.executable, "-m", "tests.bench.population"], env)
  lines = [line for line, _ in run.lines()]
  code, _, _, others = run.end()
  if code:
    raise RuntimeError(lines[-1].strip() if lines else f"exit code {code}")
  return [{**row, "others": others} for row in json.loads(lines[-1])]


PARTS = {"step": _step, "forward": _forward, "first_step": _first_step, "loop": _loop,
         "inputs": _inputs, "fewshot": _fewshot, "probes": _probes,
         "accelerator": _accelerator, "population": _population, "ratio": _ratio,
         "big_vision": _big_vision}


class _Process:
  """A child whose lines are stamped as they come, and whose use of the machine is known."""

  def __init__(self, command, env):
    self._busy = _busy_seconds()
    self.started = time.time()
    self._child = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)

  def lines(self):
    """Yields (line, time it came), standard error among them."""
    for line in self._child.stdout:
      yield line, time.time()

  def kill(self):
    self._child.kill()

  def end(self):
    """Returns exit code, peak memory in MiB, CPU seconds, and the cores others kept busy."""
    _, status, usage = os.wait4(self._child.pid, 0)
    self._child.returncode = os.waitstatus_to_exitcode(status)
    self._child.stdout.close()
    own = usage.ru_utime + usage.ru_stime
    others = (_busy_seconds() - self._busy - own) / (time.time() - self.started)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return self._child.returncode, usage.ru_maxrss / unit, own, max(0.0, others)


def _busy_seconds():
  """CPU seconds that all processes of the machine have used; 0 where nothing tells."""
  try:
    user, nice, system = map(int, pathlib.Path("/proc/stat").read_text().split()[1:4])
  except OSError:
    return 0.0
  return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _train(data, workdir):
  return [sys.executable, "-m", "big_transfer.train", "--config",
          f"{HERE.relative_to(ROOT) / 'config.py'}:{data}", "--workdir", workdir]


def _data(env):
  """The upstream data there is, and the environment that finds it."""
  beside = ROOT.parent / "shared/data/tfds"
  if "TFDS_DATA_DIR" not in env and beside.is_dir():
    env["TFDS_DATA_DIR"] = str(beside)
  folder = pathlib.Path(env.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
  return "cifar10" if (folder / "cifar10").is_dir() else "fractals", env


def _machine():
  cpu = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
  git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT,
                       text=True, capture_output=True, check=False)
  return {
      "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
      "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
      "cpu": cpu[1] if cpu else platform.processor(), "system": platform.platform(),
      "load before": os.getloadavg(), "commit": git.stdout.strip() or None,
      "python": platform.python_version(),
      "versions": {name: importlib.metadata.version(name) for name in PACKAGES}}


def _read(path):
  try:
    return pathlib.Path(path).read_text()
  except OSError:
    return ""


def _row(name, unit, repeats, note=""):
  return {"name": name, "unit": unit, "repeats": repeats, "note": note}


def _peak(part, mib, others):
  return {**_row(f"peak memory, {part}", "MiB", [mib]), "others": others}


def _summary(row):
  values = row["repeats"]
  least, most = (min(values), max(values)) if values else (None, None)
  middle = statistics.median(values) if values else None
  return {**row, "value": middle, "min": least, "median": middle, "max": most,
          "elsewhere": ELSEWHERE.get(row["name"])}


def _table(report):
  machine = report["machine"]
  before, after = (machine[key][0] for key in ("load before", "load after"))
  width = max(30, *(len(row["name"]) for row in report["rows"])) if report["rows"] else 30
  lines = [
      f"{machine['cpu']}, {machine['cores']} cores; load {before:.1f} before, {after:.1f} after; "
      f"data: {report['data']}; commit {machine['commit']}",
      "", f"{'':<{width}}{'median':>11}{'min':>11}{'max':>11}  {'unit':<9}{'others':>6}  "
      "big_vision, measured elsewhere"]
  for row in report["rows"]:
    numbers = "".join(_number(row[key]) for key in ("median", "min", "max"))
    others = f"{row['others']:.1f}" if "others" in row else ""
    lines.append(f"{row['name']:<{width}}{numbers}  {row['unit']:<9}{others:>6}  "
                 f"{row['elsewhere'] or '':<12} {row['note']}".rstrip())
  return "\n".join(lines + ["", "others: cores that other processes kept busy meanwhile"])


def _number(value):
  if value is None:
    return f"{'-':>11}"
  return f"{value:>11,.0f}" if abs(value) >= 100 else f"{value:>11.3g}"


if __name__ == "__main__":
  main()
