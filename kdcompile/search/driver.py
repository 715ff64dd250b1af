"""Family `search`: the student of the best expected quality whose latency keeps the budget.

1. Candidates of each space are drawn, their latencies predicted; a guess of quality only orders.
2. What tells most about the best of them is measured, and more are drawn from there; in rounds.
3. On request the best are built and timed, which corrects all predicted latencies.
4. The most promising that keep the budget are distilled for a moment. What they become corrects
   what is expected of the others, and one of them is chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kdcompile.config.board import Board
from kdcompile.latency_model.correction import Correction
from kdcompile.search.candidate_pool import Field, Problem
from kdcompile.search.on_device import Measured, check_place, measure, nearest_to_budget, updated
from kdcompile.search.pareto import Point, best, front, impossible, keeps
from kdcompile.search.predictors.base import Judge
from kdcompile.search.rationale import explain, facts
from kdcompile.search.report import Found
from kdcompile.search.spaces.base import Space


def search(
    problem: Problem,
    spaces: Sequence[tuple[Space, Callable[[], Judge]]],
    board: Board | None,
    folder: Path,
) -> tuple[Found, Judge, Measured | None]:
    """The search.

    Args:
        problem: what for.
        spaces: each with what makes its judge, which is done once the budget is known to be
            possible there.
        board: where students are timed.
        folder: for the files of timing.

    Returns:
        What was found, the judge of the student that was chosen, and the timing.

    Raises:
        KDError: `budget-impossible`; those of the judges and of `measure`.
    """
    fields = _possible(problem, spaces)
    if problem.spec.search.measure:
        check_place(problem.precision, problem.spec, problem.target, board)
    found = [field.learn() for field in fields]
    teacher, timing, correction = problem.point, None, Correction()
    if problem.spec.search.measure:
        found, teacher, timing, correction = _timed(problem, fields, found, board, folder)
    judged = [f.distilled(points, teacher) for f, points in zip(fields, found, strict=True)]
    points = [point for points in judged for point in points]
    budget, metric = problem.spec.student.budget, problem.metric
    sure = [p for p in points if p.evidence == "distilled" and keeps(budget, p, teacher)]
    chosen = best(sure or points, budget, teacher, metric)
    home = next(f for f, points in zip(fields, judged, strict=True) if chosen in points)
    student = problem.kernels(home.space, dict(chosen.architecture)).at(chosen.ms)
    sentences = explain(
        chosen, front(points, metric), budget, metric, (teacher, problem.priced.at(teacher.ms)),
        student, problem.target.full_name,
    )  # fmt: skip
    result = Found(
        problem.target.full_name, problem.precision, metric, budget, teacher, chosen, points,
        sentences, facts(student), None if timing is None else correction,
    )  # fmt: skip
    return result, home.judge, timing


def _possible(problem: Problem, spaces: Sequence[tuple[Space, Callable[[], Judge]]]) -> list[Field]:
    """The spaces that have a student within the budget; they share the candidates."""
    number = problem.spec.search.candidates // len(spaces)
    fields = [Field(problem, space, make_judge, number) for space, make_judge in spaces]
    possible = [field for field in fields if field.is_possible]
    if not possible:
        budget = problem.spec.student.budget
        by_macs = budget.macs is not None
        smallest = min(
            (field.smallest for field in fields), key=lambda p: p.macs if by_macs else p.ms
        )
        raise impossible(budget, smallest, problem.point)
    return possible


def _timed(
    problem: Problem,
    fields: Sequence[Field],
    found: Sequence[Sequence[Point]],
    board: Board | None,
    folder: Path,
) -> tuple[list[list[Point]], Point, Measured, Correction]:
    """The points of each field with what was measured, and those that it made promising."""
    points = [point for points in found for point in points]
    timed = nearest_to_budget(
        points, problem.spec.search.measure, problem.spec.student.budget, problem.point,
        problem.metric,
    )  # fmt: skip
    students = [problem.build(point.architecture) for point in timed]
    timing = measure(
        problem.teacher, students, problem.precision, problem.spec, problem.target, board, folder
    )
    renewed, teacher, correction = updated(points, problem.point, timed, timing)
    factor = correction.apply(teacher.latency).ms / teacher.latency.ms
    made = []
    for field, old in zip(fields, found, strict=True):
        own, renewed = renewed[: len(old)], renewed[len(old) :]
        new = field.after_timing(own, teacher, factor)
        own += [replace(point, latency=correction.apply(point.latency)) for point in new]
        made.append(own)
    return made, teacher, timing, correction
