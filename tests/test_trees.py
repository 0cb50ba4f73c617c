"""Parameter names, and rules over them."""
import numpy as np
import pytest

from big_transfer import trees

TREE = {"head": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "stem": {"kernel": np.ones(4)}}


def test_flatten_and_back():
  flat = trees.flatten(TREE)
  assert list(flat) == ["head/bias", "head/kernel", "stem/kernel"]
  assert trees.unflatten(flat) == TREE


def test_map_named_sees_names():
  doubled = trees.map_named(lambda name, leaf: leaf * (2 if name == "stem/kernel" else 1), TREE)
  assert doubled["stem"]["kernel"].sum() == 8 and doubled["head"]["bias"].sum() == 0


def test_first_match_wins_on_the_whole_name():
  found = trees.first_match([".*bias", "head/.*", ".*"], trees.flatten(TREE))
  assert found == {"head/bias": 0, "head/kernel": 1, "stem/kernel": 2}


@pytest.mark.parametrize("patterns, message", [
    (["head/.*"], "no rule claims stem/kernel"),
    (["head", ".*"], "'head' is the first match of no parameter"),
    ([".*", "head/.*"], "'head/.*' is the first match of no parameter"),
    (["head/(.*", ".*"], "is not a regular expression")])
def test_rules_are_total(patterns, message):
  with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("*", r"\*")):
    trees.first_match(patterns, trees.flatten(TREE))


def test_shape_diff_names_what_differs():
  other = {**TREE, "head": {"kernel": np.zeros((2, 5)), "bias": np.zeros(5)}}
  diff = trees.shape_diff(trees.shapes(TREE), trees.shapes(other))
  assert [line[:13] for line in diff if "bias" in line] == ["- head/bias f", "+ head/bias f"]
  assert not any("stem" in line for line in diff)


def test_a_long_diff_is_cut_with_half_of_either_side():
  one = {f"a{i:02d}": "float32[2]" for i in range(30)}
  two = {f"b{i:02d}": "float32[2]" for i in range(30)}
  lines = trees.diff_text(one, two, most=8).splitlines()
  assert [line.strip()[0] for line in lines] == list("----++++…")
  assert lines[-1] == "  … (60 parameters differ)"
  assert trees.diff_text(one, one) == ""
  assert trees.diff_text(one, {**one, "a03": "float32[9]"}).splitlines() == [
      "  - a03 float32[2]", "  + a03 float32[9]"]
