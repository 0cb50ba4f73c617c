"""What the layers and the head's settings show in the rows at hand, in sentences (see `findings`).

What Abnar et al. (arXiv:2110.02095, section 4; ICLR, appendices C and D) say of the head is tested
part by part: that raising its weight decay, or lowering its learning rate, costs upstream accuracy,
helps tasks related to upstream, and moves margin and norm from the head to the body. A part holds
where intervals say so, fails where they say the opposite, holds on one side of a setting where a
curve turns there (see `head`), and is else undecided.
"""
import collections
import functools

import numpy as np
from scipy import stats

from big_transfer.study import ablations, effect_words, ranks, table
from big_transfer.study.figures import head, layers, style

_WORDS = {"head_decay": "head weight decay", "head_rate": "head learning rate"}
_RAISING = {"head_decay": "raising the head's weight decay",
            "head_rate": "lowering the head's learning rate"}
# The sign of a slope, over the logarithm of a factor, that is that of what the paper speaks of.
_SIGN = {"head_decay": 1, "head_rate": -1}
_VERDICTS = {1: "rises", -1: "falls"}
_ORDERS = 9999  # that a p value takes: of up to seven tasks all, of more so many drawn
_POOLED = "over all runs, architectures pooled"  # what correlations are of
_ENDS = 3  # tasks named at either end of an order
_CELL = ("task", "variant", "setting", "shots")


def _name(line):
  return style.cell_name([None, *(line[name] for name in _CELL[:3])])


def _tasks(number):
  return f"{number} task" + ("s" if number != 1 else "")


def _percent(value, digits=1):
  return f"{100 * value:.{digits}f} %"


@functools.lru_cache(maxsize=256)
def _spearman(xs, ys):
  """(Spearman's correlation, its p value over orders: that of the t distribution is far off where
  there are few)."""
  x, y = (stats.rankdata(side) - (len(side) + 1) / 2 for side in (xs, ys))
  found = stats.permutation_test(
      (x,), lambda x, axis: np.sum(x * y, axis=axis) / np.sqrt((x * x).sum(axis) * (y @ y)),
      vectorized=True, permutation_type="pairings", n_resamples=_ORDERS, rng=0)
  return float(found.statistic), float(found.pvalue)


def _correlated(pairs, words):
  """Spearman's correlation of pairs, in words, or nothing where there are too few."""
  if len(pairs) < ranks.MIN_RUNS or any(len(set(side)) < 2 for side in zip(*pairs)):
    return ""
  correlation, p_value = _spearman(*zip(*pairs))
  return (f" {words}: Spearman's correlation {correlation:+.2f} over {_tasks(len(pairs))} "
          f"(p = {p_value:.2g}).").replace("-", "−")


def _counted(verdicts):
  counts = collections.Counter(verdict or "undecided" for verdict in verdicts)
  bends = "".join(f", {counts[verdict]} {words}" for verdict, words in (
      ("peaks", "up and then down"), ("dips", "down and then up")) if counts[verdict])
  return f"{counts['rises']} up, {counts['falls']} down{bends} and {counts['undecided']} undecided"


def _outcome(verdicts, sign):
  """What verdicts say of a claim that things go in the direction of `sign`, in a few words."""
  counts = collections.Counter(verdicts)
  right, wrong = counts[_VERDICTS[sign]], counts[_VERDICTS[-sign]]
  bent, number = sum(counts[verdict] for verdict in effect_words.BENDS), len(verdicts)
  if bent:
    parts = [(right, "holds for"), (wrong, "fails for"),
             (bent, "holds only to one side of a setting for")]
    return " and ".join(f"{words} {many}" for many, words in parts if many) + f" of {number} here"
  if not right + wrong:
    return "is undecided here"
  if right and wrong:
    return f"holds for {right} and fails for {wrong} of {number} here"
  words = "holds here" if right else "fails here, the opposite is seen"
  return words + ("" if right + wrong == number else
                  f" where it is decided, for {right + wrong} of {number}")


def _claims(factor, parts):
  """The paper's claim, part by part: (what is said to follow, how that came out) each."""
  return (f"What the paper finds of {_RAISING[factor]}, part by part, over all settings: "
          + "; ".join(f"that {what} {outcome}" for what, outcome in parts) + ".")


def _run(line):
  """A run's name, with its model where the name doesn't say it."""
  name, model = line["run_name"] or line["run_id"], line["model"]
  return name if not model or model in name else f"{model} (run {name})"


