"""A small network with branches and a normalisation, exported once, and the planted faults."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcompile.export.onnx_file import onnx_from_module

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE = [1, 3, 16, 16]


class Small(nn.Module):
    """A stem, a normalised block beside an identity, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(8, 1, 1), nn.ReLU())

    def forward(self, image):
        stem = self.stem(image)
        normed = self.norm(stem.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(stem + self.second(self.first(normed)))


@pytest.fixture(scope="session")
def faults():
    """benchmarks/bisect_faults.py as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bisect_faults

        return bisect_faults
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="session")
def photos(faults):
    """`photos(n)`: canvases of digits as inputs."""
    return sys.modules["bisect_networks"].photos


@pytest.fixture(scope="session")
def module():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="session")
def model(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "small.onnx"
    return onnx_from_module(module, path, (SHAPE, SHAPE, SHAPE))


@pytest.fixture(scope="session")
def images():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(4)]
