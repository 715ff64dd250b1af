"""What `make soak` found, and the cells of docs/reliability.md that say so.

A test of tests/soak tells its result in one line, `soak: NAME: RESULT`. As a script this takes a
file with the output of `make soak` and a page, and writes each result into the cell of the page
that has `<!-- NAME -->` before it. Exit code 1 where a result has no cell: a promise without row.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

LINE = re.compile(r"^soak: ([a-z0-9-]+): (.+)$", re.MULTILINE)
CELL = re.compile(r"(<!-- ([a-z0-9-]+) -->)[^|]*?(?=<!--|\|)")


def told(name: str, result: str) -> None:
    """Print the result of a test of the soak."""
    sys.stdout.write(f"\nsoak: {name}: {result}\n")


def words(counts: Mapping[str, int]) -> str:
    """Counts by name, as `7 SIGKILL, 6 SIGINT`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def results(output: str) -> dict[str, str]:
    """The results by their names; of one told twice the later."""
    return {name: found.strip() for name, found in LINE.findall(output)}


def written(page: str, found: Mapping[str, str]) -> tuple[str, list[str]]:
    """The page with the results in their cells, and the names of those that have none."""
    placed = set()

    def cell(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in found:
            return match.group()
        placed.add(name)
        return f"{match.group(1)} {found[name].replace('|', '/')} "

    page = CELL.sub(cell, page)
    return page, sorted(found.keys() - placed)


def main() -> int:
    """Write the results of the first file into the second."""
    output, page = Path(sys.argv[1]), Path(sys.argv[2])
    found = results(output.read_text(errors="replace"))
    text, homeless = written(page.read_text(), found)
    page.write_text(text)
    sys.stdout.write(f"{page}: {len(found) - len(homeless)} results written\n")
    for name in homeless:
        sys.stdout.write(f"{page}: no cell for {name}: write <!-- {name} --> into a row\n")
    return 1 if homeless else 0


if __name__ == "__main__":
    sys.exit(main())
