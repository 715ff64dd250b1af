"""Every recipe on a task of a second: the spec that meets its needs, and the training at rest."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny_training import SPEC, photos
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.train import Trainer
from kdcompile.models.factory import write_weights

CLASSES = 3
CODE = """
from torch import nn


def network(width, outputs, dense):
    body = [
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
    ]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs)]
    return nn.Sequential(*body, *([nn.Conv2d(width, 1, 1)] if dense else pooled))


def counter():
    return network(8, 1, True)


def small_counter():
    return network(4, 1, True)


def classifier():
    return network(8, 3, False)


def small_classifier():
    return network(4, 3, False)


def wide_classifier():
    return network(4, 4, False)
"""


def kind_of(name):
    """The task that a recipe, or several joined by a plus sign, is tried on."""
    tasks = find_recipe(name).tasks
    return "counting" if not tasks or "counting" in tasks else tasks[0]


def trainer(name, folder, work="work", *, steps=6, batch=4, **sets):
    """A training of the recipe that has not begun; the same for the same arguments."""
    kind, recipe = kind_of(name), find_recipe(name)
    teacher = "counter" if kind == "counting" else "classifier"
    student = f"small_{teacher}"
    if "own-student" in recipe.needs:
        student = "wide_classifier"
    files = {code: _weights(folder, code) for code in (teacher, student)}
    further = f'{{ model = "model.py:{teacher}", weights = "{_weights(folder, teacher, 5)}" }}'
    asked = {
        "task.kind": f'"{kind}"', "teacher.model": f'"model.py:{teacher}"',
        "teacher.weights": f'"{files[teacher]}"', "student.family": f'"model.py:{student}"',
        "student.init": '"file"', "student.weights": f'"{files[student]}"',
        "distill.recipe": f'"{name}"', "distill.steps": steps, "distill.batch": batch,
        "distill.taps": '[["2", "2"], ["5", "5"]]',
        "teachers": f"[{further}]", **sets,
    }  # fmt: skip
    (folder / "kdcompile.toml").write_text(SPEC)
    spec = load_spec(folder / "kdcompile.toml", [f"{k}={v}" for k, v in asked.items()])
    networks = [_network(folder, code, seed) for code, seed in ((teacher, 0), (student, 1))]
    made = photos if kind == "counting" else classes
    train, val = (made(count, count) for count in (12, 6))
    (folder / work).mkdir(exist_ok=True)
    return Trainer(spec, *networks, train, val, folder / work)


def classes(number, seed=0):
    """Photos of the counting task with classes, which they do not show."""
    made = enumerate(photos(number, seed))
    return [replace(photo, label=float(i % CLASSES)) for i, photo in made]


def _network(folder, code, seed) -> nn.Module:
    (folder / "model.py").write_text(CODE)
    scope: dict = {}
    exec(CODE, scope)
    torch.manual_seed(seed)
    return scope[code]()


def _weights(folder, code, seed=0) -> Path:
    path = folder / f"{code}-{seed}.safetensors"
    write_weights(path, _network(folder, code, seed).state_dict())
    return path
