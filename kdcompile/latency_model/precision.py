"""The precision that a student is priced at: the one that is expected to ship.

The stage `compile` ships the fastest precision that is accurate enough (`backends.choose`). Before
a student is trained nobody knows which those are, so it is priced at the fastest *predicted* one of
the candidates. The budget, the plan and the explanation all ask here.
"""

from collections.abc import Iterable, Sequence

from kdcompile.backends.teacher import teacher_precision
from kdcompile.calib.storage import may_be_fp8
from kdcompile.config.spec import Spec
from kdcompile.core.backends import find
from kdcompile.latency_model.priced import Priced
from kdcompile.targets import Target

# a tie goes to the first; bf16 is left out: it takes as long as fp16, before which it never ships
ORDER = ("int8", "fp16", "fp32", "fp8")


def candidates(spec: Spec, target: Target) -> tuple[str, ...]:
    """The precisions that may ship and have a price: the asked one, or for `auto` all.

    `mixed` has no price before its layers are chosen; fp16 bounds it, as it is no slower.
    """
    asked = spec.quantize.precision
    if asked != "auto":
        return ("fp16",) if asked == "mixed" else (asked,)
    able = find(target.runtime).capabilities(target)
    return tuple(
        precision
        for precision in ORDER
        if precision in target.precisions
        if precision != "fp8" or may_be_fp8(asked, target)
        if not able.refusal(precision, spec.compile.model_dump())
    )


def fastest(priced: Iterable[Priced]) -> Priced:
    """The one of a network's prices, one a precision, that it is expected to ship at."""
    return min(priced, key=lambda each: each.estimate.ms)


def beside(precision: str, precisions: Sequence[str]) -> str:
    """What the teacher computes in beside a student, on a target that has `precisions`."""
    wanted = teacher_precision(precision)
    return wanted if wanted in precisions else "fp32"
