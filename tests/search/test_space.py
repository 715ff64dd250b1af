"""How candidates are drawn: distinct, repeatable, and from the best on."""

from random import Random

import pytest

from kdcompile.search.spaces.base import BINS, KEPT, Costed, candidates, elite, identity


class Numbers:
    """Students are numbers below a limit; the fastest is 1."""

    def __init__(self, limit, uniform=()):
        self.limit, self.uniform, self.drawn = limit, uniform, []

    def random(self, draw):
        return self._kept(draw.randrange(self.limit), "random")

    def mutate(self, architecture, draw):
        return self._kept((architecture["n"] + draw.choice((-1, 1))) % self.limit, "mutate")

    def cross(self, one, other, draw):
        return self._kept((one["n"] + other["n"]) // 2, "cross")

    def corners(self):
        return [{"n": 0}, {"n": self.limit - 1}]

    def uniform_students(self):
        return [{"n": n} for n in self.uniform]

    def kernels(self, architecture, precision):
        raise AssertionError("the cost is given")

    def _kept(self, number, how):
        self.drawn.append(how)
        return {"n": number}


def _cost(architecture):
    return 1.0 + architecture["n"], architecture["n"], -architecture["n"] % 7


def _draw(space, number, seed=0):
    return candidates(space, number, _cost, Random(seed))


def test_the_same_seed_gives_the_same_candidates():
    first, again, other = (_draw(Numbers(5000), 300, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({identity(c.architecture) for c in first}) == len(first) == 302


def test_corners_and_uniform_students_are_there_whatever_the_number():
    found = _draw(Numbers(5000, uniform=(17, 18, 0)), 3)
    assert [c.architecture["n"] for c in found[:4]] == [0, 4999, 17, 18]
    assert len(found) == 4 + 3


def test_a_space_that_is_used_up_ends():
    found = _draw(Numbers(5), 1000)
    assert sorted(c.architecture["n"] for c in found) == [0, 1, 2, 3, 4]


def test_later_generations_come_from_the_best():
    space = Numbers(10**6)
    _draw(space, 1000)
    assert set(space.drawn[:100]) == {"random"}
    later = space.drawn[100:]
    assert {later.count(how) * 10 // len(later) for how in ("cross", "mutate")} <= {2, 3, 4, 5}


def test_the_best_of_each_latency_are_the_elite():
    draw = Random(3)
    found = [Costed({"n": n}, 2 ** (n / 100), 0, draw.random()) for n in range(1000)]
    kept = elite(found)
    assert BINS * KEPT - KEPT <= len(kept) <= BINS * KEPT
    assert min(found, key=lambda c: c.guess) in kept
    slow = [c for c in found if c.ms > 500]
    assert min(slow, key=lambda c: c.guess) in kept


@pytest.mark.parametrize("number", [0, 1, 5])
def test_equal_latencies_are_one_range(number):
    found = [Costed({"n": n}, 2.0, 0, n) for n in range(number)]
    assert elite(found) == found[:KEPT]
