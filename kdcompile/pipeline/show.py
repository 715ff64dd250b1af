"""The plan, printed: steps with their cache hits, costs and limits, before anything is spent."""

from dataclasses import asdict
from typing import Any

from kdcompile.backends.board import Board
from kdcompile.data.splits import evenly, load_splits
from kdcompile.data.task import find_task
from kdcompile.errors import KDError
from kdcompile.gates.margin import smallest_margin
from kdcompile.pipeline.plan import Plan
from kdcompile.pipeline.rules import met_by, student_network
from kdcompile.pipeline.stages import STAGES


def describe(plan: Plan) -> dict[str, Any]:
    """Steps, costs, the hardware's limits and what the data can decide, as JSON values.

    A student that the spec scales is chosen if it is not yet, since the costs are of it; nothing
    else runs. `estimate` is None where a search, which trains, is still to do, and where choosing
    stops on something that a rule of the target explains; then `stopped` is why.

    Raises:
        KDError: the search's, where no rule explains it.
    """
    search, stopped = _search(plan)
    found = plan.found()  # after the search
    network = None if search is None else student_network(plan, found, search["precision"])
    return {
        "spec": str(plan.spec.path),
        "target": plan.target.to_json() | {"full_name": plan.target.full_name},
        "board": None if plan.board is None else _board(plan.board),
        "steps": [
            {"stage": name, "key": found[name].key if name in found else None} for name in STAGES
        ],
        "estimate": search,
        "stopped": stopped,
        "rules": [asdict(violation) for violation in met_by(plan, network)],
        "rules_on_operators": network is not None,
        "margin": _margin(plan, found["teacher"].meta) if "teacher" in found else None,
    }


def _search(plan: Plan) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """The estimate, or the error in place of it; neither where a search is still to do."""
    if plan.awaits_search:
        return None, None
    try:
        return plan.make("search").json("estimate.json"), None
    except KDError as error:
        if not any(violation.effect == "refused" for violation in met_by(plan)):
            raise
        parts = {"message": error.message, "where": error.where, "fix": error.fix}
        return None, {"code": error.code, **parts}


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
    target = plan["target"]
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
    text += ["", *_cost_lines(plan), "", *_rule_lines(plan), ""]
    return [*text, _margin_line(plan["margin"])]


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    estimate = plan["estimate"]
    if estimate is None:
        stopped = plan["stopped"]
        if stopped is None:
            return ["no costs yet: kdcompile search finds the student, by training on the data"]
        return [f"no costs: the search stops with {stopped['code']}: {stopped['message']}"]
    text = ["network    GMACs      Mparams    predicted latency"]
    rows = (("teacher", estimate["teacher_precision"]), ("student", estimate["precision"]))
    for name, precision in rows:
        cost = estimate[name]
        latency = cost[precision]
        note = "" if latency["validated"] else ", unvalidated"
        band = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
        text.append(
            f"{name:<10} {cost['macs'] / 1e9:<10.4g} {cost['params'] / 1e6:<10.4g} "
            f"{latency['ms']:.3g} ms at {precision} ({band}{note})"
        )
    return [*text, f"predicted speed-up {estimate['speedup']:.3g}"]


def _rule_lines(plan: dict[str, Any]) -> list[str]:
    """The limits that are met, each with its place and its remedy."""
    text = []
    for rule in plan["rules"]:
        text += [
            f"{rule['effect']:<10} {rule['code']}: {rule['message']}",
            f"{'':<10} where: {rule['where']}",
            f"{'':<10} fix:   {rule['fix']}",
        ]
    if not plan["rules_on_operators"]:
        text.append("limits     of widths and operators: known once `search` has run")
    return text or ["limits     none is met: nothing is refused or done in vain on this target"]


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
