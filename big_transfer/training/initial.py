"""What a run starts from where that isn't chance: the section `init` of its config.

Parameters of a run or of a published file (`origin`), adapted to the data and the image size at
hand (`models.adapting`), or the whole state of a run, to go on from. They are read at the start
alone: a run that has a checkpoint of its own continues from that, its source may be gone.
"""
import contextlib
import functools
from typing import Any, Callable, Mapping, Sequence

import jax

from big_transfer.models import adapting
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import hosts
from big_transfer.training import members as members_lib
from big_transfer.training import optim
from big_transfer.training import origin as origin_lib
from big_transfer.training import settings as settings_lib

# Of the source's run.json, what a study reads beside the rows of the run that starts from it.
_OF_SOURCE = ("id", "name", "model", "parameters", "flops_per_example", "upstream", "seed",
              "batch_size", "total_steps", "examples_seen", "config_name", "overrides", "setting")


def completed(config: Mapping, own: Mapping | None = None) -> dict[str, Any]:
  """The config with the model of what it starts from, where it names none.

  Args:
    config: plain, see `settings.recorded`.
    own: what a run that was begun with it recorded; its model is taken, its source not asked.

  Raises:
    ValueError: the source isn't there, or nothing says what its model is.
  """
  init = settings_lib.initial(config)
  if "model" in config or init is None:
    return dict(config)
  if own is not None and "model" in own:
    return {**config, "model": own["model"]}
  model = origin_lib.model(init.source)
  if init.head != "keep":
    # A hidden layer below the logits is part of the head that is replaced (2010.11929, 3.2).
    model = {key: value for key, value in model.items() if key != "representation_size"}
  return {**config, "model": model}


def read_settings(config: Mapping) -> settings_lib.Settings:
  """Reads a config as it is recorded, so that equal runs are made of equal programs."""
  config = completed(settings_lib.recorded(config))
  return configuring.build(settings_lib.Settings, config, "")


def named(config: Mapping) -> dict[str, Any]:
  """The config with something in the place of a model that it doesn't name.

  That is the model of the run it starts from or, for a file or where there is no run any more, the
  source: no parameters are read, and nothing has to be there.
  """
  init = settings_lib.initial(config)
  if "model" in config or init is None:
    return dict(config)
  if not origin_lib.is_file(init.source):
    with contextlib.suppress(ValueError):
      return completed(config)
  return {**config, "model": {"name": init.source}}


def setting(init: settings_lib.Init | None, optimiser: optim.Optimiser) -> str:
  """The setting of a run, for run.json and rows.

  Returns:
    "upstream" for a run that starts from chance, or goes on with the head it has; else "finetune",
    or "linear" if the head alone is trained.
  """
  if init is None or init.head == "keep":
    return "upstream"
  return "linear" if optimiser.head_alone else "finetune"


def prepare(settings: settings_lib.Settings, program, opened: Sequence, total_steps: int
            ) -> "Initial":
  """What runs start from; read at once if one has no checkpoint, so that errors come early.

  Args:
    settings: of one of them, with a section `init`.
    program: their `program.Program`.
    opened: their `records.Record`s.
    total_steps: their length.

  Raises:
    ValueError: it isn't there or doesn't fit, see `Initial`.
  """
  def look():
    begun = [record.folder for record in opened if members_lib.begun_with(record)]
    before = [records.read_run(folder).get("pretrained") for folder in begun]
    # Of all: if one has none all begin anew, and what they begin with is of the record of each.
    return all(map(members_lib.has_checkpoints, opened)), before[0] if before else None

  has_own, before = hosts.on_main(look)
  initial = Initial(settings.init, program, before, total_steps,
                    settings.model.get("head_bias", 0.0))
  if not has_own:
    initial.check()
  return initial


