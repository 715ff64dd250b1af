"""Stage `distill`: trained student weights and how they came about."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kdcompile.artifact import Artifact, Step, Store, write_json, write_text
from kdcompile.data.splits import load_splits
from kdcompile.distill.train import Trainer
from kdcompile.kernels import ran
from kdcompile.models.factory import load_teacher, load_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.targets import Target


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Train; `student.safetensors`, `architecture.json`, `metrics.jsonl`, `result.json`."""
    work = store.work(step.stage, step.key)

    def build(folder: Path) -> Mapping[str, Any]:
        spec = step.spec
        architecture = step.inputs["search"].json("architecture.json")
        teacher = load_teacher(spec)
        student = student_from_architecture(teacher, architecture, spec.folder)
        if spec.student.weights is not None:
            load_weights(student, spec.student.weights)
        splits = load_splits(spec.data, spec.folder)
        trainer = Trainer(spec, teacher, student, splits.train, splits.val, work)
        state = trainer.run()
        metadata = {"architecture": json.dumps(architecture)}
        save_file(state.best, folder / "student.safetensors", metadata=metadata)
        lines = "".join(json.dumps(row) + "\n" for row in state.metrics)
        write_text(folder / "metrics.jsonl", lines)
        write_json(folder / "architecture.json", architecture)
        result = {
            "val_mae": state.best_mae,
            "val_rmse": state.best_rmse,
            "best_step": state.best_step,
            "steps": state.step,
            "recipe": spec.distill.recipe,
            "taps": [[tap.teacher, tap.student] for tap in trainer.taps],
            "device": _device_name(trainer.device),
            "seconds": state.seconds,
            "n_train": len(splits.train),
            "losses": ran(),
            "dropped": splits.dropped,
        }
        write_json(folder / "result.json", result)
        return result

    artifact = store.make(step.stage, step.key, build)
    store.drop_work(step.stage, step.key)
    return artifact


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
