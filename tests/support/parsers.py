"""What reads files that anybody may have written, for fuzzers: it gives a value or a `KDError`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import bench_samples
import numpy as np
from bad_inputs import SPEC, picture
from onnx_graphs import chain
from PIL import Image

from kdcompile.backends.engine import record_of
from kdcompile.bundle import form, manifest, merge, signature
from kdcompile.bundle.text import text_summary
from kdcompile.calib.qad_table import read_qad
from kdcompile.calib.table import CalibrationTable, TensorRange
from kdcompile.calib.trt_cache import read_cache, tensors_to_quantise
from kdcompile.ci.partial import _read as read_partial
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Data
from kdcompile.core.files import Hasher, file_sha256
from kdcompile.core.report import GateResult, Measurement, Report
from kdcompile.core.store import Store, digest
from kdcompile.core.store import canonical as _json
from kdcompile.data.formats import imagefolder, npz, points_jsonl, shanghaitech_mat
from kdcompile.data.photo import read_pixels
from kdcompile.delta.file import Delta, applied, read_delta
from kdcompile.delta.tensors import weights_hash
from kdcompile.latency.baseline import make_baseline, read_baseline
from kdcompile.models.weights import read_weights
from kdcompile.targets import rules_file, schema, user
from kdcompile.targets.fixtures import parse_fixtures

TARGETS = Path(schema.__file__).parent


@dataclass(frozen=True)
class Parser:
    """A reader of one file.

    Args:
        name: of the kind of file.
        read: takes the bytes of the file and an empty folder to put it in; a KDError is allowed.
        good: files that are read without an error.
        kind: what the bytes are in general: `json`, `toml` or `other`.
        seal: makes the digests in a document of this kind right again.
        most: bytes that reading a file of a few kB may take.
    """

    name: str
    read: Callable[[bytes, Path], object]
    good: Callable[[], tuple[bytes, ...]]
    kind: str = "other"
    seal: Callable[[Any], Any] = lambda document: document
    most: int = 64 << 20


def _placed(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def placed(content: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return placed


def _points(path: Path) -> object:
    """The points of every image that `a.png` in the lists stands for."""
    (path.parent / "a.png").write_bytes(b"")
    for split in ("train", "val", "test"):
        (path.parent / f"{split}.txt").write_text("a.png\n")
    found = points_jsonl.entries(_data(path.parent, "points-jsonl"))
    return [entry.photo({}).points for entry in found["train"]]


def _data(folder: Path, format_: str) -> Data:
    files = {split: f"{split}.txt" for split in ("train", "val", "test")}
    return Data.model_validate({"format": format_, "root": folder, **files})


def _list(path: Path) -> object:
    (path.parent / "cat").mkdir(exist_ok=True)
    (path.parent / "cat" / "a.png").write_bytes(b"")
    for split in ("val", "test"):
        (path.parent / f"{split}.txt").write_text("cat/a.png\n")
    return imagefolder.entries(_data(path.parent, "imagefolder"))


def _values(path: Path) -> object:
    (path.parent / "a.png").write_bytes(b"")
    data = _data(path.parent, "imagefolder")
    same = dict.fromkeys(("train", "val", "test"), ".")
    return imagefolder.entries(data.model_copy(update=same))


def _mat() -> tuple[bytes, ...]:
    import io

    from scipy.io import savemat

    inner = np.empty((1, 1), object)
    inner[0, 0] = {"location": np.array([[1.0, 2.0]])}
    stream = io.BytesIO()
    savemat(stream, {"image_info": inner})
    packed = io.BytesIO()
    savemat(packed, {"image_info": inner}, do_compression=True)
    return stream.getvalue(), packed.getvalue()


def _npz() -> tuple[bytes, ...]:
    import io

    stream = io.BytesIO()
    np.savez(stream, x=np.zeros((2, 4, 4), np.uint8), y=np.arange(2), classes=np.array(["a", "b"]))
    return (stream.getvalue(),)


def _image(kind: str) -> bytes:
    import io

    stream = io.BytesIO()
    Image.fromarray(picture(0)[0]).save(stream, kind)
    return stream.getvalue()


def _bundle(path: Path) -> manifest.Bundle:
    return manifest.Bundle(path.parent, {"target": "jetson", "files": _listed(path)})


def _listed(path: Path) -> dict[str, dict[str, str]]:
    return {path.name: {"sha256": file_sha256(path)}}


def _report(path: Path) -> object:
    with _bundle(path).reading(path.name):
        return text_summary(_bundle(path).report(path.name))


def _preprocess(path: Path) -> object:
    about = {"target": "jetson", "preprocess": path.name, "files": _listed(path)}
    return manifest.Bundle(path.parent, about).preprocess


@cache
def report() -> Report:
    """One of every kind of field."""
    number = Measurement("mae", 1.5, "people", "host", low=1.0, high=2.0, n=3, machine="a CPU")
    gate = GateResult("accuracy", "passed", "host", True, "<= 5 %", "+3 %", "", (number,))
    rows = [{"name": "a", "true": 1.0, "teacher": 1.5, "student": 0.5}]
    details = {"predictions": rows, "test_photos": 3, "max_test": 1, "distill": {"warnings": ["w"]}}
    return Report("crowd", "cpu", "passed", 0, (gate,), (number,), {"python": "3.11"}, details)


def about() -> dict[str, Any]:
    """The values of a manifest."""
    return {
        "kdcompile_version": "0.1.0", "name": "crowd", "target": "cpu", "created": "2026",
        "task": "counting", "classes": None, "verdict": "passed", "exit_code": 0,
        "precision": "int8", "model": "model.onnx", "engine": None, "preprocess": "p.json",
        "backend": {"name": "onnxruntime", "version": "1.20"}, "evidence": {"accuracy": "host"},
        "files": {name: {"sha256": "a" * 64, "bytes": 3} for name in ("model.onnx", "p.json")},
    }  # fmt: skip


def table() -> CalibrationTable:
    """Of one tensor and one image."""
    ranges = {"image": TensorRange(1.27, 0.01, 0.0, -1.0, 1.27)}
    return CalibrationTable("entropy", "a" * 64, (("a.png", "b" * 64),), ranges)


def calibration() -> dict[str, Any]:
    """What `targets calibrate` writes."""
    texts = {key: f"the {key}" for key in user.TEXTS}
    row = {"name": "n", "network": "n", "precision": "fp32", "ms": 1.5, "predicted_ms": 1.0}
    return {
        **texts, "target": "cpu", "format": 1, "residual": 0.1, "values": {"a": 1.0, "b": 2.0},
        "covariance": [[1.0, 0.0], [0.0, 1.0]], "channel_tile": 8, "observations": [row],
    }  # fmt: skip


def _calibration(content: bytes, folder: Path) -> object:
    before = os.environ["XDG_CONFIG_HOME"]
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    try:
        path = user.path("cpu")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return user.read_whole("cpu")
    finally:
        os.environ["XDG_CONFIG_HOME"] = before


def _baseline() -> tuple[bytes, ...]:
    samples = bench_samples.made(processes=1, blocks=2, inferences=2)
    made = make_baseline(samples, Path("net.onnx"), Path("base.json"), "who", "why")
    return (_json(made.to_json()),)


def _resealed(key: str) -> Callable[[Any], Any]:
    def seal(document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        rest = {name: value for name, value in document.items() if name != key}
        return rest | {key: digest(rest)}

    return seal


def _entry(path: Path) -> object:
    """A store's record; a bad one is no entry, and no error."""
    store = Store(path.parent)
    entry = store.entry("export", "a" * 64)
    entry.mkdir(parents=True, exist_ok=True)
    path.replace(entry / "artifact.json")
    return store.find("export", "a" * 64)


