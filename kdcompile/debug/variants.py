"""The parity ladder: each form of the network against the one before it, on real images.

    pytorch    the trained module
    exported   what torch.export made of it
    onnx       the fp32 ONNX file
    PRECISION  the file that ships: Q/DQ int8, fp16, mixed
    engine     what runs: the engine at its place, or ONNX Runtime's optimised session on a CPU

A rung that computes in float32 as the one before it may differ by the order of sums only. One that
rounds may spend a tenth of the accuracy gate's margin (`tolerance`), and no more than the parity
gate's signal-to-noise ratio allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdcompile.core.ports import Ports
from kdcompile.data.preprocess import Frame
from kdcompile.debug.distances import alike, apart, cosine, largest, split
from kdcompile.debug.runners import Side
from kdcompile.debug.tolerance import NO_LIMIT, Tolerance, noise
from kdcompile.tasks.agreement import LIMIT_DB, pooled_sqnr
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

Floats = NDArray[np.float32]
Verdict = Literal["reference", "passed", "failed", "absent"]
EXACT = "fp32"
MAX_REL_ERROR = 1e-3  # float32 sums in another order stay far below


@dataclass(frozen=True, eq=False)
class Rung:
    """One form of the network.

    Args:
        name: of the rung.
        what: it is, in words.
        kind: what it rounds to beside the rung before: fp32 (nothing), fp16, int8, ... or tf32.
        side: to run it; None where it is absent.
        absent: why.
        model: its ONNX network, where it has one; of an engine, what it was built from.
        layers: of an engine, from the record beside it.
    """

    name: str
    what: str
    kind: str = EXACT
    side: Side | None = None
    absent: str = ""
    model: "ModelProto | None" = None
    layers: "Sequence[Mapping[str, Any]] | None" = None


@dataclass(frozen=True, eq=False)
class Ladder:
    """The rungs from the trained network up, and what they are judged by.

    Args:
        rungs: at least one that is there.
        images: network inputs, float32 [1, C, H, W].
        task: what the output means.
        metric: that the accuracy gate judges.
        true: annotated values of the images, where they are known.
        tolerance: of the noise of a rung.
        min_sqnr_db: of the parity gate.
        source: what the images are, in words.
        frames: where a photo lies in each image; None where that is not known, and the whole output
            is taken.
        outputs: of networks that run on rows.
    """

    rungs: Sequence[Rung]
    images: Sequence[Floats]
    task: Task
    metric: Metric
    true: Sequence[float] | None
    tolerance: Tolerance
    min_sqnr_db: float
    source: str
    frames: Sequence[Frame] | None = None
    outputs: Ports | None = None

    def within(self, outputs: Sequence[Floats]) -> Sequence[Floats]:
        """The outputs of the images, without what maps say of the padding (`Task.within`)."""
        if self.frames is None:
            return outputs
        each = zip(outputs, self.frames, strict=True)
        return [self.task.within(output, frame) for output, frame in each]


@dataclass(frozen=True)
class Step:
    """One rung against the one before it; numbers are over all images, the cosine the worst.

    Args:
        name: of the rung.
        against: the rung before it that is there.
        verdict: see `Verdict`.
        what: the rung is.
        kind: what it rounds to.
        sqnr_db: 20 log10(|a| / |a - b|) over all images together, in dB.
        cosine: of the outputs' angle.
        max_rel_error: max |a - b| / max |a|.
        noise: of the predictions, relative (`tolerance.noise`).
        metric: the task's, on these images, where their true values are known.
        reason: of the verdict, in words.
        inherits: its output's NaN and infinities are all in the output of the rung before too.
        errors: root mean square error of each image, relative.
    """

    name: str
    against: str | None
    verdict: Verdict
    what: str
    kind: str
    sqnr_db: float | None = None
    cosine: float | None = None
    max_rel_error: float | None = None
    noise: float | None = None
    metric: float | None = None
    reason: str = ""
    inherits: bool = False
    errors: Annotated[tuple[float, ...], Field(exclude=True)] = ()  # not in the JSON document


def climb(ladder: Ladder) -> list[Step]:
    """Judge every rung; a rung that fails does not fail the next, which is compared with it.

    Raises:
        KDError: a rung does not run.
    """
    steps: list[Step] = []
    before: tuple[str, list[Floats]] | None = None
    for rung in ladder.rungs:
        if rung.side is None:
            steps.append(Step(rung.name, None, "absent", rung.what, rung.kind, reason=rung.absent))
            continue
        outputs = [rung.side.run(image)[rung.side.output] for image in ladder.images]
        value = metric_of(ladder, outputs)
        if before is None:
            first = Step(rung.name, None, "reference", rung.what, rung.kind, metric=value)
            steps.append(first)
        else:
            steps.append(judge(ladder, rung, before, outputs, value))
        before = rung.name, outputs
    return steps


def judge(
    ladder: Ladder,
    rung: Rung,
    before: tuple[str, Sequence[Floats]],
    outputs: Sequence[Floats],
    value: float | None = None,
) -> Step:
    """One rung's outputs against those of the rung before, by name."""
    against, references = before
    pairs = list(zip(references, outputs, strict=True))
    is_alike = alike(pairs)
    errors = tuple(apart(a, b, ladder.outputs) for a, b in pairs)
    spent = _spent(ladder, references, outputs, errors) if is_alike else NO_LIMIT
    # over all images together, as the parity gate has it: an image of nothing has no scale
    sqnr = pooled_sqnr(references, outputs) if is_alike else -LIMIT_DB
    each = list(zip(*(split(*pair, ladder.outputs) for pair in pairs), strict=is_alike))
    most = max(largest(of_one) for of_one in each) if is_alike else NO_LIMIT
    reasons = _reasons(ladder, rung, against, pairs, sqnr, most, spent)
    return Step(
        name=rung.name,
        against=against,
        verdict="failed" if reasons else "passed",
        what=rung.what,
        kind=rung.kind,
        sqnr_db=sqnr,
        cosine=min(cosine(a, b) for of_one in each for a, b in of_one),
        max_rel_error=most,
        noise=spent,
        metric=value,
        reason="; ".join(reasons),
        inherits=_inherits(pairs),
        errors=tuple(min(error, NO_LIMIT) for error in errors),
    )


