"""Pictures of boxes: an image with what was found on it, and precision-recall curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kdcompile.bundle.figures import LIGHT, Picture, Theme, chart, png, printable, style
from kdcompile.bundle.mask_figures import BESIDE, MOST_NAMED, palette

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
    height, width = pixels.shape[:2]
    kinds = sorted({int(kind) for kind in boxes[:, 5]})
    colours = {kind: palette()[(kind + 1) % 255] / 255 for kind in kinds}
    names = {k: classes[k] if classes and k < len(classes) else str(k) for k in kinds}
    counts = {k: int((boxes[:, 5] == k).sum()) for k in kinds}
    with style(LIGHT):
        picture = Picture(height, width, BESIDE, title)
        axes, grey = picture.axes, pixels.mean(2) * 0.8 + 51
        axes.imshow(
            grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), aspect="auto"
        )
        for x0, y0, x1, y1, score, kind in boxes[::-1].tolist():  # the best on top
            axes.add_patch(
                Rectangle(
                    (x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.2, ec=colours[int(kind)],
                    alpha=0.5 + 0.5 * min(max(score, 0.0), 1.0),
                )
            )  # fmt: skip
        axes.set(xlim=(0, width), ylim=(height, 0))
        picture.legend([(colours[k], f"{names[k]} {counts[k]}") for k in kinds[:MOST_NAMED]])
        return png(picture.figure)


def precision_recall(curves: Sequence[Mapping[str, Any]], theme: Theme) -> bytes:
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
                axes.plot(recalls, row[who], line, c=f"C{place}", lw=1.2, label=name)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="lower left", title="dashed: teacher")
        return png(figure)
