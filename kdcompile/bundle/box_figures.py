"""Pictures of boxes and points: an image with what was found, and precision-recall curves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kdcompile.bundle.figures import LIGHT, Chart, Picture, Theme, chart, png, printable, style, svg
from kdcompile.bundle.mask_figures import BESIDE, MOST_NAMED

BOX, POINT = 6, 4  # columns of what is drawn: x0 y0 x1 y1 score class, or x y score class
COLOURS = 10  # of a cycle
MOST_CURVES = 8  # of a chart, the first classes


def boxes_png(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    title: str,
    classes: Sequence[str] | None = None,
) -> bytes:
    """The photo in grey with boxes in the colours of their classes, and a legend, as a PNG.

    Args:
        pixels: uint8 [H, W, C], one or three channels.
        boxes: float32 [D, 6], x0 y0 x1 y1 in its pixels, score and class.
        title: written above.
        classes: names by index; without them the indices.
    """
    with style(LIGHT):
        picture, colours = _named(pixels, boxes[:, -1], title, classes)
        for x0, y0, x1, y1, score, kind in boxes[::-1].tolist():  # the best on top
            picture.axes.add_patch(
                Rectangle(
                    (x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.2, ec=colours[int(kind)],
                    alpha=_strength(score),
                )
            )  # fmt: skip
        return png(picture.figure)


def points_png(
    pixels: NDArray[np.uint8],
    points: NDArray[np.float32],
    title: str,
    classes: Sequence[str] | None = None,
) -> bytes:
    """The same with points, float32 [D, 4] of x, y, score and class, each a cross."""
    with style(LIGHT):
        picture, colours = _named(pixels, points[:, -1], title, classes)
        for x, y, score, kind in points[::-1].tolist():
            colour, alpha = colours[int(kind)], _strength(score)
            picture.axes.plot([x], [y], "x", ms=7, mew=1.6, c=colour, alpha=alpha)
        return png(picture.figure)


def drawing_of(rows: NDArray[Any]) -> tuple[Callable[..., bytes], str]:
    """What draws rows of `BOX` or `POINT` columns, and what they are."""
    return (boxes_png, "boxes") if rows.shape[1] == BOX else (points_png, "points")


def _named(
    pixels: NDArray[np.uint8],
    given: NDArray[np.float32],
    title: str,
    classes: Sequence[str] | None,
) -> tuple[Picture, dict[int, str]]:
    """The photo in grey with a legend of the classes [D] of what is drawn, and their colours."""
    height, width = pixels.shape[:2]
    kinds = sorted({int(kind) for kind in given})
    colours = {kind: _colour(kind) for kind in kinds}
    names = {k: classes[k] if classes and k < len(classes) else str(k) for k in kinds}
    picture = Picture(height, width, BESIDE, title)
    axes, grey = picture.axes, pixels.mean(2) * 0.8 + 51
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    rows = [(colours[k], f"{names[k]} {int((given == k).sum())}") for k in kinds[:MOST_NAMED]]
    picture.legend(rows)
    return picture, colours


def _colour(kind: int) -> str:
    """Of a class: the same in pictures and curves."""
    return f"C{kind % COLOURS}"


def _strength(score: float) -> float:
    """How strongly something is drawn that is sure to this degree."""
    return 0.5 + 0.5 * min(max(score, 0.0), 1.0)


def precision_recall(curves: Sequence[Mapping[str, Any]], theme: Theme = LIGHT) -> Chart:
    """Precision against recall of each class, of the teacher (dashed) and of the student.

    Args:
        curves: a row a class: `class`, and by network precision at the 101 recalls from 0 to 1.
        theme: colours.
    """
    with style(theme):
        figure, axes = chart("recall", "precision", 4.4)
        for place, row in enumerate(curves[:MOST_CURVES]):
            for who, line in (("teacher", "--"), ("student", "-")):
                name = printable(str(row["class"])) if who == "student" else None
                recalls = np.linspace(0, 1, len(row[who]))
                axes.plot(
                    recalls, row[who], line, c=_colour(row.get("index", place)), lw=1.2, label=name
                )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="lower left", title="dashed: teacher")
        return svg(figure, "Precision against recall of each class, teacher and student")
