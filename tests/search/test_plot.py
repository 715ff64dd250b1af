"""The chart of a front: its files, and what is drawn in them."""

import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from kdcompile.latency_model.predict import Estimate
from kdcompile.search.pareto import Point
from kdcompile.search.plot import plot_front
from kdcompile.tasks.metric import MAE, TOP1

pytestmark = pytest.mark.usefixtures("drawn")


def point(ms, quality, evidence="predicted", measured=None):
    bounds = {"arithmetic": ms, "memory": 0.0, "launch": 0.0}
    latency = Estimate(ms, ms / 1.5, ms * 1.5, False, "fp16", bounds)
    return Point({"family": "shrink", "width": ms}, latency, quality, 2.0, evidence, 1, 1, measured)


POINTS = [
    point(0.5, 95.0, "proxy"), point(1.0, 90.0), point(2.0, 80.0, "distilled"),
    point(4.0, 76.0, "measured", 4.2), point(3.0, 99.0),
]  # fmt: skip
TEACHER = point(20.0, 70.0, "measured")


def draw(folder, points=POINTS, limit=2.5, metric=MAE):
    folder.mkdir(exist_ok=True)
    return plot_front(points, points[-3], limit, TEACHER, metric, folder / "front")


def test_two_whole_files_and_nothing_else(tmp_path):
    png, svg = draw(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.png", "front.svg"]
    with Image.open(io.BytesIO(png.read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20  # drawn, not blank
    assert svg.read_text().rstrip().endswith("</svg>")


def test_equal_points_give_equal_bytes(tmp_path):
    first, second = (draw(tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    changed = draw(tmp_path / "c", [replace(p, quality=p.quality + 3) for p in POINTS])
    assert changed[1].read_bytes() != first[1].read_bytes()


def test_the_user_s_own_style_changes_nothing(tmp_path):
    import matplotlib

    plain = draw(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        styled = draw(tmp_path / "b")
    assert styled[1].read_bytes() == plain[1].read_bytes()


@pytest.mark.parametrize(
    ("metric", "limit", "present", "absent"),
    [
        (MAE, 2.5, ["budget 2.5 ms", "lower is better", "teacher", "choice", "front",
                    "quality: distilled", "quality: proxy"], ["higher"]),
        (TOP1, None, ["higher is better"], ["budget"]),
    ],
)  # fmt: skip
def test_what_is_named(tmp_path, metric, limit, present, absent):
    text = " ".join(
        re.findall(r"<!-- (.*?) -->", draw(tmp_path, limit=limit, metric=metric)[1].read_text())
    )
    for words in present:
        assert words in text
    for words in absent:
        assert words not in text
