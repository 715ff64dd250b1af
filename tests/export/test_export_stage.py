"""The export and calibrate stages on real files, with a small teacher made here."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kdcompile import targets
from kdcompile.calib.table import CalibrationTable
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store
from kdcompile.models.factory import build_model
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.passes import calibrate as calibrate_stage
from kdcompile.passes import export as export_stage
from kdcompile.passes.compile import _absent
from kdcompile.passes.export import onnx_outputs

SIZE = (24, 40)
MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(16, 1, 1),
    )
"""
SPEC = """
target = "jetson-orin-nano-8gb"
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "points-jsonl"
root = "data"
[export]
shape = [1, 3, 24, 40]
[quantize]
calibrator = "percentile"
images = 3
"""
ARCHITECTURE = {
    "family": "shrink",
    "seed": 0,
    "modules": {
        "0": {"out_channels": 8},
        "3": {"in_channels": 8, "out_channels": 8},
        "4": {"num_features": 8},
        "7": {"in_channels": 8},
    },
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    folder = tmp_path_factory.mktemp("spec")
    (folder / "model.py").write_text(MODEL)
    (folder / "kdcompile.toml").write_text(SPEC)
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for split, count in (("train", 5), ("val", 2), ("test", 1)):
        names = [f"{split}{i}.png" for i in range(count)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(data / name)
            lines.append(f'{{"image": "{name}", "points": [[3, 4]]}}')
        (data / f"{split}.txt").write_text("\n".join(names))
    (data / "annotations.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    save_file(build_model("model.py:build", folder).state_dict(), folder / "teacher.safetensors")
    return load_spec(folder / "kdcompile.toml")


@pytest.fixture(scope="module")
def store(spec: Spec) -> Store:
    return Store(spec.folder / ".kdcompile")


@pytest.fixture(scope="module")
def distilled(spec: Spec, store: Store) -> Artifact:
    teacher = build_model("model.py:build", spec.folder)
    student = student_from_architecture(teacher, ARCHITECTURE, spec.folder)

    def build(folder: Path) -> dict[str, int]:
        save_file(student.state_dict(), folder / "student.safetensors")
        write_json(folder / "architecture.json", ARCHITECTURE)
        return {}

    return store.make("distill", "d" * 64, build)


@pytest.fixture(scope="module")
def exported(spec: Spec, store: Store, distilled: Artifact) -> Artifact:
    sections = ("task", "teacher", "data", "export", "student")
    step = Step("export", "e" * 64, spec.only(sections), {"distill": distilled})
    return export_stage.run(step, store, targets.load("jetson-orin-nano-8gb"))


def test_export_writes_its_files(exported: Artifact) -> None:
    files = {"student.onnx", "student_fp16.onnx", "teacher.onnx", "teacher_fp16.onnx"}
    files |= {"student_bf16.onnx", "parity.json", "preprocess.json"}
    assert set(exported.files) == files
    target = targets.load("jetson-orin-nano-8gb")
    report = exported.json("parity.json")
    assert report["opset"] <= target.max_opset
    assert report["ir_version"] <= target.ir_version
    for name in ("student", "teacher"):
        assert report[name]["n"] == 2
        assert report[name]["max_rel_error"] < 1e-5
    assert report["student_fp16"]["finite"]
    assert 40 < report["student_fp16"]["sqnr_db"] < 100
    h, w = SIZE
    assert report["macs"] == h * w * 8 * 27 + (h // 2) * (w // 2) * (8 * 72 + 8)
    assert report["params"] == (8 * 27 + 8) + (8 * 72 + 8) + 16 + 9


def test_export_at_the_opset_of_an_older_jetson(
    spec: Spec, store: Store, distilled: Artifact
) -> None:
    target = targets.load("jetson-agx-xavier")
    step = Step("export", "f" * 64, spec, {"distill": distilled})
    made = export_stage.run(step, store, target)
    report = made.json("parity.json")
    assert report["opset"] == target.max_opset == 16
    for name in ("student", "student_fp16", "teacher"):
        assert onnx.load(made.file(f"{name}.onnx")).opset_import[0].version == 16


def test_export_that_disagrees_is_an_error(
    spec: Spec, store: Store, distilled: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = {"max_rel_error": 0.01, "sqnr_db": 40.0, "n": 2}
    monkeypatch.setattr(export_stage, "parity", lambda *_: worse)
    step = Step("export", "0" * 64, spec, {"distill": distilled})
    with pytest.raises(KDError) as error:
        export_stage.run(step, store, targets.load("jetson-orin-nano-8gb"))
    assert error.value.code == "export-parity"
    assert store.find("export", "0" * 64) is None


def test_a_student_without_a_half_form_is_exported_in_the_others(
    spec: Spec, store: Store, distilled: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: onnx.ModelProto) -> onnx.ModelProto:
        raise KDError("fp16-unsupported", "Foo takes no float16")

    monkeypatch.setattr(export_stage, "to_fp16", refuse)
    sections = ("task", "teacher", "data", "export", "student")
    step = Step("export", "1" * 64, spec.only(sections), {"distill": distilled})
    target = targets.load("jetson-orin-nano-8gb")
    made = export_stage.run(step, store, target)
    assert {"student.onnx", "student_bf16.onnx"} <= set(made.files)
    assert not {"student_fp16.onnx", "teacher_fp16.onnx"} & set(made.files)
    half = made.json("parity.json")["student_fp16"]
    assert (half["finite"], half["why"]) == (False, "Foo takes no float16")
    step = Step("compile", "2" * 64, spec, {"export": made, "calibrate": made})
    assert _absent(step, target)["fp16"] == "Foo takes no float16"


def test_a_staged_student_is_exported_folded(spec: Spec, store: Store) -> None:
    stages = [
        {"block": "repvgg", "width": 8, "depth": 2, "stride": 1, "down": "pool", "dilation": 1},
        {"block": "conv", "width": 8, "depth": 1, "stride": 2, "down": "pool", "dilation": 1},
    ]
    architecture = {
        "family": "staged", "seed": 0, "input_scale": 1.0, "stages": stages,
        "in_channels": 3, "out_channels": 1, "head": "dense", "output_stride": 2,
    }  # fmt: skip
    teacher = build_model("model.py:build", spec.folder)
    student = student_from_architecture(teacher, architecture, spec.folder)
    student.train()(torch.randn(2, 3, *SIZE))  # statistics that folding could not leave out

    def build(folder: Path) -> dict[str, int]:
        save_file(student.state_dict(), folder / "student.safetensors")
        write_json(folder / "architecture.json", architecture)
        return {}

    step = Step("export", "3" * 64, spec, {"distill": store.make("distill", "4" * 64, build)})
    made = export_stage.run(step, store, targets.load("jetson-agx-xavier"))
    report = made.json("parity.json")
    assert report["params"] == (8 * 27 + 8) + 2 * (8 * 72 + 8) + 9
    assert report["student"]["max_rel_error"] < 1e-5
    assert report["student_fp16"]["finite"]
    kinds = [node.op_type for node in onnx.load(made.file("student.onnx")).graph.node]
    assert kinds == ["Conv", "Relu", "Conv", "Relu", "MaxPool", "Conv", "Relu", "Conv"]
    with torch.no_grad():
        image = torch.randn(1, 3, *SIZE)
        expected = student.eval()(image).numpy()
    output = onnx_outputs(made.file("student.onnx"), [image.numpy()])[0]
    assert np.allclose(output, expected, rtol=1e-3, atol=1e-6)


def test_calibrate_writes_its_files(spec: Spec, store: Store, exported: Artifact) -> None:
    step = Step(
        "calibrate",
        "c" * 64,
        spec.only(("seed", "task", "data", "quantize", "export", "gates")),
        {"export": exported},
    )
    made = calibrate_stage.run(step, store, targets.load("jetson-orin-nano-8gb"))
    named = {"student_int8.onnx", "calibration.json", "calibration.cache", "audit.json"}
    assert named <= set(made.files)
    table = CalibrationTable.read(made.file("calibration.json"))
    assert table.onnx_sha256 == exported.files["student.onnx"]
    assert [name for name, _ in table.images] == ["train0.png", "train1.png", "train3.png"]
    assert len({sha for _, sha in table.images}) == 3
    assert made.meta["calibrator"] == table.calibrator == "percentile"
    assert made.meta["images"] == 3
    assert 15 < made.meta["sqnr_db"] < 60
    kinds = [n.op_type for n in onnx.load(made.file("student_int8.onnx")).graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("DequantizeLinear") == 4
