"""Predicted latency of the int8 and mixed networks that ship: of their own files, as deployed.

Before there is a file, int8 is priced as if every tensor were an integer. The file says what is:
a sum that keeps a term in float costs kernels that change its type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from kdcompile.backends.deployed_form import DeployedForm, deployed_form
from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.data.preprocess import Preprocess
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import estimate, ratio_factor
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.onnx_graph.shapes import input_shape
from kdcompile.remote.agent.tensorrt_network import CAST_ONNX_SINCE
from kdcompile.targets import Target
from kdcompile.tasks.task import task_of

HALF: Precision = "fp16"  # of the teacher beside it, and of what it has not in int8
PAIRED = ("int8", "mixed")  # whose files have pairs of Q and DQ


def file_estimate(
    path: Path,
    precision: str,
    known: Mapping[str, Any],
    form: DeployedForm,
    spec: Spec,
    target: Target,
) -> dict[str, Any]:
    """The price of a network's file with pairs of Q and DQ, as `estimate.json` has prices.

    Args:
        path: as exported.
        precision: one of `PAIRED`.
        known: the student's estimates by precision.
        form: what is deployed.
        spec: its sections task and export.
        target: what it is of.

    Raises:
        KDError: of `kernels_of` and `estimate`.
    """
    return _priced(_kernels(path, form, spec, takes_flags(target)), precision, known, target)


def with_file(found: Mapping[str, Any], path: Path, step: Step, target: Target) -> dict[str, Any]:
    """`estimate.json` with the price of the file that ships, and its speed-up.

    Args:
        found: the estimates, by who and precision, and the speed-ups by precision.
        path: the student's, `student_int8.onnx` or `student_mixed.onnx`.
        step: with the artifacts of export and compile.
        target: what they are of.

    Raises:
        KDError: of `kernels_of` and `estimate`.
    """
    export, spec = step.inputs["export"], step.spec
    precision = step.inputs["compile"].json("choice.json")["precision"]
    preprocess = Preprocess.from_json(export.json("preprocess.json"))
    with deployed_form(preprocess, spec.export.preprocess) as form:
        student = _kernels(path, form, spec, takes_flags(target))
        teacher = _kernels(export.file("teacher.onnx"), form, spec, True)
    own = _priced(student, precision, found["student"], target)
    ratio = estimate(teacher, target, HALF).ms / own["ms"]
    factor = ratio_factor(teacher, student, target)
    return {
        **found,
        "student": {**found["student"], precision: own},
        "speedups": {
            **found["speedups"],
            precision: {"low": ratio / factor, "high": ratio * factor},
        },
    }


def shipped_estimate(step: Step, target: Target) -> Mapping[str, Any]:
    """`estimate.json`, with the price of the file that ships where that has int8.

    Args:
        step: with the artifacts of search, export, calibrate and compile.
        target: what they are of.

    Raises:
        KDError: of `with_file`.
    """
    inputs = step.inputs
    estimate: Mapping[str, Any] = inputs["search"].json("estimate.json")
    precision = inputs["compile"].json("choice.json")["precision"]
    if precision not in PAIRED or target.software is None or step.spec.compile.dla is not None:
        return estimate
    made = inputs["compile" if precision == "mixed" else "calibrate"]  # the former makes the mixed
    return with_file(estimate, made.file(f"student_{precision}.onnx"), step, target)


def _priced(
    kernels: Sequence[Kernel], precision: str, known: Mapping[str, Any], target: Target
) -> dict[str, Any]:
    """The estimate of a network that has layers of fp16 and int8: measurements are to back both."""
    found = estimate(kernels, target, HALF)
    backed = found.validated and known.get("int8", {}).get("validated", False)
    return {**asdict(found), "precision": precision, "validated": backed}


def _kernels(path: Path, form: DeployedForm, spec: Spec, halves: bool) -> list[Kernel]:
    """Of a file in its deployed form, whose float32 the builder may make half."""
    model = onnx.load(form.file(path))
    shape = form.prepare.input_shape(spec.export.profile[1])
    if task_of(spec).takes_rows:
        shape = input_shape(model)
    return kernels_of(model, shape, HALF if halves else "fp32")


def takes_flags(target: Target) -> bool:
    """Whether the target's TensorRT is told a precision by flags, and not by the file's types."""
    if target.software is None:
        return False
    first = target.software.split("..")[0].split(".")
    return (int(first[0]), int(first[1]) if len(first) > 1 else 0) < CAST_ONNX_SINCE
