"""The live line of a run: step, loss, examples a second, time left."""
import collections
import sys
import time

CLEAR = "\r\033[K"  # to the start of the terminal's line, and empty it


class Progress:
  """Shows how far a run is; on a terminal on one line, else a line a time.

  Args:
    total_steps: of the run.
    step: where it starts or continues.
    batch_size: examples a step.
    members: how many runs are trained at once; loss and accuracies shown are then their means.
  """

  def __init__(self, total_steps, step, batch_size, members=1):
    self._total, self._batch_size = total_steps, batch_size * members
    self._members = f"{members} runs · " if members > 1 else ""
    self._last = (time.time(), step)
    self._rate = None  # steps a second, of the last stretch without evaluations
    self._evaluations = {}
    self._live = sys.stdout.isatty()

  def restart(self, step):
    """Forgets the time so far: the first step's, which is mostly compilation."""
    self._last = (time.time(), step)

  def evaluated(self, name, every, seconds):
    """Tells of an evaluation, whose time is not training's."""
    self._evaluations[name] = (every, seconds)
    self._last = (self._last[0] + seconds, self._last[1])

  def show(self, step, loss):
    """Prints the line."""
    now = time.time()
    began, begin = self._last
    line = f"{self._members}step {step}/{self._total} · loss {loss:.4g}"
    if step > begin:  # not right after `restart`, when nothing is known of the rate
      self._rate = (step - begin) / max(now - began, 1e-6)
      line += (f" · {self._rate * self._batch_size:,.0f} examples/s · {_clock(self._left(step))} "
               "left")
    self._last = (now, step)
    print(f"{CLEAR}{line}" if self._live else line, end="" if self._live else "\n", flush=True)

  def measured(self, step, rows):
    """Prints the accuracies of a step: upstream's, and the probes' of what the head sees."""
    groups = collections.defaultdict(list)
    for row in rows:
      if (row["metric"] == "accuracy" and row.get("value") is not None
          and row.get("layer", "pre_logits") == "pre_logits"):
        shots = f"@{row['shots']}" if row.get("shots") else ""
        if row.get("reason"):
          shots += f" ({row['examples_used']} examples)"
        groups[f"{row['task']}{shots}"].append(row["value"])
    text = " · ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in groups.items())
    if text:
      print(f"{CLEAR if self._live else ''}step {step} accuracy: {text}", flush=True)

  def end(self, text):
    """Prints the last word."""
    print(f"\n{text}" if self._live else text, flush=True)

  def _left(self, step):
    left = (self._total - step) / self._rate
    for every, seconds in self._evaluations.values():
      left += seconds * (-(-self._total // every) - step // every)
    return left


def _clock(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
