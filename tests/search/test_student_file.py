"""A student from a file, whose metadata a user may have written or changed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.search.given_student import given_architecture

WIDTHS = {"out_channels": 4}
GOOD = {"family": "shrink", "seed": 0, "modules": {"0": WIDTHS, "1": {"in_channels": 4}}}


def _architecture(tmp_path, text):
    """What is read of a student file with that text for its architecture."""
    path = tmp_path / "student.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"architecture": text})
    spec = SimpleNamespace(
        student=SimpleNamespace(init="file", family="shrink", weights=path), folder=tmp_path
    )
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1))
    return given_architecture(spec, SimpleNamespace(module=module))


def test_what_distill_writes_is_read(tmp_path):
    assert _architecture(tmp_path, json.dumps(GOOD)) == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps(GOOD | {"modules": {"features.0": WIDTHS}}),
        json.dumps(GOOD | {"modules": {"0": {"out_chanels": 4}}}),
        json.dumps(GOOD | {"modules": {"0": {"out_channels": "four"}}}),
        json.dumps(GOOD | {"seed": "none"}),
        json.dumps(GOOD | {"dropped": ["7"]}),
    ],
)
def test_what_this_teacher_does_not_have_is_refused(tmp_path, text):
    with pytest.raises(KDError) as error:
        _architecture(tmp_path, text)
    assert error.value.code == "weights-architecture"
    assert "for this teacher" in error.value.fix
