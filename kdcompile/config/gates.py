"""`[gates]`: the proofs that a build must bring."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kdcompile.config.distill import Closed


def _fraction(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise ValueError('write a percentage, such as "5%"')
    return text


def _provable(text: str) -> str:
    if not fraction(text):
        raise PydanticCustomError(
            "unprovable",
            "no number of images proves that none got worse, for the next one may be",
            {"fix": 'give a limit over 0%: "5%" takes 59 test images of which none got worse, '
             '"1%" takes 299'},
        )  # fmt: skip
    return text


Percent = Annotated[str, AfterValidator(_fraction)]
Share = Annotated[Percent, AfterValidator(_provable)]  # of images that got worse, at most
Evidence = Literal["device", "host", "predicted"]
MetricName = Literal["mae", "rmse", "top1", "game1", "game2", "game3"]
METRICS_OF: Mapping[str, tuple[str, ...]] = {  # by the kind of the task
    "counting": ("mae", "rmse", "game1", "game2", "game3"),
    "classification": ("top1",),
    "regression": ("mae", "rmse"),
}


def fraction(percent: str) -> float:
    """0.05 of "5%"."""
    return float(percent.rstrip("%")) / 100


class GateSpec(Closed):
    """What every gate may say."""

    required: bool = True
    evidence: Evidence = "host"


class AccuracyGate(GateSpec):
    """Student against teacher, paired over the test images.

    Without a metric it is the task's first: mae, or top1 for classification. The limits of an
    error (mae, rmse, game1 to game3) are shares of the teacher's value, those of top1 percentage
    points.
    """

    metric: MetricName | None = None
    max_increase: Percent = "5%"
    margin: Percent = "15%"


class SpeedupGate(GateSpec):
    """Teacher latency over student latency, on the target.

    Of a target that is not this machine the latency model decides it, with its band, until the
    device is measured; `evidence = "host"` is accepted and changes nothing there.
    """

    min: float = Field(gt=0)


class SizeGate(GateSpec):
    """The largest deployable file, in units of 10^6 bytes."""

    max: float = Field(gt=0)


class EnergyGate(GateSpec):
    """Energy of one inference, in mJ, where the device tells it."""

    evidence: Evidence = "device"
    max: float = Field(gt=0)


class MemoryGate(GateSpec):
    """Peak memory of the network, in units of 10^6 bytes, where the device tells it."""

    max: float = Field(gt=0)


class ParityGate(GateSpec):
    """Deployed network against the trained one on the same images."""

    min_sqnr_db: float = 20.0


class StrataGate(GateSpec):
    """Student against teacher in each part of the test images: by density, value or class."""

    metric: MetricName | None = None
    margin: Percent = "30%"


class FlipsGate(GateSpec):
    """The share of test images that the student has worse than the teacher.

    For classes: right by the teacher and wrong by the student. Else: an absolute error that grew
    by more than `tolerance`, a share of the teacher's mean absolute error.
    """

    max: Share
    tolerance: Percent = "100%"


class PreviousGate(GateSpec):
    """Student against the network of an earlier bundle, on the same test images.

    The limits are those of the accuracy gate, beside the earlier network's values.
    """

    bundle: Path | None = Field(
        default=None, description="folder of the earlier bundle; --baseline BUNDLE names it too"
    )
    metric: MetricName | None = None
    max_increase: Percent = "5%"
    margin: Percent = "15%"
    max_flips: Share | None = Field(
        default=None, description="largest share of images that got worse; told only, if absent"
    )
    tolerance: Percent = "100%"


class Gates(Closed):
    """The proofs that the build must bring."""

    accuracy: AccuracyGate = AccuracyGate()
    parity: ParityGate = ParityGate()
    speedup: SpeedupGate | None = None
    size_mb: SizeGate | None = None
    energy_mj: EnergyGate | None = None
    memory_mb: MemoryGate | None = None
    strata: StrataGate | None = None
    flips: FlipsGate | None = None
    previous: PreviousGate | None = None

    def with_metrics(self, kind: str) -> "Gates":
        """The same with the metric of a task of this kind wherever none is named: its first."""
        named = {
            name: settings.model_copy(update={"metric": settings.metric or METRICS_OF[kind][0]})
            for name in ("accuracy", "strata", "previous")
            if (settings := getattr(self, name)) is not None
        }
        return self.model_copy(update=named)

    def check_metrics(self, kind: str) -> str | None:
        """Which metric is none of a task of this kind, in words, or None."""
        for name in ("accuracy", "strata", "previous"):
            metric = getattr(getattr(self, name), "metric", None)
            if metric is not None and metric not in METRICS_OF[kind]:
                return f"gates.{name}.metric {metric!r} is not one of {kind}"
        return None
