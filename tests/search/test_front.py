"""The Pareto front, how sure it is, and what a budget picks of it."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.latency_model.predict import Estimate, Part
from kdcompile.search.pareto import Point, best, front, impossible, keeps, likely_front, limit_ms
from kdcompile.tasks.metric import MAE, TOP1


def point(ms, quality, sd=1.0, evidence="predicted", band=1.3, measured=None, macs=None, name="p"):
    bounds = {"arithmetic": ms, "memory": 0.0, "launch": 0.0}
    parts = (Part("conv1", "conv", ("conv1",), ms, "arithmetic", True),)
    latency = Estimate(ms, ms / band, ms * band, False, "fp16", bounds, parts, ("a note",))
    architecture = {"family": "shrink", "width": ms, "name": name}
    work = int(1e9 * ms) if macs is None else macs
    return Point(architecture, latency, quality, sd, evidence, work, 1000, measured)


TEACHER = point(10.0, 70.0, 0.0, "measured")
POINTS = st.lists(
    st.tuples(st.floats(0.1, 100), st.floats(10, 200), st.floats(0, 20)), min_size=1, max_size=12
)


@given(POINTS, st.sampled_from([MAE, TOP1]))
def test_no_point_of_the_front_is_beaten_and_every_other_is(values, metric):
    points = [point(*value) for value in values]
    found = front(points, metric)
    assert found == sorted(found, key=lambda p: p.ms)
    for p in points:
        dominated = any(
            q.ms <= p.ms and not metric.is_better(p.quality, q.quality) for q in points if q != p
        )
        assert (p in found) or dominated
        if p in found:
            assert not any(
                q.ms <= p.ms
                and not metric.is_better(p.quality, q.quality)
                and (q.ms < p.ms or metric.is_better(q.quality, p.quality))
                for q in points
            )
    likely = likely_front(points, metric)
    assert all(p in likely for p in found)


def test_a_proxy_decides_nothing():
    fast = point(1.0, 50.0, evidence="proxy")
    unknown = point(0.5, math.nan)
    slow = point(2.0, 90.0)
    assert front([fast, unknown, slow], MAE) == [slow]
    assert likely_front([fast, unknown, slow], MAE) == [slow]
    assert best([fast, slow], Budget(latency_ms=5.0), TEACHER, MAE) == slow


def test_the_front_goes_by_what_was_measured():
    slower = point(1.0, 80.0, measured=3.0)
    other = point(2.0, 80.0)
    assert front([slower, other], MAE) == [other]


def test_points_within_the_uncertainty_are_likely():
    leader = point(1.0, 80.0, 1.0)
    near = point(1.02, 80.5, 1.0)
    worse = point(1.5, 120.0, 1.0)
    unsure = point(1.5, 120.0, 60.0)
    found = likely_front([leader, near, worse, unsure], MAE)
    assert found == [leader, near, unsure]


def test_what_latencies_share_does_not_blur_their_order():
    leader, slower = point(1.0, 80.0, band=3.0), point(1.6, 120.0, band=3.0)
    assert likely_front([leader, slower], MAE, shared=0.0) == [leader, slower]
    assert likely_front([leader, slower], MAE, shared=0.99) == [leader]


def test_equal_points_are_named_once():
    one, two = point(1.0, 80.0, name="a"), point(1.0, 80.0, name="b")
    assert front([one, two], MAE) == [one]
    assert likely_front([one, two], MAE) == [one, two]


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [({"latency_ms": 5.0}, 4.0), ({"speedup": 4.0}, 2.0), ({"macs": 1.5e9}, 1.0)],
)
def test_the_best_under_a_budget(budget, chosen):
    points = [point(1.0, 90.0), point(2.0, 80.0), point(3.0, 85.0), point(4.0, 76.0)]
    points.append(point(6.0, 71.0))
    found = best(points, Budget(**budget), TEACHER, MAE)
    assert found.ms == chosen
    assert keeps(Budget(**budget), found, TEACHER)


def test_the_budget_in_milliseconds():
    assert limit_ms(Budget(speedup=4.0), TEACHER) == 2.5
    assert limit_ms(Budget(latency_ms=3.0), TEACHER) == 3.0
    assert limit_ms(Budget(macs=3.0), TEACHER) is None


@pytest.mark.parametrize(
    "budget", [{"latency_ms": 0.012}, {"speedup": 3000.0}, {"macs": 5.0}], ids=str
)
def test_an_impossible_budget_names_one_that_can_be_kept(budget):
    points = [point(0.012345 * k, 100.0 - k, macs=1234567 * k) for k in (1.0, 2.0, 3.0)]
    with pytest.raises(KDError) as error:
        best(points, Budget(**budget), TEACHER, MAE)
    assert error.value.code == "budget-impossible"
    assert "speedup 810, 0.0123 ms (90 % 0.0095 to 0.016)" in error.value.message
    name, value = re.search(r"budget = \{ (\w+) = (\S+) \}", error.value.fix).groups()
    kept = Budget(**{name: float(value)})
    assert list(budget) == [name]
    assert best(points, kept, TEACHER, MAE) == points[0]


def test_a_student_slower_than_the_teacher_is_offered_by_its_latency():
    error = impossible(Budget(speedup=2.0), point(12.0, 80.0), TEACHER)
    assert "latency_ms = 12 " in error.fix
    measured = impossible(Budget(speedup=20.0), point(1.0, 80.0, measured=1.1), TEACHER)
    assert "1.1 ms (measured)" in measured.message
