"""What is ready, what is missing and how to get it, what is broken.

    python -m big_transfer.data doctor                          # the 25 tasks of the paper
    python -m big_transfer.data doctor --suite vtab1k main --data-dir /data/tfds
    python -m big_transfer.data doctor --task pets cifar100:vtab1k \\
        '{"name": "mine", "source": "folder:/data/birds"}'
    python -m big_transfer.data doctor --commands > prepare.sh  # what to run, once

Exit status: 0 if all is ready, 1 if something is missing or broken, 2 for a wrong command line.
"""
import argparse
import dataclasses
import json
import pathlib
import shlex
import sys

from big_transfer.data import doctor
from big_transfer.data import tasks as tasks_lib
from big_transfer.data import tfds_records

DEEP = "read every label, decode some examples of every file, print VTAB-1k's fingerprints"


def main(argv: list[str] | None = None) -> int:
  """Runs a command line, without the program's name; returns the exit status."""
  parser = _parser()
  flags = parser.parse_args(argv)
  try:
    chosen = _tasks(flags.suite, flags.task)
    found = doctor.examine(chosen, flags.data_dir, flags.deep)
  except ValueError as error:
    parser.error(str(error))
  root = tfds_records.data_root(flags.data_dir)
  if flags.commands:
    lines = doctor.script(found)
    print("\n".join(lines or ["# nothing to prepare"]))
  elif flags.json:
    summary = {"data_dir": str(root), **_totals(found), "free_bytes": doctor.free_bytes(root)}
    print(json.dumps({**summary, "tasks": [dataclasses.asdict(d) for d in found]}, indent=1))
  else:
    print("\n".join(_report(found, root, _again(flags))))
  return 0 if all(d.state == "ready" for d in found) else 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m big_transfer.data")
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  command = commands.add_parser("doctor", help="say of each task: ready, missing or broken",
                                description="Says of each task: ready, missing (and what it "
                                            "takes to get it), or broken. Nothing is downloaded.")
  command.add_argument("--suite", nargs="+", action="extend", default=[], metavar="NAME",
                       help=f"suites of tasks: {', '.join(tasks_lib.SUITES)} (default: paper)")
  command.add_argument("--task", nargs="+", action="extend", default=[], metavar="TASK",
                       help="tasks by name, NAME:VARIANT, or a JSON mapping as in a config")
  command.add_argument("--data-dir", metavar="DIR",
                       help="where TFDS's datasets are (default: $TFDS_DATA_DIR, else "
                            "~/tensorflow_datasets)")
  command.add_argument("--deep", action="store_true", help=DEEP)
  output = command.add_mutually_exclusive_group()
  output.add_argument("--json", action="store_true", help="print all there is to know as JSON")
  output.add_argument("--commands", action="store_true",
                      help="print only the commands that prepare what isn't ready, for a shell")
  return parser


def _tasks(suites: list[str], names: list[str]) -> list[tasks_lib.Task]:
  """The tasks asked for, each once."""
  chosen = [task for suite in suites or ([] if names else ["paper"])
            for task in tasks_lib.suite(suite)]
  for name in names:
    try:
      chosen.append(tasks_lib.resolve(json.loads(name) if name.startswith("{") else name))
    except json.JSONDecodeError as error:
      raise ValueError(f"task {name!r} is no JSON ({error}); expected a name, or a mapping such "
                       """as '{"name": "mine", "source": "folder:/data/birds"}'""") from error
  return list({json.dumps(task.spec, sort_keys=True): task for task in chosen}.values())


def _again(flags) -> str:
  """The command line, for --commands."""
  words = [*(["--suite", *flags.suite] if flags.suite else []),
           *(["--task", *flags.task] if flags.task else []),
           *(["--data-dir", flags.data_dir] if flags.data_dir else []), "--commands"]
  return shlex.join(["python", "-m", "big_transfer.data", "doctor", *words])


def _totals(found: list[doctor.Diagnosis]) -> dict:
  """Numbers of tasks in each state; bytes of what is missing or broken, each dataset once."""
  counts = {state: sum(d.state == state for d in found) for state in ("ready", "missing", "broken")}
  datasets = {d.command: d for d in found if d.command}.values()
  sizes = {name: sum(getattr(d, name) or 0 for d in datasets)
           for name in ("download_bytes", "prepared_bytes")}
  return {**counts, **sizes,
          "sizes_unknown": sum(d.prepared_bytes is None or d.download_bytes is None
                               for d in datasets),
          "by_hand": sum(d.manual is not None for d in datasets)}


def _report(found: list[doctor.Diagnosis], root: pathlib.Path, commands: str) -> list[str]:
  """The lines for people."""
  width = max(len(_name(d)) for d in found)
  lines, told = [], {}
  for d in found:
    head = f"{d.state:8} {_name(d):{width}}  "
    if d.command in told:
      lines.append(f"{head}{d.reason}; the dataset of {told[d.command]}")
      continue
    if d.command:
      told[d.command] = _name(d)
    first, *others = _ready(d) if d.state == "ready" else _to_get(d)
    lines += [head + first, *(" " * (len(head)) + line for line in others)]
  totals = _totals(found)
  least = "at least " if totals["sizes_unknown"] else ""
  parts = [f"{totals['ready']} ready", f"{totals['missing']} missing", f"{totals['broken']} broken"]
  if told:
    download, prepared = (least + _gigabytes(totals[f"{what}_bytes"]) if totals[f"{what}_bytes"]
                          else "unknown sizes" for what in ("download", "prepared"))
    hands = totals["by_hand"]
    by_hand = f" and {hands} dataset{'s' if hands > 1 else ''} by hand" if hands else ""
    free = doctor.free_bytes(root)
    wanted = totals["download_bytes"] + totals["prepared_bytes"]
    parts += [f"{download} to download{by_hand}", f"{prepared} prepared",
              f"{_gigabytes(free)} free in {root}" + (", too little" if wanted > free else "")]
  lines += ["", ", ".join(parts)]
  if told:
    lines += ["Preparing needs TensorFlow, once, in an environment of its own. All commands:",
              "  " + commands]
  return lines


def _ready(d: doctor.Diagnosis) -> list[str]:
  counts = ", ".join(f"{count:,} {split}" for split, count in d.examples.items())
  first = "  ".join(filter(None, [counts, d.version, d.folder]))
  return [first, f"VTAB-1k {d.fingerprint}"] if d.fingerprint else [first]


def _to_get(d: doctor.Diagnosis) -> list[str]:
  """Why a task isn't ready, and what to do about it."""
  sizes = [f"{_gigabytes(d.download_bytes)} to download" if d.download_bytes else None,
           f"{_gigabytes(d.prepared_bytes)} prepared" if d.prepared_bytes else None]
  lines = ["; ".join(filter(None, [d.reason, *sizes]))]
  if d.manual:
    lines.append(f"by hand first, {d.manual}")
  if d.aside:
    lines.append(doctor.moving(d.aside))
  return [*lines, d.command] if d.command else lines


def _name(d: doctor.Diagnosis) -> str:
  return d.task if d.variant == "full" else f"{d.task}:{d.variant}"


def _gigabytes(count: int) -> str:
  return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
  sys.exit(main())
