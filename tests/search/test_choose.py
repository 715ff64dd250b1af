"""The budget picks the widest student that keeps it."""

import math

import pytest

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.latency_model.predict import Estimate
from kdcompile.search.pareto import Point, keeps, reachable
from kdcompile.search.uniform_search import widest


def _candidate(width):
    bounds = {"arithmetic": width, "memory": 0.0, "launch": 0.0}
    latency = Estimate(10 * width**2 + 1, 1.0, 20.0, False, "fp16", bounds)
    return Point(
        {"width": width}, latency, math.nan, math.nan, "proxy", 1e9 * width**2, int(1e6 * width**2)
    )


WIDTHS = [n / 16 for n in range(16, 0, -1)]


@pytest.mark.parametrize(
    "budget",
    [{"speedup": 3.0}, {"speedup": 9.0}, {"latency_ms": 5.0}, {"macs": 2e8}, {"latency_ms": 100.0}],
)
def test_widest_that_fits(budget):
    budget, teacher = Budget(**budget), _candidate(1.0)
    chosen = widest(
        [{"width": w} for w in WIDTHS],
        lambda a: _candidate(a["width"]),
        budget,
        {"fp16": teacher},
    )
    fitting = [w for w in WIDTHS if keeps(budget, _candidate(w), teacher)]
    assert chosen.architecture["width"] == max(fitting)


def test_an_impossible_budget_names_the_smallest_reach():
    with pytest.raises(KDError) as error:
        widest(
            [{"width": w} for w in WIDTHS],
            lambda a: _candidate(a["width"]),
            Budget(latency_ms=0.5),
            {"fp16": _candidate(1.0)},
        )
    assert error.value.code == "budget-impossible"
    assert "1.04 ms" in error.value.message
    assert "width 0.0625" in error.value.message
    assert error.value.fix.startswith("set budget = { latency_ms = 1.04 } or weaker")


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"speedup": 99.0}, "speedup = 3.14"),
        ({"macs": 5.0}, "macs = 1.24e+06"),
        ({"latency_ms": 0.1}, "latency_ms = 1.05"),
    ],
    ids=str,
)
def test_the_budget_that_is_proposed_is_kept(budget, told):
    """Rounded to the side on which the student that was priced keeps it."""
    assert reachable(Budget(**budget), 3.149, 1.0401, 1234567) == f"budget = {{ {told} }}"


def test_a_speedup_of_less_than_one_is_no_budget():
    assert reachable(Budget(speedup=2.0), 0.9, 1.0, 10.0) == "budget = { latency_ms = 1 }"
