"""Verbs of a finished bundle: open it, check it, run it, and merge what a board measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from kdcompile.core.report import Report
from kdcompile.latency.benchmark import AnyPath

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.bundle.run import Row
    from kdcompile.bundle.trust import Trust
    from kdcompile.core.errors import KDError
    from kdcompile.debug.network import BundleCheck


@dataclass(frozen=True, kw_only=True)
class Built(Report):
    """The report of a build, and where its bundle is.

    Args:
        bundle: the bundle's folder.
        ran: the stages that ran this time; none where every one was a cache hit.
        signed_by: fingerprint of the public key, where the bundle was signed.
    """

    bundle: Path
    ran: tuple[str, ...] = ()
    signed_by: str | None = None


def load_bundle(
    folder: AnyPath,
    *,
    trusted: AnyPath | None = None,
    expect: Mapping[str, str] | None = None,
) -> "Bundle":
    """A bundle, after every file was checked against its manifest.

    Args:
        folder: of the bundle.
        trusted: public key that must have signed it; by default that of $KDCOMPILE_TRUSTED_KEY, or
            of `~/.config/kdcompile/trust.toml`.
        expect: what it must say of itself: `name`, `target`, and `newer-than`, an ISO 8601 time.

    Raises:
        KDError: `bundle-missing`, `bundle-unexpected`, `bundle-corrupt`, `bundle-version`,
            `signature-wrong`, ...
    """
    from kdcompile.bundle.signature import open_bundle

    return open_bundle(Path(folder), trust_of(trusted, expect))


def check_bundle(bundle: "AnyPath | Bundle", *, via: str | None = None) -> "BundleCheck":
    """Run a bundle's network on the inputs that it carries, against the outputs of the build.

    Args:
        bundle: its folder, or what `load_bundle` returned.
        via: where its engine is loaded and run; None for its ONNX file, on this machine.

    Raises:
        KDError: those of `load_bundle`; `engine-missing`, `engine-mismatch`, ...
    """
    from kdcompile.debug.network import check_outputs

    return check_outputs(_bundle_of(bundle), via)


def run(
    bundle: "AnyPath | Bundle",
    images: Sequence[AnyPath],
    *,
    out: AnyPath = "overlays",
    onnx: bool = False,
    via: str | None = None,
    tiles: bool = False,
    allow_code: bool = False,
) -> "Iterator[tuple[Path, Row | KDError]]":
    """Run a bundle's network on image files; each result is given as soon as it is known.

    Args:
        bundle: its folder, or what `load_bundle` returned.
        images: image files, or .npz files of the network's named inputs.
        out: folder for overlays, where the network gives a density, or for its outputs.
        onnx: run the ONNX file even where the bundle has an engine.
        via: where its engine is loaded and run; None for this machine.
        tiles: run photos that are larger than the network's input in tiles that overlap, and not
            scaled down; the gates judged them scaled down.
        allow_code: run the code that the bundle carries, a decode or a task of the user's, with
            your rights: for bundles whose maker you trust.

    Yields:
        Each image with its result, or with the error of this image alone.

    Raises:
        KDError: those of `load_bundle`; no image can be run: `engine-missing`, `output-shape`,
            `tiles-refused`, `bundle-code`, ...
    """
    from kdcompile.bundle.carried_code import with_code
    from kdcompile.bundle.product import tiling_of
    from kdcompile.bundle.run import BundleRun
    from kdcompile.bundle.run_tensors import TensorRun, output_ports
    from kdcompile.bundle.task_settings import with_settings_of
    from kdcompile.data.preprocess import Preprocess
    from kdcompile.debug.network import open_network
    from kdcompile.tasks.task import find_task

    found = _bundle_of(bundle)
    about, task = found.manifest, find_task(found.manifest["task"])
    preprocess, files = Preprocess.from_json(found.preprocess), [Path(image) for image in images]
    with with_code(found, with_settings_of(found, task), allow_code) as task:
        folder = Path(out) if task.is_dense or task.takes_rows or task.records else None
        with open_network(found, via, onnx) as network:
            kind = TensorRun if task.takes_rows else BundleRun
            run = kind(
                task, about.get("classes"), preprocess, network, about["precision"], files, folder
            )
            if tiles:
                run.tiles = tiling_of(found)
            if isinstance(run, TensorRun):
                run.outputs = output_ports(found.model)
            yield from run


def merge(
    folder: AnyPath,
    record: AnyPath,
    *,
    engine: AnyPath | None = None,
    test_pack: AnyPath | None = None,
    sign: AnyPath | None = None,
    trusted: AnyPath | None = None,
    expect: Mapping[str, str] | None = None,
    resign_unverified: bool = False,
) -> Built:
    """Decide the gates that a board measured, and rewrite its bundle with them.

    Args:
        folder: of the bundle.
        record: the board's `device.json`.
        engine: the board's engine, or its folder; None leaves it out of the bundle.
        test_pack: of detection or segmentation, the test pack that the board ran: the outputs that
            it kept lie beside the record, and are judged by it.
        sign: an Ed25519 private key to sign the result with.
        trusted: public key that must have signed the bundle; by default $KDCOMPILE_TRUSTED_KEY.
        expect: as for `load_bundle`.
        resign_unverified: sign the result though no key vouches for the bundle; its manifest says
            so. Refused where a key is trusted that did not sign it.

    Raises:
        KDError: `signature-*`, before anything is written; those of `kdcompile.bundle.merge`.
    """
    from kdcompile.bundle.manifest import manifest_bytes
    from kdcompile.bundle.merge import merge as merged
    from kdcompile.bundle.signature import check_before_signing, sign_bundle
    from kdcompile.gates.board_outputs import Home
    from kdcompile.gates.from_board import judge_board

    there, key = Path(folder), None if sign is None else Path(sign)
    file, trust = None if engine is None else Path(engine), trust_of(trusted, expect)
    verified, content = True, manifest_bytes(there)
    if key is not None:
        verified = check_before_signing(there, key, trust, resign_unverified, content)
    home = None if test_pack is None else Home(Path(test_pack), Path(record).parent)
    judge = partial(judge_board, home=home)
    report = merged(there, Path(record), file, judge, trust, not verified, content)
    signed = None if key is None else sign_bundle(there, key)
    return Built(**vars(report), bundle=there, signed_by=signed)


def trust_of(key: AnyPath | None, expect: Mapping[str, str] | None) -> "Trust | None":
    """What a caller demands of a bundle; None where nothing was said."""
    from kdcompile.bundle.trust import Trust

    return Trust.of(key, expect)


def _bundle_of(bundle: "AnyPath | Bundle") -> "Bundle":
    return load_bundle(bundle) if isinstance(bundle, str | PathLike) else bundle
