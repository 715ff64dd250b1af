"""What is assumed of each level before it is measured: sides without a spread show nothing else."""

import numpy as np
import pytest

from kdcompile.stats.bootstrap import resamples
from kdcompile.stats.hierarchical import PAIR as USUAL
from kdcompile.stats.hierarchical import Node, _means, _node, paired, unpaired

BLOCKS = [np.ones(20)] * 8
PAIR, PROCESS = np.array([0.003, 0.01, 0.05]), np.array([0.006, 0.02, 0.08])
BUILD, RUN = np.array([0.006, 0.02, 0.08]), np.array([0.005, 0.02, 0.08])
SESSION = np.array([0.02, 0.04, 0.1])


def told(estimate):
    return estimate.level, estimate.units, estimate.df


def test_of_one_process_is_that_of_two_sides_that_took_turns():
    found = paired([[(BLOCKS, BLOCKS)]], 0)
    assert told(found) == ("process", (1,), 4)
    assert found.error == pytest.approx(PAIR)
    assert found.value == pytest.approx(np.zeros(3))


def test_of_processes_that_agree_it_shrinks():
    """Two are one degree of freedom more, of no spread."""
    found = paired([[(BLOCKS, BLOCKS)] * 2], 0)
    assert told(found) == ("process", (2,), 5)
    assert found.error**2 == pytest.approx(PAIR**2 / 2 * 4 / 5)


def test_of_builds_that_of_a_build_comes_on_top():
    found = paired([[(BLOCKS, BLOCKS)]] * 2, 0)
    assert told(found) == ("build", (2,), 3)
    assert found.error**2 == pytest.approx((BUILD**2 + PAIR**2) / 2 * 2 / 3)


def test_of_sides_that_were_measured_apart_it_is_that_of_processes_and_runs():
    found = unpaired([[[[BLOCKS]]], [[[BLOCKS]]]], 0)
    assert told(found) == ("run", (1, 1), 2)
    assert found.error**2 == pytest.approx(2 * (RUN**2 + PROCESS**2))


def test_of_sides_that_were_measured_apart_processes_that_agree_shrink_it():
    found = unpaired([[[[BLOCKS] * 2]], [[[BLOCKS] * 2]]], 0)
    assert told(found) == ("run", (1, 1), 2)
    assert found.error**2 == pytest.approx(2 * (RUN**2 + PROCESS**2 / 2 * 4 / 6))


def test_of_runs_of_several_builds_that_of_a_build_is_in_it():
    run = [[BLOCKS], [BLOCKS]]
    found = unpaired([[run], [run]], 0)
    assert told(found) == ("run", (1, 1), 2)
    of_a_run = (BUILD**2 + PROCESS**2) / 2 * 2 / 4
    assert found.error**2 == pytest.approx(2 * (RUN**2 + of_a_run))
    alone = unpaired([[run], [[[BLOCKS]]]], 0)
    assert alone.variances[0] == pytest.approx(RUN**2 + (BUILD**2 + PROCESS**2) / 2 * 2 / 3)


def test_of_several_sessions_that_of_a_session_is_in_it():
    found = unpaired([[[[BLOCKS]]], [[[BLOCKS]]]], 0, [[0], [1]])
    assert told(found) == ("session", (1, 1), 6)
    assert found.error**2 == pytest.approx(2 * (SESSION**2 + RUN**2 + PROCESS**2))
    more = unpaired([[[[BLOCKS]]], [[[BLOCKS]]] * 3], 0, [[0], [1, 1, 2]])
    assert told(more) == ("session", (1, 2), 7)


def test_quantiles_are_the_median_and_two_tails():
    times = [np.arange(1.0, 101.0)]
    found = unpaired([[[[times]]], [[[[np.ones(100)]]]]], 0)
    assert np.exp(found.value) == pytest.approx([50.5, 90, 99])


@pytest.mark.parametrize(("count", "few"), [(1, 1), (2, 2), (3, 1.5), (9, 9 / 8)])
def test_drawn_blocks_vary_less_than_blocks_do(count, few):
    """By a factor (k - 1) / k of k blocks; of one nothing is known."""
    centres = np.arange(float(count))
    picks = resamples(count, 50, 0)
    found = _node(centres, picks, np.zeros(2), np.zeros((50, 2)))
    assert found.variance[0] == pytest.approx(few * np.median(centres[picks], axis=1).var())
    assert found.value.tolist() == [np.median(centres), 0, 0]


def test_blocks_may_differ_in_length():
    blocks = [np.ones(20), 2 * np.ones(19), 2 * np.ones(19)]
    found = paired([[(blocks, [0.5 * block for block in blocks])]], 0)
    assert np.exp(found.value) == pytest.approx([2, 2, 2])


@pytest.mark.parametrize(("spread", "scale"), [(6.5, (4 + 6.5) / 5), (6.75, 6.75)])
def test_it_is_refuted_by_what_chance_makes_once_in_a_hundred(spread, scale):
    """Chi-squared of one degree of freedom exceeds 6.635 with a probability of 0.01."""
    gap = PAIR * np.sqrt(2 * spread)
    (mean,), df = _means([[Node(gap, np.zeros(3)), Node(0 * gap, np.zeros(3))]], USUAL)
    assert df == 5
    assert mean.value == pytest.approx(gap / 2)
    assert mean.variance == pytest.approx(PAIR**2 / 2 * scale)