class Initial:
  """What the members of a group start from, read when it is first asked for.

  Args:
    init: the section of their configs.
    program: their `program.Program`.
    before: `pretrained` of the run.json of runs that were begun: should they begin anew, then from
      the same or not at all.
    total_steps: their length.
    head_bias: where the bias of a new head starts.

  Attributes:
    init: the section.
  """

  def __init__(self, init, program, before, total_steps, head_bias):
    self.init, self._program, self._before = init, program, before
    self._total_steps, self._head_bias = total_steps, head_bias

  @functools.cached_property
  def origin(self) -> origin_lib.Origin:
    """Parameters, or a state, and where they are from; the same in all processes.

    Raises:
      ValueError: they aren't there, are damaged, hold values that aren't finite, or are not those
        that the run began with; a state of another model or optimiser, or beyond the run's end.
    """
    init, before = self.init, self._before
    step = before["step"] if init.step is None and before else init.step
    if jax.process_count() > 1:  # main says which is the newest; then all read that
      step = hosts.on_main(lambda: origin_lib.find(init.source, step)) or None
    found = self._read(step, self._program.like if init.what == "full" else None)
    mine = [found.identity, found.step]
    if (said := hosts.broadcast(mine)) != mine:
      raise ValueError(f"init.source '{init.source}' is {mine[0]} at step {mine[1]} for process "
                       f"{jax.process_index()}, {said[0]} at step {said[1]} for process 0: "
                       "expected the same in all processes, on a disk that they share")
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

  def __str__(self):
    init = self.init
    return f"{init.what} of {self.origin.where}, the head: {init.head}"

  def check(self) -> None:
    """Raises ValueError where it can't be read or doesn't fit, see `origin` and `adapting`."""
    origin = self.origin
    if self.init.what == "params":
      self._adapted(0)
    elif origin.step >= self._total_steps:
      raise ValueError(f"init.what is 'full', and {origin.where} is at or beyond the end, "
                       f"total_steps = {self._total_steps}: make the run longer, take an earlier "
                       "init.step, or init.what='params', which begins at step 0")

  def states(self, seeds: Sequence[int], head: Callable) -> list:
    """The state that each run starts from, on its devices; what was read is let go of.

    Args:
      seeds: of the runs.
      head: `head(params, seed) -> (kernel (D, C), bias (C,))`: makes the head for "probe", of
        placed parameters; main's counts.
    """
    self.check()
    found = [self._state(seed, head) for seed in seeds]
    del self.__dict__["origin"]
    return found

  def _state(self, seed, head):
    if self.init.what == "full":
      return self.origin.state
    like = self._program.like.params
    params = origin_lib.placed(self._adapted(seed), like)
    if self.init.head == "probe":
      kernel, bias = hosts.of_main(head(params, seed))
      params = {**params, "head": origin_lib.placed({"kernel": kernel, "bias": bias},
                                                    like["head"])}
    return self._program.start(params)

  def _read(self, step, like):
    init, before = self.init, self._before
    if init.what == "full" and origin_lib.is_file(init.source):
      raise ValueError(f"init.what is 'full', but '{init.source}' is a file of parameters: "
                       "expected a run's folder, or init.what='params'")
    try:
      found = origin_lib.of(init.source, step, like)
    except checkpoint.CheckpointError as e:
      if init.step is None and before:
        raise ValueError(f"this run began with step {step} of '{init.source}', which can't be had "
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
    init, origin, like = self.init, self.origin, self._program.like.params
    classes = like["head"]["kernel"].shape[-1]
    if init.head == "keep" and origin.classes != classes:
      raise ValueError(
          f"init.head is 'keep', but {origin.where} has {origin.classes} classes and the data "
          f"{classes}: take 'zero', 'random' or 'probe' for a new head")
    try:
      return adapting.adapt(
          origin.params, like, head="zero" if init.head == "probe" else init.head,
          resample=init.resample, seed=seed, head_bias=self._head_bias)
    except ValueError as e:
      raise ValueError(f"init.source, {origin.where}: {e}") from e
