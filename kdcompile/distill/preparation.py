"""Settings that short trainings settle: the rate by the range test, the recipe by the pilot."""

import logging
from dataclasses import replace
from typing import Any

from kdcompile.config.deploy import Quantize
from kdcompile.config.spec import Spec
from kdcompile.distill import pilot, range_test
from kdcompile.distill.registry import AUTO, any_recipe, find_recipe
from kdcompile.distill.short_run import Cost, ShortRuns, cost_of
from kdcompile.distill.train import Trainer
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
    tests = has_start and tests_rates(spec)
    if options.steps == 0 or not (is_auto or tests):
        return (pilot.base_spec(spec) if is_auto else spec), tried
    base = pilot.base_spec(spec) if is_auto else spec
    whole = base.model_copy(update={"quantize": Quantize()}).at(base.path)  # in float, as they are
    trainer = runs.trainer("length", whole)
    length, cost = trainer.planned_steps(), cost_of(trainer, base, len(runs.judged))
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


def tests_rates(spec: Spec) -> bool:
    """Whether the rate is left to a range test, by a stage at least."""
    stages = spec.distill.stages
    return spec.distill.range_test and not (stages and all(s.lr is not None for s in stages))


def planned(spec: Spec, trainer: Trainer, length: int, photos: int, pool: bool) -> dict[str, Any]:
    """What `settle` would try, as JSON values: steps at each rate, and of each arm.

    Args:
        spec: as the user gave it.
        trainer: at rest.
        length: steps of the training.
        photos: of validation.
        pool: whether there are photos without labels.
    """
    found: dict[str, Any] = {"range_test": None, "pilot": None}
    is_auto, batch = asks_auto(spec), spec.distill.batch
    base = pilot.base_spec(spec) if is_auto else spec
    cost = cost_of(trainer, base, photos)
    if spec.student.init != "random" and tests_rates(spec):
        needs = find_recipe(base.distill.recipe).needs_teacher
        steps = range_test.steps_of(length, batch, cost, needs)
        found["range_test"] = dict.fromkeys((f"{r:g}" for r in range_test.RATES), steps)
    if is_auto:
        arms = pilot.arms_of(spec, pool, task_of(spec).has_label_loss(trainer.output_shape()))
        each = pilot.steps_of(arms, length, batch, cost) or [0] * len(arms)
        found["pilot"] = {arm.name: steps for arm, steps in zip(arms, each, strict=True)}
    return found


def lines(planned: dict[str, Any] | None, done: dict[str, Any] | None, metric: str) -> list[str]:
    """The explanation of both as text: what would be tried, or what the finished training tried.

    Args:
        planned: of `planned`; None where the length is not known before it is timed.
        done: `range_test` and `pilot` of a finished training's result.
        metric: the task's.
    """
    text = []
    tested, chosen = ((done or {}).get(name) for name in ("range_test", "pilot"))
    if tested:
        text += [f"rate     {row['lr']:g}: {metric} {row['value']:.4g}" for row in tested["rates"]]
        text.append(f"rate     {tested['lr']:g} is taken")
    elif planned and planned["range_test"]:
        text.append(f"rate     range test: {_steps_in_words(planned['range_test'])}")
    if chosen:
        text += [f"pilot    {pilot.row_in_words(row, metric)}" for row in chosen["arms"]]
        text.append(f"pilot    {chosen['chosen']} is taken")
        text += [f"pilot    {told}" for told in pilot.finding(chosen)]
    elif planned and planned["pilot"]:
        text.append(f"pilot    first round: {_steps_in_words(planned['pilot'])}")
    return text


def _steps_in_words(steps: dict[str, int]) -> str:
    if not any(steps.values()):
        return "the training is too short for it"
    return ", ".join(f"{name} {number} steps" for name, number in steps.items())


def _with(spec: Spec, change: dict[str, Any]) -> Spec:
    options = spec.distill.model_copy(update=change)
    return spec.model_copy(update={"distill": options}).at(spec.path)


def preparation_findings(metric: str, tried: dict[str, Any]) -> list[str]:
    """What is to be told of both, in words; `metric` is the task's."""
    return [*range_test.finding(metric, tried["range_test"]), *pilot.finding(tried["pilot"])]
