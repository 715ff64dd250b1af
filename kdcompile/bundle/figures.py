"""Charts as SVG and overlays as PNG bytes, drawn without global state of matplotlib."""

import base64
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

DPI = 144
MOST_NAMES, FEW_PARTS = 20, 4  # classes named on an axis; parts named without turning
FONT = "DejaVu Sans"  # matplotlib ships it, so that the report looks the same everywhere


@dataclass(frozen=True)
class Theme:
    """Colours of a chart: paper, ink, lines of the grid, teacher, student, loss terms."""

    paper: str
    ink: str
    grid: str
    teacher: str
    student: str
    terms: tuple[str, ...]


_TERMS = ("#3b82c4", "#c98a1b", "#8a63c9", "#2f9e77", "#c2577f", "#7d8590")
LIGHT = Theme("#ffffff", "#3d4450", "#e6e8ec", "#7c8695", "#0f7b6c", _TERMS)
DARK = Theme("#1b2027", "#c3cad4", "#2c333d", "#8f99a8", "#35c2a9", _TERMS)
_DARKER = dict(zip(vars(LIGHT).values(), vars(DARK).values(), strict=True))
_DARKER.pop(_TERMS)
# an image of a page is told of the reader's choice of light or dark, and is drawn once only
_MODES = "".join(f"--c{place}:{{}};" for place in range(len(_DARKER)))
_STYLE = (
    ":root{" + _MODES.format(*_DARKER) + "}"
    "@media (prefers-color-scheme:dark){:root{" + _MODES.format(*_DARKER.values()) + "}}"
)  # fmt: skip


class Chart(NamedTuple):
    """An image of a page: its data URI, and what it shows in words."""

    uri: str
    alt: str


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Draw with the theme whatever the user's matplotlibrc says."""
    values: dict[Any, Any] = {
        "font.family": FONT,
        "font.size": 10,
        "text.color": theme.ink,
        "text.parse_math": False,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": DPI,
        "figure.facecolor": theme.paper,
        "grid.color": theme.grid,
        "legend.frameon": False,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(values)
        yield


def png(figure: Figure) -> bytes:
    """The figure as an opaque PNG without metadata."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's Agg has no types
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def svg(figure: Figure, label: str) -> Chart:
    """The figure as an SVG image, with text as outlines, in colours for light and dark pages.

    Args:
        figure: drawn within `style` of `LIGHT`.
        label: what it shows, for a reader who does not see it.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "kdcompile"}):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    unread = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
    text = unread.sub("", buffer.getvalue().decode())
    for place, colour in enumerate(_DARKER):
        text = text.replace(colour, f"var(--c{place})")
    text = re.sub(r' d="[^"]+"', _rounded, re.sub(r"\n\s*", "\n", text))
    text = text.replace("<defs>", f"<style>{_STYLE}</style><defs>", 1)
    uri = f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
    return Chart(uri, label)


