"""Controlled scaling: is it the same curve whichever is scaled, data, model or epochs (Fig. 4)?

Abnar et al., arXiv:2110.02095, section 2.3 (section 3 at ICLR), scale one of the three at a time
and find the runs on one curve of downstream against upstream accuracy: given upstream accuracy,
scale adds nothing. `series` finds such runs, `tests` asks whether the claim holds.

A series is a set of runs after one upstream that differ in one factor, with all else equal that is
known of them: the base config, what they override of it (but for the factor's own keys, seeds and
names), family and model, learning rate, batch size, share and number of upstream examples, epochs.
So both a design that crosses the factors and one that varies each from a default are found. Epochs
are compared, not steps, since with fewer examples as many epochs take fewer steps; epochs that
differ by at most one step's worth are equal. Model size is varied within a family at one patch
size (the number after a "/" that ends a model's label). Seeds may differ: they are chance, not a
setting.

A user's table holds no overrides: there the runs of a series are equal in what the table tells of
them, be it nothing, and may differ in anything else. The lines say so ('uncontrolled').

Shape legend: U runs, N points of a cell, S series.
"""
import numpy as np
import pyarrow as pa
from scipy import stats

from big_transfer.study import laws, partial, settings, table

FACTORS = ("data", "model", "epochs")
# What each factor changes of a config; these keys say nothing of what is held fixed.
_KEYS = {"data": ("upstream.fraction",), "model": ("model",), "epochs": ()}
_FREE = {"data": ("data", "examples"), "model": ("model", "parameters"), "epochs": ("epochs",)}
# Accuracy per doubling: a factor that adds less, given upstream accuracy, adds nothing of use.
NEGLIGIBLE = 0.01

CONTROLLED_COLUMNS = table.CELL_COLUMNS | {
    "factor": ("VARCHAR", "what differs in the series: 'data', 'model' or 'epochs'"),
    "series": ("VARCHAR", "what is held fixed, as far as it differs between series"),
    "run_id": table.RUN_COLUMNS["run_id"],
    "value": ("DOUBLE", "the factor's value"),
    "unit": ("VARCHAR", "its unit: 'fraction' or 'examples'; 'parameters'; 'epochs'"),
    "us": ("DOUBLE", "accuracy upstream"),
    "ds": ("DOUBLE", "accuracy downstream"),
    "residual_hull": ("DOUBLE", "ds less Eq. 1 fitted to the upper hull; null without a fit"),
    "residual_all": ("DOUBLE", "ds less Eq. 1 fitted to all points; null without a fit"),
    "controlled": ("BOOLEAN", "whether settings are known, so that all else is equal"),
}
TEST_COLUMNS = table.CELL_COLUMNS | {
    "factor": CONTROLLED_COLUMNS["factor"],
    "unit": CONTROLLED_COLUMNS["unit"],
    "runs": ("BIGINT", "runs in series"),
    "series": ("BIGINT", "series"),
    "doublings": ("DOUBLE", "largest range of the factor in a series, as a power of 2"),
    "spread_us": ("DOUBLE", "range of upstream accuracy of the runs in series"),
    "curve": ("VARCHAR", "the runs that say what the curve is: 'series', or 'all runs' of the cell "
                         "where those in series are too few"),
    "partial_r2": ("DOUBLE", "share of what the curve leaves of the runs in series that the "
                             "factor's logarithm explains"),
    "slope": ("DOUBLE", "accuracy downstream per doubling of the factor, given upstream accuracy"),
    "slope_low": ("DOUBLE", "low end of its interval"),
    "slope_high": ("DOUBLE", "high end of its interval"),
    "slope_noise": ("DOUBLE", "slope to expect from the standard error of upstream accuracy alone; "
                              "null where that error is unknown"),
    "level": ("DOUBLE", "nominal coverage of the interval"),
    "p_value": ("DOUBLE", "of no slope; with many cells some are small by chance"),
    "same_curve": ("VARCHAR", f"'yes': the interval lies within {NEGLIGIBLE:g} of 0; 'no': it "
                              "excludes 0 (and what noise explains); else 'undecided'"),
    "status": ("VARCHAR", "'ok', 'uncontrolled' or 'left out'"),
    "reason": ("VARCHAR", "why the status isn't ok"),
}


