"""Stage `teacher`: is the teacher worth learning from?"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcompile.artifact import Artifact, Step, Store, write_json
from kdcompile.data.prepare import Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.distill.counting import constant_mae, mae_rmse
from kdcompile.distill.evaluate import predict
from kdcompile.errors import KDError
from kdcompile.models.factory import load_teacher
from kdcompile.targets import Target

log = logging.getLogger("kdcompile")


def run(step: Step, store: Store, target: Target) -> Artifact:
    """The teacher's validation metrics; `teacher.json`.

    Raises:
        KDError: `teacher-useless`, when a constant predictor does as well; `teacher-output`.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        spec = step.spec
        splits = load_splits(spec.data, spec.folder)
        preprocess = Preprocess.of(spec.data, spec.export)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_teacher(spec).to(device)
        _check_output(model, spec.export.profile[1], device)
        log.info("teacher: %d validation photos", len(splits.val))
        predicted = predict(model, splits.val, preprocess, device)
        if not np.isfinite(predicted).all():
            raise KDError(
                "teacher-output",
                "the teacher's output is not finite on the validation photos",
                where=spec.teacher.model,
                fix="check data.mean and data.std against the teacher's training",
            )
        true = [float(photo.count) for photo in splits.val]
        mae, rmse = mae_rmse(predicted, true)
        constant = constant_mae([float(p.count) for p in splits.train], true)
        if mae >= constant:
            raise KDError(
                "teacher-useless",
                f"validation MAE {mae:.4g}, a constant predictor has {constant:.4g}",
                where=str(spec.teacher.weights),
                fix="train the teacher further, or check data.mean, data.std and the annotations",
            )
        result = {
            "val_mae": mae,
            "val_rmse": rmse,
            "constant_mae": constant,
            "val_abs_error_std": float(np.abs(np.subtract(predicted, true)).std()),
            "n_val": len(true),
            "n_train": len(splits.train),
            "n_test": len(splits.test),
            "params": sum(p.numel() for p in model.parameters()),
            "dropped": splits.dropped,
        }
        write_json(folder / "teacher.json", result)
        return result

    return store.make(step.stage, step.key, build)


def _check_output(model: torch.nn.Module, shape: list[int], device: torch.device) -> None:
    try:
        with torch.no_grad():
            output = model(torch.zeros(*shape, device=device))
    except Exception as error:  # whatever the user's forward raises
        raise KDError(
            "teacher-forward",
            f"the teacher fails on an input of {shape}: {str(error).strip().splitlines()[0]}",
            where="[teacher] model and [export] shape",
            fix="give export.shape as the network takes it, [1, C, H, W]",
        ) from error
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if not isinstance(output, torch.Tensor) or output.ndim != 4 or output.shape[1] != 1:
        raise KDError(
            "teacher-output",
            f"the teacher gives {found}; counting needs a density map [N, 1, h, w]",
            where="[teacher] model",
            fix="return the density map alone from forward()",
        )
