"""docs/inheriting.md is what its generator makes of the kept tables, and its arithmetic holds."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import inherit_page

    yield inherit_page
    for name in ("inherit_page", "csv_tables"):
        sys.modules.pop(name, None)


def row(arm: str, seed: int, lr: str, val: float, test: float, why: str = "") -> dict[str, str]:
    """A line of the table."""
    values = {"val": f"{val}", "test": f"{test}", "start": "0.4"} if not why else {}
    blank = dict.fromkeys(("val", "test", "start"), "")
    named = {"network": "ConvNeXt", "arm": arm, "seed": str(seed), "lr": lr, "why": why}
    return {**blank, **values, **named}


def test_the_page_is_that_of_the_tables(pages: ModuleType) -> None:
    made = "python benchmarks/inherit_page.py"
    assert pages.PAGE.read_text() == pages.kept(), made


def test_a_rate_is_chosen_on_validation_and_a_lead_is_over_the_best_other(
    pages: ModuleType,
) -> None:
    rows = [
        row("teacher", 0, "2", 0.7, 0.7),
        row("inherit", 0, "1", 0.60, 0.50),
        row("inherit", 0, "3", 0.59, 0.99),  # the better on the test photos, which have no say
        row("inherit", 1, "1", 0.60, 0.54),
        row("random", 0, "1", 0.1, 0.30),
        row("magnitude", 0, "3", 0.1, 0.51),
        row("magnitude", 1, "3", 0.1, 0.51),
        row("taylor", 0, "1", 0, 0, why="TimeoutError: not done"),
    ]
    text = pages.page(rows, [])
    line = next(line for line in text.splitlines() if line.startswith("| ConvNeXt"))
    assert line == (
        "| ConvNeXt | 70.0 | 40.0 (40.0 to 40.0) | 52.0 (50.0 to 54.0) | 30.0 | "
        "51.0 (51.0 to 51.0) | - | -1.0 |"
    )  # of the one seed that all have: 50 less 51
    assert "ahead of every other arm in 0 of 1" in text
    assert "Not measured yet: ResNet-18, MobileNetV2" in text
    assert "ConvNeXt, taylor: TimeoutError: not done" in text
