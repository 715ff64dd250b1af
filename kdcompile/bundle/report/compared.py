"""Bundles side by side: releases, devices or recipes, in the form of a report's first screen."""

import re
import textwrap
from collections.abc import Mapping, Sequence

from kdcompile.bundle import facts, headline
from kdcompile.bundle.report import charts, page, tiles
from kdcompile.bundle.text import WIDTH
from kdcompile.core.errors import KDError
from kdcompile.core.report import Report

LEAST, MOST = 14, 40  # columns of a bundle in a terminal
UNIT = re.compile(r"(?<=\d) (?=[A-Za-z%]+\b)")  # stays on the line of its number


def side_by_side(reports: Mapping[str, Report]) -> list[tuple[str, ...]]:
    """A row a quantity: its name, and a text for each report; where none has it, no row.

    Args:
        reports: by the name that each bundle is shown under.
    """
    found = list(reports.values())
    fixed = {
        "target": [r.target for r in found],
        "verdict": [r.verdict for r in found],
        "precision": [str((r.details.get("choice") or {}).get("precision") or "") for r in found],
    }
    shown = [_tiles(report) for report in found]
    for title in dict.fromkeys(title for each in shown for title in each):
        fixed[title] = [each.get(title, "") for each in shown]
    for name in dict.fromkeys(gate.name for report in found for gate in report.gates):
        fixed[f"gate {name}"] = [_gate(report, name) for report in found]
    return [(name, *texts) for name, texts in fixed.items() if any(texts)]


def _tiles(report: Report) -> dict[str, str]:
    """The tiles' texts by their titles; that of the accuracy names its metric."""
    found = {tile.title: _told(tile) for tile in tiles.tiles(report)}
    if headline.judged(report) is None:
        return found
    (metric, told), *others = found.items()
    return {"Accuracy": f"{metric} {told}", **dict(others)}


def _told(tile: tiles.Tile) -> str:
    values = f"{tile.teacher} → {tile.student}" if tile.teacher else tile.student
    change = tile.change.split("; ")[0]
    evidence = f" [{tile.evidence}]" if tile.evidence else ""
    return f"{values}{', ' if change else ''}{change}{evidence}"


def _gate(report: Report, name: str) -> str:
    for gate in report.gates:
        if gate.name == name:
            return f"{facts.MARKS[gate.verdict]} {gate.verdict}{facts.optional(gate)}"
    return ""


def differences(reports: Mapping[str, Report]) -> list[str]:
    """What makes the numbers of two reports hard to compare, in sentences."""
    told = []
    found = list(reports.values())
    judged = [headline.judged(report) for report in found]
    metrics = {metric[0] for metric in judged if metric is not None}
    if len(metrics) > 1:
        told.append(f"The tasks are judged by different metrics: {', '.join(sorted(metrics))}.")
    tests = {((r.details.get("data") or {}).get("test") or {}).get("photos_sha256") for r in found}
    if len(tests) > 1:
        told.append("They were tested on different images: accuracies are not paired.")
    targets = dict.fromkeys(str(r.environment.get("target", r.target)) for r in found)
    if len(targets) > 1:
        told.append(f"Latencies are of different targets: {', '.join(targets)}.")
    levels = {(r.details.get("target_speed") or {}).get("evidence") for r in found} - {None}
    if len(levels) > 1:
        told.append(f"Latencies have different evidence: {', '.join(sorted(map(str, levels)))}.")
    return told


def text(reports: Mapping[str, Report]) -> str:
    """The comparison for a terminal of 80 columns; more bundles than fit are below each other."""
    rows = [("", *reports), *side_by_side(reports)]
    label = max(len(row[0]) for row in rows)
    longest = max(len(word) for row in rows for cell in row[1:] for word in _words(cell))
    fit = max(1, (WIDTH - label) // (min(max(longest, LEAST), MOST) + 2))
    lines: list[str] = []
    for start in range(1, len(reports) + 1, fit):
        chosen = [(row[0], *row[start : start + fit]) for row in rows]
        lines += [*_block(chosen, label), ""]
    for sentence in differences(reports):
        lines += textwrap.wrap(sentence, WIDTH)
    return "\n".join(lines).rstrip("\n") + "\n"


def _words(cell: str) -> list[str]:
    return UNIT.sub("\0", cell).split(" ")


def _block(rows: Sequence[tuple[str, ...]], label: int) -> list[str]:
    """Lines of some columns of the comparison, side by side, each cell broken between words."""
    width = (WIDTH - label) // (len(rows[0]) - 1) - 2
    lines = []
    for name, *cells in rows:
        parts = [_wrapped(cell, width) for cell in cells]
        for place in range(max(map(len, parts))):
            texts = (part[place] if place < len(part) else "" for part in parts)
            first = name if place == 0 else ""
            line = "  ".join([first.ljust(label), *(text.ljust(width) for text in texts)])
            lines.append(line.rstrip())
    return lines


def _wrapped(cell: str, width: int) -> list[str]:
    whole = UNIT.sub("\0", cell)
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines] or ["-"]


def html(reports: Mapping[str, Report]) -> str:
    """The comparison as one page that needs nothing else."""
    return page.filled(
        "compared.html.j2",
        names=list(reports),
        reports=[
            {
                "name": name, "report": report, "tone": facts.tone(report),
                "scope": facts.scope(report), "tiles": tiles.tiles(report),
                "open": tiles.what_is_open(report), "notes": headline.notes(report),
                "speed": charts.speed_and_accuracy(report),
            }
            for name, report in reports.items()
        ],
        rows=side_by_side(reports),
        differences=differences(reports),
    )  # fmt: skip


def named(folders: Sequence[str]) -> list[str]:
    """A short name for each bundle: the last part of its path, or all of it where two are alike.

    Raises:
        KDError: `report-same`, a bundle is named twice.
    """
    if len(set(folders)) < len(folders):
        raise KDError(
            "report-same",
            "a bundle is named twice",
            where="BUNDLE...",
            fix="name each bundle once",
        )
    last = [folder.rstrip("/").rpartition("/")[2] or folder for folder in folders]
    return [
        name if last.count(name) == 1 else folder
        for name, folder in zip(last, folders, strict=True)
    ]
