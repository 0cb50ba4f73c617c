"""Where a run's values go beside its record: TensorBoard and Weights & Biases, both optional.

The record (`runs/records.py`) is what counts; a sink is for looking at. `sinks=("tensorboard",)` in
a config writes event files to `WORKDIR/tensorboard` (`tensorboard --logdir WORKDIR` shows them),
`"wandb"` logs to Weights & Biases, as its own environment variables say (WANDB_PROJECT,
WANDB_MODE=offline, ...). Neither brings TensorFlow. Once a run has begun, a sink that fails is
switched off with one warning, and the run goes on.

What is measured for several seeds is one curve, its mean. Its tag is made of the row's columns,
without those that go without saying: `train/loss`, `upstream/accuracy`,
`fewshot/digits/5-shot/pre_logits`, `geometry/train/block_00/margin/q0.5`; see `tag`.
"""
import collections
import importlib
import math
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from big_transfer.runs import configuring

_PAPER_L2 = 1024.0  # the ridge strength that a tag doesn't name: 2^10, which the study goes by


def tag(row: Mapping[str, Any]) -> str:
  """Returns the name of the curve that a row is a point of, such as "upstream/accuracy".

  Rows that differ in more than seed, step and what became of them have different tags. Left out
  are the upstream task's name, the full variant, the test split, the accuracy of a probe and the
  ridge strength 2^10.

  Args:
    row: with keys of `records.ROW_COLUMNS`; of them `evaluator` and `metric` must be there.
  """
  evaluator, upstream = row["evaluator"], ("train", "upstream")
  get = row.get
  parts = [
      evaluator,
      get("task") if evaluator not in upstream and get("setting") != "upstream" else None,
      get("variant") if get("variant") != "full" else None,
      get("setting") if get("setting") not in (evaluator, "upstream") else None,
      get("split") if get("split") != "test" and evaluator != "train" else None,
      f"{get('shots')}-shot" if get("shots") is not None else None,
      get("layer"),
      get("group"),
      f"l2={get('l2'):g}" if get("l2") not in (None, _PAPER_L2) else None,
      row["metric"] if (evaluator, row["metric"]) != ("fewshot", "accuracy") else None,
      f"q{get('quantile'):g}" if get("quantile") is not None else None]
  return "/".join(part for part in parts if part)


