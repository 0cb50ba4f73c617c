"""Evaluators of a population: the rows that each member would have given alone."""
import jax
import numpy as np
import pytest

from big_transfer import evaluators
from big_transfer.data import pipeline
from big_transfer.data import sources
from big_transfer.evaluators import features as features_lib
from big_transfer.evaluators import fewshot
from big_transfer.runs import configuring
from big_transfer.training import objectives
from big_transfer.training import program as program_lib
from big_transfer.training import sharding
from tests import toy

MEMBERS = 3
EVALS = {
    "upstream": dict(kind="classification", every=1),
    "probes": dict(kind="fewshot", every=1, tasks=("digits",), shots=(1, 5), seeds=(0, 1),
                   l2=(1.0, 1024.0), layers="all"),
    "geometry": dict(kind="geometry", every=1, examples=90, quantiles=(0.25, 0.5))}


@pytest.fixture(scope="module", params=[pytest.param(MEMBERS, marks=pytest.mark.slow), 4],
                ids=["over data", "over population"])
def population(request):
  """A program of a population, its stacked parameters, each member's, and what evaluates them.

  Three members don't divide eight devices, so that each is spread over all; four have two each.
  """
  model = {**toy.config().model, "depth": 2}
  program = program_lib.build(
      model=model, classes=10, image_size=8, optimiser={}, patterns=(".*",), loss="softmax_xent",
      augment={}, mixup=False, accumulate=1, mesh={"data": -1}, members=request.param)
  state = program.init(np.arange(request.param, dtype=np.uint32))
  rng = np.random.default_rng(0)  # a head of zeros has no margins
  state.params["head"]["kernel"] = jax.device_put(
      rng.normal(size=(request.param, 16, 10)).astype(np.float32),
      state.params["head"]["kernel"].sharding)
  prepare = lambda source: pipeline.prepare(source, 8)
  context = evaluators.Context(
      apply=program.apply, put=lambda batch: sharding.put_batch(batch, program.mesh),
      check=lambda: None, prepare=prepare, layers=program.layers, batch_size=64,
      upstream=evaluators.Upstream(
          "digits", prepare(sources.open_source("digits", "train")), None,
          prepare(sources.open_source("digits", "test")), objectives.softmax_xent))
  return state.params, [part.params for part in program.split(state)], context


def _compare(alone, together):
  """Rows are alike but for rounding: an example or two in 360 may cross a boundary."""
  assert len(alone) == len(together)
  for one, other in zip(alone, together):
    assert {**one, "value": 0} == {**other, "value": 0}
    tolerance = dict(abs=2.1 / 360) if one["metric"] == "accuracy" else dict(rel=1e-3)
    assert other["value"] == pytest.approx(one["value"], **tolerance)


@pytest.mark.parametrize("name", EVALS)
def test_each_member_gets_the_rows_it_has_alone(population, name):
  params_M, each, context = population
  [item] = evaluators.build({name: EVALS[name]}, context, configuring.build)
  assert isinstance(item.evaluator, evaluators.ForMembers)
  together = item.run_members(params_M, 7, len(each))
  for params, rows in zip(each, together, strict=True):
    _compare(item.run(params, 7), rows)
  values = [[row["value"] for row in rows] for rows in together]
  assert values[0] != values[1], "members are not alike, so rows that are mixed up would show"


@pytest.mark.slow
def test_features_of_few_members_are_held_at_once(population, monkeypatch):
  params_M, each, context = population
  [item] = evaluators.build({"probes": EVALS["probes"]}, context, configuring.build)
  whole = item.run_members(params_M, 7, len(each))
  held = []
  features = fewshot.FewShot.features

  def counted(self, params, *args, **kwargs):
    found = features(self, params, *args, **kwargs)
    held.append({len(x_MnD) for x_MnD in found.values()})
    return found

  monkeypatch.setattr(fewshot.FewShot, "features", counted)
  monkeypatch.setattr(features_lib, "HELD", 1 + sum(  # what two members take
      2 * 4 * 16 * 4 * n for n in (len(item.evaluator.probes[0].pool),
                                   len(item.evaluator.probes[0].test))))
  in_parts = item.run_members(params_M, 7, len(each))
  assert held == [{2}, {2}, {len(each) - 2}, {len(each) - 2}]
  for one, other in zip(whole, in_parts, strict=True):
    _compare(one, other)


def test_an_evaluator_without_rows_of_members_runs_for_one_after_the_other():
  class Norm:
    def rows(self, params):
      yield {"metric": "norm", "value": float(np.square(params["w"]).sum())}

  item = evaluators.Scheduled("norm", Norm(), 1, False)
  rows = item.run_members({"w": np.array([[1.0, 1.0], [2.0, 0.0]])}, 1, 2)
  assert rows == [[{"metric": "norm", "value": 2.0}], [{"metric": "norm", "value": 4.0}]]


def test_an_error_names_the_evaluator_and_the_step():
  class Broken:
    def rows(self, params):
      raise AssertionError

    def rows_members(self, params_M):
      raise OSError("no such image")

  with pytest.raises(OSError) as caught:
    evaluators.Scheduled("broken", Broken(), 1, False).run_members({}, 7, 2)
  assert caught.value.__notes__ == ["in evaluator 'broken' at step 7"]
