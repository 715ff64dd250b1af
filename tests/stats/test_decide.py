"""The verdict: what it says of which samples, and what it says nothing of."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from bench_samples import made
from judged_samples import built, edited
from scipy.special import stdtrit

from kdcompile.stats import latency_test
from kdcompile.stats.comparison import MIN_INFERENCES
from kdcompile.stats.latency_test import compare
from kdcompile.stats.sample_size import MIN_BLOCKS

ONE = {"runs": 1}


def test_equal_sides_are_equivalent():
    found = compare(made(**ONE, seed=1), made(**ONE, seed=2), paired=True)
    assert found.decision == "equivalent"
    assert found.exit_code == 0
    assert found.more_blocks is None
    median = found.ratios[0]
    assert 1 / 1.03 < median.low < 1 < median.high < 1.03
    assert "less than 3 %" in found.reason
    assert "3 processes" in found.reason


@pytest.mark.parametrize(
    ("ms", "decision", "exit_code"), [(1.05, "regressed", 3), (0.95, "improved", 0)]
)
def test_a_change_is_told(ms, decision, exit_code):
    found = compare(made(ms, **ONE, seed=1), made(**ONE, seed=2), paired=True)
    assert (found.decision, found.exit_code) == (decision, exit_code)
    assert found.ratios[0].value == pytest.approx(ms, rel=0.003)
    assert f"{100 * (found.ratios[0].value - 1):+.1f} %" in found.reason


def test_a_change_of_the_margin_is_found():
    found = compare(made(1.03, **ONE, seed=1), made(**ONE, seed=2), paired=True)
    assert found.decision == "regressed"


@pytest.mark.parametrize("share", [0.52, 0.7, 0.85])
def test_a_change_beyond_half_the_margin_that_may_be_more_is_a_regression(share):
    """Surely slower, and for all that is known by more than the margin."""
    slower, spread = share * np.log(1.03), 0.0065 * np.array([-1.0, 0.0, 1.0])
    fine = 1 + 1e-9 * np.arange(400.0).reshape(20, 20)
    ours, theirs = built([np.exp(slower + spread)[:, None, None] * fine]), built([[fine] * 3])
    found = compare(ours, theirs, paired=True)
    median = found.ratios[0]
    assert 1 < median.low < median.value < 1.03 < median.high
    assert (median.decision, found.decision) == ("regressed", "regressed")
    found = compare(theirs, ours, paired=True)
    assert found.ratios[0].decision == "improved"


def test_a_spread_that_chance_makes_once_in_a_hundred_is_not_drawn_towards_the_usual():
    """Of three processes: chi-squared 7.7 and 9.4, and 9.2 is what one in 100 is beyond."""
    fine = 1 + 1e-9 * np.arange(400.0).reshape(20, 20)

    def half_width(spread):
        values = np.exp(spread * np.array([-1.0, 0.0, 1.0]))[:, None, None]
        return _width(compare(built([values * fine]), built([[fine] * 3]), paired=True))

    assert half_width(0.0065) > 1.4 * half_width(0.006)
    assert half_width(0.006) < 1.2 * half_width(0.005)


@pytest.mark.parametrize(("slow", "which", "gate"), [(15, 1, 1.1), (3, 2, 1.25)])
@pytest.mark.parametrize(("share", "decision"), [(0.8, "inconclusive"), (1.1, "regressed")])
def test_a_tail_has_to_be_slower_by_all_of_its_margin(slow, which, gate, share, decision):
    """Surely slower is not enough: a few wild inferences move a tail."""
    even = 1 + 1e-9 * np.arange(3000.0).reshape(3, 10, 100)
    tail = np.where(np.arange(100) < slow, gate**share, 1.0)
    found = compare(built([even * tail]), built([even]), paired=True)
    assert found.ratios[which].low > 1
    assert found.ratios[which].decision == decision
    assert found.decision == ("regressed" if decision == "regressed" else "equivalent")


def test_a_sure_change_within_the_margin_is_equivalent():
    found = compare(made(1.015, **ONE, seed=1), made(**ONE, seed=2), paired=True)
    assert found.decision == "equivalent"
    assert found.ratios[0].low > 1


def test_the_margin_is_the_users():
    sides = made(1.05, **ONE, seed=1), made(**ONE, seed=2)
    assert compare(*sides, paired=True, margin=0.1).decision == "equivalent"
    found = compare(*sides, paired=True, margin=0.06)
    assert [r.margin for r in found.ratios] == pytest.approx([0.06, 0.2, 0.5])


def test_a_lower_level_is_less_sure():
    sides = made(1.02, **ONE, seed=1, noise=0.02), made(**ONE, seed=2, noise=0.02)
    wide, narrow = (compare(*sides, paired=True, level=level) for level in (0.0005, 0.05))
    for few, many in zip(wide.ratios, narrow.ratios, strict=True):
        assert few.low < many.low < many.high < few.high


def test_noise_is_inconclusive_and_says_what_would_decide():
    sides = made(1.01, **ONE, seed=1, noise=0.5), made(**ONE, seed=2, noise=0.5)
    found = compare(*sides, paired=True)
    assert found.decision == "inconclusive"
    assert found.exit_code == 5
    assert found.more_blocks is not None
    assert f"about {found.more_blocks} more blocks" in found.reason


def test_what_was_asked_for_decides():
    def sides(processes):
        shape = {"runs": 1, "processes": processes, "noise": 0.2}
        return made(1.0, seed=1, **shape), made(1.0, seed=2, **shape)

    first = compare(*sides(3), paired=True)
    assert first.decision == "inconclusive"
    more = compare(*sides(3 + 2 * -(-first.more_blocks // 10)), paired=True)
    assert more.decision == "equivalent"


def test_ten_samples_are_too_few_whatever_they_say():
    shape = {"runs": 1, "processes": 1, "blocks": 10, "inferences": 1}
    found = compare(made(1.1, **shape, seed=1), made(**shape, seed=2), paired=True)
    assert found.decision == "inconclusive"
    assert found.more_blocks == MIN_INFERENCES - 10
    assert str(MIN_INFERENCES) in found.reason
    assert all(ratio.decision == "inconclusive" for ratio in found.ratios)


@pytest.mark.parametrize(
    ("blocks", "inferences", "decision"),
    [(7, 100, "inconclusive"), (8, 100, "regressed"), (8, 4, "inconclusive"), (8, 5, "regressed")],
)
def test_few_blocks_or_inferences_are_too_few_whatever_they_hold(blocks, inferences, decision):
    """8 blocks and 40 inferences of each side are the least."""
    shape = {"runs": 1, "processes": 1, "blocks": blocks, "inferences": inferences}
    found = compare(made(3.0, **shape, seed=1), made(**shape, seed=2), paired=True)
    assert found.decision == decision
    assert found.more_blocks == (None if decision == "regressed" else {7: 1, 8: 2}[blocks])


@pytest.mark.parametrize("paired", [True, False])
def test_one_inference_has_an_interval(paired):
    shape = {"runs": 1, "processes": 1, "blocks": 1, "inferences": 1}
    found = compare(made(**shape, seed=1), made(**shape, seed=2), paired=paired)
    assert found.decision == "inconclusive"
    json.dumps(found.to_json(), allow_nan=False)


def test_the_interval_is_students_at_the_level_of_each_quantile():
    ones = built([[1 + 1e-9 * np.arange(400.0).reshape(20, 20)]])  # no spread, by a fine clock
    found = compare(ones, ones, paired=True, level=0.005)
    halves = [stdtrit(4, 1 - 0.005 * share) for share in (0.8, 0.1, 0.1)]
    wanted = [half * sd for half, sd in zip(halves, (0.003, 0.01, 0.05), strict=True)]
    assert [np.log(r.high) for r in found.ratios] == pytest.approx(wanted)
    assert [np.log(r.low) for r in found.ratios] == pytest.approx([-w for w in wanted])


def test_one_process_says_what_it_assumes():
    shape = {"runs": 1, "processes": 1, "blocks": 20}
    found = compare(made(**shape, seed=1), made(**shape, seed=2), paired=True)
    assert "one process" in found.reason
    three = compare(made(**ONE, seed=1), made(**ONE, seed=2), paired=True)
    assert _width(found) > 1.5 * _width(three)


def test_a_slower_tail_is_found_by_its_own_gate():
    rng = np.random.default_rng(0)

    def side(share):
        times = np.exp(rng.normal(0, 0.005, (3, 20, 30)))
        return built([times * np.where(rng.random(times.shape) < share, 2.0, 1.0)])

    found = compare(side(0.05), side(0.002), paired=True)
    assert [ratio.decision for ratio in found.ratios] == ["equivalent", "equivalent", "regressed"]
    assert found.decision == "regressed"
    assert found.reason.startswith("p99 changed by +")
    assert "gate of +25.0 %" in found.reason
    found = compare(side(0.3), side(0.002), paired=True)
    assert found.ratios[1].decision == "regressed"


def test_two_speeds_of_one_machine_do_not_make_the_ratio_jump():
    """Half of the time everything takes twice as long; 9 against 11 blocks is chance."""
    rng = np.random.default_rng(3)
    slow = np.where(np.arange(20) < 9, 2.0, 1.0)[:, None]
    also = np.where(np.arange(20) < 11, 2.0, 1.0)[:, None]
    ours = [np.exp(rng.normal(0, 0.004, (20, 30))) * slow for _ in range(4)]
    theirs = [np.exp(rng.normal(0, 0.004, (20, 30))) * also for _ in range(4)]
    pooled = np.median(np.concatenate(theirs)) / np.median(np.concatenate(ours))
    assert pooled > 1.5
    assert compare(built([ours]), built([theirs]), paired=True).decision == "equivalent"


def test_builds_are_a_level_above_processes():
    def side(effects, seed):
        rng = np.random.default_rng(seed)
        arrays = [np.exp(e + rng.normal(0, 0.003, (3, 20, 20))) for e in effects]
        return built(arrays, shas=[f"{seed}-{i}" for i in range(len(effects))])

    steady = compare(side([0, 0, 0], 1), side([0, 0, 0], 2), paired=True)
    spread = compare(side([0, 0.03, -0.03], 1), side([0, 0, 0], 2), paired=True)
    assert "3 builds" in steady.reason
    assert _width(spread) > 1.4 * _width(steady)


def test_processes_of_one_pair_of_engines_belong_together_in_any_run():
    a, b = made(runs=2, seed=1), made(runs=2, seed=2)
    assert "interleaved, 6 processes" in compare(a, b, paired=True).reason


@pytest.mark.parametrize("paired", [True, False])
def test_disturbed_blocks_are_left_out(paired):
    a, b = made(**ONE, seed=1), made(**ONE, seed=2)
    clean = compare(a, b, paired=paired)

    def disturb(block):
        return replace(block, ms=tuple(9 * ms for ms in block.ms), disturbed="clock fell")

    for block in (0, 4):
        a = edited(a, disturb, process=1, block=block)
    b = edited(b, disturb, process=1, block=7)
    found = compare(a, b, paired=paired)
    assert found.decision == clean.decision
    assert (found.left_out, found.blocks) == (3, 27 if paired else 28)
    assert found.ratios[0].value == pytest.approx(clean.ratios[0].value, rel=0.002)


def test_a_process_of_disturbed_blocks_is_left_out_whole():
    a, b = made(**ONE, seed=1), made(**ONE, seed=2)
    for block in range(10):
        a = edited(a, lambda x: replace(x, disturbed="load"), process=2, block=block)
    found = compare(a, b, paired=True)
    assert (found.left_out, found.blocks) == (10, 20)
    assert "2 processes" in found.reason


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("left", "out"), [(1, 10), (2, 8)])
def test_two_blocks_that_are_left_of_a_process_are_used(left, out, paired):
    a, b = made(**ONE, seed=1), made(**ONE, seed=2)
    for block in range(10 - left):
        a = edited(a, lambda x: replace(x, disturbed="load"), process=2, block=block)
    assert compare(a, b, paired=paired).left_out == out


@pytest.mark.parametrize("paired", [True, False])
def test_one_block_that_is_left_of_a_process_has_no_say(paired):
    """It has no spread of its own, and would weigh more than the processes that have one."""
    a, b = made(**ONE, seed=1), made(**ONE, seed=2)
    for block in range(9):
        a = edited(a, lambda x: replace(x, disturbed="load"), process=2, block=block)
    a = edited(a, lambda x: replace(x, ms=tuple(1.3 * t for t in x.ms)), process=2, block=9)
    found = compare(a, b, paired=paired)
    clean = compare(made(**ONE, seed=1), b, paired=paired)
    assert (found.left_out, found.blocks) == (10, 20)
    assert found.decision != "regressed"
    assert found.ratios[0].value == pytest.approx(clean.ratios[0].value, rel=0.02)


def test_from_samples_alone_runs_are_the_units_and_the_report_says_so():
    found = compare(made(1.2, **ONE, seed=1), made(runs=3, seed=2), paired=False)
    assert found.decision == "regressed"
    assert not found.paired
    assert "from samples alone, 1 run against 3" in found.reason


def test_runs_that_differ_widen_what_samples_alone_say():
    def reference(effects):
        runs = [made(np.exp(e), **ONE, seed=9 + i).runs[0] for i, e in enumerate(effects)]
        return replace(made(), runs=tuple(runs))

    ours = made(1.06, **ONE, seed=1)
    steady = compare(ours, reference([0, 0, 0, 0, 0]), paired=False)
    restless = compare(ours, reference([0, 0.05, -0.05, 0.04, -0.04]), paired=False)
    assert steady.decision == "regressed"
    assert restless.decision == "inconclusive"
    assert _width(restless) > 2 * _width(steady)


def test_too_few_runs_of_the_reference_cannot_be_made_up_for():
    runs = [made(m, **ONE, seed=5 + i).runs[0] for i, m in enumerate((1.0, 1.6, 0.6))]
    found = compare(made(**ONE), replace(made(), runs=tuple(runs)), paired=False)
    assert found.decision == "inconclusive"
    assert found.more_blocks is None
    assert "more runs of the reference" in found.reason


def test_more_reference_runs_are_surer():
    widths = [
        _width(compare(made(**ONE, seed=1), made(runs=runs, seed=2), paired=False))
        for runs in (1, 3, 9)
    ]
    assert all(few > many for few, many in pairwise(widths))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("ms", [1.0, 1.5, 1e6])
def test_constant_latencies_tell_nothing_of_the_clock_that_counted_them(ms, paired):
    ours, theirs = (
        built([np.full((3, 20, 20), value) for _ in "ab"], shas=("x", "y")) for value in (ms, 1.0)
    )
    found = compare(ours, theirs, paired=paired)
    assert (found.decision, found.more_blocks) == ("inconclusive", None)
    assert "the clock counts in steps" in found.reason
    assert found.ratios[0].value == pytest.approx(ms)
    assert found.ratios[0].low < ms < found.ratios[0].high
    json.dumps(found.to_json(), allow_nan=False)


def _width(found):
    return np.log(found.ratios[0].high / found.ratios[0].low)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("value", "near", "far", "decision"),
    [
        (0.2, 0.1, 0.5, "changed"),
        (0.125, 0.1, 0.5, "inconclusive"),  # half of the margin, and not beyond it
        (0.1, 0.05, 0.5, "inconclusive"),
        (0.2, 0.0, 0.5, "inconclusive"),  # the interval reaches no change
        (0.2, -0.1, 0.5, "inconclusive"),
        (0.2, 0.15, 0.24, "equivalent"),  # within the margin, though surely a change
        (0.1, -0.2, 0.25, "inconclusive"),  # as far as the margin, and not within it
        (0.0, -0.24, 0.24, "equivalent"),
    ],
)
def test_each_edge_of_a_decision(side, value, near, far, decision):
    """On logarithms, a margin of 0.25 of which half must be passed; slower and faster alike."""
    low, high = sorted((side * near, side * far))
    words = {"changed": "regressed" if side > 0 else "improved"}
    found = latency_test._decide(side * value, low, high, 0.25, 0.5)
    assert found == words.get(decision, decision)


def test_what_would_decide_depends_on_the_medians_own_share_of_the_margin():
    assert latency_test._wanted(0.2, 0.25) == 0.2
    assert latency_test._wanted(0.1, 0.25) == 0.15


@pytest.mark.parametrize(
    ("inferences", "decision"),
    [((20, 20), "equivalent"), ((2, 20), "inconclusive"), ((20, 2), "inconclusive")],
)
def test_either_side_may_have_too_few_inferences(inferences, decision):
    """Blocks are as many on both sides; the inferences in them need not be."""
    sides = [built([[np.tile(1 + 1e-6 * np.arange(n), (MIN_BLOCKS, 1))]]) for n in inferences]
    assert compare(*sides, paired=True, margin=0.1).decision == decision


def test_a_ratio_beyond_what_a_float_holds_stays_a_number():
    assert latency_test._exp(1e6) == math.exp(700)
    assert latency_test._exp(-1e6) == math.exp(-700)
