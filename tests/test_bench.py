"""The benchmark of large models, without running one."""
import pytest

from tests.bench import accelerator
from tests.bench import workloads


@pytest.mark.parametrize("kind, peak", [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
    ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v6 lite", 918), ("cpu", None)])
def test_a_chips_peak_is_found_by_what_jax_calls_it(kind, peak):
  assert accelerator.peak_of(kind) == peak


def test_a_batch_that_memory_does_not_hold_is_halved(monkeypatch):
  tried = []

  def seconds(built, batch, pixels, classes):
    tried.append(batch)
    if batch > 16 * 8:  # on eight devices
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    return [2.0]

  monkeypatch.setattr(accelerator, "_seconds_a_step", seconds)
  found = accelerator._of_model(workloads.row, "mu/16", 64, 32, 10, {"scan": True}, 100, "chip")
  assert tried == [512, 256, 128]
  assert found[0]["repeats"] == [64.0] and "batch 16 a device" in found[0]["note"]
  tera, share = (row["repeats"][0] for row in found[1:])
  assert share == pytest.approx(tera)  # of a peak of 100 TFLOP/s, in per cent

  def broken(*_):
    raise TypeError("no such kernel\nand more")

  monkeypatch.setattr(accelerator, "_seconds_a_step", broken)
  [row] = accelerator._of_model(workloads.row, "mu/16", 64, 32, 10, {}, None, "chip")
  assert not row["repeats"] and row["note"] == "could not be run: TypeError: no such kernel"
