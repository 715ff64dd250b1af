"""The summary is read back with a Markdown parser: what a person sees is what was said."""

import pytest
from markdown_it import MarkdownIt

from kdcompile.ci.markdown import LONGEST_CELL, MOST_ROWS, markdown
from kdcompile.ci.outcome import Outcome
from kdcompile.core import escape

NASTY = [
    "a|b", "a\\|b", "`x`|`y`", "<script>alert(1)</script>", "[link](http://x.y)", "*b* _i_ ~~s~~",
    "# head", "1 < 2 & 3 > 2 &amp;", "![i](x)", "@somebody", "line\r\nbreak\ttab", "$x$", "a\\",
    "https://example.org/x", "www.example.org", "---", "\x00\x1b[31mred", "\ud800",
]  # fmt: skip


def shown(text):
    """The cells of all tables as plain text, row by row."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    rows, kinds = [], set()
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            kinds |= {child.type for child in token.children}
            rows[-1].append("".join(child.content for child in token.children))
    return rows, kinds


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_shown_as_it_is_in_one_cell(text):
    made = markdown([Outcome(text, "size", "failed", True, text, text)], text)
    rows, kinds = shown(made)
    plain = " ".join(text.split()).translate({0: 0xFFFD, 0x1B: 0xFFFD, 0xD800: 0xFFFD})
    assert rows[1][1:] == [plain, "failed", plain, plain, ""]
    assert kinds <= {"text", "text_special"}, "a part of it was read as Markdown"
    assert made.encode()


def test_nobody_is_called_and_nothing_is_linked():
    text = escape.markdown("@all see https://example.org and www.example.org")
    assert "@" not in text
    assert "://" not in text
    assert "www." not in text


def test_no_word_becomes_a_picture():
    assert ":tada:" not in escape.markdown("a :tada: b::c")


def test_plain_words_stay_as_they_are():
    text = "p50 +4.9 % (+4.1 % to +5.7 %); error{x}: artifact-missing #3!"
    assert escape.markdown(text) == text


def test_the_heading_has_the_verdict():
    made = markdown([Outcome("size", "size", "inconclusive"), Outcome("x", "y", "passed")], "crowd")
    assert made.splitlines()[0] == "### ❔ crowd"
    assert "inconclusive: size** (exit 5; 1 inconclusive, 1 passed)" in made


def test_what_is_red_comes_first_and_is_never_cut():
    green = [Outcome(f"green{i}", "size", "passed") for i in range(MOST_ROWS)]
    made = markdown([*green, Outcome("red", "size", "failed")], "crowd")
    rows, _ = shown(made)
    assert rows[1][1] == "red"
    assert len(rows) == MOST_ROWS + 1
    assert "1 more are in `outcomes.json`." in made


def test_the_lines_of_an_error_stay_apart():
    reason = "error[x]: broken\n  where: here\n  fix:   mend it"
    rows, _ = shown(markdown([Outcome("build", "build", "error", reason=reason)], "crowd"))
    assert rows[1][5] == "error[x]: broken; where: here; fix: mend it"


def test_a_long_cell_is_cut():
    rows, _ = shown(markdown([Outcome("a", "size", "failed", reason="x|" * 1000)], "t"))
    assert len(rows[1][5]) == LONGEST_CELL
    assert rows[1][5].endswith("…")


def test_ratios_are_a_table_of_their_own():
    ratio = {"quantile": "p99", "value": 1.0491, "low": 1.041, "high": 1.0567, "margin": 0.03}
    details = {"ratios": [{**ratio, "decision": "regressed"}], "paired": True, "blocks": 60}
    made = markdown([Outcome("net", "latency", "failed", details=details | {"left_out": 1})], "t")
    rows, _ = shown(made)
    assert rows[-1] == ["p99", "1.0491", "1.0410", "1.0567", "±3.0 %", "regressed"]
    assert "60 blocks of each side, in turns with the reference, 1 left out" in made