def overlay(tables, upstream, shots):
  """Which layer of the run best upstream is best on each task."""
  lines = [line for line in layers.lines_of(tables.get("explained"), upstream=upstream,
                                            measure=shots)
           if line["run_id"] is not None and line["earliest_depth_share"] is not None]
  if not lines:
    return None
  runs = {line["run_id"]: _run(line) for line in lines}
  early = sorted((line for line in lines if line["earliest_depth_share"] < 1.0),
                 key=lambda line: line["earliest_depth_share"])
  text = (f"Of the runs with probes of several layers the best upstream is {_some(runs.values())}. "
          f"On {len(early)} of {_tasks(len(lines))} one of its layers before pre_logits does as "
          "well as its best, as far as the probes' seeds tell")
  if early:
    text += ": " + _some(f"{_name(line)} ({line['earliest_layer']}, "
                         f"{_percent(line['earliest_depth_share'], 0)} of the depth)"
                         for line in early)
  gains = sorted((line for line in lines if line["last_layer_gain"] is not None),
                 key=lambda line: line["last_layer_gain"])
  if gains:
    ends = {f"{100 * line['last_layer_gain']:.1f}": _name(line) for line in (gains[-1], gains[0])}
    text += (". Its best layer is above pre_logits by "
             + (" to ".join(f"{gain} ({name})" for gain, name in reversed(ends.items()))
                if len(ends) > 1 else next(iter(ends)))
             + " points, in part by the luck of being picked as the best of several")
  if any(line["status"] == "one seed" for name in runs for line in layers.lines_of(
      tables.get("best_layers"), ["status"], run_id=name, upstream=upstream, measure=shots)):
    text += (". Where a task has one probe seed the earliest is the best layer itself, and what is "
             "chance isn't known")
  pairs = [(line["correlation"], line["earliest_depth_share"]) for line in lines
           if line["correlation"] is not None]
  return text + "." + _correlated(
      pairs, "The paper finds tasks unlike upstream best at lower layers. Here, that depth against "
             f"the task's correlation with upstream accuracy {_POOLED}")


def _some(words, most=6):
  words = list(words)
  return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def curves(tables, upstream, shots):
  """How deep each family's runs reach their best, over all runs with layers."""
  found = {}
  for line in layers.lines_of(
      tables.get("best_layers"), [*_CELL[:3], "run_id", "family", "earliest_depth_share", "gain"],
      upstream=upstream, measure=shots):
    if line["earliest_depth_share"] is not None and line["gain"] is not None:
      found.setdefault(style.family_name(line["family"]), []).append(line)
  said = []
  for family, lines in sorted(found.items()):
    runs, tasks = len({line["run_id"] for line in lines}), len({_name(line) for line in lines})
    said.append(
        f"{family} ({runs} run{'s' if runs != 1 else ''}, {_tasks(tasks)}): the earliest layer "
        "that reaches the best lies at "
        f"{_percent(np.mean([line['earliest_depth_share'] for line in lines]), 0)} of the depth "
        "on average, before pre_logits in "
        f"{_percent(np.mean([line['earliest_depth_share'] < 1.0 for line in lines]), 0)} of the "
        "cases; the best is above pre_logits by "
        f"{100 * np.mean([line['gain'] for line in lines]):.1f} points on average, in part by the "
        "luck of being picked.")
  return " ".join(said) or None


def _effects(tables, factor, upstream, *quantities):
  """{series: lines} of the effects of a factor; what is pooled last."""
  found = {}
  for line in tables.get("head_effects", ()):
    if (line["factor"] == factor and line["upstream"] == upstream
        and line["quantity"] in quantities and line["slope"] is not None):
      found.setdefault(line["series"], []).append(line)
  order = sorted(found, key=lambda name: (name == ablations.ALL, name))
  return {name: found[name] for name in order}


def _pooled(by_series):
  return by_series.get(ablations.ALL) or next(iter(by_series.values()))


def _single(tables, factor, upstream, *quantities):
  """({series: lines} of the effects but what is pooled, the names of those that are drawn)."""
  by_series = _effects(tables, factor, upstream, *quantities)
  single = {name: lines for name, lines in by_series.items() if name != ablations.ALL} or by_series
  return single, head.series_of(tables, factor, upstream)[1] or list(single)


