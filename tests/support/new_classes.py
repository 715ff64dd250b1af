"""A site adds two classes to four: photos, a teacher and a deployed student of the four, a spec."""

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from kdcompile.core.user_code import load_factory

OLD, NEW, SIDE = 4, 2, 16
NAMES = ("arrow", "bar", "cross", "dot", "eye", "fork")
MODEL = """
from torch import nn

def network(width, classes):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, classes),
    )

def teacher():
    return network(16, 4)

def deployed():
    return network(8, 4)

def student():
    return network(8, 6)
"""
SPEC = """
target = "cpu"
[task]
kind = "classification"
[teacher]
model = "model.py:teacher"
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
family = "model.py:student"
weights = "deployed.safetensors"
budget = { width = 1.0 }
[distill]
recipe = "class-relation"
steps = 60
batch = 8
crop = 16
flip = false
colour = 0.0
scale = [1.0, 1.0]
lr = 3e-3
ema = 0.9
evaluations = 4
[export]
shape = [1, 1, 16, 16]
[quantize]
images = 8
[gates]
accuracy = { max_increase = "60%", margin = "90%" }
parity = { min_sqnr_db = 10 }
"""


def photos(each, classes, seed):
    """uint8 [N, 16, 16] and labels: the pattern of a class, shifted in brightness, under noise."""
    patterns = np.random.default_rng(7).integers(0, 2, (OLD + NEW, 4, 4)).repeat(4, 1).repeat(4, 2)
    random = np.random.default_rng(seed)
    labels = np.repeat(list(classes), each)
    noise = random.normal(0, 50, (len(labels), SIDE, SIDE)) + random.normal(
        0, 15, (len(labels), 1, 1)
    )
    return (70 + 90 * patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels


def archive(path, train, val, test):
    """An npz of three parts, each images and labels."""
    parts = {"train": train, "val": val, "test": test}
    arrays = {f"{axis}_{name}": part[i] for name, part in parts.items()
              for i, axis in enumerate("xy")}  # fmt: skip
    np.savez(path, classes=np.array(NAMES), **arrays)


def project(folder):
    """Train photos of the new classes alone; val and test of all."""
    (folder / "model.py").write_text(MODEL)
    (folder / "kdcompile.toml").write_text(SPEC)
    every, new = range(OLD + NEW), range(OLD, OLD + NEW)
    archive(folder / "d.npz", photos(12, new, 0), photos(6, every, 1), photos(8, every, 2))
    pixels, labels = photos(25, range(OLD), 3)
    for name in ("teacher", "deployed"):
        save_file(trained(folder, name, pixels, labels), folder / f"{name}.safetensors")


def trained(folder, name, pixels, labels):
    """Weights of one of the networks of `MODEL`."""
    torch.manual_seed(len(name))
    network: nn.Module = load_factory(f"model.py:{name}", folder)()
    images = torch.from_numpy((pixels[:, None] / 255 - 0.5) / 0.25).float()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(images), torch.from_numpy(labels)).backward()
        optimizer.step()
    return network.state_dict()
