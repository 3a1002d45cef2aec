"""Running sums and maxima against numpy's."""

import numpy as np
import pytest

from klassify.metrics.running import Strips


@pytest.mark.parametrize("n", [0, 1, 5, 1023, 1024, 5000, 20_000])
def test_strips_equal_numpys_running_sums_and_maxima(n):
    values = np.random.default_rng(n).integers(0, 100, (3, n)).astype(float)
    strips = Strips(n)
    assert n < 1024 or strips.depth > 1
    sums = values.take(strips.order, axis=1)
    highest, place = sums.copy(), strips.place(np.arange(n))
    strips.sum_up(sums)
    np.testing.assert_array_equal(sums[:, place], np.cumsum(values, axis=1))
    strips.raise_to_highest_after(highest)
    wanted = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_array_equal(highest[:, place], wanted)