def _by_series(by_series, chosen):
  """The verdicts of the single series on one quantity, where there are several."""
  words = [f"{name}: {effect_words.with_verdict(line)}" for name, lines in by_series.items()
           if name != ablations.ALL for line in lines if chosen(line)]
  return f" By series, {_some(words)}." if len(words) > 1 else ""


def _related(tables, upstream, shots):
  """The upper half of the tasks by their correlation with upstream accuracy, of those above 0: a
  set of (task, variant, setting)."""
  known = {(line["row"], line["variant"], line["setting"]): line["correlation"]
           for line in tables.get("spearman", ())
           if line["upstream"] == upstream and table.measure(line) == shots
           and line["column"] == ranks.UPSTREAM and line["correlation"] is not None}
  if not known:
    return set()
  middle = float(np.median(list(known.values())))
  return {key for key, value in known.items() if value >= max(middle, 1e-12)}


def _without_seeds(lines):
  return all(line["status"] == "one seed" for line in lines)


def head_accuracy(factor, tables, upstream, shots):
  """What a setting of the head does to accuracy upstream and downstream."""
  by_series = _effects(tables, factor, upstream, "us", "ds")
  if not by_series:
    return None
  pooled = _pooled(by_series)
  us = next((line for line in pooled if line["quantity"] == "us"), None)
  tasks = [line for line in pooled if line["quantity"] == "ds" and table.measure(line) == shots]
  said = [_settings(tables, factor, upstream, pooled[0])]
  if us:
    said.append(f"A decade more {_WORDS[factor]} changes upstream accuracy by "
                f"{effect_words.with_verdict(us)}."
                + _by_series(by_series, lambda line: line["quantity"] == "us"))
  if tasks:
    ends = sorted(tasks, key=lambda line: line["slope"])
    said.append(
        f"Of {_tasks(len(tasks))} at {style.shots_name(shots)}, "
        f"{_counted(line['verdict'] for line in tasks)}; "
        + ("from " if len(tasks) > 1 else "")
        + " to ".join(dict.fromkeys(f"{effect_words.interval(line, 'slope')} ({_name(line)})"
                                    for line in (ends[0], ends[-1]))) + ".")
  every = [line for line in pooled if line["quantity"] == "ds"]
  if _without_seeds(pooled):
    return " ".join(said + ["With one run seed a setting and series, chance can't be told from "
                            "effect, so every part of the paper's claim is undecided here."])
  if len(every) > len(tasks):
    said.append(f"Of all {len(every)} tasks × numbers of shots, "
                f"{_counted(line['verdict'] for line in every)}.")
  if every:
    said.append(f"Intervals are nominally {_percent(pooled[0]['level'], 0)}: if there were no "
                f"effect at all, about {(1.0 - pooled[0]['level']) * len(every):.1f} of these "
                f"{len(every)} would still be called one or the other.")
  parts = []
  if us:
    parts.append(("it costs upstream accuracy", _outcome([us["verdict"]], -_SIGN[factor])))
  related = _related(tables, upstream, shots)
  mine = [line["verdict"] for line in tasks
          if (line["task"], line["variant"], line["setting"]) in related]
  if mine:
    parts.append((f"it helps tasks related to upstream (here the {len(mine)} of {len(tasks)} that "
                  f"upstream accuracy ranks best {_POOLED})", _outcome(mine, _SIGN[factor])))
  return " ".join(said + ([_claims(factor, parts)] if parts else []))


def _settings(tables, factor, upstream, line):
  every, drawn = head.series_of(tables, factor, upstream)
  seeds = f"{line['seeds']} run seed{'s' if line['seeds'] != 1 else ''}"
  series = (f"{line['pooled']} of {len(every)} series pooled, with {seeds} taken together"
            if line["series"] == ablations.ALL and len(every) > 1
            else f"{every[0] if every else line['series']}, {seeds}")
  text = (f"{line['settings']} settings from {line['lowest']:g} to {line['highest']:g}; {series}.")
  if len(drawn) < len(every):
    text += f" The figures draw the {len(drawn)} series with most runs, the table has all."
  return text


