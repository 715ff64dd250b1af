"""Checks that teacher, student, crops and labels fit the task and each other."""

from collections.abc import Sequence

import torch
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.data.splits import Splits
from kdcompile.distill.registry import any_recipe
from kdcompile.distill.schedule import stage_plans
from kdcompile.tasks.task import task_of

WIDENING = ', or set distill.recipe = "class-relation", which takes new classes'


@torch.no_grad()
def output_stride(teacher: nn.Module, student: nn.Module, spec: Spec) -> int:
    """Pixels per cell of a density; 1 where the output has no cells.

    Every stage's crop is tried.

    Raises:
        KDError: `crop-stride`, `student-output`, `student-forward` or `teacher-forward`.
    """
    crops = dict.fromkeys(plan.options.crop for plan in stage_plans(spec.distill))
    strides = [_stride_at(teacher, student, spec, crop) for crop in crops]
    return strides[0]


@torch.no_grad()
def refuse_other_outputs(teacher: nn.Module, others: Sequence[nn.Module], spec: Spec) -> None:
    """Refuse one of `[[teachers]]` whose output for a crop has not the shape of `[teacher]`'s.

    Raises:
        KDError: `teacher-output` or `teacher-forward`.
    """
    if not others:
        return
    crop = spec.distill.crop
    asked = _output("teacher", teacher, spec, crop)
    for number, other in enumerate(others, 1):
        try:
            given = _output("teacher", other, spec, crop)
        except KDError as error:
            error.where = f"[[teachers]] number {number}, {spec.teachers[number - 1].model}"
            raise
        if given != asked:
            raise KDError(
                "teacher-output",
                f"number {number} of [[teachers]] gives {given} for a crop of {crop},"
                f" [teacher] {asked}",
                where=f"[[teachers]] number {number}, {spec.teachers[number - 1].model}",
                fix="give all teachers the same output shape, or leave that one out",
            )


def _stride_at(teacher: nn.Module, student: nn.Module, spec: Spec, crop: int) -> int:
    asked = _output("teacher", teacher, spec, crop)
    given = _output("student", student, spec, crop)
    if given != asked and not (_is_wider(given, asked, spec) and _may_widen(spec)):
        more = "" if not _is_wider(given, asked, spec) else WIDENING
        raise KDError(
            "student-output",
            f"the student gives {given} for a crop of {crop}, the teacher {asked}",
            where="[student] family",
            fix=f"give the student the teacher's output shape{more}",
        )
    if not task_of(spec).is_dense:
        return 1
    stride, rest = divmod(crop, asked[2])
    if rest or asked[2] != asked[3]:
        raise KDError(
            "crop-stride",
            f"a crop of {crop} gives {asked[2]} cells, not a whole stride",
            where="[distill] crop",
            fix=f"use a multiple of {stride + 1}",
        )
    return stride


def _is_wider(given: tuple[int, ...], asked: tuple[int, ...], spec: Spec) -> bool:
    """Whether the student has the teacher's classes and more."""
    classes = task_of(spec).has_classes and len(given) == len(asked) == 2
    return classes and given[1] > asked[1]


def _may_widen(spec: Spec) -> bool:
    return not any_recipe(spec, lambda kind: not kind.widens)


@torch.no_grad()
def class_counts(teacher: nn.Module, student: nn.Module, spec: Spec) -> tuple[int, int]:
    """How many outputs, or channels of a density, teacher and student have."""
    crop = spec.distill.crop
    own = _output("student", student, spec, crop)[1]
    return _output("teacher", teacher, spec, crop)[1], own


@torch.no_grad()
def refuse_labels(student: nn.Module, spec: Spec, splits: Splits) -> None:
    """Refuse labels that the student has no output for.

    Raises:
        KDError: `labels-invalid`.
    """
    task = task_of(spec)
    labels = [task.truth(photo) for photo in (*splits.train, *splits.val)]
    outputs = _output("student", student, spec, spec.distill.crop)[1]
    problem = task.check_labels(labels, outputs, splits.classes)
    if problem is not None:
        raise KDError(
            "labels-invalid",
            problem,
            where=f"[data], for {task.kind}",
            fix="correct [task] kind, the labels, or the student's number of outputs",
        )


def _output(whose: str, network: nn.Module, spec: Spec, crop: int) -> tuple[int, ...]:
    first = next(network.parameters())
    shape, was_training = (1, spec.export.profile[1][1], crop, crop), network.training
    try:
        output = network.eval()(torch.zeros(shape, device=first.device, dtype=first.dtype))
        return tuple(output.shape)
    except Exception as error:  # whatever the user's forward raises, or gives
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KDError(
            f"{whose}-forward",
            f"the {whose} fails on a crop of {crop}: {reason}",
            where="[distill] crop",
            fix="set distill.crop to a size that the network takes, or fix its forward()",
        ) from error
    finally:
        network.train(was_training)
