"""Losses computed by released code, to compare the recipes with: tests/fixtures/recipes/.

    for name, case in load("at")["cases"].items():
        if case["right"]:
            loss = ...(case["inputs"]["student"], case["inputs"]["teacher"], **case["hyper"])
            assert loss.item() == pytest.approx(case["value"], rel=1e-10)

`load(method)` gives `method`, `paper`, `made_with`, `differs` and `cases`, in the file's order.
A case has:

    inputs      tensors by name: those that the cases share and the case's own
    hyper       hyper-parameters, all of them
    value       the loss, a float
    values      further results by name: tensors, floats; may be empty
    gradients   d value / d input by name of the input; may be empty
    right       False: torchdistill (or the authors' code) is wrong here; do not follow
    call        what was called, and the formula in words
    made_with   "torchdistill", "released code" (the authors') or "formula"

Tensors are float64, int64 or bool, fresh with each call. `differs` lists where the released code is
wrong or odd: `what`, `theirs`, `expected`. A number there may be the string nan or inf, which
float() reads. The README.md beside the files has the rest.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "fixtures" / "recipes"
METHODS = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(method: str) -> dict[str, Any]:
    """The fixture of `method`, one of `METHODS`; see above."""
    fixture: dict[str, Any] = json.loads((FOLDER / f"{method}.json").read_text())
    shared = fixture.pop("inputs")
    for case in fixture["cases"].values():
        case["inputs"] = _tensors(shared | case.get("inputs", {}))
        case["values"] = _tensors(case.get("values", {}))
        case["gradients"] = _tensors(case.get("gradients", {}))
    return fixture


def _tensors(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.from_numpy(np.array(value)) if isinstance(value, list) else value
        for name, value in values.items()
    }
