"""What an evaluation is of: its settings, its parameters and the folder of its record."""
import dataclasses
import json
import os
import pathlib
from typing import Any, Mapping, NamedTuple

from ml_collections import ConfigDict

from big_transfer.data import tasks
from big_transfer.models import published
from big_transfer.runs import configuring
from big_transfer.runs import records
from big_transfer.training import objectives
from big_transfer.training import origin as origin_lib
from big_transfer.training import settings as settings_lib

# What may be changed where the rows are to be the run's: all else would make them another run's.
CHANGEABLE = ("evals", "eval_batch_size", "mesh", "sharding")
# What an evaluation takes of a config; the other keys are of the training.
FORWARD = ("model", "upstream", "image_size", "fit", "loss", "evals", "eval_batch_size", "mesh",
           "sharding")
# What goes with the parameters: another run's, where --init names one.
_OF_PARAMETERS = ("model", "image_size", "loss")
# Kinds of evaluators that have tasks, of which --suite and --skip-missing speak.
OF_TASKS = ("fewshot", "linear")


class Stated(NamedTuple):
  """An accuracy upstream that isn't measured here.

  Attributes:
    accuracy: a fraction of held-out examples.
    source: where it is said, for people.
  """
  accuracy: float
  source: str


@dataclasses.dataclass(frozen=True)
class Request:
  """What `evaluate` was asked for; see there for what isn't said here.

  Attributes:
    overrides: `{path: value}`.
    texts: the same as it was typed: `{path: text}`.
    stated: an accuracy upstream to record; with it `upstream` is but a name.
  """
  workdir: str | os.PathLike | None = None
  evals: Any = None
  step: int | None = None
  init: str | os.PathLike | None = None
  config: Any = None
  out: str | os.PathLike | None = None
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  suite: str | None = None
  skip_missing: bool = False
  image_size: int | None = None
  upstream: str | None = None
  stated: Stated | None = None

  def check(self) -> None:
    """Raises ValueError where what is given doesn't go together."""
    bare = self.workdir is None and self.config is None
    of_file = self.init is not None and origin_lib.is_file(self.init)
    if self.workdir is not None and self.config is not None:
      raise ValueError("expected one of --workdir (a run) and --config (data and evaluators for a "
                       "model given by --init), got both")
    if bare and self.init is None:
      raise ValueError("expected a run (--workdir), or published parameters (--init FILE.npz, with "
                       "--suite and --out), got neither")
    if bare and not of_file:
      raise ValueError(f"--init '{self.init}' is no .npz: name the run by --workdir, or say by "
                       "--config or --workdir on which data and by which evaluators it is measured")
    if self.config is not None and self.init is None:
      raise ValueError("--config says nothing of parameters: give --init, a run or an .npz")
    if self.init is not None and self.out is None:
      raise ValueError("--init: the rows are not of the run's own parameters; give --out, a run "
                       "folder for them")
    if self.step is not None and of_file:
      raise ValueError(f"--step {self.step}: '{self.init}' holds parameters of one step only; leave "
                       "it out")
    for name in ("image_size", "upstream"):
      if getattr(self, name) is not None and not bare:
        raise ValueError(f"--{name.replace('_', '-')} goes with --init FILE.npz alone; here the "
                         f"config says it (--config.{name})")
    self._check_stated(bare)
    if bare and self.suite is None and self.evals is None:
      raise ValueError("--init without --config or --workdir: name what to measure, by --suite "
                       "(such as vtab) or --evals")

  def _check_stated(self, bare):
    if self.stated is None:
      return
    accuracy, source = self.stated
    if not bare:
      raise ValueError("--upstream-accuracy is for published parameters (--init FILE.npz) whose "
                       "upstream data isn't here; a run's is measured")
    if not self.upstream:
      raise ValueError("--upstream-accuracy: name what it was measured on by --upstream, such as "
                       "imagenet21k")
    if accuracy is None or not source or not 0.0 <= accuracy <= 1.0:
      raise ValueError("--upstream-accuracy and --upstream-source go together: expected a fraction "
                       f"from 0 to 1 and where it is said, got {accuracy!r} and {source!r}")


