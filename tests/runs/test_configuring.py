"""Configs: loading, overriding, the checks at the door, identities."""
import dataclasses

import flax.linen as nn
from ml_collections import ConfigDict
from ml_collections import config_dict
import numpy as np
import pytest

from big_transfer.runs import configuring

CONFIG = '''
from ml_collections import ConfigDict
def get_config(arg="small"):
  width = {"small": 8, "large": 64}[arg]
  return ConfigDict(dict(total_steps=10, shots=(1, 5), model=dict(name="vit", width=width),
                         optim=dict(lr=0.1, rules=(("head/.*", dict(wd=1.0)),))))
'''


@pytest.fixture
def config():
  rules = (("head/.*", {"wd": 1.0}), (".*", {"wd": 0.1}))
  tree = ConfigDict({"total_steps": 10, "shots": (1, 5), "cutoff": None, "flip": True,
                     "model": {"name": "vit", "width": 8}, "optim": {"lr": 0.1, "rules": rules}})
  tree.warmup = tree.get_ref("total_steps") // 10
  tree.limit = config_dict.placeholder(int)
  return tree.lock()


@pytest.fixture
def write(tmp_path):
  def write(text, name="some.py"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)
  return write


def test_load_hands_over_the_argument_and_locks(write):
  path = write(CONFIG)
  assert configuring.load(path).model.width == 8
  config = configuring.load(path + ":large")
  assert config.model.width == 64
  with pytest.raises(AttributeError):
    config.optim.lrr = 1


@pytest.mark.parametrize("text, suffix, words", [
    (None, "", "doesn't exist"),
    ("x = 1", "", "no get_config"),
    ("import nothing_of_this_name", "", "can't be run"),
    ("def get_config(:", "", "line 1"),
    ("def get_config():\n  return {}", "", "returned dict"),
    (CONFIG, ":huge", "refused the argument 'huge'"),
    (CONFIG.replace("arg=\"small\"", ""), ":small", "takes no argument"),
    (CONFIG.replace("=\"small\"", ""), "", "needs an argument"),
    ("def get_config():\n\n  return 1 / 0", "", "line 3"),
])
def test_load_says_what_is_wrong(write, text, suffix, words):
  path = "no/such.py" if text is None else write(text)
  with pytest.raises(configuring.ConfigError, match=words):
    configuring.load(path + suffix)


def test_override_reaches_into_rules_and_leaves_the_original_alone(config):
  new = configuring.override(config, {
      "optim.lr": 1, "optim.rules[0][1].wd": 3, "optim.rules[1][0]": "body/.*", "shots": [10],
      "total_steps": 200, "cutoff": 0.5, "limit": 3, "model": {"name": "mixer", "patch": 4}})
  assert new.optim.rules == (("head/.*", {"wd": 3.0}), ("body/.*", {"wd": 0.1}))
  assert isinstance(new.optim.lr, float) and new.shots == (10,) and new.cutoff == 0.5
  assert new.warmup == 20, "a reference follows what it refers to"
  assert new.model.to_dict() == {"name": "mixer", "patch": 4}, "a section is replaced whole"
  assert new.is_locked and new.model.is_locked
  assert config.optim.rules[0][1]["wd"] == 1.0 and config.warmup == 1 and config.model.width == 8


@pytest.mark.parametrize("path, value, words", [
    ("optim.lrr", 1, "did you mean 'optim.lr'"),
    ("optm.lr", 1, "did you mean 'optim'"),
    ("lr", 1, "did you mean 'optim.lr'"),
    ("optim.rules[0][1].w", 1, r"did you mean 'optim.rules\[0\]\[1\].wd'"),
    ("optim.rules[7]", 1, "index 7 of 2"),
    ("optim.rules[0].wd", 1, "expected an index"),
    ("optim.lr.x", 1, "goes too deep"),
    ("optim lr", 1, "can't be read"),
    ("optim.lr", "fast", "expects a number, like 0.1; got 'fast'"),
    ("optim.lr", True, "expects a number"),
    ("flip", 1, "expects true or false"),
    ("total_steps", 1.5, "expects a whole number"),
    ("shots", 3, "expects a list"),
    ("model", 3, "expects a mapping"),
    ("limit", "many", "refuses 'many'"),
])
def test_override_refuses(config, path, value, words):
  with pytest.raises(configuring.ConfigError, match=words):
    configuring.override(config, {path: value})


