"""What a run starts from where that isn't chance: the section `init` of its config.

Parameters of a run or of a published file (`origin`), adapted to the data and the image size at
hand (`models.adapting`), or the whole state of a run, to go on from. They are read at the start
alone: a run that has a checkpoint of its own continues from that, its source may be gone.
"""
import dataclasses
import functools
from typing import Any, Callable, Mapping, Sequence

import jax
import numpy as np

from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import hosts
from big_transfer.training import members as members_lib
from big_transfer.training import origin as origin_lib

WHAT = ("params", "full")
HEADS = ("zero", "random", "probe", "keep")
RESAMPLES = ("bilinear", "bicubic")
# Of the source's run.json, what a study reads beside the rows of the run that starts from it.
_OF_SOURCE = ("id", "name", "model", "parameters", "flops_per_example", "upstream", "seed",
              "batch_size", "total_steps", "examples_seen", "config_name", "overrides", "setting")


@dataclasses.dataclass(frozen=True)
class Init:
  """The section `init` of a config.

  Attributes:
    source: a run's folder, or a published `.npz`, a path or a URL.
    step: of which checkpoint of a run; None for the newest.
    what: "params", the parameters, with an optimiser that begins anew at step 0; or "full", the
      whole state of a run, optimiser and step: the run goes on from there, perhaps with another
      schedule, on data of the same classes.
    head: "zero", "random" (by the run's seed), "probe" (a linear probe on the training examples,
      see `evaluators.heads`) or "keep" (the data must have the source's classes). None stands
      for "zero"; with "full" it can only be kept.
    resample: how position embeddings are brought to another image size, "bilinear" or "bicubic".

  Raises:
    ConfigError: a value that isn't one of these.
  """
  source: str
  step: int | None = None
  what: str = "params"
  head: str | None = None
  resample: str = "bilinear"

  def __post_init__(self):
    if not isinstance(self.source, str) or not self.source:
      raise configuring.ConfigError(
          f"config key 'init.source' is {self.source!r}: expected a run's folder or the path or "
          "URL of a published .npz")
    if self.step is not None and (
        not isinstance(self.step, int) or isinstance(self.step, bool) or self.step < 0):
      raise configuring.ConfigError(f"config key 'init.step' is {self.step!r}: expected the step "
                                    "of a checkpoint, or None for the newest")
    for key, known in (("what", WHAT), ("head", (*HEADS, None)), ("resample", RESAMPLES)):
      if getattr(self, key) not in known:
        raise configuring.ConfigError(
            f"config key 'init.{key}' is {getattr(self, key)!r}: expected one of "
            f"{', '.join(map(repr, known))}")
    if self.what == "full" and self.head not in (None, "keep"):
      raise configuring.ConfigError(
          f"config key 'init.head' is {self.head!r}: with init.what='full' a run goes on with the "
          "head it has; leave it out, or take init.what='params'")
    object.__setattr__(self, "head", self.head or ("keep" if self.what == "full" else "zero"))


def section(config: Mapping) -> Init | None:
  """The section `init` of a config, read; None where there is none."""
  given = config.get("init")
  if given is not None and not isinstance(given, Mapping):
    raise configuring.ConfigError(f"config section 'init' is {given!r}: expected a mapping with "
                                  "its source, such as {'source': 'runs/first'}")
  return None if given is None else configuring.build(Init, given, "init")


def completed(config: Mapping, own: Mapping | None = None) -> dict[str, Any]:
  """The config with the model of what it starts from, where it names none.

  Args:
    config: plain, see `settings.recorded`.
    own: what a run that was begun with it recorded; its model is taken, its source not asked.

  Raises:
    ValueError: the source isn't there, or nothing says what its model is.
  """
  init = section(config)
  if "model" in config or init is None:
    return dict(config)
  if own is not None and "model" in own:
    return {**config, "model": own["model"]}
  return {**config, "model": origin_lib.model(init.source)}


def setting(init: Init | None, names: Sequence[str], frozen: frozenset[str]) -> str:
  """The setting of a run, for run.json and rows: "upstream", "finetune" or "linear".

  Args:
    init: its section.
    names: of all parameters.
    frozen: of those that aren't trained.
  """
  if init is None or init.head == "keep":
    return "upstream"
  trained = [name for name in names if name not in frozen]
  return "linear" if all(name.startswith("head/") for name in trained) else "finetune"


