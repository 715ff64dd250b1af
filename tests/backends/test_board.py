"""What a measurement at a board proves, and which worker a build asks for."""

import pytest

from kdcompile.config.spec import Compile, Spec
from kdcompile.core.errors import KDError
from kdcompile.passes.manager import backend_for, find_board
from kdcompile.remote.open import evidence_of, facts_of
from kdcompile.targets import load

H100 = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "memory_mb": 81559}
ORIN = {"name": "Orin", "compute_capability": "8.7", "memory_mb": 7620}
NANO = "NVIDIA Jetson Orin Nano Developer Kit"


def hello(gpu, backend="tensorrt", version="8.6.1", module=None, total=None):
    return {
        "backend": backend, "backend_version": version, "platform": "linux x86_64",
        "module": module, "power_mode": None, "l4t": None, "python": "3.11.7", "gpu": gpu,
        "memory_mb": {"total": total, "free": 1}, "disk_mb": 5, "numpy": "1",
    }  # fmt: skip


def test_the_gpu_of_the_target_is_the_device():
    assert evidence_of(hello(H100), load("h100"), "there") == "device"
    assert evidence_of(hello(H100, "onnxruntime-cuda", "1.20"), load("h100"), "there") == "device"
    nano = hello(ORIN, version="10.3.0", module=NANO, total=7620)
    assert evidence_of(nano, load("jetson-orin-nano-8gb"), "there") == "device"


def test_a_cpu_only_plays_a_board():
    assert evidence_of(hello(None, "onnxruntime", "1.32"), load("jetson"), "there") == "host"
    cuda = hello(ORIN, "onnxruntime-cuda", "1.20", module=NANO)
    assert evidence_of(cuda, load("jetson"), "there") == "host"


@pytest.mark.parametrize(
    ("about", "target", "named"),
    [
        (hello(ORIN), "h100", "compute capability 8.7, the target has 9.0"),
        (hello(ORIN, version="8.6.2", module=NANO, total=7620), "jetson", "TensorRT 8.6.2"),
        (hello(H100, version="10.3.0"), "jetson", "no module in /proc/device-tree/model"),
        (
            hello(ORIN, version="10.3.0", module="NVIDIA Jetson AGX Orin", total=62000),
            "jetson",
            "Jetson AGX Orin, the target is",
        ),
    ],
)
def test_another_device_is_refused(about, target, named):
    with pytest.raises(KDError) as error:
        evidence_of(about, load(target), "ssh://board")
    assert error.value.code == "board-mismatch"
    assert named in error.value.message
    assert "--target" in error.value.fix
    assert error.value.where == "ssh://board"


def test_facts_leave_out_what_changes_between_two_runs():
    one, two = hello(H100 | {"free_mb": 3}), hello(H100 | {"free_mb": 9}, total=5)
    assert facts_of(one) == facts_of(two)
    assert facts_of(one)["gpu"] == {"name": H100["name"], "compute_capability": "9.0"}


@pytest.mark.parametrize(
    ("asked", "target", "via", "backend"),
    [
        ("auto", "jetson", "ssh://board", "tensorrt"),
        ("auto", "cpu", "ssh://board", "onnxruntime"),
        ("auto", "jetson", None, None),
        ("onnxruntime", "cpu", None, None),
        ("onnxruntime", "jetson", "python:x", "onnxruntime"),
        ("onnxruntime-cuda", "h100", None, "onnxruntime-cuda"),
        ("tensorrt", "h100", None, "tensorrt"),
    ],
)
def test_the_backend_that_is_asked_for(asked, target, via, backend):
    spec = Spec.model_construct(compile=Compile(backend=asked))
    assert backend_for(spec, load(target), via) == backend


@pytest.mark.parametrize(
    "option",
    [
        {"dla": 0},
        {"deterministic": True},
        {"optimization_level": 0},
        {"tf32": False},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_of_tensorrt_is_refused_for_a_target_without(option):
    spec = Spec.model_construct(compile=Compile(**option))
    with pytest.raises(KDError) as error:
        find_board(spec, load("cpu"), None)
    assert error.value.code == "option-refused"
    assert f"compile.{next(iter(option))} " in error.value.message
    assert find_board(spec, load("jetson"), None)[0] is None  # for its kit
