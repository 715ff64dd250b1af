"""What a half-width student is worth at its start and after 300 steps, by how it starts.

Eight networks (`inherit_networks.py`) are trained on CIFAR-10's photos. Four arms then take equal
steps with the same optimiser, batches and loss (cross-entropy with the labels alone):

- `inherit`, the product's start of a student of half the width,
- `random`, the same student with random weights,
- `magnitude` and `taylor`, Torch-Pruning's network with the nearest number of multiply-adds.

The rule: with seed 0 each arm of a network is trained at each rate of LEARNING_RATES, and the rate
with the best validation accuracy is that of the arm in every seed; no test image has a say. A seed
changes the student's random weights, the crops that are inherited from or that give Taylor's
gradients, and the batches. The teacher is one for all seeds.

    pip install --no-deps torchvision==0.28.0 timm torch-pruning==1.6.1
    python benchmarks/inherit_accuracy.py --data FOLDER --work FOLDER [-o FILE] [--networks ...]

FOLDER holds the archive that the cifar10 example names; `--work` keeps the teachers. A row is
written as soon as it is there, and what the file has is not run again.
"""

import argparse
import copy
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import csv_tables
import inherit_pruned
import numpy as np
import torch
from inherit_networks import NETWORKS, without_operators
from inherit_page import chosen_rate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.splits import Splits, load_splits
from kdcompile.distill.start import batches, checked_start
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures
from kdcompile.targets import load
from kdcompile.tasks.task import preprocess_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "cifar10" / "kdcompile.toml"
COLUMNS = ("network", "arm", "seed", "lr", "macs", "parameters", "start", "val", "test", "why")
NAMES = COLUMNS[:4]
ARMS = ("inherit", "random", *inherit_pruned.METHODS)
LEARNING_RATES = (1e-3, 3e-3)
SEEDS, STEPS, BATCH = 3, 300, 32
TEACHER_STEPS, TEACHER_BATCH, TEACHER_LR = 1200, 64, 2e-3
WARM_UP, WEIGHT_DECAY, SHIFT = 0.05, 0.05, 4
WIDTH, TARGET = 0.5, "cpu"
LONGEST = 150  # seconds of processor time that a pruner may take


