"""A small network of two named inputs and two named outputs, and samples for it."""

import numpy as np
import torch
from torch import nn

MODEL = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(2, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 32, 5, padding=2, stride=2), nn.BatchNorm1d(32), nn.ReLU(),
        )
        self.table = nn.Embedding(20, 32)
        self.mix, self.head, self.side = nn.Linear(32, 64), nn.Linear(64, 6), nn.Conv1d(32, 3, 1)

    def forward(self, signal, ids):
        features = self.conv(signal)
        mixed = torch.relu(self.mix(features.mean(2) + self.table(ids).mean(1)))
        return {"scores": self.head(mixed), "trace": self.side(features)}


def build():
    torch.manual_seed(0)
    return Two()
"""
SPEC = """
target = "jetson"
task.kind = "generic"
teacher = { model = "model.py:build", weights = "weights.pt" }
data = { format = "tensors", root = ".", train = "samples.npz[:48]", val = "samples.npz[48:64]", test = "samples.npz[64:]" }
student = { budget = { width = 0.5 }, init = "random" }
distill = { steps = 40, batch = 8, evaluations = 2 }
quantize.images = 8
gates.accuracy = { max_increase = "500%", margin = "600%" }
gates.speedup.min = 0.01

[export.inputs]
signal = { shape = [1, 2, 24] }
ids = { shape = [1, 5], dtype = "int64" }
"""  # noqa: E501


def samples(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Waves, and ids that are looked up; `target` is no input."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, 6, 24)
    waves = np.sin(time * random.uniform(1, 5, (count, 2, 1)) + random.uniform(0, 6, (count, 2, 1)))
    return {
        "signal": waves.astype(np.float32),
        "ids": random.integers(0, 20, (count, 5)),
        "target": random.standard_normal((count, 6)).astype(np.float32),
    }


def network() -> nn.Module:
    """The teacher, whose norms have seen samples."""
    scope: dict = {}
    exec(MODEL, scope)
    made: nn.Module = scope["build"]()
    given = samples(64)
    with torch.no_grad():
        for _ in range(30):
            made(torch.from_numpy(given["signal"]), torch.from_numpy(given["ids"]))
    return made.eval()


def write(folder) -> None:
    """A spec with its files."""
    (folder / "model.py").write_text(MODEL)
    torch.save(network().state_dict(), folder / "weights.pt")
    np.savez(folder / "samples.npz", **samples(80))
    (folder / "kdcompile.toml").write_text(SPEC)