def _rounded(path: re.Match[str]) -> str:
    """A path in hundredths of its unit: points, and 64ths of one in outlines of letters."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", path[0])


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(findfont(FontProperties(family=FONT))).get_charmap())


def printable(text: str) -> str:
    """The text with `?` for each character that the font has no glyph for."""
    return "".join(c if ord(c) in _drawable() else "?" for c in text)


def chart(x: str, y: str, height: float = 3.1) -> tuple[Figure, Axes]:
    """An empty chart with named axes."""
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=textwrap.fill(x, 52), ylabel=textwrap.fill(y, 30))
    return figure, axes


def scatter(predictions: Sequence[Mapping[str, Any]], what: str, theme: Theme = LIGHT) -> Chart:
    """Predicted against true values of the test images, for teacher and student.

    Args:
        predictions: the report's rows.
        what: is predicted, with its unit, such as `count`.
        theme: colours.
    """
    with style(theme):
        figure, axes = chart(f"true {what}", f"predicted {what}", 4.4)
        true = [row["true"] for row in predictions]
        size = 26 if len(predictions) < 80 else 14
        for who, marker, colour, line in (
            ("teacher", "x", theme.teacher, 1),
            ("student", "o", theme.student, 0),
        ):
            seen = [row[who] for row in predictions]
            axes.scatter(
                true, seen, size, c=colour, marker=marker, alpha=0.75, linewidths=line, label=who
            )
        values = [row[who] for row in predictions for who in ("true", "teacher", "student")]
        low, high = min(0.0, *values), max(values)
        room = 0.05 * max(high - low, 1e-9)
        reach = (low - room if low < 0 else 0.0, high + room)
        axes.plot(reach, reach, c=theme.ink, lw=0.8, ls="--")
        axes.set(xlim=reach, ylim=reach)
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        return svg(figure, f"Predicted against true {what} of each test image, both networks")


def confusion(
    predictions: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None,
    theme: Theme = LIGHT,
) -> Chart:
    """The share of each true class that the student takes for each class.

    Args:
        predictions: the report's rows; classes by their indices, -1 for none.
        classes: their names.
        theme: colours.
    """
    pairs = [(int(row["true"]), int(row["student"])) for row in predictions]
    size = len(classes) if classes is not None else 1 + max(max(pair) for pair in pairs)
    counts = np.zeros((size, size))
    for true, predicted in pairs:
        if predicted >= 0:
            counts[true, predicted] += 1
    totals = np.bincount([true for true, _ in pairs], minlength=size)
    shares = counts / np.maximum(totals, 1)[:, None]
    with style(theme):
        figure, axes = chart("class that the student gives", "true class", 4.4)
        image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        bar.ax.tick_params(labelsize=8)
        if size <= MOST_NAMES:
            names = [printable(name) for name in classes or map(str, range(size))]
            axes.set_xticks(range(size), names, rotation=90, fontsize=8)
            axes.set_yticks(range(size), names, fontsize=8)
        return svg(figure, "Predicted against true class: the student's share of each true class")


def bars(
    rows: Sequence[tuple[str, float, float]], labels: tuple[str, str], theme: Theme = LIGHT
) -> Chart:
    """A metric of teacher and student in parts of the test images.

    Args:
        rows: (name of the part, the teacher's value, the student's).
        labels: what the parts are, and the metric in words.
        theme: colours.
    """
    with style(theme):
        figure, axes = chart(*labels, 4.4)
        place = np.arange(len(rows))
        axes.bar(place - 0.2, [r[1] for r in rows], 0.38, color=theme.teacher, label="teacher")
        axes.bar(place + 0.2, [r[2] for r in rows], 0.38, color=theme.student, label="student")
        turned = 90 if len(rows) > FEW_PARTS else 0
        axes.set_xticks(place, [printable(r[0]) for r in rows], rotation=turned)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper right", ncols=2)
        return svg(figure, f"{labels[1]} by {labels[0]}, teacher and student")


LONGEST = 640  # pixels of an overlay's photo
SMALLEST = 320
COLOURS = "inferno"
HEAD, EDGE = 0.32, 0.06  # inches of a picture's title, and around it


class Picture:
    """A figure with an image's axes, a title above and room at the right; made within `style`.

    figure, axes; size: of the figure, in inches; box: of the axes, in shares of it; zoom: of the
    image's pixels.
    """

    def __init__(self, height: int, width: int, beside: float, title: str) -> None:
        """For an image of that size, with `beside` inches at its right."""
        self.zoom = _zoom(height, width)
        inches_w, inches_h = width * self.zoom / DPI, height * self.zoom / DPI
        self.size = (max(inches_w, 1.6) + beside + 2 * EDGE, inches_h + HEAD + EDGE)
        self.figure = Figure(figsize=self.size)
        wide, high = self.size
        self.box = (EDGE / wide, EDGE / high, inches_w / wide, inches_h / high)
        self.axes = self.figure.add_axes(self.box)
        self.axes.set_axis_off()
        self.figure.text(EDGE / wide, 1 - 0.1 / high, printable(title), fontsize=10, va="top")

    def legend(self, rows: Sequence[tuple[Any, str]]) -> None:
        """Colours with what they are, at the right of the image."""
        self.figure.legend(
            handles=[Patch(color=colour, label=printable(label)) for colour, label in rows],
            loc="upper left", fontsize=9,
            bbox_to_anchor=(self.box[0] + self.box[2], self.box[1] + self.box[3]),
            handlelength=1, labelspacing=0.25,
        )  # fmt: skip


def _zoom(height: int, width: int) -> float:
    """By how much an image is scaled to be neither larger nor smaller than pictures are."""
    longest = max(height, width)
    return min(LONGEST / longest, max(1.0, SMALLEST / longest))


def overlay_png(
    pixels: NDArray[np.uint8],
    density: NDArray[np.float32],
    title: str,
    extent: tuple[float, float] | None = None,
    peak: float | None = None,
) -> bytes:
    """The photo in grey under its density, with a colour scale, as a PNG.

    Args:
        pixels: uint8 [H, W, C], one or three channels.
        density: float32 [h, w], count per cell.
        title: written above.
        extent: (height, width) that the density covers, in the photo's pixels; the photo's own if
            absent.
        peak: the density of the strongest colour, to compare pictures; its own maximum if absent.
    """
    height, width = pixels.shape[:2]
    reach = extent or (float(height), float(width))
    top = max(float(density.max()) if peak is None else peak, 1e-6)
    with style(LIGHT):
        drawn = Picture(height, width, 0.55, title)
        axes, box, wide = drawn.axes, drawn.box, drawn.size[0]
        grey = np.asarray(_small(pixels, drawn.zoom).convert("L"))
        axes.imshow(
            grey, cmap="gray", vmin=-30, vmax=400, extent=(0, width, height, 0), aspect="auto"
        )
        shown = np.clip(density / top, 0, 1)
        axes.imshow(
            shown, cmap=COLOURS, vmin=0, vmax=1, alpha=0.85 * np.sqrt(shown), aspect="auto",
            extent=(0, reach[1], reach[0], 0), interpolation="bilinear",
        )  # fmt: skip
        axes.set(xlim=(0, width), ylim=(height, 0))
        scale = ScalarMappable(Normalize(0, top), matplotlib.colormaps[COLOURS])
        strip = drawn.figure.add_axes((box[0] + box[2] + 0.06 / wide, box[1], 0.09 / wide, box[3]))
        drawn.figure.colorbar(scale, cax=strip).ax.tick_params(labelsize=6, length=2, pad=1)
        strip.grid(visible=False)
        return png(drawn.figure)


def photo_png(pixels: NDArray[np.uint8]) -> bytes:
    """The photo alone, uint8 [H, W, C], at the size of the other pictures, as a PNG."""
    buffer = io.BytesIO()
    _small(pixels, _zoom(*pixels.shape[:2])).save(buffer, "PNG")
    return buffer.getvalue()


def _small(pixels: NDArray[np.uint8], zoom: float) -> Image.Image:
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.resize(size, Image.Resampling.BILINEAR if zoom < 1 else Image.Resampling.NEAREST)
