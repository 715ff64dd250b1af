"""Search driver (family `search`): the student of best expected quality within the latency budget.

1. Candidates are drawn and their latencies predicted; multiply-adds order them.
2. On request the best are built and timed, which corrects all predicted latencies.
3. The most promising that keep the budget, with the widest uniform student as a control, are
   distilled for a short time. One of them is chosen; what they become sets the scale of what is
   expected of the others.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kdcompile.config.distill import NO_EFFECT
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board, Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Store
from kdcompile.latency_model.correction import Correction
from kdcompile.latency_model.network_cost import Network, params
from kdcompile.models.cuts import cuts
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.candidate_pool import CandidatePool, Problem
from kdcompile.search.on_device import (
    Measurement,
    apply_measurement,
    check_timer,
    measure,
    nearest_to_budget,
)
from kdcompile.search.pareto import Point, best, front, impossible, keeps
from kdcompile.search.plot import plot_front
from kdcompile.search.rationale import explain, stage_records
from kdcompile.search.report import SearchResult
from kdcompile.search.short_distillation import Finalist, distil, validation_errors
from kdcompile.search.spaces.base import Space
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.search.spaces.pruned_kernels import Template
from kdcompile.search.spaces.staged import StagedSpace
from kdcompile.targets import Target
from kdcompile.tasks.task import task_of


def search(
    problem: Problem, spaces: Sequence[Space], board: Board | None, folder: Path
) -> tuple[SearchResult, Finalist | None, Measurement | None]:
    """The search.

    Args:
        problem: what for.
        spaces: where; the first that has a student within the budget.
        board: where students are timed.
        folder: for the files of timing.

    Returns:
        What was found, the short distillation of the chosen student if it had one, and the timing.

    Raises:
        KDError: `budget-impossible`; those of the distillations and of `measure`.
    """
    pool = _possible_pool(problem, spaces)
    if problem.spec.search.measure:
        check_timer(problem.precision, problem.spec, problem.target, board)
    teacher, timing, correction = problem.point, None, Correction()
    points = pool.points(teacher)
    if problem.spec.search.measure:
        points, teacher, timing, correction = _time_students(problem, pool, points, board, folder)
    points = pool.distil_finalists(points, teacher)
    budget, metric = problem.spec.student.budget, problem.metric
    sure = [p for p in points if p.evidence == "distilled" and keeps(budget, p, teacher)]
    chosen = best(sure or points, budget, teacher, metric)
    student = problem.kernels(pool.space, dict(chosen.architecture)).at(chosen.ms)
    sentences = explain(
        chosen, front(points, metric), budget, metric, (teacher, problem.cost.at(teacher.ms)),
        student, problem.target.full_name,
    )  # fmt: skip
    result = SearchResult(
        problem.target.full_name, problem.precision, metric, budget, teacher, chosen, points,
        sentences, stage_records(student), None if timing is None else correction,
    )  # fmt: skip
    return result, pool.finalist(chosen), timing


def _possible_pool(problem: Problem, spaces: Sequence[Space]) -> CandidatePool:
    """Candidates of the first space that has a student within the budget."""
    pools = []
    for space in spaces:
        pools.append(CandidatePool(problem, space, problem.spec.search.candidates))
        if pools[-1].is_possible:
            return pools[-1]
    budget = problem.spec.student.budget
    by_macs = budget.macs is not None
    smallest = min((pool.smallest for pool in pools), key=lambda p: p.macs if by_macs else p.ms)
    raise impossible(budget, smallest, problem.point)


def _time_students(
    problem: Problem,
    pool: CandidatePool,
    points: Sequence[Point],
    board: Board | None,
    folder: Path,
) -> tuple[list[Point], Point, Measurement, Correction]:
    """The points with what was measured, and those that it made promising."""
    timed = nearest_to_budget(
        points, problem.spec.search.measure, problem.spec.student.budget, problem.point,
        problem.metric,
    )  # fmt: skip
    students = [problem.build(point.architecture) for point in timed]
    timing = measure(
        problem.teacher, students, problem.precision, problem.spec, problem.target, board, folder
    )
    renewed, teacher, correction = apply_measurement(points, problem.point, timed, timing)
    factor = correction.apply(teacher.latency).ms / teacher.latency.ms
    new = pool.points(teacher, renewed, factor)
    renewed += [replace(point, latency=correction.apply(point.latency)) for point in new]
    return renewed, teacher, timing, correction


log = logging.getLogger("kdcompile")
INITIAL = "initial.safetensors"
UNSTAGED = ("stages-unknown", "staged-output")  # of a teacher that has no staged students


def search_student(
    step: Step,
    store: Store,
    target: Target,
    teacher: Network,
    precisions: tuple[str, str],
    folder: Path,
) -> SearchResult:
    """The student that was found, and why it was chosen; the files of that in `folder`.

    `precisions` are those of the teacher, which a speed-up is against, and of the student.

    Raises:
        KDError: `budget-impossible`, `stages-unknown`, `staged-output`; those of data, training
            and timing.
    """
    spec = step.spec
    for name in NO_EFFECT:
        if name in spec.search.model_fields_set:
            log.warning("search: search.%s has no effect and will be refused; leave it out", name)
    problem = _problem(spec, store, target, teacher, *precisions)
    work = store.work(step.stage, step.key)
    found, finalist, timing = search(problem, _spaces(spec, target, teacher), step.board, work)
    record = found.to_json() | {"measured": None if timing is None else timing.to_json()}
    write_json(folder / "search.json", record)
    plot_front(
        found.points, found.chosen, record["limit_ms"], found.teacher, found.metric,
        folder / "front",
    )  # fmt: skip
    is_staged = found.chosen.architecture["family"] == "staged"  # it can inherit no layer
    if spec.student.init == "inherit" and is_staged and finalist is not None:
        shutil.copyfile(finalist.path, folder / INITIAL)
    store.drop_work(step.stage, step.key)
    return found


def _problem(
    spec: Spec,
    store: Store,
    target: Target,
    teacher: Network,
    teacher_precision: str,
    precision: str,
) -> Problem:
    task = task_of(spec)
    cost = teacher.cost(target, teacher_precision)
    point = Point(
        architecture={"family": "teacher"},
        latency=cost.estimate,
        quality=task.metric(validation_errors(teacher.module, spec)),
        quality_sd=0.0,
        evidence="measured",
        macs=cost.macs,
        params=params(teacher.module),
    )
    return Problem(
        spec=spec,
        target=target,
        precision=precision,
        metric=task.metric,
        teacher=teacher.module,
        point=point,
        cost=cost,
        build=lambda a: student_from_architecture(teacher.module, a, spec.folder),
        distil=lambda chosen: distil(spec, store, chosen, spec.search.finalist_steps),
    )


def _spaces(spec: Spec, target: Target, teacher: Network) -> list[Space]:
    """The space that the spec names; `auto`: those that this teacher has, in order of preference.

    Its own layers come first: no staged student was ever chosen beside them (docs/search.md).
    """
    made: list[Space] = []
    missing: list[KDError] = []
    if spec.search.space != "staged":
        try:
            template = Template(teacher.model, teacher.module, teacher.shape, freeze=True)
            tile = target.channel_tile
            made.append(LayerSpace(teacher.module, teacher.shape, tile, spec.seed, template))
        except KDError as error:
            if error.code != "template-unknown":
                raise
            missing.append(error)
    if spec.search.space != "layers":
        try:
            made.append(_staged_space(spec, target, teacher))
        except KDError as error:
            if error.code not in UNSTAGED:
                raise
            fix = 'set search.space = "layers"'
            missing.append(KDError(error.code, error.message, error.where, fix))
    if made:
        return made
    if len(missing) == 1:
        raise missing[0]
    raise KDError(
        "search-no-space",
        f"{missing[0].message}, and {missing[1].message}",
        where="[search] space",
        fix='set student.family = "shrink"',
    )


def _staged_space(spec: Spec, target: Target, teacher: Network) -> StagedSpace:
    output = _output(teacher.module, teacher.shape)
    dense = len(output) == 4
    # an output that is finer than the input has no stride; its cells are not those of 1
    stride = max(1, teacher.shape[2] // output[2]) if dense else 1
    cells = tuple(-(-side // stride) for side in teacher.shape[2:]) if dense else ()
    if len(output) < 2 or output[2:] != cells:
        raise _unequal_output(output, teacher.shape)
    # a re-parameterised block has no single weight while it trains in int8
    blocks = [b for b in spec.search.blocks if not (spec.quantize.qad and b == "repvgg")]
    if not blocks:
        raise KDError(
            "qad-repvgg",
            "a re-parameterised block is not yet one convolution while it trains in int8",
            where="[quantize] qad",
            fix="set quantize.qad = false, or name another of search.blocks",
        )
    space = StagedSpace(
        cuts=cuts(teacher.module, teacher.shape),
        shape=teacher.shape,
        out_channels=output[1],
        head="dense" if dense else "pooled",
        output_stride=stride,
        tile=target.channel_tile,
        blocks=blocks,
        scales=spec.search.scales,
        seed=spec.seed,
    )
    if not space.reaches:
        raise _unequal_output(output, teacher.shape)
    return space


def _unequal_output(output: tuple[int, ...], shape: list[int]) -> KDError:
    return KDError(
        "staged-output",
        f"no staged student has the teacher's output {list(output)} of {shape}",
        where="[search] space",
        fix='set search.space = "layers"',
    )


@torch.no_grad()
def _output(teacher: nn.Module, shape: list[int]) -> tuple[int, ...]:
    return tuple(teacher(torch.zeros(shape)).shape)
