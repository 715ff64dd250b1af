"""Deltas that cannot be made or applied: weights and files that are not what they should be."""

from pathlib import Path

from bad_inputs import BadInput
from delta_site import ABOUT, write_site
from safetensors.torch import load_file, save_file

from kdcompile.delta import make

MAKE = ("delta", "make", "base.safetensors", "new.safetensors", "-o", "d", "--size", "100%")
APPLY = ("delta", "apply", "base.safetensors", "d", "-o", "out.safetensors")


def _site(change):
    """A site with its delta, then changed."""

    def made(folder: Path) -> None:
        write_site(folder)
        make(folder / "base.safetensors", folder / "new.safetensors", folder / "d", size=1.0)
        change(folder)

    return made


def _again(folder: Path) -> None:
    write_site(folder)
    make(folder / "base.safetensors", folder / "new.safetensors", folder / "d", size=1.0)


def _edited(old: bytes, new: bytes):
    """The delta with other bytes of the same length."""
    return lambda folder: (folder / "d").write_bytes(
        (folder / "d").read_bytes().replace(old, new, 1)
    )


def _without_norm(folder: Path) -> None:
    state = load_file(folder / "new.safetensors")
    del state["1.num_batches_tracked"]
    save_file(state, folder / "new.safetensors", ABOUT)


def _plain(folder: Path) -> None:
    save_file(load_file(folder / "base.safetensors"), folder / "base.safetensors")


def _words(words: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if word == old else word for word in words)


def _stage(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base.safetensors").rename(folder / "base" / "weights.safetensors")


CASES = [
    BadInput(
        "delta-of-other-weights", _site(lambda f: (f / "new.safetensors").replace(
            f / "base.safetensors")),
        APPLY, "delta-base", _again, says=("the delta is for weights", "and the base is"),
    ),
    BadInput(
        "delta-that-was-cut", _site(lambda f: (f / "d").write_bytes(
            (f / "d").read_bytes()[:-9])),
        APPLY, "delta-corrupt", _again, says=("damaged", "copy the file again"),
    ),
    BadInput(
        "delta-that-was-edited",
        _site(lambda f: (f / "d").write_bytes((f / "d").read_bytes()[:-1] + b"\x55")),
        APPLY, "delta-corrupt", _again, says=("damaged",),
    ),
    BadInput(
        "delta-of-a-later-kdcompile", _site(_edited(b'version\\":1', b'version\\":2')), APPLY,
        "delta-newer", _again, says=("version 2", "install the kdcompile that made it"),
    ),
    BadInput(
        "weights-for-a-delta", _site(lambda f: None),
        _words(APPLY, "d", "new.safetensors"), "delta-foreign", lambda f: APPLY,
        says=("no delta", "kdcompile delta make"),
    ),
    BadInput(
        "delta-that-is-not-there", _site(lambda f: (f / "d").rename(f / "e")), APPLY,
        "delta-missing", lambda f: _words(APPLY, "d", "e"), says=("no such file",),
    ),
    BadInput(
        "delta-between-architectures", _site(_without_norm), MAKE, "delta-form", write_site,
        says=("1.num_batches_tracked is not in the new weights", "student.weights"),
    ),
    BadInput(
        "delta-without-an-architecture", _site(_plain), (*MAKE, "--spec", "."),
        "delta-architecture", lambda f: MAKE, says=("leave out --spec",),
    ),
    BadInput(
        "delta-of-a-folder-without-a-student", _site(_stage),
        _words(MAKE, "base.safetensors", "base"), "delta-weights",
        lambda f: _words(MAKE, "base.safetensors", "base/weights.safetensors"),
        says=("has no student.safetensors", "kdcompile distill"),
    ),
    BadInput(
        "delta-of-a-bundle",
        _site(lambda f: ((f / "b").mkdir(), (f / "b" / "manifest.json").write_text("{}"))),
        _words(MAKE, "base.safetensors", "b"), "delta-weights", lambda f: MAKE,
        says=("a bundle carries the exported network", "student.safetensors"),
    ),
    BadInput(
        "delta-that-is-a-folder", _site(lambda f: (f / "place").mkdir()),
        _words(MAKE, "d", "place"), "delta-output", lambda f: MAKE, says=("-o",),
    ),
    BadInput(
        "delta-below-a-file", _site(lambda f: None), _words(MAKE, "d", "kdcompile.toml/d"),
        "delta-output", lambda f: MAKE, says=("-o",),
    ),
    BadInput(
        "delta-of-no-percentage", _site(lambda f: None), (*MAKE, "--loss", "0.5"), "usage",
        lambda f: (*MAKE, "--loss", "0.5%"), exit=2,
    ),
    BadInput(
        "delta-held-against-new-without-photos", _site(lambda f: None),
        (*APPLY, "--new", "new.safetensors"), "usage", lambda f: APPLY, exit=2,
    ),
]  # fmt: skip
