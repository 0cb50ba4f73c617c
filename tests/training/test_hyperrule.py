"""BiT-HyperRule at its thresholds, against the published code's tables written out."""
import numpy as np
import pytest

from big_transfer.training import hyperrule
from big_transfer.training import schedules

# Ends of the warm-up and of each stair, from bit_hyperrule.py's get_schedule.
SMALL = [100, 200, 300, 400, 500]
MIDDLE = [500, 3000, 6000, 9000, 10_000]
LARGE = [500, 6000, 12_000, 18_000, 20_000]


@pytest.mark.parametrize("examples, supports, mixup", [
    (1, SMALL, None), (19_999, SMALL, None), (20_000, MIDDLE, 0.1), (499_999, MIDDLE, 0.1),
    (500_000, LARGE, 0.1), (1_281_167, LARGE, 0.1)])
def test_length_rate_and_mixup_by_examples(examples, supports, mixup):
  found = hyperrule.bit_hyperrule(examples, (224, 224))
  assert found["total_steps"] == supports[-1] and found["mixup"] == mixup
  assert found["lr"] == 0.003 and found["batch_size"] == 512
  rate = found["lr"] * schedules.unit_schedule(found["total_steps"], **found["schedule"])
  steps = np.arange(supports[-1])
  expected = np.where(steps < supports[0], 0.003 * steps / supports[0], 0.003 * 0.1 ** sum(
      (steps >= end).astype(float) for end in supports[1:-1]))
  np.testing.assert_allclose(rate, expected, rtol=1e-4)  # float32, interpolated


@pytest.mark.parametrize("pixels, sizes", [
    ((32, 32), (160, 128)), ((95, 96), (160, 128)), ((96, 96), (512, 480)),
    ((64, 200), (512, 480)), ((500, 375), (512, 480))])
def test_resolution_by_area(pixels, sizes):
  found = hyperrule.bit_hyperrule(1000, pixels)
  assert (found["resize"], found["crop"]) == sizes


def test_the_rate_is_in_proportion_to_the_batch():
  assert hyperrule.bit_hyperrule(10, (9, 9), batch_size=128)["lr"] == pytest.approx(0.00075)
  with pytest.raises(ValueError, match="BiT-HyperRule of 0 examples"):
    hyperrule.bit_hyperrule(0, (9, 9))
