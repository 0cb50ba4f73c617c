"""Who is on the hull: its vertices in order, and each family's share of its length."""
import numpy as np
import pyarrow as pa
import pytest

from big_transfer.study import families, hull, table


def _points(us_N, ds_N, family_N):
  names = [f"{i:03d}" for i in range(len(us_N))]
  runs = pa.table({"run_id": names, "family": pa.array(family_N, pa.string()),
                   "upstream": ["up"] * len(names)})
  return table.assemble(runs, pa.table({"run_id": names, "task": ["t"] * len(names),
                                        "us": np.asarray(us_N, float),
                                        "ds": np.asarray(ds_N, float)}))


def test_the_vertices_are_listed_by_rising_upstream_accuracy():
  rng = np.random.default_rng(0)
  us_N, ds_N = rng.uniform(0.1, 0.9, 50), rng.uniform(0.1, 0.9, 50)
  lines = families.hull_runs(_points(us_N, ds_N, ["vit"] * 50))
  assert [line["order"] for line in lines] == list(range(1, len(lines) + 1))
  assert [line["run_id"] for line in lines] == [f"{i:03d}" for i in hull.upper_hull(us_N, ds_N)]
  assert all(line.keys() == families.RUN_COLUMNS.keys() for line in lines)


def test_a_family_has_the_stretch_that_is_nearest_to_its_vertices():
  # Vertices at 0, 0.2, 0.4 and 1: the last is nearest from 0.7 on, that at 0.2 from 0.1 to 0.3.
  us_N, ds_N = [0.0, 0.2, 0.4, 1.0, 0.5, 0.6], [0.0, 0.5, 0.7, 0.9, 0.1, 0.2]
  family_N = ["vit", "mixer", "vit", "resnet", "none", None]
  lines = families.hull_families(_points(us_N, ds_N, family_N))
  by_family = {line["family"]: line for line in lines}
  assert {name: line["vertices"] for name, line in by_family.items()} == {
      "vit": 2, "mixer": 1, "resnet": 1, "none": 0, None: 0}
  assert by_family["mixer"]["share_of_hull"] == pytest.approx(0.2)
  assert by_family["vit"]["share_of_hull"] == pytest.approx(0.1 + 0.4)
  assert by_family["resnet"]["share_of_hull"] == pytest.approx(0.3)
  assert sum(line["share_of_hull"] for line in lines) == pytest.approx(1.0)
  assert by_family["vit"]["runs"] == 2 and by_family["vit"]["share_of_runs"] == pytest.approx(1 / 3)
  assert all(line.keys() == families.FAMILY_COLUMNS.keys() for line in lines)


def test_a_hull_of_one_point_has_no_length_to_share():
  line, = families.hull_families(_points([0.5, 0.5], [0.3, 0.2], ["vit", "vit"]))
  assert line["vertices"] == 1 and line["share_of_hull"] is None
