"""The keys of a run's config, what they may be, and what stands for nothing."""
import dataclasses
import math
from typing import Any, Mapping, Sequence

import jax

from big_transfer import models
from big_transfer.data import subset
from big_transfer.data import transforms
from big_transfer.runs import configuring
from big_transfer.training import sharding

# Values that are as good as no key. They are left out of what a run records, so that its identity
# is what it was before there was such a key.
_ABSENT = {"total_steps": [None], "total_epochs": [None], "name": [""], "sharding": [None, []],
           "sinks": [None, []], "profile": [None], "model": [None], "init": [None]}
# The same in sections.
_ABSENT_IN = {"model": [("scan", False), ("remat", "none")], "optim": [("layer_decay", None)]}
_PART = ("fraction", "fraction_seed")  # keys of `upstream` that a task doesn't have
WHAT = ("params", "full")
HEADS = ("zero", "random", "probe", "keep")
RESAMPLES = ("bilinear", "bicubic")


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


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys of a config.

  Attributes:
    model: `name` (vit, mixer, resnet), perhaps `variant`, and arguments of `models.build`; with
      `init` it may be None, for that of its source (`initial.completed` puts it in).
    upstream: the data that is trained on, for pre-training or, with `init`, the downstream task
      that is fine-tuned on: `name` of a task in `data.tasks`, or a new name with the
      fields of `data.tasks.Task` (`source`, `train`, `test`, `options`). Beside them `fraction`
      (1.0), the share of each class's training examples to train on, and `fraction_seed` (0),
      which decides on which: the subsets of one seed are nested, see `data.subset`. What is held
      out stays whole. A name alone will do.
    optim: `lr` (the peak), `rules` (ordered `(regex, {"lr", "wd"})`, or `{"frozen": True}` for
      what isn't trained), `schedule` (arguments of `schedules.unit_schedule`) and the other
      arguments of `optim.build`, `layer_decay` among them.
    batch_size: examples a step, over all devices.
    image_size: side of the images, in pixels.
    evals: `{name: {...}}`, see `evaluators`.
    total_steps: length of training, in steps; or else:
    total_epochs: length in passes over the training examples (those of the fraction), see
      `steps` and `fitted`. One of the two is given, the other None.
    eval_batch_size: examples a forward pass of the evaluators, over all devices; made larger
      where it doesn't divide by those that split a batch, which changes no result.
    fit: how an image is brought to that size, see `pipeline.prepare`.
    loss: "sigmoid_xent" or "softmax_xent".
    label_smoothing: in [0, 1).
    augment: `crop_padding` (pixels) and `flip`, done within the step; `mixup` (α of its Beta
      distribution; None, the default, isn't even compiled); done on the host, for large images,
      `inception_crop`, or `resize_crop` (pixels of the side to which an image is brought, whatever
      its shape, before a random part of image_size is taken; tested is then with fit "squash").
    accumulate: micro-batches a step.
    seed: of initial parameters, order of the data and augmentation.
    mesh: `{axis: devices}`, -1 for what is left; see `sharding.make_mesh`.
    sharding: rules by which parameters are split, `(regex, tactic)`, or a word for some; see
      `sharding.partition`.
    log_every: steps between rows of the training loss.
    checkpoint: `every` (steps) and `keep` (how many).
    sinks: where rows go beside the record, "tensorboard", "wandb" or both; see `runs.sinks`.
    profile: steps to trace, see `profiling.Profiler`; None for none.
    init: parameters to start from, a run's or published ones, for fine-tuning; or the whole state
      of a run, to go on from: see `initial.Init`. None starts from random parameters.
    name: what people call the run; where empty, what `train` is told.

  Raises:
    ValueError: not one of total_steps and total_epochs, or one of them or the fraction out of
      range. The other numbers are checked where devices are known, by `check`.
  """
  model: Mapping
  upstream: Mapping | str
  optim: Mapping
  batch_size: int
  image_size: int
  evals: Mapping
  total_steps: int | None = None
  total_epochs: float | None = None
  eval_batch_size: int = 64
  fit: str = "squash"
  loss: str = "sigmoid_xent"
  label_smoothing: float = 0.0
  augment: Mapping = dataclasses.field(default_factory=dict)
  accumulate: int = 1
  seed: int = 0
  mesh: Mapping = dataclasses.field(default_factory=lambda: {"data": -1})
  sharding: Sequence | str | None = None
  log_every: int = 50
  checkpoint: Mapping = dataclasses.field(default_factory=dict)
  sinks: Sequence[str] | str | None = None
  profile: Sequence | None = None
  init: Mapping | Init | None = None
  name: str = ""

  def __post_init__(self):
    object.__setattr__(self, "sharding", self.sharding or ())
    object.__setattr__(self, "init", initial({"init": self.init}))
    sinks = self.sinks or ()
    if not isinstance(sinks, (str, Sequence)):
      raise configuring.ConfigError(f"config key 'sinks' is {sinks!r}: expected names of sinks, see "
                                    "`runs.sinks`, or None")
    object.__setattr__(self, "sinks", (sinks,) if isinstance(sinks, str) else tuple(sinks))
    subset.check(*self.fraction)
    _check_length(self)

  @property
  def task(self) -> str | dict[str, Any]:
    """The section `upstream` without what says how much of the data: a name or a task's fields."""
    if isinstance(self.upstream, str):
      return self.upstream
    return {key: value for key, value in self.upstream.items() if key not in _PART}

  @property
  def fraction(self) -> tuple[float, int]:
    """`upstream.fraction` and `upstream.fraction_seed`."""
    if isinstance(self.upstream, str):
      return 1.0, 0
    return self.upstream.get("fraction", 1.0), self.upstream.get("fraction_seed", 0)

  def steps(self, examples: int) -> int:
    """The length of training in steps, if `examples` are trained on.

    Epochs are rounded up to whole steps, so that every example is seen as often as was asked.
    """
    if self.total_epochs is None:
      return self.total_steps
    # Less a little, lest 0.1 · 30 examples by 3 make 1.0000000000000002 steps.
    return max(1, math.ceil(self.total_epochs * examples / self.batch_size - 1e-9))

  def fitted(self, schedule: Mapping, steps: int) -> dict[str, Any]:
    """The section `optim.schedule` of a run of so many steps.

    A length in epochs may come to less than the warm-up, when a sweep takes a small part of the
    data. The warm-up then lasts half of the run at most. A length in steps is taken at its word:
    a warm-up that doesn't fit is an error of `schedules.unit_schedule`.
    """
    warmup = schedule.get("warmup_steps", 0)
    if self.total_epochs is None or warmup <= steps // 2:
      return dict(schedule)
    return {**schedule, "warmup_steps": steps // 2}


@dataclasses.dataclass(frozen=True)
class Augment:
  """The section `augment` of a config."""
  crop_padding: int = 0
  flip: bool = False
  mixup: float | None = None
  inception_crop: bool = False
  resize_crop: int | None = None

  def __post_init__(self):
    resized = self.resize_crop
    if resized is not None and (not isinstance(resized, int) or isinstance(resized, bool)):
      raise configuring.ConfigError(f"config key 'augment.resize_crop' is {resized!r}: expected "
                                    "pixels, or None")
    if resized is not None and self.inception_crop:
      raise configuring.ConfigError("config keys 'augment.inception_crop' and "
                                    "'augment.resize_crop' are both set: expected one, or none")

  def on_host(self, image_size: int) -> transforms.HostAugment | None:
    """What is done to images on the host; None for nothing."""
    if self.resize_crop is not None:
      return transforms.resize_crop(self.resize_crop, image_size)
    return transforms.inception_crop(image_size) if self.inception_crop else None


@dataclasses.dataclass(frozen=True)
class Saving:
  """The section `checkpoint` of a config: steps between saves (default: only at the end)."""
  every: int | None = None
  keep: int = 2

  def due(self, step, total_steps):
    return step == total_steps or bool(self.every and step and step % self.every == 0)


def initial(config: Mapping) -> Init | None:
  """The section `init` of a config, read; None where there is none."""
  given = config.get("init")
  if isinstance(given, Init):
    return given
  if given is not None and not isinstance(given, Mapping):
    raise configuring.ConfigError(f"config section 'init' is {given!r}: expected a mapping with "
                                  "its source, such as {'source': 'runs/first'}")
  return None if given is None else configuring.build(Init, given, "init")


def recorded(config: Mapping) -> dict[str, Any]:
  """A config, plain, as a run records it and is named by: without keys that stand for nothing.

  Such are a length, a name or a fraction that isn't given, blocks that run one by one, an axis of
  the mesh that splits nothing, or probes that ask for all their tasks: then the config says what
  one said that was written before there was the key.
  """
  config = configuring.plain(config)
  config = {key: value for key, value in config.items()
            if key not in _ABSENT or value not in _ABSENT[key]}
  for section, absent in _ABSENT_IN.items():
    if isinstance(config.get(section), dict):
      config[section] = {key: value for key, value in config[section].items()
                         if (key, value) not in absent}
  optim = config.get("optim")
  if isinstance(optim, dict) and isinstance(optim.get("rules"), list):
    config["optim"] = {**optim, "rules": [_without_false(rule) for rule in optim["rules"]]}
  if isinstance(config.get("evals"), dict):
    config["evals"] = {name: _without_missing(section)
                       for name, section in config["evals"].items()}
  if isinstance(config.get("mesh"), dict):
    config["mesh"] = {axis: size for axis, size in config["mesh"].items()
                      if axis == "data" or size != 1}
  upstream = config.get("upstream")
  if isinstance(upstream, dict) and upstream.get("fraction", 1) == 1:
    subset.check(upstream.get("fraction", 1), upstream.get("fraction_seed", 0))
    config["upstream"] = {key: value for key, value in upstream.items() if key not in _PART}
  return config


def _without_missing(section):
  if not isinstance(section, dict) or section.get("missing") != "error":
    return section
  return {key: value for key, value in section.items() if key != "missing"}


def _without_false(rule):
  """A rule of the optimiser without `frozen=False`."""
  if not (isinstance(rule, list) and len(rule) == 2 and isinstance(rule[1], dict)):
    return rule
  return [rule[0], {key: value for key, value in rule[1].items() if (key, value) != (
      "frozen", False)}]


def identified(config: Mapping, pretrained: Mapping | None) -> dict[str, Any]:
  """The config with which a run is named: what it starts from, in the place of where that lies."""
  if pretrained is None:
    return dict(config)
  here = {"source": pretrained["identity"], "step": pretrained["step"]}
  return {**config, "init": {**dataclasses.asdict(initial(config)), **here}}


def check(settings: Settings) -> None:
  """Raises ConfigError unless every number is in its range, on these devices; names the key."""
  check_forward(settings)
  _check_whole(settings, "batch_size", "accumulate", "log_every")
  for key, low, high in (("seed", 0, 2**32 - 1), ("label_smoothing", 0, 0.999)):
    value = getattr(settings, key)
    if not _is_number(value) or not low <= value <= high:
      raise configuring.ConfigError(
          f"config key '{key}' is {value!r}: expected a number from {low} to {high}")
  if (mixup := settings.augment.get("mixup")) is not None and not (
      _is_number(mixup) and mixup >= 0):
    raise configuring.ConfigError(
        f"config key 'augment.mixup' is {mixup!r}: expected a number, at least 0")
  configuring.build(Augment, settings.augment, "augment").on_host(settings.image_size)
  shards = _example_shards(settings)
  if settings.batch_size % (shards * settings.accumulate):
    raise configuring.ConfigError(
        f"config key 'batch_size' is {settings.batch_size}: expected a multiple of "
        f"{shards * settings.accumulate}, {shards} devices that split a batch (config.mesh) × "
        f"{settings.accumulate} micro-batches")


def check_forward(settings: Settings) -> None:
  """The part of `check` that passing images forward needs, with no training."""
  _check_whole(settings, "eval_batch_size", "image_size")
  check_model(settings)


def _example_shards(settings):
  return sharding.example_shards(sharding.axis_sizes(settings.mesh, jax.device_count()))


def check_model(settings: Settings) -> None:
  """Raises ConfigError where the section `model` names no family."""
  if "name" not in settings.model:
    raise configuring.ConfigError("config section 'model' lacks model.name: expected one of "
                                  f"{', '.join(models.MODELS)}")


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_whole(settings, *keys):
  for key in keys:
    value = getattr(settings, key)
    if not isinstance(value, int) or value < 1:
      raise configuring.ConfigError(
          f"config key '{key}' is {value!r}: expected a whole number, at least 1")


def _check_length(settings):
  steps, epochs = settings.total_steps, settings.total_epochs
  if (steps is None) == (epochs is None):
    got = "neither" if steps is None else f"total_steps = {steps!r} and total_epochs = {epochs!r}"
    raise configuring.ConfigError(
        f"config has {got}: expected one of total_steps and total_epochs, as the length of "
        "training; give one, and None for the other (--config.total_steps=None)")
  if epochs is None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
    raise configuring.ConfigError(
        f"config key 'total_steps' is {steps!r}: expected a whole number, at least 1")
  if steps is None and (not isinstance(epochs, (int, float)) or isinstance(epochs, bool)
                        or not 0 < epochs < float("inf")):
    raise configuring.ConfigError(
        f"config key 'total_epochs' is {epochs!r}: expected a number above 0, of passes over the "
        "training examples")
