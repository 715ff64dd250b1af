"""`run` streams: its memory does not grow with the photos, and every result is printed once."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle
from PIL import Image
from soak_results import told

pytestmark = pytest.mark.soak
FEW, MANY, MOST_MB = 100, 2000, 24
SIZES = ((120, 160), (240, 320), (100, 250), (384, 512))
# the parent of the command must be small: a child begins with its parent's peak
CHILD = """
import resource, subprocess, sys
with open(sys.argv[1], "wb") as out:
    done = subprocess.run(sys.argv[2:], stdout=out, stderr=subprocess.PIPE)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.stderr.buffer.write(done.stderr)
sys.exit(done.returncode)
"""


def _photos(folder):
    """So many names of a few photos, every hundredth no image."""
    folder.mkdir()
    kinds = []
    for number, size in enumerate(SIZES):
        small = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        kinds.append(folder.parent / f"kind{number}.jpg")
        Image.fromarray(small).resize(size[::-1]).save(kinds[-1])
    found = []
    for number in range(MANY):
        found.append(folder / f"{number:04d}.jpg")
        if number % 100 == 50:
            found[-1].write_bytes(b"no image")
        else:
            found[-1].hardlink_to(kinds[number % len(kinds)])
    return found


def _peak_mb(folder, photos):
    """Of `run` on photos, whose lines are held against their names."""
    out = folder / f"{len(photos)}.jsonl"
    words = [sys.executable, "-P", "-m", "kdcompile", "run", "bundle", *photos, "--json"]
    words += ["-o", f"drawn{len(photos)}"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, out, *words], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # some are no images
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["photo"] for row in rows] == [str(photo) for photo in photos]
    failed = [row for row in rows if "error" in row]
    assert len(failed) == len(photos) // 100
    assert done.stderr.count("error[image-unreadable]") == len(failed)
    assert len(list((folder / f"drawn{len(photos)}").iterdir())) == len(photos) - len(failed)
    return int(done.stdout) / 1024


def test_memory_does_not_grow_with_the_photos_of_run(tmp_path):
    tiny_bundle.copied(tmp_path)
    photos = _photos(tmp_path / "photos")
    peaks = {count: _peak_mb(tmp_path, photos[:count]) for count in (FEW, MANY)}
    grown = peaks[MANY] - peaks[FEW]
    told("memory-run", f"{FEW} photos take {peaks[FEW]:.0f} MB, {MANY} take {peaks[MANY]:.0f} MB: "
         f"{grown:+.0f} of at most {MOST_MB}")  # fmt: skip
    assert grown <= MOST_MB
