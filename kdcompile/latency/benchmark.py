"""Result of a latency measurement: the samples, and a comparison with a reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompile.core.errors import EXIT_OK

if TYPE_CHECKING:
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.report import Judged
    from kdcompile.stats.samples import Samples


@dataclass(frozen=True)
class Benchmark:
    """Latencies of an artifact, and what a comparison of them decided.

    Args:
        samples: of the artifact; of the later one, where two are compared.
        plan: how it was measured.
        compared: the comparison with a reference, where there is one.
        saved: the file of the baseline that was written.
        target: of a bundle, the device that it is for.
        baselines: of `compare`, what was read as a baseline, with its file.
    """

    samples: "Samples"
    plan: "Plan"
    compared: "Judged | None" = None
    saved: Path | None = None
    target: str | None = None
    baselines: "tuple[tuple[Path, Baseline] | None, ...]" = ()

    @property
    def decision(self) -> str | None:
        """`regressed`, `improved`, `equivalent` or `inconclusive`; None without a reference."""
        return None if self.compared is None else self.compared.comparison.decision

    @property
    def exit_code(self) -> int:
        """3 for a regression, 5 for no decision, 0 otherwise."""
        return EXIT_OK if self.compared is None else self.compared.comparison.exit_code

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: numbers in place of the samples."""
        from kdcompile.latency.report import described

        found = {"candidate": described(self.samples), "decision": None, "exit_code": EXIT_OK}
        found |= {} if self.compared is None else self.compared.to_json()
        return found | {"saved": None if self.saved is None else str(self.saved)}


def is_baseline(path: Path) -> bool:
    """Whether a path names the file of a baseline and no artifact."""
    return path.suffix == ".json" and not path.is_dir()
