"""The downstream suite: a task's name -> its data, splits, options and metric.

The 25 tasks of Abnar et al. (arXiv:2110.02095) are here by the names of that paper's figures; 19
of them are those of VTAB (Zhai et al., arXiv:1910.04867). Each has one or three variants:

  full         all training examples. Splits are those of Google's few-shot evaluators where they
               give any: big_vision's (imagenet, caltech, cifar100, dtd, pets, cars, uc_merced) and
               uncertainty-baselines' (birds, col_hist); else VTAB's, train + validation against
               test. Where a dataset has no test split, VTAB makes one of its train split: eurosat
               and resisc45 (its last 20 %) and both of dSprites (its last 10 %); the evaluators do
               for col_hist and uc_merced. ImageNet and CLEVR are tested on `validation`, as their
               test labels aren't public; SmallNORB on half of its test split, the other half being
               VTAB's validation.
  vtab1k       VTAB-1k: trained on the first 800 examples of VTAB's train part and the first 200
               of its validation part, tested on the whole test split. `validation` is the 200.
  vtab1k-val   to choose hyper-parameters for it: trained on the 800 alone, tested on the 200.

The first 800 examples are the same on every machine since the version of the dataset is pinned and
TFDS orders examples by a hash of their keys; `TfdsSource.fingerprint` says whether they are. VTAB
itself read oxford_iiit_pet 3, kitti 3.1.0 and dmlab 2.0.0; TFDS's notes on the versions pinned here
tell of no change in which examples there are, but nobody has compared them for this project.
"""
import dataclasses
from collections.abc import Mapping

from big_transfer.data.builtin import numbered
from big_transfer.data.examples import MissingError, Source, did_you_mean
from big_transfer.data.sources import open_source


@dataclasses.dataclass(frozen=True)
class Task:
  """A downstream task.

  Attributes:
    name: what rows and figures call it.
    source: name for `open_source`.
    train: split that shots are drawn from.
    test: split that accuracy is measured on, the whole of it.
    validation: split to choose hyper-parameters by; None where there is none. Apart from both,
      but in VTAB-1k a part of train: choose by the variant "vtab1k-val", then train on all 1,000.
    options: the source's options, for both splits.
    variant: which form of the task, such as "full", for rows.
    metric: what is measured.
    reference: the paper that the data is from.
  """

  name: str
  source: str
  train: str = "train"
  test: str = "test"
  validation: str | None = None
  options: dict = dataclasses.field(default_factory=dict)
  variant: str = "full"
  metric: str = "accuracy"
  reference: str = ""

  def open(self, split: str) -> Source:
    """Opens the source at this task's "train", "test" or "validation" split.

    Raises:
      MissingError: the data isn't there.
      ValueError: another split, or none for validation; what `open_source` raises.
    """
    if split not in ("train", "test", "validation") or not getattr(self, split):
      raise ValueError(f"task {self.name!r} has no split {split!r}; expected 'train' or 'test'"
                       f"{', or validation' if self.validation else ''}.")
    try:
      return open_source(self.source, getattr(self, split), **self.options)
    except MissingError as error:
      other = self._other_version(split)
      if other is None:
        raise
      raise MissingError(
          f"task {self.name!r} is of {self.source}, so that its numbers are of the same examples "
          f"everywhere, and {other} is what is there; to use that, write "
          f"{{'name': {self.name!r}, 'source': {other!r}}}. {error}") from error

  def _other_version(self, split: str) -> str | None:
    """The same dataset at the version that is prepared; None where there is none."""
    try:
      found = open_source(dataset(self.source), getattr(self, split), **self.options)
    except ValueError:
      return None
    return f"{dataset(self.source)}:{found.spec['version']}"

  def open_both(self) -> tuple[Source, Source]:
    """Opens "train" and "test", and sees to it that a label means the same in both.

    Raises:
      ValueError: their classes differ; what `open_source` raises.
    """
    train, test = self.open("train"), self.open("test")
    names = [tuple(s.class_names or map(str, range(s.num_classes))) for s in (train, test)]
    if names[0] != names[1]:
      only = [sorted(set(a) - set(b))[:5] for a, b in (names, names[::-1])]
      raise ValueError(
          f"{self.name!r} ({self.source}): its train split has {len(names[0])} classes and its "
          f"test split {len(names[1])}, or other ones (in train alone: {only[0]}; in test alone: "
          f"{only[1]}); expected the same, since a label is a place in that list. Give both splits "
          "all classes (an .npz: the option num_classes)")
    return train, test

  @property
  def spec(self) -> dict:
    """Everything above, JSON-able."""
    return dataclasses.asdict(self)


def dataset(source: str) -> str:
  """A source's name without the version: "tfds:cifar10:3.0.2" -> "tfds:cifar10"."""
  return ":".join(source.split(":")[:2]) if source.startswith("tfds:") else source


