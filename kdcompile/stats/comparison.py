"""What a comparison of two artifacts' latencies says."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK

Decision = Literal["regressed", "improved", "equivalent", "inconclusive"]
EXIT: Mapping[Decision, int] = {
    "regressed": EXIT_GATE, "improved": EXIT_OK, "equivalent": EXIT_OK,
    "inconclusive": EXIT_INCONCLUSIVE,
}  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """Latency of the candidate over that of the reference, at one quantile.

    Args:
        quantile: `p50`, `p90` or `p99`.
        value: of the samples.
        low, high: the interval at `confidence` of the verdict.
        margin: what counts as no change: a ratio within 1 / (1 + margin) and 1 + margin.
        decision: at this quantile alone.
    """

    quantile: str
    value: float
    low: float
    high: float
    margin: float
    decision: Decision


@dataclass(frozen=True)
class Comparison:
    """A verdict with what it rests on.

    Args:
        decision: of the median; a `regressed` wider gate of p90 or p99 makes it `regressed` too.
        reason: one sentence.
        ratios: p50 first.
        level: chance of a false alarm that was allowed.
        paired: the two were taken in turns, in one run.
        blocks: of each side that were used, and `left_out` as disturbed.
        more_blocks: how many more of each side would decide, as far as it can be told.
    """

    decision: Decision
    reason: str
    ratios: tuple[Ratio, ...]
    level: float
    paired: bool
    blocks: int
    left_out: int
    more_blocks: int | None = None

    @property
    def exit_code(self) -> int:
        """3 for a regression, 5 for no decision, 0 otherwise."""
        return EXIT[self.decision]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"exit_code": self.exit_code}