@dataclass(frozen=True)
class Part:
    """Normalised images [N, 3, 32, 32] and their labels."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, photos: list[Photo], spec: Spec) -> "Part":
        """The photos as the network takes them."""
        prepare = preprocess_of(spec)
        images = [prepare(photo.pixels(3)) for photo in photos]
        labels = torch.tensor([int(photo.label or 0) for photo in photos])
        return cls(torch.from_numpy(np.concatenate(images)), labels)

    def batch(self, draw: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Images drawn at random, each shifted by up to SHIFT pixels and mirrored half the time."""
        picks = torch.randint(len(self.labels), (size,), generator=draw)
        images = pad(self.images[picks], (SHIFT,) * 4)
        top, left = torch.randint(2 * SHIFT + 1, (2, size), generator=draw)
        mirrored = torch.randint(2, (size,), generator=draw)
        side = self.images.shape[-1]
        along = torch.arange(side)
        columns = torch.where(mirrored[:, None] == 1, along.flip(0), along) + left[:, None]
        rows = along + top[:, None]
        found = images.permute(0, 2, 3, 1)[
            torch.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return found.permute(0, 3, 1, 2).contiguous(), self.labels[picks]


def train(network: nn.Module, part: Part, seed: int, lr: float, steps: int, size: int) -> None:
    """AdamW with a warm-up and a cosine to zero; every arm of a seed sees the same batches."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=WEIGHT_DECAY)
    warm = max(1, int(WARM_UP * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * float(np.cos(np.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    network.train()
    for _ in range(steps):
        images, labels = part.batch(draw, size)
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()


def accuracy(network: nn.Module, part: Part) -> float:
    """The share of images that are classified rightly."""
    network.eval()
    with torch.inference_mode():
        found = [network(images).argmax(1) for images in part.images.split(250)]
    return float((torch.cat(found) == part.labels).float().mean())


class Bench:
    """The photos, the teachers, and the rows that are there."""

    def __init__(self, data: Path, work: Path, output: Path) -> None:
        self.data, self.work, self.output = data.resolve(), work, output
        self.spec = self._spec(0)
        self.splits: Splits = load_splits(self.spec.data, self.spec.folder)
        self.train = Part.of(self.splits.train, self.spec)
        self.val = Part.of(self.splits.val, self.spec)
        self.test = Part.of(self.splits.test, self.spec)
        self.store = ImageStore(self.splits.train, 3, torch.device("cpu"))
        self.rows: dict[tuple[str, ...], Mapping[str, Any]] = {**csv_tables.kept(output, NAMES)}

    def _spec(self, seed: int) -> Spec:
        return load_spec(EXAMPLE, [f"data.root={self.data}", f"seed={seed}", f'target="{TARGET}"'])

    def teacher(self, name: str) -> nn.Module:
        """The trained network; trained here where it is not in the work folder."""
        torch.manual_seed(0)
        network = NETWORKS[name]()
        path = self.work / f"{name}.pt"
        if path.is_file():
            network.load_state_dict(torch.load(path, weights_only=True))
        else:
            train(network, self.train, 0, TEACHER_LR, TEACHER_STEPS, TEACHER_BATCH)
            self.work.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        key = (name, "teacher", "0", f"{TEACHER_LR:g}")
        if key not in self.rows:
            self.keep(key, network, None)
        return network.eval()

    def start(self, name: str, teacher: nn.Module, arm: str, seed: int) -> nn.Module:
        """The arm's network before its first step."""
        spec = self._spec(seed)
        shape = (1, 3, 32, 32)
        tile = load(TARGET).channel_tile
        architecture = architectures(teacher, shape, tile, seed, [WIDTH])[0]
        student = student_from_architecture(teacher, architecture, Path())
        if arm in inherit_pruned.METHODS:
            crops = [
                (batch.images, batch.target)
                for batch in batches(spec, teacher, student, self.store)
            ]
            with at_most(LONGEST):
                return inherit_pruned.pruned(
                    teacher, arm, inherit_pruned.macs(student, shape), crops
                )
        if arm == "inherit":
            checked_start(spec, teacher, student, architecture, self.store, val=self.splits.val)
        return student

    def rates(self, name: str, arm: str, seed: int) -> tuple[float, ...]:
        """All of them with seed 0, afterwards the one that validated best then."""
        if seed == 0:
            return LEARNING_RATES
        return (float(chosen_rate(self.rows.values(), name, arm)),)

    def run(self, name: str, arm: str, seed: int) -> None:
        """The missing rows of an arm."""
        teacher = self.teacher(name)
        keys = [(name, arm, str(seed), f"{lr:g}") for lr in self.rates(name, arm, seed)]
        missing = [key for key in keys if key not in self.rows]
        if not missing:
            return
        others = (r["why"] for r in self.rows.values() if (r["network"], r["arm"]) == (name, arm))
        why = next((why for why in others if why), "")
        if not why:
            try:
                begun = self.start(name, teacher, arm, seed)
            except Exception as error:  # of the pruner, which does not know every network
                if arm not in inherit_pruned.METHODS:
                    raise
                why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        for key in missing:
            if why:
                self.write(key, {"why": why})
                continue
            network = copy.deepcopy(begun)
            start = accuracy(network, self.test)
            train(network, self.train, 1000 + seed, float(key[3]), STEPS, BATCH)
            self.keep(key, network, start)

    def keep(self, key: tuple[str, ...], network: nn.Module, start: float | None) -> None:
        """A row of a trained network."""
        self.write(
            key,
            {
                "macs": inherit_pruned.macs(network, (1, 3, 32, 32)),
                "parameters": sum(p.numel() for p in network.parameters()),
                "start": "" if start is None else f"{start:.4f}",
                "val": f"{accuracy(network, self.val):.4f}",
                "test": f"{accuracy(network, self.test):.4f}",
            },
        )

    def write(self, key: tuple[str, ...], values: Mapping[str, object]) -> None:
        """Add a row to the file."""
        blank = dict.fromkeys(COLUMNS, "")
        self.rows[key] = blank | dict(zip(NAMES, key, strict=True)) | dict(values)
        csv_tables.write(self.output, COLUMNS, self.rows.values())
        said = " ".join(str(v) for v in self.rows[key].values())
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {said}\n")
        sys.stdout.flush()


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes more processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> None:
    """Run what is missing, seed by seed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the pruner
    library = without_operators()
    bench = Bench(given.data, given.work, given.output)
    for seed in range(given.seeds):
        for name in given.networks:
            for arm in given.arms:
                bench.run(name, arm, seed)
    del library


if __name__ == "__main__":
    main()