def _record() -> bytes:
    record = {"key": "a" * 64, "files": {}, "meta": {}}
    return _json(record | {"sha256": digest(record)})


def _hashes(path: Path) -> object:
    return Hasher(path).file(path)


def _cache() -> bytes:
    lines = [f"{name}: 3c010a14" for name in tensors_to_quantise(chain(1))]
    return "\n".join(["TRT-8601-EntropyCalibration2", *lines, ""]).encode()


def _signature() -> bytes:
    record = {"algorithm": "ed25519", "public_key_sha256": "a" * 64, "signature": "AAAA"}
    return _json(record)


def _weights() -> tuple[bytes, ...]:
    from safetensors.numpy import save

    return (save({"a": np.zeros((2, 2), np.float32)}, {"architecture": "{}"}),)


def _base() -> dict[str, Any]:
    import torch

    return {"a": torch.ones(3, 4), "b": torch.ones(2), "c": torch.tensor(1)}


def _delta(path: Path) -> object:
    return applied(read_delta(path), _base(), path)


def _deltas() -> tuple[bytes, ...]:
    """One of every kind of change."""
    from kdcompile.delta import encode
    from kdcompile.delta.file import rebuilt

    base = _base()
    ways = [encode.layers(tensor * 3 + 1, tensor) for tensor in base.values()]
    made = []
    for kind in range(5):
        layers = [next((w for w in each if w.kind == kind), each[-1]) for each in ways]
        result = weights_hash(rebuilt(layers, base))
        made.append(Delta(weights_hash(base), result, layers).to_bytes())
    return tuple(made)


