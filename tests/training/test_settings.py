"""Settings: values that can't be, and keys that stand for nothing."""
import numpy as np
import pytest

from big_transfer.data import transforms
from big_transfer.runs import configuring
from big_transfer.training import settings
from tests import toy


def test_keys_that_stand_for_nothing_leave_a_runs_identity_as_it_was():
  before = settings.recorded(toy.config())
  model = dict(before["model"], scan=False, remat="none")
  now = settings.recorded({**before, "model": model, "mesh": dict(data=-1, fsdp=1, tensor=1),
                           "sharding": None, "sinks": (), "profile": None, "total_epochs": None,
                           "init": None, "optim": {**before["optim"], "layer_decay": None}})
  assert now == {**before, "mesh": {"data": -1}}
  for key, value in (("scan", True), ("remat", "full")):
    assert settings.recorded({**before, "model": {**model, key: value}})["model"][key] == value
  for missing, recorded in (("error", before["evals"]["probes"]),
                            ("skip", {**before["evals"]["probes"], "missing": "skip"})):
    probes = {**before["evals"]["probes"], "missing": missing}
    assert settings.recorded({**before, "evals": {"probes": probes}})["evals"] == {
        "probes": recorded}


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


@pytest.mark.parametrize("augment, message", [
    (dict(resize_crop=8), "resize_crop is 8, smaller than image_size 16"),
    (dict(resize_crop="a"), "'augment.resize_crop' is 'a'"),
    (dict(resize_crop=20, inception_crop=True), "are both set")])
def test_bad_crops(augment, message):
  config = {**configuring.plain(toy.config()), "augment": augment}
  with pytest.raises(ValueError, match=message):
    settings.check(settings.Settings(**config))


def test_resize_crop_is_a_random_part_of_the_whole_image():
  """Of an image that brightens to the right and down, the crop's corner says where it lies."""
  image = np.broadcast_to(np.arange(40)[:, None, None] * 3 + np.arange(60)[None, :, None] * 2,
                          (40, 60, 3)).astype(np.uint8)
  augment = settings.Augment(resize_crop=20).on_host(16)
  crops = [augment(image, np.random.default_rng(seed)) for seed in range(60)]
  assert all(crop.shape == (16, 16, 3) for crop in crops)
  corners = {int(crop[0, 0, 0]) for crop in crops}
  assert len(corners) == 9, "of five places each way, brighter by as much down as to the right"
  # From the same seed the same, and at the size itself nothing is cut off.
  np.testing.assert_array_equal(crops[3], augment(image, np.random.default_rng(3)))
  whole = settings.Augment(resize_crop=16).on_host(16)
  np.testing.assert_array_equal(whole(image, np.random.default_rng(0)), transforms.resize(image, 16))