def test_an_evaluator_may_be_added_whole_and_nothing_else():
  config = ConfigDict({"evals": {"probes": {"kind": "fewshot", "shots": (1,)}}, "lr": 1.0}).lock()
  texts = {"evals.geometry": '{"kind": "geometry", "layers": ("stem",)}'}
  values = configuring.parse_values(config, texts)
  assert values == {"evals.geometry": {"kind": "geometry", "layers": ["stem"]}}
  new = configuring.override(config, values)
  assert set(new.evals) == {"probes", "geometry"} and new.evals.geometry.kind == "geometry"
  assert new.is_locked and "geometry" not in config.evals
  apart = [configuring.identity("x", mapping) for mapping in (
      {}, values, {"evals.geometry": {"kind": "geometry", "layers": ["block_00"]}})]
  assert len(set(apart)) == 3
  for path, value in (("evals.geometry.kind", "geometry"), ("evals.geometry", {"every": 3}),
                      ("evals.geometry", 3)):
    with pytest.raises(configuring.EvaluatorError, match=r"'--config.evals.geometry=\{\"kind\": "):
      configuring.override(config, {path: value})
  for path in ("geometry", "lr.geometry", "evals.probes.geometry", "evals.a.b", "evals[0]"):
    with pytest.raises(configuring.ConfigError):
      configuring.override(config, {path: {"kind": "geometry"}})
  with pytest.raises(configuring.ConfigError, match="did you mean 'probes'"):
    configuring.override(config, {"evals.probe.shots": (1,)})


def test_all_may_stand_for_a_list_and_a_list_for_all(config):
  every = configuring.override(config, configuring.parse_values(config, {"shots": "all"}))
  assert every.shots == "all"
  texts = configuring.parse_values(every, {"shots": "[-1, 'stem']"})
  assert configuring.override(every, texts).shots == (-1, "stem")
  with pytest.raises(configuring.ConfigError, match="expects a list"):
    configuring.override(config, {"shots": "some"})


def test_command_line_values_take_the_type_of_what_they_replace(config):
  texts, others = configuring.split_arguments(
      ["--config.optim.lr=3", "--jobs", "2", "--config.model.name", "5", "--config.shots=(2,)",
       "--config.flip=false", "--config=x.py", "--config.cutoff=None", "--config.limit=4"])
  assert others == ["--jobs", "2", "--config=x.py"]
  assert configuring.parse_values(config, texts) == {
      "optim.lr": 3.0, "model.name": "5", "shots": [2], "flip": False, "cutoff": None, "limit": 4}
  with pytest.raises(configuring.ConfigError, match="expects a number"):
    configuring.parse_values(config, {"optim.lr": "fast"})
  with pytest.raises(configuring.ConfigError, match="no value"):
    configuring.split_arguments(["--config.optim.lr", "--jobs"])


def test_load_sweep_keeps_order_and_types(write):
  path = write(CONFIG + "def get_sweep(arg):\n  for lr in (1, 2.5):\n"
               "    yield {'optim.lr': lr, 'optim.rules[0][1].wd': 1}\n", "study.py")
  name, base, trials = configuring.load_sweep(path + ":large")
  assert name == "study:large" and base.model.width == 64
  assert trials == [{"optim.lr": lr, "optim.rules[0][1].wd": 1.0} for lr in (1.0, 2.5)]
  assert [type(trial["optim.lr"]) for trial in trials] == [float, float]


