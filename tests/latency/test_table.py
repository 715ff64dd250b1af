"""What a report of latencies says of where they were measured."""

import pytest

from kdcompile.latency.report import place, places
from kdcompile.stats.samples import Block, Build, Process, Run, Samples

CPU = {"backend": "onnxruntime", "onnxruntime_version": "1.32.0", "cpu": "Xeon 8481C", "gpu": None,
       "module": None, "power_mode": None, "compute_capability": None}  # fmt: skip
H100 = CPU | {"backend": "tensorrt", "tensorrt_version": "10.3", "gpu": "H100 80GB",
              "compute_capability": "9.0"}  # fmt: skip
ORIN = H100 | {"gpu": "Orin", "compute_capability": "8.7", "module": "Jetson Orin Nano",
               "power_mode": "MAXN"}  # fmt: skip
MODE = {"input": "1x3x576x768 float32", "threads": 1}


def measured(facts, **mode):
    builds = (Build("0", (Process((Block((1.0,), 0.0),)),)),)
    run = Run("2026-01-01T00:00:00", {"facts": facts, "state": {}}, MODE | mode, builds)
    return Samples("crowd for jetson", "0" * 64, (run,))


@pytest.mark.parametrize(
    ("facts", "mode", "told"),
    [
        (CPU, {}, "Xeon 8481C, onnxruntime 1.32.0, 1 thread, input 1x3x576x768 float32"),
        (CPU, {"threads": 2}, "Xeon 8481C, onnxruntime 1.32.0, 2 threads, input 1x3x576x768 "
         "float32"),
        (H100, {"threads": None}, "H100 80GB, tensorrt 10.3, input 1x3x576x768 float32"),
        (ORIN, {"threads": None}, "Jetson Orin Nano MAXN, tensorrt 10.3, input 1x3x576x768 "
         "float32"),
        ({}, {"threads": None, "input": ""}, "an unnamed machine, an unnamed backend"),
    ],
)  # fmt: skip
def test_the_machine_the_backend_threads_and_shape_are_named(facts, mode, told):
    assert place(measured(facts, **mode)) == told


@pytest.mark.parametrize(
    ("target", "facts", "is_another"),
    [
        ("jetson", CPU, True),
        ("jetson", H100, True),
        ("jetson", ORIN, False),
        ("h100", CPU, True),
        ("h100", ORIN, True),
        ("h100", H100, False),
        ("cpu", H100, True),
        ("cpu", CPU, False),
        ("a-later-board", CPU, False),
        (None, CPU, False),
    ],
)
def test_a_bundle_on_another_device_says_so(target, facts, is_another):
    lines = places(measured(facts), None, target)
    assert lines[0].startswith("measured on ")
    wanted = [f"this is not {target}: to measure on it, name it with --via PLACE"]
    assert lines[1:] == (wanted if is_another else [])


def test_a_reference_of_another_machine_is_told():
    one, other = measured(CPU), measured(CPU | {"onnxruntime_version": "1.20.0"})
    assert len(places(one, one, None)) == 1
    assert places(one, other, None)[1] == f"the reference was measured on {place(other)}"
