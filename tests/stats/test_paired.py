import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.stats.alternating import (
    MIN_BLOCKS,
    PairedTimes,
    alternate,
    median_interval,
    ratio_interval,
)


@pytest.fixture(autouse=True)
def _blocks_as_in_a_build(monkeypatch):
    monkeypatch.setattr("kdcompile.stats.alternating.BLOCK_SECONDS", 0.3)


class FakeClock:
    """Time that passes only in the timed calls; `calls` is their order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def call(self, name: str, seconds: float, drift: float = 0.0):
        def timed() -> None:
            self.calls.append(name)
            self.now += seconds * (1 + drift * self.now)

        return timed

    def __call__(self) -> float:
        return self.now


def test_alternate_order_is_ab_ba_after_the_warmup() -> None:
    clock = FakeClock()
    times = alternate(
        clock.call("a", 4.0), clock.call("b", 1.0), blocks=6, warmup=2, seconds=30, clock=clock
    )
    assert "".join(clock.calls) == "abab" + "abbaabbaabba"
    assert times.repeats == 1
    np.testing.assert_allclose(times.a, np.full(6, 4000.0))
    np.testing.assert_allclose(times.b, np.full(6, 1000.0))


def test_fast_calls_are_repeated_within_a_block() -> None:
    clock = FakeClock()
    times = alternate(
        clock.call("a", 0.008), clock.call("b", 0.002), blocks=10, warmup=1, seconds=2, clock=clock
    )
    assert times.repeats == 19
    np.testing.assert_allclose(times.a, np.full(10, 8.0))
    np.testing.assert_allclose(times.b, np.full(10, 2.0))


def test_calls_that_stall_on_a_busy_machine_do_not_count() -> None:
    """Of a network with more threads that wait for one another most calls may."""
    clock = FakeClock()
    stalls = iter([0.0, *[0.0, 0.4, 0.4] * 100])

    def a() -> None:
        clock.now += 0.01 + next(stalls)

    times = alternate(a, clock.call("b", 0.002), blocks=6, warmup=1, seconds=0.3, clock=clock)
    assert times.repeats == 3
    np.testing.assert_allclose(times.a, np.full(6, 10.0))
    assert ratio_interval(times, 0) == pytest.approx((5.0, 5.0, 5.0))


def test_total_time_is_bounded_but_for_the_fewest_blocks() -> None:
    clock = FakeClock()
    slow = alternate(
        clock.call("a", 50.0), clock.call("b", 50.0), blocks=40, warmup=1, seconds=5, clock=clock
    )
    assert len(slow.a) == len(slow.b) == MIN_BLOCKS
    clock = FakeClock()
    a, b = clock.call("a", 0.5), clock.call("b", 0.5)
    some = alternate(a, b, blocks=40, warmup=1, seconds=20, clock=clock)
    assert len(some.a) == 20
    assert clock.now <= 1 + 20


@pytest.mark.parametrize(("blocks", "warmup"), [(MIN_BLOCKS - 1, 1), (MIN_BLOCKS, 0)])
def test_too_few_blocks_or_no_warmup_are_refused(blocks: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="needs blocks"):
        alternate(lambda: None, lambda: None, blocks=blocks, warmup=warmup)


def test_a_drifting_machine_does_not_shift_the_ratio() -> None:
    clock = FakeClock()
    a, b = clock.call("a", 3.0, drift=5e-3), clock.call("b", 1.0, drift=5e-3)
    times = alternate(a, b, blocks=30, warmup=1, seconds=150, clock=clock)
    assert times.a.max() > 1.5 * times.a.min()
    ratio, low, high = ratio_interval(times, 0)
    assert low <= 3.0 <= high
    assert ratio == pytest.approx(3.0, rel=0.03)


def test_ratio_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    truth, covered, runs = 4.0, 0, 120
    for run in range(runs):
        shared = 1 + 0.1 * rng.standard_normal(30)  # what slows both: clocks, neighbours
        a = truth * shared * (1 + 0.05 * rng.standard_normal(30))
        b = shared * (1 + 0.05 * rng.standard_normal(30))
        _, low, high = ratio_interval(PairedTimes(a, b, 1), run)
        covered += low <= truth <= high
    assert 0.88 <= covered / runs <= 1.0


def test_median_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    found = [median_interval(rng.normal(4.0, 0.2, 30), run)[1:] for run in range(120)]
    covered = sum(low <= 4.0 <= high for low, high in found)
    assert 0.88 <= covered / 120 <= 1.0


def test_intervals_are_the_same_for_the_same_seed_and_narrow_without_noise() -> None:
    rng = np.random.default_rng(0)
    times = PairedTimes(rng.uniform(3, 5, 30), rng.uniform(1, 2, 30), 1)
    assert ratio_interval(times, 3) == ratio_interval(times, 3) != ratio_interval(times, 4)
    assert median_interval(np.full(8, 2.5), 0) == (2.5, 2.5, 2.5)


def test_a_clock_that_sees_nothing_is_an_error() -> None:
    with pytest.raises(KDError, match="no measurable time"):
        ratio_interval(PairedTimes(np.ones(6), np.zeros(6), 1), 0)
