"""The report says the verdict first, the same in text, Markdown and HTML, and needs no network."""

import base64
import html as escaping
import io
import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kdcompile.bundle import curves, facts, figures, render
from kdcompile.bundle.figures import overlay_png
from kdcompile.bundle.report.page import html
from kdcompile.bundle.text import text_summary

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def page(a_report, metrics, write_examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder, 3)
    return html(a_report(), folder, metrics)


def picture(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_page_has_the_verdict_before_the_gates_before_the_numbers(page):
    names = ["verdict", "open", "gates", "numbers", "time", "accuracy", "examples", "training"]
    places = [page.index(f'id="{name}"') for name in names]
    assert places == sorted(places)
    assert "passed on host, 1 gate pending on the board" in page[: page.index('id="gates"')]


def test_page_needs_nothing_else(page):
    assert re.findall(r"https?://|//cdn|@import|<script|<link|<iframe", page) == []
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,26})', page)
    kinds = Counter(source.split(";")[0] for source in sources)
    assert kinds == {"data:image/svg+xml": 7, "data:image/webp": 3 * 3}
    assert len(page) < 1_500_000


def test_charts_are_images_that_need_nothing_and_follow_the_readers_mode(page):
    for encoded in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)', page):
        text = base64.b64decode(encoded).decode()
        root = ElementTree.fromstring(text)
        tags = {one.tag.rpartition("}")[2] for one in root.iter()}
        assert tags <= {"svg", "style", "defs", "g", "path", "use", "clipPath", "rect", "image"}
        links = [v for one in root.iter() for k, v in one.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;")) for link in links)
        assert "prefers-color-scheme:dark" in text
        assert figures.LIGHT.ink not in text.replace(figures._STYLE, "")


def test_page_escapes_what_it_shows(a_report, tmp_path):
    hostile = replace(a_report(), details={}, name="<script>alert(1)</script>")
    page = html(hostile, tmp_path, [])
    assert "<script>" not in page
    assert escaping.escape(hostile.name) in page


def test_failure_is_said_in_words_too(a_report, tmp_path):
    page = html(replace(a_report("failed"), details={}), tmp_path, [])
    assert 'class="verdict bad"' in page
    assert "A required gate failed" in page
    assert "✗ failed" in page


def test_absent_parts_say_not_measured(a_report, tmp_path):
    bare = replace(a_report(), details={}, measurements=())
    page = html(bare, tmp_path, [])
    assert page.count("not measured") >= 7
    assert "data:image" not in page
    assert render.markdown(bare).count("not measured") >= 7


def test_example_without_a_picture_says_so(a_report, tmp_path):
    bare = a_report(predictions=[], by_density=[])
    assert "no picture was kept" in html(bare, tmp_path, [])


def test_markdown_has_the_facts_and_keeps_its_tables_whole(a_report):
    text = render.markdown(a_report())
    assert text.index("**passed on host") < text.index("## Gates") < text.index("## Numbers")
    assert "why \\| so" in text
    assert "a &lt;b&gt;CPU" in text
    assert "1.25 people (95 %: 1 to 1.5)" in text
    assert "int8 (ships)" in text
    rows = [line for line in text.splitlines() if line.startswith("| accuracy")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == len(render.GATE_HEADS) + 1


def test_text_summary_is_aligned_and_complete(a_report):
    text = text_summary(a_report())
    first, *rest = text.splitlines()
    assert first == "crowd for jetson: passed on host, 1 gate pending on the board"
    table = [line for line in rest if re.match(r"  verdict|[✓…]", line)]
    assert len({line.index(word) for line, word in
                zip(table, ("gate", "accuracy", "speedup"), strict=True)}) == 1  # fmt: skip
    assert "Judged on 3 of 20 test images only (data.max_test = 3)." in text
    assert "  speedup: >= 3x; no board" in text
    assert "  accuracy: <= 5 %; why | so" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (True, "yes"), (1234567, "1,234,567"), (0.00012347, "0.0001235"),
     (12345.6, "12,346"), (1e20, "1e+20"), (float("nan"), "nan"), ("x", "x")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert facts.number(value) == text


def test_scope_says_when_it_is_whole_or_unknown(a_report):
    assert facts.scope(a_report(max_test=None)) == "Judged on all 3 test images."
    assert facts.scope(a_report(max_test=9, test_photos=3)) == "Judged on all 3 test images."
    assert facts.scope(a_report(max_test=9, test_photos=5, test_copies=2)) == (
        "Judged on all 3 test images, each once: 2 are copies of others."
    )
    assert facts.scope(a_report(predictions=[])) == "Accuracy: not measured."


def test_long_lists_are_cut_and_say_so():
    assert facts.flat({"a_b": {"c": list(range(10))}}) == [
        ("a b: c", "0, 1, 2, 3, 4, 5, 6, 7 and 2 more")
    ]
    assert facts.flat({"a": [{"n": 1, "m": 2}]}) == [("a", "n 1, m 2")]


def test_prediction_has_a_band_and_measurement_an_interval(a_report):
    measured = a_report().measurements[0]
    assert "95 %" in facts.amount(measured)
    assert "band" in facts.amount(replace(measured, evidence="predicted"))
    assert facts.amount(replace(measured, unit="1", low=None)) == "1.25"


def test_figures_repeat_exactly(metrics):
    assert curves.loss_curves(metrics) == curves.loss_curves(metrics)


def is_drawn(chart):
    """More than an empty figure."""
    return len(chart.uri) > 5000 and chart.alt


def test_figures_take_odd_values(metrics):
    negative = [{"step": 0, "loss": -1.0, "terms": {"$a_1$": -1.0, "损": 0.0}}, {"step": 5}]
    assert all(map(is_drawn, curves.loss_curves(negative)))
    assert is_drawn(curves.validation_curve(metrics, ("val_mae", "error"), None))


@pytest.mark.parametrize(("size", "channels"), [((30, 40), 1), ((1200, 300), 3), ((8, 900), 3)])
def test_overlay_keeps_the_aspect_and_takes_any_title(size, channels):
    pixels = np.full((*size, channels), 90, np.uint8)
    density = np.zeros((4, 5), np.float32)
    image = picture(overlay_png(pixels, density, "人 $x$ 3.2"))
    margin = (0.55 + 0.12) * figures.DPI, (0.32 + 0.06) * figures.DPI
    width, height = max(image.width - margin[0], 1), image.height - margin[1]
    assert image.width <= 640 + margin[0] + 2
    assert width / height == pytest.approx(size[1] / size[0], rel=0.35) or width < 240


def test_overlay_puts_the_density_where_it_was_seen():
    pixels = np.full((40, 60, 1), 128, np.uint8)
    density = np.zeros((4, 6), np.float32)
    density[0, 5] = 1.0
    image = np.asarray(picture(overlay_png(pixels, density, ""))).astype(int)
    colourful = image.max(axis=2) - image.min(axis=2) > 40
    photo = colourful[:, : round(image.shape[1] * 0.75)]
    rows, columns = np.nonzero(photo)
    assert rows.mean() < image.shape[0] * 0.35
    assert columns.mean() > image.shape[1] * 0.5


CLASSIFIED = {
    "task": {"kind": "classification", "metric": "top1", "is_rate": True, "classes": ["a", "b"]},
    "predictions": [
        {"name": "1", "true": 0.0, "teacher": 0.0, "student": 1.0},
        {"name": "2", "true": 1.0, "teacher": 1.0, "student": -1.0},
    ],
    "by_density": None,
    "by_class": [
        {"class": name, "n": 1, "teacher_top1": 0.5, "student_top1": 0.25} for name in ("a", "b")
    ],
    "teacher": {"val_top1": 0.9},
    "distill": {"val_top1": 0.8, "best_step": 20, "initial": {"val_top1": 0.125},
                "warnings": ["overfitting: <badly>", "the teacher is worse"]},
}  # fmt: skip


def test_classes_have_words_of_their_own(a_report, tmp_path):
    report = a_report(**CLASSIFIED)
    rows = [{"step": 0, "val_top1": 0.125}, {"step": 20, "val_top1": 0.8, "loss": 1.0}]
    page, text = html(report, tmp_path, rows), render.markdown(report)
    assert "Predicted against true class" in page
    assert "Accuracy by class" in text
    assert "| a | 1 | 50.00% | 25.00% |" in text
    assert "12.50% before the first step, 80.00% at best (step 20), the teacher's 90.00%" in text
    assert page.count('src="data:image/svg+xml') == 5  # speed, confusion, bars, validation, losses


def test_warnings_come_before_the_gates(a_report, tmp_path):
    report = a_report(**CLASSIFIED)
    page = html(report, tmp_path, [])
    assert page.index("overfitting: &lt;badly&gt;") < page.index('id="gates"')
    assert render.markdown(report).index("**Warning**: the teacher") < page.index('id="gates"')
    assert "warning: the teacher is worse" in text_summary(report)
    assert 'id="warnings"' not in html(a_report(), tmp_path, [])


def test_values_may_be_negative_and_classes_many():
    points = [{"true": -3.0, "teacher": -2.0, "student": 5.0}]
    assert is_drawn(figures.scatter(points, "value"))
    many = [{"true": float(n), "student": float((7 * n) % 100)} for n in range(100)]
    assert is_drawn(figures.confusion(many, None))
    rows = [(str(n), 0.5, 0.25) for n in range(20)]
    assert is_drawn(figures.bars(rows, ("class", "top-1")))


def test_every_term_has_a_panel_and_a_moving_weight_its_axis(monkeypatch):
    rows = [
        {"step": n, "loss": 2.0, "terms": {"hard": 1.0, "soft": 10.0**-n, "count": -1.0},
         "weights": {"hard": 1.0, "soft": 4.0 - n}, "stage": "ab"[n > 2]}
        for n in range(1, 5)
    ]  # fmt: skip
    drawn = []
    monkeypatch.setattr(curves, "svg", lambda figure, label: drawn.append(figure))
    curves.loss_curves(rows)
    axes = [figure.axes[0] for figure in drawn]
    titles = [a.get_title(loc="left") for a in axes]
    assert titles == ["loss", "hard", "soft", "count"]
    assert [(a.get_xlabel(), a.get_ylabel()) for a in axes] == [("step", "loss")] * 4
    others = [a for figure in drawn for a in figure.axes[1:]]
    assert [a.get_ylabel() for a in others] == ["weight"]
    soft = axes[titles.index("soft")]
    assert soft.get_yscale() == "log"
    assert axes[titles.index("hard")].get_yscale() == "linear"
    assert [t.get_text() for t in soft.texts] == ["b"]
