"""What is settled before a training: its rate by the range test, its recipe by the pilot."""

import logging
from dataclasses import replace
from typing import Any

from kdcompile.config.spec import Spec
from kdcompile.distill import pilot, range_test
from kdcompile.distill.registry import AUTO, any_recipe, find_recipe
from kdcompile.distill.short_run import Cost, ShortRuns
from kdcompile.tasks.task import task_of

log = logging.getLogger("kdcompile")


def asks_auto(spec: Spec) -> bool:
    """Whether a stage leaves its recipe to the pilot."""
    return any_recipe(spec, lambda kind: kind.about.name == AUTO)


def settle(spec: Spec, runs: ShortRuns, has_start: bool) -> tuple[Spec, dict[str, Any]]:
    """The spec as it is trained, and what was tried for it.

    Args:
        spec: as the user gave it.
        runs: short trainings from the student's start.
        has_start: whether that holds something: it was inherited, or is of a file.

    Returns:
        The spec, and JSON values: `range_test` and `pilot`, None where there was none.
    """
    tried: dict[str, Any] = {"range_test": None, "pilot": None}
    is_auto, options = asks_auto(spec), spec.distill
    tests = has_start and options.range_test and not _names_every_rate(spec)
    if options.steps == 0 or not (is_auto or tests):
        return (pilot.base_spec(spec) if is_auto else spec), tried
    base = pilot.base_spec(spec) if is_auto else spec
    trainer = runs.trainer("length", base)
    length, cost = trainer.planned_steps(), runs.cost(trainer, base)
    if tests:
        kind = find_recipe(base.distill.recipe)
        steps = range_test.steps_of(length, options.batch, cost, kind.needs_teacher)
        if steps:
            tried["range_test"] = found = range_test.try_rates(runs, base, steps)
            rate = {"lr": found["lr"]}
            spec, base = (_with(each, rate) for each in (spec, base))
        else:
            log.info("distill: %d steps are too few for a range test; distill.lr is %g",
                     length, options.lr)  # fmt: skip
    if not is_auto:
        return spec, tried
    has_labels = task_of(spec).has_label_loss(trainer.output_shape())
    spec, tried["pilot"] = _piloted(spec, base, runs, length, cost, has_labels)
    return spec, tried


def _piloted(
    spec: Spec, base: Spec, runs: ShortRuns, length: int, cost: Cost, has_labels: bool
) -> tuple[Spec, dict[str, Any]]:
    """The spec with the recipe of the pilot, and what was tried."""
    task = task_of(spec)
    arms = pilot.arms_of(spec, bool(runs.pool), has_labels)
    steps = pilot.steps_of(arms, length, spec.distill.batch, cost)
    if not steps:
        name = base.distill.recipe
        why = f"{length} steps are too few for a pilot of {len(arms)} arms; recipe {name} is taken"
        log.info("distill: %s", why)
        return base, {"chosen": name, "metric": task.metric.name, "arms": [], "why": why}
    each = [(arm, runs if arm.pool else replace(runs, pool=())) for arm in arms]
    chosen, record = pilot.choose(each, spec, steps)
    if task.like == "generic":
        record["labels_are_answers"] = True
    return chosen.spec(spec), record


def _names_every_rate(spec: Spec) -> bool:
    stages = spec.distill.stages
    return bool(stages) and all(stage.lr is not None for stage in stages)


def _with(spec: Spec, change: dict[str, Any]) -> Spec:
    options = spec.distill.model_copy(update=change)
    return spec.model_copy(update={"distill": options}).at(spec.path)


def preparation_findings(metric: str, tried: dict[str, Any]) -> list[str]:
    """What is to be told of both, in words; `metric` is the task's."""
    return [*range_test.finding(metric, tried["range_test"]), *pilot.finding(tried["pilot"])]
