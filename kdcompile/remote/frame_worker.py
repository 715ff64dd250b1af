"""A worker that times whole frames: its network is a deployed sample, packed with its images."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from typing import Any

from kdcompile.remote.agent import __main__ as agent
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.worker import Worker
from kdcompile.remote.frame import FRAME, Frames

PHOTOS = "photos/"  # in the file that is loaded


class FrameWorker(Worker):
    """Loads files of `latency.frame.packed`, and times them by the clock from file to result."""

    def hello(self) -> dict[str, Any]:
        """That of the backend, which times in one way only here."""
        return dict(super().hello(), modes=["device"], streams=1)

    def load(self, path: str, name: str = "main", graph: bool = False,
             expected: Any = None, threads: int = 0) -> dict[str, Any]:  # fmt: skip
        """Unpack a sample, which leaves no copy of the photos, and open its network."""
        with zipfile.ZipFile(path) as packed:
            sample = _Sample(packed)
        os.remove(path)
        self.loaded[name] = sample
        return {"inputs": {}, "outputs": {}, "name": name}

    def time(self, inputs: str, iterations: int = 50, warmup: int = 10, name: str = "main",
             mode: str = "device", samples: bool = False,
             streams: int = 1) -> dict[str, Any]:  # fmt: skip
        """Milliseconds of frames: `wall`, and each part under its own name."""
        found = self._network(name).times(iterations, warmup)
        wall = found.pop(FRAME)
        return {"mode": mode, "graph": False, "device": None, "end_to_end": None,
                "wall": {"p50_ms": sorted(wall)[len(wall) // 2]},
                "samples": dict(found, wall=wall)}  # fmt: skip


class _Sample:
    """A sample in a folder of its own."""

    def __init__(self, packed: zipfile.ZipFile) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        folder = self._scratch.name
        packed.extractall(folder)
        photos = sorted(name for name in packed.namelist() if name.startswith(PHOTOS))
        try:
            self._frames = Frames(folder, [os.path.join(folder, p) for p in photos], folder)
        except ImportError as error:
            fix = "install it there: python3 -m pip install pillow"
            raise WorkerError("pillow-missing", f"the sample needs it: {error}", fix) from error
        except SystemExit as error:  # how the sample ends
            raise _failed(error) from None

    def times(self, count: int, warmup: int) -> dict[str, list[float]]:
        """As `Frames.times`."""
        try:
            return self._frames.times(count, warmup)
        except (Exception, SystemExit) as error:  # of whatever library its network runs on
            raise _failed(error) from None

    def release(self) -> None:
        """Remove the folder."""
        self._scratch.cleanup()


def _failed(error: BaseException) -> WorkerError:
    fix = "run infer.py of the bundle there by hand"
    return WorkerError("sample-failed", f"infer.py: {error}", fix)


def main() -> int:
    """Serve the backend that the command line names."""
    agent.open_worker = FrameWorker  # what `serve` opens; the sample itself opens a plain one
    return agent.serve(sys.argv[1])
