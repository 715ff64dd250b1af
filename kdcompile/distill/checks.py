"""Checks before a training: teacher, student, crops and labels fit, and the student can learn.

A ReLU behind the output passes no gradient where it is closed. A student that starts with it closed
for every image gives 0, and no training changes that.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line
from kdcompile.data.augment import Batch
from kdcompile.data.splits import Splits
from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.objective import Objective
from kdcompile.distill.registry import any_recipe
from kdcompile.distill.schedule import stage_plans
from kdcompile.tasks.task import ports_of, task_of

WIDENING = ', or set distill.recipe = "class-relation", which takes new classes'
SAME = 1e-5  # of the largest output: float32 sums in another order differ by less
STEP = 1e-3  # by which each weight is moved on trial


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
            error.where = f"[[teachers]] number {number}, {spec.teachers[number - 1].named}"
            raise
        if given != asked:
            raise KDError(
                "teacher-output",
                f"number {number} of [[teachers]] gives {given} for a crop of {crop},"
                f" [teacher] {asked}",
                where=f"[[teachers]] number {number}, {spec.teachers[number - 1].named}",
                fix="give all teachers the same output shape, or leave that one out",
            )


def _stride_at(teacher: nn.Module, student: nn.Module, spec: Spec, crop: int) -> int:
    asked = _output("teacher", teacher, spec, crop)
    given = _output("student", student, spec, crop)
    classes = task_of(spec).has_classes and len(given) == len(asked) == 2
    wider = classes and given[1] > asked[1]  # it has the teacher's classes and more
    if given != asked and not (wider and not any_recipe(spec, lambda kind: not kind.widens)):
        more = WIDENING if wider else ""
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
    outputs = task.outputs_of(_output("student", student, spec, spec.distill.crop))
    problem = task.check_labels(labels, outputs, splits.classes)
    if problem is not None:
        raise KDError(
            "labels-invalid",
            problem,
            where=f"[data], for {task.kind}",
            fix="correct [task] kind, the labels, or the student's number of outputs",
        )


def _output(whose: str, network: nn.Module, spec: Spec, crop: int) -> tuple[int, ...]:
    first, ports = next(network.parameters()), ports_of(spec)
    shape = (1, spec.export.profile[1][1], crop, crop) if ports is None else (1, ports.width)
    try:
        with in_inference(network):
            output = network(torch.zeros(shape, device=first.device, dtype=first.dtype))
        return tuple(output.shape)
    except Exception as error:  # whatever the user's forward raises, or gives
        reason = first_line(error)
        raise KDError(
            f"{whose}-forward",
            f"the {whose} fails on a crop of {crop}: {reason}",
            where="[distill] crop",
            fix="set distill.crop to a size that the network takes, or fix its forward()",
        ) from error


@dataclass(frozen=True)
class Pulse:
    """What some crops show of a student.

    crops: how many; largest: output by absolute value; spread: the largest difference of one
    output between two crops; gradient: norm of that of the label loss.
    """

    crops: int
    largest: float
    spread: float
    gradient: float

    @property
    def is_constant(self) -> bool:
        """Whether the output is the same for every crop."""
        return self.spread <= SAME * self.largest

    @property
    def is_alive(self) -> bool:
        """Whether the output varies and a gradient comes back; so too where either is no number."""
        return not self.is_constant and self.gradient != 0

    def __str__(self) -> str:
        """The numbers, for an error."""
        return (
            f"on {self.crops} training crops its output differs by at most {self.spread:.3g} "
            f"(the largest is {self.largest:.3g}) and the label loss has a gradient of norm "
            f"{self.gradient:.3g}"
        )


def dead(student: nn.Module, crops: Sequence[Batch], objective: Objective) -> Pulse | None:
    """What shows that a student cannot learn from where it starts; None where it can.

    A constant output is no proof: that of zero weights, with which some networks start on purpose,
    varies after one step. Nor is one in inference mode alone: in training a batch norm centres what
    a ReLU behind it reads.

    Args:
        student: its weights and mode stay.
        crops: of training photos, on the student's device.
        objective: gives the label loss.
    """
    network = copy.deepcopy(student).eval()
    found, gradients = _pulse(network, crops, objective)
    if found.is_alive:
        return None
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms and min(len(batch.images) for batch in crops) > 1:
        for module in norms:
            module.train()
        found, gradients = _pulse(network, crops, objective)
        if found.is_alive:
            return None
    if found.gradient != 0:
        with torch.no_grad():
            for parameter, gradient in gradients:
                parameter -= STEP * gradient.sign()
        if not _pulse(network, crops, objective)[0].is_constant:
            return None
    return found


def _pulse(
    network: nn.Module, crops: Sequence[Batch], objective: Objective
) -> tuple[Pulse, list[tuple[Tensor, Tensor]]]:
    """What the crops show, and each trained parameter with its gradient over all of them."""
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) for p in trained]
    outputs = []
    for batch in crops:
        output = network(batch.images)
        outputs.append(output.detach().float())
        loss = objective.hard(output, batch.target)
        if loss.requires_grad:
            own = torch.autograd.grad(loss, trained, allow_unused=True)
            for total, gradient in zip(gradients, own, strict=True):
                if gradient is not None:
                    total += gradient
    whole = torch.cat(outputs)
    spread = float((whole.amax(0) - whole.amin(0)).max())
    norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
    found = Pulse(len(whole), float(whole.abs().max()), spread, norm)
    return found, list(zip(trained, gradients, strict=True))
