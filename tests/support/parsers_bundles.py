"""Readers of what bundles, boards and users bring beside the files that `parsers` has."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from parsers import PARSERS, Parser

from kdcompile.backends.parity_inputs import read_carried
from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.product import tiling_of
from kdcompile.bundle.run_tensors import _tensors
from kdcompile.bundle.trust import Trust
from kdcompile.config.gates import Gates
from kdcompile.core.files import file_sha256
from kdcompile.core.store import canonical
from kdcompile.core.weight_files import files_of
from kdcompile.data.formats import tensors
from kdcompile.data.recognise import recognise
from kdcompile.debug.network import _references
from kdcompile.latency.frame_sample import _packed_photos
from kdcompile.latency.subject import _typical

GATES = Gates().with_metric("mae").to_json()
PREPROCESS = {"channels": 1, "mean": [0.5], "std": [0.2], "min_hw": [4, 4], "max_hw": [8, 9]}
KIT = {"profile": [[1, 1, 4, 4], [1, 1, 4, 4], [1, 1, 8, 9]], "files": {}, "target": {}}


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _write(path: Path, value: Any) -> None:
    path.write_bytes(canonical(value))


def _bundle(folder: Path) -> Bundle:
    """Of the files that lie in a folder, by a manifest that names them as they are."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    about = {"target": "jetson", "preprocess": "preprocess.json", "files": files}
    return Bundle(folder, about)


def _in_bundle(name: str, use: Callable[[Bundle], object]) -> Callable[[bytes, Path], object]:
    """A reader of one of a bundle's files, all others of which are in order."""

    def read(content: bytes, folder: Path) -> object:
        (folder / name).parent.mkdir(exist_ok=True)
        _write(folder / "preprocess.json", PREPROCESS)
        (folder / name).write_bytes(content)
        return use(_bundle(folder))

    return read


def _carried(base: str) -> Callable[[Bundle], object]:
    def use(bundle: Bundle) -> object:
        folder = bundle.folder
        for name, value in (("kit.json", KIT), ("gates.json", GATES)):
            if base == "kit" and not (folder / base / name).is_file():
                _write(folder / base / name, value)
        if base == "parity" and not (folder / base / "gates.json").is_file():
            _write(folder / base / "gates.json", GATES)
        images = folder / base / ("reference.npz" if base == "kit" else "photos.npz")
        if not images.is_file():
            images.write_bytes(PHOTOS)
        (folder / base / "student_fp32.onnx").write_bytes(b"")
        return read_carried(folder, _bundle(folder).manifest["files"], folder / "preprocess.json")

    return use


def _trusted(content: bytes, folder: Path) -> object:
    before = os.environ["XDG_CONFIG_HOME"]
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    try:
        (folder / "kdcompile").mkdir()
        (folder / "kdcompile" / "trust.toml").write_bytes(content)
        return Trust().trusted_key()
    finally:
        os.environ["XDG_CONFIG_HOME"] = before


def _placed(name: str, use: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        (folder / "images").mkdir()
        (folder / name).write_bytes(content)
        return use(folder)

    return read


IMAGE = np.ones((1, 1, 4, 4), np.float32)
PHOTOS = _npz(**{"0": np.ones((4, 4, 1), np.uint8), "1": np.ones((5, 6, 1), np.uint8)})
REFERENCE = _npz(input_0=IMAGE, output_fp32_0=IMAGE)
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
INDEX = {"weight_map": {"a": "w-1.safetensors"}}
MORE = [
    Parser("tiles", _in_bundle("tiles.json", tiling_of),
           lambda: (canonical({"cell": 8, "margin": 16, "period": 8}),), "json"),
    Parser("kit", _in_bundle("kit/kit.json", _typical), lambda: (canonical(KIT),), "json"),
    Parser("kit-references",
           _in_bundle("kit/reference.npz", lambda bundle: _references(bundle, "kit", "int8")),
           lambda: (REFERENCE,)),
    Parser("kit-gates", _in_bundle("kit/gates.json", _carried("kit")),
           lambda: (canonical(GATES),), "json"),
    Parser("kit-inputs", _in_bundle("kit/reference.npz", _carried("kit")), lambda: (REFERENCE,)),
    Parser("parity-photos", _in_bundle("parity/photos.npz", _carried("parity")),
           lambda: (PHOTOS,)),
    Parser("test-pack", _placed("photos_000.npz", _packed_photos), lambda: (PHOTOS,)),
    Parser("sample", _placed("a.npz", lambda folder: _tensors(folder / "a.npz")),
           lambda: (_npz(x=IMAGE),)),
    Parser("tensors", _placed("a.npz", lambda folder: tensors.samples(folder, "a.npz")),
           lambda: (_npz(x=IMAGE, y=IMAGE),)),
    Parser("recognised-coco", _placed("a.json", recognise), lambda: (canonical(COCO),), "json"),
    Parser("recognised-table", _placed("a.csv", recognise), lambda: (b"a.png,1.5\nb.png,2\n",)),
    Parser("recognised-npz", _placed("a.npz", recognise),
           lambda: (_npz(x=np.zeros((2, 4, 4), np.uint8), y=np.arange(2)),)),
    Parser("trust", _trusted, lambda: (b'key = "key.pub"\n',), "toml"),
    Parser("weights-index",
           _placed("w.index.json", lambda folder: (
               (folder / "w-1.safetensors").write_bytes(b""), files_of(folder / "w.index.json"))),
           lambda: (canonical(INDEX),), "json"),
]  # fmt: skip
OWN = {"fixtures", "rules", "store-record", "store-hashes"}  # shipped, or kdcompile's own cache
OUTSIDE = [parser for parser in PARSERS if parser.name not in OWN] + MORE
