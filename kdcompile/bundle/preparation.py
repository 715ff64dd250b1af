"""Tables of the report: the rates and the recipes that were tried before a training."""

from collections.abc import Mapping
from typing import Any

from kdcompile.bundle import facts
from kdcompile.core.report import Report

RATES, RECIPES = "Range test of the learning rate", "Pilot of the recipe"
SHOWN = ("range_test", "pilot")  # of the distillation's result


def tables(report: Report) -> dict[str, list[tuple[str, str]]]:
    """Both tables by title, without rows where nothing was tried."""
    found = report.details.get("distill") or {}
    tested, pilot = (found.get(name) or {} for name in SHOWN)
    rates = [(f"{row['lr']:g}", _rate(report, row, tested)) for row in tested.get("rates") or []]
    if rates:
        rates.append(("taken", f"{tested['lr']:g}"))
    arms = [
        (f"{row['name']}, round {row['round']}", _arm(report, row))
        for row in pilot.get("arms") or []
    ]
    if pilot:
        arms.append(("taken", pilot["chosen"] + (f": {pilot['why']}" if "why" in pilot else "")))
    return {RATES: rates, RECIPES: arms}


def _rate(report: Report, row: Mapping[str, Any], tested: Mapping[str, Any]) -> str:
    spoilt = "; the start is spoilt" if row["spoilt"] else ""
    if row["why"]:
        return f"{row['why']}{spoilt}"
    value = facts.metric_text(report, row["value"])
    return f"{value} on validation after {tested['steps']} steps{spoilt}"


def _arm(report: Report, row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return f"left out: {row['why']}"
    beside = f", worse than the best by {row['worse_by']:.3g}, standard error {row['noise']:.2g}"
    value = facts.metric_text(report, row["value"])
    return f"{value} after {row['steps']} steps" + (beside if row["worse_by"] else ", the best")
