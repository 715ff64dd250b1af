"""Results of `delta make` and `delta apply`, as `--json` prints them."""

from dataclasses import asdict, dataclass
from typing import Any

from kdcompile.core.report import Verdict


@dataclass(frozen=True)
class Judged:
    """A verdict of photos.

    value, reference: the metric of what the delta makes, and of what it is held against; high: the
    one-sided 95 % bound of how much worse, None for too few photos; loss: that was to be proven,
    as a share.
    """

    verdict: Verdict
    reason: str
    metric: str
    value: float
    reference: float
    high: float | None
    loss: float
    images: int


@dataclass(frozen=True)
class Written:
    """How the change of a tensor is written.

    kind: of `kdcompile.delta.layer`; error: |made - new| / |new - base|; rank: of `rank`, bits of
    an integer of `step`, else 0.
    """

    kind: str
    bytes: int
    error: float
    rank: int
    bits: int


@dataclass(frozen=True)
class _Result:
    """output: the file, None where none was written; base, result: hashes of the weights before
    and after; bytes: of the delta; test: what the test photos say, None without a spec.
    """

    verdict: Verdict
    reason: str
    output: str | None
    base: str
    result: str
    bytes: int
    test: Judged | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Made(_Result):
    """A delta.

    full_bytes: of the new weights in fp16; share: of the delta in that; size: that was allowed;
    validation: what the smallest delta was chosen by.
    """

    full_bytes: int
    share: float
    size: float
    validation: Judged | None
    tensors: dict[str, Written]


@dataclass(frozen=True)
class Applied(_Result):
    """New weights; test holds them against the base, or the weights that were named."""
