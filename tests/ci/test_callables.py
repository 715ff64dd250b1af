"""Functions timed with a clock that only they move."""

import gc
import sys

import pytest

from kdcompile.ci import callables
from kdcompile.ci.callables import MAX_BLOCKS, MIN_BLOCKS, Timer, facts, mode, traced
from kdcompile.core.errors import KDError


class Clock:
    """Time passes in the functions alone; `order` is who was called, without repeats in a row."""

    def __init__(self):
        self.now, self.order, self.collecting = 0.0, [], set()

    def __call__(self):
        return self.now

    def function(self, name, seconds):
        def call():
            self.now += seconds
            self.collecting.add(gc.isenabled())
            if self.order[-1:] != [name]:
                self.order.append(name)

        return call


class Watch:
    """Says that some blocks, by number, were disturbed."""

    def __init__(self, *disturbed):
        self.disturbed, self.number = disturbed, -1

    def begin(self):
        self.number += 1

    def reason(self):
        return "load" if self.number in self.disturbed else None


def timed(a=0.002, b=None, seconds=2.0, watch=None, calls=None):
    clock = Clock()
    named = {"a": clock.function("a", a)} | ({} if b is None else {"b": clock.function("b", b)})
    return clock, Timer(seconds, calls, clock, watch or Watch()).time(named)


def blocks(samples):
    (run,) = samples.runs
    (build,) = run.builds
    (process,) = build.processes
    return process.blocks


def test_the_times_are_those_of_the_clock():
    _, (a, b) = timed(0.002, 0.004)
    assert {round(ms, 9) for block in blocks(a) for ms in block.ms} == {2.0}
    assert {round(ms, 9) for block in blocks(b) for ms in block.ms} == {4.0}
    assert (a.name, b.name) == ("a", "b")
    assert a.sha256 != b.sha256


def test_two_take_turns():
    clock, (a, b) = timed(0.002, 0.004, seconds=10.0)
    assert len(blocks(a)) == len(blocks(b)) >= MIN_BLOCKS
    text = "".join(clock.order[-12:])
    assert text in ("abababababab", "babababababa"), "A B B A has no two blocks of one in a row"
    starts = sorted([(block.at_s, "a") for block in blocks(a)]
                    + [(block.at_s, "b") for block in blocks(b)])  # fmt: skip
    assert "".join(name for _, name in starts[:8]) == "abbaabba"


@pytest.mark.parametrize(("seconds", "calls"), [(0.002, 1), (1e-4, 1), (9e-5, 2), (1e-6, 128)])
def test_a_sample_is_long_enough_for_the_clock(seconds, calls):
    _, (a,) = timed(seconds, seconds=0.5)
    assert a.runs[0].mode["calls_of_a_sample"] == calls
    assert blocks(a)[0].ms[0] == pytest.approx(seconds * 1000)


def test_the_calls_of_a_baseline_are_used_again():
    _, (a,) = timed(0.002, calls=8)
    assert a.runs[0].mode["calls_of_a_sample"] == 8


def test_slow_functions_give_the_least_and_fast_ones_the_most():
    _, (slow,) = timed(5.0)
    assert len(blocks(slow)) == MIN_BLOCKS
    assert {len(block.ms) for block in blocks(slow)} == {5}
    _, (fast,) = timed(1e-4, seconds=10.0)
    assert len(blocks(fast)) == MAX_BLOCKS


def test_more_seconds_are_more_blocks():
    _, (a,) = timed(1e-4, seconds=40.0)
    assert len(blocks(a)) == 4 * MAX_BLOCKS


def test_disturbed_blocks_are_kept_with_their_reason_and_taken_again():
    _, (a,) = timed(1e-4, seconds=10.0, watch=Watch(3, 5))
    assert len(blocks(a)) == MAX_BLOCKS + 2
    assert [i for i, block in enumerate(blocks(a)) if block.disturbed == "load"] == [3, 5]
    _, (a,) = timed(1e-4, seconds=10.0, watch=Watch(*range(1000)))
    assert len(blocks(a)) == MAX_BLOCKS + MAX_BLOCKS // 3


def test_no_garbage_is_collected_within_a_block_and_again_after():
    assert gc.isenabled()
    clock, _ = timed()
    assert False in clock.collecting
    assert gc.isenabled()


def test_a_function_that_raises():
    def broken():
        raise RuntimeError("no")

    with pytest.raises(KDError, match="the timed function raised RuntimeError: no") as error:
        Timer(1.0, watch=Watch()).time({"a": broken})
    assert error.value.code == "callable-failed"
    assert "broken" in error.value.where


def test_a_clock_that_stands():
    with pytest.raises(KDError) as error:
        Timer(1.0, clock=lambda: 0.0, watch=Watch()).time({"a": lambda: None})
    assert error.value.code == "time-zero"


def test_what_must_be_equal(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = facts()
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert found["numpy_version"]
    assert found["python_version"] == sys.version.split()[0]
    assert mode(4)["calls_of_a_sample"] == 4


def test_a_tracer_is_noticed(monkeypatch):
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setattr(sys, "getprofile", lambda: None)
    monkeypatch.setattr(sys, "monitoring", None, raising=False)
    assert not traced()
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    assert traced()


def test_this_process_is_watched():
    watch = callables.process_watch()
    for _ in range(3):
        watch.begin()
        assert watch.reason() is None, "nothing is usual yet that could be exceeded"
