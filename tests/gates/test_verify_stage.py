import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdcompile import targets
from kdcompile.config.load import load_spec
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.measurement import Settings
from kdcompile.core.report import Report
from kdcompile.core.store import Artifact, Store
from kdcompile.gates import measure
from kdcompile.latency import interference
from kdcompile.passes import shipped_price, verify

SIDE = 24
FACTORY = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    rng = np.random.default_rng(len(split))
    made = []
    for index in range({"train": 3, "val": 2, "test": 9}[split]):
        points = rng.choice(24 * 24, 10 + 5 * index, replace=False)
        array = np.zeros((24, 24, 1), np.uint8)
        array.flat[points] = 255
        xy = np.stack([points % 24, points // 24], 1).astype(np.float32)
        made.append(Photo(f"{split}{index}", xy, array=array))
    return made
"""
SPEC = """
target = "cpu"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "data.py:photos"
root = "."
train = "train"
val = "val"
test = "test"
mean = [0.0]
std = [1.0]
[export]
shape = [1, 1, 24, 24]
[gates]
speedup = { min = 100000 }
size_mb = { max = 1 }
"""


def save_counter(path: Path, factor: float, layers: int = 1) -> None:
    """A network that counts white pixels times `factor`; more layers only cost time."""
    nodes, weights, last = [], [], "image"
    for index in range(layers):
        final = index == layers - 1
        kernel = np.full((1, 1, 2, 2), factor) if final else np.ones((1, 1, 1, 1))
        name = "density" if final else f"x{index}"
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        strides = [2, 2] if final else [1, 1]
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [name], strides=strides))
        last = name
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, side, side])]
        for name, side in (("image", SIDE), ("density", SIDE // 2))
    ]
    graph = helper.make_graph(nodes, "counter", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def artifact(root: Path, name: str, files: dict[str, object]) -> Artifact:
    """A stage's output; a number becomes a counting network, all else JSON."""

    def build(folder: Path) -> dict[str, object]:
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, float):
                save_counter(path, content, 3 if "teacher" in file else 1)
            else:
                path.write_text(json.dumps(content))
        return {"stage": name}

    return Store(root).make(name, "0" * 24, build)


def estimate(ms: float) -> dict[str, object]:
    one = {"ms": ms, "low_ms": ms / 1.5, "high_ms": ms * 1.5, "validated": True, "bounds": {}}
    return {"macs": 9, "params": 4, "fp32": one, "int8": one}


def speedups(*precisions: str) -> dict[str, object]:
    return {key: {"value": 4.0, "low": 3.0, "high": 5.0} for key in precisions}


@pytest.fixture
def step(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "TIMING", Settings(seconds=0.05))
    # as the played search expected; tests/passes/test_shipped_price.py has more
    monkeypatch.setattr(shipped_price, "with_file", lambda found, *of: found)
    monkeypatch.setattr(interference, "crowded", lambda run: (run(), 0.0))  # whatever else runs
    (tmp_path / "data.py").write_text(FACTORY)
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    return make_step(tmp_path, "int8", 0.99)


def make_step(root: Path, precision: str, deployed: float, sets: tuple[str, ...] = ()) -> Step:
    preprocess = {"channels": 1, "mean": [0], "std": [1], "min_hw": [24, 24], "max_hw": [24, 24]}
    agreed = {"sqnr_db": 120.0, "max_rel_error": 1e-6, "n": 2}
    contents = {
        "teacher": {"teacher.json": {"val_mae": 1.0, "output": [1, 2, 2]}},
        "search": {
            "estimate.json": {
                "teacher": estimate(8),
                "student": estimate(2),
                "speedups": speedups("fp32", "int8"),
            },
        },
        "distill": {"result.json": {"val_mae": 1.1}},
        "export": {
            "teacher.onnx": 1.02,
            "student.onnx": 1.01,
            "student_fp16.onnx": 1.011,
            "parity.json": {"student": agreed, "teacher": agreed, "student_fp16": agreed},
            "preprocess.json": preprocess,
        },
        "calibrate": {"student_int8.onnx": 0.99},
        "compile": {
            "choice.json": {"precision": precision},
            "model.onnx": deployed,
            "kit/student_fp16.onnx": 1.011,
            "kit/teacher.onnx": 1.02,
        },
    }
    inputs = {name: artifact(root / precision, name, files) for name, files in contents.items()}
    return Step("verify", "1" * 24, load_spec(root / "kdcompile.toml", sets), inputs)


def run(step: Step, root: Path, target: str = "cpu") -> tuple[Artifact, Report]:
    made = verify.run(step, Store(root / "out"), targets.load(target))
    return made, Report.from_json(made.json("report.json"))


def test_the_teacher_is_predicted_as_it_would_be_deployed() -> None:
    def at(ms: float, band: float = 1.5, validated: bool = True) -> dict[str, object]:
        return {"ms": ms, "low_ms": ms / band, "high_ms": ms * band, "validated": validated}

    teacher = {"macs": 9, "fp32": at(8, 2.0), "fp16": at(4, 1.2), "int8": at(3)}
    student = {"macs": 2, "fp32": at(2), "fp16": at(1), "int8": at(0.5, 1.4, False)}
    both = {"teacher": teacher, "student": student, "speedups": speedups("fp32", "fp16", "int8")}
    found = verify.predictions(both)
    assert {p: (f.teacher, f.student, f.validated) for p, f in found.items()} == {
        "fp32": (8, 2, True), "fp16": (4, 1, True), "int8": (4, 0.5, False),
    }  # fmt: skip
    assert [found[p].band for p in found] == pytest.approx([2.0, 1.5, 1.4])
    assert found["int8"].speedup == (3.0, 5.0)
    mixed = {**both, "student": {**student, "mixed": at(0.7)}}
    mixed["speedups"] = speedups("fp32", "fp16", "int8", "mixed")
    found = verify.predictions(mixed)["mixed"]
    assert (found.teacher, found.student, found.teacher_precision) == (4, 0.7, "fp16")
    without = {**both, "teacher": {"fp32": at(8), "int8": at(3)}, "student": {"int8": at(0.5)}}
    assert verify.predictions(without)["int8"].teacher == 8


def test_verify_measures_judges_and_draws(step, tmp_path, caplog, capsys) -> None:
    with caplog.at_level(logging.INFO, logger="kdcompile"):
        made, report = run(step, tmp_path)
    verdicts = {g.name: g.verdict for g in report.gates}
    assert verdicts == {
        "accuracy": "passed", "parity": "passed", "speedup": "failed", "size_mb": "passed",
    }  # fmt: skip
    assert (report.exit_code, made.meta["exit_code"]) == (3, 3)
    assert made.meta["verdict"] == report.verdict == "failed: speedup"
    rows = report.details["predictions"]
    assert [row["name"] for row in rows] == [f"test{i}" for i in range(9)]
    for row in rows:
        assert row["teacher"] == pytest.approx(1.02 * row["true"], rel=1e-4)
        assert row["student_fp32"] == pytest.approx(1.01 * row["true"], rel=1e-4)
        assert row["student"] == row["student_int8"] == pytest.approx(0.99 * row["true"], rel=1e-4)
    sqnr = next(m for g in report.gates for m in g.measurements if m.name == "sqnr")
    assert sqnr.value == pytest.approx(20 * np.log10(1.01 / 0.02), abs=0.01)
    assert sum(row["n"] for row in report.details["by_density"]) == 9
    assert report.name == tmp_path.name
    assert report.environment["backend"] == "onnxruntime"
    assert report.environment["backend_version"][0].isdigit()
    assert "verify: 9 of 9 test images" in caplog.messages
    assert capsys.readouterr().out == ""


def test_examples_show_best_median_and_worst_where_the_density_lies(step, tmp_path) -> None:
    made, report = run(step, tmp_path)
    assert {e["kind"]: e["name"] for e in report.details["examples"]} == {
        "best": "test0", "median": "test4", "worst": "test8",
        "worst_2": "test7", "worst_3": "test6",
    }  # fmt: skip
    for example in report.details["examples"]:
        with np.load(made.file(f"example_{example['kind']}.npz"), allow_pickle=False) as arrays:
            assert arrays["pixels"].shape == (24, 24, 1)
            assert arrays["pixels"].dtype == np.uint8
            cells = (arrays["pixels"] == 255).reshape(12, 2, 12, 2).sum((1, 3))
            np.testing.assert_allclose(arrays["student"], 0.99 * cells, rtol=1e-5)
            assert arrays["teacher"].sum() == pytest.approx(example["teacher"], rel=1e-5)


def test_game_is_measured_and_judged_where_a_gate_names_it(step, tmp_path) -> None:
    named = make_step(tmp_path, "int8", 0.99, ("gates.accuracy.metric=game2",))
    _, report = run(named, tmp_path)
    accuracy = report.gates[0]
    assert accuracy.threshold.startswith("game2 at most 5% over")
    assert accuracy.verdict == "passed"
    errors = {m.name: m.value for m in report.measurements}
    assert errors["teacher game3"] >= errors["teacher game1"] >= errors["teacher mae"] - 1e-9
    # a counter is wrong by the same share in every part; 64 parts cut its own cells
    assert errors["teacher game2"] == pytest.approx(errors["teacher mae"], rel=1e-3)
    assert [row["name"] for row in report.details["worst"]] == [
        f"test{i}" for i in range(8, -1, -1)
    ]


def test_strata_and_flips_are_judged_where_the_spec_asks(step, tmp_path) -> None:
    asked = ('gates.strata={ margin = "50%" }', 'gates.flips={ max = "50%" }')
    _, report = run(make_step(tmp_path, "int8", 0.99, asked), tmp_path, "jetson")
    found = {gate.name: gate for gate in report.gates}
    assert found["strata"].verdict == "inconclusive"  # three photos each
    assert "3 images, too few" in found["strata"].reason
    assert found["flips"].verdict == "passed"
    assert {"strata@device", "flips@device"} <= set(found)
    assert (report.exit_code, report.verdict) == (3, "failed: speedup")


def test_a_cut_test_split_is_named_and_spread(step, tmp_path) -> None:
    cut = make_step(tmp_path, "int8", 0.99, ("data.max_test=3",))
    _, report = run(cut, tmp_path)
    assert [r["name"] for r in report.details["predictions"]] == ["test0", "test3", "test6"]
    assert "3 of 9 test images" in report.gates[0].reason
    assert report.details["max_test"] == 3


def test_fp32_is_held_against_pytorch_and_fp16_against_its_storage(step, tmp_path) -> None:
    _, plain = run(make_step(tmp_path, "fp32", 1.01), tmp_path / "a")
    parity = plain.gates[1]
    assert parity.measurements[0].value == 120
    assert "fp32 ONNX against PyTorch" in parity.reason
    _, half = run(make_step(tmp_path, "fp16", 1.011), tmp_path / "b")
    assert "fp16 storage" in half.gates[1].reason
    row = half.details["predictions"][0]
    assert row["student"] == pytest.approx(1.011 * row["true"], rel=1e-4)


@pytest.mark.parametrize(("target", "timed"), [("cpu", "int8"), ("jetson", "fp32")])
def test_the_deployed_file_is_timed_where_here_is_the_target(step, tmp_path, target, timed) -> None:
    _, report = run(step, tmp_path, target)
    (speed,) = (m for m in report.measurements if m.name == "speed-up" and m.evidence == "host")
    assert speed.precision == timed
    assert ("both in fp32; int8 is chosen for the device" in speed.mode) == (target == "jetson")


@pytest.mark.parametrize(("others", "verdict"), [(0.10, "passed"), (0.11, "inconclusive")])
@pytest.mark.parametrize("minimum", ["1e-6", "1e6"])
def test_a_speed_beside_other_work_decides_nothing(
    step, tmp_path, monkeypatch, others, verdict, minimum
) -> None:
    monkeypatch.setattr(interference, "crowded", lambda run: (run(), others))
    asked = make_step(tmp_path, "int8", 0.99, (f"gates.speedup.min={minimum}",))
    _, report = run(asked, tmp_path)
    speed = next(g for g in report.gates if g.name == "speedup")
    quiet = "passed" if minimum == "1e-6" else "failed"
    assert speed.verdict == (quiet if verdict == "passed" else verdict)
    told = "11% of the CPUs' time: on an idle machine it may differ, and 10% is the most"
    assert (told in speed.reason) == (verdict == "inconclusive")


def test_another_device_is_not_timed_again_beside_other_work(step, tmp_path, monkeypatch) -> None:
    runs = []
    monkeypatch.setattr(interference, "crowded", lambda run: (runs.append(0) or run(), 0.9))
    _, report = run(step, tmp_path, "jetson")
    assert len(runs) == 1
    (speed,) = (m for m in report.measurements if m.name == "speed-up" and m.evidence == "host")
    assert "took 90% of the CPUs' time" in speed.mode


@pytest.mark.parametrize("evidence", ["host", "predicted"])
@pytest.mark.parametrize(
    ("minimum", "verdict"), [(2.9, "passed"), (5.1, "failed"), (4, "inconclusive")]
)
def test_the_speed_of_another_device_is_its_models(
    step, tmp_path, evidence, minimum, verdict
) -> None:
    sets = (f"gates.speedup={{ min = {minimum}, evidence = '{evidence}' }}",)
    _, report = run(make_step(tmp_path, "int8", 0.99, sets), tmp_path, "jetson")
    gate, twin = (g for g in report.gates if g.name.startswith("speedup"))
    assert (gate.verdict, gate.evidence) == (verdict, "predicted")
    assert gate.observed == "4.00x (3.00 to 5.00)"
    assert "measured on this machine is information" in gate.reason
    assert (twin.name, twin.verdict) == ("speedup@device", "pending")
    both = [m.evidence for m in report.measurements if m.name == "speed-up"]
    assert both == ["host", "predicted"]


@pytest.mark.parametrize(
    ("minimum", "verdict", "code"), [(2.9, "passed", 0), (5.1, "failed", 3), (4, "inconclusive", 5)]
)
def test_a_host_that_is_faster_by_far_saves_no_prediction(
    step, tmp_path, minimum, verdict, code
) -> None:
    asked = make_step(tmp_path, "int8", 0.99, (f"gates.speedup.min={minimum}",))
    save_counter(asked.inputs["compile"].file("kit/teacher.onnx"), 1.02, 400)
    save_counter(asked.inputs["export"].file("teacher.onnx"), 1.02, 400)
    made, report = run(asked, tmp_path, "jetson")
    host, _ = (m.value for m in report.measurements if m.name == "speed-up")
    assert host > 5.1, "of 400 layers to one it is some 50"
    gate = next(g for g in report.gates if g.name == "speedup")
    assert (gate.verdict, report.exit_code, made.meta["exit_code"]) == (verdict, code, code)


@pytest.mark.parametrize("minimum", [2.9, 5.1])
def test_the_gpus_prediction_decides_nothing_of_a_dla(step, tmp_path, minimum) -> None:
    sets = (f"gates.speedup.min={minimum}", "compile.dla=0")
    _, report = run(make_step(tmp_path, "int8", 0.99, sets), tmp_path, "jetson")
    gate, twin = (g for g in report.gates if g.name.startswith("speedup"))
    assert (gate.verdict, gate.evidence) == ("skipped", "predicted")
    assert "a DLA's latency is not predicted" in gate.reason
    assert (twin.name, twin.verdict) == ("speedup@device", "pending")
    assert not [m for m in report.measurements if m.evidence == "predicted"]
    assert report.exit_code == 5


def test_a_board_build_leaves_gates_pending_and_weighs_the_kit(step, tmp_path) -> None:
    _, report = run(step, tmp_path, "jetson")
    pending = [g.name for g in report.gates if g.verdict == "pending"]
    assert pending == ["accuracy@device", "parity@device", "speedup@device"]
    assert "of 2 deployable files" in report.gates[-1].reason


def test_a_network_that_gives_nan_stops_the_stage(step, tmp_path) -> None:
    broken = artifact(tmp_path / "nan", "calibrate", {"student_int8.onnx": float("nan")})
    step = replace(step, inputs={**step.inputs, "calibrate": broken})
    with pytest.raises(KDError, match="NaN") as caught:
        run(step, tmp_path)
    assert caught.value.where == "test0"
    assert "student_int8" in caught.value.message
