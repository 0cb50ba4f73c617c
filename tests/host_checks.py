"""`python -m tests.host_checks`: what processes say to each other, for `tests/test_hosts.py`."""
import json

import jax
import numpy as np

from big_transfer.training import hosts
from big_transfer.training import sharding


def _fail():
  raise OSError("the disk is full")


def _followed():
  """What a process is told of a failure of main's."""
  try:
    return hosts.on_main(_fail)
  except (OSError, hosts.FollowedError) as e:
    return f"{type(e).__name__}: {e}"


def _rows(axes):
  """What comes back of a batch that the processes put together."""
  index, count = hosts.process()
  mesh = sharding.make_mesh(axes)
  mine = np.arange(16).reshape(count, -1)[index]
  batch = sharding.put_batch({"x": mine, "y": mine[:, None] * 2.0}, mesh)
  fetched = hosts.fetch({**batch, "here": np.float32(1), "sum": batch["x"].sum()})
  return {key: np.asarray(value).tolist() for key, value in fetched.items()}


def main():
  """Prints what this process found, as JSON."""
  with hosts.joined(heartbeat_seconds=10, start_seconds=60):
    index, count = hosts.process()
    found = {
        "process": [index, count], "main": hosts.is_main(),
        "told": [hosts.broadcast({"from": index}), hosts.broadcast([index, "é" * 10])],
        "failed": _followed(), "on_main": hosts.on_main(lambda: jax.process_index()),
        "rows": [_rows(axes) for axes in (
            None, {"fsdp": 4}, {"fsdp": 2, "data": 2}, {"data": -1, "tensor": 2})]}
    hosts.barrier("end")
    with hosts.quiet():
      print("only main says this")
  print(json.dumps(found))


if __name__ == "__main__":
  main()