def _built_in() -> list[Task]:
  return [
      *(Task(f"{name}_unseen", name,
             options={"first_class": numbered.UNSEEN_FROM, "classes": 30})
        for name in ("fractals", "textures")),
      Task("digits", "digits"),
      *(Task(f"sprites_{label}", "sprites", options={"label": label})
        for label in ("count", "location", "orientation", "scale")),
      Task("omniglot_small", "tfds:omniglot_small",
           reference="Lake, Salakhutdinov and Tenenbaum 2015"),
  ]


def _paper() -> list[Task]:
  """The 25 tasks, in the order of VTAB's natural, specialised and structured groups, then others.

  Sources: splits of big_vision/configs/common_fewshot.py and of uncertainty-baselines'
  baselines/jft/experiments/common_fewshot.py, where ImageNet's shots are of a tenth of it instead;
  splits and classes of VTAB, google-research/task_adaptation, task_adaptation/data/*.py.
  """
  joined = "train+validation"
  krizhevsky, lecun = "Krizhevsky 2009", "LeCun, Huang and Bottou 2004"
  matthey, johnson = "Matthey et al. 2017", "Johnson et al. 2017"
  return [
      Task("caltech", "tfds:caltech101:3.0.2", reference="Fei-Fei, Fergus and Perona 2004"),
      Task("cifar100", "tfds:cifar100:3.0.2", reference=krizhevsky),
      Task("dtd", "tfds:dtd:3.0.1", validation="validation", reference="Cimpoi et al. 2014"),
      Task("flowers102", "tfds:oxford_flowers102:2.1.1", joined,
           reference="Nilsback and Zisserman 2008"),
      Task("pets", "tfds:oxford_iiit_pet:4.0.0", reference="Parkhi et al. 2012"),
      Task("sun397", "tfds:sun397/tfds:4.0.0", joined, reference="Xiao et al. 2010"),
      Task("svhn", "tfds:svhn_cropped:3.1.0", reference="Netzer et al. 2011"),
      Task("patch_camelyon", "tfds:patch_camelyon:2.0.0", joined, reference="Veeling et al. 2018"),
      Task("eurosat", "tfds:eurosat/rgb:2.0.0", "train[:80%]", "train[80%:]",
           reference="Helber et al. 2017"),
      Task("resisc45", "tfds:resisc45:3.0.0", "train[:80%]", "train[80%:]",
           reference="Cheng, Han and Lu 2017"),
      Task("retinopathy", "tfds:diabetic_retinopathy_detection/btgraham-300:3.0.0", joined,
           reference="Kaggle and EyePACS 2015"),
      *(Task(name, "tfds:clevr:3.1.0", "train", "validation", options={"label": name},
             reference=johnson) for name in ("clevr_count", "clevr_distance")),
      Task("dmlab", "tfds:dmlab:2.0.1", joined, reference="Zhai et al. 2019"),
      *(Task(name, "tfds:dsprites:2.0.0", "train[:90%]", "train[90%:]",
             options={"label": name, "image_scale": 255}, reference=matthey)
        for name in ("dsprites_location", "dsprites_orientation")),
      Task("kitti_distance", "tfds:kitti:3.3.0", joined, options={"label": "kitti_distance"},
           reference="Geiger, Lenz and Urtasun 2012"),
      *(Task(f"smallnorb_{angle}", "tfds:smallnorb:2.0.0", "train+test[:50%]", "test[50%:]",
             options={"label_key": f"label_{angle}"}, reference=lecun)
        for angle in ("azimuth", "elevation")),
      Task("imagenet", "tfds:imagenet2012:5.1.0", "train[:65000]", "validation",
           reference="Russakovsky et al. 2015"),
      Task("cifar10", "tfds:cifar10:3.0.2", reference=krizhevsky),
      Task("birds", "tfds:caltech_birds2011:0.2.0", reference="Wah et al. 2011"),
      Task("cars", "tfds:cars196:2.1.0", reference="Krause et al. 2013"),
      Task("col_hist", "tfds:colorectal_histology:2.0.0", "train[:2000]", "train[2000:]",
           reference="Kather et al. 2016"),
      Task("uc_merced", "tfds:uc_merced:2.0.0", "train[:1000]", "train[1000:]",
           reference="Yang and Newsam 2010"),
  ]


# Where VTAB's validation part begins: its split, and the example. Where it is cut out of train, the
# train part before it is 60 % (eurosat, resisc45), 80 % (pets, dSprites) or 90 % of that split.
_VTAB_VALIDATION = {
    "caltech": ("train", 2754), "cifar100": ("train", 45000), "dtd": ("validation", 0),
    "flowers102": ("validation", 0), "pets": ("train", 2944), "sun397": ("validation", 0),
    "svhn": ("train", 65931), "patch_camelyon": ("validation", 0), "eurosat": ("train", 16200),
    "resisc45": ("train", 18900), "retinopathy": ("validation", 0),
    "clevr_count": ("train", 63000), "clevr_distance": ("train", 63000),
    "dmlab": ("validation", 0), "dsprites_location": ("train", 589824),
    "dsprites_orientation": ("train", 589824), "kitti_distance": ("validation", 0),
    "smallnorb_azimuth": ("test", 0), "smallnorb_elevation": ("test", 0)}


