"""The kit, built and run as on a board, with ONNX Runtime in TensorRT's place."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.remote.agent import machine, worker
from kdcompile.remote.agent.candidates import predictions_apart
from kdcompile.remote.agent.kit import main as build_kit
from kdcompile.remote.kit import write_kit
from kdcompile.targets import load
from kdcompile.tasks.task import find_task


def build(kit, *options, expect=0, backend="onnxruntime"):
    command = [sys.executable, kit / "build_engine.py", "--backend", backend, *options]
    done = subprocess.run(
        [*command, "--iterations", "3"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def record(kit):
    return json.loads((kit / "out" / "device.json").read_text())


@pytest.fixture
def kit(onnx_files, make_kit):
    return make_kit(onnx_files())


def test_contents(kit):
    about = json.loads((kit / "kit.json").read_text())
    assert set(about["files"]) == {
        "README.md", "agent.pyz", "build_engine.py", "calibration.json", "gates.json",
        "preprocess.json", "reference.npz", "student_fp16.onnx", "student_fp32.onnx",
        "student_int8.onnx",
    }  # fmt: skip
    assert about["target"]["compute_capability"] == "8.7"
    assert about["predicted"] == "int8"
    text = (kit / "README.md").read_text()
    assert "$" not in text.replace("$ ", "")
    assert about["target"]["title"] in text
    with np.load(kit / "reference.npz") as arrays:
        assert set(arrays.files) == {
            f"{side}_{i}"
            for side in ("input", "output_fp32", "output_fp16", "output_int8")
            for i in (0, 1)
        }


def test_builds_proves_and_chooses(kit):
    done = build(kit)
    found = record(kit)
    assert found["evidence"] == "host"
    assert found["not_the_target"] == ["the backend is onnxruntime, not TensorRT"]
    assert done.stdout.startswith("NOT the target: the backend is onnxruntime")
    by_precision = {c["precision"]: c for c in found["candidates"]}
    assert set(by_precision) == {"fp32", "fp16", "int8"}
    assert by_precision["fp32"]["sqnr_db"] > 100
    assert 20 < by_precision["int8"]["sqnr_db"] < by_precision["fp16"]["sqnr_db"] < 100
    assert by_precision["int8"]["count_difference"] > 0
    assert found["chosen"] in by_precision
    least = min(c["ms"] for c in found["candidates"])
    assert least <= by_precision[found["chosen"]]["ms"] <= 1.02 * least
    assert f"{found['chosen']} is " in done.stdout
    assert (found["judged_mode"], set(found["latency"])) == ("device", {"device", "end_to_end"})
    times = found["latency"]["device"][found["chosen"]]
    assert (times["clock"], times["n"], len(times["blocks"])) == ("wall", 36, 12)
    assert json.loads((kit / "out" / "layers_int8.json").read_text())[0]["name"]
    assert (kit / "out" / found["engine"]).is_file()
    verdicts = {g["name"]: g["verdict"] for g in found["gates"]}
    assert verdicts == {
        "parity": "passed", "size_mb": "passed", "accuracy": "skipped", "speedup": "skipped"
    }  # fmt: skip


def test_the_code_of_a_decode_is_listed_and_checked(onnx_files, make_kit, tmp_path):
    (tmp_path / "own.py").write_text("HALF = 6")
    kit = make_kit(onnx_files(), code={"code/own.py": tmp_path / "own.py"})
    assert "code/own.py" in json.loads((kit / "kit.json").read_text())["files"]
    (kit / "code" / "own.py").write_text("HALF = 7")
    assert "code/own.py" in build(kit, expect=1).stderr


def test_one_precision(kit):
    build(kit, "--precision", "int8")
    assert [c["precision"] for c in record(kit)["candidates"]] == ["int8"]


def test_gate_that_nothing_passes(onnx_files, make_kit):
    kit = make_kit(onnx_files(), min_sqnr_db=1000)
    done = build(kit, expect=3)
    assert record(kit)["chosen"] is None
    assert "parity    failed: fp32: SQNR 200.0 dB, at least 1000 dB wanted" in done.stdout


def test_inaccurate_precision_is_not_chosen(onnx_files, make_kit):
    files = onnx_files()
    model = onnx.load(files["int8"])
    scale = next(i for i in model.graph.initializer if i.name == "sw")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.1), "sw"))  # a wrong range
    onnx.save(model, files["int8"])
    kit = make_kit(files)
    build(kit)
    verdicts = {c["precision"]: c["verdict"] for c in record(kit)["candidates"]}
    assert verdicts == {"fp32": "passed", "fp16": "passed", "int8": "failed"}
    assert record(kit)["chosen"] in ("fp32", "fp16")


def test_nan_fails(onnx_files, make_kit):
    files = onnx_files()
    kit = make_kit(files)
    model = onnx.load(files["fp32"])
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full((1, 3, 3, 3), np.nan, np.float32), "w")
    )
    onnx.save(model, kit / "student_fp32.onnx")
    rehash(kit)
    build(kit, "--precision", "fp32", expect=3)
    assert record(kit)["candidates"][0]["sqnr_db"] == -200


def test_too_large_an_engine(onnx_files, make_kit):
    kit = make_kit(onnx_files(), max_mb=1e-6)
    build(kit, expect=3)
    assert {g["name"]: g["verdict"] for g in record(kit)["gates"]}["size_mb"] == "failed"


def test_candidate_that_does_not_build_is_recorded(kit):
    (kit / "student_int8.onnx").write_bytes(b"no model")
    rehash(kit)
    build(kit)
    (broken,) = (c for c in record(kit)["candidates"] if c["precision"] == "int8")
    assert broken["verdict"] == "failed"
    assert broken["why"].startswith("onnx-refused")


def rehash(kit):
    """Make the kit whole again after a test has changed its files."""
    about = json.loads((kit / "kit.json").read_text())
    about["files"] = {name: file_sha256(kit / name) for name in about["files"]}
    (kit / "kit.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "kit-corrupt"),
        (lambda path: path.unlink(), "kit-incomplete"),
    ],
)
def test_spoiled_kit(kit, spoil, code):
    spoil(kit / "student_fp16.onnx")
    done = build(kit, expect=1)
    assert f"error[{code}]: student_fp16.onnx" in done.stderr
    assert "fix:   copy the kit again" in done.stderr


@pytest.mark.parametrize(
    ("text", "code"), [(None, "kit-incomplete"), ('{"files"', "kit-corrupt"), ("[]", "kit-corrupt")]
)
def test_a_kit_cut_short(kit, text, code):
    (kit / "kit.json").unlink()
    if text is not None:
        (kit / "kit.json").write_text(text)
    done = build(kit, expect=1)
    assert f"error[{code}]: kit.json" in done.stderr
    assert "fix:   copy the kit again" in done.stderr


def test_without_tensorrt(kit, tmp_path, monkeypatch):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "tensorrt.py").write_text("raise ImportError('no libnvinfer')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    done = build(kit, expect=4, backend="tensorrt")
    assert "error[tensorrt-missing]" in done.stderr
    assert "apt install" in done.stderr


def test_dynamic_network(onnx_files, make_kit):
    kit = make_kit(onnx_files([1, 3, "height", "width"]), sides=((16, 24), (32, 16)))
    build(kit)
    assert record(kit)["shape"] == [1, 3, 16, 24]
    assert record(kit)["candidates"][0]["sqnr_db"] > 20


def test_reference_must_be_whole(onnx_files, tmp_path):
    files = onnx_files()
    image = np.zeros((1, 3, 16, 24), np.float32)
    for outputs in ({"int8": [image]}, {"fp32": []}):
        with pytest.raises(KDError, match="as many outputs as inputs"):
            write_kit(
                tmp_path,
                load("jetson"),
                files,
                tmp_path / "c.json",
                tmp_path / "p.json",
                ({}, {}),
                ([image], outputs),
                find_task("counting"),
                profile=([1], [1], [1]),
                predicted="fp32",
            )


@pytest.fixture
def on_a_nano(monkeypatch):
    """This machine says of itself what a Jetson Orin Nano says."""
    monkeypatch.setattr(worker, "first_line", lambda path: NANO if "model" in path else None)
    monkeypatch.setattr(machine, "memory_mb", lambda *_: {"total": 7620, "free": 5000})


NANO = "NVIDIA Jetson Orin Nano Developer Kit"


def test_on_the_target_it_is_device_evidence(kit, played_tensorrt, on_a_nano, capsys):
    played_tensorrt("10.3.0")
    doubled_reference(kit)
    assert build_kit(str(kit), []) == 0
    found = record(kit)
    assert (found["evidence"], found["not_the_target"]) == ("device", [])
    assert found["environment"]["gpu"]["name"] == "Played GPU"
    by_precision = {c["precision"]: c for c in found["candidates"]}
    assert by_precision["fp16"]["onnx"] == "student_fp32.onnx"  # 10.3 takes the flag
    assert found["judged_mode"] == "graph"
    assert set(found["latency"]) == {"graph", "device", "end_to_end"}
    assert {c["clock"] for c in found["latency"]["graph"].values()} == {"device"}
    assert found["chosen"] == "fp32"  # the played GPU takes as long for each
    assert (kit / "out" / found["engine"]).read_bytes().endswith(b"an engine")
    assert "NOT the target" not in capsys.readouterr().out


def test_a_deterministic_build_has_a_cache_for_each_engine(kit, played_tensorrt, on_a_nano):
    """With one for all, the second network would miss its kernels in the first one's."""
    played_tensorrt("10.3.0")
    about = json.loads((kit / "kit.json").read_text())
    assert about["compile"]["deterministic"] is None
    about["compile"]["deterministic"] = True  # [compile] of the spec
    (kit / "kit.json").write_text(json.dumps(about))
    doubled_reference(kit)
    for expected in ("recorded", "enforced"):
        assert build_kit(str(kit), []) == 0
        built = [c["build"] for c in record(kit)["candidates"] if "build" in c]
        assert len(built) > 1
        assert {b["deterministic"] for b in built} == {expected}
        (kit / "out" / "built.json").unlink()  # so that all are built again


