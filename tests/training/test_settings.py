"""Settings: values that can't be, and keys that stand for nothing."""
import pytest

from big_transfer.runs import configuring
from big_transfer.training import settings
from tests import toy


def test_keys_that_stand_for_nothing_leave_a_runs_identity_as_it_was():
  before = settings.recorded(toy.config())
  model = dict(before["model"], scan=False, remat="none")
  now = settings.recorded({**before, "model": model, "mesh": dict(data=-1, fsdp=1, tensor=1),
                           "sharding": None, "sinks": (), "profile": None, "total_epochs": None})
  assert now == {**before, "mesh": {"data": -1}}
  for key, value in (("scan", True), ("remat", "full")):
    assert settings.recorded({**before, "model": {**model, key: value}})["model"][key] == value


@pytest.mark.parametrize("changes, message", [
    (dict(sinks=5), "'sinks' is 5"), (dict(seed="a"), "'seed' is 'a'"),
    (dict(augment=dict(mixup="a")), "'augment.mixup' is 'a'"),
    (dict(mesh=dict(fsdp=8), batch_size=12), "multiple of 8, 8 devices"),
    (dict(accumulate=3, batch_size=16), "multiple of 24"),
    (dict(accumulate=0), "'accumulate' is 0")])
def test_bad_values(changes, message):
  config = {**configuring.plain(toy.config()), **changes}
  with pytest.raises(configuring.ConfigError, match=message):
    settings.check(settings.Settings(**config))
