"""Compiles and runs the C++ sample of a bundle with the headers of `tests/bundle/cpp_stubs`."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

STUBS = Path(__file__).parents[1] / "bundle" / "cpp_stubs"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic")


def includes(tensorrt=STUBS / "tensorrt", cuda=STUBS / "cuda"):
    """The flags of the headers."""
    return ["-isystem", str(tensorrt), "-isystem", str(cuda)]


def compile_(folder, *options, flags=None):
    """Compile `cpp/infer.cpp` of a folder; warnings are errors."""
    command = ["g++", *WARNINGS, *(flags or includes()), *options, str(folder / "cpp/infer.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def save_engine(folder, blob, name="model.engine", **changes):
    """An engine and its record, which `changes` may spoil."""
    (folder / name).write_bytes(blob)
    about = {
        "tensorrt": "10.3.0",
        "compute_capability": "8.7",
        "onnx_sha256": "0" * 64,
        "sha256": hashlib.sha256(blob).hexdigest(),
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(about, sort_keys=True))


def infer(folder, *inputs, engine="model.engine", cwd=None, **variables):
    """Run the sample that was compiled in a folder, with more environment variables."""
    command = [str(folder / "infer"), str(folder / engine), *map(str, inputs)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=cwd,
        env={**os.environ, **variables},
    )
