"""The choice of int8 layers, against brute force on small graphs."""

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcompile.calib.costs import Costs
from kdcompile.calib.mixed_plan import MixedPlan, plan_mixed
from kdcompile.calib.precision_regions import islands

Layers = dict[str, int]


def graph_costs(int8: Layers, fp16: Layers, edges: list[tuple[str, str]], reformat: float) -> Costs:
    """Each edge between a quantised and another layer costs one reformat."""

    def change(quantised: frozenset[str]) -> float:
        return reformat * sum((a in quantised) != (b in quantised) for a, b in edges)

    return Costs(int8, fp16, change, "measured")


def near_of(names: list[str], edges: list[tuple[str, str]]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {name: set() for name in names}
    for a, b in edges:
        if a in near and b in near:
            near[a].add(b)
            near[b].add(a)
    return near


class Case:
    """A graph whose layers' errors add up; `limit` is the error that still passes."""

    def __init__(self, noise: Layers, int8, fp16, edges, reformat, limit) -> None:
        self.noise, self.limit, self.asked = noise, limit, []
        self.costs = graph_costs(int8, fp16, edges, reformat)
        self.near = near_of(list(noise), edges)

    def keeps(self, quantised) -> bool:
        return sum(self.noise[name] for name in quantised) <= self.limit

    def passes(self, quantised: frozenset[str]) -> bool:
        self.asked.append(quantised)
        return self.keeps(quantised)

    def plan(self) -> MixedPlan:
        return plan_mixed(self.noise, self.costs, self.near, self.passes)

    def sets(self):
        """Every set of layers that keeps the limit."""
        names = list(self.noise)
        for size in range(len(names) + 1):
            yield from (set(s) for s in combinations(names, size) if self.keeps(s))

    def optimum(self) -> float:
        return min(self.costs.latency_ms(s) for s in self.sets())


@st.composite
def cases(draw, reformat=None, equal=False):
    count = draw(st.integers(1, 6))
    names = [f"l{i}" for i in range(count)]
    small = st.integers(0, 9)
    noise = {name: draw(small) for name in names}
    int8 = {name: 2 if equal else draw(small) for name in names}
    fp16 = {name: 4 if equal else draw(small) for name in names}
    edges = [*zip(names, [*names[1:], "out"], strict=True)]
    pairs = st.sampled_from(list(combinations([*names, "out"], 2)))
    edges += draw(st.lists(pairs, max_size=3, unique=True))
    limit = draw(st.integers(0, 40))
    cost = draw(st.integers(0, 6) if reformat is None else reformat)
    return Case(noise, int8, fp16, edges, cost, limit)


@settings(max_examples=200)
@given(cases())
def test_what_always_holds(case: Case) -> None:
    plan = case.plan()
    chosen, costs = set(plan.quantised), case.costs
    assert case.keeps(chosen)
    assert all(costs.int8_ms[name] < costs.fp16_ms[name] for name in chosen)
    now = costs.latency_ms(chosen)
    for island in islands(chosen, case.near):
        saved = sum(costs.fp16_ms[n] - costs.int8_ms[n] for n in island)
        edges = costs.reformat_ms(frozenset(chosen)) - costs.reformat_ms(frozenset(chosen - island))
        assert saved > edges
    assert all(costs.latency_ms(chosen - {name}) > now for name in chosen)
    better = [n for n in case.noise if costs.int8_ms[n] < costs.fp16_ms[n] and n not in chosen]
    for name in better:  # nothing that pays was left behind
        wider = chosen | {name}
        worth = costs.latency_ms(wider) < now and case.keeps(wider)
        assert not worth or any(costs.latency_ms(wider - {n}) <= costs.latency_ms(wider)
                                for n in wider)  # fmt: skip
    assert plan.latency_ms == now <= plan.fp16_ms == costs.latency_ms(set())
    assert set(plan.reasons) == set(plan.reverted) == set(case.noise) - chosen
    assert len(case.asked) == len(set(case.asked)) <= 2 * len(case.noise) + 1
    assert ("mixed is fp16" in plan.summary) == (not chosen)
    if plan.steps[-1].action != "drop":
        assert math.isclose(plan.steps[-1].latency_ms, now)


@settings(max_examples=200)
@given(cases(reformat=st.just(0), equal=True))
def test_the_fewest_layers_go_back(case: Case) -> None:
    most = max(len(s) for s in case.sets())
    assert len(case.plan().quantised) == most


@settings(max_examples=200)
@given(cases(reformat=st.just(0)))
def test_within_one_layer_of_the_optimum(case: Case) -> None:
    saving = [case.costs.fp16_ms[n] - case.costs.int8_ms[n] for n in case.noise]
    assert case.plan().latency_ms <= case.optimum() + max(0, *saving, 0)


@settings(max_examples=100)
@given(cases(reformat=st.just(0), equal=True), st.integers(1, 10))
def test_a_looser_limit_reverts_no_more(case: Case, more: int) -> None:
    tight = case.plan()
    case.limit += more
    assert len(case.plan().reverted) <= len(tight.reverted)


NAMES = ["a", "b", "c", "d", "e"]
CHAIN = [*zip(NAMES, [*NAMES[1:], "out"], strict=True)]


def chain_case(noise, limit, reformat=1.0, int8=2, fp16=6) -> Case:
    return Case(
        dict(zip(NAMES, noise, strict=True)),
        dict.fromkeys(NAMES, int8),
        dict.fromkeys(NAMES, fp16),
        CHAIN,
        reformat,
        limit,
    )


def test_an_outlier_in_the_middle_goes_alone() -> None:
    case = chain_case([1, 1, 50, 1, 1], limit=10)
    plan = case.plan()
    assert plan.reverted == ("c",)
    assert plan.latency_ms == case.optimum() == 4 * 2 + 6 + 3
    assert "accuracy" in plan.reasons["c"]
    assert [s.action for s in plan.steps] == ["start", "revert"]
    assert [s.passed for s in plan.steps] == [False, True]


def test_an_island_that_does_not_pay_is_dropped() -> None:
    """Reverting c leaves a and b, which pay for one edge, and d and e, which do not for two."""
    case = chain_case([1, 1, 50, 1, 1], limit=10, reformat=4.0)
    plan = case.plan()
    assert plan.quantised == ("a", "b")
    assert plan.latency_ms == case.optimum()
    assert "island of 2" in plan.reasons["d"]
    assert plan.steps[-1].action == "drop"


def test_a_needless_revert_is_taken_back() -> None:
    """a has the best ratio and goes first; then b alone is enough."""
    noise, int8, fp16 = {"a": 3, "b": 10}, {"a": 1, "b": 1}, {"a": 2, "b": 5}
    case = Case(noise, int8, fp16, [], 0, limit=3)
    plan = case.plan()
    assert [s.action for s in plan.steps] == ["start", "revert", "revert", "restore"]
    assert plan.reverted == ("b",)
    assert plan.latency_ms == case.optimum()


def test_a_restored_layer_may_make_no_other_useless() -> None:
    """After a and b, a would come back; beside it c would cost more than it saves."""
    reformat = {frozenset("ac"): 9.0}
    costs = Costs(
        dict.fromkeys("abc", 0),
        {"a": 10, "b": 10, "c": 1},
        lambda quantised: reformat.get(quantised, 0.0),
        "measured",
    )
    noise = {"a": 5, "b": 4, "c": 0}
    plan = plan_mixed(noise, costs, near_of(list("abc"), []), lambda s: s in ({"c"}, {"a", "c"}))
    assert [s.layers for s in plan.steps[1:]] == [("a",), ("b",)]
    assert plan.quantised == ("c",)


def test_nothing_in_int8_is_said() -> None:
    plan = chain_case([9, 9, 9, 9, 9], limit=3).plan()
    assert plan.quantised == ()
    assert plan.summary.startswith("mixed is fp16")
    assert plan.latency_ms == plan.fp16_ms == 30


def test_a_layer_that_int8_does_not_speed_up_is_never_tried() -> None:
    case = chain_case([1, 1, 1, 1, 1], limit=99, reformat=0.1)
    case.costs = graph_costs({**case.costs.int8_ms, "c": 6}, dict(case.costs.fp16_ms), CHAIN, 0.1)
    plan = case.plan()
    assert plan.reverted == ("c",)
    assert "not faster" in plan.reasons["c"]
    assert "measured" in plan.reasons["c"]
    assert all("c" not in asked for asked in case.asked)


@pytest.mark.parametrize("chosen", [set(), {"a"}, {"a", "c"}, {"a", "b", "d", "e"}, set(NAMES)])
def test_islands_are_the_connected_parts(chosen: set[str]) -> None:
    found = list(islands(chosen, near_of(NAMES, CHAIN)))
    assert set().union(*found) == chosen
    gaps = "".join(n if n in chosen else " " for n in NAMES).split()
    assert [sorted(island) for island in found] == [list(gap) for gap in gaps]


def test_the_plan_is_plain_json() -> None:
    data = chain_case([1, 1, 50, 1, 1], limit=10).plan().to_json()
    assert data["reverted"] == ("c",)
    assert data["steps"][0]["action"] == "start"
    assert data["basis"] == "measured"
