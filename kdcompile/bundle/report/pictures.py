"""The pictures of a report's images: truth, teacher and student, small enough for one page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdcompile.bundle import facts
from kdcompile.bundle.box_figures import BOX
from kdcompile.bundle.mask_figures import SHARE, difference, palette
from kdcompile.core.arrays import read_arrays
from kdcompile.core.report import Report
from kdcompile.data.masks import IGNORED

LONGEST, SMALLEST = 420, 200  # pixels of a picture's longer side
QUALITY = 72
COUNTED = 0.5  # a density of less in all shows nothing, and is not drawn as if it did
APART = (230, 0, 230)  # no class's colour
ORDER = ("worst", "worst_2", "worst_3", "median", "best")
CYCLE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
         "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")  # fmt: skip
Pixels = NDArray[np.uint8]


def examples(report: Report, folder: Path) -> list[dict[str, Any]]:
    """The drawn images, the worst first: their words, and their pictures by what they show."""
    rows = {row["kind"]: row for row in report.details.get("examples") or []}
    task, shown = facts.task(report), []
    for kind in sorted(rows, key=lambda k: ORDER.index(k) if k in ORDER else len(ORDER)):
        row, path = rows[kind], folder / f"example_{kind}.npz"
        drawn = _pictures(path, task) if path.is_file() else {}
        texts = {k: facts.number(row.get(k)) for k in ("true", "predicted", "teacher")}
        words = facts.label(kind)
        right = task["kind"] == "classification" and row.get("true") == row.get("predicted")
        note = ", which the student has right" if right else ""
        shown.append({
            "kind": f"{words}{note}", "name": row["name"], "pictures": drawn, **texts,
        })  # fmt: skip
    return shown


def legend(report: Report, shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The colour and the name of each class that pictures may have; none of densities."""
    task = facts.task(report)
    kinds = {what.split(" of ")[0] for e in shown for what in e["pictures"]}
    names = task.get("classes") or ()
    if "classes" in kinds:
        colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in palette()[: len(names)]]
        return list(zip(colours, names, strict=False))
    if kinds & {"boxes", "points"}:
        return [(CYCLE[k % len(CYCLE)], name) for k, name in enumerate(names)]
    return []


def _pictures(path: Path, task: Mapping[str, Any]) -> dict[str, str]:
    """What is drawn of an example, by the words for it."""
    arrays = read_arrays(path)
    pixels, truth = arrays["pixels"], arrays.get("truth")
    maps = {who: arrays[who] for who in ("teacher", "student") if who in arrays}
    photo = {"photo": _webp(pixels)}
    if not maps:
        return photo
    if truth is not None and truth.dtype != np.uint8:
        what = "boxes" if truth.shape[1] == BOX else "points"
        return {f"annotated {what}": _things(pixels, truth)} | {
            f"{what} of the {who}": _things(pixels, found) for who, found in maps.items()
        }
    if truth is not None:
        drawn = {"mask": _mask(pixels, truth, palette())}
        drawn |= {f"classes of the {w}": _mask(pixels, m, palette()) for w, m in maps.items()}
        apart = difference(maps["student"], maps["teacher"], truth)
        share = float((apart != IGNORED).sum() / max(int((truth != IGNORED).sum()), 1))
        apart_words = f"difference of both: {share:.1%} of what is judged"
        return drawn | {apart_words: _mask(pixels, apart, np.full((256, 3), APART, np.uint8))}
    peak = max(float(density.max()) for density in maps.values())
    return photo | {
        f"density of the {who}: {facts.number(float(density.sum()))}": _density(
            pixels, density, peak
        )
        for who, density in maps.items()
    }


def _grey(pixels: Pixels) -> NDArray[np.float64]:
    """The photo in light grey, [H, W, 1], for colours over it."""
    grey: NDArray[np.float64] = pixels.mean(2)[..., None] * 0.8 + 51
    return grey


def _mask(pixels: Pixels, mask: Pixels, colours: Pixels) -> str:
    known, grey = (mask != IGNORED)[..., None], _grey(pixels)
    drawn = np.where(known, SHARE * colours[mask] + (1 - SHARE) * grey, grey)
    return _webp(drawn.repeat(3 // drawn.shape[2], 2))


def _density(pixels: Pixels, density: NDArray[np.float32], peak: float) -> str:
    """The photo under the density, one colour scale for both networks up to `peak`."""
    height, width = pixels.shape[:2]
    grey = _grey(pixels).repeat(3, 2)
    if float(density.sum()) < COUNTED:
        return _webp(grey)
    shares = np.clip(density / max(peak, 1e-6), 0, 1).astype(np.float32)
    seen = Image.fromarray(shares).resize((width, height), Image.Resampling.BILINEAR)
    share = np.asarray(seen)
    colour = 255 * matplotlib.colormaps["inferno"](share)[..., :3]
    strength = 0.85 * np.sqrt(share)[..., None]
    return _webp(strength * colour + (1 - strength) * grey)


def _things(pixels: Pixels, rows: NDArray[Any]) -> str:
    """The photo with boxes, or points as crosses, in the colours of their classes."""
    zoom = _zoom(*pixels.shape[:2])
    image = _scaled(_grey(pixels).repeat(3, 2), zoom)
    draw = ImageDraw.Draw(image)
    for *place, _, kind in rows[::-1].tolist():  # the best on top
        colour = CYCLE[int(kind) % len(CYCLE)]
        at = [zoom * value for value in place]
        if len(at) == 2:
            x, y = at
            draw.line((x - 5, y - 5, x + 5, y + 5), colour, 2)
            draw.line((x - 5, y + 5, x + 5, y - 5), colour, 2)
        elif at[0] <= at[2] and at[1] <= at[3]:
            draw.rectangle(at, outline=colour, width=2)
    return _uri(image)


def _zoom(height: int, width: int) -> float:
    longest = max(height, width)
    return min(LONGEST / longest, max(1.0, SMALLEST / longest))


def _scaled(pixels: NDArray[Any], zoom: float) -> Image.Image:
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.resize(size, Image.Resampling.BILINEAR if zoom < 1 else Image.Resampling.NEAREST)


def _webp(pixels: NDArray[Any]) -> str:
    """Pixels [H, W, 1 or 3] at the size of the report's pictures."""
    colours = pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
    return _uri(_scaled(colours, _zoom(*pixels.shape[:2])))


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