@pytest.mark.parametrize("body, words", [
    (None, "no get_sweep"),
    ("return []", "no trials"),
    ("return [{'optim.lr': 1}, {'optim.lr': 1.0}]", "trials 0 and 1 .* are the same"),
    ("yield {'optim.lr': 1}; yield {'optim.lrr': 2}", "trial 1 .*did you mean 'optim.lr'"),
    ("yield {'optim.lr': 'a'}", "trial 0 .*expects a number"),
    ("yield 3", "expected a dict"),
    ("return {'optim.lr': 1}", "returned dict"),
    ("yield {}; 1 / 0", "division by zero .line"),
])
def test_load_sweep_refuses(write, body, words):
  text = CONFIG if body is None else CONFIG + f"def get_sweep():\n  {body}\n"
  with pytest.raises(configuring.ConfigError, match=words):
    configuring.load_sweep(write(text))


@dataclasses.dataclass
class Optimiser:
  lr: float
  names: list
  wd: float = 0.0


class Net(nn.Module):
  width: int
  depth: int = 1


def free(lr, **rest):
  return lr, rest


def test_build_passes_on_what_is_known():
  assert configuring.build(Optimiser, {"lr": 1.0}, "optim", names=[]) == Optimiser(1.0, [], 0.0)
  assert configuring.build(Net, ConfigDict({"width": 3}), "model").width == 3
  assert configuring.build(free, {"lr": 1, "x": 2}, "") == (1, {"x": 2})
  assert configuring.build(lambda flip=False: flip, None, "augment") is False


@pytest.mark.parametrize("function, section, words", [
    (Optimiser, {"lrr": 1.0}, "'optim.lrr' is unknown: expected one of optim.lr, optim.wd; "
                              "did you mean 'optim.lr'"),
    (Optimiser, {"wd": 1.0}, "lacks optim.lr"),
    (Optimiser, {"lr": 1.0, "names": []}, "'optim.names' is set by the code"),
])
def test_build_refuses(function, section, words):
  with pytest.raises(configuring.ConfigError, match=words):
    configuring.build(function, section, "optim", names=[])


def test_build_knows_no_linen_internals():
  with pytest.raises(configuring.ConfigError, match="'model.name' is unknown: expected one of "
                                                    "model.depth, model.width"):
    configuring.build(Net, {"width": 1, "name": "x"}, "model")


def test_plain_is_json_and_names_what_is_not(config):
  tree = configuring.plain(config)
  assert tree["optim"]["rules"] == [["head/.*", {"wd": 1.0}], [".*", {"wd": 0.1}]]
  assert tree["warmup"] == 1 and type(tree["warmup"]) is int
  assert configuring.plain({"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)]}) == {
      "a": 0.5, "b": [3, True]}
  assert configuring.plain({"a": [float("nan")]}, finite=False) == {"a": [None]}
  for value, words in ((print, "model.act"), (float("inf"), "model.act"), ({1: 2}, "a string")):
    with pytest.raises(configuring.ConfigError, match=words):
      configuring.plain({"model": {"act": value}})


def test_differences_name_paths_and_both_values(config):
  old = configuring.plain(config)
  new = configuring.plain(configuring.override(config, {
      "optim.rules[0][1].wd": 2.0, "total_steps": 20, "shots": (1,)}))
  assert configuring.differences(old, old) == []
  assert configuring.differences(old, new) == [
      "optim.rules[0][1].wd: 1.0, now 2.0", "shots[1]: 5, now absent",
      "total_steps: 10, now 20", "warmup: 1, now 2"]
  assert not any("total_steps" in line
                 for line in configuring.differences(old, new, configuring.OPERATIONAL))


def test_identity_depends_on_what_matters_only():
  a = configuring.identity("x", {"optim.lr": 0.1, "checkpoint.every": 3, "log_every": 1},
                           configuring.HOUSEKEEPING)
  b = configuring.identity("x", {"log_every": 9, "optim": {"lr": 0.1}}, configuring.HOUSEKEEPING)
  assert a == b == "0e4bd4cf16ba", "a changed identity orphans every run ever made"
  others = [configuring.identity("y", {"optim.lr": 0.1}), configuring.identity("x", {}),
            configuring.identity("x", {"optim.lr": 0.2}),
            configuring.identity("x", {"optim.lr": 0.1, "total_steps": 3})]
  assert len({a, *others}) == 5
