"""Recipes on class logits and pooled features: made, fed, and trained for a second."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.config.load import load_spec
from kdcompile.data.photo import Photo
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.taps import Tap
from kdcompile.distill.train import Trainer

SPEC = """
seed = 1
[task]
kind = "classification"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "npz"
root = "."
mean = [0.5]
std = [0.5]
[distill]
batch = 6
crop = 8
scale = [1.0, 1.0]
lr = 1e-2
evaluations = 2
taps = [["1", "1"]]
[export]
shape = [1, 1, 8, 8]
"""


def recipe(name, kind="classification", taps=(), targets=None, **options):
    """In float64, for a task whose labels are `targets`."""
    torch.manual_seed(0)
    options = Distill(**options)
    objective = OBJECTIVES[kind](options, torch.zeros(1) if targets is None else targets)
    return find_recipe(name)(
        [Tap("a", "a", *widths) for widths in taps], options, objective
    ).double()


def logits(rows, classes, seed=0):
    """Student's and teacher's [rows, classes] and labels, float64."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(rows, classes, generator=random) for _ in range(2))
    labels = torch.randint(classes, (rows,), generator=random)
    return student.double(), teacher.double(), labels


def inputs(student, teacher, labels, student_maps=(), teacher_maps=()):
    return LossInputs(student, labels, teacher, list(student_maps), list(teacher_maps))


def in_type(given, kind):
    """The same inputs, all that is floating in another type."""

    def cast(value):
        return value.to(kind) if value is not None and value.is_floating_point() else value

    return replace(
        given,
        student=cast(given.student),
        teacher=cast(given.teacher),
        target=cast(given.target),
        student_features=[cast(m) for m in given.student_features],
        teacher_features=[cast(m) for m in given.teacher_features],
    )


def network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 3),
    )  # fmt: skip


def photos(number, seed, classes=3):
    """Noise, class by class brighter."""
    random = np.random.default_rng(seed)
    return [
        Photo(
            str(i),
            array=(random.integers(0, 60, (8, 8, 1)) + 60 * (i % classes)).astype(np.uint8),
            label=float(i % classes),
        )
        for i in range(number)
    ]


def trainer(folder, *sets, classes=3):
    """A training of a student of 4 channels by a teacher of 8; photos have `classes` of 3."""
    (folder / "kdcompile.toml").write_text(SPEC)
    spec = load_spec(folder / "kdcompile.toml", sets)
    (folder / "work").mkdir(exist_ok=True)
    networks = (network(8, 0), network(4, 1))
    return Trainer(spec, *networks, photos(12, 0, classes), photos(6, 1), folder / "work")
