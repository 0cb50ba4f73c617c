"""A Slurm of one machine: what submitit and the engine call of it, as far as the tests go.

Called as `fake_slurm.py COMMAND …`; its state is a folder, FAKE_SLURM, with a file a job: its
state, its process group, how often it was requeued. An array runs as many jobs at once as it
asks for. `fail` and `warn` are ours: they end a job as the loss of its node does, or as its time
limit does.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(os.environ["FAKE_SLURM"])


def read(job):
  return json.loads((ROOT / job).read_text())


def write(job, **fields):
  path = ROOT / job
  old = read(job) if path.exists() else {"requeues": 0, "pid": None}
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(old | fields))
  temporary.replace(path)


def jobs():
  return [path.name for path in ROOT.iterdir() if path.name[0].isdigit() and not path.suffix]


def sbatch(script):
  number = str(1 + len(list(ROOT.glob("*.sbatch"))))
  text = pathlib.Path(script).read_text()
  (ROOT / f"{number}.sbatch").write_text(text)
  array = re.search(r"--array=0-(\d+)%(\d+)", text)
  names = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [number]
  for name in names:
    write(name, state="PENDING")
  subprocess.Popen([sys.executable, __file__, "slurmd", array[2] if array else "1", *names],
                   start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # submitit reads ours to their end
  print(f"Submitted batch job {number}")


def slurmd(at_once, *names):
  """Runs jobs until none is left."""
  running = {}
  while True:
    for name, process in list(running.items()):
      if process.poll() is not None:
        del running[name]
        again = read(name)["state"] == "REQUEUED"
        write(name, state="PENDING" if again else "COMPLETED")
    waiting = [name for name in names if read(name)["state"] == "PENDING"]
    if not running and not waiting:
      return
    for name in waiting[:int(at_once) - len(running)]:
      number, _, index = name.partition("_")
      environment = os.environ | {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1",
                                  "SLURM_RESTART_COUNT": str(read(name)["requeues"])}
      if index:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
      running[name] = subprocess.Popen(["bash", str(ROOT / f"{number}.sbatch")], env=environment,
                                       start_new_session=True)
      write(name, state="RUNNING", pid=running[name].pid)
    time.sleep(0.02)


def srun(*arguments):
  """Becomes the command, its errors going where they should."""
  while arguments[0].startswith("--"):
    flag, *arguments = arguments
    if flag in ("--output", "--error"):
      path, *arguments = arguments
      index = os.environ.get("SLURM_ARRAY_TASK_ID")
      job = os.environ["SLURM_JOB_ID"] + (f"_{index}" if index else "")
      path = re.sub("%j|%A_%a", job, path).replace("%t", "0")
      os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2 if flag == "--error" else 1)
  os.execvp(arguments[0], arguments)


def squeue(*_):
  for name in jobs():
    state = read(name)["state"]
    if state in ("PENDING", "RUNNING", "REQUEUED"):
      print(name, state)


def scancel(*arguments):
  flags = [a for a in arguments if a.startswith("--")]
  for name in [a for a in arguments if not a.startswith("--")]:
    job = read(name)
    if job["state"] == "PENDING" and "--signal=TERM" not in flags:
      write(name, state="CANCELLED")
    elif job["state"] == "RUNNING" and "--state=PENDING" not in flags:
      tell(job["pid"], signal.SIGTERM)


def tell(group, number):
  """Signals a job's step, not the batch script around it, as Slurm does."""
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    pid = int(path.name)
    try:
      in_step = os.getpgid(pid) == group and pid != group
    except ProcessLookupError:
      continue
    if in_step:
      os.kill(pid, number)


def scontrol(_, name):
  write(name, state="REQUEUED", requeues=read(name)["requeues"] + 1)


def warn(name):
  tell(read(name)["pid"], signal.SIGUSR2)


def fail(name):
  with contextlib.suppress(ProcessLookupError):
    os.killpg(read(name)["pid"], signal.SIGKILL)


if __name__ == "__main__":
  commands = (sbatch, slurmd, srun, squeue, scancel, scontrol, warn, fail)
  {f.__name__: f for f in commands}[sys.argv[1]](*sys.argv[2:])
