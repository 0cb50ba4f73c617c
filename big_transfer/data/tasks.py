"""The downstream suite: a task's name -> its data, splits, options and metric."""
import dataclasses
from collections.abc import Mapping

from big_transfer.data.builtin import numbered
from big_transfer.data.examples import Source, did_you_mean
from big_transfer.data.sources import open_source


@dataclasses.dataclass(frozen=True)
class Task:
  """A downstream task.

  Attributes:
    name: what rows and figures call it.
    source: name for `open_source`.
    train: split that shots are drawn from.
    test: split that accuracy is measured on, the whole of it.
    validation: split to choose hyper-parameters by, apart from both; None where there is none.
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
      ValueError: another split, or none for validation; what `open_source` raises.
    """
    if split not in ("train", "test", "validation") or not getattr(self, split):
      raise ValueError(f"task {self.name!r} has no split {split!r}; expected 'train' or 'test'"
                       f"{', or validation' if self.validation else ''}.")
    return open_source(self.source, getattr(self, split), **self.options)

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
          f"{self.name!r} ({self.source}): its train split has {len(names[0])} classes and its test "
          f"split {len(names[1])}, or other ones (in train alone: {only[0]}; in test alone: "
          f"{only[1]}); expected the same, since a label is a place in that list. Give both splits "
          "all classes (an .npz: the option num_classes)")
    return train, test

  @property
  def spec(self) -> dict:
    """Everything above, JSON-able."""
    return dataclasses.asdict(self)


def _built_in() -> dict[str, Task]:
  tasks = [
      *(Task(f"{name}_unseen", name,
             options={"first_class": numbered.UNSEEN_FROM, "classes": 30})
        for name in ("fractals", "textures")),
      Task("digits", "digits"),
      *(Task(f"sprites_{label}", "sprites", options={"label": label})
        for label in ("count", "location", "orientation", "scale")),
      Task("cifar10", "tfds:cifar10"),
      Task("omniglot_small", "tfds:omniglot_small"),
  ]
  return {task.name: task for task in tasks}


TASKS = _built_in()

SUITES = {"builtin": tuple(name for name, task in TASKS.items() if ":" not in task.source)}


def suite(name: str) -> list[Task]:
  """The tasks of a suite, a key of `SUITES`; ValueError where there is no such."""
  if name not in SUITES:
    raise ValueError(f"unknown suite {name!r}: {did_you_mean(name, SUITES)}")
  return [resolve(task) for task in SUITES[name]]


def resolve(task: str | Mapping | Task) -> Task:
  """A task by name, or one described in a config.

  Args:
    task: a name in `TASKS`; or a mapping of `Task`'s fields, which must have `name`. Where that
      is a name in `TASKS` the other fields override it, `options` key by key; else `source` too
      must be given.

  Raises:
    ValueError: unknown name or field, or a field that is missing.
  """
  if isinstance(task, Task):
    return task
  if isinstance(task, str):
    if task not in TASKS:
      raise ValueError(f"unknown task {task!r}: {did_you_mean(task, TASKS)} Or describe it with a "
                       "mapping of name, source, train, test and options.")
    return TASKS[task]
  fields = {k: dict(v) if isinstance(v, Mapping) else v for k, v in task.items()}
  known = [field.name for field in dataclasses.fields(Task)]
  for key in fields:
    if key not in known:
      raise ValueError(f"task {fields.get('name', '')!r} has an unknown field {key!r}: "
                       f"{did_you_mean(key, known)}")
  if "name" not in fields:
    raise ValueError(f"a task without a name, {fields}; expected a mapping with 'name'.")
  if fields["name"] in TASKS:
    base = TASKS[fields["name"]]
    same = fields.get("source", base.source) == base.source
    if same:  # another source has options of its own
      fields["options"] = {**base.options, **fields.get("options", {})}
    return dataclasses.replace(base, **{"options": {}, **fields})
  if "source" not in fields:
    raise ValueError(f"task {fields['name']!r} has no source: name one, or a task that there is. "
                     f"{did_you_mean(fields['name'], TASKS)}")
  return Task(**fields)
