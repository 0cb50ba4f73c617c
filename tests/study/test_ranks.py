"""Rank correlations against scipy's, their intervals by simulation, overlays and best runs."""
import math

import numpy as np
import planted_points
import pytest
from scipy import stats

from big_transfer.study import hull, ranks


@pytest.fixture(scope="module")
def points():
  """120 runs on four tasks at two numbers of shots; one task misses some runs, one follows us."""
  rng = np.random.default_rng(0)
  us = rng.uniform(0.1, 0.9, 120)
  ds = {}
  for shots in (1, 10):
    ds["follows", shots] = np.round(planted_points.law(us) - rng.exponential(0.01, 120), 2)
    ds["loose", shots] = planted_points.law(us, alpha=8.0) - rng.exponential(0.1, 120)
    ds["against", shots] = 0.5 - 0.3 * us + rng.normal(0, 0.02, 120)
    ds["partial", shots] = np.where(rng.random(120) < 0.6, us + rng.normal(0, 0.2, 120), np.nan)
  return planted_points.make(us, ds)


def _values(points, task, shots):
  view, = [view for view in points if (view.cell.task, view.cell.shots) == (task, shots)]
  return dict(zip(view.run, view.ds)), dict(zip(view.run, view.us))


def test_correlations_are_scipys_over_the_runs_that_both_have(points):
  lines = ranks.spearman(points)
  assert all(set(line) == set(ranks.SPEARMAN_COLUMNS) for line in lines)
  assert len(lines) == 2 * 4 * 5  # shots, tasks, tasks and upstream
  for line in lines:
    ds, us = _values(points, line["row"], line["shots"])
    other = us if line["column"] == "upstream" else _values(points, line["column"],
                                                            line["shots"])[0]
    shared = sorted(ds.keys() & other.keys())
    expected = stats.spearmanr([ds[run] for run in shared], [other[run] for run in shared])
    assert line["correlation"] == pytest.approx(expected.statistic, abs=1e-12)
    assert line["runs"] == len(shared) and line["status"] == "ok"
    assert line["low"] <= line["correlation"] <= line["high"]
  partial = [line["runs"] for line in lines if "partial" in (line["row"], line["column"])]
  assert max(partial) < 120 and min(partial) > 40


def test_intervals_of_correlations_cover_as_they_say():
  # A normal pair with correlation r has Spearman's 6 / pi asin(r / 2). 1,000 draws have a standard
  # error of 0.95 %; the formula is an approximation, so four of these are allowed.
  rng = np.random.default_rng(1)
  for truth, runs in ((0.0, 12), (0.7, 25), (0.9, 60)):
    x = rng.standard_normal((1000, runs))
    y = truth * x + math.sqrt(1 - truth * truth) * rng.standard_normal((1000, runs))
    target = 6 / math.pi * math.asin(truth / 2)
    found = [ranks.correlation_interval(stats.spearmanr(a, b).statistic, runs, 0.9)
             for a, b in zip(x, y)]
    assert np.mean([low <= target <= high for low, high in found]) == pytest.approx(0.9, abs=0.038)


def test_a_perfect_order_of_few_runs_is_not_certain():
  low, high = ranks.correlation_interval(1.0, 5, 0.9)
  assert 0.2 < low < 0.7 and high == 1.0
  assert ranks.correlation_interval(1.0, 1000, 0.9)[0] > 0.999
  assert ranks.correlation_interval(-1.0, 5, 0.9)[0] == -1.0


def test_correlations_that_cannot_be_computed_say_why():
  us = np.linspace(0.1, 0.9, 8)
  nowhere = np.where(np.arange(8) < 4, us, np.nan)
  points = planted_points.make(us, {"flat": np.full(8, 0.5), "few": nowhere, "good": us})
  lines = {(line["row"], line["column"]): line for line in ranks.spearman(points)}
  assert lines["good", "upstream"]["correlation"] == 1.0
  for pair, words in ((("flat", "good"), "same in all runs"), (("good", "few"), "4 runs"),
                      (("flat", "flat"), "same in all runs")):
    assert lines[pair]["status"] == "left out" and words in lines[pair]["reason"]
    assert lines[pair]["correlation"] is None
  with pytest.raises(ValueError, match=r"level: expected a coverage.*got 90"):
    ranks.spearman(points, level=90)


