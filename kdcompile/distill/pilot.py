"""The pilot of `distill.recipe = "auto"`: short trainings choose the recipe on validation images.

All arms start from one student, see the same crops, and have steps of equal cost, counted in
multiply-adds, so that the choice follows from spec and seed. The better half goes on to a round
that is twice as long (successive halving). What is no worse than the best beyond noise and costs
less is taken.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcompile.config.spec import Spec
from kdcompile.distill.objective import objective_of
from kdcompile.distill.registry import AUTO, find_recipe
from kdcompile.distill.short_run import VALIDATIONS, Cost, Outcome, ShortRuns
from kdcompile.distill.shortened import is_tied, paired_increase
from kdcompile.tasks.task import task_of

log = logging.getLogger("kdcompile")
SHARE = 0.15  # of the training's cost with its teacher, at most
LEAST_STEPS = 8  # of an arm in the first round
ROUNDS = (1, 2)  # their lengths
BASE, LABELS = "kd", "none"
FEATURES = {"counting": "skt"}  # by task
OTHER_FEATURES = "at"


@dataclass(frozen=True)
class Arm:
    """A recipe, with photos without labels or none."""

    recipe: str
    pool: bool = False

    @property
    def name(self) -> str:
        """For people, and of its files."""
        return f"{self.recipe}-unlabelled" if self.pool else self.recipe

    def spec(self, spec: Spec) -> Spec:
        """The spec whose training this is; weights of terms that the recipe lacks are left out."""
        kind = find_recipe(self.recipe)
        known = kind.defaults(objective_of(task_of(spec)), spec.distill.reduction)
        change: dict[str, Any] = {} if self.pool else {"unlabelled": 0.0}

        def own(options: Any) -> Any:
            weights = options.weights
            if weights is not None:
                weights = {name: weight for name, weight in weights.items() if name in known}
            return {"recipe": self.recipe, "weights": weights, **change}

        stages = [
            stage.model_copy(update=own(stage) if stage.recipe in (None, AUTO) else {})
            for stage in spec.distill.stages
        ]
        options = spec.distill.model_copy(update={**own(spec.distill), "stages": stages})
        return spec.model_copy(update={"distill": options}).at(spec.path)


def arms_of(spec: Spec, has_pool: bool, has_label_loss: bool = True) -> list[Arm]:
    """What is tried, the cheapest first.

    Args:
        spec: its task and share of photos without labels.
        has_pool: whether there are any.
        has_label_loss: whether labels alone can train this output.
    """
    kind = task_of(spec).like
    if kind == "generic":  # its labels are the teacher's outputs, and there is no other soft term
        return [Arm(LABELS), Arm(OTHER_FEATURES)]
    teaching = [Arm(BASE), Arm(FEATURES.get(kind, OTHER_FEATURES))]
    pooled = [Arm(arm.recipe, True) for arm in teaching if has_pool]
    return [*([Arm(LABELS)] if has_label_loss else []), *teaching, *pooled]


def base_spec(spec: Spec) -> Spec:
    """The spec with the recipe that stands for `auto` before one is chosen."""
    kind = task_of(spec).like
    recipe = LABELS if kind == "generic" else FEATURES.get(kind, BASE)
    return Arm(recipe, pool=True).spec(spec)


def steps_of(arms: Sequence[Arm], length: int, batch: int, cost: Cost) -> list[int]:
    """The steps of each arm in the first round; none where the training is too short for a pilot.

    Args:
        arms: that are to be tried.
        length: steps of the training.
        batch: crops of a step.
        cost: of the networks.
    """
    each = [cost.of_step(batch, find_recipe(arm.recipe).needs_teacher) for arm in arms]
    kept = _half(len(arms))
    validated = VALIDATIONS * (len(arms) + kept) * cost.validation
    room = SHARE * length * max(each) - validated
    share = room / (ROUNDS[0] * len(arms) + ROUNDS[1] * kept)
    steps = [int(share / one) for one in each]
    return steps if min(steps) >= LEAST_STEPS else []


def choose(
    runs: Sequence[tuple[Arm, ShortRuns]], spec: Spec, steps: Sequence[int]
) -> tuple[Arm, dict[str, Any]]:
    """The arm to train with, and what was tried.

    Args:
        runs: of each arm, from the same start, the cheapest first.
        spec: of the training.
        steps: of each arm in the first round.

    Returns:
        The arm, and JSON values: chosen, metric, share, and `arms`, rows of name, round, steps,
        value, worse_by (than the round's best), noise (its standard error), start, why.
    """
    left, rows = list(range(len(runs))), []
    winner = 0
    for number, times in enumerate(ROUNDS, 1):
        found = {
            n: runs[n][1].run(
                f"pilot-{number}-{runs[n][0].name}", runs[n][0].spec(spec), times * steps[n]
            )
            for n in left
        }
        judged = compare(found, runs[0][1], spec)
        for n, one in found.items():
            worse, noise = judged.get(n, (None, None))
            row = {
                "name": runs[n][0].name, "round": number, "steps": times * steps[n],
                "value": one.value if n in judged else None, "worse_by": worse, "noise": noise,
                "start": one.start if n in judged else None, "why": one.problem,
            }  # fmt: skip
            rows.append(row)
            log.info("distill: pilot, %s", row_in_words(row, task_of(spec).metric.name))
        if not judged:
            break
        winner = cheapest_of_the_best(judged)
        left = survivors(judged, winner)
        if len(left) < 2:
            break
    chosen = runs[winner][0]
    log.info("distill: the pilot chose recipe %s", chosen.name)
    record = {"chosen": chosen.name, "metric": task_of(spec).metric.name, "share": SHARE}
    return chosen, record | {"arms": rows}


def compare(
    found: dict[int, Outcome], runs: ShortRuns, spec: Spec
) -> dict[int, tuple[float, float]]:
    """How much worse each arm is than the best one, and the standard error of that; arms that broke
    are left out.
    """
    task = task_of(spec)
    true = [task.truth(photo) for photo in runs.judged]
    errors = {n: task.errors(one.predicted, true) for n, one in found.items() if not one.problem}
    if not errors:
        return {}
    best = min(errors, key=lambda n: (task.metric.worse_by(found[n].value, 0.0), n))
    return {n: paired_increase(task, errors[best], own, spec.seed) for n, own in errors.items()}


def cheapest_of_the_best(judged: dict[int, tuple[float, float]]) -> int:
    """The first arm that is not worse than the best beyond noise; they are in order of cost."""
    return min(n for n, (worse, noise) in judged.items() if is_tied(worse, noise))


def survivors(judged: dict[int, tuple[float, float]], winner: int) -> list[int]:
    """The better half, with the arm that would be taken now."""
    ranked = sorted(judged, key=lambda n: (n != winner, judged[n][0], n))
    return sorted(ranked[: _half(len(judged))])


def _half(number: int) -> int:
    return -(-number // 2)


def row_in_words(row: dict[str, Any], metric: str) -> str:
    """An arm of a round in a line."""
    text = f"round {row['round']}, {row['name']}, {row['steps']} steps: "
    if row["value"] is None:
        return text + f"left out: {row['why']}"
    beside = f", worse than the best by {row['worse_by']:.3g} (standard error {row['noise']:.2g})"
    return text + f"{metric} {row['value']:.4g}" + (beside if row["worse_by"] else ", the best")


def finding(record: dict[str, Any] | None) -> list[str]:
    """What is told of a pilot in which no arm with the teacher paid, in words."""
    if record is None or record["chosen"] != LABELS or not record["arms"]:
        return []
    taught = [row for row in record["arms"] if row["name"] != LABELS and row["value"] is not None]
    if not taught or record.get("labels_are_answers"):
        return []
    return [
        "the teacher does not help here: in the pilot no recipe that uses it was better than the "
        f"labels alone beyond noise ({', '.join(sorted({row['name'] for row in taught}))})"
    ]
