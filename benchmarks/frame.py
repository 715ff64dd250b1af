"""What preprocessing inside the network saves of a whole frame of the deployed sample, on this CPU.

    python benchmarks/frame.py -o benchmarks/frame.json [--photos FOLDER]

Two samples as bundles ship them, `infer.py` with ONNX Runtime, take turns on the same JPEG files
in the same processes: the quarter-width CSRNet with `export.preprocess = "host"` and `"in-graph"`.
Random pixels of the network's own size where no photos are given: nothing is resized then.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from kdcompile.core.files import write_json
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency.frame import frame_samples
from kdcompile.latency.frame_sample import Pictures, Shipped, described, pictures_at, pictures_of
from kdcompile.latency.settings import Effort
from kdcompile.models.csrnet import build
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.in_graph import in_graph
from kdcompile.search.spaces.pruned import architectures
from kdcompile.stats.latency_interval import PairedTimes, ratio_interval

SHAPES = ((1, 3, 288, 384), (1, 3, 576, 768))
WIDTH = 0.25
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EFFORT = Effort(processes=4, blocks=20, seconds=60.0)


def shipped(folder: Path, shape: tuple[int, ...], where: str) -> Shipped:
    """The sample of the student with random weights."""
    teacher = build().eval()
    made = architectures(teacher, list(shape), 16, 0, [WIDTH])[0]
    student = student_from_architecture(teacher, made, folder).eval()
    host = Preprocess(3, MEAN, STD, shape[2:], shape[2:], "mirror")
    prepare, path = host.deployed(where), folder / f"{where}.onnx"
    onnx_from_module(student, path, (shape,) * 3)
    if prepare.in_graph:
        onnx.save(in_graph(onnx.load(path), MEAN, STD), path)
    about = json.dumps(prepare.to_json()).encode()
    return Shipped("counting", None, {"preprocess.json": about, "model.onnx": path}, "fp32")


def random_pictures(shape: tuple[int, ...]) -> Pictures:
    """JPEG files of smooth random colours, of the network's size."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (shape[2] // 16, shape[3] // 16, 3), np.uint8) for _ in range(8)]
    photos = [
        Photo(f"{i}", array=pixels.repeat(16, 0).repeat(16, 1)) for i, pixels in enumerate(coarse)
    ]
    return pictures_of(photos)


def row(shape: tuple[int, ...], photos: Path | None) -> dict[str, object]:
    """Both forms at one size."""
    pictures = random_pictures(shape) if photos is None else pictures_at([photos])
    with tempfile.TemporaryDirectory() as name:
        both = [shipped(Path(name), shape, where) for where in ("host", "in-graph")]
        found = frame_samples(both, pictures, None, EFFORT)
        mode = described(both[0], pictures)
    blocks = [[median(b.ms) for b in one.blocks(disturbed=True)] for one in found]
    a, b = (np.array(side) for side in blocks)
    ratio = ratio_interval(PairedTimes(a, b, 1), 0)
    disturbed = sum(b.disturbed is not None for one in found for b in one.blocks(disturbed=True))
    return {
        "shape": list(shape), "mode": mode, "blocks": len(blocks[0]), "disturbed": disturbed,
        "host_ms": median(blocks[0]), "in_graph_ms": median(blocks[1]),
        "times_faster": ratio[0], "low": ratio[1], "high": ratio[2],
        "parts_ms": [one.runs[-1].environment["state"]["parts_ms"] for one in found],
    }  # fmt: skip


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="a folder of image files")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [row(shape, given.photos) for shape in SHAPES]
    for one in rows:
        print(one)
    write_json(given.out, {"load": load, "rows": rows})


if __name__ == "__main__":
    main()
