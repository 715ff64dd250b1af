"""What `make soak` prints, and the page that is written from it."""

import re
from pathlib import Path

from soak_results import CELL, results, told, written

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_a_result_takes_the_place_of_the_one_before_it(capsys):
    page = "| a | b | <!-- kills --> 3 kills <!-- torn --> 2 files |\n| c | d | passed |\n"
    told("kills", "90 kills of 4 | 5")
    found = results("noise\n" + capsys.readouterr().out + "soak: other: 7\n")
    assert found == {"kills": "90 kills of 4 | 5", "other": "7"}
    text, homeless = written(page, found)
    assert text.splitlines() == [
        "| a | b | <!-- kills --> 90 kills of 4 / 5 <!-- torn --> 2 files |", "| c | d | passed |",
    ]  # fmt: skip
    assert homeless == ["other"]


def test_every_result_of_the_soak_has_its_cell():
    cells = {name for _, name in CELL.findall(PAGE.read_text())}
    sources = [path.read_text() for path in sorted((TESTS / "soak").glob("*.py"))]
    names = {name for text in sources for name in re.findall(r"soak: ([a-z0-9-]+):", text)}
    names |= {name for text in sources for name in re.findall(r'told\(\s*"([a-z0-9-]+)"', text)}
    assert len(names) > 10
    assert names == cells
