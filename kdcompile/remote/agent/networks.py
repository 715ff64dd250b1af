"""The engines of the kit: built once, loaded, run and timed interleaved by a worker."""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.core.measurement import interleave
from kdcompile.core.ports import Ports, as_row
from kdcompile.remote.agent.system import file_sha256, write_file
from kdcompile.remote.agent.worker import summary

BLOCKS, OTHER_BLOCKS = 12, 6  # a paired interval needs at least 6
FIRST_WARMUP, WARMUP = 10, 3
CLOCKS = {"device": ("device", "wall"), "graph": ("device", "wall"),
          "end_to_end": ("end_to_end", "wall")}  # fmt: skip


def write_json(path: str, value: Any) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    write_file(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


class Networks:
    """Engines by name in a folder, and the worker that has them."""

    def __init__(self, backend: Any, out: str, scratch: str, ports: tuple[str, str],
                 inputs: Any = None) -> None:  # fmt: skip
        """Speak to an open worker.

        Args:
            backend: the worker.
            out: the engines' folder.
            scratch: for what passes between this and the worker.
            ports: the names of the networks' input and output.
            inputs: of networks that run on rows all inputs, as `kdcompile.core.ports` writes them.
        """
        self.inputs = Ports.from_json(inputs) if inputs else None
        self.backend = backend
        self.out, self.scratch, self.ports = out, scratch, ports
        self.here = self.ask(op="hello")
        self.known = os.path.join(out, "built.json")

    def ask(self, **request: Any) -> dict[str, Any]:
        """An answer of the worker, or its error, raised."""
        reply = self.backend.answer(dict(request, id=1))
        if "error" in reply:
            raise KDError(**reply["error"])
        answer: dict[str, Any] = reply["ok"]
        return answer

    def file(self, name: str) -> str:
        """Where the engine of that name lies."""
        kind = "plan" if self.here["backend"] == "tensorrt" else "onnx"
        return os.path.join(self.out, f"engine_{name}.{kind}")

    def source(self, precision: str) -> str | None:
        """The precision of the ONNX that this backend builds a precision from, if it can."""
        plan = self.here["precisions"].get(precision)
        return None if plan is None else str(plan["onnx"])

    def build(
        self, name: str, onnx: str, precision: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Build and load an engine; one that an earlier run built from the same is only loaded.

        Args:
            name: of the engine.
            onnx: the file.
            precision: that the engine computes in.
            options: of the worker's `build`; those that are None are left to it.
        """
        path = self.file(name)
        given = {key: value for key, value in options.items() if value is not None}
        here = {key: self.here[key] for key in ("backend", "backend_version", "platform", "gpu")}
        asked = dict(given, onnx_sha256=file_sha256(onnx), precision=precision, gpu=_lasting(here))
        asked.update({key: here[key] for key in ("backend", "backend_version", "platform")})
        record = self._earlier(os.path.basename(path), asked, path)
        if record is None:
            # a deterministic build fails where its cache lacks a kernel: another network's does
            own = f"timing_{name}.cache" if given.get("deterministic") else "timing.cache"
            cache = os.path.join(self.out, own)
            built = self.ask(op="build", onnx=onnx, engine=path, precision=precision,
                             timing_cache=cache, **given)  # fmt: skip
            layers = built.pop("layers", None)
            if layers:
                write_json(os.path.join(self.out, f"layers_{name}.json"), layers)
            built.update(sha256=file_sha256(path), bytes=os.path.getsize(path))
            record = {"asked": asked, "built": built}
            write_json(self.known, dict(self._all(), **{os.path.basename(path): record}))
            record = dict(record, built=dict(built, resumed=False))
        self.ask(op="load", path=path, name=name)
        answer: dict[str, Any] = record["built"]
        return answer

    def _all(self) -> dict[str, Any]:
        """What earlier runs built, by file; nothing where that cannot be read."""
        try:
            with open(self.known, encoding="utf-8") as stream:
                found = json.load(stream)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _earlier(self, file: str, asked: dict[str, Any], path: str) -> dict[str, Any] | None:
        """The record of an engine that is there whole and was built from the same."""
        found = self._all().get(file)
        if not isinstance(found, dict) or found.get("asked") != json.loads(json.dumps(asked)):
            return None
        whole = os.path.isfile(path) and file_sha256(path) == found["built"]["sha256"]
        return dict(found, built=dict(found["built"], resumed=True)) if whole else None

    def run(self, name: str, inputs: str) -> Any:
        """The output of a loaded engine for an input that `save` wrote."""
        outputs = os.path.join(self.scratch, "output.npz")
        self.ask(op="run", inputs=inputs, outputs=outputs, name=name)
        with np.load(outputs) as arrays:
            if self.inputs is not None:
                return as_row([arrays[name] for name in arrays.files])
            return arrays[self.ports[1]]

    def save(self, image: Any) -> str:
        """The file of an input image; there is one at a time."""
        path = os.path.join(self.scratch, "input.npz")
        rows = self.inputs
        np.savez(path, **({self.ports[0]: image} if rows is None else rows.unpack(image)))
        return path

    def modes(self, graph: bool) -> list[str]:
        """How latency is measured here, the mode that decides first."""
        able = self.here["modes"]
        wanted = (["graph"] if graph else []) + ["device", "end_to_end"]
        return [mode for mode in wanted if mode in able]

    def time(self, names: list[str], image: Any, mode: str, iterations: int,
             blocks: int) -> dict[str, dict[str, Any]]:  # fmt: skip
        """Latency of interleaved networks (`kdcompile.core.measurement`).

        Returns:
            By name: `clock`, percentiles in ms over all calls, `n` calls, and `blocks`, the median
            of each turn; block i of one network and of another are neighbours in time.
        """
        path = self.save(image)
        calls: dict[str, list[float]] = {name: [] for name in names}
        medians: dict[str, list[float]] = {name: [] for name in names}
        clocks: dict[str, str] = {}

        def take(name: str, turn: int) -> None:
            answer = self.ask(op="time", inputs=path, name=name, mode=mode, samples=True,
                              warmup=WARMUP if turn else FIRST_WARMUP,
                              iterations=iterations)  # fmt: skip
            clocks[name] = next(c for c in CLOCKS[mode] if answer["samples"].get(c))
            found = [float(ms) for ms in answer["samples"][clocks[name]]]
            calls[name] += found
            medians[name].append(statistics.median(found))

        interleave(names, take, blocks)
        return {name: dict(summary(calls[name]) or {}, clock=clocks[name], blocks=medians[name])
                for name in names}  # fmt: skip

    def quit(self) -> None:
        """Free everything."""
        self.ask(op="quit")


def _lasting(here: dict[str, Any]) -> Any:
    """What an engine is bound to of the GPU; its free memory changes."""
    gpu = here["gpu"]
    return None if gpu is None else {key: gpu[key] for key in ("name", "compute_capability")}
