"""A place whose worker answers with bytes of the test's choice, and a clock that the test moves."""

import io
from contextlib import suppress

from kdcompile.remote.agent.messages import MARK, message
from kdcompile.remote.agent.worker import PROTOCOL
from kdcompile.remote.open import LocalPlace
from kdcompile.remote.process import Answers, BadAnswer

LAYER = {"name": "conv", "precision": None, "onnx": ["conv"]}
HELLO = {
    "protocol": PROTOCOL, "backend": "onnxruntime", "backend_version": "1.20.1",
    "python": "3.11.7", "numpy": "1.26.4", "platform": "linux x86_64", "module": None,
    "l4t": None, "power_mode": None,
    "machine": {"driver_version": None, "cores": 4}, "clocks": {"policy0": 2_000_000_000},
    "memory_mb": {"total": 8000, "free": 4000}, "disk_mb": 9000, "modes": ["device", "end_to_end"],
    "streams": 16, "gpu": None, "precisions": {"fp32": {"onnx": "fp32", "flags": []}},
}  # fmt: skip
# one good answer of each operation
GOOD = {
    "hello": HELLO,
    "signals": {"busy_s": 1.5, "celsius": {"cpu": 40}},
    "stat": {"exists": False, "bytes": 0, "sha256": None},
    "build": {"sha256": "0" * 64, "bytes": 7, "precision": "fp32", "platform": "linux x86_64",
              "compute_capability": None, "flags": [], "layers": [LAYER], "seconds": 1.0},
    "load": {"inputs": {"image": {"dtype": "float32", "shape": [1, 3, -1, -1]}}, "outputs": {}},
    "run": {"outputs": {"density": [1, 1, 8, 8]}}, "remove": {}, "unload": {}, "quit": {},
    "time": {"device": None, "wall": {"p50_ms": 1.5}, "samples": {"wall": [1.5, 1.4]}},
    "profile": {"layers": [LAYER | {"ms": 0.5}], "total_ms": 0.5},
    "power": {"source": "NVML", "unit": "mW", "mode": "graph",
              "idle": {"samples": [[0.1, {"GPU": 5.0}]]},
              "busy": {"samples": [[0.1, {"GPU": 9}], [0.2, {"GPU": 9}]], "seconds": 1.0,
                       "inferences": 3}},
    "memory": {"resident_mb": 9, "peak_mb": 10.5, "available_mb": None, "gpu_mb": None,
               "gpu_used_mb": None, "restarted": True, "unified": False},
}  # fmt: skip


class Clock:
    """Seconds that pass by `step` at each look."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


class _Played:
    """In place of the worker's process: each request is answered by the next bytes."""

    def __init__(self, scripts, clock):
        self.scripts, self.clock, self.number = list(scripts), clock, 0
        self.closed = 0

    def send(self, data):
        """Nobody reads it."""

    def forget_errors(self):
        """There are none."""

    def ask(self, request, limit):
        self.number += 1
        return self.answer(limit)

    def answer(self, limit):
        answers, script = Answers(self.clock), self.scripts.pop(0)
        with suppress(BadAnswer):  # `next` raises it too
            answers.take_all(io.BytesIO(script))
        found = answers.next(self.number or None, limit)
        assert found is not None, "the script is too short"
        return found

    def close(self, at_once=False):
        self.closed += 1


class HostilePlace(LocalPlace):
    """Its scripts are bytes: of the start, of hello, and of each request after them."""

    def __init__(self, *scripts, work="/nonesuch", clock=None, label="ssh://board"):
        self.label, self.about, self.work = label, {}, ""
        self._lost, self._token, self._inputs_sha256, self._source = None, "far", "", b""
        self._worker = _Played(scripts, clock or Clock())
        self._start()
        self.work = work


def reply(ok, number):
    """An answer as a worker writes it."""
    return message({"id": number, "ok": ok})


def framed(body, length=None):
    """Bytes as a message, with another length where one is given."""
    size = len(body) if length is None else length
    return MARK + size.to_bytes(8, "big") + body


def start(hello=None):
    """The two messages with which a place is open."""
    return reply({"work": "/nonesuch"}, None), reply(hello or HELLO, 1)
