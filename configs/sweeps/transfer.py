"""Fine-tunes every pre-trained run of a sweep on every task of a list: the suite as a sweep.

    python -m big_transfer.sweep \\
        --sweep 'configs/sweeps/transfer.py:runs/fractions/*,omniglot_small,digits' \\
        --workdir runs/transfer --jobs 2
    python -m big_transfer.study --runs 'runs/fractions/*' 'runs/transfer/*' --out runs/study

Argument: a pattern of run folders, or of published .npz files, then tasks and names of suites
(`vtab1k`, `main`), `cifar100:vtab1k` among them. Each source is fine-tuned on each task with two
seeds, by the recipe of `../transfer/vit.py` at one setting for all, so that the study compares what
was pre-trained and not how it was tuned; another rate with --config.optim.lr=…. Images are of the
source's own size where that is 64 pixels or less, when the recipe is the one for a laptop, else of
384. What a study reads of a fine-tuning run joins its source, so give it both.

Runs that aren't finished, and fine-tuned ones, are no sources. The argument is part of what a trial
is named by: with another list of tasks all begin anew, so give another workdir. Hardware: whatever
trained the sources; at 32 pixels and for fewer than 20,000 examples about a CPU-minute a trial.
"""
import glob
import itertools
import pathlib

from big_transfer.data import examples
from big_transfer.data import tasks as tasks_lib
from big_transfer.models import published
from big_transfer.runs import configuring
from big_transfer.runs import records

SEEDS = (0, 1)
LAPTOP, LARGE = 64, 384  # pixels
# What a trial takes of the recipe for its task; all else is the base's.
VARIED = ("upstream", "image_size", "batch_size", "eval_batch_size", "total_steps", "optim.lr",
          "optim.schedule", "augment")


def get_config(argument):
  sources, tasks = _read(argument)
  config = _recipe(tasks[0], sources[0][2])
  config.name = ""
  config.evals.upstream.every = 1_000_000  # steps; more than any run takes
  return config


def get_sweep(argument):
  sources, tasks = _read(argument)
  for (source, name, side), task, seed in itertools.product(sources, tasks, SEEDS):
    recipe = configuring.plain(_recipe(task, side))
    varied = {key: recipe[key] if "." not in key else recipe["optim"][key.partition(".")[2]]
              for key in VARIED}
    yield {"name": f"{name}, {task}, seed {seed}", "init.source": source, "seed": seed, **varied}


def _recipe(task, side):
  path = pathlib.Path(__file__).parents[1] / "transfer" / "vit.py"
  return configuring.load(f"{path}:{task},{side}").unlock()


def _read(argument):
  """`[(source, its name, side of the images)]` and the tasks' names."""
  pattern, *names = [part.strip() for part in argument.split(",")]
  if not names:
    raise ValueError(f"{argument!r} names no task: expected PATTERN,TASK,…, such as "
                     "'runs/fractions/*,omniglot_small,digits' or 'ViT-B_16.npz,vtab1k'")
  tasks = list(dict.fromkeys(itertools.chain.from_iterable(
      tasks_lib.SUITES.get(name, (name,)) for name in names)))
  _check(tasks)
  sources, left_out = [], []
  for path in sorted(glob.glob(pattern)) or [pattern]:
    if path.endswith(".npz"):
      side = published.describe(published.load(path))["image_size"] or LARGE  # None of a ResNet
      sources.append((path, pathlib.PurePath(path).stem, side if side <= LAPTOP else LARGE))
    elif not (pathlib.Path(path) / records.RUN).exists():
      left_out.append(f"{path} is no run")
    elif "parameters_from" in (run := records.read_run(path)):
      left_out.append(f"{path} is an evaluation")
    elif run.get("status") != "finished":
      left_out.append(f"{path} is {run.get('status')}")
    elif run.get("setting", "upstream") != "upstream":
      left_out.append(f"{path} is fine-tuned itself")
    else:
      side = records.read_config(path)["image_size"]
      sources.append((path, run.get("name") or pathlib.PurePath(path).name,
                      side if side <= LAPTOP else LARGE))
  if not sources:
    raise ValueError(f"{pattern!r} matches no source: expected folders of finished runs, or "
                     f"published .npz files; {'; '.join(left_out[:3])}")
  return sources, tasks


def _check(tasks):
  """Tells all tasks that can't be fine-tuned on, before the first run."""
  missing = []
  for name in tasks:
    try:
      tasks_lib.resolve(name).open("train")
    except examples.MissingError as error:
      missing.append((name, error))
  if missing:
    flags = " ".join(f"--task {name}" for name, _ in missing)
    raise ValueError(
        f"{len(missing)} of {len(tasks)} tasks are missing: {', '.join(n for n, _ in missing)}. "
        f"{missing[0][1]} `python -m big_transfer.data doctor {flags}` says how to get them; or "
        "leave them out of the list")
