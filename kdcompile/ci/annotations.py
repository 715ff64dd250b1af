"""GitHub annotations: workflow commands that the runner reads from a step's output.

Source of the form and of its escapes: GitHub's documentation of workflow commands, and
`packages/core/src/command.ts` of actions/toolkit.
"""

from collections.abc import Sequence

from kdcompile.ci.outcome import UNDECIDED, Outcome

MOST = 10  # GitHub shows ten errors and ten warnings of a step, and drops the rest


def annotations(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each outcome that a reader must know of; nothing for what passed.

    Red ones are errors; optional gates that did not pass are warnings; pending ones are one notice.
    Where there are more than GitHub shows, the last line says how many.

    Args:
        outcomes: in the order of the report.
    """
    errors = [o for o in outcomes if o.red]
    warnings = [o for o in outcomes if not o.red and o.verdict in ("failed", *UNDECIDED)]
    pending = [o.name for o in outcomes if o.verdict == "pending" and not o.red]
    lines = [*_capped("error", errors), *_capped("warning", warnings)]
    if pending:
        lines.append(_line("notice", "kdcompile: pending on the board", ", ".join(pending)))
    return lines


def _capped(level: str, outcomes: Sequence[Outcome]) -> list[str]:
    shown = outcomes if len(outcomes) <= MOST else outcomes[: MOST - 1]
    lines = [_one(level, outcome) for outcome in shown]
    if len(shown) < len(outcomes):
        rest = ", ".join(o.name for o in outcomes[len(shown) :])
        more = f"kdcompile: {len(outcomes) - len(shown)} more"
        lines.append(_line(level, more, rest))
    return lines


def _one(level: str, outcome: Outcome) -> str:
    optional = "" if outcome.required else "optional, "
    title = f"kdcompile: {outcome.name}: {optional}{outcome.verdict}"
    facts = {"observed": outcome.observed, "threshold": outcome.threshold}
    said = [f"{name} {value}" for name, value in facts.items() if value]
    message = "\n".join(part for part in ("; ".join(said), outcome.reason) if part)
    file = outcome.details.get("file")
    return _line(level, title, message or outcome.verdict, str(file) if file else None)


def _line(level: str, title: str, message: str, file: str | None = None) -> str:
    place = f"file={escape_property(file)}," if file else ""
    return f"::{level} {place}title={escape_property(title)}::{escape_data(message)}"


def escape_data(text: str) -> str:
    """A message, so that no part of it is read as a line of its own."""
    text = text.encode("utf-8", "replace").decode()  # a file's name may hold lone surrogates
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A property's value: it ends at a comma or a colon too."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")
