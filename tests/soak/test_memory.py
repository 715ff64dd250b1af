"""Photos are streamed: a build's memory does not grow with their number.

With KDCOMPILE_SOAK_PHOTOS naming a folder of at least 482 photos, these are used in place of
generated ones. What they are annotated with is what the teacher counts in them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from soak_results import told

from kdcompile.config.spec import Data
from kdcompile.core.files import Hasher
from kdcompile.data.splits import load_splits, splits_rows

pytestmark = pytest.mark.soak
FEW, MANY, MOST_MB = 48, 482, 300
PIXELS_PER_POINT = 8000  # of full brightness
MODEL = """
import torch
from torch import nn

CHANNELS = 16

def build():
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 2, 2), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 2, 2), nn.ReLU(),
        nn.Conv2d(CHANNELS, 1, 2, 2),
    )

def teacher(pixels_per_point):
    # the mean brightness of 8 x 8 pixels, in each channel alike
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[0].weight[:] = 1 / 12
        for channel in range(CHANNELS):
            network[2].weight[channel, channel] = 1 / 4
        network[4].weight[:] = 64 / 4 / CHANNELS / pixels_per_point
    return network
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
budget = { width = 0.5 }
[distill]
steps = 30
evaluations = 2
batch = 4
crop = 128
[export]
shape = [1, 3, 1024, 1024]
[quantize]
images = 32
[gates]
speedup = { min = 1.01, required = false }
"""
# the parent of a build must be small: a child begins with its parent's peak
CHILD = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.stderr.write(done.stderr[-3000:])
sys.exit(done.returncode)
"""


def _generated(number):
    random = np.random.default_rng(number)
    small = random.integers(0, 256, (24, 32, 3), np.uint8) // (1 + number % 4)
    return Image.fromarray(small).resize((1024, 768), Image.Resampling.BICUBIC)


def _photos(folder, count):
    """The paths of so many photos."""
    given = os.environ.get("KDCOMPILE_SOAK_PHOTOS")
    if given:
        found = sorted(p for p in Path(given).rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        assert len(found) >= count, f"{given} has {len(found)} photos"
        return found[:count]
    folder.mkdir()
    for number in range(count):
        _generated(number).save(folder / f"{number:04d}.jpg")
    return sorted(folder.iterdir())


def _spec(folder, count):
    """A spec with so many photos: three in eight are for the test."""
    folder.mkdir()
    photos = _photos(folder / "made", count)
    (folder / "data" / "images").mkdir(parents=True)
    rows = []
    for number, photo in enumerate(photos):
        name = f"images/{number:04d}{photo.suffix}"
        (folder / "data" / name).hardlink_to(photo) if photo.is_relative_to(folder) else (
            folder / "data" / name
        ).symlink_to(photo)
        with Image.open(photo) as image:
            pixels = np.asarray(image.convert("RGB"), np.float64) / 255
        height, width = pixels.shape[:2]
        points = round(pixels.mean(2).sum() / PIXELS_PER_POINT)
        spread = np.random.default_rng(number).uniform(0, 1, (points, 2)) * [width, height]
        rows.append({"image": name, "points": spread.round(2).tolist()})
    (folder / "data" / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = {"train": rows[0::8] + rows[1::8] + rows[2::8] + rows[3::8], "val": rows[4::8],
             "test": rows[5::8] + rows[6::8] + rows[7::8]}  # fmt: skip
    for split, part in parts.items():
        names = "\n".join(row["image"] for row in part)
        (folder / "data" / f"{split}.txt").write_text(names)
    scope = {}
    exec(MODEL, scope)
    save_file(scope["teacher"](PIXELS_PER_POINT).state_dict(), folder / "w.safetensors")
    (folder / "model.py").write_text(MODEL)
    (folder / "kdcompile.toml").write_text(SPEC)


def _peak_mb(folder):
    """Of a build's process and its children."""
    words = [sys.executable, "-P", "-m", "kdcompile", "-q", "build", str(folder)]
    command = [sys.executable, "-c", CHILD, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3, 5), done.stderr  # a few steps need not pass the gates
    assert (folder / "dist").is_dir()
    return int(done.stdout) / 1024


def test_memory_does_not_grow_with_the_photos(tmp_path):
    torch.manual_seed(0)
    peaks = {}
    for count in (FEW, MANY):
        _spec(tmp_path / str(count), count)
        peaks[count] = _peak_mb(tmp_path / str(count))
    grown = peaks[MANY] - peaks[FEW]
    told("memory-build", f"{FEW} photos take {peaks[FEW]:.0f} MB, {MANY} {peaks[MANY]:.0f} MB: "
         f"{grown:+.0f} of at most {MOST_MB}")  # fmt: skip
    assert grown <= MOST_MB


def test_twenty_thousand_images_are_split_soon(tmp_path):
    names = [f"{number:05d}.png" for number in range(20_000)]
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    content = picture.read_bytes()
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(content + number.to_bytes(4, "big"))
    rows = ({"image": name, "points": [[x + 0.5, 1.5] for x in range(8)]} for name in names)
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split, part in (("train", names[:16_000]), ("val", names[16_000:18_000]),
                        ("test", names[18_000:])):  # fmt: skip
        (tmp_path / f"{split}.txt").write_text("\n".join(part))
    data = Data(format="points-jsonl", root=tmp_path)
    began, now = time.perf_counter(), time.process_time()
    rows = splits_rows(data, tmp_path, Hasher(tmp_path / "hashes.json"))
    planned = time.process_time() - now
    splits = load_splits(data, tmp_path)
    loaded = time.process_time() - now - planned
    both = time.perf_counter() - began
    told("splits", f"{planned:.2f} s of CPU to hash the images of a plan, {loaded:.2f} s to load "
         f"them; {both:.2f} s by the clock")  # fmt: skip
    assert sum(map(len, rows.values())) == 20_000
    assert len(splits.train) == 16_000
    assert planned + loaded < 5  # of this process: what else runs decides nothing
