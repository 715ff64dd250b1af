"""A ViT teaches a CNN of the user's own: from the spec to the bundle, with a recipe of features."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from new_classes import photos
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from unlike_networks import CODE, ViT

from kdcompile.bundle.manifest import read_bundle
from kdcompile.cli import cli

CLASSES = 3
SPEC = """
target = "cpu"
[task]
kind = "classification"
[teacher]
model = "model.py:ViT"
weights = "teacher.safetensors"
[data]
format = "npz"
root = "."
train = "d.npz:train"
val = "d.npz:val"
test = "d.npz:test"
mean = [0.5]
std = [0.25]
[student]
family = "model.py:cnn"
[distill]
recipe = "fitnet"
steps = 40
batch = 8
crop = 16
flip = false
colour = 0.0
scale = [1.0, 1.0]
lr = 1e-2
ema = 0.9
evaluations = 2
[export]
shape = [1, 1, 16, 16]
[quantize]
images = 8
[gates]
accuracy = { max_increase = "60%", margin = "90%" }
parity = { min_sqnr_db = 10 }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A spec, photos and a trained ViT."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "model.py").write_text(CODE)
    (folder / "kdcompile.toml").write_text(SPEC)
    every = range(CLASSES)
    pixels, labels = photos(16, every, 0)
    parts = {"train": (pixels, labels), "val": photos(6, every, 1), "test": photos(8, every, 2)}
    arrays = {f"{'xy'[i]}_{name}": part[i] for name, part in parts.items() for i in range(2)}
    np.savez(folder / "d.npz", **arrays)
    network = ViT()
    images = torch.from_numpy((pixels[:, None] / 255 - 0.5) / 0.25).float()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(images), torch.from_numpy(labels)).backward()
        optimizer.step()
    save_file(network.state_dict(), folder / "teacher.safetensors")
    return folder


def _run(command, folder, *more):
    found = CliRunner().invoke(cli, [command, str(folder), *more])
    assert found.exit_code == 0, (found.output, found.exception)
    return found


def test_it_is_planned_built_and_learns(site):
    costs = json.loads(_run("plan", site, "--json").stdout)["estimate"]
    assert costs["student"]["params"] < 0.3 * costs["teacher"]["params"]
    _run("build", site, "-o", str(site / "dist"))
    details = read_bundle(site / "dist").report().details["distill"]
    assert [tap[0] for tap in details["taps"]] == ["blocks.1", "blocks.2", "blocks.3"]
    assert details["val_top1"] > 0.6 > details["initial"]["val_top1"]
    assert details["recipe"] == "fitnet"
