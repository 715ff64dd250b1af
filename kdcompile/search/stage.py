"""Stage `search`: the student's architecture and its predicted cost on the target."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcompile.artifact import Artifact, Step, Store, write_json
from kdcompile.backends.teacher import teacher_precision
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.explain import costly
from kdcompile.search.network import Network
from kdcompile.search.operators import operators_of
from kdcompile.search.scaling import scaled
from kdcompile.search.searched import searched
from kdcompile.spec import Spec
from kdcompile.targets import Target

ORDER = ("int8", "fp16", "fp32")
ALSO = ("bf16", "fp8")  # priced for the report and for `compile`, never what a budget is judged at


def precisions(target: Target) -> list[str]:
    """The precisions that kdcompile builds for a target, fastest arithmetic first."""
    return [p for p in ORDER if p in target.precisions]


def budget_precision(spec: Spec, target: Target) -> str:
    """The precision at which a latency budget is judged: the asked one, or the fastest."""
    asked = spec.quantize.precision
    if asked == "auto":
        return precisions(target)[0]
    return "fp16" if asked == "mixed" else asked  # fp16 bounds it: mixed is no slower


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Choose the student.

    `architecture.json`, `estimate.json`, `operators.json`, `explanation.json`. One that was
    searched for brings `search.json` and `front.svg`, and `initial.safetensors` where it is made of
    taught blocks.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        spec = step.spec
        shape, precision = spec.export.profile[1], budget_precision(spec, target)
        teacher = Network(load_teacher(spec), shape)
        beside = teacher_precision(precision)
        beside = beside if beside in target.precisions else "fp32"
        if spec.student.searches:
            architecture, sentences = searched(
                step, store, target, teacher, (beside, precision), folder
            )
        else:
            architecture, sentences = scaled(spec, teacher, target, (beside, precision)), []
        module = student_from_architecture(teacher.module, architecture, spec.folder)
        student = Network(module.eval(), shape)
        sentences = sentences or costly(student.priced(target, precision))
        priced = [*precisions(target), *(p for p in ALSO if p in target.precisions)]
        costs = {
            n: m.record(target, priced) for n, m in (("teacher", teacher), ("student", student))
        }
        speedup = costs["teacher"][beside]["ms"] / costs["student"][precision]["ms"]
        write_json(folder / "architecture.json", architecture)
        write_json(folder / "explanation.json", sentences)
        operators = [asdict(operator) for operator in operators_of(student.model, shape)]
        write_json(folder / "operators.json", operators)
        write_json(
            folder / "estimate.json",
            {**costs, "precision": precision, "speedup": speedup, "target": target.name},
        )
        return _meta(costs["student"], precision) | {
            "family": architecture["family"],
            "width": architecture.get("width"),
            "speedup": speedup,
        }

    return store.make(step.stage, step.key, build)


def _meta(student: Mapping[str, Any], precision: str) -> dict[str, Any]:
    latency = student[precision]
    return {
        "macs": student["macs"],
        "params": student["params"],
        "precision": precision,
        "latency_ms": latency["ms"],
        "low_ms": latency["low_ms"],
        "high_ms": latency["high_ms"],
        "validated": latency["validated"],
    }
