"""What the distillation benchmark trains: its arms, their schedule, their data and their start."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.core.files import write_json
from kdcompile.core.store import digest
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.splits import Splits, evenly, load_splits
from kdcompile.distill.start import kept_start
from kdcompile.distill.training_context import training_device
from kdcompile.models.factory import load_teacher, load_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures
from kdcompile.targets import load

# of every arm, before --set
SETS = ("distill.batch=16", "distill.crop=512", "distill.evaluations=24")
# `share` is of the arm's time; `crop` and `batch` are multiples of those of [distill]
POLISH = {"name": "polish", "crop": 1.5, "batch": 0.5, "scale": (0.9, 1.1), "lr": 1e-4}
SCHEDULE: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "skt": (
        {"name": "blocks", "share": 0.1, "blocks": True, "lr": 5e-4},
        {"name": "whole", "share": 0.65, "lr": 1e-3},
        {"share": 0.25, **POLISH},
    ),
    "none": ({"name": "whole", "share": 0.75, "lr": 1e-3}, {"share": 0.25, **POLISH}),
}
ABLATION_EVALUATIONS = 10
TERMS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "none": ("none", {}),
    "kd": ("kd", {}),
    "intra": ("skt", {"inter": 0.0}),
    "inter": ("skt", {"intra": 0.0}),
    "skt": ("skt", {}),
    "unlabelled": ("kd", {"hard": 0.0, "count": 0.0}),  # the teacher's output alone
}
STARTS = ("inherit", "random")
CELLS = 8  # a crop's side is rounded to so many pixels, the stride of the networks
TRACED = 128  # a side of the image that the widths are found on


@dataclass(frozen=True)
class Arm:
    """One training: from which start, and with which `[distill]`.

    seconds: the time that its stages share, where its steps follow from it; None where `distill`
    has the steps. curve: its validated weights are kept, to be judged on the test split at the end.
    """

    name: str
    seed: int
    start: str
    distill: Distill
    seconds: float | None = None
    curve: bool = False

    @property
    def slug(self) -> str:
        """The name of its work folder."""
        return f"{self.name.replace(' ', '-')}-{self.seed}"


def progressive(base: Distill, recipe: str) -> Distill:
    """`[distill]` with the progressive schedule of a recipe, `skt` or `none`."""
    stages = []
    for row in SCHEDULE[recipe]:
        stage = dict(row)
        if "crop" in stage:
            stage["crop"] = CELLS * round(base.crop * stage["crop"] / CELLS)
        if "batch" in stage:
            stage["batch"] = max(1, round(base.batch * stage["batch"]))
        stages.append(stage)
    return changed(base, steps=None, epochs=None, minutes=None, recipe=recipe, stages=stages)


def changed(base: Distill, **changes: Any) -> Distill:
    """`[distill]` with other values, checked."""
    return Distill.model_validate(base.model_dump() | changes)


def with_steps(options: Distill, lengths: Sequence[int]) -> Distill:
    """The same stages with so many steps each instead of shares."""
    pairs = zip(options.stages, lengths, strict=True)
    stages = [stage.model_dump() | {"share": None, "steps": steps} for stage, steps in pairs]
    return changed(options, stages=stages)


def ablation(
    base: Distill,
    seed: int,
    steps: int,
    starts: Sequence[str] = STARTS,
    terms: Sequence[str] = tuple(TERMS),
    seconds: float | None = None,
) -> list[Arm]:
    """The arms of the ablation: each start with each set of terms, one stage each.

    All for so many steps, and then, where `seconds` is given, all for as long.
    """
    found = []
    for limit in (None, *([] if seconds is None else [seconds])):
        for start, name in itertools.product(starts, terms):
            recipe, weights = TERMS[name]
            stages = [] if limit is None else [{"name": "whole", "share": 1.0}]
            options = changed(
                base,
                recipe=recipe,
                weights=weights,
                evaluations=ABLATION_EVALUATIONS,
                epochs=None,
                minutes=None,
                steps=steps if limit is None else None,
                stages=stages,
            )
            label = f"{start} {name}" if limit is None else f"{start} {name}, {limit:g} s"
            found.append(Arm(label, seed, start, options, seconds=limit))
    return found


@dataclass(frozen=True)
class Source:
    """The spec, its photos, and the students as they start.

    Args:
        spec_path: of the spec file.
        sets: `key=value` overrides.
        limit: the most photos of each split.
        work: where starts are kept.
    """

    spec_path: Path
    sets: tuple[str, ...]
    limit: int | None
    work: Path

    def spec(self, seed: int) -> Spec:
        """The spec of a seed."""
        return load_spec(self.spec_path, [*SETS, *self.sets, f"seed={seed}"])

    @cached_property
    def splits(self) -> Splits:
        """Photos by split; those that are judged lie decoded in memory."""
        spec = self.spec(0)
        whole = load_splits(spec.data, spec.folder)
        channels = spec.export.profile[1][1]
        train, val, test = (evenly(s, self.limit) for s in (whole.train, whole.val, whole.test))
        return replace(whole, train=train, val=_held(val, channels), test=_held(test, channels))

    def teacher(self) -> nn.Module:
        """The teacher, float32, in host memory."""
        return load_teacher(self.spec(0))

    def architecture(self, seed: int) -> dict[str, Any]:
        """The student's widths, as `kdcompile search` finds them for the spec's width."""
        spec = self.spec(seed)
        width = spec.student.budget.width
        if width is None:
            raise SystemExit("the spec must fix student.budget.width")
        shape = spec.export.profile[1]
        small = [*shape[:2], *(min(side, TRACED) for side in shape[2:])]
        tile = load(spec.target).channel_tile
        return architectures(self.teacher(), small, tile, seed, [width])[0]

    def student(self, seed: int, start: str) -> nn.Module:
        """The student before training, made once and then read by every arm that starts there."""
        spec, architecture = self.spec(seed), self.architecture(seed)
        teacher = self.teacher()
        student = student_from_architecture(teacher, architecture, spec.folder)
        seen = [
            spec.student.model_dump(mode="json"),
            spec.distill.model_dump(mode="json"),
            self.limit,
        ]
        path = self.work / "starts" / f"{start}-{seed}-{digest(seen)[:8]}.safetensors"
        if path.is_file():
            load_weights(student, path)
            return student
        own = spec.student.model_copy(update={"init": start})
        spec = spec.model_copy(update={"student": own})
        path.parent.mkdir(parents=True, exist_ok=True)
        store = ImageStore(self.splits.train, spec.export.profile[1][1], training_device())
        kept_start(path, spec, teacher, student, architecture, store)
        return student


def _held(photos: Sequence[Photo], channels: int) -> list[Photo]:
    """Photos that need not be decoded each time that a student is validated."""
    return [replace(photo, array=photo.pixels(channels), path=None) for photo in photos]


def card() -> str:
    """The GPU, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from kdcompile.latency.environment import fingerprint

    found = fingerprint()
    return f"{found['cpu']}, {found['usable_cores']} cores"


def claim(folder: Path, arm: Arm, source: Source) -> None:
    """Take a work folder for an arm, or go on in the one that it was begun in."""
    options = arm.distill.model_dump(mode="json")
    own = {
        "distill": options, "start": arm.start, "seconds": arm.seconds, "limit": source.limit,
        "card": card(),
    }  # fmt: skip
    path = folder / "arm.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, own)
    elif json.loads(path.read_text()) != own:
        raise SystemExit(f"{folder} was begun with other options or on another card; delete it")