def test_the_overlay_is_the_references_hull_on_the_other_tasks(points):
  lines = ranks.overlay(points, "loose")
  assert {line["task"] for line in lines} == {"follows", "against", "partial"}
  assert all(set(line) == set(ranks.OVERLAY_COLUMNS) for line in lines)
  names = points.of_runs("run_id")
  for view in points:
    if view.cell.task == "loose":
      on_hull = list(names[view.run[hull.upper_hull(view.us, view.ds)]])
      for task in ("follows", "against"):
        assert [line["run_id"] for line in lines
                if (line["task"], line["shots"]) == (task, view.cell.shots)] == on_hull
  for line in lines:
    ds, us = _values(points, line["task"], line["shots"])
    run = list(names).index(line["run_id"])
    assert (line["us"], line["ds"]) == (us[run], ds[run])
    top = hull.hull_at(list(us.values()), list(ds.values()), line["us"])
    assert line["gap"] == pytest.approx(float(top) - line["ds"], abs=1e-12) and line["gap"] >= 0


def test_the_reference_is_imagenet_or_what_follows_upstream_most(points):
  assert ranks.reference_task(points)[0] == "follows"
  assert {line["reference"] for line in ranks.overlay(points)} == {"follows"}
  us = np.linspace(0.1, 0.9, 20)
  named = planted_points.make(us, {"a": us, "ImageNet-A": us, "ImageNet": 1 - us})
  assert ranks.reference_task(named) == ("ImageNet", "it is ImageNet")
  flat = planted_points.make(us, {"b": np.full(20, 0.5)})
  assert ranks.reference_task(flat)[0] == "b"
  with pytest.raises(ValueError, match="reference: expected one of the tasks, .*got 'pets'"):
    ranks.overlay(points, "pets")


def test_a_reference_not_measured_alike_is_said():
  us = np.linspace(0.1, 0.9, 20)
  points = planted_points.make(us, {("a", 1): us, ("b", 1): us, ("b", 5): us})
  lines = [line for line in ranks.overlay(points, "a") if line["shots"] == 5]
  assert [line["status"] for line in lines] == ["left out"]
  assert lines[0]["reason"] == "a wasn't measured in this way"


def test_the_best_of_their_peers_are_ranked_on_every_task():
  us = np.repeat([0.2, 0.5, 0.8], 10) + np.tile(np.arange(10) / 1000, 3)
  place = np.tile(np.arange(10), 3)
  points = planted_points.make(us, {"up": place / 10, "down": 1 - place / 10,
                                    "ties": np.where(place < 5, 0.3, 0.6)})
  lines = ranks.peers(points, bins=3)
  assert len(lines) == 3 * 3 * 3 and all(set(line) == set(ranks.PEERS_COLUMNS) for line in lines)
  assert sorted({line["us_low"] for line in lines}) == pytest.approx([0.2, 0.5, 0.8])
  for line in lines:
    best = {"up": 9, "down": 0, "ties": 9}[line["task"]]  # of equals, the highest upstream
    assert int(line["run_id"][1:]) % 10 == best
    rank = {"up": 10 - best, "down": best + 1, "ties": 1 if best >= 5 else 6}[line["on_task"]]
    worse = {"up": best, "down": 9 - best, "ties": 5 if best >= 5 else 0}[line["on_task"]]
    assert (line["rank"], line["percentile"], line["runs"]) == (rank, worse / 9, 10)
  assert len({line["us_low"] for line in ranks.peers(points, bins=100)}) == 6  # 5 runs a bin
  with pytest.raises(ValueError, match="bins: expected at least 1"):
    ranks.peers(points, bins=0)


def test_peers_of_few_runs_or_missing_accuracies_are_left_out():
  lines = ranks.peers(planted_points.make([0.1, 0.2], {"a": np.array([0.1, 0.2])}))
  assert [line["status"] for line in lines] == ["left out"] and "2 runs" in lines[0]["reason"]
  us = np.linspace(0.1, 0.9, 6)
  gap = np.where(us > 0.8, np.nan, us)
  lines = ranks.peers(planted_points.make(us, {"a": us, "b": gap}))
  missing, = [line for line in lines if (line["task"], line["on_task"]) == ("a", "b")]
  assert missing["status"] == "left out" and "b" in missing["reason"] and missing["runs"] == 5
