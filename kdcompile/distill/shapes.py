"""Do teacher, student and crops fit the task and each other?"""

import torch
from torch import nn

from kdcompile.data.task import find_task
from kdcompile.distill.schedule import stage_plans
from kdcompile.errors import KDError
from kdcompile.spec import Spec


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


def _stride_at(teacher: nn.Module, student: nn.Module, spec: Spec, crop: int) -> int:
    asked, was_training = _output("teacher", teacher, spec, crop), student.training
    given = _output("student", student.eval(), spec, crop)
    student.train(was_training)
    if given != asked:
        raise KDError(
            "student-output",
            f"the student gives {given} for a crop of {crop}, the teacher {asked}",
            where="[student] family",
            fix="give the student the teacher's output shape",
        )
    if not find_task(spec.task.kind).is_dense:
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


def _output(whose: str, network: nn.Module, spec: Spec, crop: int) -> tuple[int, ...]:
    first = next(network.parameters())
    shape = (1, spec.export.profile[1][1], crop, crop)
    try:
        output = network(torch.zeros(shape, device=first.device, dtype=first.dtype))
        return tuple(output.shape)
    except Exception as error:  # whatever the user's forward raises, or gives
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KDError(
            f"{whose}-forward",
            f"the {whose} fails on a crop of {crop}: {reason}",
            where="[distill] crop",
            fix="set distill.crop to a size that the network takes, or mend its forward()",
        ) from error
