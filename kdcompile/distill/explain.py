"""`kdcompile distill --explain`: what a training would do, before anything is spent."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcompile.config.distill import Ramp
from kdcompile.config.spec import Spec
from kdcompile.core.files import scratch
from kdcompile.data.splits import load_splits
from kdcompile.distill.feature_maps import FeatureMap, feature_maps
from kdcompile.distill.phase import StageRun
from kdcompile.distill.preparation import lines as tried_lines
from kdcompile.distill.preparation import planned
from kdcompile.distill.schedule import StagePlan, stage_plans, stage_steps
from kdcompile.distill.train import Trainer
from kdcompile.distill.unlabelled import joins_training, uses_pool
from kdcompile.distill.views import PLAIN, View
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.tasks.task import task_of

UNTIMED = 0.0


def explain(
    spec: Spec, architecture: Mapping[str, Any], done: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Every stage of the training, as JSON values.

    One crop goes through both networks, so taps, recipes and crops that cannot be are refused
    here as they would be in the training.

    Args:
        spec: of the build.
        architecture: of the student.
        done: what a finished training tried for its rate and its recipe.

    Raises:
        KDError: what the trainer raises before its first step.
    """
    plans = stage_plans(spec.distill)
    steps: list[int | None] = [None] * len(plans)
    with scratch() as work:
        trainer = at_rest(spec, architecture, work)
        if spec.distill.minutes is None:
            photos = len(trainer.setting.photos)
            steps = [*stage_steps(plans, spec.distill, photos, 1, lambda _: UNTIMED)]
        found = []
        for number, (plan, length) in enumerate(zip(plans, steps, strict=True)):
            one = replace(plan, options=plan.options.model_copy(update={"batch": 1}))
            run = StageRun(trainer.setting, one, number, 1)
            found.append(_stage(plan, run, length))
            run.release()
        to_try = None
        if spec.distill.minutes is None:
            length = sum(steps_of for steps_of in steps if steps_of)
            splits = load_splits(spec.data, spec.folder)
            has_pool = uses_pool(spec) and not joins_training(spec)
            to_try = planned(spec, trainer, length, len(splits.val), has_pool)
    start = {"init": spec.student.init, "importance": spec.student.importance}
    return {
        "task": spec.task.kind,
        "student": start if spec.student.init == "inherit" else {"init": spec.student.init},
        "minutes": spec.distill.minutes,
        "stages": found,
        "to_try": to_try,
        "tried": dict(done) if done is not None else None,
        "metric": task_of(spec).metric.name,
    }


def at_rest(spec: Spec, architecture: Mapping[str, Any], work: Path) -> Trainer:
    """A trainer whose student has the weights of its architecture's seed alone.

    Raises:
        KDError: what the trainer raises before its first step.
    """
    teacher = load_teacher(spec)
    student = student_from_architecture(teacher, architecture, spec.folder)
    splits = load_splits(spec.data, spec.folder)
    return Trainer(spec, teacher, student, splits.train, splits.val, work)


def _stage(plan: StagePlan, run: StageRun, steps: int | None) -> dict[str, Any]:
    options = plan.options
    example = run.setting.example(options.crop)
    with run.setting.autocast():
        maps_t = feature_maps(run.setting.teacher, example)
        maps_s = feature_maps(run.setting.student, example)
    taps = [
        {
            "teacher": [tap.teacher, *_shape(maps_t[tap.teacher], tap.teacher_view)],
            "student": [tap.student, *_shape(maps_s[tap.student], tap.student_view)],
            "compared_at": tap.student_view.size,
        }
        for tap in run.taps
    ]
    adapters = {name: list(p.shape) for name, p in run.recipe.named_parameters()}
    weights = {name: _plain(run.recipe.weights[name]) for name in run.trainable.names}
    return {
        "name": plan.name,
        "steps": steps,
        "recipe": options.recipe,
        "blocks": plan.blocks,
        "batch": options.batch,
        "crop": options.crop,
        "views": options.views,
        "lr": options.lr,
        "execution": options.execution,
        "teacher_cache": "none: " + run.cache_note if run.cache_note else "recurring crops",
        "taps": taps,
        "adapters": adapters,
        "balance": options.balance,
        "weights": weights,
    }


def _shape(found: FeatureMap, view: View) -> tuple[int, ...]:
    """Channels and size, of tokens in their grid where that is how they are compared."""
    if view == PLAIN or found.size is None:
        return found.shape
    return found.channels, *found.size


def _plain(weight: float | Ramp) -> Any:
    return weight.model_dump() if isinstance(weight, Ramp) else weight


def lines(found: Mapping[str, Any]) -> list[str]:
    """The explanation as text."""
    start = " by ".join(str(value) for value in found["student"].values())
    text = [f"task     {found['task']}", f"student  starts: {start}"]
    text += tried_lines(found["to_try"], found["tried"], found["metric"])
    for stage in found["stages"]:
        steps = f"{stage['steps']} steps" if stage["steps"] else f"of {found['minutes']:g} minutes"
        text += [
            "",
            f"stage {stage['name']}: recipe {stage['recipe']}, {steps}, batch {stage['batch']} of "
            f"{stage['crop']}x{stage['crop']}, lr {stage['lr']:g}"
            + (", gradients stop at the taps" if stage["blocks"] else ""),
            f"  teacher outputs cached: {stage['teacher_cache']}",
        ]
        for tap in stage["taps"]:
            size = "x".join(map(str, tap["compared_at"] or ()))
            averaged = f", averaged to {size}" if size else ""
            text.append(f"  tap      {_map(tap['teacher'])} <- {_map(tap['student'])}{averaged}")
        for name, shape in stage["adapters"].items():
            text.append(f"  adapter  {name} {'x'.join(map(str, shape))}")
        balanced = " (times the balance of gradients)" if stage["balance"] == "gradient" else ""
        for name, weight in stage["weights"].items():
            shown = json.dumps(weight) if isinstance(weight, dict) else f"{weight:g}"
            text.append(f"  term     {name:<8} weight {shown}{balanced}")
    return text


def _map(tap: list[Any]) -> str:
    name, *shape = tap
    return f"{name} [{'x'.join(map(str, shape))}]"
