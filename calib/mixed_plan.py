"""Plan of a mixed network: the fewest layers, weighed by cost, go back from int8 to fp16."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdcompile.calib.costs import Costs
from kdcompile.calib.precision_regions import islands

EQUAL = 1e-9  # latencies closer than this share of them are the same: sums are rounded

Passes = Callable[[frozenset[str]], bool]


@dataclass(frozen=True)
class Step:
    """One move of the plan: what was done to which layers, and what came of it.

    action: `start`, `drop` (an island, or a layer of one, that saves nothing), `revert` (for
    accuracy) or `restore`. `passed` is None where the set that came of it was not evaluated.
    """

    action: str
    layers: tuple[str, ...]
    latency_ms: float
    passed: bool | None


@dataclass(frozen=True)
class MixedPlan:
    """Layers by name: in int8, in fp16 and why, and how that was found.

    `latency_ms` is of the quantisable layers and the recast tensors; `fp16_ms` the same with none
    quantised; `macs_share` the share of the network's MACs in int8, None if unknown.
    """

    quantised: tuple[str, ...]
    reverted: tuple[str, ...]
    reasons: Mapping[str, str]
    steps: tuple[Step, ...]
    latency_ms: float
    fp16_ms: float
    basis: str
    summary: str
    macs_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan_mixed(
    benefit: Mapping[str, float],
    costs: Costs,
    near: Mapping[str, Collection[str]],
    passes: Passes,
) -> MixedPlan:
    """Choose the layers that stay in int8.

    Only layers that are faster in int8 start there. While the set does not pass, the layer with
    the most benefit per millisecond goes; then those that turn out needless come back, the one
    that saves most first. No island of int8 ever stays that saves no more than the change of
    precision at its edges costs, whatever its accuracy.

    Greedy: with benefits that add up and no cost of reformatting, at most the cost of one layer
    above the optimum. `passes` is asked once for a set, at most 2L + 1 times for L layers.

    Args:
        benefit: of each quantisable layer, how much accuracy its reverting returns.
        costs: in milliseconds.
        near: which layers may share an island, `Junctions.neighbours`.
        passes: whether a set of quantised layers keeps the limits.
    """
    search = _Search(benefit, costs, near, passes)
    search.start()
    search.revert()
    search.restore()
    return search.plan()


class _Search:
    """The quantised set as it changes, and the record of its changes."""

    def __init__(
        self,
        benefit: Mapping[str, float],
        costs: Costs,
        near: Mapping[str, Collection[str]],
        passes: Passes,
    ) -> None:
        self.benefit, self.costs, self.near, self.passes = benefit, costs, near, passes
        self.quantised = frozenset[str]()
        self.evaluated: dict[frozenset[str], bool] = {}
        self.reasons: dict[str, str] = {}
        self.steps: list[Step] = []

    def start(self) -> None:
        """All layers that are faster in int8, without the islands that are not worth it."""
        slower = [n for n in self.benefit if not self.costs.int8_ms[n] < self.costs.fp16_ms[n]]
        for name in slower:
            self.reasons[name] = (
                f"int8 is not faster there: {self.costs.int8_ms[name]:.4g} ms "
                f"against {self.costs.fp16_ms[name]:.4g} ms in fp16 ({self.costs.basis})"
            )
        self.quantised = frozenset(self.benefit) - frozenset(slower)
        self._note("start", self.quantised, None)
        self._drop()

    def revert(self) -> None:
        """Until the set passes, the layer that returns most accuracy per millisecond."""
        while self.quantised and not self._passes(self.quantised):
            self.steps[-1] = replace(self.steps[-1], passed=False)
            name = max(self._ordered(self.quantised), key=self._worth)
            lost = self._lost(frozenset({name}))
            self.reasons[name] = (
                f"reverted for accuracy: benefit {self.benefit[name]:.3g} for {lost:.4g} ms"
            )
            self.quantised -= {name}
            self._note("revert", [name], None)
            self._drop()
        if self.quantised:
            self.steps[-1] = replace(self.steps[-1], passed=True)

    def restore(self) -> None:
        """Take back what is faster in int8 and passes: a later revert may have made it needless."""
        refused = set[str]()
        while True:
            now = self.costs.latency_ms(self.quantised)
            saved = {
                name: now - self.costs.latency_ms(self.quantised | {name})
                for name in self._ordered(frozenset(self.reasons) - refused)
                if self.costs.int8_ms[name] < self.costs.fp16_ms[name]
            }
            worth = [name for name, ms in saved.items() if ms > EQUAL * now]
            if not worth:
                return
            name = max(worth, key=lambda n: saved[n])
            wider = self.quantised | {name}
            if self._useless(wider) is None and self._passes(wider):
                self.quantised = wider
                del self.reasons[name]
                self._note("restore", [name], True)
            else:
                refused.add(name)

    def plan(self) -> MixedPlan:
        """What the search came to."""
        quantised = tuple(self._ordered(self.quantised))
        reverted = tuple(name for name in self.benefit if name not in self.quantised)
        latency, half = (self.costs.latency_ms(s) for s in (self.quantised, frozenset[str]()))
        summary = (
            f"{len(quantised)} of {len(self.benefit)} layers in int8, {latency:.4g} ms against "
            f"{half:.4g} ms in fp16 ({self.costs.basis})"
            if quantised
            else "mixed is fp16: no layer is worth int8 within the limits"
        )
        return MixedPlan(
            quantised, reverted, {name: self.reasons[name] for name in reverted},
            tuple(self.steps), latency, half, self.costs.basis, summary,
        )  # fmt: skip

    def _passes(self, quantised: frozenset[str]) -> bool:
        if quantised not in self.evaluated:
            self.evaluated[quantised] = self.passes(quantised)
        return self.evaluated[quantised]

    def _worth(self, name: str) -> tuple[bool, float]:
        """Accuracy per millisecond; layers that return none come last, the cheapest first."""
        lost = self._lost(frozenset({name}))
        gain = self.benefit[name]
        return (True, gain / lost) if gain > 0 else (False, -lost)

    def _lost(self, part: frozenset[str]) -> float:
        """Milliseconds that reverting some of the quantised layers costs."""
        return self.costs.latency_ms(self.quantised - part) - self.costs.latency_ms(self.quantised)

    def _drop(self) -> None:
        while (part := self._useless(self.quantised)) is not None:
            reason = (
                f"its island of {len(part)} int8 layers saves no more than changing precision at "
                f"its edges costs: {-self._lost(part):.4g} ms slower than in fp16"
            )
            self.quantised -= part
            self.reasons |= dict.fromkeys(part, reason)
            self._note("drop", part, None)

    def _useless(self, quantised: frozenset[str]) -> frozenset[str] | None:
        """An island, or a layer of one, without which the network is no slower."""
        now = self.costs.latency_ms(quantised)
        single = (frozenset({name}) for name in self._ordered(quantised))
        for part in (*islands(quantised, self.near), *single):
            if self.costs.latency_ms(quantised - part) <= now * (1 + EQUAL):
                return part
        return None

    def _ordered(self, names: Collection[str]) -> list[str]:
        return [name for name in self.benefit if name in names]

    def _note(self, action: str, names: Collection[str], passed: bool | None) -> None:
        latency = self.costs.latency_ms(self.quantised)
        self.steps.append(Step(action, tuple(self._ordered(names)), latency, passed))