def test_another_tensorrt_is_refused_unless_allowed(kit, played_tensorrt, on_a_nano, capsys):
    played_tensorrt("8.6.1")
    doubled_reference(kit)
    assert build_kit(str(kit), []) == 1
    shown = capsys.readouterr().err
    assert "error[not-the-target]: TensorRT 8.6.1, the target has 10.3" in shown
    assert "--allow-version" in shown
    assert build_kit(str(kit), ["--allow-version", "--no-graph"]) == 0
    assert record(kit)["evidence"] == "host"
    assert record(kit)["judged_mode"] == "device"


def test_a_classifier_is_compared_by_its_classes():
    logits = [np.float32([[1, 2]]), np.float32([[5, 4]])]
    turned = [np.float32([[1, 2.1]]), np.float32([[4, 5]])]
    assert predictions_apart(turned, logits, "classification") == {"top1_agreement": 0.5}
    broken = [np.float32([[1, np.nan]]), logits[1]]
    assert predictions_apart(broken, logits, "classification") == {"top1_agreement": 0}


def test_a_value_is_compared_by_its_difference():
    values, other = (
        [np.float32([[1.0]]), np.float32([[5.0]])],
        [np.float32([[1.5]]), np.float32([[3]])],
    )
    assert predictions_apart(list(other), list(values), "regression") == {"value_difference": 2}


def doubled_reference(kit):
    """The played GPU doubles its input."""
    with np.load(kit / "reference.npz") as arrays:
        inputs = {k: v for k, v in arrays.items() if k.startswith("input_")}
    outputs = {k.replace("input", "output_fp32"): v * 2 for k, v in inputs.items()}
    np.savez(kit / "reference.npz", **inputs, **outputs)
    rehash(kit)
