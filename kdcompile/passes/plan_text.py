"""The plan as text."""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kdcompile.core.backends import find
from kdcompile.tasks.generic import MEASURED
from kdcompile.tasks.metric import GAMES

FALLS = 12  # layers that stay on the GPU, in text


def lines(plan: Mapping[str, Any]) -> list[str]:
    """A `Planned`, as JSON values, as text."""
    target = plan["target"]
    software = target["backend"] or target["tensorrt"]
    backend = " ".join(filter(None, (find(target["runtime"]).title, software)))
    text = [
        f"spec    {plan['spec']}",
        f"target  {target['full_name']}: {target['title']}, {backend}",
        *_board_lines(plan["board"]),
        f"opset   {target['max_opset']} (IR {target['ir_version']})",
        *_glance(plan),
        "",
        "step       state    key, or why it is to do",
    ]
    for step in plan["steps"]:
        first, *more = [step["key"][:12]] if step["key"] else step["why"]
        text.append(f"{step['stage']:<10} {'cached' if step['key'] else 'to do':<8} {first}")
        text += [f"{'':<19} {reason}" for reason in more]
    text += ["", *_cost_lines(plan), "", *_rule_lines(plan), *_dla_lines(plan), ""]
    text += (f"warning    {told}" for told in plan["warnings"])
    text += map(_decides_line, plan["decides"])
    return text + _margin_lines(plan["margin"], plan["metric"])


def _glance(plan: Mapping[str, Any]) -> list[str]:
    """What is to do, and what it is expected to give, in a line each."""
    steps = plan["steps"]
    waits = [step["stage"] for step in steps if not step["key"]]
    which = f": {', '.join(waits)}" if 0 < len(waits) < len(steps) else ""
    text = [f"to do   {len(waits)} of {len(steps)} steps{which}"]
    estimate = plan["estimate"]
    if estimate is not None:
        sides = (("teacher", estimate["teacher_precision"]), ("student", estimate["precision"]))
        teacher, student = (estimate[who][precision]["ms"] for who, precision in sides)
        text.append(
            f"speed   {teacher:.3g} ms to {student:.3g} ms, {estimate['speedup']:.3g}x faster, "
            "as the latency model predicts"
        )
    return text


def _cost_lines(plan: Mapping[str, Any]) -> list[str]:
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
        kind = latency["network_kind"]
        note = "" if latency["validated"] else f", unvalidated for a {kind} network"
        band = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
        text.append(
            f"{name:<10} {cost['macs'] / 1e9:<10.4g} {cost['params'] / 1e6:<10.4g} "
            f"{latency['ms']:.3g} ms at {precision} ({band}{note})"
        )
    ratio = estimate["speedups"][estimate["precision"]]
    band = f"{ratio['low']:.3g} to {ratio['high']:.3g}"
    return [*text, f"predicted speed-up {estimate['speedup']:.3g} ({band})"]


def _rule_lines(plan: Mapping[str, Any]) -> list[str]:
    """The limits of the target that this spec reaches, each with its place and its fix."""
    text = []
    for rule in plan["rules"]:
        text += [
            f"{rule['effect']:<10} {rule['code']}: {rule['message']}",
            f"{'':<10} where: {rule['where']}",
            f"{'':<10} fix:   {rule['fix']}",
        ]
    if not plan["rules_on_operators"]:
        text.append("limits     of widths and operators: known once `search` has run")
    return text or ["limits     none: no option is refused or without effect on this target"]


def _dla_lines(plan: Mapping[str, Any]) -> list[str]:
    """What runs on the DLA and what falls back to the GPU, each with its reason."""
    layers = plan["dla"]
    if layers is None:
        return []
    falls = [layer for layer in layers if layer["reason"]]
    kinds = Counter(layer["type"] for layer in layers if not layer["reason"])
    takes = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    sides = [bool(layer["reason"]) for layer in layers]
    changes = sum(one != other for one, other in pairwise(sides))
    text = [
        f"dla        takes {len(layers) - len(falls)} of {len(layers)} operators ({takes}); "
        f"{changes} changes of side in their order",
        f"{'':<10} its latency is not predicted, as none was measured: those above are the GPU's",
        f"{'':<10} and decide no gate: speedup is skipped, and stays pending for the device",
    ]
    told = [f"{'':<10} GPU: {e['name']} ({e['type']}): {e['reason']}" for e in falls[:FALLS]]
    more = len(falls) - len(told)
    return text + told + ([f"{'':<10} GPU: {more} more, in --json"] if more else [])


def _board_lines(board: dict[str, Any] | None) -> list[str]:
    if board is None:
        return []
    backend = f"{board['backend']} {board['backend_version']}"
    return [
        f"board   {board['label']}: {board['machine']}, {backend}; measurements are "
        f"{board['evidence']} evidence"
    ]


def _decides_line(row: dict[str, Any]) -> str:
    photos = f"{row['images']} test images"
    if row["decides"]:
        return f"{row['gate']:<10} {photos} can decide it"
    needed = f"{row['needed']} would do" if row["needed"] else "no number would do"
    if row["each"] and row["needed"]:
        needed = f"{row['needed']} in each part would do"
    return (
        f"{row['gate']:<10} {photos} cannot decide it: of a student that is never wrong, "
        f"{row['why']}; {needed}"
    )


def _margin_lines(margin: dict[str, Any] | None, metric: str) -> list[str]:
    if margin is None and metric in {game.name for game in GAMES}:
        return [f"which margin of {metric} to expect is not known before `verify` sees the maps"]
    if margin is None and metric in MEASURED:
        return [f"which margin of {metric} to expect is not known before `verify` has run"]
    if margin is None:
        return ["which margin of accuracy to expect is known once `teacher` has run"]
    photos, basis = f"{margin['images']} test images", "(80 % power, error correlation 0.8)"
    if margin["smallest"] is None:
        return [f"{photos} are expected to decide no margin {basis}"]
    least = math.ceil(1000 * margin["smallest"]) / 10
    return [
        f"{photos} are expected to decide a margin of {least:g} {margin['unit']} or more {basis}; "
        f"the spec asks {margin['asked'].rstrip('%')}",
        f"a student as accurate as the teacher is over max_increase = {margin['max_increase']} by "
        f"chance in {100 * margin['over_limit']:.0f} of 100 draws of images",
    ]
