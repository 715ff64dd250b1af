"""A report for the terminal."""

from kdcompile.bundle import facts
from kdcompile.errors import plain
from kdcompile.report import Report, columns


def text_summary(report: Report) -> str:
    """The verdict and the gates for a terminal, without colour."""
    lines = [
        f"{report.name} for {report.target}: {report.verdict}",
        facts.meaning(report),
        facts.scope(report),
        *(f"warning: {text}" for text in facts.warnings(report)),
        "",
    ]
    rows = [
        (
            f"{facts.MARKS[g.verdict]} {g.verdict}",
            g.name + facts.optional(g),
            g.evidence,
            g.observed,
            g.threshold,
        )
        for g in report.gates
    ]
    heads = ("  verdict", "gate", "evidence", "observed", "threshold")
    lines += columns([heads, *rows])
    reasons = [f"  {g.name}: {g.reason}" for g in report.gates if g.reason]
    shown = [*lines, *(["", "reasons:", *reasons] if reasons else [])]
    return "".join(f"{plain(line)}\n" for line in shown)
