"""benchmarks/backbones.py on a network by hand, and the page that is made of its rows."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROWS = ("network", "budget")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = {*sys.modules}
    import backbones
    import backbones_page

    yield backbones, backbones_page
    for name in {*sys.modules} - before:
        if (BENCHMARKS / f"{name}.py").is_file():
            del sys.modules[name]


def _kept(page):
    return [*page.csv_tables.kept(page.RESULTS, ROWS).values()]


def test_a_row_prices_exports_and_runs_the_student(scripts, monkeypatch):
    backbones, _ = scripts
    import hand_networks

    monkeypatch.setattr(backbones, "network", lambda _: hand_networks.network("two_inputs"))
    with torch.no_grad():
        row = backbones.row("hand:two_inputs", "width 0.5")
    assert list(row) == list(backbones.COLUMNS)
    assert 0.25 < float(row["share"]) < 0.3
    assert row["share_exact"] == row["share"]  # whose halves are multiples of 16 all
    assert float(row["student_macs_m"]) < 0.3 * float(row["macs_m"])
    assert float(row["student_ms"]) < float(row["ms"])
    assert (row["exported"], row["ort"], row["refused"], row["frozen"]) == ("yes", "yes", "", "")
    assert 0 < float(row["parity"]) < 1e-5
    assert row["model"] == backbones.latency_model() != _other_model(backbones, monkeypatch)


def _other_model(backbones, monkeypatch):
    """That of the same sources, of a board with other numbers."""
    monkeypatch.setattr(backbones, "TARGET", "h100")
    return backbones.latency_model.__wrapped__()


def test_a_row_of_a_speedup_is_that_of_the_compilers_own_choice(scripts, monkeypatch):
    backbones, _ = scripts
    import hand_networks

    monkeypatch.setattr(backbones, "network", lambda _: hand_networks.network("unet", 4))
    with torch.no_grad():
        row = backbones.row("hand:unet", "speedup 2")
    assert (row["refused"], row["exported"], row["share_exact"]) == ("", "yes", "")
    assert float(row["speedup"]) >= 2
    assert 0.1 < float(row["width"]) < 1  # the widest that is fast enough


def test_the_page_is_that_of_the_kept_rows(scripts):
    _, page = scripts
    assert page.PAGE.read_text() == page.page(_kept(page)), "python benchmarks/backbones_page.py"


def test_nine_in_ten_get_as_small_as_half_the_width_should_make_them(scripts):
    """The others are refused, would keep more at the exact half, or are held by whole tiles."""
    backbones, page = scripts
    rows = [row for row in _kept(page) if row["budget"] == page.WIDTH and not row["skipped"]]
    assert len(rows) >= 60
    assert {row["network"] for row in rows} == {*backbones.names()}
    small = [row for row in rows if float(row["share"]) <= page.SMALL]
    assert len(small) >= 0.9 * len(rows)
    large = [row for row in rows if row not in small]
    left = [row for row in large if not (row["refused"] or page.is_heavy(row))]
    assert {row["network"] for row in left} == {"timm:fastvit_t8"}  # a trunk of 48 in tiles of 16
    assert all(float(row["share_tile_8"]) <= page.SMALL for row in left)
    assert all(row["refused"] for row in rows if float(row["share"]) > 0.55)
    assert all(float(row["parity"]) < 1e-4 for row in rows)


def test_a_page_tells_what_was_refused_frozen_not_exported_and_not_tried(scripts):
    _, page = scripts
    good = dict(_kept(page)[0], network="a:good", budget=page.WIDTH, frozen="", refused="")
    good |= {"share_exact": "0.26", "model": "0a1b2c3d"}
    heavy = dict(good, network="a:heavy", share="0.41", share_exact="0.40")
    wide = dict(good, network="a:wide", share="0.7", refused="0.5 was requested: x (why)", model="")
    held = dict(good, network="a:held", frozen="x (one); y (two); z (three); and 4 more")
    lost = dict(good, network="a:lost", exported="no: export-leftover: a tensor")
    absent = dict(good, network="a:absent", skipped="no package timm")
    text = page.page([good, wide, held, lost, absent, heavy])
    assert "3 of 5 networks keep at most 35%" in text
    assert "keep more than 35% even then: a:heavy.\n" in text
    assert "(`student-not-smaller`): 1;" in text
    assert "Students that the compiler exports: 4." in text
    assert "| a:wide |" in text
    assert "0.7, refused" in text
    assert "- a:wide, refused: 0.5 was requested: x (why)" in text
    assert "- a:held, frozen: x (one); y (two); z (three); and 4 more" in text
    assert "- a:lost, not exported: export-leftover: a tensor" in text
    assert "Not run yet: a:absent, a:good, a:heavy, a:held, a:lost, a:wide." in text
    assert "Not tried: a:absent (no package timm)." in text
    (line,) = (line for line in text.splitlines() if line.startswith("| a:held"))
    assert line.split("|")[9].strip() == "7"
    assert line.split("|")[-2].strip() == good["model"]
    (line,) = (line for line in text.splitlines() if line.startswith("| a:wide"))
    assert line.split("|")[-2].strip() == "earlier"
