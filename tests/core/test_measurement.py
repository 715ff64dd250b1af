"""Interleaved measurement with a clock that only the measured calls advance."""

import numpy as np
import pytest

from kdcompile.core.interleave import MIN_BLOCKS
from kdcompile.core.measurement import Settings, measure
from kdcompile.stats.latency_interval import PairedTimes, ratio_interval


@pytest.fixture(autouse=True)
def _blocks_as_in_a_build(monkeypatch):
    monkeypatch.setattr("kdcompile.core.measurement.BLOCK_SECONDS", 0.3)


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


def test_the_order_is_ab_ba_after_the_warmup() -> None:
    clock = FakeClock()
    times = measure(
        {"a": clock.call("a", 4.0), "b": clock.call("b", 1.0)},
        Settings(blocks=6, warmup=2, seconds=30),
        clock,
    )
    assert "".join(clock.calls) == "abab" + "abbaabbaabba"
    assert times.repeats == 1
    np.testing.assert_allclose(times.ms["a"], np.full(6, 4000.0))
    np.testing.assert_allclose(times.ms["b"], np.full(6, 1000.0))


def test_fast_calls_are_repeated_within_a_block() -> None:
    clock = FakeClock()
    times = measure(
        {"a": clock.call("a", 0.008), "b": clock.call("b", 0.002)},
        Settings(blocks=10, warmup=1, seconds=2),
        clock,
    )
    assert times.repeats == 19
    np.testing.assert_allclose(times.ms["a"], np.full(10, 8.0))
    np.testing.assert_allclose(times.ms["b"], np.full(10, 2.0))


def test_calls_that_stall_on_a_busy_machine_do_not_count() -> None:
    """Of a network with more threads that wait for one another most calls may."""
    clock = FakeClock()
    stalls = iter([0.0, *[0.0, 0.4, 0.4] * 100])

    def a() -> None:
        clock.now += 0.01 + next(stalls)

    times = measure({"a": a, "b": clock.call("b", 0.002)}, Settings(6, 1, 0.3), clock)
    assert times.repeats == 3
    np.testing.assert_allclose(times.ms["a"], np.full(6, 10.0))
    assert ratio_interval(PairedTimes(times.ms["a"], times.ms["b"], 1), 0) == pytest.approx(
        (5.0, 5.0, 5.0)
    )


def test_total_time_is_bounded_but_for_the_fewest_blocks() -> None:
    clock = FakeClock()
    slow = measure(
        {"a": clock.call("a", 50.0), "b": clock.call("b", 50.0)},
        Settings(blocks=40, warmup=1, seconds=5),
        clock,
    )
    assert len(slow.ms["a"]) == len(slow.ms["b"]) == MIN_BLOCKS
    clock = FakeClock()
    a, b = clock.call("a", 0.5), clock.call("b", 0.5)
    some = measure({"a": a, "b": b}, Settings(40, 1, 20), clock)
    assert len(some.ms["a"]) == 20
    assert clock.now <= 1 + 20


@pytest.mark.parametrize(("blocks", "warmup"), [(MIN_BLOCKS - 1, 1), (MIN_BLOCKS, 0)])
def test_too_few_blocks_or_no_warmup_are_refused(blocks: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="needs blocks"):
        measure({"a": lambda: None}, Settings(blocks, warmup))


def test_a_drifting_machine_does_not_shift_the_ratio() -> None:
    clock = FakeClock()
    a, b = clock.call("a", 3.0, drift=5e-3), clock.call("b", 1.0, drift=5e-3)
    times = measure({"a": a, "b": b}, Settings(30, 1, 150), clock)
    assert times.ms["a"].max() > 1.5 * times.ms["a"].min()
    ratio, low, high = ratio_interval(PairedTimes(times.ms["a"], times.ms["b"], 1), 0)
    assert low <= 3.0 <= high
    assert ratio == pytest.approx(3.0, rel=0.03)


def test_the_order_of_three_rotates_and_the_calls_of_a_block_are_bounded() -> None:
    clock = FakeClock()
    runners = {name: clock.call(name, 0.001) for name in "abc"}
    times = measure(runners, Settings(6, 1, 30, repeats=2), clock)
    assert times.repeats == 2
    turns = ["aaabbbccc", "bbbcccaaa", "cccaaabbb"] * 2
    assert "".join(clock.calls) == "abc" + "".join(turns)
