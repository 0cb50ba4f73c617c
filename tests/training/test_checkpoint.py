"""Checkpoints: exact, verified, and whole on any mesh."""
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_transfer.training import checkpoint
from big_transfer.training import sharding
from big_transfer.training import step as step_lib


def _state(step, width=8, devices=8):
  sharded = sharding.batched(sharding.make_mesh(devices=jax.devices()[:devices]))
  kernel = jax.device_put(jax.random.normal(jax.random.key(step), (8, width)), sharded)
  return step_lib.TrainState(
      step=jnp.int32(step), params={"head": {"kernel": kernel}},
      opt_state=({"head": {"kernel": kernel * 2}}, (), jnp.int32(step)), bad_step=jnp.int32(-1))


def _like(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("written") / "checkpoints"
  with checkpoint.Checkpoints(folder) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(_state(step), {"metrics_bytes": 10 * step})
  return folder


@pytest.fixture
def folder(written, tmp_path):
  return shutil.copytree(written, tmp_path / "checkpoints")


def _restore(folder, like):
  with checkpoint.Checkpoints(folder) as checkpoints:
    return checkpoints.restore(like)


def test_restores_the_newest_bit_by_bit_and_keeps_two(folder):
  state, meta = _restore(folder, _like(_state(0)))
  _equal(state, _state(3))
  assert meta["metrics_bytes"] == 30
  assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["2", "3"]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restores_on_other_devices(folder, devices):
  like = _like(_state(0, devices=devices))
  state, _ = _restore(folder, like)
  _equal(state, _state(3))
  assert len(state.params["head"]["kernel"].devices()) == devices


def test_nothing_to_restore(tmp_path):
  assert _restore(tmp_path / "checkpoints", _like(_state(0))) is None


def _data_file(folder):
  return max((folder / "3" / "state").glob("**/d/*"), key=lambda p: p.stat().st_size)


def _delete(folder):
  _data_file(folder).unlink()


def _truncate(folder):
  path = _data_file(folder)
  path.write_bytes(path.read_bytes()[:-9])


def _flip_a_bit(folder):
  path = _data_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _no_manifest(folder):
  (folder / "3" / checkpoint.MANIFEST).unlink()


def _garbled_manifest(folder):
  (folder / "3" / checkpoint.MANIFEST).write_text("{")


@pytest.mark.parametrize("damage, said", [
    (_delete, "lacks the file"), (_truncate, "altered file"), (_flip_a_bit, "altered file"),
    (_no_manifest, "no manifest"), (_garbled_manifest, "damaged manifest")])
def test_a_damaged_checkpoint_falls_back_and_stays_on_disk(folder, caplog, damage, said):
  damage(folder)
  state, _ = _restore(folder, _like(_state(0)))
  _equal(state, _state(2))
  assert said in caplog.text and "checkpoint 3" in caplog.text
  assert [p.name for p in (folder.parent / "checkpoints.bad").iterdir()] == ["3-0"]


def test_no_good_checkpoint_is_an_error(folder):
  for step in ("2", "3"):
    shutil.rmtree(folder / step / "state")
  with pytest.raises(checkpoint.CheckpointError, match="no good checkpoint .* new workdir"):
    _restore(folder, _like(_state(0)))


def test_asking_again_does_not_begin_anew(folder):
  for step in ("2", "3"):
    (folder / step / checkpoint.MANIFEST).unlink()
  for _ in range(2):
    with pytest.raises(checkpoint.CheckpointError, match="no good checkpoint"):
      _restore(folder, _like(_state(0)))


def test_another_model_is_told_by_name(folder):
  with pytest.raises(checkpoint.CheckpointError) as error:
    _restore(folder, _like(_state(0, width=9)))
  assert "- params/head/kernel float32[8,9]" in str(error.value)
  assert "+ params/head/kernel float32[8,8]" in str(error.value)
  assert (folder / "3").exists()  # a good checkpoint isn't set aside


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: of memory")])
def test_memory_that_is_too_small_is_no_fault_of_a_checkpoint(folder, monkeypatch, error):
  def full(self, step, like):
    raise error

  monkeypatch.setattr(checkpoint.Checkpoints, "_read", full)
  with pytest.raises(type(error)):
    _restore(folder, _like(_state(0)))
  assert (folder / "3").exists() and not (folder.parent / "checkpoints.bad").exists()


def test_later_checkpoints_are_set_aside_not_deleted(folder):
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.good() == [2, 3]
    state, meta = checkpoints.restore(_like(_state(0)), at=2)
    _equal(state, _state(2))
    assert meta["metrics_bytes"] == 20 and checkpoints.latest() == 2
    checkpoints.save(_state(3), {"metrics_bytes": 31})  # made again
    checkpoints.wait()
    assert checkpoints.good() == [2, 3]
    checkpoints.discard_after(2)
    assert checkpoints.good() == [2]
  aside = folder.parent / "checkpoints.discarded"
  assert sorted(p.name for p in aside.iterdir()) == ["3-0", "3-1"]
  assert (aside / "3-0" / checkpoint.MANIFEST).exists()


@pytest.mark.parametrize("free, runs, said", [
    (10_000, 1, ""), (1600, 1, ""), (1500, 1, "warning: .*3 lie there"), (600, 2, "no checkpoint"),
    (400, 1, "a checkpoint takes .*: no checkpoint could be written; free")])
def test_space_is_compared_with_what_checkpoints_take(tmp_path, monkeypatch, capsys, free, runs,
                                                      said):
  """A state of 524 bytes; three of them, which lie there at times, take 1,572."""
  usage = type("usage", (), {"free": free})
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
    if "no checkpoint" in said:
      with pytest.raises(checkpoint.CheckpointError, match=said):
        checkpoints.check_space(_like(_state(0)), runs)
      return
    checkpoints.check_space(_like(_state(0)), runs)
  out = capsys.readouterr().out
  assert re.search(said, out) if said else not out


def test_one_to_fall_back_to(tmp_path):
  with pytest.raises(ValueError, match="at least 2"):
    checkpoint.Checkpoints(tmp_path, keep=1)


def test_no_pickle(folder):
  """A pickle protocol 2+ file begins with 0x80; nothing that is read back does."""
  for path in folder.glob("3/**/*"):
    if path.is_file():
      assert path.read_bytes()[:1] != b"\x80"
