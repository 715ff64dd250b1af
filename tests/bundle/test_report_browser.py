"""The report's page in a browser: its layout at four widths, dark mode, accessibility, print."""

import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcompile.bundle.report.page import html
from kdcompile.core.report import Report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
ABSENT = [
    name
    for name, there in (
        ("Chromium", CHROMIUM),
        ("Playwright (pip install 'kdcompile[browser]')", find_spec("playwright")),
        ("axe-core (pip install 'kdcompile[browser]')", find_spec("axe_playwright_python")),
    )
    if not there
]
pytestmark = [
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
    pytest.mark.usefixtures("drawn"),
]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "report_cells.json"
WIDTHS = (360, 768, 1200, 1920)
A4 = 794  # pixels of a page's width
SCROLLS = """() => [document.documentElement, ...document.querySelectorAll('.table, .card, .tile')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className || e.tagName)"""
# words of up to 20 letters or digits, visible, whose characters are not on one line
BROKEN = r"""() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), broken = [];
  const range = document.createRange();
  while (walk.nextNode()) {
    for (const word of walk.currentNode.data.matchAll(/[\p{L}\p{N}.,%]{2,20}/gu)) {
      range.setStart(walk.currentNode, word.index);
      range.setEnd(walk.currentNode, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
      if (tops.size > 1) broken.push(word[0]);
    }
  }
  return broken;
}"""
OPEN_ALL = "() => document.querySelectorAll('details').forEach(d => { d.open = true; })"


def save_example(folder, kind):
    """A picture with annotated boxes and those of both networks."""
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 12, 60, 70, 1, 0], [80, 30, 120, 90, 0.7, 1]], np.float32)
    np.savez(
        folder / f"example_{kind}.npz", pixels=rng.integers(90, 200, (96, 128, 3), np.uint8),
        truth=boxes, teacher=boxes + 1, student=boxes + 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report():
    return Report.from_json(json.loads(FIXTURE.read_text())["report"])


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(browser, report, tmp_path_factory):
    """The report, with all that is folded open."""
    folder = tmp_path_factory.mktemp("report")
    for example in report.details["examples"][:3]:
        save_example(folder, example["kind"])
    text = html(report, folder, json.loads(FIXTURE.read_text())["metrics"])
    (folder / "report.html").write_text(text)
    shown = browser.new_page()
    shown.goto((folder / "report.html").as_uri())
    shown.evaluate(OPEN_ALL)
    return shown


def faults(page):
    """What axe-core calls serious or critical, each with the first element that it is in."""
    import axe_playwright_python

    if not page.evaluate("() => 'axe' in window"):
        script = Path(axe_playwright_python.__file__).with_name("axe.min.js")
        page.evaluate(script.read_text())
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], one["nodes"][0]["html"][:120]) for one in grave]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways_and_no_word_is_broken(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate(SCROLLS) == []
    assert page.evaluate(BROKEN) == []


def test_the_checks_find_what_they_look_for(browser):
    shown = browser.new_page(viewport={"width": 360, "height": 400})
    shown.set_content(
        "<p style='width:3em;word-break:break-all'>measurements</p>"
        "<div class=card style='width:50px;overflow:auto'><p style='width:900px'>x</p></div>"
        "<img src='data:,'>"
    )
    assert shown.evaluate(BROKEN) == ["measurements"]
    assert "card" in shown.evaluate(SCROLLS)
    assert "image-alt" in [name for name, _ in faults(shown)]
    shown.close()


def test_verdict_tiles_and_the_command_are_on_the_first_screen(page):
    page.set_viewport_size({"width": 1200, "height": 900})
    for name in ("#verdict", "#compared", "#open .command", ".chart"):
        box = page.locator(name).first.bounding_box()
        assert box["y"] + box["height"] <= 900, name
    assert page.locator("#compared .tile").count() == 4
    assert page.locator("#open .command").inner_text().startswith("kdcompile build --target jetson")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_serious(page, mode):
    page.emulate_media(color_scheme=mode)
    assert faults(page) == []
    page.emulate_media(color_scheme="light")


def test_a_dark_page_has_dark_charts(page):
    page.set_viewport_size({"width": 1200, "height": 900})
    shades = {}
    for mode in ("light", "dark"):
        page.emulate_media(color_scheme=mode)
        picture = page.locator(".chart").first.screenshot()
        shades[mode] = np.asarray(Image.open(io.BytesIO(picture)).convert("L")).mean()
    page.emulate_media(color_scheme="light")
    assert shades["light"] > 200
    assert shades["dark"] < 80


def test_every_image_is_told_in_words_and_folds_open_by_key(page):
    assert page.locator("img:not([alt])").count() == 0
    page.evaluate("() => { document.querySelector('#reproduce').open = false; }")
    page.locator("#reproduce summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#reproduce").get_attribute("open") is not None


def test_it_prints(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": A4, "height": 1100})
    assert page.evaluate(SCROLLS) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen")
