"""Stage `search`: the student's architecture and its predicted cost on the target."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store
from kdcompile.latency_model.kernels import operators_of
from kdcompile.latency_model.network_cost import Network, candidate_precisions, paired_precision
from kdcompile.latency_model.predict import ratio_factor
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.opset import at_opset
from kdcompile.passes.teacher_file import teacher_network
from kdcompile.search.rationale import costly_stages
from kdcompile.search.recorded import Narrowed
from kdcompile.search.report import SearchResult
from kdcompile.search.uniform_search import choose_width
from kdcompile.targets import Target

PRICED = ("int8", "fp16", "fp32", "bf16", "fp8")  # in the report and for `compile`


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Choose the student.

    `architecture.json`, `operators.json`, `explanation.json`, and `estimate.json`, the latency
    model's predictions for teacher and student. One that was searched for brings `search.json`,
    `front.svg` and `front.png`, and `initial.safetensors` where it is staged.

    Raises:
        KDError: of the networks, of their export for the target, and of the search.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        spec = step.spec
        shape, found = spec.export.profile[1], None
        teacher = _readable(teacher_network(spec, store), target)
        students = Narrowed(teacher)
        held: list[str] = []
        if spec.student.searches:
            from kdcompile.search.driver import search_student  # which plots: a second to import

            # its students are compared at one precision: the fastest of what they are made from
            pair = _compared(teacher, spec, target)
            found = search_student(step, store, target, teacher, pair, folder)
            architecture = dict(found.chosen.architecture)
        else:
            architecture, held = choose_width(spec, students, target)
        module = student_from_architecture(teacher.module, architecture, spec.folder)
        # exported unless it is the teacher's code at other widths: what fails must fail here
        student = students.narrowed(module.eval(), architecture)
        if student is None:
            own = Network(module, shape, takes_pixels=teacher.takes_pixels)
            student = _readable(own, target)
        if found is None:
            pair = _compared(student, spec, target)
        predicted = _predicted(teacher, student, target, pair)
        why = [*costly_stages(student.cost(target, pair[1])), *held]
        why = why if found is None else list(found.explanation)
        write_json(folder / "architecture.json", architecture)
        write_json(folder / "explanation.json", why)
        operators = [asdict(operator) for operator in operators_of(student.model, shape)]
        write_json(folder / "operators.json", operators)
        write_json(folder / "estimate.json", predicted)
        names = {"family": architecture["family"], "width": architecture.get("width")}
        return _meta(predicted) | names | ({} if found is None else _judged(found))

    return store.make(step.stage, step.key, build)


def _compared(network: Network, spec: Spec, target: Target) -> tuple[str, str]:
    """What the teacher and a student, of which `network` tells, are compared at."""
    precision = network.fastest(target, candidate_precisions(spec, target)).estimate.precision
    return paired_precision(precision, target.precisions), precision


def _readable(network: Network, target: Target) -> Network:
    """The network, which the target's TensorRT reads: that is known before any training.

    Raises:
        KDError: `export-opset`.
    """
    at_opset(network.model, target.max_opset, network.model.ir_version)
    return network


def _predicted(
    teacher: Network, student: Network, target: Target, judged: tuple[str, str]
) -> dict[str, Any]:
    """The cost of both at every precision; `judged` are those that the speed-up compares."""
    teachers, precision = judged
    precisions = [p for p in PRICED if p in target.precisions]
    costs = {
        n: m.record(target, precisions) for n, m in (("teacher", teacher), ("student", student))
    }
    ratios = {p: _ratio(teacher, student, target, p) for p in precisions}
    return {
        **costs,
        "precision": precision,
        "teacher_precision": teachers,
        "speedup": costs["teacher"][teachers]["ms"] / costs["student"][precision]["ms"],
        "speedups": ratios,
        "target": target.name,
    }


def _ratio(teacher: Network, student: Network, target: Target, precision: str) -> dict[str, Any]:
    """The predicted speed-up of a student at a precision, with its 90 % band.

    The teacher computes in what it would be deployed in beside it.
    """
    beside = paired_precision(precision, target.precisions)
    both = teacher.cost(target, beside), student.cost(target, precision)
    value = both[0].estimate.ms / both[1].estimate.ms
    factor = ratio_factor(both[0].kernels, both[1].kernels, target)
    return {"value": value, "low": value / factor, "high": value * factor}


def _meta(predicted: Mapping[str, Any]) -> dict[str, Any]:
    student, precision = predicted["student"], predicted["precision"]
    latency = student[precision]
    return {
        "macs": student["macs"],
        "params": student["params"],
        "precision": precision,
        "latency_ms": latency["ms"],
        "low_ms": latency["low_ms"],
        "high_ms": latency["high_ms"],
        "validated": latency["validated"],
        "speedup": predicted["speedup"],
    }


def _judged(found: SearchResult) -> dict[str, Any]:
    """The latency by which a search chose: measured, or corrected by what was."""
    chosen = found.chosen
    low, high = chosen.interval
    speedup = found.teacher.ms / chosen.ms
    return {"latency_ms": chosen.ms, "low_ms": low, "high_ms": high, "speedup": speedup}
