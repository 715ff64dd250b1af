"""A table of a benchmark as a CSV file: read by what names its lines, replaced in one step."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def kept(path: Path, names: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """The lines of a file by the columns that name them; none where it is not there."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {tuple(line[name] for name in names): line for line in csv.DictReader(file)}


def write(path: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    temporary.replace(path)
