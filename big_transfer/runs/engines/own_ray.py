"""A Ray of this machine for as long as a command needs it, out of reach of the command's signals.

    python -m big_transfer.runs.engines.own_ray

starts Ray, prints where it is, and ends it once its input ends. `running` starts that in a session
of its own: Ctrl-C, `timeout` and job managers signal a command's whole process group, which would
end Ray before the trials on it have saved. Where the command is killed, its end of the pipe goes
with it, and Ray ends too.
"""
import contextlib
import logging
import os
import signal
import subprocess
import sys

# What passes through Ray's object store are configs and run.json's.
STORE_BYTES = 100 * 2**20
# How long Ray may take to end before it is killed.
END_SECONDS = 20.0
_AT, _FAILED = "ray at ", "ray failed: "


@contextlib.contextmanager
def running():
  """Gives the address of a Ray started on this machine, which is ended afterwards.

  Raises:
    RuntimeError: it can't be started.
  """
  print("starting Ray on this machine …", flush=True)
  process = subprocess.Popen(
      [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL, text=True, start_new_session=True)
  with process:
    try:
      yield _address(process)
    finally:
      process.stdin.close()
      try:
        process.wait(END_SECONDS)
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _address(process):
  """Returns what the process says of where its Ray is."""
  for line in process.stdout:  # Ray may print lines of its own
    if line.startswith(_AT):
      return line.removeprefix(_AT).strip()
    if line.startswith(_FAILED):
      raise RuntimeError(line.removeprefix(_FAILED).strip())
  raise RuntimeError(f"it ended with exit status {process.wait()} as it started")


def main():
  """Starts Ray, tells where it is, and ends it when there is no one left to use it."""
  try:
    import ray  # takes half a second and belongs to an extra
    ray.init(
        "local", include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        logging_level=logging.ERROR)
  except Exception as error:  # of many kinds; told where it can be read
    print(_FAILED + " ".join(f"{type(error).__name__}: {error}".split()), flush=True)
    return
  print(_AT + ray.get_runtime_context().gcs_address, flush=True)
  sys.stdin.read()
  ray.shutdown()


if __name__ == "__main__":
  main()
