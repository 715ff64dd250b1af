"""How often the verdict is wrong, on a few hundred simulated comparisons with a fixed seed."""

import numpy as np
import pytest

from kdcompile.stats.hierarchical import paired, unpaired

QUANTILE = 2.576  # of the normal distribution, 99.5 %


def sides(random, builds, processes, blocks, *, build_sd=0.0, process_sd=0.003, noise=0.01):
    """Pairs of builds of processes of blocks of 10 inferences, that differ by chance alone."""

    def side(effect):
        times = np.exp(effect + random.normal(0, noise, (blocks, 10)))
        return list(times)

    found = []
    for _ in range(builds):
        ours, theirs = random.normal(0, build_sd, 2)
        effects = random.normal(0, process_sd, processes)
        found.append([(side(ours + e), side(theirs)) for e in effects])
    return found


def alarms(estimates, share=0.004):
    """Share of estimates whose one-sided interval leaves out no change."""
    from scipy.special import stdtrit

    beyond = [e.value[0] / e.error[0] > stdtrit(e.df, 1 - share) for e in estimates]
    return np.mean(beyond)


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
@pytest.mark.parametrize("blocks", [4, 20])
def test_a_usual_spread_is_covered(processes, blocks):
    random = np.random.default_rng(0)
    found = [paired(sides(random, 1, processes, blocks), 0) for _ in range(300)]
    assert alarms(found) <= 0.02  # 0.004 expected: more than 6 of 300 is a chance of 1 in 3,000
    assert alarms(found, 0.1) == pytest.approx(0.1, abs=0.06)


def test_the_error_is_that_of_the_ratio():
    random = np.random.default_rng(1)
    found = [paired(sides(random, 1, 4, 10), 0) for _ in range(300)]
    spread = np.std([e.value[0] for e in found])
    assert np.mean([e.error[0] for e in found]) == pytest.approx(spread, rel=0.15)


def test_the_spread_of_many_processes_overrules_the_usual_one():
    random = np.random.default_rng(2)
    found = [paired(sides(random, 1, 30, 8, process_sd=0.03), 0) for _ in range(60)]
    spread = np.std([e.value[0] for e in found])
    assert np.mean([e.error[0] for e in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("processes", [3, 6])
@pytest.mark.parametrize("process_sd", [0.02, 0.05])
def test_a_spread_that_refutes_the_usual_one_is_not_drawn_towards_it(processes, process_sd):
    random = np.random.default_rng(8)
    found = [paired(sides(random, 1, processes, 8, process_sd=process_sd), 0) for _ in range(150)]
    assert alarms(found) <= 0.04  # of three it was 0.07


def test_the_spread_of_builds_is_not_taken_for_that_of_processes():
    random = np.random.default_rng(3)
    found = [paired(sides(random, 4, 3, 8, build_sd=0.01), 0) for _ in range(200)]
    assert {e.level for e in found} == {"build"}
    assert alarms(found) <= 0.025
    pooled = [
        paired([[p for build in sides(random, 4, 3, 8, build_sd=0.01) for p in build]], 0)
        for _ in range(200)
    ]
    assert alarms(pooled, 0.1) > 1.2 * alarms(found, 0.1)


@pytest.mark.parametrize("runs", [3, 8])
def test_runs_apart_are_covered(runs):
    random = np.random.default_rng(4)

    def side(count):
        levels = random.normal(0, 0.006, count)
        return [
            [[list(np.exp(level + random.normal(0, 0.01, (8, 10)))) for _ in range(3)]]
            for level in levels
        ]

    found = [unpaired((side(1), side(runs)), 0) for _ in range(200)]
    assert {(e.level, e.units) for e in found} == {("run", (1, runs))}
    assert alarms(found) <= 0.02


def test_a_process_beside_other_work_does_not_drown_the_rest():
    random = np.random.default_rng(5)
    calm = sides(random, 1, 3, 20, process_sd=0.001)
    wild = [(list(np.exp(random.normal(0, 0.8, (20, 10)))), list(np.ones((20, 10))))]
    without, beside = paired(calm, 0), paired([calm[0] + wild], 0)
    assert abs(beside.value[0] - without.value[0]) < 0.001
    assert beside.error[0] < 1.5 * without.error[0]


def test_tails_are_those_of_all_inferences():
    random = np.random.default_rng(6)
    times = [np.exp(random.normal(0, 0.3, (20, 25))) for _ in range(2)]
    found = paired([[(list(times[0]), list(times[1]))]], 0)
    for at, share in ((1, 0.9), (2, 0.99)):
        ours, theirs = (np.quantile(t, share, method="inverted_cdf") for t in times)
        assert found.value[at] == pytest.approx(np.log(ours / theirs))


def test_the_ratio_is_the_median_of_neighbours_ratios():
    random = np.random.default_rng(7)
    ours, theirs = np.exp(random.normal(0, 0.5, (2, 21, 5)))
    wanted = np.median(np.log(np.median(ours, axis=1) / np.median(theirs, axis=1)))
    found = paired([[(list(ours), list(theirs))]], 0)
    assert found.value[0] == pytest.approx(wanted)


def test_two_blocks_do_not_look_surer_than_they_are():
    """Drawn twice of two, medians vary by d^2 / 8; a mean of two by d^2 / 4."""
    ours = [np.full(5, value) for value in np.exp([0.0, 0.2])]
    found = paired([[(ours, [np.ones(5)] * 2)]], 0)
    assert found.error[0] == pytest.approx(0.1, rel=0.1)
