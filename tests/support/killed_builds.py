"""Builds that are ended at a named moment or at any, and the store that they leave.

A build runs as a child of a fork server that has imported the heavy libraries, so one takes a
second and not ten. The moment is told by an audit hook: Python calls it before every rename, and
nothing of kdcompile is changed for it.
"""

import io
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from pathlib import Path

import pytest

from kdcompile.core.files import file_sha256
from kdcompile.core.store import KEY_CHARS

MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 1, 1),
    )

def teacher():
    # each pixel by its share of a 3 x 3 square, over eight equal channels
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[0].weight[:, 0, 1, 1] = 0.5
        network[0].bias[:] = 0.5
        for channel in range(8):
            network[2].weight[channel, channel, 1, 1] = 1.0
        network[4].weight[:] = 1 / 72
    return network
"""
PHOTOS = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    random = np.random.default_rng(len(split))
    made = []
    for index in range({"train": 24, "val": 8, "test": 12, "pooled": 4}[split]):
        pixels = np.zeros((16, 16, 1), np.uint8)
        xy = random.uniform(2, 14, (1 + index % 4, 2)).astype(np.float32)
        for x, y in xy.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        made.append(Photo(f"{split}{index}", xy, array=pixels))
    return made
"""
SPEC = """
target = "jetson"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "data.py:photos"
root = "."
train = "train"
val = "val"
test = "test"
mean = [0.5]
std = [0.5]
[student]
budget = { width = 0.5 }
crops = 8
[distill]
steps = 24
evaluations = 2
batch = 4
crop = 16
scale = [1.0, 1.0]
[export]
shape = [1, 1, 16, 16]
[quantize]
images = 4
[gates]
speedup = { min = 1.5, required = false }
size_mb = { max = 1 }
"""
# what reads a clock is compared without it
CLOCKED = ("metrics.jsonl", "result.json", "artifact.json", "choice.json")
CLOCKS = {"ms", "seconds", "steps_per_s"}
OF_THIS_RUN = {"decoded", "bytes"}  # a training that went on has drawn fewer images
# these stages measure the machine, so their keys and reports are of one run alone
MEASURED = ("verify", "bundle")
OF_A_RUN = (
    "report.json", "report.md", "report.html", "MODEL_CARD.md", "manifest.json", "sbom.cdx.json",
    "artifact.json",
)  # fmt: skip
HEAVY = (
    "kdcompile.cli", "kdcompile.passes.distill", "kdcompile.passes.teacher",
    "kdcompile.passes.search", "kdcompile.passes.export", "onnx", "onnxruntime", "onnxscript",
    "onnxslim", "networkx", "scipy.stats", "torch._dynamo", "torch.export", "torch.onnx",
)  # fmt: skip


def _child(folder, arguments, log, ending, checkpoints):
    os.chdir(folder)
    os.setpgid(0, 0)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    sys.__stderr__ = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command takes it
    # blocked where a fork server was begun in the test's process before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.argv = ["kdcompile", *arguments]
    from kdcompile.cli import main

    if checkpoints is not None:
        from kdcompile.distill import train

        train.CHECKPOINT_SECONDS = checkpoints
    if ending is not None:
        number, name, count = ending
        sys.addaudithook(_killer(number, name, count))
    main()


def _killer(number, name, count):
    """Send this process a signal before the `count`-th rename to a path that has `name` in it."""
    seen = 0

    def hook(event, values):
        nonlocal seen
        if event == "os.rename" and name in str(values[1]):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), number)

    return hook


def warm_server():
    """The context of the fork server, which has imported `warmed`."""
    context, variable = multiprocessing.get_context("forkserver"), "PYTHONPATH"
    context.set_forkserver_preload(["warmed"])
    with pytest.MonkeyPatch.context() as patch:  # it looks for what it preloads nowhere else
        patch.setenv(variable, str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


class Builds:
    """Runs commands in a folder that holds `tiny`; `said` is what they wrote."""

    def __init__(self, folder):
        self.folder, self._log = folder, folder / "log.txt"
        self._context = warm_server()

    def start(self, arguments, ending=None, checkpoints=None):
        """A command in a process; `ending` is (signal, part of a path, which rename to it)."""
        values = (self.folder, arguments, self._log, ending, checkpoints)
        process = self._context.Process(target=_child, args=values)
        process.start()
        return process

    def run(self, arguments, ending=None, checkpoints=None):
        """Start and wait; gives the exit code."""
        process = self.start(arguments, ending, checkpoints)
        process.join()
        return process.exitcode

    def said(self):
        """What was written since the last question."""
        text = self._log.read_text() if self._log.is_file() else ""
        self._log.unlink(missing_ok=True)
        assert "Traceback" not in text, text
        return text

    @property
    def store(self):
        return self.folder / "tiny" / ".kdcompile"

    def results(self):
        """What each step of the store has, without clocks and without what a machine measures.

        A step that was measured again has an entry of each time: the last one counts.
        """
        found = {}
        entries = sorted(self.store.glob(f"*/{'?' * KEY_CHARS}"), key=lambda p: p.stat().st_mtime)
        for entry in entries:
            measured = entry.parent.name in MEASURED
            place = entry.parent if measured else entry
            for path in entry.rglob("*"):
                if path.is_file() and not (measured and path.name in OF_A_RUN):
                    name = (place.relative_to(self.store) / path.relative_to(entry)).as_posix()
                    found[name] = _without_clock(path)
        return found

    def leftovers(self):
        """Names that no finished build leaves."""
        names = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*")]
        return [n for n in names if n.endswith((".tmp", ".making", ".owner")) or "/work/" in n
                or Path(n).name.startswith(".tiny-")]  # fmt: skip


def _without_clock(path):
    if path.name not in CLOCKED:
        return file_sha256(path)
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return json.dumps([_plain(json.loads(line)) for line in lines], sort_keys=True)


def _plain(value):
    """A JSON value without clocks, and without the hashes of files that have them."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        k: _plain(v)
        for k, v in value.items()
        if k not in CLOCKS | OF_THIS_RUN | {*CLOCKED, "sha256"}
    }


def tiny_spec(folder):
    """`tiny` in a folder: squares of 3 x 3 pixels to be counted, a build of seconds."""
    from safetensors.torch import save_file

    place = folder / "tiny"
    place.mkdir()
    for name, text in (("model.py", MODEL), ("data.py", PHOTOS), ("kdcompile.toml", SPEC)):
        (place / name).write_text(text)
    scope = {}
    exec(MODEL, scope)
    save_file(scope["teacher"]().state_dict(), place / "w.safetensors")
    return Builds(folder)


def digits(folder):
    """The embedded example as `tiny` in a folder."""
    from kdcompile.config.template import init_example

    init_example("digits", folder / "tiny")
    return Builds(folder)


def same(found, expected):
    """Compare two `results`, naming what differs."""
    assert found.keys() ^ expected.keys() == set()
    differing = [name for name in found if found[name] != expected[name]]
    if differing:
        pytest.fail(f"{differing}: {found[differing[0]]} != {expected[differing[0]]}"[:2000])
