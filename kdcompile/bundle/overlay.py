"""Overlays: an image under the density that a network predicts for it."""

import io

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kdcompile.bundle.figures import DPI, LIGHT, png, printable, style

LONGEST = 640  # pixels of an overlay's photo
SMALLEST = 320
COLOURS = "inferno"


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
    zoom = min(LONGEST / max(height, width), max(1.0, SMALLEST / max(height, width)))
    inches_w, inches_h = width * zoom / DPI, height * zoom / DPI
    bar, head, edge = 0.55, 0.32, 0.06
    with style(LIGHT):
        size = (max(inches_w, 1.6) + bar + 2 * edge, inches_h + head + edge)
        figure = Figure(figsize=size)
        box = (edge / size[0], edge / size[1], inches_w / size[0], inches_h / size[1])
        axes = figure.add_axes(box)
        grey = np.asarray(_small(pixels, zoom).convert("L"))
        axes.imshow(
            grey, cmap="gray", vmin=-30, vmax=400, extent=(0, width, height, 0), aspect="auto"
        )
        shown = np.clip(density / top, 0, 1)
        axes.imshow(
            shown, cmap=COLOURS, vmin=0, vmax=1, alpha=0.85 * np.sqrt(shown), aspect="auto",
            extent=(0, reach[1], reach[0], 0), interpolation="bilinear",
        )  # fmt: skip
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        scale = ScalarMappable(Normalize(0, top), matplotlib.colormaps[COLOURS])
        strip = figure.add_axes((box[0] + box[2] + 0.06 / size[0], box[1], 0.09 / size[0], box[3]))
        figure.colorbar(scale, cax=strip).ax.tick_params(labelsize=6, length=2, pad=1)
        strip.grid(visible=False)
        figure.text(edge / size[0], 1 - 0.1 / size[1], printable(title), fontsize=7, va="top")
        return png(figure)


def photo_png(pixels: NDArray[np.uint8]) -> bytes:
    """The photo alone, uint8 [H, W, C], at the size of the other pictures, as a PNG."""
    longest = max(pixels.shape[:2])
    buffer = io.BytesIO()
    _small(pixels, min(LONGEST / longest, max(1.0, SMALLEST / longest))).save(buffer, "PNG")
    return buffer.getvalue()


def _small(pixels: NDArray[np.uint8], zoom: float) -> Image.Image:
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.resize(size, Image.Resampling.BILINEAR if zoom < 1 else Image.Resampling.NEAREST)
