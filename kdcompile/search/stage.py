"""Stage `search`: the student's architecture and its predicted cost on the target."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kdcompile.artifact import Artifact, Step, Store, write_json
from kdcompile.errors import KDError
from kdcompile.models.factory import load_teacher, read_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.choose import Candidate, met, widest
from kdcompile.search.cost import macs, operations, params
from kdcompile.search.latency import estimate
from kdcompile.search.shrink import architectures
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
    """Choose the student; `architecture.json` and `estimate.json`."""

    def build(folder: Path) -> Mapping[str, Any]:
        spec = step.spec
        teacher = load_teacher(spec)
        shape = spec.export.profile[1]
        precision = budget_precision(spec, target)

        def priced(architecture: dict[str, Any] | None) -> Candidate:
            model = teacher if architecture is None else _student(teacher, architecture, spec)
            return _price(model, shape, target, precision, architecture or {"width": 1.0})

        chosen = _choose(spec, teacher, target, priced)
        student = _student(teacher, chosen.architecture, spec)
        record = {
            name: _record(model, shape, target)
            for name, model in (("teacher", teacher), ("student", student))
        }
        speedup = record["teacher"][precision]["ms"] / record["student"][precision]["ms"]
        write_json(folder / "architecture.json", chosen.architecture)
        write_json(
            folder / "estimate.json",
            {**record, "precision": precision, "speedup": speedup, "target": target.name},
        )
        return {
            "width": chosen.architecture["width"],
            "macs": record["student"]["macs"],
            "params": record["student"]["params"],
            "precision": precision,
            "latency_ms": record["student"][precision]["ms"],
            "low_ms": record["student"][precision]["low_ms"],
            "high_ms": record["student"][precision]["high_ms"],
            "validated": record["student"][precision]["validated"],
            "speedup": speedup,
        }

    return store.make(step.stage, step.key, build)


def _student(teacher: nn.Module, architecture: Mapping[str, Any], spec: Spec) -> nn.Module:
    return student_from_architecture(teacher, architecture, spec.folder).eval()


def _price(
    model: nn.Module, shape: list[int], target: Target, precision: str, architecture: dict[str, Any]
) -> Candidate:
    found = operations(model, shape)
    latency = estimate(found, target, precision)
    return Candidate(architecture, macs(found), params(model), latency)


def _record(model: nn.Module, shape: list[int], target: Target) -> dict[str, Any]:
    found = operations(model, shape)
    priced = [*precisions(target), *(p for p in ALSO if p in target.precisions)]
    return {
        "macs": macs(found),
        "params": params(model),
        **{p: asdict(estimate(found, target, p)) for p in priced},
    }


def _choose(spec: Spec, teacher: nn.Module, target: Target, priced: Any) -> Candidate:
    """The architecture that the spec fixes, checked against the budget, or the widest that fits."""
    budget, student = spec.student.budget, spec.student
    whole = priced(None)
    if student.init == "file" or student.family != "shrink":
        given = priced(_given(spec))
        if not met(budget, given, whole):
            raise KDError(
                "budget-missed",
                f"the given student needs {given.latency.ms:.3g} ms and {given.macs:.3g} MACs",
                where="[student] budget",
                fix="relax the budget, or give a smaller student",
            )
        return given  # type: ignore[no-any-return]
    shape = spec.export.profile[1]
    small = [shape[0], shape[1], *(min(side, 128) for side in shape[2:])]
    ratios = [budget.width] if budget.width is not None else []
    options = architectures(teacher, small, target.channel_tile, spec.seed, ratios)
    return widest(options, priced, budget, whole)


def _given(spec: Spec) -> dict[str, Any]:
    if spec.student.init != "file":
        return {"family": spec.student.family, "width": 1.0, "seed": spec.seed}
    assert spec.student.weights is not None, "the schema ties init and weights"
    _, metadata = read_weights(spec.student.weights)
    if "architecture" not in metadata:
        raise KDError(
            "weights-architecture",
            "the student's weights do not name their architecture",
            where=str(spec.student.weights),
            fix="use a student.safetensors that kdcompile distill wrote",
        )
    return json.loads(metadata["architecture"])  # type: ignore[no-any-return]