class _Runs:
  """What is known of each run, and the series they form; once for all cells."""

  def __init__(self, points):
    self.names = points.of_runs("run_id")
    of = {name: points.of_runs(name) for name in (
        "upstream", "parameters", "upstream_fraction", "upstream_train_examples", "epochs",
        "overrides")}
    by_fraction = bool((of["upstream_fraction"] < 1.0).any())
    self.values = {"data": of["upstream_fraction" if by_fraction else "upstream_train_examples"],
                   "model": of["parameters"], "epochs": of["epochs"]}
    self.units = {"data": "fraction" if by_fraction else "examples", "model": "parameters",
                  "epochs": "epochs"}
    self.family = points.of_runs("family")
    self.controlled = np.array([text is not None for text in of["overrides"]])
    known, self.series = settings.known(points), {}
    for factor in FACTORS:
      value_U = self.values[factor]
      self.series[factor] = settings.numbered(
          [_fixed(factor, of_run) for of_run in known], of["upstream"],
          np.where(value_U > 0, value_U, np.nan))


def _fixed(factor, known):
  """What a run of a series has in common with the others: {name: value}."""
  return {name: value for name, value in known.items() if name not in _FREE[factor] and not any(
      (name + ".").startswith(f"{settings.OVERRIDE}{own}.") for own in _KEYS[factor])}


def _in_cell(runs, factor, view):
  """Each point's series, -1 where it has none in this cell, and its value of the factor."""
  number_N = runs.series[factor][0][view.run].copy()
  value_N = runs.values[factor][view.run]
  if (number_N >= 0).any():
    inside = np.flatnonzero(number_N >= 0)
    size = number_N.max() + 1
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, number_N[inside], value_N[inside])
    np.maximum.at(high, number_N[inside], value_N[inside])
    number_N[inside[(low == high)[number_N[inside]]]] = -1
  return number_N, value_N


def series(points, fits):
  """The runs of controlled series, with what they are above or below the fitted laws.

  Args:
    points: `table.Points`; a run counts at its last evaluation.
    fits: dicts with `saturation.FIT_COLUMNS`, of the same points.

  Returns:
    An Arrow table of `CONTROLLED_COLUMNS` (a crossed sweep has up to three lines a point, too many
    for dicts), by cell, factor and series, values rising.
  """
  runs = _Runs(points)
  curves = {(*(fit[name] for name in table.CELL), fit["fit"]):
            [fit["k"], fit["alpha"], fit["e_IR"]] for fit in fits if fit["k"] is not None}
  schema = pa.schema([(name, table.ARROW[kind])
                      for name, (kind, _) in CONTROLLED_COLUMNS.items()])
  parts = []
  for view in points:
    last = view.take(view.last)
    for factor in FACTORS:
      number_N, value_N = _in_cell(runs, factor, last)
      chosen = np.lexsort((value_N, number_N))
      chosen = chosen[number_N[chosen] >= 0]
      if not chosen.size:
        continue
      us, ds, texts = last.us[chosen], last.ds[chosen], runs.series[factor][1]
      columns = view.cell._asdict() | {"factor": factor, "unit": runs.units[factor]}
      columns = {name: pa.repeat(pa.scalar(value, schema.field(name).type), chosen.size)
                 for name, value in columns.items()}
      columns |= {"series": [texts[number] for number in number_N[chosen]],
                  "run_id": runs.names[last.run[chosen]], "value": value_N[chosen], "us": us,
                  "ds": ds, "controlled": runs.controlled[last.run[chosen]]}
      for kind in ("hull", "all"):
        curve = curves.get((*view.cell, kind))
        columns[f"residual_{kind}"] = pa.nulls(chosen.size, pa.float64()) if curve is None else (
            ds - 1.0 + laws.SATURATING.predict(curve, 1.0 - us))
      parts.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
  return pa.concat_tables(parts) if parts else schema.empty_table()


