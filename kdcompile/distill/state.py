"""State of a training, its checkpoint, and its progress on a terminal."""

import io
import json
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompile.core.files import replacing
from kdcompile.core.progress import Metric, Progress, emit
from kdcompile.kernels import ran
from kdcompile.tasks.task import Floats

log = logging.getLogger("kdcompile")
CHECKPOINT, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
PREDICTED = ("initial", "predicted")  # of a state, arrays
Row = dict[str, Any]


@dataclass
class State:
    """Progress, the best validated weights, and the curve.

    step: finished steps; value: the best validation metric; best: the weights that had it, by
    name; metrics: the rows of `metrics.jsonl`; seconds: spent in training, validation included;
    stages: how each one ran (`StageRun.describe`), by name; losses: which implementation of each
    kernel ran, also before an interruption; initial, predicted: of the validation photos, float64
    [N] or rows [N, W], before the first step and by the best weights; returns: each time that the
    training went back to the best weights (`distill.going_back`).
    """

    step: int = 0
    value: float = float("nan")
    scores: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)
    initial: Floats = field(default_factory=lambda: np.zeros(0))
    predicted: Floats = field(default_factory=lambda: np.zeros(0))
    returns: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(work: Path, state: State, parts: Mapping[str, Any]) -> None:
    """Write the whole of it; the one before is kept beside it, or stays where this fails."""
    state.losses |= ran()
    content = io.BytesIO()  # torch's own writing hides why it failed
    rows = {name: torch.from_numpy(getattr(state, name)) for name in PREDICTED}
    torch.save({"state": vars(state) | rows, **parts}, content)
    path = work / CHECKPOINT
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        if path.is_file():
            path.replace(work / BEFORE)


def load_checkpoint(work: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote last, or before that where the last is damaged; else None."""
    damaged = False
    for name in (CHECKPOINT, BEFORE):
        path = work / name
        if path.is_file():
            try:
                return _read(path, device)
            except Exception as error:  # zipfile's, pickle's and torch's, by what is damaged
                reason = (str(error) or type(error).__name__).splitlines()[0]
                log.warning("distill: %s is damaged: %s", name, reason)
                damaged = True
    if damaged:
        log.warning("distill: no checkpoint is whole; the training starts again")
    return None


def read_lengths(path: Path) -> list[int] | None:
    """The planned steps of each stage, or None where the file is absent or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) and all(isinstance(n, int) for n in found) else None


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()  # torch does not look at the sums that it writes
    if bad is not None:
        raise ValueError(f"the sum of {bad} is wrong")
    kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    for name in PREDICTED:  # lists, before there were arrays
        rows = torch.as_tensor(kept["state"][name], dtype=torch.float64)
        kept["state"][name] = rows.cpu().numpy()
    return kept


class TrainingProgress(Progress):
    """Shows rows of metrics; each validation has a line of its own where there is no terminal."""

    def __init__(
        self,
        total: int,
        done: int,
        metric: str,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show `metric`, as `val_METRIC` of the rows; nothing at all when `quiet`."""
        super().__init__("distill", total, "steps", done, quiet, clock)
        self._name, self._metric = metric, ""

    def show_row(self, done: int, row: Mapping[str, Any]) -> None:
        """A row of metrics after `done` steps."""
        validated = row.get(f"val_{self._name}")
        if validated is not None:
            self._metric = f", val {self._name} {validated:.4g}"
        note = f"stage {row['stage']}, loss {row['loss']:.4g}{self._metric}"
        self.show(done, note, important=validated is not None)
        if self._silent:
            return
        terms = {f"loss_{name}": value for name, value in row.get("terms", {}).items()}
        for name, value in {**row, **terms}.items():
            if name.startswith(("loss", "val_")):
                emit(Metric("distill", done, name, float(value)))
