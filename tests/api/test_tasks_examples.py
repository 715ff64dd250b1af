"""The Python examples of docs/tasks.md: what they pass is planned as they say."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from small_boxes import MODEL, scene
from small_masks import scene as street
from small_masks import teacher

from kdcompile import api

TEXT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
EXAMPLES = re.findall(r"^```python\n(import kdcompile\n.*?)^```", TEXT, re.S | re.M)
RANDOM = np.random.default_rng(0)


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """The module that the examples take their networks and data from."""
    module = ModuleType("mine")
    space: dict = {}
    exec(MODEL, space)
    torch.manual_seed(0)
    module.detector = space["build"]()
    module.cells = [scene(RANDOM) for _ in range(48)]
    module.segmenter = teacher()
    module.streets = [street(RANDOM) for _ in range(40)]
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "form", "shape"),
    [("segmenter", "segmentation", "masks", [1, 3, 48, 64]),
     ("detector", "detection", "coco", [1, 3, 64, 64])],
)  # fmt: skip
def test_the_example_is_a_spec_that_plans(mine, monkeypatch, name, kind, form, shape):
    import kdcompile

    (text,) = (one for one in EXAMPLES if f"teacher={name}" in one)
    made = []

    def planned(**given):
        given.pop("out")
        made.append(api.planned(None, given).spec)
        return api.plan(**given)

    monkeypatch.setattr(kdcompile, "build", planned, raising=False)
    exec(compile(text.replace("print(built.verdict)", ""), "docs/tasks.md", "exec"), {})
    (spec,) = made
    assert (spec.task.kind, spec.data.format, spec.export.shape) == (kind, form, shape)
    assert spec.distill.recipe == "kd"
