"""The kit with a test pack: the board judges accuracy and speed-up, and home judges again."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.bundle.testpack import write_test_pack
from kdcompile.config.spec import Gates
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.report import GateResult, Report
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.from_board import judge_board
from kdcompile.remote.agent.pack import Pack
from kdcompile.tasks.task import find_task

PREPROCESS = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (16, 24), (16, 24))
COUNT = 40
NANO = {"backend": "tensorrt", "backend_version": "10.3.0", "platform": "linux aarch64",
        "module": "NVIDIA Jetson Orin Nano Developer Kit", "power_mode": "15W",
        "gpu": {"name": "Orin", "compute_capability": "8.7"},
        "memory_mb": {"total": 7620}}  # fmt: skip


def set_gates(kit, **sections):
    """Other gates in a kit, which stays whole."""
    gates = {"accuracy": {"metric": "mae"}, "speedup": {"min": 0.01}, **sections}
    text = Gates.model_validate(gates).model_dump_json()
    (kit / "gates.json").write_text(text)
    (kit / "preprocess.json").write_text(json.dumps(PREPROCESS.to_json()))
    about = json.loads((kit / "kit.json").read_text())
    about["files"] = {name: file_sha256(kit / name) for name in about["files"]}
    about["compile"]["workspace_mb"] = 512
    (kit / "kit.json").write_text(json.dumps(about))
    return kit


@pytest.fixture
def files(onnx_files):
    return onnx_files()


@pytest.fixture
def kit(files, make_kit):
    return set_gates(make_kit(files))


@pytest.fixture
def pack(kit, files, tmp_path):
    """A pack whose teacher is the fp32 student."""
    rng = np.random.default_rng(0)
    photos = [
        rng.integers(0, 256, (16, int(w), 3), dtype=np.uint8) for w in rng.integers(9, 25, COUNT)
    ]
    task, run = find_task("counting"), open_session(files["fp32"])
    seen = [task.within(run(PREPROCESS(p)), PREPROCESS.frame(*p.shape[:2])) for p in photos]
    taught = [float(task.predictions(output)[0]) for output in seen]
    rows = [
        {"name": f"{i}.jpg", "true": t + rng.normal(0, 3), "teacher": t}
        for i, t in enumerate(taught)
    ]
    write_test_pack(
        tmp_path / "pack", [(p, {}) for p in photos], rows, {p: files[p] for p in ("fp32", "fp16")},
        preprocess=kit / "preprocess.json", task={"kind": "counting", "output": "density"},
        seed=3, available=90, samples="",
    )  # fmt: skip
    return tmp_path / "pack"


def build(kit, *options, expect=0):
    command = [sys.executable, kit / "build_engine.py", "--backend", "onnxruntime", *options]
    done = subprocess.run(
        [*command, "--iterations", "2"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def record(kit):
    return json.loads((kit / "out" / "device.json").read_text())


def report_of(pack):
    about = json.loads((pack / "pack.json").read_text())
    rows = [
        {"name": n, "true": t, "teacher": u}
        for n, t, u in zip(about["names"], about["true"], about["teacher"], strict=True)
    ]
    gates = [
        GateResult(f"{name}@device", "pending", "device", True, "", "", "")
        for name in ("accuracy", "parity", "speedup")
    ]
    details = {"task": find_task("counting").facts(), "predictions": rows, "test_photos": 90}
    return Report("crowd", "jetson", "", 0, tuple(gates), (), {"target": "jetson"}, details)


def test_every_gate_is_decided_and_home_agrees(kit, pack):
    done = build(kit, "--test", pack, "--json")
    found, told = record(kit), json.loads(done.stdout)
    assert {g["name"]: g["verdict"] for g in told["gates"]} == {
        "accuracy": "passed", "parity": "passed", "speedup": "passed"
    }  # fmt: skip
    assert set(found["latency"]["device"]) == {
        "fp32", "fp16", "int8", "teacher_fp16", "teacher_fp32"
    }  # fmt: skip
    assert all(len(c["predictions"]) == COUNT for c in found["candidates"])
    found["environment"] |= NANO  # as if the board had been one
    about = json.loads((kit / "kit.json").read_text())
    gates = json.loads((kit / "gates.json").read_text())
    merged, ships = judge_board(report_of(pack), about, gates, found, "device.json")
    assert [g.verdict for g in merged.gates] == ["passed"] * 3
    assert ships == {found["engine"]: file_sha256(kit / "out" / found["engine"])}
    chosen = next(c for c in found["candidates"] if c["precision"] == found["chosen"])
    accuracy, _, speedup = merged.gates
    assert accuracy.measurements[0].high == pytest.approx(chosen["accuracy"]["high"], rel=1e-9)
    assert "on 40 of 90 test images" in accuracy.reason
    shown = f"{speedup.measurements[0].value:.2f}x ({speedup.measurements[0].low:.2f}"
    assert shown in next(g["reason"] for g in told["gates"] if g["name"] == "speedup")


def test_an_inaccurate_precision_is_not_chosen(kit, pack, files):
    model = onnx.load(files["fp16"])
    weight = model.graph.initializer[0]
    value = onnx.numpy_helper.to_array(weight) * np.float16(1.2)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    onnx.save(model, kit / "student_fp16.onnx")
    set_gates(kit, parity={"min_sqnr_db": 1})
    build(kit, "--test", pack)
    by_precision = {c["precision"]: c for c in record(kit)["candidates"]}
    assert by_precision["fp16"]["parity"] == "passed"
    assert by_precision["fp16"]["accuracy"]["verdict"] == "failed"
    assert record(kit)["chosen"] in ("fp32", "int8")
    assert "fp16" in record(kit)["why"]


@pytest.mark.parametrize(
    ("sections", "code", "gate", "verdict"),
    [
        ({"speedup": {"min": 1e6}}, 3, "speedup", "failed"),
        ({"accuracy": {"metric": "mae", "margin": "0.0001%"}}, 5, "accuracy", "inconclusive"),
    ],
)
def test_exit_codes(kit, pack, sections, code, gate, verdict):
    set_gates(kit, **sections)
    precision = "int8" if gate == "accuracy" else "fp32"
    done = build(kit, "--test", pack, "--precision", precision, expect=code)
    assert {g["name"]: g["verdict"] for g in record(kit)["gates"]}[gate] == verdict
    assert f"  {gate}" in done.stdout


def test_without_a_pack_the_gates_say_how(kit):
    done = build(kit, "--precision", "fp32")
    assert "accuracy  skipped: needs the test images: at home `kdcompile bundle" in done.stdout
    assert record(kit)["test"] is None


def test_an_engine_of_the_same_is_not_built_again(kit):
    build(kit, "--precision", "fp32")
    engine = kit / "out" / "engine_fp32.onnx"
    before = engine.stat().st_mtime_ns
    build(kit, "--precision", "fp32")
    assert engine.stat().st_mtime_ns == before
    assert record(kit)["candidates"][0]["build"]["resumed"] is True
    asked = json.loads((kit / "out/built.json").read_text())["engine_fp32.onnx"]["asked"]
    assert asked["workspace_mb"] == 512  # the kit's
    engine.write_bytes(engine.read_bytes()[:-9])
    build(kit, "--precision", "fp32")
    assert record(kit)["candidates"][0]["build"]["resumed"] is False


def other(pack, **changes):
    about = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps(about | changes))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda pack: (pack / "photos_001.npz").write_bytes(b"?"), "pack-corrupt"),
        (lambda pack: (pack / "teacher_fp16.onnx").unlink(), "pack-incomplete"),
        (lambda pack: (pack / "pack.json").unlink(), "pack-incomplete"),
        (lambda pack: (pack / "pack.json").write_text("[1]"), "pack-corrupt"),
        (lambda pack: (pack / "pack.json").write_text("{"), "pack-corrupt"),
        (lambda pack: other(pack, true=[1.0]), "pack-corrupt"),
        (lambda pack: other(pack, shards=["../photos.npz"]), "pack-corrupt"),
        (lambda pack: other(pack, teacher=None), "pack-corrupt"),
        (lambda pack: other(pack, task="regression"), "pack-mismatch"),
        (lambda pack: other(pack, preprocess="0"), "pack-mismatch"),
        (lambda pack: other(pack, format=2), "pack-mismatch"),
    ],
)
def test_a_pack_that_cannot_be_used(kit, pack, spoil, code):
    about = json.loads((kit / "kit.json").read_text())
    assert Pack(str(pack), about).names[0] == "0.jpg"
    spoil(pack)
    with pytest.raises(KDError) as caught:
        Pack(str(pack), about)
    assert caught.value.code == code
    assert "write" in caught.value.fix


def test_an_unusable_pack_is_told_as_an_error(kit, tmp_path):
    shown = build(kit, "--test", tmp_path / "none", expect=1).stderr
    assert "error[pack-incomplete]" in shown
    assert "fix:   copy the test pack again" in shown


def test_photos_of_classes_that_the_teacher_lacks_are_left_out(kit, pack):
    about = json.loads((pack / "pack.json").read_text())
    assert about["taught"] == [True] * COUNT
    for index in range(5):
        about["taught"][index] = False
        about["true"][index] += 1e4  # would decide, were it judged
    (pack / "pack.json").write_text(json.dumps(about))
    build(kit, "--test", pack)
    judged = [c["accuracy"] for c in record(kit)["candidates"]]
    assert {(found["verdict"], found["n"]) for found in judged} == {("passed", COUNT - 5)}
