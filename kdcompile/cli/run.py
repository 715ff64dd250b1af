"""`run`: what a bundle's network says of photos."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import TypedDict

from kdcompile.cli.options import as_json, echo_json, via_option
from kdcompile.cli.trust import open_trusted, trusted_option
from kdcompile.core.errors import EXIT_FIXABLE, KDError, plain
from kdcompile.debug.network import open_network

if TYPE_CHECKING:
    from kdcompile.bundle.run import BundleRun

MANY = 10  # photos that progress is shown of


class Failure(TypedDict):
    """Why a photo has no result."""

    code: str
    message: str
    fix: str


class Failed(TypedDict):
    """The row of a photo that has no result."""

    photo: str
    error: Failure


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="overlays",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the overlays.",
)
@click.option("--onnx", is_flag=True, help="The ONNX file, even where the bundle has an engine.")
@via_option
@trusted_option
@as_json
def run(
    bundle: Path,
    photos: tuple[Path, ...],
    output: Path,
    onnx: bool,
    via: str | None,
    trusted: Path | None,
    as_json: bool,
) -> None:
    """Run a BUNDLE's network on PHOTOS: counts with drawn densities, classes, or values.

    An engine that is in the bundle runs here, or at --via; otherwise the ONNX file runs.
    Each result is printed as soon as it is known. A photo that fails is an error line, and the
    others are run all the same; the exit code is then 1.
    """
    from kdcompile.bundle.run import BundleRun
    from kdcompile.data.preprocess import Preprocess
    from kdcompile.tasks.task import find_task

    found, _ = open_trusted(bundle, trusted)
    task, classes = find_task(found.manifest["task"]), found.manifest.get("classes")
    preprocess, precision = Preprocess.from_json(found.preprocess), found.manifest["precision"]
    out = output if task.is_dense else None
    with open_network(found, via, onnx) as network:
        each = BundleRun(task, classes, preprocess, network, precision, photos, out)
        failed = _tell(each, as_json)
    if failed:
        sys.exit(EXIT_FIXABLE)


def _tell(each: "BundleRun", as_json: bool) -> bool:
    """Print what comes as it comes, or one document at the end; whether a photo failed.

    The document is printed however the run ends, with what there was until then.
    """
    from kdcompile.core.progress import Progress

    few = len(each.photos) < MANY
    document: list[Any] = []
    failed = False
    try:
        with Progress("run", len(each.photos), "photos", quiet=few) as progress:
            for done, (photo, told) in enumerate(each, 1):
                if isinstance(told, KDError):
                    failed = True
                    click.echo(_error_line(told), err=True)
                    why = Failure(code=told.code, message=told.message, fix=told.fix)
                    document.append(Failed(photo=str(photo), error=why))
                else:
                    document.append(told)
                    if not as_json:
                        click.echo(_line(told))
                progress.show(done)
    finally:
        if as_json and document:
            echo_json(document)
    return failed


def _line(row: dict[str, Any]) -> str:
    """A photo's result."""
    photo = plain(row["photo"])
    if "count" in row:
        return f"{row['count']:10.1f}  {photo}  {plain(row['overlay'])}"
    if "class" in row:
        return f"{plain(row['class']):<16} {row['probability']:6.1%}  {photo}"
    return f"{row['value']:10.4g}  {photo}"


def _error_line(error: KDError) -> str:
    """A photo's error, in one line."""
    return f"error[{error.code}]: {plain(error.where)}: {plain(error.message)}; fix: {error.fix}"
