"""Inheriting on real scans: the untrained student of the digits example counts already."""

from pathlib import Path

import numpy as np
import torch

from kdcompile.core.user_code import load_factory
from kdcompile.distill.inherit import inherit
from kdcompile.models.factory import build_model, load_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


def _images(photos):
    pixels = np.stack([photo.array for photo in photos]).transpose(0, 3, 1, 2)
    return (torch.from_numpy(pixels).float() / 255 - 0.09) / 0.155


@torch.no_grad()
def _mae(model, photos):
    counts = model.eval()(_images(photos)).sum((1, 2, 3)).numpy()
    return float(np.abs(counts - [photo.count for photo in photos]).mean())


def test_the_untrained_student_counts_digits():
    canvases = load_factory("canvases.py:photos", FOLDER)
    teacher = build_model("model.py:build", FOLDER)
    load_weights(teacher, FOLDER / "teacher.safetensors")
    teacher = teacher.float().eval()
    architecture = architectures(teacher, [1, 1, 64, 64], 16, 0, [0.25])[0]
    student = student_from_architecture(teacher, architecture, FOLDER)
    val, crops = canvases(FOLDER, "val:60"), _images(canvases(FOLDER, "train:16")).split(8)
    random = _mae(student, val)
    report = inherit(teacher, student, architecture, crops)
    assert _mae(teacher, val) < 0.2
    assert _mae(student, val) < 0.4
    assert random > 2  # the median count of the canvases errs by less than 3
    assert all(layer["relative_error"] < 0.6 for layer in report["layers"])
