"""Results of `delta make` and `delta apply`, and the application of a delta to its base."""

from dataclasses import dataclass
from pathlib import Path

from kdcompile.config.spec import Spec
from kdcompile.core.report import Verdict
from kdcompile.delta.file import applied, check_output, inputs_of, named, read_delta
from kdcompile.delta.student import LOSS, Judged, Student, judge
from kdcompile.delta.tensors import read_student
from kdcompile.models.factory import write_weights


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


def apply(
    base: Path,
    delta: Path,
    output: Path,
    *,
    spec: Spec | None = None,
    new: Path | None = None,
    loss: float = LOSS,
) -> Applied:
    """Write the new weights, or nothing where a photo-based check does not pass.

    Their hash is always checked: they are to the last bit what `make` has judged.

    Args:
        base: safetensors, or the folder of a distill stage.
        delta: of `make`.
        output: the file; its metadata are the base's.
        spec: its test photos judge the new weights as well.
        new: the weights that they are held against; the base itself if absent.
        loss: of the metric, as a share, with its 95 % bound.

    Raises:
        KDError: `delta-base`, `delta-corrupt`, `delta-foreign`, `delta-newer`, `delta-missing`,
            `delta-weights`, `delta-architecture`, `delta-output`; those of the weights and the
            spec's data.
    """
    check_output(output, (delta, new, *inputs_of(spec)))  # base: updated in place
    found = read_delta(delta)
    before, metadata = read_student(base)
    with named(delta):
        after = applied(found, before, base)
    judged, reason = None, "the hashes of base and result are right"
    if spec is not None:
        student = Student(spec, before, metadata, base)
        against = before if new is None else read_student(new)[0]
        reference, made = (student.errors(each, student.test) for each in (against, after))
        judged = judge(student, made, reference, loss)
        reason = judged.reason
    verdict: Verdict = "passed" if judged is None else judged.verdict
    if verdict == "passed":
        write_weights(output, after, metadata)
    return Applied(
        verdict,
        reason,
        str(output) if verdict == "passed" else None,
        found.base,
        found.result,
        delta.stat().st_size,
        judged,
    )
