"""docs/ci.md says what is so."""

import re
from pathlib import Path

import pytest

from kdcompile.ci.annotations import annotations
from kdcompile.ci.mark import Settings
from kdcompile.ci.outcome import Outcome
from kdcompile.ci.report import FILES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "ci.md").read_text()


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).exists(), link


def test_the_files_and_the_words_of_the_mark_are_listed():
    first = re.findall(r"^\| `([\w.]+)` \|", TEXT, re.M)
    assert set(first) == set(FILES) | set(Settings.__dataclass_fields__)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    code = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)[-1]
    exec(code, {})
    assert "cold start" in Path("kdcompile-ci/junit.xml").read_text()


@pytest.mark.parametrize("level", ["error", "warning", "notice"])
def test_every_level_of_the_table_is_there(level):
    every = [Outcome("a", "gate", "failed"), Outcome("b", "gate", "failed", required=False),
             Outcome("c", "gate", "pending")]  # fmt: skip
    assert any(line.startswith(f"::{level} ") for line in annotations(every))