def _vtab1k(task: Task) -> list[Task]:
  """The two variants of a task of VTAB in 1,000 examples."""
  split, start = _VTAB_VALIDATION[task.name]
  train800 = "train[:800]"
  val200 = f"{split}[{start or ''}:{start + 200}]"
  return [
      dataclasses.replace(task, variant="vtab1k", train=f"{train800}+{val200}", validation=val200),
      dataclasses.replace(task, variant="vtab1k-val", train=train800, test=val200,
                          validation=None)]


TASKS = {task.name: task for task in (*_built_in(), *_paper())}

# (name, variant) -> task, for the variants other than "full".
VARIANTS = {(task.name, task.variant): task
            for name in _VTAB_VALIDATION for task in _vtab1k(TASKS[name])}

SUITES = {
    "builtin": tuple(name for name, task in TASKS.items() if ":" not in task.source),
    "paper": tuple(task.name for task in _paper()),
    "main": ("pets", "cifar100", "imagenet", "cars", "col_hist", "dtd", "caltech", "uc_merced"),
    "vtab": tuple(_VTAB_VALIDATION),
    "vtab1k": tuple(f"{name}:vtab1k" for name in _VTAB_VALIDATION),
}


def suite(name: str) -> list[Task]:
  """The tasks of a suite, a key of `SUITES`; ValueError where there is no such."""
  if name not in SUITES:
    raise ValueError(f"unknown suite {name!r}: {did_you_mean(name, SUITES)}")
  return [resolve(task) for task in SUITES[name]]


def resolve(task: str | Mapping | Task) -> Task:
  """A task by name, or one described in a config.

  Args:
    task: a name in `TASKS`, or "NAME:VARIANT" such as "cifar100:vtab1k"; or a mapping of `Task`'s
      fields, which must have `name`. Where that is a name in `TASKS` the other fields override it,
      `options` key by key; else `source` too must be given. A `source` that is another dataset,
      not another version of the same, leaves nothing of the known task but its name and metric.

  Raises:
    ValueError: unknown name, variant or field, or a field that is missing.
  """
  if isinstance(task, Task):
    return task
  if isinstance(task, str):
    name, _, variant = task.partition(":")
    if name not in TASKS:
      raise ValueError(f"unknown task {task!r}: {did_you_mean(name, TASKS)} Or describe it with a "
                       "mapping of name, source, train, test and options.")
    return _variant(name, variant or "full")
  fields = {k: dict(v) if isinstance(v, Mapping) else v for k, v in task.items()}
  known = [field.name for field in dataclasses.fields(Task)]
  for key, value in fields.items():
    if key not in known:
      raise ValueError(f"task {fields.get('name', '')!r} has an unknown field {key!r}: "
                       f"{did_you_mean(key, known)}")
    if key != "options" and not isinstance(value, str) and (key, value) != ("validation", None):
      raise ValueError(f"task {fields.get('name', '')!r}: {key} is {value!r}; expected a text")
  if "name" not in fields:
    raise ValueError(f"a task without a name, {fields}; expected a mapping with 'name'.")
  if fields["name"] in TASKS:
    return _override(fields)
  if "source" not in fields:
    raise ValueError(f"task {fields['name']!r} has no source: name one, or a task that there is. "
                     f"{did_you_mean(fields['name'], TASKS)}")
  return Task(**fields)


def _variant(name: str, variant: str) -> Task:
  if variant == "full":
    return TASKS[name]
  if (name, variant) not in VARIANTS:
    there = ["full", *(v for n, v in VARIANTS if n == name)]
    raise ValueError(f"task {name!r} has no variant {variant!r}: {did_you_mean(variant, there)} "
                     "For one of your own give a mapping with name, variant and train.")
  return VARIANTS[name, variant]


def _override(fields: dict) -> Task:
  """A known task with other fields; a variant's name alone never relabels other splits."""
  name, variant = fields["name"], fields.get("variant", "full")
  own = dataset(TASKS[name].source)  # with or without its configuration
  same = dataset(fields.get("source", own)) in (own, own.partition("/")[0])
  if same and ((name, variant) in VARIANTS or not set(fields) - {"name", "variant"}):
    base = _variant(name, variant)
  elif any(variant == v for _, v in VARIANTS) and not {"train", "test"} <= set(fields):
    raise ValueError(f"task {name!r} has no variant {variant!r} with "
                     f"{fields.get('source', TASKS[name].source)!r}: name its train and its test "
                     "split, or another variant.")
  else:
    base = TASKS[name]
  if not same:  # another source has splits and options of its own
    return Task(**{"metric": base.metric, **fields})
  return dataclasses.replace(
      base, **{**fields, "options": {**base.options, **fields.get("options", {})}})
