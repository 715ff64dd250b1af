"""Range test of the learning rate: short trainings from the start at rising rates.

A student that starts from trained weights can lose them at a rate that suits random ones. Each rate
is tried for a few steps from the same start and judged on validation photos; the first one that
spoils the start ends the test. Of the rates that are as good as the best one beyond what the noise
hides, the largest is taken, as short trainings favour small ones (Wu et al., 2018).
"""

import logging
from typing import Any

from kdcompile.config.spec import Spec
from kdcompile.distill.going_back import is_spoilt
from kdcompile.distill.short_run import VALIDATIONS, Cost, Outcome, ShortRuns
from kdcompile.distill.shortened import is_tied, paired_increase
from kdcompile.tasks.task import task_of

log = logging.getLogger("kdcompile")
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SHARE = 0.1  # of the training's cost, at most
LEAST_STEPS, MOST_STEPS = 8, 24  # of one rate


def steps_of(length: int, batch: int, cost: Cost, needs_teacher: bool) -> int:
    """Steps at one rate, 0 where the training is too short for a test.

    Args:
        length: steps of the training.
        batch: crops of a step.
        cost: of the networks.
        needs_teacher: of the recipe.
    """
    step = cost.of_step(batch, needs_teacher)
    room = SHARE * length * step / len(RATES) - VALIDATIONS * cost.validation
    steps = min(MOST_STEPS, int(room / step))
    return steps if steps >= LEAST_STEPS else 0


def try_rates(runs: ShortRuns, spec: Spec, steps: int) -> dict[str, Any]:
    """The rate to train at, and what each one gave.

    Args:
        runs: from the student's start.
        spec: with the recipe; its rate is what is taken where the smallest spoils the start.
        steps: at one rate.

    Returns:
        JSON values: lr, steps, start, spoils_all, and `rates`, rows of lr, value, spoilt, why.
    """
    task = task_of(spec)
    true = [task.truth(photo) for photo in runs.judged]
    rows: list[dict[str, Any]] = []
    good: list[tuple[float, Outcome]] = []
    for rate in RATES:
        options = spec.distill.model_copy(update={"lr": rate})
        own = spec.model_copy(update={"distill": options}).at(spec.path)
        found = runs.run(f"rate-{rate:g}", own, steps)
        spoilt = bool(found.problem) or is_spoilt(
            task, found.initial, found.predicted, true, spec.seed
        )
        rows.append({"lr": rate, "value": found.value, "spoilt": spoilt, "why": found.problem})
        log.info(
            "distill: range test, rate %g: %s %.4g after %d steps from %.4g%s",
            rate, task.metric.name, found.value, steps, found.start, ", spoilt" if spoilt else "",
        )  # fmt: skip
        if spoilt:
            break
        good.append((rate, found))
    lr = largest_of_the_best(spec, good, true) if good else RATES[0]
    log.info("distill: the range test sets distill.lr = %g", lr)
    start = float("nan") if not good else good[0][1].start
    return {"lr": lr, "steps": steps, "start": start, "spoils_all": not good, "rates": rows}


def largest_of_the_best(spec: Spec, good: list[tuple[float, Outcome]], true: list[float]) -> float:
    """The largest rate that is not worse than the best one beyond noise; rates rise."""
    task = task_of(spec)
    errors = [task.errors(found.predicted, true) for _, found in good]
    best = min(range(len(good)), key=lambda n: task.metric.worse_by(good[n][1].value, 0.0))
    for number in reversed(range(len(good))):
        worse, noise = paired_increase(task, errors[best], errors[number], spec.seed)
        if is_tied(worse, noise):
            return good[number][0]
    return good[best][0]


def finding(name: str, found: dict[str, Any] | None) -> list[str]:
    """What is told of a test that no rate passed, in words; `name` is that of the metric."""
    if found is None or not found["spoils_all"]:
        return []
    row = found["rates"][0]
    return [
        f"the range test found no learning rate that leaves this start as good as it is: at "
        f"{row['lr']:g} validation {name} is {row['value']:.4g} after {found['steps']} steps"
    ]