def averaged(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
  """Returns `{step: {tag: mean}}` of rows, steps ascending; a mean is over seeds.

  Rows without a good value (skipped, or infinite or NaN) have no part in it.
  """
  values = collections.defaultdict(lambda: collections.defaultdict(list))
  for row in rows:
    value = row.get("value")
    if value is not None and math.isfinite(value) and row.get("status") in (None, "ok"):
      values[int(row["step"])][tag(row)].append(float(value))
  return {step: {name: sum(found) / len(found) for name, found in values[step].items()}
          for step in sorted(values)}


def open_sinks(names: Iterable[str] | str, folder: str | os.PathLike, *,
               config: Mapping[str, Any], run: Mapping[str, Any]) -> "Sinks":
  """Opens a run's sinks, in its one process that writes.

  Args:
    names: any of "tensorboard" and "wandb"; none for a `Sinks` that does nothing.
    folder: the run's folder, which exists.
    config: the run's config, shown beside its curves.
    run: the content of its run.json; of it `id` and `name` are used.

  Raises:
    ConfigError: a name that is no sink's, or a sink whose package isn't installed. What else goes
      wrong, be it here, is a warning.

  Example:
    with open_sinks(["tensorboard"], "runs/first", config={"total_steps": 10}, run={}) as sinks:
      sinks.write([{"step": 10, "evaluator": "upstream", "metric": "accuracy", "value": 0.5}])
  """
  names = list(dict.fromkeys([names] if isinstance(names, str) else names))
  for name in names:
    check(name)
  folder = pathlib.Path(folder).expanduser().absolute()
  opened = Sinks()
  for name in names:
    opened.add(name, lambda kind=_KINDS[name]: kind(folder, configuring.plain(config), run))
  return opened


def check(name: str) -> None:
  """Raises ConfigError unless there is a sink of that name and its package can be imported."""
  if name not in _KINDS:
    raise configuring.ConfigError(
        f"config key 'sinks' names {name!r}: expected some of {', '.join(_KINDS)}")
  for module, attribute in _KINDS[name].needs:
    try:
      # A folder of that name is importable too, and W&B leaves one wherever it ran.
      getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
      raise configuring.ConfigError(
          f"config key 'sinks' names {name!r}, whose package can't be used here ({error}): "
          f"pip install 'big_transfer[{name}]', or take it out") from error


class Sinks:
  """The open sinks of a run. None of its methods ever fails for a sink's sake."""

  def __init__(self):
    self._open = {}

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def add(self, name: str, make) -> None:
    """Opens one more: what `make()` returns."""
    self._open[name] = None
    made = self._attempt(name, make)
    if name in self._open:
      self._open[name] = made

  def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Shows rows, those that were appended to the record; all of a step's seeds in one call.

    Rows of steps that a run before this one had written, and that were discarded when it was
    continued, are replaced.
    """
    if self._open and (values := averaged(rows)):
      for name, sink in list(self._open.items()):
        self._attempt(name, lambda write=sink.write: write(values))

  def close(self) -> None:
    """Closes all. W&B may take its time to send what is left: save what matters first."""
    for name, sink in list(self._open.items()):
      self._attempt(name, sink.close)
    self._open = {}

  def _attempt(self, name, action):
    try:
      return action()
    except Exception as error:  # whatever a package raises, it is no reason to end a run
      del self._open[name]
      print(f"warning: the sink '{name}' failed and is off from here on ({type(error).__name__}: "
            f"{error}); the run goes on, and its record has all of it", file=sys.stderr, flush=True)
      return None


class _TensorBoard:
  """Event files in `folder/tensorboard`, a new one each time the run is continued.

  They are written by tensorboard's `RecordWriter`. Its `EventFileWriter` imports TensorFlow where
  that is installed, which takes seconds and can take an accelerator's memory.
  """
  needs = (("tensorboard.summary.writer.record_writer", "RecordWriter"),)

  def __init__(self, folder, config, run):
    from tensorboard.summary.writer import record_writer
    folder = folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # readers go by the names' order
    name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}"
    self._writer = record_writer.RecordWriter(open(folder / name, "xb"))
    self._text = f"run `{run.get('id', '')}` {run.get('name', '')}\n\n```\n" + "\n".join(
        f"{path} = {value!r}" for path, value in _leaves(config)) + "\n```"
    self._begun = False
    self._add(0, file_version="brain.Event:2")
    self._writer.flush()

  def write(self, values):
    from tensorboard.compat.proto import summary_pb2
    if not self._begun:
      self._begin(min(values))
    for step, scalars in values.items():
      self._add(step, summary=summary_pb2.Summary(value=[
          summary_pb2.Summary.Value(tag=name, simple_value=value)
          for name, value in scalars.items()]))
    self._writer.flush()

  def close(self):
    self._writer.close()

  def _begin(self, step):
    """Tells readers to forget what an earlier process wrote of this step and later ones."""
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
    self._add(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    self._add(step, summary=summary_pb2.Summary(value=[summary_pb2.Summary.Value(
        tag="config", tensor=tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[self._text.encode()]),
        metadata=summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(
            plugin_name="text")))]))
    self._begun = True

  def _add(self, step, **content):
    from tensorboard.compat.proto import event_pb2
    event = event_pb2.Event(wall_time=time.time(), step=step, **content)
    self._writer.write(event.SerializeToString())


class _Wandb:
  """A run of Weights & Biases, continued when the run is.

  It ignores values of steps that it has already, which after a kill are measured again, the same.
  """
  needs = (("wandb", "init"),)

  def __init__(self, folder, config, run):
    import wandb
    self._run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "big_transfer"), dir=str(folder),
        id=self._identity(folder, run), resume="allow", name=run.get("name") or folder.name,
        config=config, reinit="create_new")  # members of a population are open side by side

  def write(self, values):
    for step, scalars in values.items():
      self._run.log(scalars, step=step)

  def close(self):
    self._run.finish()

  @staticmethod
  def _identity(folder, run):
    """The run's identity and a few random digits, kept in its folder.

    Without them the same config, trained again elsewhere, would be taken for this run continued.
    """
    path = folder / "wandb" / "run-id.txt"
    if not path.exists():
      path.parent.mkdir(exist_ok=True)
      path.write_text(f"{run.get('id') or folder.name}-{secrets.token_hex(3)}\n")
    return path.read_text().strip()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def _leaves(tree, path=""):
  """Yields (dotted path, value) of nested dicts."""
  for key, value in tree.items():
    name = f"{path}.{key}" if path else key
    if isinstance(value, dict) and value:
      yield from _leaves(value, name)
    else:
      yield name, value
