"""Times whole frames of a deployed sample, `infer.py`: from an image file to what is said of it.

`build_engine.py --images` of a kit does it on a board. Python 3.8 with numpy; `infer.py`, which
lies beside a manifest, needs Pillow too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any, Iterable

import numpy as np

PARTS = ("decode", "preprocess", "inference", "postprocess")
FRAME = "frame"
BLOCKS, BLOCK_MS, WARMUP_S, LEAST = 20, 75.0, 2.0, 5
SAMPLE, MANIFEST, ENGINE = "infer.py", "manifest.json", "model.engine"
CODE = "code/"  # files of a decode of the user's
TASK = "task.json"  # of a task with settings: how an output becomes an answer


class Frames:
    """The sample in a folder, loaded, and the image files that take turns in it.

    Args:
        folder: of `infer.py`, `manifest.json` and all that it lists.
        photos: image files; at least one.
        scratch: a folder for what the sample unpacks.

    Raises:
        SystemExit: the sample ends with it where it cannot run.
        ImportError: Pillow is not installed.
    """

    def __init__(self, folder: str, photos: list[str], scratch: str) -> None:
        """Load the sample and its network."""
        spec = importlib.util.spec_from_file_location("_deployed_sample", f"{folder}/{SAMPLE}")
        assert spec is not None, "it is a Python file"
        assert spec.loader is not None, "it is a Python file"
        self.infer: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.infer)
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as stream:
            self.manifest = json.load(stream)
        text = self.infer.read(self.manifest, self.manifest["preprocess"]).decode()
        told = json.loads(text)
        self.pre = told["image"] if "inputs" in told else told
        self.is_raw = self.manifest["task"] == "generic"
        if self.pre is None:
            raise ValueError("the network takes named tensors and no image")
        if self.manifest["engine"]:
            self.network = self.infer.open_engine(self.manifest, scratch)
        else:
            self.network = self.infer.open_onnx(self.manifest, "CPUExecutionProvider")
        self.photos, self.turn = photos, 0

    def once(self) -> list[float]:
        """Milliseconds of each of `PARTS` of the next photo's frame."""
        infer, pre, path = self.infer, self.pre, self.photos[self.turn % len(self.photos)]
        self.turn += 1
        marks = [time.perf_counter()]
        size, image = infer.size_of(path), infer.decode(path, pre["channels"])
        marks.append(time.perf_counter())
        image = infer.normalised(image, pre)
        whole = infer.padded(image, pre)
        marks.append(time.perf_counter())
        found = self.network({infer.INPUT: whole})
        marks.append(time.perf_counter())
        if not self.is_raw:  # outputs that only who built the network understands
            output = next(iter(found.values()))
            said = infer.answer(output, image, whole, self.manifest, size)
            if self.manifest["task"] != "segmentation":  # whose map says all
                infer.meaning(said, self.manifest)
        marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in zip(marks, marks[1:])]

    def times(self, count: int, warmup: int) -> dict[str, list[float]]:
        """Milliseconds of whole frames, under `frame`, and of each part of the same frames."""
        for _ in range(warmup):
            self.once()
        rows = [self.once() for _ in range(count)]
        found = {FRAME: [sum(row) for row in rows]}
        found.update({part: [row[i] for row in rows] for i, part in enumerate(PARTS)})
        return found


def sizes_of(photos: Iterable[Any]) -> str:
    """Of image files, open or by path, the smallest and the largest, such as `1024x768 JPEG`."""
    from PIL import Image

    seen = set()
    for photo in photos:
        with Image.open(photo) as file:
            seen.add((file.width * file.height, f"{file.width}x{file.height} {file.format}"))
    low, high = min(seen)[1], max(seen)[1]
    return low if low == high else f"{low} to {high}"


def in_blocks(frames: Frames, blocks: int = BLOCKS) -> dict[str, Any]:
    """What a board's record says of the frame: medians of blocks, and those of the parts."""
    end, last = time.perf_counter() + WARMUP_S, frames.times(1, 0)[FRAME][0]
    while time.perf_counter() < end:
        last = frames.times(1, 0)[FRAME][0]
    size = max(LEAST, min(500, round(BLOCK_MS / max(last, 1e-3))))
    medians: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(blocks):
        found = frames.times(size, 1)
        medians.append(statistics.median(found[FRAME]))
        for part, seen in parts.items():
            seen += found[part]
    return {
        "blocks": medians,
        "parts": {part: statistics.median(seen) for part, seen in parts.items()},
        "n": size * blocks, "images": len(frames.photos), "sizes": sizes_of(frames.photos),
    }  # fmt: skip


def write_manifest(folder: str, task: str, classes: Any, files: list[str]) -> None:
    """The manifest that `infer.py` reads, of the files of a folder."""
    listed = {}
    for name in files:
        with open(os.path.join(folder, name), "rb") as stream:
            listed[name] = {"sha256": hashlib.sha256(stream.read()).hexdigest()}
    about = {
        "task": task, "classes": classes, "files": listed, "preprocess": "preprocess.json",
        "model": "model.onnx", "engine": ENGINE if ENGINE in listed else None,
    }  # fmt: skip
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as out:
        json.dump(about, out)


def of_kit(kit: str, record: str, photos: list[str], blocks: int = BLOCKS) -> dict[str, Any]:
    """Time the engine that a kit chose in the sample, and write it into the kit's record.

    Args:
        kit: its folder.
        record: `device.json` of its run, with the engines beside it.
        photos: image files.
        blocks: how many are timed.
    """
    with open(record, encoding="utf-8") as stream:
        about = json.load(stream)
    if not about.get("engine"):
        raise ValueError("no engine was chosen, so there is no sample to time")
    with open(os.path.join(kit, "kit.json"), encoding="utf-8") as stream:
        told = json.load(stream)
    with tempfile.TemporaryDirectory() as folder:
        engine = os.path.join(os.path.dirname(record), about["engine"])
        for source, name in ((engine, ENGINE), (engine + ".json", ENGINE + ".json")):
            shutil.copyfile(source, os.path.join(folder, name))
        listed = ["agent.pyz", "preprocess.json"]
        listed += [TASK] if os.path.isfile(os.path.join(kit, TASK)) else []
        listed += [name for name in told["files"] if name.startswith(CODE)]
        for name in (*listed, SAMPLE):
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            shutil.copyfile(os.path.join(kit, name), os.path.join(folder, name))
        listed += [ENGINE, ENGINE + ".json"]
        write_manifest(folder, told["task"], None, listed)
        found = in_blocks(Frames(folder, photos, folder), blocks)
    about["frame"] = dict(found, precision=about["chosen"])
    with open(record, "w", encoding="utf-8") as out:
        json.dump(about, out, indent=1, sort_keys=True)
    return found


def text(found: dict[str, Any]) -> str:
    """The whole frame and its parts, in a line."""
    parts = ", ".join(f"{part} {found['parts'][part]:.3g}" for part in PARTS)
    whole = float(np.median(found["blocks"]))
    return f"whole frame {whole:.4g} ms of {found['images']} images ({found['sizes']}): {parts}"


def timed(kit: str, record: str, photos: list[str], stream: Any) -> int:
    """The same with its outcome on a stream; the exit code, 4 where Pillow is absent."""
    try:
        found = of_kit(kit, record, photos)
    except (ImportError, OSError, ValueError, SystemExit) as error:  # infer.py ends with the last
        sys.stderr.write(f"error: whole frames were not timed: {error}\n")
        return 4 if isinstance(error, ImportError) else 1
    stream.write(f"{text(found)}\nwrote {record}\n")
    return 0
