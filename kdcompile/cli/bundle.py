"""`bundle`: the bundle's files, the test pack for a board, and what a board sends home."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.build import planned
from kdcompile.cli.options import as_json, echo_json, sign, sign_option, spec_options, via_option
from kdcompile.cli.terminal import echo_text
from kdcompile.cli.trust import trusted_option
from kdcompile.core.errors import KDError, plain

if TYPE_CHECKING:
    from kdcompile.passes.manager import Plan

TEACHERS = {"fp32": "teacher.onnx", "fp16": "teacher_fp16.onnx"}
NAME, SIGNATURE = "manifest.json", "manifest.sig"
WITH_MERGE = "--engine, --sign, --trusted and --json"
FOLDER = click.Path(path_type=Path)


@click.command()
@spec_options
@via_option
@click.option(
    "-o", "--output", type=FOLDER, help="Copy the stage's files to this folder.",
)  # fmt: skip
@click.option(
    "--test-pack", type=FOLDER,
    help="Write the test photos and the teacher for the board's own gates to this folder.",
)  # fmt: skip
@click.option(
    "--merge", type=FOLDER, metavar="DEVICE_JSON",
    help="Judge what a board measured, into the BUNDLE named in place of the spec.",
)  # fmt: skip
@click.option(
    "--engine", type=FOLDER, help="With --merge: the board's engine, or the folder that it is in."
)
@sign_option
@trusted_option
@as_json
def bundle(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    via: str | None,
    output: Path | None,
    test_pack: Path | None,
    merge: Path | None,
    engine: Path | None,
    key: Path | None,
    trusted: Path | None,
    as_json: bool,
) -> None:
    """Write the bundle's files; a test pack for a board; or merge what the board measured."""
    if merge is not None:
        if any((target, sets, via, output, test_pack)):
            raise click.UsageError(f"--merge takes a BUNDLE, {WITH_MERGE} only")
        sys.exit(merge_board(Path(spec or "."), merge, engine, (key, trusted), as_json))
    if engine is not None or trusted is not None:
        raise click.UsageError(f"{'--engine' if engine else '--trusted'} needs --merge")
    if key is not None and output is None:
        raise click.UsageError("--sign needs -o: the stage's own files stay as they are")
    from kdcompile.passes.bundle import install

    work = planned(spec, target, sets, via)
    artifact = work.make("bundle")
    written = str(artifact.path if output is None else install(artifact, output, work.spec.folder))
    if output is not None:
        sign(output, key)
    result = {"stage": "bundle", "path": written, **artifact.meta}
    if test_pack is not None:
        about = pack_test(work, test_pack)
        result["test_pack"] = {"path": str(test_pack), "photos": len(about["names"])}
    if as_json:
        echo_json(result)
        return
    for name, value in artifact.meta.items():
        click.echo(f"{name}: {plain(value)}")
    click.echo(f"bundle: {plain(written)}")
    if test_pack is not None:
        click.echo(f"test pack: {plain(test_pack)}, {len(about['names'])} photos")


def merge_board(
    folder: Path,
    record: Path,
    engine: Path | None,
    keys: tuple[Path | None, Path | None],
    as_json: bool,
) -> int:
    """Merge, sign, print the report, and give its exit code.

    Args:
        folder: of the bundle.
        record: the board's `device.json`.
        engine: the board's engine, if it is to ship.
        keys: the private key that signs what comes of it, and the public one that must have signed
            what was there.
        as_json: print JSON.

    Raises:
        KDError: those of `merge`; `signature-*` before anything is written.
    """
    from kdcompile.bundle.merge import merge
    from kdcompile.bundle.signature import check_before_signing
    from kdcompile.bundle.text import text_summary
    from kdcompile.gates.from_board import judge_board

    key, trusted = keys
    signed = (folder / SIGNATURE).is_file()
    if key is not None and (folder / NAME).is_file():
        check_before_signing(folder, key, trusted)
    report = merge(folder, record, engine, judge_board, trusted)
    sign(folder, key)
    if signed and key is None:
        click.echo("warning: the bundle is no longer signed; --sign KEY keeps it so", err=True)
    if as_json:
        echo_json({"bundle": str(folder), **report.to_json()})
    else:
        echo_text(text_summary(report))
        click.echo(f"bundle: {plain(folder)}")
        click.echo(report.verdict)
    return report.exit_code


def pack_test(work: "Plan", folder: Path) -> dict[str, Any]:
    """Write the test pack of a finished build.

    Raises:
        KDError: `kit-missing`, the target is no board; `pack-photos`; `output-exists`.
    """
    from kdcompile.bundle.testpack import write_test_pack
    from kdcompile.data.preprocess import Preprocess
    from kdcompile.data.splits import judged, load_splits

    spec, made = work.spec, work.found()
    if "kit/kit.json" not in made["compile"].files:
        raise KDError(
            "kit-missing",
            f"{work.target.name} takes no build kit, so nothing there asks for a test pack",
            where="--test-pack",
            fix="name a board: --target jetson",
        )
    details = made["verify"].json("report.json")["details"]
    splits = load_splits(spec.data, spec.folder)
    photos = judged(splits.test, spec.data.max_test)
    if [photo.name for photo in photos] != [row["name"] for row in details["predictions"]]:
        raise KDError(
            "pack-photos",
            "the test split is not the one that verify judged",
            where="[data] test",
            fix="kdcompile build, then write the test pack again",
        )
    export = made["export"]
    preprocess = Preprocess.from_json(export.json("preprocess.json"))
    return write_test_pack(
        folder,
        (preprocess.scaled(photo.pixels(preprocess.channels)) for photo in photos),
        details["predictions"],
        {p: export.file(name) for p, name in TEACHERS.items() if name in export.files},
        preprocess=export.file("preprocess.json"),
        task=details["task"],
        seed=spec.seed,
        available=len(splits.test),
    )