def _pickled() -> tuple[bytes, ...]:
    import io

    import torch

    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    return (stream.getvalue(),)


PREPROCESS = {"channels": 1, "mean": [0.5], "std": [0.2], "min_hw": [4, 4], "max_hw": [8, 9]}
LINE = {"image": "a.png", "points": [[1, 2.5], [3, 4]]}
QAD = {"layers": [{"tensor": "x"}], "tensors": [{"scale": 0.1}], "images": [], "scales": "lsq"}
PARSERS = [
    Parser("spec", _placed("kdcompile.toml", load_spec), lambda: (SPEC.encode(),), "toml"),
    Parser("points-jsonl", _placed("annotations.jsonl", _points), lambda: (_json(LINE),), "json"),
    Parser("shanghaitech-mat", _placed("a.mat", shanghaitech_mat.read_points), _mat),
    Parser("npz", _placed("a.npz", lambda path: npz.photos(path.parent, "a.npz")), _npz),
    Parser("npz-pool",
           _placed("a.npz", lambda path: npz.photos(path.parent, "a.npz", False)), _npz),
    Parser("split-list", _placed("train.txt", _list), lambda: (b"cat/a.png\n",)),
    Parser("labels-csv", _placed("labels.csv", _values), lambda: (b"image,value\na.png,1.5\n",)),
    Parser("photo", _placed("a.png", lambda path: read_pixels(path, 3)),
           lambda: (_image("png"), _image("jpeg"), _image("tiff")),
           most=3 * Image.MAX_IMAGE_PIXELS + (1 << 20)),  # of three colours
    Parser("calibration-table", _placed("c.json", CalibrationTable.read),
           lambda: (_json(table().to_json()),), "json"),
    Parser("calibration-cache", _placed("c.cache", lambda path: read_cache(path, chain(1))),
           lambda: (_cache(),)),
    Parser("qad", _placed("qad.json", lambda path: read_qad(path.parent)), lambda: (_json(QAD),),
           "json"),
    Parser("manifest", _placed(form.NAME, lambda path: manifest.read_manifest(path.parent)),
           lambda: (_json(form.sealed(about())),), "json", _resealed(form.DIGEST)),
    Parser("preprocess", _placed("p.json", _preprocess), lambda: (_json(PREPROCESS),), "json"),
    Parser("report", _placed("report.json", _report), lambda: (_json(report().to_json()),), "json"),
    Parser("signature",
           _placed("manifest.sig", lambda path: signature.check_signature(path.parent, None)),
           lambda: (_signature(),), "json"),
    Parser("device", _placed("device.json", merge._read), lambda: (_json({"kit": "a"}),), "json"),
    Parser("baseline", _placed("base.json", read_baseline), _baseline, "json",
           _resealed("digest")),
    Parser("samples", _placed("part.json", read_partial),
           lambda: (_json(bench_samples.made(processes=1, blocks=2, inferences=2).to_json()),),
           "json"),
    Parser("engine-record", _placed("e.engine.json", lambda path: record_of(path.with_suffix(""))),
           lambda: (_json({"precision": "int8"}),), "json"),
    Parser("store-record", _placed("r.json", _entry), lambda: (_record(),), "json",
           _resealed("sha256")),
    Parser("store-hashes", _placed("hashes.json", _hashes), lambda: (_json({"/a": [1, "b"]}),),
           "json"),
    Parser("calibrated-target", _calibration, lambda: (user.to_toml(calibration()).encode(),),
           "toml"),
    Parser("target", lambda content, folder: schema.parse(content.decode(errors="replace"), "cpu"),
           lambda: ((TARGETS / "cpu.toml").read_bytes(),), "toml"),
    Parser("rules", lambda content, folder: rules_file.parse(content.decode(errors="replace")),
           lambda: (rules_file.FILE.read_bytes(),), "toml"),
    Parser("fixtures", lambda content, folder: parse_fixtures(content.decode(errors="replace")),
           lambda: ((TARGETS / "fixtures.toml").read_bytes(),), "toml"),
    Parser("safetensors", _placed("w.safetensors", read_weights), _weights),
    Parser("delta", _placed("d", _delta), _deltas),
    Parser("state-dict", _placed("w.pt", read_weights), _pickled),
]  # fmt: skip
BY_NAME = {parser.name: parser for parser in PARSERS}
