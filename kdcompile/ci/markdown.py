"""The summary for people: GitHub-flavoured Markdown for a job's page or a merge request."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdcompile.ci.outcome import Outcome, counts, overall_of
from kdcompile.core import escape

MARKS: Mapping[str, str] = {
    "passed": "✅", "failed": "❌", "inconclusive": "❔", "skipped": "⏭️", "pending": "⏳",
    "error": "💥",
}  # fmt: skip
LONGEST_CELL = 400  # characters: a cell is for reading; the whole is in outcomes.json
MOST_ROWS = 200  # GitHub refuses a step's summary over 1 MiB whole


def markdown(
    outcomes: Sequence[Outcome], title: str, verdict: tuple[str, int] | None = None
) -> str:
    """A heading with the verdict, a table of the gates, and the ratios of latency comparisons.

    Args:
        outcomes: one row each; the red ones come first, so that no cut can hide them.
        title: of the heading.
        verdict: in words and as an exit code; by default what the outcomes say.
    """
    words, code = verdict or overall_of(outcomes)
    ordered = sorted(outcomes, key=lambda o: not o.red)
    heads = ("", "gate", "verdict", "observed", "threshold", "why")
    rows = [_row(outcome) for outcome in ordered[:MOST_ROWS]]
    lines = [f"### {MARKS[_mark(code, outcomes)]} {escape.markdown(title)}", ""]
    lines += [f"**{escape.markdown(words)}** (exit {code}; {_tally(outcomes)})", ""]
    lines += _table(heads, rows)
    if len(ordered) > MOST_ROWS:
        lines += ["", f"{len(ordered) - MOST_ROWS} more are in `outcomes.json`."]
    for outcome in ordered[:MOST_ROWS]:
        lines += _ratios(outcome)
    return "\n".join(lines) + "\n"


def _mark(code: int, outcomes: Sequence[Outcome]) -> str:
    if any(o.required and o.verdict == "error" for o in outcomes):
        return "error"
    return {0: "passed", 3: "failed"}.get(code, "inconclusive")


def _tally(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts(outcomes).items()) or "none"


def _row(outcome: Outcome) -> tuple[str, ...]:
    optional = "" if outcome.required else " (optional)"
    # the lines of an error's block must not run together
    reason = re.sub(r"\s*\n\s*", "; ", outcome.reason.strip())
    cells = (outcome.name, outcome.verdict + optional, outcome.observed, outcome.threshold, reason)
    return (MARKS[outcome.verdict], *(escape.markdown(cell, LONGEST_CELL) for cell in cells))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _ratios(outcome: Outcome) -> list[str]:
    """The quantiles of a comparison, folded away."""
    ratios = outcome.details.get("ratios")
    if not ratios:
        return []
    heads = ("latency", "ratio", "low", "high", "margin", "decision")
    rows = [_ratio(ratio) for ratio in ratios]
    how = "in turns with the reference" if outcome.details.get("paired") else "from its samples"
    basis = (
        f"{outcome.details.get('blocks')} blocks of each side, {how}, "
        f"{outcome.details.get('left_out')} left out as disturbed"
    )
    fold = f"<details><summary>{escape.markdown(outcome.name, LONGEST_CELL)}: {basis}</summary>"
    return ["", fold, "", *_table(heads, rows), "", "</details>"]


def _ratio(ratio: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (f"{ratio[key]:.4f}" for key in ("value", "low", "high"))
    margin = f"±{ratio['margin'] * 100:.1f} %"
    quantile, decision = (escape.markdown(ratio[key]) for key in ("quantile", "decision"))
    return (quantile, *numbers, margin, decision)
