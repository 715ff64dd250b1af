"""The plan, printed: steps with their cache hits, and the costs, before anything is spent."""

from typing import Any

from kdcompile.data.splits import evenly, load_splits
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
        "steps": [
            {"stage": name, "key": found[name].key if name in found else None} for name in STAGES
        ],
        "estimate": search,
        "margin": _margin(plan, found["teacher"].meta) if "teacher" in found else None,
    }


def _margin(plan: Plan, teacher: Any) -> dict[str, Any]:
    test = load_splits(plan.spec.data, plan.spec.folder).test
    images = len(evenly(test, plan.spec.data.max_test))
    smallest = smallest_margin(images, teacher["val_mae"], teacher["val_abs_error_std"])
    return {"images": images, "smallest": smallest, "asked": plan.spec.gates.accuracy.margin}


def lines(plan: dict[str, Any]) -> list[str]:
    """The description as text."""
    target, estimate = plan["target"], plan["estimate"]
    backend = target["backend"] or target["tensorrt"] or "ONNX Runtime"
    text = [
        f"spec    {plan['spec']}",
        f"target  {target['full_name']}: {target['title']}, TensorRT {backend}"
        if target["tensorrt"]
        else f"target  {target['full_name']}: {target['title']}, {backend}",
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


def _margin_line(margin: dict[str, Any] | None) -> str:
    if margin is None:
        return "the smallest margin that the test photos decide: known once `teacher` has run"
    return (
        f"{margin['images']} test photos decide a margin of {margin['smallest']:.0%} or more "
        f"(80 % power, error correlation 0.8); the spec asks {margin['asked']}"
    )
