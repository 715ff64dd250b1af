"""How many more blocks would decide."""

import numpy as np
import pytest

from kdcompile.stats.comparison import MIN_BLOCKS, MIN_INFERENCES
from kdcompile.stats.hierarchical import Estimate, half_width
from kdcompile.stats.sample_size import more_blocks


def estimate(*variances, units=(3,), df=6):
    return Estimate(np.zeros(3), units, tuple(np.full(3, v) for v in variances), df, "process")


def test_half_widths_are_students():
    found = half_width(estimate(0.01**2), np.array([0.005, 0.025, 0.05]))
    assert found == pytest.approx([0.03707, 0.02447, 0.01943], rel=1e-3)  # table of t, 6 degrees


def test_more_processes_are_asked_for_with_the_surety_they_bring():
    # t of 6 degrees at 0.995 is 3.707; of 9 it is 3.250, and half as many errors of the mean
    assert more_blocks(estimate(0.01**2), 0.005, 0.0371, 30, 600) == 0
    assert more_blocks(estimate(0.01**2), 0.005, 3.250 * 0.01 / 2**0.5 + 1e-6, 30, 600) == 30
    assert (
        more_blocks(estimate(0.01**2), 0.005, 3.355 * 0.01 * (3 / 5) ** 0.5 + 1e-5, 30, 600) == 20
    )


def test_a_side_that_stays_sets_the_limit():
    alone = estimate(0.01**2, 0.01**2, units=(1, 3))
    assert more_blocks(alone, 0.005, 0.01, 20, 400) is None
    assert more_blocks(alone, 0.005, 0.05, 20, 400) == 20


def test_the_least_comes_first():
    sure = estimate(1e-12)
    assert more_blocks(sure, 0.005, 0.01, MIN_BLOCKS - 3, 500) == 3
    assert more_blocks(sure, 0.005, 0.01, 20, 20) == MIN_INFERENCES - 20
    assert more_blocks(sure, 0.005, 0.01, 20, 500) == 0