def head_best(factor, tables, upstream, shots):
  """Whether tasks want another setting of the head than upstream accuracy does."""
  mine = [line for line in tables.get("head_best", ()) if line["factor"] == factor
          and line["upstream"] == upstream and line["best"] is not None]
  names = {line["series"] for line in mine}
  if not names:
    return None
  series = ablations.ALL if ablations.ALL in names else min(names)
  mine = [line for line in mine if line["series"] == series]
  us = next((line for line in mine if line["task"] is None), None)
  tasks = [line for line in mine if line["task"] is not None and table.measure(line) == shots]
  if not us or not tasks:
    return None
  counts = collections.Counter(int(np.sign(line["best"] - us["best"])) for line in tasks)
  text = (f"Upstream accuracy is highest at a {_WORDS[factor]} of {us['best']:g}"
          f"{_end(tables, factor, upstream, us['best'])}{_range(us)}. Of {_tasks(len(tasks))}, a "
          f"higher one is best for {counts[1]}, a lower one for {counts[-1]}, the same for "
          f"{counts[0]}")
  ranged = [line for line in tasks if line["best_low"] is not None]
  if us["best_low"] is not None and ranged:
    sides = ["rises" if line["best_low"] > us["best_high"] else
             "falls" if line["best_high"] < us["best_low"] else None for line in ranged]
    apart = [line for line, side in zip(ranged, sides) if side]
    text += (f"; for {len(apart) or 'none'} of them"
             + (f" ({_some(map(_name, apart))})" if apart else "")
             + " do all the settings that may be best lie above, or all below, those that may be "
               "best upstream")
    related = _related(tables, upstream, shots)
    sides = [side for line, side in zip(ranged, sides)
             if (line["task"], line["variant"], line["setting"]) in related]
    if sides:
      text += (f". What the paper finds, that tasks related to upstream (here {len(sides)}) are "
               f"best at a {'higher' if _SIGN[factor] > 0 else 'lower'} one than upstream "
               f"accuracy, {_outcome(sides, _SIGN[factor])}")
  text += "."
  gains = sorted(line["gain"] for line in tasks
                 if line["gain"] is not None and line["best"] != line["neutral"])
  if gains:
    sure = sum(line["gain_low"] is not None and line["gain_low"] > 0 for line in tasks)
    neutral = _some(sorted({f"{line['neutral']:g}" for line in tasks}))
    text += (f" Where it isn't the neutral setting, {neutral}, a task's best "
             f"gains {_range_of(gains)} points over that, "
             + (f"with an interval above 0 for {sure} of {len(gains)}" if any(
                 line["gain_low"] is not None for line in tasks)
                else "with one run seed and so no interval")
             + ", in part by the luck of being picked as the best.")
  return text + _correlated(
      [(line["correlation"], line["best"]) for line in tasks if line["correlation"] is not None],
      f"The best setting against the task's correlation with upstream accuracy {_POOLED}")


def _range_of(shares):
  return " to ".join(dict.fromkeys(f"{100 * share:.1f}" for share in (shares[0], shares[-1])))


def _end(tables, factor, upstream, value):
  """A warning where nothing beyond a setting was tried."""
  tried = [line["value"] for line in tables.get("head_curves", ()) if line["quantity"] == "us"
           and (line["factor"], line["upstream"]) == (factor, upstream)]
  ends = {min(tried, default=None): "lowest", max(tried, default=None): "highest"}
  return f", the {ends[value]} tried" if value in ends else ""


def _range(line):
  if line["best_low"] is None:
    return ""
  return (" (told from all others)" if line["best_low"] == line["best_high"] else
          f" (not told from it: {line['best_low']:g} to {line['best_high']:g})")


def margins(factor, tables, upstream, _):
  """Whether margins move from the last layer to the body."""
  single, drawn = _single(tables, factor, upstream, "margin", "margin_normalised")
  said, outcomes = [], []
  for name, lines in single.items():
    for quantity, words in (("margin", "raw"), ("margin_normalised", "normalised")):
      body = [line["verdict"] for line in lines
              if line["quantity"] == quantity and line["layer"] != "pre_logits"]
      last = next((line for line in lines if line["quantity"] == quantity
                   and line["layer"] == "pre_logits"), None)
      text = (f"{name}, {words}: of {len(body)} layers of the body (stem and blocks), "
              f"{_counted(body)}")
      if last:
        text += f"; pre_logits {effect_words.with_verdict(last)}"
      outcomes += [(words, verdict) for verdict in body]
      if (body or last) and name in drawn:
        said.append(text + ".")
  if not said:
    return None
  said.insert(0, f"Slopes of the median margin over a decade of {_WORDS[factor]}.")
  if all(_without_seeds(lines) for lines in single.values()):
    return " ".join(said + ["With one run seed a setting, nothing can be decided."])
  parts = [(f"the {kind} margins of the body's layers rise",
            _outcome([verdict for words, verdict in outcomes if words == kind], _SIGN[factor]))
           for kind in dict.fromkeys(words for words, _ in outcomes)]
  return " ".join(said + ([_claims(factor, parts)] if parts else []))