def _spent(
    ladder: Ladder,
    references: Sequence[Floats],
    outputs: Sequence[Floats],
    errors: Sequence[float],
) -> float:
    """How far predictions move, relative; where they are relative errors, the outputs."""
    if ladder.metric.absolute:
        return min(float(np.sqrt(np.mean(np.square(errors)))), NO_LIMIT)
    return noise(ladder.task, ladder.within(references), ladder.within(outputs))


def _reasons(
    ladder: Ladder,
    rung: Rung,
    against: str,
    pairs: Sequence[tuple[Floats, Floats]],
    sqnr: float,
    most: float,
    spent: float,
) -> list[str]:
    """Why the rung fails; nothing where it does not."""
    for a, b in pairs:
        if a.shape != b.shape:
            return [f"its output is {list(b.shape)}, not {list(a.shape)}"]
        if not np.isfinite(b).all():
            also = f", where that of {against} does too" if _inherits(pairs) else ""
            return [f"its output holds NaN or infinity{also}"]
    found = []
    if spent > ladder.tolerance.noise:
        found.append(f"predictions move by {spent:.2g}, over {ladder.tolerance.noise:.2g}")
    if rung.kind == EXACT and most > MAX_REL_ERROR:
        found.append(f"it rounds nothing, and differs by {most:.2g}, over {MAX_REL_ERROR:g}")
    if rung.kind != EXACT and sqnr < ladder.min_sqnr_db:
        found.append(f"{sqnr:.1f} dB, under the parity gate's {ladder.min_sqnr_db:g}")
    return found


def _inherits(pairs: Sequence[tuple[Floats, Floats]]) -> bool:
    """Whether the second outputs hold what is no number, and all of it where the first do."""
    broken = [(a, b) for a, b in pairs if not np.isfinite(b).all()]
    return bool(broken) and all(
        a.shape == b.shape and bool((np.isfinite(b) | ~np.isfinite(a)).all()) for a, b in broken
    )


def metric_of(ladder: Ladder, outputs: Sequence[Floats]) -> float | None:
    """The task's metric of some outputs, None where there is no truth or no number."""
    if ladder.true is None or not all(np.isfinite(output).all() for output in outputs):
        return None
    predicted = [ladder.task.predictions(output)[0] for output in ladder.within(outputs)]
    return ladder.metric(ladder.task.errors(predicted, ladder.true))
