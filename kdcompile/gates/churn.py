"""Gate `flips`: the share of test images on which the student is worse than the teacher.

A share of images, however good the mean is: Yan et al., Positive-Congruent Training (CVPR 2021),
call it the negative flip rate where a class that was right becomes wrong. For counts and values a
image flips where its absolute error grows by more than a tolerance, a share of the reference's mean
absolute error. With low and high the one-sided 95 % bounds of the share (Clopper and Pearson,
1934, exact for any number of images) the verdict is

    passed        high <= max
    failed        low > max
    inconclusive  otherwise
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.gates import GateSpec, Percent, Share, fraction
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.registry import Decidable, gate, of_all
from kdcompile.stats.noninferiority import check_pairs
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.reference import changes
from kdcompile.tasks.task import Task


@dataclass(frozen=True)
class Flips:
    """Which images got worse.

    Args:
        worse: bool [N].
        rule: when an image counts as worse, in words.
        low: one-sided 95 % lower bound of their share.
        high: one-sided 95 % upper bound of it.
    """

    worse: NDArray[np.bool_]
    rule: str
    low: float
    high: float

    @property
    def share(self) -> float:
        """Of all photos."""
        return float(self.worse.mean())

    def text(self) -> str:
        """How many got worse, with the interval."""
        return (
            f"{int(self.worse.sum())} of {len(self.worse)} images got worse "
            f"({self.share:.1%}; {self.low:.1%} to {self.high:.1%} at 95 %)"
        )

    def judge(self, most: float) -> tuple[Verdict, str]:
        """The verdict by the rule that this module states, and why."""
        n, high, limit = len(self.worse), _percent(self.high), _percent(most)
        if self.high <= most:
            return "passed", f"at most {high} at 95 %, within {limit}"
        if self.low > most:
            return "failed", f"at least {_percent(self.low)} at 95 %, over {limit}"
        needed = photos_that_decide(int(self.worse.sum()), n, most)
        told = "no number of them decides a share that is the limit"
        if needed is not None:
            told = f"{needed} with this share of worse ones would decide"
        photos = f"{n} image{'s'[: n != 1]} leave{'s'[: n == 1]}"
        return "inconclusive", f"{photos} up to {high} possible, over {limit}; {told}"

    def measurement(self, context: VerifyContext, whose: str) -> Measurement:
        """The share, against that reference."""
        return context.measurement(
            f"photos worse than {whose}", self.share, "1", low=self.low, high=self.high,
            n=len(self.worse), mode=f"{self.rule}; each bound one-sided 95 %",
        )  # fmt: skip


def find_flips(task: Task, reference: Floats, errors: Floats, tolerance: float) -> Flips:
    """The images that a network has worse than a reference.

    Args:
        task: what the errors are of.
        reference: errors of the reference, [N].
        errors: of the network that is judged, on the same photos.
        tolerance: by which an error may grow, as a share of the reference's mean absolute error;
            not used for classes.

    Raises:
        KDError: `accuracy-images`, `accuracy-unpaired` or `accuracy-nonfinite`.
    """
    check_pairs(reference, errors)
    found = changes(task, reference, errors, tolerance)
    bounds = share_bounds(int(found.worse.sum()), len(found.worse))
    return Flips(found.worse, found.rule, *bounds)


def photos_that_decide(count: int, n: int, most: float) -> int | None:
    """How many images with the same share of worse ones would decide; None where no number does.

    Args:
        count: images that got worse.
        n: of so many, which do not decide.
        most: the largest share allowed.
    """

    def decides(photos: int) -> bool:
        fewest, rest = divmod(count * photos, n)  # rounded to what decides less
        high, low = share_bounds(fewest + (rest > 0), photos)[1], share_bounds(fewest, photos)[0]
        return high <= most or low > most

    return least_number(decides, n)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


class FlipsGate(GateSpec):
    """The share of test images that the student has worse than the teacher.

    For classes: right by the teacher and wrong by the student. Else: an absolute error that grew
    by more than `tolerance`, a share of the teacher's mean absolute error.
    """

    max: Share
    tolerance: Percent = "100%"


def _threshold(settings: FlipsGate, task: Task) -> str:
    return f"at most {settings.max} of the images worse than by the teacher, at 95 %"


def _easiest(
    settings: FlipsGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    def rule(n: int) -> tuple[Verdict, str]:
        right = np.zeros(n)
        worse = find_flips(task, right, right, fraction(settings.tolerance))
        return worse.judge(fraction(settings.max))

    return of_all("flips", len(true), rule)


@gate(
    "flips",
    FlipsGate,
    threshold=_threshold,
    needs=("predictions",),
    kind="accuracy",
    rank=7,
    easiest=_easiest,
    on_board="build_engine.py --test PACK predicts them; kdcompile bundle --merge decides",
)
def flips(settings: FlipsGate, context: VerifyContext) -> GateResult:
    """Judge the share of images that the student has worse, by the rule that this module states."""
    task, outcomes = context.task, context.outcomes
    errors = [task.errors(p, outcomes.true) for p in (outcomes.teacher, outcomes.student)]
    found = find_flips(task, errors[0], errors[1], fraction(settings.tolerance))
    verdict, reason = found.judge(fraction(settings.max))
    return GateResult(
        name="flips",
        verdict=verdict,
        evidence=context.evidence,
        required=settings.required,
        threshold=_threshold(settings, context.task),
        observed=found.text(),
        reason=f"{reason}; worse is {found.rule}, on {outcomes.scope}",
        measurements=(found.measurement(context, "the teacher's"),),
    )


def share_bounds(count: int, n: int, confidence: float = 0.9) -> tuple[float, float]:
    """The two-sided exact interval (Clopper and Pearson, 1934) of a share of images.

    Each end is wrong no more often than it says, for any number of images: of none in n the upper
    one at 95 % is 1 - 0.05^(1/n), about 3/n.

    Args:
        count: images that have a property.
        n: images, at least 1.
        confidence: of the interval; each end of one at 90 % is a one-sided 95 % bound.
    """
    from scipy.special import betaincinv  # here: a plan loads the gates, and no SciPy

    tail = (1 - confidence) / 2
    low = betaincinv(count, n - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return float(low), float(high)
