"""The tables of docs/search.md: what each part of a search is worth, by the ablation's results.

    python benchmarks/search_ablation_table.py

Reads `search_ablation_EXAMPLE.json` of each example that there is one of.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latency_tables import rewritten

from kdcompile.core.files import write_text

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "search.md"
EXAMPLES = {"digits": ("MAE", "mae", 3), "cifar10": ("top-1, %", "top1", 1)}
ARMS = {
    "width": "`width`: the widest uniform student, nothing searched",
    "width, longer": "`width, longer`: as many steps more as finalists take",
    "capacity": "`capacity`: searched, no finalists",
    "short": "`short`: finalists drawn at random within the budget",
    "search": "`search`: both, as the product does it",
}


def table(found: Mapping[str, Any], title: str, metric: str, decimals: int) -> str:
    """Each arm beside the uniform width.

    Args:
        found: of `search_ablation.summary`.
        title: of the metric's column.
        metric: its key in the rows.
        decimals: of it.
    """
    rows = found["rows"]
    lines = [
        f"| arm | {title} | against `width`, 95 % over seeds | ms | s a seed |",
        "|---|---|---|---|---|",
    ]
    for arm, says in ARMS.items():
        row = rows[arm]
        told = "" if arm == "width" else _against(found, arm, metric, decimals)
        value = f"{row[metric]:.{decimals}f}"
        lines.append(f"| {says} | {value} | {told} | {row['ms']:.2f} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def _against(found: Mapping[str, Any], arm: str, metric: str, decimals: int) -> str:
    """The interval of the difference, and in how many seeds the arm is better."""
    ours, theirs = found["rows"][arm]["by_seed"], found["rows"]["width"]["by_seed"]
    if ours == theirs:
        return f"the same student in {len(ours)} of {len(ours)}"
    higher = metric == "top1"
    better = sum((a > b) if higher else (a < b) for a, b in zip(ours, theirs, strict=True))
    counted = f"better in {better} of {len(ours)}"
    against = found["against"]["width"].get(arm)
    if against is None:  # too few seeds for an interval
        return f"{ours[0] - theirs[0]:+.{decimals}f} in one seed"
    low, high = against["interval"]
    return f"{low:+.{decimals}f} to {high:+.{decimals}f}, {counted}"


def sections() -> dict[str, str]:
    """The generated text of each section."""
    made = {}
    for example, columns in EXAMPLES.items():
        path = HERE / f"search_ablation_{example}.json"
        if path.is_file():
            made[example] = table(json.loads(path.read_text()), *columns)
    return made


def main() -> int:
    """Write the tables."""
    write_text(DOCS, rewritten(DOCS.read_text(encoding="utf-8"), sections()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
