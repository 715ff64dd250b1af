"""Command `run`: predictions of a bundle's network for images."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.options import PATH, as_json, open_trusted, trusted_option, via
from kdcompile.cli.terminal import echo_json
from kdcompile.core.errors import EXIT_FIXABLE, KDError, plain

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust

MANY = 10  # images that progress is shown of
SHOWN = 5  # classes of a line, those of most pixels


@dataclass(frozen=True)
class Failure:
    """Why an image has no result."""

    code: str
    message: str
    fix: str


@dataclass(frozen=True)
class Failed:
    """The row of an image that has no result."""

    photo: str
    error: Failure


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("photos", metavar="IMAGES...", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    "out",
    default="overlays",
    show_default=True,
    type=PATH,
    help="Folder for overlays, or for the outputs of named tensors.",
)
@click.option("--onnx", is_flag=True, help="Run the ONNX file even if the bundle has an engine.")
@click.option(
    "--tiles", is_flag=True, help="Run images larger than the network's input in tiles, unscaled."
)
@click.option(
    "--allow-code",
    is_flag=True,
    help="Run the code that the bundle carries, a decode or a task: only if you trust its maker.",
)
@via("Load and run the bundle's engine there")
@trusted_option
@as_json
def run(
    bundle: Path, photos: tuple[Path, ...], trusted: "Trust | None", as_json: bool, **given: Any
) -> None:
    """Run a BUNDLE's network on IMAGES: counts with drawn densities, classes of images or of
    pixels, or values.

    A network of named tensors takes .npz files of them, and its outputs are written as such.

    An engine that is in the bundle runs here, or at --via; otherwise the ONNX file runs.
    Each result is printed as soon as it is known, with --json as one JSON document a line. An image
    that fails is an error line, and the others are run all the same; the exit code is then 1.
    """
    from kdcompile import api

    found, _ = open_trusted(bundle, trusted)
    each = api.run(found, photos, **given)
    if _print(each, len(photos), as_json):
        sys.exit(EXIT_FIXABLE)


def _print(
    each: Iterator[tuple[Path, dict[str, Any] | KDError]], count: int, as_json: bool
) -> bool:
    """Print what comes as it comes; whether an image failed.

    Raises:
        KeyboardInterrupt: it was stopped; the text says how far it came.
    """
    from kdcompile.core.progress import Progress

    done, failed = 0, False
    try:
        with Progress("run", count, "images", quiet=count < MANY) as progress:
            for photo, found in each:
                if isinstance(found, KDError):
                    failed = True
                    click.echo(_error_line(found), err=True)
                    failure = Failure(found.code, found.message, found.fix)
                    row: Any = Failed(str(photo), failure)
                else:
                    row = found
                if as_json:
                    echo_json(row, indent=None)
                elif not isinstance(found, KDError):
                    click.echo(_line(found))
                done += 1
                progress.show(done)
    except KeyboardInterrupt as stopped:
        told = f"{done} of {count} images are done, and their results are printed"
        raise KeyboardInterrupt(told) from stopped
    return failed


def _line(row: dict[str, Any]) -> str:
    """An image's result."""
    photo = plain(row["photo"])
    if "count" in row:
        return f"{row['count']:10.1f}  {photo}  {plain(row['overlay'])}"
    if "boxes" in row:
        counts = Counter(plain(box["class"]) for box in row["boxes"])
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common(SHOWN))
        return f"{photo}  {told or 'nothing'}  {plain(row['overlay'])}"
    if "shares" in row:
        shares = ", ".join(f"{plain(k)} {v:.1%}" for k, v in list(row["shares"].items())[:SHOWN])
        return f"{photo}  {shares}  {plain(row['overlay'])}"
    if "class" in row:
        return f"{plain(row['class']):<16} {row['probability']:6.1%}  {photo}"
    if "points" in row:
        told = ", ".join(
            f"{plain(one['class'])} {one['point'][0]:g},{one['point'][1]:g}"
            for one in row["points"]
        )
        return f"{photo}  {told}  {plain(row['overlay'])}"
    if "outputs" in row:
        shapes = ", ".join(f"{plain(name)} {shape}" for name, shape in row["outputs"].items())
        return f"{photo}  {shapes}  {plain(row['file'])}"
    if "value" in row:
        return f"{row['value']:10.4g}  {photo}"
    own = {key: value for key, value in row.items() if key not in ("photo", "overlay", "tiles")}
    return f"{photo}  {plain(json.dumps(own))}"


def _error_line(error: KDError) -> str:
    """An image's error, in one line."""
    parts = map(plain, (error.where, error.message))
    return f"error[{error.code}]: {': '.join(parts)}; fix: {plain(error.fix)}"
