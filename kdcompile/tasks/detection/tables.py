"""The report's tables of detection: average precision by size, and boxes at the shown threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.tasks.detection.average_precision import Table
from kdcompile.tasks.detection.matching import SIZES

Floats = NDArray[np.float64]
NameOf = Callable[[int], str]
EVERY, NONE = "all classes", "none"  # none: no such box is annotated


def by_size(rows: Mapping[str, Floats], name_of: NameOf) -> dict[str, Any]:
    """Average precision of each class over the boxes of each of COCO's sizes.

    Args:
        rows: of each network, the records of the test images, as `average_precision.Table` takes.
        name_of: a class as a report shows it.
    """
    tables = {who: {size: Table(own, size) for size in SIZES} for who, own in rows.items()}
    first = next(iter(tables.values()))
    once = np.ones((1, len(next(iter(rows.values())))))
    values = {
        (who, size): np.append(table.by_class(once)[0], table.mean(once))
        for who, sizes in tables.items()
        for size, table in sizes.items()
    }
    heads = ["class", *(f"{who} {size}" for size in SIZES for who in tables)]
    known = np.flatnonzero(first["all"].truths)
    found = [
        [name, *(_known(values[who, size][place]) for size in SIZES for who in tables)]
        for name, place in [*((name_of(int(k)), int(k)) for k in known), (EVERY, -1)]
    ]
    title = "Average precision by class and size"
    note = (
        "Overlaps of 0.50 to 0.95. Small boxes have less than 32 x 32 pixels, large ones more "
        "than 96 x 96."
    )
    return {"title": title, "note": note, "heads": heads, "rows": found}


def at_threshold(rows: Mapping[str, Floats], name_of: NameOf, threshold: float) -> dict[str, Any]:
    """Boxes found, missed and false of each class, of those at least as sure as is shown.

    Args:
        rows: as of `by_size`.
        name_of: the same.
        threshold: their least score.
    """
    tables = {who: Table(own) for who, own in rows.items()}
    truths = next(iter(tables.values())).truths.astype(int)
    each = {who: table.at_threshold(threshold) for who, table in tables.items()}
    seen = np.flatnonzero(truths + sum(false for _, _, false in each.values()))
    heads = ["class", "annotated"]
    heads += [f"{who} {what}" for who in each for what in ("found", "missed", "false")]
    found = [
        [
            name,
            *(int(part[kinds].sum()) for part in (truths, *(p for o in each.values() for p in o))),
        ]
        for name, kinds in [*((name_of(int(k)), seen[seen == k]) for k in seen), (EVERY, seen)]
    ]
    return {
        "title": f"Boxes with a score of {threshold:g} or more",
        "note": "At an overlap of 0.50. A false box is on nothing, or on what a better one found.",
        "heads": heads,
        "rows": found,
    }


def tables_of(rows: Mapping[str, Floats], name_of: NameOf, threshold: float) -> Sequence[Any]:
    """Both, as JSON values."""
    return [by_size(rows, name_of), at_threshold(rows, name_of, threshold)]


def _known(value: float) -> float | str:
    return float(value) if np.isfinite(value) else NONE
