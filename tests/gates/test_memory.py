"""The gate `memory_mb`, and a real network's peak in a worker of ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_graphs
import pytest
from resourced import MEMORY, NOTHING, context

from kdcompile.core.files import file_sha256
from kdcompile.core.report import overall
from kdcompile.gates.memory import MemoryGate, memory_mb
from kdcompile.latency.energy_memory import measure
from kdcompile.latency.subjects import onnx_record
from kdcompile.remote.open import open_place
from kdcompile.remote.usage import Absent, Energy


def settings(most, evidence="host", required=True):
    return MemoryGate(max=most, evidence=evidence, required=required)


@pytest.mark.parametrize(("most", "verdict"), [(300.0, "passed"), (299.9, "failed")])
def test_the_peak_decides(most, verdict):
    found = memory_mb(settings(most), context())
    assert (found.verdict, found.observed, found.evidence) == (verdict, "300 MB", "device")
    assert found.threshold == f"at most {most:g} MB"
    assert found.reason == MEMORY.what
    (number,) = found.measurements
    assert (number.name, number.value, number.unit) == ("peak memory", 300.0, "MB")


@pytest.mark.parametrize(
    ("asked", "made", "words"),
    [
        (settings(500), context(memory=NOTHING), NOTHING.reason),
        (settings(500, "predicted"), context(), "no model predicts"),
        (settings(500), context(measured=False), "build --via PLACE reads it"),
    ],
)
def test_what_nothing_tells_is_skipped_and_never_passed(asked, made, words):
    found = memory_mb(asked, made)
    assert (found.verdict, found.measurements) == ("skipped", ())
    assert words in found.reason
    passed = replace(found, name="accuracy", verdict="passed")
    assert overall([passed, found]) == ("inconclusive: memory_mb skipped", 5)


def test_a_networks_memory_here(tmp_path):
    """Its one convolution makes 64 channels of 512 x 512: 64 MiB that the process must have had."""
    path, graph = tmp_path / "m.onnx", onnx_graphs.Graph(0)
    model = graph.model(graph.conv("c", "image", 3, 64))
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim[2:]:
            side.dim_value = 512
    onnx.save(model, path)

    def load(place, name):
        record = onnx_record(place.about, file_sha256(path), "fp32")
        place.call("load", path=place.put(path), name=name, expected=record)
        return {"image": np.zeros((1, 3, 512, 512), np.float32)}

    found = measure(lambda: open_place(None, "onnxruntime"), load, seconds=0.1, idle_s=0.1)
    assert 64 * 1.048576 <= found.memory.mb < 1000
    assert found.memory.mb == found.memory.host_mb
    assert isinstance(found.energy, Absent | Energy)  # whichever this machine has
