"""Which speed a report gives for the target: the device's own, the model's, or this machine's."""

from dataclasses import replace

from resourced import context

from kdcompile.gates.context import Prediction
from kdcompile.gates.speedup import target_speed

ESTIMATE = Prediction(80.0, 8.0, 1.5, True, (9.0, 11.0))


def predicted(precision):
    made = context(evidence="host")
    return replace(made, precision=precision, predictions={precision: ESTIMATE})


def test_a_device_that_ran_it_has_its_own_speed():
    found = target_speed(replace(context(), predictions={"int8": ESTIMATE}))
    assert found["evidence"] == "device"
    assert (found["teacher_ms"], found["student_ms"]) == (1.0, 1.0)
    assert "host" not in found


def test_another_device_has_the_models_and_this_machines_is_told():
    found = target_speed(predicted("int8"))
    assert found["evidence"] == "predicted"
    assert (found["teacher_ms"], found["student_ms"], found["ratio"]) == (80.0, 8.0, 10.0)
    assert (found["low"], found["high"]) == (9.0, 11.0)
    assert found["host"]["ratio"] == 1.0


def test_without_an_estimate_there_is_this_machines_alone():
    assert set(target_speed(context(evidence="host"))) == {"evidence", "host"}
