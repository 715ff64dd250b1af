"""Train the detecting teacher and write `detector.safetensors` (an hour on one core with AMX).

    python train_teacher.py [--data FOLDER] [--work FOLDER] [--steps 3600]

FOLDER holds the example's photos, or others of 512x384 pixels in the same layout. The weights are
chosen by the mAP50 on the validation photos. Run it again after an interruption and it goes on.
"""

import argparse
import copy
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from kdcompile.examples.cells.average_precision import average_precisions, decode
from kdcompile.examples.cells.centre_loss import Target, loss_of, target_of
from kdcompile.examples.cells.detector import CLASSES, STRIDE, build
from kdcompile.examples.cells.training_photos import (
    Annotated,
    normalised,
    random_crop,
    read_split,
)

HERE = Path(__file__).parent
SIDE, BATCH = 256, 8
RATE, DECAY, WARM = 2e-3, 0.02, 200  # of AdamW; steps of a linear rise before a half cosine
MEMORY = 0.998  # of the moving average of the weights, which is judged
EVERY = 300  # steps between two evaluations and checkpoints
log = logging.getLogger("kdcompile.examples")


class Training:
    """A network on its way: weights, their moving average, optimiser and the best so far."""

    def __init__(self, steps: int) -> None:
        """Random weights, seeded."""
        torch.manual_seed(0)
        self.steps, self.step, self.value = steps, 0, -1.0
        self.network = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average.state_dict())
        self.optimiser = torch.optim.AdamW(self.network.parameters(), RATE, weight_decay=DECAY)

    def save(self, path: Path) -> None:
        """Write everything that `load` reads, whole or not at all."""
        parts = {"step": self.step, "value": self.value, "best": self.best,
                 "network": self.network.state_dict(), "average": self.average.state_dict(),
                 "optimiser": self.optimiser.state_dict()}  # fmt: skip
        torch.save(parts, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        parts = torch.load(path, weights_only=True)
        self.step, self.value, self.best = parts["step"], parts["value"], parts["best"]
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        self.optimiser.load_state_dict(parts["optimiser"])

    def take(self, pixels: torch.Tensor, target: Target) -> float:
        """One step; returns its loss."""
        done = self.step / self.steps
        rate = RATE * min(1.0, (self.step + 1) / WARM) * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(pixels.to(memory_format=torch.channels_last))
        loss = loss_of(output.float(), target, STRIDE)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimiser.step()
        self.step += 1
        memory = min(MEMORY, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            new = self.network.state_dict()
            for name, kept in self.average.state_dict().items():
                if kept.is_floating_point():
                    kept.lerp_(new[name], 1 - memory)
                else:
                    kept.copy_(new[name])
        return float(loss.detach())


def batch(photos: Sequence[Annotated], step: int) -> tuple[torch.Tensor, Target]:
    """Crops and their target; the same ones for the same step."""
    random = np.random.default_rng((0, step))
    chosen = [photos[i] for i in random.integers(len(photos), size=BATCH)]
    pixels, boxes, hidden = zip(*(random_crop(p, SIDE, random) for p in chosen), strict=True)
    return normalised(torch.stack(pixels)), target_of(boxes, hidden, CLASSES, SIDE, STRIDE)


def evaluate(network: nn.Module, photos: Sequence[Annotated]) -> list[float]:
    """The average precision of each class at an IoU of 0.5."""
    with torch.inference_mode():
        found = [decode(network(normalised(p.pixels[None]))[0], STRIDE) for p in photos]
    return average_precisions(found, [p.boxes for p in photos], CLASSES)


def train(training: Training, root: Path, checkpoint: Path) -> None:
    """Go on until the last step."""
    photos, chosen_by = read_split(root, "train"), read_split(root, "val")
    started, losses = time.monotonic(), []
    while training.step < training.steps:
        losses.append(training.take(*batch(photos, training.step)))
        if training.step % EVERY == 0 or training.step == training.steps:
            each = evaluate(training.average, chosen_by)
            value = float(np.nanmean(each))
            if value > training.value:
                training.value, training.best = value, copy.deepcopy(training.average.state_dict())
            training.save(checkpoint)
            told = ", ".join(f"{v:.3f}" for v in each)
            log.info(
                "step %d: loss %.3f, mAP50 %.4f (%s), %.0f s",
                training.step, np.mean(losses), value, told, time.monotonic() - started,
            )  # fmt: skip
            losses.clear()


def main() -> None:
    """Train, write the best weights in half precision, and read the test photos once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=HERE / ".teacher")
    parser.add_argument("--output", type=Path, default=HERE / "detector.safetensors")
    parser.add_argument("--steps", type=int, default=3600)
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    asked.work.mkdir(parents=True, exist_ok=True)
    training, checkpoint = Training(asked.steps), asked.work / "detector.pt"
    if checkpoint.is_file():
        training.load(checkpoint)
    train(training, asked.data, checkpoint)
    halved = {n: t.half() if t.is_floating_point() else t for n, t in training.best.items()}
    save_file({n: t.contiguous() for n, t in halved.items()}, asked.output)
    network = build().eval()
    network.load_state_dict(halved)
    each = evaluate(network, read_split(asked.data, "test"))
    print(f"validation mAP50 {training.value:.4f}; test {np.mean(each):.4f} ({each})")


if __name__ == "__main__":
    main()
