"""Which machine is the target, and what tells another one apart."""

import pytest

from kdcompile.remote import same_board

NANO = "NVIDIA Jetson Orin Nano Developer Kit"
TARGET = {"name": "jetson-orin-nano-8gb", "title": "NVIDIA Jetson Orin Nano 8GB",
          "compute_capability": "8.7", "tensorrt": "10.3", "memory_gb": 8}  # fmt: skip
HERE = {"backend": "tensorrt", "backend_version": "10.3.0", "module": NANO,
        "gpu": {"compute_capability": "8.7"}, "memory_mb": {"total": 7620}}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("10.3.0", "10.3", True),
        ("10.7.0.23", "10.3", True),
        ("10.0.1", "10.3", False),
        ("8.6.2", "10.3", False),
        ("11.4.1", "10.3", False),
        ("8.5.2", "8.5.2", True),
        ("8.5.2", "8.6.2", False),
    ],
)
def test_same_generation(found, wanted, same):
    assert same_board.same_generation(found, wanted) is same


@pytest.mark.parametrize(
    ("name", "module", "gigabytes", "total", "told"),
    [
        ("jetson-orin-nano-8gb", NANO, 8, 7620, ""),
        ("jetson-orin-nano-8gb", "NVIDIA Jetson Orin Nano Developer Kit Super", 8, 7620, ""),
        ("jetson-orin-nano-4gb", NANO, 4, 7620, "7620 MB of memory, the target has 4 GB"),
        ("jetson-orin-nx-8gb", NANO, 8, 7620, "Orin Nano Developer Kit, the target is"),
        ("jetson-agx-orin-64gb", "NVIDIA Jetson AGX Orin Developer Kit", 64, 62799, ""),
        ("jetson-orin-nano-8gb", "NVIDIA Jetson AGX Orin", 8, None, "AGX Orin, the target is"),
        ("jetson-agx-xavier", "Jetson-AGX", 32, None, ""),
        ("jetson-thor-t5000", "NVIDIA Jetson AGX Thor Developer Kit", 128, None, ""),
        ("jetson-orin-nano-8gb", None, 8, None, "no module in /proc/device-tree/model"),
        ("jetson-orin-nano-8gb", "Raspberry Pi 5", 8, None, "Raspberry Pi 5, the target is"),
    ],
)
def test_another_module_is_told(name, module, gigabytes, total, told):
    target = {**TARGET, "name": name, "memory_gb": gigabytes}
    here = {**HERE, "module": module, "memory_mb": {"total": total}}
    found = same_board.differences(target, here)
    assert told in "; ".join(found)
    assert bool(found) is bool(told)


def test_every_difference_is_told():
    here = {**HERE, "backend_version": "8.6.1", "gpu": None}
    assert same_board.differences(TARGET, here) == [
        "TensorRT 8.6.1, the target has 10.3",
        "compute capability None, the target has 8.7",
    ]
