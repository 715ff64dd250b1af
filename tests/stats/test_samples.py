"""Which blocks of some samples are used, and which side was disturbed."""

from dataclasses import replace

import numpy as np
import pytest
from bench_samples import made
from judged_samples import built, edited

from kdcompile.stats import latency_test
from kdcompile.stats.latency_interval import PairedTimes, limit_verdict, ratio_interval
from kdcompile.stats.latency_test import compare
from kdcompile.stats.pairing import by_runs, interleaved, leans
from kdcompile.stats.samples import days_apart, samples_from_json, sessions


def disturb(samples, *where):
    for process, block in where:
        samples = edited(samples, lambda b: replace(b, disturbed="load"), process, block)
    return samples


def test_disturbed_blocks_are_given_only_where_they_are_asked_for():
    samples = disturb(built([[[[1, 1], [2, 2], [3, 3]]]]), (0, 1))
    assert [block.ms[0] for block in samples.blocks()] == [1, 3]
    assert [block.ms[0] for block in samples.blocks(disturbed=True)] == [1, 2, 3]
    _, _, left_out = by_runs(samples)
    assert (left_out, by_runs(samples, every=True)[2]) == (1, 0)
    clean = built([[[[1, 1], [2, 2], [3, 3]]]])
    for pair in ((samples, clean), (clean, samples)):
        assert (interleaved(*pair)[1], interleaved(*pair, every=True)[1]) == (1, 0)


@pytest.mark.parametrize(
    ("blocks", "used"), [((3, 2), (3, 2)), ((2, 1), (2,)), ((1, 1), (1, 1)), ((3, 1), (3,))]
)
def test_a_process_of_one_block_is_used_where_none_has_two(blocks, used):
    samples = built([[[[1.0, 1.0]] * count for count in blocks]])
    (pairs,), left_out = interleaved(samples, samples)
    assert tuple(len(ours) for ours, _ in pairs) == used
    assert left_out == sum(blocks) - sum(used)
    (((kept,),), _, gone) = by_runs(samples)
    assert (tuple(map(len, kept)), gone) == (used, left_out)


@pytest.mark.parametrize(("own", "others"), [((6, 5, 5), (1, 1, 2)), ((6, 6, 5), (1, 1, 1))])
def test_a_side_leans_where_chance_makes_it_less_than_once_in_200(own, others):
    """16 of 20 by the sign test: 0.0059; 17 of 20: 0.0013."""
    ours, theirs = made(runs=1, seed=1), made(runs=1, seed=2)
    ours = disturb(ours, *((p, b) for p, count in enumerate(own) for b in range(count)))
    theirs = disturb(theirs, *((p, 9 - b) for p, count in enumerate(others) for b in range(count)))
    side = "candidate" if sum(own) == 17 else None
    assert leans(ours, theirs, paired=True) == side
    assert leans(theirs, ours, paired=True) == (side and "reference")


@pytest.mark.parametrize(
    ("processes", "leaning", "side"),
    [(4, 2, None), (5, 3, "candidate"), (5, 2, None), (1, 1, "candidate")],
)
@pytest.mark.parametrize("paired", [True, False])
def test_a_side_leans_where_most_of_its_processes_do(processes, leaning, side, paired):
    clean = built([[[[1.0, 1.0]] * 20] * processes])
    ours = disturb(clean, *((p, b) for p in range(leaning) for b in range(20)))
    assert leans(ours, clean, paired=paired) == side
    assert leans(clean, clean, paired=paired) is None


def test_a_process_of_the_common_share_leans_to_neither_side():
    """64 of 160 blocks: two processes of the candidate have more, and two have 8 of their 20."""
    clean = built([[[[1.0, 1.0]] * 20] * 4])
    ours = disturb(clean, *((p, b) for p, n in enumerate((20, 20, 8, 8)) for b in range(n)))
    theirs = disturb(clean, *((p, b) for p in range(4) for b in range(2)))
    assert leans(ours, theirs, paired=False) is None
    assert leans(disturb(ours, (2, 8)), theirs, paired=False) == "candidate"


@pytest.mark.parametrize(("later", "apart"), [("08:10:00", False), ("08:10:01", True)])
def test_sessions_lie_more_than_ten_minutes_apart(later, apart):
    first, second = "2026-01-01T08:00:00", f"2026-01-01T{later}"
    assert (sessions([[first], [second]]) is not None) == apart
    sides = [built([[[[1.0]]]])] * 2
    sides = [
        replace(side, runs=(replace(side.runs[0], started=time),))
        for side, time in zip(sides, (first, second), strict=True)
    ]
    assert days_apart(*sides) == apart


def test_the_first_field_at_fault_is_named():
    good = built([[[[1.0, 2.0]]]])
    assert samples_from_json(good.to_json()) == good
    with pytest.raises(ValueError, match=r"^name: "):
        samples_from_json(good.to_json() | {"name": 3})
    with pytest.raises(ValueError, match=r"^sha256: "):
        samples_from_json(good.to_json() | {"sha256": 3, "runs": 4})


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [(1, 2, "passed", "failed"), (1, 3, "passed", "inconclusive"),
     (3, 4, "inconclusive", "passed"), (4, 5, "failed", "passed"),
     (2, 4, "inconclusive", "inconclusive"), (3, 3, "passed", "passed")],
)  # fmt: skip
def test_a_limit_is_kept_by_the_whole_interval_or_by_none_of_it(low, high, most, least):
    assert limit_verdict(low, high, 3) == most
    assert limit_verdict(low, high, 3, is_least=True) == least


def test_latencies_below_a_millisecond_have_a_ratio():
    times = PairedTimes(np.full(6, 0.5), np.full(6, 0.25), 1)
    assert ratio_interval(times, 0) == (2.0, 2.0, 2.0)


def test_the_draws_of_blocks_are_those_of_seed_0_where_none_is_named():
    sides = made(runs=1, seed=1, noise=0.1), made(runs=1, seed=2, noise=0.1)
    found = compare(*sides, paired=True)
    assert found == compare(*sides, paired=True, seed=0) != compare(*sides, paired=True, seed=1)


@pytest.mark.parametrize("paired", [True, False])
def test_without_a_step_of_the_clock_a_ratio_is_known_to_a_factor_of_1000(paired):
    ones = built([[[[1.0, 1.0]] * 20]])
    for ratio in compare(ones, ones, paired=paired).ratios:
        assert (ratio.low, ratio.high) == (pytest.approx(1e-3), pytest.approx(1e3))


def test_what_would_decide_is_asked_at_the_level_of_the_median(monkeypatch):
    asked = []
    monkeypatch.setattr(latency_test, "more_blocks", lambda *values: asked.append(values))
    sides = made(1.01, runs=1, seed=1, noise=0.5), made(runs=1, seed=2, noise=0.5)
    found = compare(*sides, paired=True, level=0.01)
    ((_, tail, wanted, blocks, inferences),) = asked
    value = abs(np.log(found.ratios[0].value))
    assert tail == pytest.approx(0.008)
    half = np.log1p(0.03) / 2
    assert wanted == pytest.approx(value if value > half else 2 * half - value, rel=1e-3)
    assert (blocks, inferences) == (30, sum(len(b.ms) for b in sides[0].blocks()))
