"""A real bundle of the tiny project of `bad_inputs`, with a board's kit, to be spoilt in copies."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from bad_inputs import SPEC, project

from kdcompile.bundle.form import DIGEST, NAME, UNLISTED, sealed
from kdcompile.core.files import file_sha256, write_json

TARGET = "jetson"


@cache
def built() -> Path:
    """The project's folder after a build, its bundle in `bundle`; not to be changed."""
    from kdcompile.config.load import load_spec
    from kdcompile.passes.bundle import install
    from kdcompile.passes.manager import make_plan

    folder = Path(tempfile.mkdtemp(prefix="kdcompile-tiny-bundle-"), "crowd")
    folder.mkdir()
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    project(folder, spec=SPEC)
    made = make_plan(load_spec(folder / "kdcompile.toml", target=TARGET)).make("bundle")
    install(made, folder / "bundle")
    return folder


def copied(folder: Path) -> Path:
    """A copy of the bundle in a folder, with a photo beside it."""
    shutil.copytree(built() / "bundle", folder / "bundle")
    shutil.copyfile(built() / "data/images/test0.png", folder / "photo.png")
    return folder / "bundle"


def restored(folder: Path) -> None:
    """The bundle as it was built, in place of a spoilt one."""
    bundle = folder / "bundle"
    if bundle.is_symlink() or not bundle.is_dir():
        bundle.unlink(missing_ok=True)
    else:
        shutil.rmtree(bundle)
    shutil.copytree(built() / "bundle", bundle)


def resealed(bundle: Path, **values: object) -> None:
    """Rewrite the manifest over the files as they are, with other values too: all hashes agree."""
    about = read(bundle) | values
    if "files" not in values:
        about["files"] = {
            path.relative_to(bundle).as_posix(): {
                "sha256": file_sha256(path), "bytes": path.stat().st_size
            }
            for path in sorted(bundle.rglob("*"))
            if path.is_file() and path.name not in UNLISTED
        }  # fmt: skip
    write_json(bundle / NAME, sealed(about))


def read(bundle: Path) -> dict[str, object]:
    """The values of a manifest without its digest."""
    about = json.loads((bundle / NAME).read_text())
    del about[DIGEST]
    return about
