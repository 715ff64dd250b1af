"""A test pack on the board: annotated images, the teacher, and what it predicted for them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Any, Iterator, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.core.ports import Ports
from kdcompile.remote.agent.judging import prediction
from kdcompile.remote.agent.system import file_sha256
from kdcompile.tasks.agreement import distance

FORMAT = 1
JUDGED = "judged.npz"  # what home judges outputs by; nothing here reads it


def prepare(pixels: Any, constants: dict[str, Any]) -> Any:
    """uint8 [H, W, C] that fits `max_hw` to the network's input, float32 [1, C, h, w].

    Of networks that normalise by themselves uint8 [1, h, w, C]; of those that run on rows the row
    [1, width]. The same values bit for bit as those of kdcompile's `Preprocess`.
    """
    if "inputs" in constants:
        inner = constants["image"]
        return pixels if inner is None else prepare(pixels, inner).reshape(1, -1)
    height, width, channels = pixels.shape
    shape = (constants["channels"], *constants["max_hw"])
    if channels != shape[0] or height > shape[1] or width > shape[2]:
        raise KDError(
            "pack-mismatch", f"an image of {pixels.shape} does not fit a network of {shape}",
            fix="write the test pack again from the build that this kit is of",
        )  # fmt: skip
    mean, std = (np.array(constants[key], np.float32) for key in ("mean", "std"))
    mirrors = constants.get("padding") == "mirror"
    if constants.get("in_graph"):
        sides = [max(low, side) for low, side in zip(constants["min_hw"], (height, width))]
        whole = np.empty((*sides, channels), np.uint8)
        whole[:] = np.clip(np.rint(mean * 255), 0, 255)
        if mirrors:
            pad = [(0, sides[0] - height), (0, sides[1] - width), (0, 0)]
            whole = np.pad(pixels, pad, mode="symmetric")
        whole[:height, :width] = pixels
        return np.ascontiguousarray(whole[None])
    image = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    low = constants["min_hw"]
    pad = [(0, max(0, low[axis] - image.shape[1 + axis])) for axis in (0, 1)]
    mode: Any = "symmetric" if mirrors else "constant"
    padded = np.pad(image, [(0, 0), *pad], mode=mode)
    return np.ascontiguousarray(padded[None], dtype=np.float32)


def within(output: Any, seen: tuple[int, int], plane: tuple[int, int]) -> Any:
    """A map [1, C, h, w] over the plane without what it says of the padding.

    The same values as those of kdcompile's `Frame`: a cell across the border counts by its area.
    `seen` is the photo's height and width, `plane` the network input's.
    """
    rows, columns = (
        np.clip(seen[axis] * cells / plane[axis] - np.arange(cells), 0.0, 1.0)
        for axis, cells in enumerate(output.shape[2:])
    )
    return output * np.outer(rows, columns).astype(np.float32)


class Sample(NamedTuple):
    """A test image or sample: the network's input, and what its output is held against.

    Args:
        given: float32 [1, C, h, w], uint8 [1, h, w, C], or a row [1, width].
        seen: an image's own height and width in it.
        answer: the teacher's outputs by name, where no annotated value tells what is right.
    """

    given: Any
    seen: tuple[int, int]
    answer: dict[str, Any]


class Outputs:
    """What an engine gave for each image, in turn, as an .npz; one of them is in memory."""

    def __init__(self, path: str) -> None:
        """Begin the file, in place of an earlier one."""
        self.path, self.zip, self.count = path, ZipFile(path, "w", ZIP_DEFLATED), 0

    def add(self, output: Any) -> None:
        """The next image's, under its index."""
        with self.zip.open("%d.npy" % self.count, "w", force_zip64=True) as part:
            np.lib.format.write_array(part, output)
        self.count += 1

    def close(self) -> dict[str, str]:
        """End it; its name and hash."""
        self.zip.close()
        return {"file": os.path.basename(self.path), "sha256": file_sha256(self.path)}


