"""Checks of the folder that a bundle is installed to: foreign files, and another spec's bundle."""

import hashlib
import logging
import os
from collections.abc import Set
from pathlib import Path

from kdcompile.bundle import manifest
from kdcompile.core.errors import KDError

log = logging.getLogger("kdcompile")
NETWORK = "model.onnx"


def spec_id(spec: Path, destination: Path) -> str:
    """What an installed bundle's manifest names its spec by.

    The hash of the way from the bundle to the spec's folder: it tells nobody where that lies, and
    is the same in every checkout.

    Args:
        spec: the folder of the spec.
        destination: the folder of the bundle.
    """
    way = os.path.relpath(os.path.realpath(spec), os.path.realpath(destination))
    return hashlib.sha256(os.fsencode(Path(way).as_posix())).hexdigest()


def check_place(
    destination: Path,
    spec: Path | None,
    made: Path,
    own: Set[str] | None = None,
    force: bool = False,
) -> None:
    """Refuse a destination that holds anything but an older bundle of the same spec.

    Args:
        destination: with links resolved; it may be absent or empty.
        spec: the folder of the spec; None where whose bundle it is says nothing.
        made: the folder of this spec's bundles in its store, for those that do not say whose they
            are: earlier versions wrote none.
        own: the files of the new bundle, where it is made: a bundle whose manifest a power cut has
            torn is taken for one if it has no file beside these.
        force: the caller wants the bundle of another spec replaced.

    Raises:
        KDError: `output-not-bundle`, it holds something that no build put there; `output-other`,
            the bundle of another spec.
    """
    if own is not None:
        _refuse_foreign(destination, own)
    if spec is None or force:
        return
    try:
        there = manifest.read_manifest(destination)
    except KDError:  # none, or one that is torn
        return
    known = there.get("spec")
    if known is None and not _is_of(made, there["files"].get(NETWORK)):
        raise _other(
            destination, "does not say which spec it is of, and none of this one is like it"
        )
    if known is not None and known != spec_id(spec, destination):
        raise _other(destination, "is of another spec")


def _is_of(made: Path, network: object) -> bool:
    """Whether a store has a bundle with this network, as a manifest tells of it."""
    for entry in made.glob("*/"):
        try:
            if manifest.read_manifest(entry)["files"].get(NETWORK) == network:
                return True
        except KDError:  # damaged, or not finished
            continue
    return False


def _refuse_foreign(destination: Path, own: Set[str]) -> None:
    """Raise unless the destination is absent, empty, or holds nothing but an older bundle."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise _foreign(destination, "is a file")
    present = {p.relative_to(destination).as_posix() for p in destination.rglob("*")}
    if not present:
        return
    try:
        known: Set[str] = {*manifest.read_manifest(destination)["files"], *manifest.UNLISTED}
    except KDError as error:
        if manifest.NAME not in present or error.code != "bundle-corrupt":
            what = f"is not empty and not a bundle ({error.message})"
            raise _foreign(destination, what) from error
        known = own
        log.warning("bundle: %s is damaged and is replaced: %s", destination.name, error.message)
    for name in sorted(present):
        path = destination / name
        ours = name in known or "__pycache__" in path.parts  # Python's, of scripts that ran
        if not ours and (path.is_symlink() or not path.is_dir()):
            raise _foreign(destination, f"holds {name}, which no build put there")


def _foreign(destination: Path, what: str) -> KDError:
    return KDError(
        "output-not-bundle",
        f"{destination.name} {what}; it will not be replaced",
        where=str(destination),
        fix="move it away, or name another folder with -o",
    )


def _other(destination: Path, what: str) -> KDError:
    return KDError(
        "output-other",
        f"the bundle {destination.name} {what}; it will not be replaced",
        where=str(destination),
        fix="name another folder for this one with -o, move that one away, or replace it: --force",
    )
