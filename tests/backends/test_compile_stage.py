"""The compile stage on small real files, its inputs made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kdcompile.config.spec import Compile, Data, Export, Gates, Quantize, Spec, Task
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Store
from kdcompile.passes import compile
from kdcompile.passes.compile import run
from kdcompile.targets import load
from kdcompile.tasks.task import preprocess_of

SECTIONS = {"quantize", "compile", "export", "gates", "data", "task"}


@pytest.fixture(autouse=True)
def _as_expected(monkeypatch):
    """A file takes what the played search expected; tests/passes/test_shipped_price.py has more."""
    monkeypatch.setattr(
        compile, "file_estimate", lambda path, precision, known, **of: known[precision]
    )


@pytest.fixture
def data(tmp_path):
    """Six noise photos of 16 x 24; the test photos are unreadable, as nobody may decode them."""
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for split in ("train", "val", "test"):
        names = [f"{split}{i}.png" for i in range(2)]
        (root / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(root / name)
            lines.append(json.dumps({"image": name, "points": [[3.0 + i, 4.0] for i in range(5)]}))
    for i in range(2):
        (root / f"test{i}.png").write_bytes(b"sealed %d" % i)
    (root / "annotations.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def compiled(tmp_path, data, onnx_files):
    """`compiled(target, ...)` -> the artifact."""
    store = Store(tmp_path / "store")

    def put(stage, files):
        def build(folder):
            for name, content in files.items():
                if isinstance(content, dict):
                    write_json(folder / name, content)
                else:
                    (folder / name).write_bytes(content.read_bytes())
            return {}

        return store.make(stage, "0" * 24, build)

    def make(target, precision="auto", teacher_mae=1000.0, spoiled=(), int8_ms=0.25, half=True):
        files = onnx_files()
        for name in spoiled:
            files[name] = files["fp32"].with_name("torn.onnx")
            files[name].write_bytes(b"torn")
        band = {"low_ms": 0.1, "high_ms": 0.9, "validated": False}
        estimates = {p: {"ms": ms, **band} for p, ms in (("fp32", 1), ("fp16", 0.5))}
        estimates["int8"] = {"ms": int8_ms, **band}
        export = Export(shape=[1, 3, 16, 24])
        spec = Spec.model_construct(
            quantize=Quantize(precision=precision),
            compile=Compile(),
            export=export,
            gates=Gates(),
            task=Task(),
            data=Data(format="points-jsonl", root=data),
        ).only(SECTIONS)
        preprocess = preprocess_of(spec)
        judged = {"val_mae": teacher_mae, "val_rmse": 1e3, "output": [1, 2, 3]}
        inputs = {
            "teacher": put("teacher", {"teacher.json": judged}),
            "search": put("search", {"estimate.json": {"student": estimates}}),
            "export": put(
                "export",
                {
                    "student.onnx": files["fp32"],
                    "teacher.onnx": files["fp32"],
                    "student_fp16.onnx": files["fp16"],
                    "preprocess.json": preprocess.to_json(),
                    "parity.json": {"student_fp16": {"finite": half, "sqnr_db": 60.0}},
                },
            ),
            "calibrate": put(
                "calibrate",
                {"student_int8.onnx": files["int8"], "calibration.json": {"tensors": 1}},
            ),
        }
        return run(Step("compile", "1" * 24, spec, inputs), store, target)

    return make


def test_jetson_is_predicted_and_brings_a_kit(compiled):
    found = compiled(load("jetson"))
    choice = found.json("choice.json")
    assert (choice["precision"], choice["basis"]) == ("int8", "predicted")
    assert (choice["backend"], choice["target_backend_version"]) == ("onnxruntime", "10.3")
    latencies = {c["precision"]: (c["latency_ms"], c["evidence"]) for c in choice["candidates"]}
    assert latencies == {
        "fp32": (1, "predicted"), "fp16": (0.5, "predicted"), "int8": (0.25, "predicted")
    }  # fmt: skip
    assert "unvalidated" in choice["candidates"][0]["latency"]
    values = {c["precision"]: c["val_metric"] for c in choice["candidates"]}
    assert len(set(values.values())) == 3  # each precision was really run
    assert found.file("model.onnx").read_bytes() == found.file("kit/student_int8.onnx").read_bytes()
    with np.load(found.file("kit/reference.npz")) as arrays:
        assert sum(n.startswith("input_") for n in arrays.files) == 2
    assert found.json("kit/gates.json")["parity"]["min_sqnr_db"] == 20
    assert found.json("kit/kit.json")["predicted"] == "int8"


def test_metric_is_the_mean_error_of_the_counts(compiled, data):
    from kdcompile.backends.onnxruntime_ import open_session

    found = compiled(load("jetson"), "fp32")
    runner = open_session(found.file("model.onnx"))
    given = Data(format="points-jsonl", root=data)
    preprocess = preprocess_of(
        Spec.model_construct(data=given, export=Export(shape=[1, 3, 16, 24]), task=Task())
    )
    errors = [
        abs(float(runner(preprocess(np.asarray(Image.open(data / f"val{i}.png")))).sum()) - 5)
        for i in range(2)
    ]
    (fp32,) = (c for c in found.json("choice.json")["candidates"] if c["precision"] == "fp32")
    assert fp32["val_metric"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found.json("choice.json")["basis"] == "asked"


def test_cpu_is_measured_here_and_has_no_kit(compiled):
    found = compiled(load("cpu"))
    choice = found.json("choice.json")
    assert {c["precision"] for c in choice["candidates"]} == {"fp32", "int8"}
    assert {c["evidence"] for c in choice["candidates"]} == {"host"}
    assert all(c["latency_ms"] > 0 for c in choice["candidates"])
    assert choice["basis"] == "measured"
    assert not [name for name in found.files if name.startswith("kit/")]
    carried = {name for name in found.files if name.startswith("parity/")}
    quantised = choice["precision"] == "int8"
    assert carried == {"parity/gates.json", "parity/outputs.npz", "parity/photos.npz"} | (
        {"parity/student_fp32.onnx"} if quantised else set()
    )
    with np.load(found.file("parity/outputs.npz")) as arrays:
        recorded = {"fp32", choice["precision"]}
        assert set(arrays.files) == {f"output_{p}_{i}" for p in recorded for i in range(2)}
    # the key of this stage covers two gates for such a target
    assert set(found.json("parity/gates.json")) == {"accuracy", "parity"}
    assert found.json("parity/gates.json")["accuracy"]["metric"] == "mae"


def test_no_precision_passes_is_recorded(compiled):
    choice = compiled(load("jetson"), teacher_mae=0.001).json("choice.json")
    assert not any(c["passed"] for c in choice["candidates"])
    assert choice["why"].startswith("no precision passes; the fp32 student fails by itself: ")
    assert choice["precision"] == "fp32"
    assert {c["precision"]: c["accurate"] for c in choice["candidates"]} == {
        "fp32": False, "fp16": False, "int8": False
    }  # fmt: skip


def test_slower_int8_is_not_chosen(compiled):
    choice = compiled(load("jetson"), int8_ms=0.6).json("choice.json")
    assert choice["precision"] == "fp16"
    assert "int8 0.6 ms is slower than fp16 0.5 ms" in choice["why"]


def test_a_half_that_overflows_does_not_pass(compiled):
    choice = compiled(load("jetson"), half=False, int8_ms=0.6).json("choice.json")
    rows = {row["precision"]: row for row in choice["candidates"]}
    assert not rows["fp16"]["passed"]
    assert rows["fp16"]["sqnr_db"] == -200
    assert choice["precision"] != "fp16"


def test_unsupported_precision(compiled):
    with pytest.raises(KDError) as caught:
        compiled(load("cpu"), "fp16")
    assert caught.value.code == "precision-unsupported"


def test_torn_onnx_stops_the_stage(compiled):
    with pytest.raises(KDError) as caught:
        compiled(load("jetson"), spoiled=["int8"])
    assert caught.value.code == "onnx-refused"


@pytest.mark.rtx
def test_compile_check_is_recorded(compiled):
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    found = compiled(load("jetson"))
    checks = found.json("choice.json")["rtx_compile_check"]
    assert {(c["precision"], c["capability"], c["ok"]) for c in checks} == {
        (p, c, True) for p in ("fp32", "int8") for c in ("8.0", "8.6")
    }
    assert found.meta["rtx_compile_check"] == {"passed": 4, "failed": 0, "skipped": 0}


def test_workstation_is_predicted_without_a_kit(compiled):
    target = load("h100")
    found = compiled(replace(target, precisions=("fp32", "fp16", "int8")))
    assert found.json("choice.json")["basis"] == "predicted"
    assert "kit/kit.json" not in found.files
