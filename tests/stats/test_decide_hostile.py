"""Samples that were made to bring about a wrong verdict."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench_samples import made
from judged_samples import built, edited

from kdcompile.stats.latency_test import compare
from kdcompile.stats.pairing import leans

STEP = 0.0005  # ms, of a clock like that of CUDA's events


def counted(random, ms, step, noise=0.002):
    """Three processes of 20 blocks of 20 latencies by a clock that counts in steps."""
    times = ms * np.exp(random.normal(0, 0.001, (3, 1, 1)) + random.normal(0, noise, (3, 20, 20)))
    return built([np.maximum(np.round(times / step), 1) * step])


@pytest.mark.parametrize("ms", [0.00825, 0.01225, 0.02025])
def test_a_step_of_the_clock_is_no_change(ms):
    """At half a step the median falls to either side of it in all processes alike."""
    random = np.random.default_rng(0)
    for _ in range(20):
        found = compare(
            counted(random, ms * 1.0005, STEP), counted(random, ms * 0.9995, STEP), paired=True
        )
        assert found.decision in ("inconclusive", "equivalent")


@pytest.mark.parametrize("ms", [0.01, 0.012, 0.015])
def test_a_change_below_the_step_is_not_taken_for_none(ms):
    """Each 3 % slower by the design, and of the same median by the clock."""
    random = np.random.default_rng(1)
    ours, theirs = counted(random, ms * 1.015, STEP), counted(random, ms * 0.985, STEP)
    found = compare(ours, theirs, paired=True)
    assert found.decision == "inconclusive"
    assert "the clock counts in steps" in found.reason


def test_a_coarse_clock_still_tells_a_change_that_is_much_larger():
    random = np.random.default_rng(2)
    sides = counted(random, 0.02, STEP, 0.03), counted(random, 0.01, STEP, 0.03)
    assert compare(*sides, paired=True).decision == "regressed"
    assert compare(*sides[::-1], paired=True).decision == "improved"
    long = counted(random, 1.05, STEP), counted(random, 1.0, STEP)
    assert compare(*long, paired=True).decision == "regressed"
    assert compare(long[1], counted(random, 1.0, STEP), paired=True).decision == "equivalent"


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e250])
@pytest.mark.parametrize("paired", [True, False])
def test_a_huge_ratio_has_an_interval_around_it(factor, paired):
    ours, theirs = made(factor, runs=1, seed=1), made(1 / factor, runs=3 - 2 * paired, seed=2)
    found = compare(ours, theirs, paired=paired)
    assert found.decision == ("regressed" if factor > 1 else "improved")
    for ratio in found.ratios:
        assert ratio.low <= ratio.value <= ratio.high
    json.dumps(found.to_json(), allow_nan=False)


def throttled(samples, share, by, processes=range(3)):
    """Of each process the first blocks are slower and marked, as they run hot."""
    for process in processes:
        for block in range(round(share * 10)):
            samples = edited(
                samples,
                lambda b: replace(b, ms=tuple(by * t for t in b.ms), disturbed="the clock fell"),
                process, block,
            )  # fmt: skip
    return samples


def test_what_the_candidate_disturbs_by_itself_is_not_left_out():
    """It throttles the device in most of its blocks: the rest alone would be no slower."""
    ours, theirs = throttled(made(runs=1, seed=1), 0.8, 1.3), made(runs=1, seed=2)
    found = compare(ours, theirs, paired=True)
    assert found.decision == "regressed"
    assert found.ratios[0].value == pytest.approx(1.3, rel=0.05)
    assert "most are of candidate" in found.reason
    assert (found.left_out, found.blocks) == (0, 30)
    all_of_it = throttled(made(runs=1, seed=1), 1.0, 1.3)
    assert compare(all_of_it, theirs, paired=True).decision == "regressed"
    assert compare(theirs, ours, paired=True).decision == "improved"


@pytest.mark.parametrize(("counts", "side"), [((3, 2, 2), None), ((3, 3, 2), "candidate")])
@pytest.mark.parametrize("swapped", [False, True])
def test_eight_disturbed_blocks_on_one_side_are_no_chance(counts, side, swapped):
    """The sign test: 1 in 256 is below 0.005, and 1 in 128 is not."""
    ours, theirs = made(runs=1, seed=1), made(runs=1, seed=2)
    for process, count in enumerate(counts):
        for block in range(count):
            ours = edited(ours, lambda b: replace(b, disturbed="load"), process, block)
    if swapped:
        assert leans(theirs, ours, paired=True) == (side and "reference")
    else:
        assert leans(ours, theirs, paired=True) == side


def test_taken_apart_a_verdict_must_hold_with_disturbed_blocks_and_without():
    ours, theirs = throttled(made(0.9, runs=1, seed=1), 0.6, 1.3), made(runs=3, seed=2)
    found = compare(ours, theirs, paired=False)
    assert (found.decision, found.more_blocks) == ("inconclusive", None)
    assert "improved without the disturbed blocks, not with them" in found.reason
    sure = throttled(made(1.2, runs=1, seed=1), 0.6, 1.1)
    assert compare(sure, theirs, paired=False).decision == "regressed"


def test_other_work_disturbs_both_and_is_left_out():
    sides = [throttled(made(runs=1, seed=seed), 0.4, by) for seed, by in ((1, 1.5), (2, 1.3))]
    found = compare(*sides, paired=True)
    assert (found.decision, found.left_out) == ("equivalent", 12)
    burst = throttled(made(runs=1, seed=1), 1.0, 1.5, processes=[1])
    found = compare(burst, made(runs=1, seed=2), paired=True)
    assert (found.decision, found.left_out) == ("equivalent", 10)


@pytest.mark.parametrize("tail", [1.02, 1.3, 3.0])
def test_clustered_spikes_at_the_edge_of_p99_are_no_regression(tail):
    """Where about one inference in 100 is slow, p99 is either speed by chance."""
    random = np.random.default_rng(3)

    def side():
        times = np.exp(random.normal(0, 0.003, (3, 20, 20)))
        slow = random.random((3, 20, 1)) < 0.05  # in a fifth of such a block
        return built([times * np.where(slow & (random.random(times.shape) < 0.2), tail, 1.0)])

    decisions = [compare(side(), side(), paired=True).decision for _ in range(100)]
    assert decisions.count("regressed") == 0
    assert decisions.count("equivalent") > 90


@pytest.mark.parametrize("inferences", [2, 4, 8])
def test_one_wild_inference_of_few_is_no_regression(inferences):
    shape = {"runs": 1, "processes": 3, "blocks": 8, "inferences": inferences}
    ours = edited(
        made(**shape, seed=1), lambda b: replace(b, ms=(*b.ms[1:], 50.0)), process=1, block=3
    )
    found = compare(ours, made(**shape, seed=2), paired=True)
    assert found.decision == "equivalent"
    assert found.ratios[2].decision != "regressed"
