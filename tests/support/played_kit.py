"""A build for a board whose kit runs here, on ONNX Runtime, and is merged as if a board had."""

import json
import subprocess
import sys
from pathlib import Path

from command_line import kdcompile

NANO = {"backend": "tensorrt", "backend_version": "10.3.0", "platform": "linux aarch64",
        "module": "NVIDIA Jetson Orin Nano Developer Kit", "power_mode": "15W",
        "gpu": {"name": "Orin", "compute_capability": "8.7"},
        "memory_mb": {"total": 7620}}  # fmt: skip


def run_kit(folder: Path, *options: object) -> dict:
    """Build the folder's spec for a Jetson with its test pack, and run its kit; `device.json`.

    The bundle is `kit`, the pack `pack`, what the board wrote `out`.
    """
    words = ["kdcompile.toml", "--target", "jetson"]
    kdcompile(folder, "build", *words, "-o", "kit")
    kdcompile(folder, "bundle", *words, "--test-pack", "pack")
    command = [sys.executable, "build_engine.py", "--backend", "onnxruntime", "--iterations", "2"]
    command += ["--out", str(folder / "out"), "--test", str(folder / "pack"), *map(str, options)]
    done = subprocess.run(
        command, cwd=folder / "kit" / "kit", capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 5), done.stdout + done.stderr
    path = folder / "out" / "device.json"
    found: dict = json.loads(path.read_text())
    found["environment"] |= NANO
    path.write_text(json.dumps(found))
    return found


def merged(folder: Path, *options: object, code: int = 0) -> dict:
    """The gates of the report after the merge, by name."""
    words = ["bundle", "kit", "--merge", "out/device.json", *map(str, options), "--json"]
    report = json.loads(kdcompile(folder, *words, code=code).stdout)
    return {gate["name"]: gate for gate in report["gates"]} | {"report": report}
