"""The tables of docs/search.md are those of the ablation's results."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FOUND = {
    "rows": {
        "width": {"top1": 60.0, "by_seed": [59.0, 61.0], "ms": 2.0, "seconds": 10},
        "width, longer": {"top1": 62.0, "by_seed": [60.0, 64.0], "ms": 2.1, "seconds": 20},
        "capacity": {"top1": 50.0, "by_seed": [50.0, 50.0], "ms": 1.0, "seconds": 10},
        "short": {"top1": 60.0, "by_seed": [60.0, 60.0], "ms": 1.5, "seconds": 20},
        "search": {"top1": 60.0, "by_seed": [59.0, 61.0], "ms": 2.0, "seconds": 30},
    },
    "against": {
        "width": {
            "width, longer": {"interval": [-10.71, 14.71]},
            "capacity": {"interval": [-22.7, 2.7]},
            "short": {"interval": [-12.7, 12.7]},
            "search": {"interval": [0.0, 0.0]},
        }
    },
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search_ablation_table

    yield search_ablation_table
    sys.modules.pop("search_ablation_table")


def test_the_document_has_the_results_that_are_there(script):
    text = script.DOCS.read_text(encoding="utf-8")
    made = script.sections()
    assert set(made) == {
        p.stem.rpartition("_")[2] for p in BENCHMARKS.glob("search_ablation_*.json")
    }
    assert script.rewritten(text, made) == text, "run benchmarks/search_ablation_table.py"
    for example, (_, metric, decimals) in script.EXAMPLES.items():
        path = BENCHMARKS / f"search_ablation_{example}.json"
        if path.is_file():
            value = json.loads(path.read_text())["rows"]["width"][metric]
            assert f"| {value:.{decimals}f} |" in made[example]


def test_each_arm_stands_beside_the_uniform_width(script):
    lines = script.table(FOUND, "top-1", "top1", 1).splitlines()[2:]
    told = [line.split(" | ")[2] for line in lines]
    assert told == [
        "", "-10.7 to +14.7, better in 2 of 2", "-22.7 to +2.7, better in 0 of 2",
        "-12.7 to +12.7, better in 1 of 2", "the same student in 2 of 2",
    ]  # fmt: skip


def test_an_error_is_better_where_it_is_smaller(script):
    rows = {arm: {**row, "mae": row["top1"]} for arm, row in FOUND["rows"].items()}
    lines = script.table({**FOUND, "rows": rows}, "MAE", "mae", 1).splitlines()
    assert "better in 0 of 2" in lines[3]
    assert "better in 2 of 2" in lines[4]


def test_one_seed_has_no_interval(script):
    rows = {arm: {**row, "by_seed": row["by_seed"][:1]} for arm, row in FOUND["rows"].items()}
    lines = script.table({"rows": rows, "against": {"width": {}}}, "top-1", "top1", 1).splitlines()
    assert "| +1.0 in one seed |" in lines[3]
    assert "the same student in 1 of 1" in lines[6]
