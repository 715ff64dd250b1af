"""Train the example's teachers and write their weights (an hour on one core with AMX).

    python train_teacher.py detector [--data FOLDER] [--work FOLDER] [--output FILE] [--steps N]
    python train_teacher.py counter

FOLDER holds the example's photos, or others of 512x384 pixels in the same layout. The detector
starts from random weights and is chosen by the mAP50 on the validation photos; the counter starts
from the trained detector, whose output layer it replaces, is chosen by the mean absolute error and
scaled where that makes photos better that the scale was not fitted on.
Run it again after an interruption and it goes on.
"""

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcompile.config.detection import Head
from kdcompile.config.load import load_spec
from kdcompile.data.splits import load_splits
from kdcompile.data.targets import density_maps
from kdcompile.distill.output_calibration import calibrate_output
from kdcompile.examples.bfloat_training import Loss, Training
from kdcompile.examples.cells.centre_loss import loss_of, target_of
from kdcompile.examples.cells.network import CLASSES, STRIDE, counter, detector
from kdcompile.examples.cells.training_photos import (
    Annotated,
    Boxes,
    normalised,
    random_crop,
    read_split,
    seen_boxes,
    seen_centres,
)
from kdcompile.tasks.detection.average_precision import Table
from kdcompile.tasks.detection.decoders import DECODERS, Setting
from kdcompile.tasks.detection.matching import matched, packed
from kdcompile.tasks.task import preprocess_of, task_of

log = logging.getLogger("kdcompile.examples")
HERE = Path(__file__).parent
SIDE, BATCH, EVERY = 256, 8, 200
RED = 0  # the class that is counted
SIGMA = 1.0  # deviation of a centre's Gaussian, in cells of the map
COUNTED = 0.02  # weight of the error of a crop's count

Photos = Sequence[Annotated]


def drawn(photos: Photos, step: int) -> tuple[Tensor, list[Boxes]]:
    """The input of a step and its boxes; the same ones for the same step."""
    random = np.random.default_rng((0, step))
    chosen = [photos[i] for i in random.integers(len(photos), size=BATCH)]
    pixels, boxes = zip(*(random_crop(photo, SIDE, random) for photo in chosen), strict=True)
    return normalised(torch.stack(pixels)), list(boxes)


def boxes_batch(photos: Photos, step: int) -> tuple[Tensor, Loss]:
    """A step of the detector."""
    pixels, boxes = drawn(photos, step)
    asked, hidden = zip(*(seen_boxes(some, SIDE) for some in boxes), strict=True)
    target = target_of(asked, hidden, CLASSES, SIDE, STRIDE)
    return pixels, partial(loss_of, target=target, stride=STRIDE)


def counts_batch(photos: Photos, step: int) -> tuple[Tensor, Loss]:
    """A step of the counter: a cell counts where its centre lies in the crop."""
    pixels, boxes = drawn(photos, step)
    centres = [torch.from_numpy(seen_centres(some, SIDE, RED)) for some in boxes]
    points = nn.utils.rnn.pad_sequence(centres, batch_first=True)
    there = torch.arange(points.shape[1]) < torch.tensor([len(c) for c in centres])[:, None]
    size = (SIDE // STRIDE, SIDE // STRIDE)
    return pixels, partial(count_loss, density=density_maps(points, there, size, STRIDE, SIGMA))


def count_loss(output: Tensor, density: Tensor) -> Tensor:
    """Squared error of a map whose peaks are 1, and a little of the counts' own."""
    scale = 2 * math.pi * SIGMA**2
    cells = (scale * (output - density)).square().mean()
    counts = (output - density).sum((1, 2, 3)).abs().mean()
    return cells + COUNTED * counts


def maps_of(network: nn.Module, photos: Photos, quick: bool) -> Iterator[Tensor]:
    """The output for each photo, float32; computed in bfloat16 where `quick`."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=quick):
        for photo in photos:
            yield network(normalised(photo.pixels[None]))[0].float()


def judge_boxes(photos: Photos, network: nn.Module, quick: bool = True) -> tuple[float, str]:
    """The mAP50, and the average precision of each class."""
    rows = []
    for one, photo in zip(maps_of(network, photos, quick), photos, strict=True):
        plane = (STRIDE * one.shape[1], STRIDE * one.shape[2])
        found = DECODERS["centre"].of({"maps": one[None].numpy()}, Setting(Head()), plane)
        rows.append(packed(matched(found, photo.boxes, CLASSES)))
    (each,) = Table(np.stack(rows)).by_class(np.ones((1, len(rows))), [0])  # at an overlap of 0.5
    value = float(np.nanmean(each))
    return value, f"mAP50 {value:.4f} ({', '.join(f'{v:.3f}' for v in each)})"


def judge_counts(photos: Photos, network: nn.Module, quick: bool = True) -> tuple[float, str]:
    """The mean absolute error of the count, negative."""
    found = np.array([float(one.sum()) for one in maps_of(network, photos, quick)])
    error = np.abs(found - [(photo.boxes[:, 4] == RED).sum() for photo in photos]).mean()
    return -float(error), f"mean absolute error {error:.3f}"


KINDS = {"detector": (boxes_batch, judge_boxes), "counter": (counts_batch, judge_counts)}


def begin(kind: str, weights: Path, steps: int | None) -> Training:
    """The training of a teacher; the counter starts from the detector's weights."""
    torch.manual_seed(0)
    if kind == "detector":
        return Training(detector(), steps or 1400, rate=2e-3)
    network = counter()
    trained = load_file(weights)
    network.load_state_dict(
        {n: t for n, t in trained.items() if not n.startswith("output.")}, strict=False
    )
    return Training(network, steps or 600, rate=5e-4)


def scale_counts(training: Training, data: Path) -> None:
    """Fit the best network's scale: many cells that can be seen are not annotated."""
    training.network.load_state_dict(training.best)
    spec = load_spec(HERE / "count.toml", [f"data.root={data}"])
    splits, prepare = load_splits(spec.data, spec.folder), preprocess_of(spec)
    network, device = training.network.eval(), torch.device("cpu")
    found = calibrate_output(network, splits.train, splits.val, prepare, device, task_of(spec))
    log.info("scale: %s", found)
    training.best = network.state_dict()


def main() -> None:
    """Train, write the best weights in half precision, and read the test photos once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--data", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=HERE / ".teacher")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the weights")
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    batch, judge = KINDS[asked.kind]
    train, val, test = (read_split(asked.data, split) for split in ("train", "val", "test"))
    training = begin(asked.kind, asked.output / "detector.safetensors", asked.steps)
    checkpoint = asked.work / f"{asked.kind}.pt"
    training.run(partial(batch, train), partial(judge, val), checkpoint, EVERY)
    if asked.kind == "counter":
        scale_counts(training, asked.data)
    network = training.write(asked.output / f"{asked.kind}.safetensors")
    for name, photos in (("validation", val), ("test", test)):
        print(f"{name}: {judge(photos, network, quick=False)[1]}")


if __name__ == "__main__":
    main()
