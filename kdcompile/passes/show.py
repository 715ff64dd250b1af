"""The plan of a build: steps with their cache hits, costs and limits, before anything is spent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdcompile.config.gates import fraction
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.store import Artifact
from kdcompile.data.check import check_data
from kdcompile.data.splits import Splits, judged, load_splits
from kdcompile.gates.accuracy import AccuracyGate
from kdcompile.gates.registry import Decidable, decidable
from kdcompile.passes.manager import Plan
from kdcompile.passes.refusals import (
    asked_of,
    met_by,
    refuse_networks,
    refuse_settings,
    student_network,
    warnings_of,
)
from kdcompile.passes.stages import STAGES
from kdcompile.stats.sample_size import forecast
from kdcompile.targets import Target
from kdcompile.targets.limits import DlaLayer
from kdcompile.targets.rules import Violation, on_dla
from kdcompile.tasks.metric import RMSE, Metric
from kdcompile.tasks.task import task_of


@dataclass(frozen=True)
class PlannedStep:
    """A step of a build: `key` where its artifact is made, and else `why` it is to do."""

    stage: str
    key: str | None
    why: list[str]


@dataclass(frozen=True)
class Stopped:
    """The error that a search stops with."""

    code: str
    message: str
    where: str
    fix: str


@dataclass(frozen=True)
class Margin:
    """Which margin of accuracy the test images are expected to decide, in `unit`."""

    images: int
    smallest: float | None
    over_limit: float
    max_increase: str
    asked: str
    unit: str


@dataclass(frozen=True)
class Planned:
    """What a build would do: steps, cache hits, costs, limits of the hardware, what data decides.

    Args:
        spec: path of the spec.
        target: the device.
        board: the connected device's facts, where one is connected.
        steps: all stages, in order.
        estimate: costs of teacher and student; None where a search is still to train for them.
        stopped: why there is no estimate, where a rule of the target explains it.
        rules: limits of the target that this build meets.
        rules_on_operators: whether the student's operators were known for that.
        dla: where each of them is expected to run, with a DLA; None without, or where that is not
            known yet or the target refuses it.
        warnings: of the spec.
        decides: whether the test images can decide each gate.
        metric: of the accuracy gate.
        margin: which margin of it they can decide, once the teacher was evaluated.
    """

    spec: str
    target: Target
    board: dict[str, Any] | None
    steps: list[PlannedStep]
    estimate: dict[str, Any] | None
    stopped: Stopped | None
    rules: list[Violation]
    rules_on_operators: bool
    dla: tuple[DlaLayer, ...] | None
    warnings: list[str]
    decides: list[Decidable]
    metric: str
    margin: Margin | None

    @property
    def is_refused(self) -> bool:
        """Whether the target would refuse the build."""
        return any(rule.effect == "refused" for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as `kdcompile plan --json` prints them."""
        target = self.target.to_json() | {"full_name": self.target.full_name}
        return asdict(self) | {"target": target}


def describe(plan: Plan) -> Planned:
    """Steps, costs, the hardware's limits and what the data can decide.

    A student that the spec scales is chosen if it is not yet, since the costs are of it; nothing
    else runs. `estimate` is None where a search, which trains, is still to do, and where choosing
    stops on something that a rule of the target explains; then `stopped` is why.

    Raises:
        KDError: the search's, where no rule explains it; what a training that is still to do
            would refuse of recipes, networks and labels.
    """
    made = plan.found()
    splits = load_splits(plan.spec.data, plan.spec.folder)
    if "distill" not in made:
        refuse_settings(plan.spec, splits)
        if plan.awaits_search or "search" in made:  # else `search` looks at them
            check_data(plan.spec, plan.store.root)
    decides, metric, margin = _photos(
        plan, splits, made["teacher"].meta if "teacher" in made else None
    )
    search, stopped = _search(plan)  # after the data, which is quicker to be found wrong
    found = plan.found()
    refuse_networks(plan, splits, found)
    network = None if search is None else student_network(plan, found, search["precision"])
    return Planned(
        spec=str(plan.spec.path),
        target=plan.target,
        board=None if plan.board is None else _board(plan.board),
        steps=[PlannedStep(**step_of(plan, name, found)) for name in STAGES],
        estimate=search,
        stopped=stopped,
        rules=met_by(plan, network),
        rules_on_operators=network is not None,
        dla=None if network is None else on_dla(plan.target, asked_of(plan.spec), network),
        warnings=warnings_of(plan.spec, splits),
        decides=decides,
        metric=metric,
        margin=margin,
    )


def step_of(plan: Plan, name: str, found: Mapping[str, Artifact]) -> dict[str, Any]:
    """A step: its key where it is made, and what makes it run where it is not."""
    if name in found:
        return {"stage": name, "key": found[name].key, "why": []}
    return {"stage": name, "key": None, "why": plan.why(name, found)}


def _search(plan: Plan) -> tuple[dict[str, Any] | None, Stopped | None]:
    """The estimate, or the error in place of it; neither where a search is still to do."""
    if plan.awaits_search:
        return None, None
    try:
        return plan.make("search").json("estimate.json"), None
    except KDError as error:
        if not any(violation.effect == "refused" for violation in met_by(plan)):
            raise
        return None, Stopped(error.code, error.message, error.where, error.fix)


def _board(board: Board) -> dict[str, Any]:
    own = {name: getattr(board, name) for name in ("label", "machine", "evidence")}
    return own | dict(board.facts)


def _photos(
    plan: Plan, splits: Splits, teacher: Mapping[str, Any] | None
) -> tuple[list[Decidable], str, Margin | None]:
    """Whether the test images can decide each gate, the metric, and which margin of it.

    There is no `margin` before `teacher` has run, nor of a metric of whole outputs, nor of one
    whose limits are no share of the teacher's.
    """
    spec = plan.spec
    task = task_of(spec)
    photos = judged(splits.test, spec.data.max_test)
    true = np.array([task.truth(photo) for photo in photos])
    rows = decidable(spec.gates, task, true, splits.classes, spec.seed)
    asked = spec.gates.accuracy
    metric = task.find_metric(asked.metric)
    margin = None
    if teacher is not None and not (metric.needs_outputs or metric.absolute or metric.records):
        margin = _margin(metric, len(photos), asked, teacher)
    return rows, metric.name, margin


def _margin(metric: Metric, images: int, asked: AccuracyGate, teacher: Mapping[str, Any]) -> Margin:
    mean = teacher[f"val_{metric.name}"] ** metric.power
    deviation = teacher["val_squared_error_std" if metric is RMSE else "val_abs_error_std"]
    if metric.points:  # by Laplace's rule, as no teacher is right for certain
        mean = (mean * teacher["n_val"] + 1) / (teacher["n_val"] + 2)
        deviation = (mean * (1 - mean)) ** 0.5
    found = forecast(metric, images, mean, deviation, fraction(asked.max_increase))
    unit = "percentage points" if metric.points else f"% of the teacher's {metric.name}"
    limits = (found.margin, found.over_limit, asked.max_increase, asked.margin)
    return Margin(images, *limits, unit)
