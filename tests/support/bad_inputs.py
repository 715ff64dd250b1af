"""The registry of bad inputs: what a case is, the tiny project that it spoils, and its judge.

A file `bad_inputs_*.py` beside this one holds `CASES: list[BadInput]`; `tests/test_bad_inputs.py`
finds it by that name.
"""

import atexit
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from kdcompile.models.factory import build_model

# of a store, which a command that fails may write
NOTES = {"hashes.json", "images.json", "locks", "log.txt", "splits"}
MODEL = """
import torch
from torch import nn

class Counter(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3, padding=1)
        self.output = nn.Conv2d(width, 1, 1)

    def forward(self, image):
        return self.output(torch.relu(self.body(image)))

def build():
    # counts the points, which are white on black
    made = Counter(8)
    with torch.no_grad():
        for value in made.parameters():
            value.zero_()
        made.body.weight[0, 0, 1, 1] = made.output.weight[0, 0] = 1
    return made
"""
SPEC = """
target = "cpu"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "data"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[student]
family = "model.py:Counter"
budget = { width = 1.0 }
[distill]
recipe = "none"
steps = 1
batch = 2
crop = 16
[export]
shape = [1, 3, 16, 16]
[quantize]
images = 4
"""
SPLITS = {"train": 4, "val": 3, "test": 3}


def _nothing(folder: Path) -> None:
    """For a fix that is all in the command line."""


@dataclass(frozen=True)
class BadInput:
    """Something that a user can get wrong, what is said of it, and the remedy that is offered.

    Args:
        name: of the case, unique.
        make: writes the bad input into an empty folder, which is then the current one.
        command: the words after `kdcompile`.
        code: of the error.
        fixed: does in the folder what the error's `fix` says. It may return other words, where the
            fix is to call the command differently.
        exit: code of the command on the bad input: 1, or 2 for usage, which has no error block.
        says: what the error block has in it, in any of its lines.
        after: the exit code once it is fixed.
        then: code of the next error once it is fixed, if there is to be one.
    """

    name: str
    make: Callable[[Path], object]
    command: tuple[str, ...]
    code: str
    fixed: Callable[[Path], tuple[str, ...] | None] = _nothing
    exit: int = 1
    says: tuple[str, ...] = ()
    after: int = 0
    then: str | None = None


def all_cases() -> list[BadInput]:
    """Those of every `bad_inputs_*.py` here."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("bad_inputs_*.py"))
    return [case for name in modules for case in importlib.import_module(name).CASES]


@cache
def _weights(model: str) -> bytes:
    """A file of the weights that a `model.py` starts with."""
    from safetensors.torch import save

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model.py").write_text(model)
        return save(build_model("model.py:build", Path(place)).state_dict())


def picture(number: int, points: int = 6) -> tuple[np.ndarray, list[list[float]]]:
    """A black photo [16, 16, 3] with white pixels, and where they are, [[x, y], ...]."""
    places = np.random.default_rng(number).choice(256, points + number, replace=False)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels.reshape(256, 3)[places] = 255
    return pixels, np.stack([places % 16, places // 16], 1).astype(float).tolist()


@cache
def finished(write: Callable[[Path], object], stage: str) -> Path:
    """The store of the project that `write` makes, up to a stage; made once."""
    from kdcompile.config.load import load_spec
    from kdcompile.passes.manager import make_plan

    folder = Path(tempfile.mkdtemp(prefix="kdcompile-bad-inputs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(folder)
    make_plan(load_spec(folder / "kdcompile.toml")).make(stage)
    return folder / ".kdcompile"


def give(folder: Path, write: Callable[[Path], object], stage: str) -> None:
    """Give a project what that other one's stages have made: a fix that leads there is quick."""
    for path in finished(write, stage).glob("*/*/artifact.json"):
        entry = path.parent.relative_to(path.parents[2])
        shutil.copytree(path.parent, folder / ".kdcompile" / entry, dirs_exist_ok=True)


def project(folder: Path, spec: str = SPEC, model: str = MODEL, weights: str = MODEL) -> None:
    """A spec that plans and builds: `model.py`, its weights, and photos with points in `data`.

    `weights` is the code of the model whose weights they are. Its store has what the good
    project's stages have made.
    """
    _write(folder, spec, model, weights)
    give(folder, _write, "distill")


def _write(folder: Path, spec: str = SPEC, model: str = MODEL, weights: str = MODEL) -> None:
    (folder / "kdcompile.toml").write_text(spec)
    (folder / "model.py").write_text(model)
    (folder / "w.safetensors").write_bytes(_weights(weights))
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    rows, number = [], 0
    for split, count in SPLITS.items():
        names = [f"{split}{index}.png" for index in range(count)]
        (data / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels, points = picture(number)
            Image.fromarray(pixels).save(data / "images" / name)
            rows.append({"image": f"images/{name}", "points": points})
            number += 1
    (data / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def again(write: Callable[[Path], object]):
    """A fix: the data as it should be."""

    def fixed(folder: Path) -> None:
        shutil.rmtree(folder / "data")
        write(folder)

    return fixed


def spoilt(write: Callable[[Path], object], spoil: Callable[[Path], object]):
    return lambda folder: (write(folder), spoil(folder / "data"))


def replace(path: Path, old: str, new: str) -> None:
    """Write `new` for the only `old` of a text file."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))


def unfinished(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What a command left in a folder beside finished entries and notes of the store.

    Args:
        before, after: `command_line.contents` of the folder.
    """
    entries = {name.rsplit("/", 1)[0] for name in after if name.endswith("/artifact.json")}
    return [
        name
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not _is_kept(name, entries)
    ]


def _is_kept(name: str, entries: set[str]) -> bool:
    parts = name.split("/")
    if ".kdcompile" not in parts:
        return "__pycache__" in parts
    below = parts[parts.index(".kdcompile") + 1 :]
    record = name.removesuffix(".json") in entries  # what the key of an entry covers
    return below[0] in NOTES or record or any(name.startswith(f"{entry}/") for entry in entries)
