"""The plan, printed: steps with their cache hits, costs and limits, before anything is spent."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdcompile.config.gates import fraction
from kdcompile.config.step import Board
from kdcompile.core.backends import find
from kdcompile.core.errors import KDError
from kdcompile.core.store import Artifact
from kdcompile.data.splits import Splits, judged, load_splits
from kdcompile.gates.accuracy import AccuracyGate
from kdcompile.gates.registry import Decidable, decidable
from kdcompile.passes.manager import Plan
from kdcompile.passes.refusals import (
    met_by,
    refuse_networks,
    refuse_settings,
    student_network,
    warnings_of,
)
from kdcompile.passes.stages import STAGES
from kdcompile.stats.sample_size import forecast
from kdcompile.targets import Target
from kdcompile.targets.rules import Violation
from kdcompile.tasks.metric import GAMES, RMSE, Metric
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

    There is no `margin` before `teacher` has run, nor of a metric of density maps.
    """
    spec = plan.spec
    task = task_of(spec)
    photos = judged(splits.test, spec.data.max_test)
    true = np.array([task.truth(photo) for photo in photos])
    rows = decidable(spec.gates, task, true, splits.classes, spec.seed)
    asked = spec.gates.accuracy
    metric = task.find_metric(asked.metric)
    margin = None
    if teacher is not None and metric.level is None:
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


def lines(plan: dict[str, Any]) -> list[str]:
    """The description as text."""
    target = plan["target"]
    software = target["backend"] or target["tensorrt"]
    backend = " ".join(filter(None, (find(target["runtime"]).title, software)))
    text = [
        f"spec    {plan['spec']}",
        f"target  {target['full_name']}: {target['title']}, {backend}",
        *_board_lines(plan["board"]),
        f"opset   {target['max_opset']} (IR {target['ir_version']})",
        "",
        "step       state    key, or why it is to do",
    ]
    for step in plan["steps"]:
        first, *more = [step["key"][:12]] if step["key"] else step["why"]
        text.append(f"{step['stage']:<10} {'cached' if step['key'] else 'to do':<8} {first}")
        text += [f"{'':<19} {reason}" for reason in more]
    text += ["", *_cost_lines(plan), "", *_rule_lines(plan), ""]
    text += (f"warning    {told}" for told in plan["warnings"])
    text += map(_decides_line, plan["decides"])
    return text + _margin_lines(plan["margin"], plan["metric"])


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    estimate = plan["estimate"]
    if estimate is None:
        stopped = plan["stopped"]
        if stopped is None:
            return ["no costs yet: kdcompile search finds the student, by training on the data"]
        return [f"no costs: the search stops with {stopped['code']}: {stopped['message']}"]
    text = ["network    GMACs      Mparams    predicted latency"]
    rows = (("teacher", estimate["teacher_precision"]), ("student", estimate["precision"]))
    for name, precision in rows:
        cost = estimate[name]
        latency = cost[precision]
        note = "" if latency["validated"] else ", unvalidated"
        band = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
        text.append(
            f"{name:<10} {cost['macs'] / 1e9:<10.4g} {cost['params'] / 1e6:<10.4g} "
            f"{latency['ms']:.3g} ms at {precision} ({band}{note})"
        )
    return [*text, f"predicted speed-up {estimate['speedup']:.3g}"]


def _rule_lines(plan: dict[str, Any]) -> list[str]:
    """The limits of the target that this spec reaches, each with its place and its fix."""
    text = []
    for rule in plan["rules"]:
        text += [
            f"{rule['effect']:<10} {rule['code']}: {rule['message']}",
            f"{'':<10} where: {rule['where']}",
            f"{'':<10} fix:   {rule['fix']}",
        ]
    if not plan["rules_on_operators"]:
        text.append("limits     of widths and operators: known once `search` has run")
    return text or ["limits     none: no option is refused or without effect on this target"]


def _board_lines(board: dict[str, Any] | None) -> list[str]:
    if board is None:
        return []
    backend = f"{board['backend']} {board['backend_version']}"
    return [
        f"board   {board['label']}: {board['machine']}, {backend}; measurements are "
        f"{board['evidence']} evidence"
    ]


def _decides_line(row: dict[str, Any]) -> str:
    photos = f"{row['images']} test images"
    if row["decides"]:
        return f"{row['gate']:<10} {photos} can decide it"
    needed = f"{row['needed']} would do" if row["needed"] else "no number would do"
    if row["each"] and row["needed"]:
        needed = f"{row['needed']} in each part would do"
    return (
        f"{row['gate']:<10} {photos} cannot decide it: of a student that is never wrong, "
        f"{row['why']}; {needed}"
    )


def _margin_lines(margin: dict[str, Any] | None, metric: str) -> list[str]:
    if margin is None and metric in {game.name for game in GAMES}:
        return [f"which margin of {metric} to expect is not known before `verify` sees the maps"]
    if margin is None:
        return ["which margin of accuracy to expect is known once `teacher` has run"]
    photos, basis = f"{margin['images']} test images", "(80 % power, error correlation 0.8)"
    if margin["smallest"] is None:
        return [f"{photos} are expected to decide no margin {basis}"]
    least = math.ceil(1000 * margin["smallest"]) / 10
    return [
        f"{photos} are expected to decide a margin of {least:g} {margin['unit']} or more {basis}; "
        f"the spec asks {margin['asked'].rstrip('%')}",
        f"a student as accurate as the teacher is over max_increase = {margin['max_increase']} by "
        f"chance in {100 * margin['over_limit']:.0f} of 100 draws of images",
    ]