@dataclasses.dataclass(frozen=True)
class Job:
  """One evaluation, its settings read.

  Attributes:
    folder: where its record goes.
    identity: of the evaluation, 12 hex digits.
    settings: what to evaluate, on what, with which model.
    origin: the parameters.
    name: of the parameters, for people.
    of_run: whether the rows are the run's, not those of a run folder of their own.
    upstream: the name of what was trained on, where it isn't opened; None: it is, or isn't known.
    stated: an accuracy on it to record.
  """
  folder: pathlib.Path
  identity: str
  settings: settings_lib.Settings
  origin: origin_lib.Origin
  name: str
  of_run: bool
  upstream: str | None = None
  stated: Stated | None = None


def job(request: Request) -> Job:
  """Reads the settings and finds the parameters.

  Raises:
    ValueError: a typo, a missing file, or what doesn't go together; the message names the fix.
  """
  request.check()
  init, workdir = request.init, request.workdir
  if workdir is not None:
    workdir = pathlib.Path(workdir).expanduser()
    origin_lib.check_run(workdir)
  origin = _origin(init or workdir, request.step)
  base = (records.read_config(workdir) if workdir is not None else
          configuring.load(request.config) if isinstance(request.config, (str, os.PathLike)) else
          request.config if request.config is not None else _of_published(origin, request))
  config = _configured(configuring.plain(base), request)
  if init and origin.config:
    if workdir is None and config.get("model") != origin.config["model"]:
      print(f"note: the model is that of {origin.where}, {origin.config['model']['name']}; what "
            "--config says of the model is not used", flush=True)
    config = _with_parameters_of(origin, config, [*request.overrides, *request.texts])
  elif config.get("model") is None:
    config["model"] = _described(origin)[0]
  settings = configuring.build(settings_lib.Settings, config, "")
  settings_lib.check_forward(settings)
  objectives.classification(settings.loss)  # raises where there is no such loss
  identity = configuring.identity("evaluation", {
      "evals": settings.evals, "step": origin.step, "parameters": origin.identity,
      "upstream": settings.upstream, "fit": settings.fit,
      **({"stated": [request.upstream, *request.stated]} if request.stated else {}),
      # A run's identity says these; a file may fit models and images of several kinds.
      **({key: getattr(settings, key) for key in _OF_PARAMETERS} if origin.config is None else {})})
  folder = (workdir / records.EVALUATIONS / identity if request.out is None
            else pathlib.Path(request.out))
  return Job(folder.expanduser().absolute(), identity, settings, origin,
             origin_lib.name(origin, str(init or pathlib.Path(workdir).absolute())),
             of_run=request.out is None, upstream=request.stated and request.upstream,
             stated=request.stated)


def _origin(source, step):
  if origin_lib.is_file(source):
    return origin_lib.of_file(source)
  origin_lib.check_run(pathlib.Path(source).expanduser())
  return origin_lib.of_run(source, step)


def _described(origin):
  """(the section `model`, the side of images or None) of a published file's parameters."""
  model = published.describe(origin.params)
  model.pop("num_classes")
  image_size = model.pop("image_size")
  return configuring.plain(model), image_size


def _of_published(origin, request):
  """The config of a published model: from its parameters, and what the flags say."""
  model, image_size = _described(origin)
  image_size = image_size if request.image_size is None else request.image_size
  if image_size is None:
    raise ValueError(f"{origin.where} is a {model['name']} for images of any size: say which by "
                     "--image-size, such as 224, at which the published ones were trained")
  measured = request.upstream is not None and request.stated is None
  upstream = _task(request.upstream) if measured else {}
  return {
      "model": model, "image_size": image_size,
      # As in the few-shot evaluation of 2110.02095: sides as they are, the centre of the image.
      "fit": "crop", "upstream": upstream,
      "evals": {"upstream": {"kind": "classification"}} if measured else {},
      # Of the training, of which nothing is known and nothing recorded.
      "optim": {}, "batch_size": 1, "total_steps": 1}


def _task(text):
  """A task by name, or as a mapping in JSON: the section `upstream` of a config."""
  if not text.startswith("{"):
    return {"name": text}
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"--upstream {text} is no JSON ({error}); expected a task's name, or a mapping "
                     """such as '{"name": "mine", "source": "folder:/path"}'""") from error


