"""How long it takes to draw and cost the candidates of a search, on one core.

    python benchmarks/search_speed.py [--candidates 10000] [--target h100] [-o search_speed.json]

Both spaces of CSRNet at 1 x 3 x 768 x 1024, and of the digits teacher: drawing in generations, the
kernels of every student, and the latency model's median. Nothing is trained: the guess that orders
is the number of multiply-adds. Exporting the teacher comes before and is given apart.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from kdcompile.config.distill import Search
from kdcompile.core.files import write_json
from kdcompile.latency_model.network_cost import as_type
from kdcompile.latency_model.predict import kernel_ms
from kdcompile.models.csrnet import build as csrnet
from kdcompile.models.cuts import cuts
from kdcompile.search.spaces.base import Architecture, Space, candidates
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.search.spaces.staged import StagedSpace
from kdcompile.targets import Target, load

OPTIONS = Search()
PRECISION = "fp16"


def digits() -> nn.Module:
    """A teacher of the digits example's kind: three stages at 32, 64 and 64 channels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 1, 1),
    )  # fmt: skip


TEACHERS: dict[str, tuple[Callable[[], nn.Module], list[int], int]] = {
    "csrnet": (csrnet, [1, 3, 768, 1024], 8),
    "digits": (digits, [1, 1, 96, 96], 4),
}


def staged(teacher: nn.Module, shape: list[int], stride: int, target: Target) -> Space:
    """New blocks at the teacher's stages."""
    blocks, scales, tile = OPTIONS.blocks, OPTIONS.scales, target.channel_tile
    return StagedSpace(cuts(teacher, shape), shape, 1, "dense", stride, tile, blocks, scales, 0)


def layers(teacher: nn.Module, shape: list[int], stride: int, target: Target) -> Space:
    """The teacher's own layers."""
    return LayerSpace(teacher, shape, target.channel_tile, 0)


SPACES = {"staged": staged, "layers": layers}


def measure(name: str, kind: str, number: int, target: Target) -> dict[str, Any]:
    """Seconds for one teacher and one space."""
    build, shape, stride = TEACHERS[name]
    teacher, start = build().eval(), time.perf_counter()
    space = SPACES[kind](teacher, shape, stride, target)
    ready = time.perf_counter()

    def cost(architecture: Architecture) -> tuple[float, int, float]:
        kernels = space.kernels(architecture, as_type(PRECISION))
        macs = sum(k.macs for k in kernels)
        return kernel_ms(kernels, target, PRECISION), macs, -macs

    found = candidates(space, number, cost, Random(0))
    seconds = time.perf_counter() - ready
    times = [c.ms for c in found]
    return {
        "teacher": name,
        "space": kind,
        "candidates": len(found),
        "seconds": seconds,
        "microseconds_each": 1e6 * seconds / len(found),
        "space_seconds": ready - start,
        "fastest_ms": min(times),
        "slowest_ms": max(times),
    }


def main() -> None:
    """Measure and print; the result as JSON with -o."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=OPTIONS.candidates)
    parser.add_argument("--target", default="h100")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = load(options.target)
    rows = []
    for name in TEACHERS:
        for kind in SPACES:
            row = measure(name, kind, options.candidates, target)
            print(
                f"{name:<8} {kind:<8} {row['candidates']:>6} students in {row['seconds']:6.2f} s, "
                f"{row['fastest_ms']:.3g} to {row['slowest_ms']:.3g} ms; "
                f"the space took {row['space_seconds']:.2f} s"
            )
            rows.append(row)
    if options.output is not None:
        record = {
            "target": target.full_name,
            "precision": PRECISION,
            "machine": f"{platform.machine()}, one thread",
            "rows": rows,
        }
        write_json(options.output, record)


if __name__ == "__main__":
    main()
