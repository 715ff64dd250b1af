"""The plan, printed: steps with their cache hits, and the costs, before anything is spent."""

from typing import Any

from kdcompile.backends.board import Board
from kdcompile.data.splits import evenly, load_splits
from kdcompile.data.task import find_task
from kdcompile.gates.margin import smallest_margin
from kdcompile.pipeline.plan import Plan
from kdcompile.pipeline.stages import STAGES


def describe(plan: Plan) -> dict[str, Any]:
    """Steps, costs and what the data can decide, as JSON values.

    The search runs if it has not, since the costs are its result; nothing else does.
    """
    search = plan.make("search").json("estimate.json")
    found = plan.found()
    return {
        "spec": str(plan.spec.path),
        "target": plan.target.to_json() | {"full_name": plan.target.full_name},
        "board": None if plan.board is None else _board(plan.board),
        "steps": [
            {"stage": name, "key": found[name].key if name in found else None} for name in STAGES
        ],
        "estimate": search,
        "margin": _margin(plan, found["teacher"].meta) if "teacher" in found else None,
    }


def _board(board: Board) -> dict[str, Any]:
    return {
        "label": board.label,
        "machine": board.machine,
        "evidence": board.evidence,
        **board.facts,
    }


def _margin(plan: Plan, teacher: Any) -> dict[str, Any]:
    test = load_splits(plan.spec.data, plan.spec.folder).test
    images = len(evenly(test, plan.spec.data.max_test))
    metric = find_task(plan.spec.task.kind).metric
    scale, std = teacher[f"val_{metric.name}"], teacher["val_abs_error_std"]
    if metric.points:
        # percentage points, not a share; by Laplace's rule, as no teacher is right for certain
        rate = (scale * teacher["n_val"] + 1) / (teacher["n_val"] + 2)
        scale, std = 1.0, (rate * (1 - rate)) ** 0.5
    smallest = smallest_margin(images, scale, std)
    asked = plan.spec.gates.accuracy.margin
    return {
        "images": images,
        "smallest": smallest,
        "asked": asked,
        "unit": "percentage points" if metric.points else f"% of the teacher's {metric.name}",
    }


def lines(plan: dict[str, Any]) -> list[str]:
    """The description as text."""
    target, estimate = plan["target"], plan["estimate"]
    backend = target["backend"] or target["tensorrt"] or "ONNX Runtime"
    text = [
        f"spec    {plan['spec']}",
        f"target  {target['full_name']}: {target['title']}, TensorRT {backend}"
        if target["tensorrt"]
        else f"target  {target['full_name']}: {target['title']}, {backend}",
        *_board_lines(plan["board"]),
        f"opset   {target['max_opset']} (IR {target['ir_version']})",
        "",
        "step       state    key",
    ]
    for step in plan["steps"]:
        state = f"cached   {step['key'][:12]}" if step["key"] else "to do"
        text.append(f"{step['stage']:<10} {state}")
    text += ["", "network    GMACs      Mparams    predicted latency"]
    precision = estimate["precision"]
    for name in ("teacher", "student"):
        cost = estimate[name]
        latency = cost[precision]
        note = "" if latency["validated"] else ", unvalidated"
        band = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
        text.append(
            f"{name:<10} {cost['macs'] / 1e9:<10.4g} {cost['params'] / 1e6:<10.4g} "
            f"{latency['ms']:.3g} ms at {precision} ({band}{note})"
        )
    text += [f"predicted speed-up {estimate['speedup']:.3g} at {precision}", ""]
    return [*text, _margin_line(plan["margin"])]


def _board_lines(board: dict[str, Any] | None) -> list[str]:
    if board is None:
        return []
    backend = f"{board['backend']} {board['backend_version']}"
    return [
        f"board   {board['label']}: {board['machine']}, {backend}; measurements are "
        f"{board['evidence']} evidence"
    ]


def _margin_line(margin: dict[str, Any] | None) -> str:
    if margin is None:
        return "the smallest margin that the test photos decide: known once `teacher` has run"
    return (
        f"{margin['images']} test photos decide a margin of {100 * margin['smallest']:.0f} "
        f"{margin['unit']} or more (80 % power, error correlation 0.8); the spec asks "
        f"{margin['asked'].rstrip('%')}"
    )