class _Comparison:
  """The runs of a cell that are in series of a factor; the same for all tasks that they share."""

  def __init__(self, runs, factor, view):
    self.run, self.us = view.run, view.us
    number_N, value_N = _in_cell(runs, factor, view)
    inside_N = number_N >= 0
    numbers, values = number_N[inside_N], value_N[inside_N]
    self.line = {"factor": factor, "unit": runs.units[factor], "runs": numbers.size,
                 "series": np.unique(numbers).size}
    if not numbers.size:
      known = np.isfinite(value_N).any()
      self.problem = (f"no two runs differ in {self.line['unit']} with all else equal" if known else
                      f"no run's {self.line['unit']} are known")
      return
    self.caveat = None if runs.controlled[view.run[inside_N]].all() else (
        "the table holds no settings, so that the runs of a series may differ in more than "
        + self.line["unit"])
    span_S = [np.ptp(np.log2(values[numbers == number])) for number in np.unique(numbers)]
    self.line |= {"doublings": float(max(span_S)),
                  "spread_us": float(np.ptp(view.us[inside_N]))}
    self._compared = np.flatnonzero(inside_N)
    self._design = partial.Design(view.us[inside_N], numbers, values)
    self.line["curve"] = "series"
    if not self._design.enough:
      families = np.unique(runs.family[view.run].astype(str), return_inverse=True)[1]
      self._compared = np.arange(view.run.size)
      self._design = partial.Design(view.us, np.where(inside_N, number_N, -1 - families), value_N)
      self.line["curve"] = "all runs"
    self.problem = self._design.problem if self._design.enough else (
        f"{view.run.size} runs, {numbers.size} of them in series, are too few for a curve, a "
        "constant for each series and a slope")

  def serves(self, view):
    """Whether another cell has the same runs."""
    return np.array_equal(self.run, view.run) and np.array_equal(self.us, view.us)

  def tested(self, view, level):
    """Columns of the cell's line."""
    if self.problem:
      return self.line | {"status": "left out", "reason": self.problem}
    effect = self._design.effect(view.ds[self._compared], view.us_error[self._compared])
    reach = float(effect.error * stats.t.ppf(0.5 + level / 2.0, effect.free))
    low, high = effect.slope - reach, effect.slope + reach
    p_value = (2.0 * float(stats.t.sf(abs(effect.slope) / effect.error, effect.free))
               if effect.error > 0 else float(effect.slope == 0.0))
    return self.line | {
        "partial_r2": effect.share, "slope": effect.slope, "slope_low": low, "slope_high": high,
        "slope_noise": effect.from_noise, "p_value": p_value,
        "same_curve": _answer(low, high, effect.from_noise or 0.0, effect.drowned),
        "status": "uncontrolled" if self.caveat else "ok", "reason": self.caveat}


def _answer(low, high, noise, drowned):
  if -NEGLIGIBLE <= low and high <= NEGLIGIBLE:
    return "yes"
  if drowned:
    return "undecided"
  return "no" if high < min(noise, 0.0) or low > max(noise, 0.0) else "undecided"


def tests(points, *, level=0.9):
  """Whether a factor says more of downstream accuracy than upstream accuracy does.

  The regression is that of `partial`, with a constant for each series: runs are compared within
  series, along one curve. Where the runs in series are too few to say what the curve is, the
  cell's other runs help, with a constant for each family. Intervals and p-values are Student's t,
  with as many degrees of freedom as the series have runs to spare.

  Noise in upstream accuracy hides a part of it, which the factor then stands in for: `slope_noise`
  says how much slope that makes, to first order (in simulations with the crossed sweep 1.0 to 1.6
  times what was found). A slope is held against the curve only where the interval excludes this
  too, and never where noise is the most of what the factor leaves of upstream accuracy.

  Args:
    points: `table.Points`; a run counts at its last evaluation.
    level: nominal coverage of the intervals.

  Returns:
    A list of dicts with `TEST_COLUMNS`: three lines a cell.

  Raises:
    ValueError: a level out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.9, got {level:g}")
  runs, lines, latest = _Runs(points), [], {}
  for view in points:
    view = view.take(view.last)
    for factor in FACTORS:
      if factor not in latest or not latest[factor].serves(view):
        latest[factor] = _Comparison(runs, factor, view)
      lines.append(dict.fromkeys(TEST_COLUMNS) | view.cell._asdict() | {"level": level}
                   | latest[factor].tested(view, level))
  return lines
