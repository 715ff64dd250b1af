"""The gate `energy_mj`, and how a build comes by its number."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from resourced import ENERGY, MEMORY, NOTHING, context

from kdcompile import targets
from kdcompile.config.gates import Gates
from kdcompile.config.spec import Task
from kdcompile.core.files import file_sha256
from kdcompile.core.report import overall
from kdcompile.gates import resources
from kdcompile.gates.energy import EnergyGate, energy_mj
from kdcompile.gates.registry import judge
from kdcompile.latency.energy_memory import Resources
from kdcompile.remote.usage import Absent


def settings(most, evidence="device", required=True):
    return EnergyGate(max=most, evidence=evidence, required=required)


@pytest.mark.parametrize(
    ("most", "verdict"),
    [(12.5, "passed"), (12.49, "inconclusive"), (11.5, "inconclusive"), (11.49, "failed")],
)
def test_the_whole_interval_decides(most, verdict):
    found = energy_mj(settings(most), context())
    assert (found.verdict, found.evidence) == (verdict, "device")
    assert found.threshold == f"at most {most:g} mJ an inference"
    assert found.observed == "12 mJ (11.5 to 12.5), 8 mJ of it above idle"
    for words in ("12 W, 4 W idle", "5000 inferences", "250 readings", "VDD_IN", "50 a second"):
        assert words in found.reason
    judged, above = found.measurements
    assert (judged.value, judged.low, judged.high, judged.unit) == (12.0, 11.5, 12.5, "mJ")
    assert (above.value, above.machine) == (8.0, "Orin")
    assert "CUDA graph" in judged.mode


def test_without_a_reading_it_is_skipped_and_the_build_is_not_passed():
    found = energy_mj(settings(12), context(energy=NOTHING))
    assert (found.verdict, found.observed, found.measurements) == ("skipped", "no reading", ())
    assert found.reason == NOTHING.reason
    passed = replace(found, name="accuracy", verdict="passed")
    assert overall([passed, found]) == ("inconclusive: energy_mj skipped", 5)
    told = energy_mj(settings(12, required=False), context(energy=NOTHING))
    assert overall([passed, told]) == ("passed", 0)


@pytest.mark.parametrize(
    ("asked", "made", "words"),
    [
        (settings(12, "predicted"), context(), "no model predicts"),
        (settings(12), context(measured=False), "build --via PLACE reads it"),
    ],
)
def test_what_was_not_measured_is_skipped(asked, made, words):
    found = energy_mj(asked, made)
    assert found.verdict == "skipped"
    assert words in found.reason
    assert found.measurements == ()


def test_numbers_of_the_report():
    found = {m.name: m for m in resources.resource_numbers(context())}
    assert list(found) == [
        "energy of an inference", "energy of an inference above idle", "power", "idle power",
        "power of VDD_IN", "power of VDD_SOC", "peak memory",
    ]  # fmt: skip
    assert found["power of VDD_SOC"].value == 3.0
    assert "INA3221 VDD_IN, 50 readings a second" in found["power"].mode
    alone = replace(ENERGY, rails={"VDD_IN": 12.0})
    names = [m.name for m in resources.resource_numbers(context(energy=alone, memory=NOTHING))]
    assert names == [
        "energy of an inference", "energy of an inference above idle", "power", "idle power",
    ]  # fmt: skip
    assert resources.resource_numbers(context(measured=False)) == ()


@pytest.fixture
def step(tmp_path):
    """`step(board)` -> what a verify stage has of a compiled network."""
    (tmp_path / "model.onnx").write_bytes(b"network")
    sha256 = file_sha256(tmp_path / "model.onnx")
    compiled = SimpleNamespace(
        file=lambda name: tmp_path / name, files={"model.onnx": sha256},
        json=lambda name: {"precision": "int8"},
    )  # fmt: skip
    gates = Gates.model_validate({"memory_mb": {"max": 500}})
    export = SimpleNamespace(profile=[[1, 3, 4, 5]] * 3, inputs={}, preprocess="host")
    data = SimpleNamespace(mean=[0.5] * 3, std=[0.5] * 3)
    spec = SimpleNamespace(seed=3, gates=gates, export=export, task=Task(), data=data)
    return lambda board: SimpleNamespace(spec=spec, inputs={"compile": compiled}, board=board)


@pytest.fixture
def measured(monkeypatch):
    """What `measure` is called with."""
    calls = []

    def measure(open_, load):
        calls.append((open_, load))
        return Resources(ENERGY, MEMORY)

    monkeypatch.setattr(resources, "measure", measure)
    monkeypatch.setattr(resources, "open_place", lambda via, backend: (via, backend))
    return calls


def test_at_a_board_its_engine_is_measured(step, measured, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(resources.engine, "take", lambda *values: taken.append(values))
    monkeypatch.setattr(resources.engine, "at", lambda board: board.via)
    board = SimpleNamespace(via="ssh://orin", backend="tensorrt")
    found = resources.measured_resources(step(board), targets.load("jetson"))
    assert found.energy is ENERGY
    ((open_, load),) = measured
    assert open_() == "ssh://orin"
    arrays = load("place", "name")
    assert arrays["image"].shape == (1, 3, 4, 5)
    assert arrays["image"].dtype == np.float32
    assert taken == [("place", tmp_path / "model.engine", "name")]


def test_of_a_cpu_target_the_file_is_measured_here(step, measured, tmp_path):
    resources.measured_resources(step(None), targets.load("cpu"))
    ((open_, load),) = measured
    assert open_() == (None, "onnxruntime")
    asked = []
    place = SimpleNamespace(
        about={
            "backend": "onnxruntime",
            "backend_version": "1.20",
            "platform": "linux x86_64",
            "gpu": None,
        },
        put=lambda path: f"there/{path.name}",
        call=lambda op, **values: asked.append((op, values)),
    )
    load(place, "name")
    ((op, values),) = asked
    assert (op, values["path"], values["name"]) == ("load", "there/model.onnx", "name")
    assert values["expected"]["sha256"] == file_sha256(tmp_path / "model.onnx")
    assert values["expected"]["precision"] == "int8"


def test_a_device_that_is_not_here_is_not_measured(step, measured):
    target = targets.load("jetson")
    found = resources.measured_resources(step(None), target)
    assert measured == []
    assert isinstance(found.energy, Absent)
    assert target.title in found.memory.reason
    assert "--via" in found.memory.reason


def test_what_no_gate_asks_for_is_not_measured(step, measured):
    made = step(None)
    made.spec.gates = Gates()
    assert resources.measured_resources(made, targets.load("cpu")) is None
    assert measured == []


@pytest.mark.parametrize("name", ["energy_mj", "memory_mb"])
def test_without_the_device_both_wait_for_it(name):
    limit = {"max": 500, "evidence": "device"}
    gates = Gates.model_validate({"accuracy": {"metric": "mae", "evidence": "device"}, name: limit})
    found = {g.name: g for g in judge(gates, context(evidence="host", measured=False))}
    waiting = found[f"{name}@device"]
    assert (waiting.verdict, waiting.observed) == ("pending", "not yet measured")
    assert "build_engine.py of the kit" in waiting.reason
    assert name not in found


def test_energy_is_of_the_device_unless_one_says_otherwise():
    gates = Gates.model_validate({"energy_mj": {"max": 12}, "memory_mb": {"max": 500}})
    assert (gates.energy_mj.evidence, gates.memory_mb.evidence) == ("device", "host")
