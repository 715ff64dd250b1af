"""What of `[quantize]` the distillation's cache key covers: nothing without `qad`."""

import pytest

from kdcompile.core.files import Hasher
from kdcompile.passes.keys import _section
from kdcompile.passes.stages import STAGES
from kdcompile.targets import load


@pytest.fixture
def part(spec, tmp_path):
    """What of `[quantize]` is in the key of a stage."""

    def of(*sets, stage="distill"):
        hasher = Hasher(tmp_path / "hashes")
        return _section(spec(*sets), "quantize", STAGES[stage], hasher, load("cpu"))

    return of


OTHER = "quantize.images=7", "quantize.precision=int8", "quantize.select=random"
OWN = "quantize.qad_scales=observed", "quantize.qad_start=0.25", "quantize.calibrator=mse"


@pytest.mark.parametrize("set_", [*OTHER, *OWN])
def test_without_qad_nothing_of_it_trains_a_student_again(part, set_):
    assert part() == part(set_)
    assert part(stage="calibrate") != part(set_, stage="calibrate")


@pytest.mark.parametrize("set_", OTHER)
def test_with_qad_only_its_own_fields_do(part, set_):
    assert part("quantize.qad=true") != part()
    assert part("quantize.qad=true") == part("quantize.qad=true", set_)


@pytest.mark.parametrize("set_", OWN)
def test_and_each_of_those_does(part, set_):
    assert part("quantize.qad=true") != part("quantize.qad=true", set_)


def test_the_calibration_sees_what_the_training_left():
    assert STAGES["calibrate"].inputs["distill"] == ("qad.json",)
