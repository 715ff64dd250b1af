"""Predicted latency of the mixed network that ships; before its layers are chosen it has none."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import onnx

from kdcompile.backends.deployed_form import deployed_form
from kdcompile.config.step import Step
from kdcompile.data.preprocess import Preprocess
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import estimate, ratio_factor
from kdcompile.latency_model.workload import Precision
from kdcompile.onnx_graph.shapes import input_shape
from kdcompile.targets import Target
from kdcompile.tasks.task import task_of

MIXED = "mixed"
HALF: Precision = "fp16"  # of the teacher beside it, and of what a mixed network has not in int8


def with_mixed(found: Mapping[str, Any], step: Step, target: Target) -> dict[str, Any]:
    """`estimate.json` with the price of the mixed network that ships, as it is deployed.

    Args:
        found: the estimates, by who and precision, and the speed-ups by precision.
        step: with the artifacts of export and compile.
        target: what they are of.

    Raises:
        KDError: of `kernels_of` and `estimate`.
    """
    export, spec = step.inputs["export"], step.spec
    preprocess = Preprocess.from_json(export.json("preprocess.json"))
    with deployed_form(preprocess, spec.export.preprocess) as form:
        teacher = onnx.load(form.file(export.file("teacher.onnx")))
        student = onnx.load(form.file(step.inputs["compile"].file("student_mixed.onnx")))
        shape: Sequence[int] = form.prepare.input_shape(spec.export.profile[1])
    if task_of(spec).takes_rows:
        shape = input_shape(student)
    both = kernels_of(teacher, shape, HALF), kernels_of(student, shape)
    own = estimate(both[1], target, HALF)
    ratio, factor = found["teacher"][HALF]["ms"] / own.ms, ratio_factor(*both, target)
    band = {"low": ratio / factor, "high": ratio * factor}
    # it has layers of both, so measurements are to back both
    backed = own.validated and found["student"].get("int8", {}).get("validated", False)
    priced = {**asdict(own), "precision": MIXED, "validated": backed}
    return {
        **found,
        "student": {**found["student"], MIXED: priced},
        "speedups": {**found["speedups"], MIXED: band},
    }