def _configured(base, request):
  """The config with the evaluators and changes that are asked for, plain."""
  overrides, texts = request.overrides, request.texts
  if request.workdir is not None:
    for path in [*overrides, *texts]:
      if path.partition(".")[0].partition("[")[0] not in CHANGEABLE:
        raise configuring.ConfigError(
            f"config key '{path}' can't change when a run is evaluated: its rows would not be of "
            f"this run. Only {', '.join(CHANGEABLE)} may; train another run, or see --init")
  base = {"eval_batch_size": settings_lib.Settings.eval_batch_size, "mesh": {"data": -1},
          "sharding": (), **base}
  own = base.get("evals") or {}
  asked = _sections(request.evals, own)
  if request.upstream is not None:  # what is measured of it is no section of a run's
    asked = own | asked
  base["evals"] = _of_suite(asked, request)
  config = ConfigDict(base)
  for path in [*overrides, *texts]:
    keys = path.split(".")
    if len(keys) == 3 and keys[0] == "evals" and keys[1] in config.evals and (
        keys[2].isidentifier()):
      # A key may stand at its default so far, or change its type; the evaluator checks both.
      config.evals[keys[1]][keys[2]] = None
  try:
    values = {**overrides, **configuring.parse_values(config, texts)}
    config = configuring.plain(configuring.override(config, values))
  except configuring.EvaluatorError as error:
    raise configuring.EvaluatorError(f"{error}, or in a file that --evals names, such as "
                                     "configs/evaluate/layers.py") from None
  config["evals"] = {name: {key: value for key, value in section.items()
                            if key not in ("every", "first")}
                     for name, section in config["evals"].items()}
  if not config["evals"]:
    raise configuring.ConfigError("nothing to evaluate: the config has no evaluators; name a file "
                                  "of them by --evals, such as configs/evaluate/layers.py, or tasks "
                                  "by --suite")
  return config


def _with_parameters_of(origin, config, paths):
  """The config with what goes with another run's parameters; what it leaves out is the default.

  Raises:
    ConfigError: a change of it, among the `paths` to be changed.
  """
  for path in paths:
    if path.partition(".")[0] in _OF_PARAMETERS:
      raise configuring.ConfigError(
          f"config key '{path}' can't change with --init of a run: {', '.join(_OF_PARAMETERS)} go "
          f"with the parameters, {origin.where}; leave it out")
  others = {key: value for key, value in config.items() if key not in _OF_PARAMETERS}
  return others | {key: origin.config[key] for key in _OF_PARAMETERS if key in origin.config}


def _sections(evals, own):
  """The evaluators asked for, each laid over the run's own of that name and kind."""
  if evals is None:
    return own
  given = configuring.plain(
      configuring.load(evals) if isinstance(evals, (str, os.PathLike)) else evals)
  for name, section in given.items():
    if not isinstance(section, dict):
      raise configuring.ConfigError(
          f"evals section '{name}' is {section!r}: expected a mapping with the evaluator's kind, "
          "such as dict(kind='fewshot'). The file's get_config() returns such sections alone, as "
          "configs/evaluate/layers.py does, not a whole config")

  def complete(name, section):
    mine = own.get(name, {})
    return {**mine, **section} if section.get("kind") in (None, mine.get("kind")) else section

  return {name: complete(name, section) for name, section in given.items()}


def _of_suite(sections, request):
  """The evaluators with the tasks of a suite, or with leave to skip tasks, where that is asked."""
  probes = {name: section for name, section in sections.items()
            if section.get("kind") in OF_TASKS}
  if request.suite is not None:
    tasks.suite(request.suite)  # raises where there is none of the name
    # Of a run's own, those with tasks alone: all else it measured itself.
    others = {} if request.evals is None and request.workdir is not None else {
        name: section for name, section in sections.items() if name not in probes}
    new = {"kind": "fewshot", "layers": "all"}
    sections = others | {name: {**section, "tasks": request.suite}
                         for name, section in (probes or {"probes": new}).items()}
  elif request.skip_missing and not probes:
    raise configuring.ConfigError("--skip-missing: no evaluator here has tasks; name some by "
                                  "--suite or --evals")
  skip = {"missing": "skip"} if request.skip_missing else {}
  return {name: {**section, **(skip if section.get("kind") in OF_TASKS else {})}
          for name, section in sections.items()}