def norms(factor, tables, upstream, _):
  """Whether norm moves from the head to the body."""
  by_series = _effects(tables, factor, upstream, "l2_norm")
  if not by_series:
    return None
  pooled = _pooled(by_series)
  said, claims = [], []
  for part, words, sign in (("head", "L2 norm of the head", -1),
                            ("body", "sum of the L2 norms of all other layers", 1)):
    line = next((line for line in pooled if line["layer"] == part), None)
    if line:
      said.append(f"A decade more {_WORDS[factor]} changes the {words} by "
                  f"{effect_words.with_verdict(line)}."
                  + _by_series(by_series, lambda line, part=part: line["layer"] == part))
      claims.append((f"the {part}'s norm {_VERDICTS[sign]}",
                     _outcome([line["verdict"]], sign * _SIGN[factor])))
  if not said:
    return None
  if _without_seeds(pooled):
    return " ".join(said + ["With one run seed a setting, nothing can be decided."])
  return " ".join(said + [_claims(factor, claims)])


def layer_norms(factor, tables, upstream, _):
  """In which layers the norm moves, series by series."""
  single, drawn = _single(tables, factor, upstream, "l2_norm")
  said = []
  for name, lines in single.items():
    body = sorted((line for line in lines if line["layer"] not in ("head", "body")),
                  key=lambda line: line["slope"])
    if body and name in drawn:
      ends = dict.fromkeys(f"{effect_words.interval(line, 'slope')} ({line['layer']})"
                           for line in (body[0], body[-1]))
      said.append(f"{name}: of {len(body)} layers below the head, "
                  f"{_counted(line['verdict'] for line in body)}; "
                  + ("from " if len(ends) > 1 else "") + " to ".join(ends) + ".")
  return " ".join([f"Slopes of the L2 norm over a decade of {_WORDS[factor]}.", *said]
                  ) if said else None


def _of_task(line):
  words = f"rank correlation {line['correlation']:+.2f}"
  if line["correlation_within"] is not None:
    words += f" and {line['correlation_within']:+.2f} within architectures"
  parts = [words.replace("-", "−")]
  if line["saturation_status"] == "ok":
    parts.append(f"saturation value {_percent(line['saturation'])}")
  if line["earliest_layer"] is not None:
    parts.append(f"best as early as {line['earliest_layer']}")
  return f"{_name(line)} ({', '.join(parts)})"


def by_task(tables, upstream, shots):
  """What goes with saturation, over the tasks."""
  lines = layers.lines_of(tables.get("explained"), upstream=upstream, measure=shots)
  known = [line for line in lines if line["saturation_status"] == "ok"]
  if not lines:
    return None
  ranked = sorted((line for line in lines if line["correlation"] is not None),
                  key=lambda line: -line["correlation"])
  text = ""
  if ranked:
    text = (f"From the tasks that upstream accuracy ranks best ({_POOLED}) to those it ranks "
            "worst: "
            + "; ".join(_of_task(line) for line in ranked[:_ENDS]
                        + ranked[_ENDS:][-_ENDS:])
            + (", those between left out" if len(ranked) > 2 * _ENDS else "") + ". ")
  text += f"Of {_tasks(len(lines))}, {len(known)} have an identified saturation value."
  for name, words in (("correlation", f"correlation with upstream accuracy {_POOLED}"),
                      ("mean_earliest_depth_share", "mean depth, over runs, of the earliest layer "
                                                    "that reaches the best")):
    text += _correlated([(line["saturation"], line[name]) for line in known
                         if line[name] is not None], f"Saturation value against {words}")
  return text


FINDINGS = {"layer_overlay": overlay, "layer_curves": curves, "explained": by_task}
FINDINGS |= {f"{factor}_{name}": functools.partial(make, factor) for factor in head.FACTORS
             for name, make in (("accuracy", head_accuracy), ("best", head_best),
                                ("margins", margins), ("norms", norms),
                                ("layer_norms", layer_norms))}
