"""The process of a registered backend: it answers the agent's requests through the protocol."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from kdcompile.backends.base import Arrays, Backend, BuildOptions, Network
from kdcompile.core.errors import ToolMissingError
from kdcompile.remote.agent import worker
from kdcompile.remote.agent.__main__ import serve
from kdcompile.remote.agent.engine_record import read_record, write_engine
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.onnxruntime_session import WallClockSession
from kdcompile.remote.agent.system import platform_name

FIXED = ("sha256", "platform")


class Served:
    """A backend with the calls that the agent makes of its own."""

    modes = ("device", "end_to_end")
    cuda: Any = None

    def __init__(self, name: str, backend: type[Backend]) -> None:
        self.name = name
        try:
            self.backend = backend()
            self.version = self.backend.version
        except ToolMissingError as error:
            raise WorkerError("backend-missing", error.message, error.fix) from error

    def about(self) -> dict[str, Any]:
        """No GPU; each precision is built from its own ONNX file."""
        plans = {p: {"onnx": p, "flags": [], "network": []} for p in self.backend.precisions}
        return {"gpu": None, "precisions": plans}

    def close(self) -> None:
        """Nothing is held."""

    def build(
        self, onnx: str, engine: str, precision: str, profile: Any = None, **settings: Any
    ) -> dict[str, Any]:
        """The engine and its record, `ENGINE.json`."""
        start = time.perf_counter()
        if precision not in self.backend.precisions:
            able = ", ".join(self.backend.precisions)
            raise WorkerError("precision-refused", f"{self.name} has {able}, not {precision}")
        options = BuildOptions(precision, profile, settings)
        temporary = Path(f"{engine}.{os.getpid()}.tmp")
        try:
            made = self.backend.build(Path(onnx), temporary, options)
            blob = temporary.read_bytes()
        finally:
            temporary.unlink(missing_ok=True)
        layers = [
            {"name": name, "precision": None, "onnx": list(nodes) or None}
            for name, nodes in made.layers.items()
        ]
        return write_engine(engine, blob, {
            "backend": self.name, self.name: self.version, "platform": platform_name(),
            "compute_capability": None, "precision": precision, "flags": list(made.flags),
            "sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob),
            "onnx_sha256": hashlib.sha256(Path(onnx).read_bytes()).hexdigest(),
            "profile": profile, "layers": layers, "timing_cache": "none", "deterministic": "off",
            "seconds": time.perf_counter() - start,
        })  # fmt: skip

    def load(
        self, path: str, graph: bool = False, expected: Any = None, threads: int = 0
    ) -> "ServedSession":
        """A network whose record says that it was built by this version for this platform."""
        if graph:
            raise WorkerError("mode-refused", f"{self.name} runs no CUDA graph")
        self._check(path, read_record(path) if expected is None else expected)
        return ServedSession(lambda: self.backend.load(Path(path), threads))

    def _check(self, path: str, record: Any) -> None:
        known = record if isinstance(record, dict) else {}
        if any(key not in known for key in (self.name, *FIXED)):
            wanted = ", ".join((self.name, *FIXED))
            raise WorkerError("engine-unknown", f"the record of {path} lacks one of {wanted}")
        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != known["sha256"]:
            raise WorkerError("engine-damaged", f"{path} is not what was built")
        built = f"{self.name} {known[self.name]} on {known['platform']}"
        here = f"{self.name} {self.version} on {platform_name()}"
        if built != here:
            raise WorkerError("engine-mismatch", f"built by {built}; here {here}")


class ServedSession(WallClockSession):
    """A network that a backend loaded."""

    def tensors(self) -> dict[str, Any]:
        """Inputs and outputs."""
        sides = {"inputs": self.session.inputs, "outputs": self.session.outputs}
        return {
            side: {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in named.items()}
            for side, named in sides.items()
        }

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        return dict(self.session.run(self._feeds(arrays)))

    def profile(self, arrays: dict[str, Any], iterations: int) -> list[dict[str, Any]]:
        """Mean milliseconds of each layer."""
        layers = self.session.profile(self._feeds(arrays), iterations)
        return [asdict(e) | {"onnx": list(e.onnx) or None} for e in layers]

    def _once(self, session: Network, feeds: Arrays, mode: str) -> Callable[[], Any]:
        return partial(session.run, feeds) if mode == "end_to_end" else session.bind(feeds)


def main(name: str, module: str, backend: str) -> None:
    """Answer requests on standard input until it ends; `backend` is a class of the module."""
    worker.BACKENDS[name] = partial(Served, name, getattr(import_module(module), backend))
    sys.exit(serve(name))
