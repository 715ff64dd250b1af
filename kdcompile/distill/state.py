"""What a training knows of itself, and its checkpoint."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompile.artifact import replacing
from kdcompile.errors import KDError

CHECKPOINT = "checkpoint.pt"
Row = dict[str, Any]


@dataclass
class State:
    """Progress, the best validated weights, and the curve.

    step: finished steps; value: the best validation metric; best: the weights that had it, by
    name; metrics: the rows of `metrics.jsonl`; seconds: spent in training, validation included;
    stages: how each one ran (`StageRun.describe`), by name.
    """

    step: int = 0
    value: float = float("nan")
    scores: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def save_checkpoint(work: Path, state: State, parts: Mapping[str, Any]) -> None:
    """Write the whole of it, or leave the one before."""
    with replacing(work / CHECKPOINT) as temporary:
        torch.save({"state": vars(state), **parts}, temporary)


def load_checkpoint(work: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, or None where there is none.

    Raises:
        KDError: `checkpoint-damaged`.
    """
    path = work / CHECKPOINT
    if not path.is_file():
        return None
    try:
        kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise KDError(
            "checkpoint-damaged",
            f"the checkpoint cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            fix=f"delete {path.name}; the training starts again",
        ) from error
    return kept