class Pack:
    """A test pack whose every file was found to be what `pack.json` says."""

    def __init__(self, folder: str, kit: dict[str, Any]) -> None:
        """Read and check the pack against its own hashes and the kit's preprocessing and task."""
        self.folder = folder
        again = "copy the test pack again, or write it: kdcompile bundle --test-pack FOLDER"
        try:
            with open(os.path.join(folder, "pack.json"), "rb") as stream:
                blob = stream.read()
            self.about: dict[str, Any] = json.loads(blob.decode("utf-8"))
            files = self.about["files"]
            lists = [list(self.about[key]) for key in ("names", "true", "teacher")]
            counts = {len(each) for each in lists}
            loose = sorted(set(self.about["shards"]) - set(files))
            if len(counts) != 1 or loose or not {"seed", "available"} <= set(self.about):
                raise ValueError("its lists, shards or numbers do not fit together")
            found = {name: file_sha256(os.path.join(folder, name)) for name in files}
        except OSError as error:
            text = f"{error.filename}: {error.strerror}"
            raise KDError("pack-incomplete", text, fix=again) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"pack.json cannot be read: {error!r}"
            raise KDError("pack-corrupt", text, fix=again) from error
        wrong = sorted(name for name in files if found[name] != files[name])
        if wrong:
            raise KDError("pack-corrupt", f"{wrong[0]} is not what was written", fix=again)
        wanted = {"format": FORMAT, "task": kit["task"], "output": kit["output"],
                  "preprocess": kit["files"]["preprocess.json"]}  # fmt: skip
        differing = [key for key in wanted if self.about.get(key) != wanted[key]]
        if files.get("teacher_fp32.onnx") != kit.get("teacher", files.get("teacher_fp32.onnx")):
            differing.append("teacher")
        if differing:
            raise KDError(
                "pack-mismatch", f"the pack is of another build: {', '.join(differing)} differ",
                fix="write the test pack again from the build that this kit is of",
            )  # fmt: skip
        self.sha256 = hashlib.sha256(blob).hexdigest()
        self.names: list[str] = self.about["names"]
        self.true, self.teacher = (
            np.array(self.about[key], np.float64) for key in ("true", "teacher")
        )
        every = [True] * len(self.names)  # in a pack of before there were classes it lacks
        self.taught = np.array(self.about.get("taught", every), bool)
        self.outputs = Ports.from_json(self.about.get("outputs", []))
        self.is_judged_at_home = JUDGED in files

    def photos(self, constants: dict[str, Any]) -> Iterator[Sample]:
        """Every image or sample, in the order of `names`; one shard at a time."""
        for shard in self.about["shards"]:
            with np.load(os.path.join(self.folder, shard)) as arrays:
                for key in sorted(filter(str.isdigit, arrays.files), key=int):
                    pixels = arrays[key]
                    answer = {}
                    if self.outputs.ports:
                        answer = self.outputs.unpack(arrays["answer_" + key])
                    yield Sample(prepare(pixels, constants), pixels.shape[:2], answer)

    def predicted(self, output: Any, sample: Sample) -> float:
        """An output for a sample as a number; as its error where the teacher's is the answer.

        Of one that home judges no more than whether it is finite: 0 or NaN.
        """
        if self.is_judged_at_home:
            return 0.0 if np.isfinite(output).all() else math.nan
        if sample.answer:
            return distance(self.outputs.unpack(output), sample.answer)
        if self.about["task"] == "counting":
            shape = sample.given.shape
            plane = shape[1:3] if sample.given.dtype == np.uint8 else shape[2:]
            output = within(output, sample.seen, plane)
        return prediction(output, self.about["task"])

    def onnx(self, precision: str) -> str | None:
        """The teacher as an ONNX of a precision, or None where the pack has none."""
        path = os.path.join(self.folder, f"teacher_{precision}.onnx")
        return path if os.path.basename(path) in self.about["files"] else None

    def summary(self) -> dict[str, Any]:
        """What `device.json` says of the pack; `digest` is of the names and the numbers.

        Of samples that have no values of their own it is of their content too.
        """
        told = [self.names, self.about["true"], self.about["teacher"]]
        told += [self.about["samples"]] if self.outputs.ports else []
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        counts = {key: self.about[key] for key in ("seed", "available")}
        return dict(counts, pack=self.sha256, digest=digest, n=len(self.names))