def prepare(init: Init, program, opened: Sequence) -> "Initial":
  """What runs start from; read at once if they have no checkpoint, so that errors come early.

  Args:
    init: the section of their configs.
    program: their `program.Program`.
    opened: their `records.Record`s.
  """
  def look():
    if any(map(members_lib.has_checkpoints, opened)):
      return None
    begun = [record for record in opened if members_lib.begun_with(record)]
    return [records.read_run(record.folder).get("pretrained") for record in begun][:1]

  before = hosts.on_main(look)
  initial = Initial(init, program, before[0] if before else None)
  if before is not None:
    initial.check()
  return initial


class Initial:
  """What the members of a group start from, read when it is first asked for.

  Attributes:
    init: the section of their configs.
  """

  def __init__(self, init: Init, program, before: Mapping | None = None):
    """Args:
      init: the section.
      program: their `program.Program`.
      before: `pretrained` of the run.json of a run that was begun and has no checkpoint yet: it
        begins anew from the same parameters or not at all.
    """
    self.init, self._program, self._before = init, program, before

  @functools.cached_property
  def origin(self) -> origin_lib.Origin:
    """Parameters, or a state, and where they are from; the same in all processes.

    Raises:
      ValueError: they aren't there, are damaged, hold values that aren't finite, are not of this
        model, or not those that the run began with.
    """
    init, before = self.init, self._before
    step = before["step"] if init.step is None and before else init.step
    if jax.process_count() > 1:  # main says which is the newest; then all read that
      step = hosts.on_main(lambda: self._read(step, None).step)
    found = self._read(step, self._program.like if init.what == "full" else None)
    mine = [found.identity, found.step]
    if (said := hosts.broadcast(mine)) != mine:
      raise ValueError(f"init.source '{init.source}' is {mine[0]} at step {mine[1]} for process "
                       f"{jax.process_index()}, {said[0]} at step {said[1]} for process 0: expected "
                       "the same in all processes, on a disk that they share")
    found.check_finite()
    return found

  def facts(self) -> dict[str, Any]:
    """The field `pretrained` for run.json; none if nothing was read, when the run has it."""
    if "origin" not in self.__dict__:
      return {}
    init, origin = self.init, self.origin
    return {"pretrained": {
        "source": init.source, "identity": origin.identity, "step": origin.step,
        "what": init.what, "head": init.head, "name": origin_lib.name(origin, init.source),
        "run": {key: origin.run[key] for key in _OF_SOURCE if key in origin.run}}}

  def check(self) -> None:
    """Reads it, and raises ValueError where it doesn't fit: see `origin` and `adapting.adapt`."""
    if self.init.what == "params":
      self._adapted(0)

  def state(self, seed: int, head: Callable | None = None):
    """The state that a run starts from, on its devices.

    Args:
      seed: of a random head.
      head: `head(params) -> (kernel (D, C), bias (C,))` for "probe": makes the head, of the
        placed parameters.
    """
    if self.init.what == "full":
      return self.origin.state
    params = origin_lib.placed(self._adapted(seed), self._program.like.params)
    if self.init.head == "probe":
      kernel, bias = head(params)
      own = origin_lib.placed({"kernel": kernel, "bias": bias}, self._program.like.params["head"])
      params = {**params, "head": own}
    return self._program.start(params)

  def _read(self, step, like):
    init, before = self.init, self._before
    if init.what == "full" and origin_lib.is_file(init.source):
      raise ValueError(f"init.what is 'full', but '{init.source}' is a file of parameters: expected "
                       "a run's folder, or init.what='params'")
    try:
      found = origin_lib.of(init.source, step, like)
    except checkpoint.CheckpointError as e:
      if init.step is None and before:
        raise ValueError(f"this run began with step {step} of '{init.source}', which isn't there "
                         f"any more: {e}. Use another --workdir to begin with another") from e
      raise
    now = [found.identity, found.step]
    if before and (began := [before["identity"], before["step"]]) != now:
      raise ValueError(
          f"this run began with {began[0]} at step {began[1]}, but init.source '{init.source}' is "
          f"now {now[0]} at step {now[1]}: put back what it was, or use another --workdir")
    return found

  def _adapted(self, seed):
    """The parameters as the model at hand takes them, NumPy arrays."""
    like = self._program.like.params
    head = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like["head"])
    return {**self.origin.params, "head": head}
