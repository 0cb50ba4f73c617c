"""The tasks that a probe is asked for: opened, or told of as missing.

A task whose data isn't there is no task that went badly. It either stops the run before its first
step, all that are missing in one message, or it is a row without a value that says so: never
something that an average leaves out in silence.
"""
from big_transfer.data import examples
from big_transfer.data import tasks as tasks_lib
from big_transfer.evaluators import features

MISSING = ("error", "skip")


def named(tasks):
  """The tasks that are meant.

  Args:
    tasks: a list of names, mappings (see `data.tasks.resolve`) and names of suites, or one
      suite's name.

  Returns:
    A list of `data.tasks.Task`.

  Raises:
    ValueError: no list, an unknown name, or a task that comes twice in one variant: its rows could
      not be told apart.
  """
  if isinstance(tasks, str):
    if tasks not in tasks_lib.SUITES:
      raise features.no_list("tasks", tasks, either=_or_a_suite())
    tasks = [tasks]
  elif isinstance(tasks, (int, float)) or not len(tasks):
    raise features.no_list("tasks", tasks, either=_or_a_suite())
  found = []
  for task in tasks:
    if isinstance(task, str) and task in tasks_lib.SUITES:
      found += tasks_lib.suite(task)
    else:
      found.append(tasks_lib.resolve(task))
  seen = set()
  for task in found:
    if (task.name, task.variant) in seen:
      raise ValueError(f"task {task.name!r} (variant {task.variant!r}) is asked for twice: take one "
                       "out, or give one of them another `variant` or name")
    seen.add((task.name, task.variant))
  return found


def opened(tasks, make, missing):
  """Opens every task.

  Args:
    tasks: as `named` takes them.
    make: `make(task)`, which opens its data.
    missing: "error", or "skip" for a row in the place of each task whose data isn't there.

  Returns:
    `[(task, what make returned, None)]`, or `(task, None, reason)` where its data is missing.

  Raises:
    MissingError: some are missing, all of them named.
    ValueError: `missing` is neither; what `named` or `make` raises, so that broken data is always
      an error.
  """
  if missing not in MISSING:
    raise ValueError(f"missing is {missing!r}: expected 'error', or 'skip' for a row that says so "
                     "in the place of each task whose data isn't there")
  found = []
  for task in named(tasks):
    try:
      found.append((task, make(task), None))
    except examples.MissingError as e:
      found.append((task, None, str(e)))
  lacking = [(task, reason) for task, _, reason in found if reason]
  if lacking and missing == "error":
    raise examples.MissingError(_told(lacking, len(found)))
  return found


def skipped(evaluator, task, reason):
  """The row that stands for a task whose data is missing."""
  return {"evaluator": evaluator, "task": task.name, "variant": task.variant,
          "setting": evaluator, "split": "test", "metric": task.metric, "value": None,
          "status": "skipped", "reason": reason}


def _told(lacking, asked):
  if len(lacking) == 1:
    [(task, reason)] = lacking
    return f"task {_label(task)} is missing. {reason}\n{_fix([task])}"
  lines = [f"{len(lacking)} of {asked} tasks are missing:"]
  lines += [f"  {_label(task)}: {reason.split('. ')[0]}" for task, reason in lacking]
  return "\n".join([*lines, _fix([task for task, _ in lacking])])


def _label(task):
  return f"{task.name!r}" + (f" ({task.variant})" if task.variant != "full" else "")


def _fix(tasks):
  asked = " ".join(dict.fromkeys(f"--task {task.name}" for task in tasks
                                 if task.name in tasks_lib.TASKS))
  doctor = f"`python -m big_transfer.data doctor {asked}` says how to get them. " if asked else ""
  return (f"{doctor}To go on without: missing=\"skip\" in the evaluator's section "
          "(--config.evals.probes.missing=skip; of evaluate, --skip-missing), and each is a row "
          "that says so")


def _or_a_suite():
  return f"the name of a suite ({', '.join(tasks_lib.SUITES)}) or "
