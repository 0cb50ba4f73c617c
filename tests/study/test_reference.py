"""The published fits: what the paper says of them holds, and they can be found by name."""
import numpy as np
import pytest

from big_transfer.study import laws, reference


def test_each_task_has_both_fits_with_their_source():
  assert len(reference.PAPER_FITS) == 16
  assert {line["fit"] for line in reference.PAPER_FITS} == {"hull", "all"}
  for line in reference.PAPER_FITS:
    assert set(line) == set(reference.REFERENCE_COLUMNS)
    assert "arXiv:2110.02095" in line["source"] and "0.002" in line["source"]
    # The dotted line was read by itself.
    assert line["saturation"] == pytest.approx(1 - line["e_IR"], abs=0.0041)
    for name in ("k", "alpha", "e_IR"):
      low, high = laws.SATURATING.parameters[name]
      assert low <= line[name] <= high


def test_the_hull_lies_above_the_average_where_it_was_drawn():
  us = np.linspace(0.1, reference.US_HIGH, 50)
  tasks = {line["task"] for line in reference.PAPER_FITS}
  for task in tasks:
    on_hull, on_all = (1 - laws.SATURATING.predict(reference.law(task, fit), 1 - us)
                       for fit in ("hull", "all"))
    assert (on_hull > on_all - 0.01).all(), task
  # Only on ImageNet does the hull saturate lower than all points.
  assert [task for task in sorted(tasks)
          if reference.law(task, "hull").e_IR > reference.law(task, "all").e_IR] == ["imagenet"]


def test_laws_are_found_by_the_names_of_datasets_too():
  assert reference.law("pets", "hull") == (0.866, 9.7, 0.040)
  assert reference.law("oxford_iiit_pet", "all") == reference.law("Pets", "all")
  assert reference.law("imagenet2012", "hull").alpha == 3.24
  assert reference.known_as("imagenet-a") is None


def test_an_unknown_task_or_fit_names_those_there_are():
  with pytest.raises(ValueError, match="no published fit for 'digits'; there are pets, cifar100"):
    reference.law("digits", "hull")
  with pytest.raises(ValueError, match="fit: expected 'hull' or 'all', got 'robust'"):
    reference.law("pets", "robust")


def test_the_published_fits_cannot_be_changed_by_accident():
  with pytest.raises(TypeError):
    reference.PAPER_FITS[0]["k"] = 1.0
