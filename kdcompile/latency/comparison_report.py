"""A verdict with everything that a report says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcompile.latency.compatibility import Difference
from kdcompile.latency.summary import disturbances, summary, usage
from kdcompile.stats.comparison import Comparison
from kdcompile.stats.samples import Samples


@dataclass(frozen=True)
class Judged:
    """A comparison of two artifacts, and what it was made from.

    Args:
        comparison: the verdict.
        candidate: what was judged.
        reference: against what.
        allowed: conditions that differ and were allowed by name.
        notes: what a reader must know, such as that no reference ran here.
        looks: how often the verdict was looked at; each spent an equal share of the level.
    """

    comparison: Comparison
    candidate: Samples
    reference: Samples
    allowed: Sequence[Difference] = ()
    notes: Sequence[str] = ()
    looks: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the verdict, both sides in numbers, conditions; no samples."""
        return self.comparison.to_json() | {
            "candidate": described(self.candidate),
            "reference": described(self.reference),
            "allowed": [difference.to_json() for difference in self.allowed],
            "notes": list(self.notes),
            "looks": self.looks,
        }


def described(samples: Samples) -> Mapping[str, Any]:
    """Samples as a report has them: numbers in place of the latencies."""
    last = samples.runs[-1]
    return {
        "name": samples.name,
        "sha256": samples.sha256,
        **summary(samples),
        "disturbances": disturbances(samples),
        "usage": dict(usage(samples)) or None,
        "started": [run.started for run in samples.runs],
        "environment": dict(last.environment),
        "mode": dict(last.mode),
    }
