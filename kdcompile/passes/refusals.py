"""Refusals and warnings of a plan: what a build would refuse once it trains, or do badly.

Networks are run on shapes alone, so nothing is computed and nothing is traced for it.
"""

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.splits import Splits, evenly
from kdcompile.distill.checks import (
    class_counts,
    output_stride,
    refuse_labels,
    refuse_other_outputs,
)
from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.objective import objective_of
from kdcompile.distill.qad import make_quantisable, refuse_qad
from kdcompile.distill.recipe import Recipe
from kdcompile.distill.registry import find_recipe, refuse_recipes
from kdcompile.distill.schedule import stage_plans
from kdcompile.distill.tap_pairs import resolve_taps
from kdcompile.models.factory import load_teacher, load_teachers, load_weights
from kdcompile.models.rows import output_ports
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.passes.manager import Plan
from kdcompile.passes.suppression import refuse_suppression
from kdcompile.passes.teacher import output_shape, taught
from kdcompile.targets.limits import Operator
from kdcompile.targets.rules import Asked, Network, Violation, violations
from kdcompile.tasks.along import check_axes
from kdcompile.tasks.task import Task, ports_of, preprocess_of, task_of

T = TypeVar("T")
LOOKED_AT = 32  # photos whose size is read
FILLED = 0.5  # of a crop or an input: below it most of what a network sees is padding
HARDLY_FILLED = 0.25  # of a crop: below it a network learns padding
OPERATORS = "operators.json"  # of the search, where it writes its student's


def refuse_networks(plan: Plan, splits: Splits, found: Mapping[str, Artifact]) -> None:
    """Refuse a teacher and a student that do not fit the task, the data or each other.

    Args:
        plan: whose student is known unless a search is still to do.
        splits: of its data.
        found: what is made already; what has trained is not looked at again.

    Raises:
        KDError: `teacher-output`, `teacher-forward`, `teacher-unjudged`, `labels-invalid`,
            `task-outputs`,
            `student-output`, `student-forward`, `crop-stride`; those of a student's weights, of
            taps, and of training for int8.
    """
    if "distill" in found:
        return
    spec, task = plan.spec, task_of(plan.spec)
    teacher = load_teacher(spec)
    asked = spec.export.profile[1]
    shape = on_shapes(lambda: output_shape(teacher, asked, torch.device("cpu"), task))
    if spec.export.nms != "none":
        refuse_suppression(task, shape)
    taught(task, shape, splits, spec)
    ports = ports_of(spec)
    if ports is not None and task.axes:
        check_axes(task.axes, on_shapes(partial(output_ports, teacher, ports)))
    labels = [task.truth(photo) for photo in splits.train]
    for stage in stage_plans(spec.distill):
        kind = find_recipe(stage.options.recipe)
        kind.refuse_labels(labels, shape[1] if task.has_classes else None)
        _refuse_without_loss(stage.options.recipe, kind, task, shape)
    others = load_teachers(spec)
    on_shapes(lambda: refuse_other_outputs(teacher, others, spec))
    if "search" not in found:  # its student will have the teacher's outputs
        on_shapes(lambda: output_stride(teacher, teacher, spec))
        return
    architecture = found["search"].json("architecture.json")
    student = student_from_architecture(teacher, architecture, spec.folder)
    on_shapes(lambda: output_stride(teacher, student, spec))
    on_shapes(lambda: refuse_labels(student, spec, splits))
    if spec.student.weights is not None:
        counts = on_shapes(lambda: class_counts(teacher, student, spec))
        load_weights(student, spec.student.weights, counts)
    _refuse_taps(spec, teacher, student)
    make_quantisable(spec, student, spec.distill.crop)


def _refuse_without_loss(name: str, kind: type[Recipe], task: Task, shape: tuple[int, ...]) -> None:
    """Refuse a recipe of labels alone where the network's output has no loss for them.

    Raises:
        KDError: `task-loss`.
    """
    if kind.needs_teacher or task.has_label_loss(shape):
        return
    raise KDError(
        "task-loss",
        f"recipe {name} learns from labels, for which an output {list(shape)} has no loss",
        where="[distill] recipe and [task] loss",
        fix='name your loss, task.loss = "file.py:loss", from (output, boxes); or take '
        'distill.recipe = "kd", which imitates the teacher without labels',
    )


def _refuse_taps(spec: Spec, teacher: nn.Module, student: nn.Module) -> None:
    """Refuse feature maps that are not there or cannot be compared, and too few of them.

    Raises:
        KDError: those of `resolve_taps`; `recipe-taps`.
    """
    ports = ports_of(spec)
    for stage in stage_plans(spec.distill):
        kind, options = find_recipe(stage.options.recipe), stage.options
        if not kind.needs_taps:
            continue
        sides = (spec.export.profile[1][1], options.crop, options.crop)
        example = torch.zeros(1, *(sides if ports is None else (ports.width,)))
        with in_inference(student):
            taps = on_shapes(partial(resolve_taps, teacher, student, example, options.taps))
        objective = objective_of(task_of(spec), options)(options, torch.tensor([0.0, 1.0]))
        kind(taps, options, objective)


def on_shapes(check: Callable[[], T]) -> T:
    """A check of networks, which are run on shapes alone unless they cannot be.

    Raises:
        KDError: the check's, of a network that really ran.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return check()
    except KDError as error:
        if not error.code.endswith("-forward"):
            raise
    return check()  # what fails on shapes may run on numbers


def refuse_settings(spec: Spec, splits: Splits) -> None:
    """Refuse recipes that do not exist or do not fit, and crops that are little but padding.

    Raises:
        KDError: those of `refuse_recipes`, `refuse_qad` and `Ports.pack`; `crop-larger`.
    """
    refuse_recipes(spec)
    refuse_qad(spec)
    if ports_of(spec) is not None:
        prepare = preprocess_of(spec)
        for photo in (*splits.train, *splits.val, *splits.test) if spec.export.inputs else ():
            prepare.input_of(photo)
        return
    size = typical_size(splits)
    if size is None:
        return
    for crop in _crops(spec):
        share = _filled(size, (crop, crop))
        if share < HARDLY_FILLED:
            raise KDError(
                "crop-larger",
                f"a crop of {crop} is larger than the images, which are {size[0]} x {size[1]}: "
                f"{1 - share:.0%} of it would be padding",
                where="[distill] crop",
                fix=f"set distill.crop to {min(size)} or less, and export.shape to the images' "
                "size",
            )


def warnings_of(spec: Spec, splits: Splits) -> list[str]:
    """What a build would do hardly as it is meant: crops and inputs that are mostly padding, and
    what follows the GPU's latency where a DLA is to run.
    """
    return [*_of_a_dla(spec), *_of_padding(spec, splits)]


def _of_a_dla(spec: Spec) -> list[str]:
    """What the GPU's predicted latency decides in place of a DLA's, which nothing predicts."""
    if spec.compile.dla is None:
        return []
    why = "the GPU's predicted latency, and compile.dla asks for a DLA, which has no latency model"
    budget = spec.student.budget
    told = [
        f"student.budget.{name} is kept by {why}: name macs or width, and time it at the board"
        for name in ("speedup", "latency_ms")
        if getattr(budget, name) is not None
    ]
    if spec.quantize.precision == "auto":
        told.append(
            f'away from the board quantize.precision = "auto" chooses by {why}: build with --via, '
            'which measures, or name "fp16"'
        )
    return told


def _of_padding(spec: Spec, splits: Splits) -> list[str]:
    size = typical_size(splits)
    if size is None or ports_of(spec) is not None:
        return []
    photos = f"the images, which are {size[0]} x {size[1]}"
    told = [
        f"distill.crop = {crop} is larger than {photos}: {1 - share:.0%} of a crop is padding; set "
        f"it to {min(size)} or less"
        for crop in _crops(spec)
        if (share := _filled(size, (crop, crop))) < FILLED
    ]
    prepare = preprocess_of(spec)
    share = _filled(prepare.fitted(*size), prepare.min_hw)
    if share < FILLED:
        asked = " x ".join(map(str, prepare.min_hw))
        told.append(
            f"export.shape, {asked}, is larger than {photos}: {1 - share:.0%} of an input is "
            "padding; set export.shape to the size of the images that it will be used on"
        )
    return told


def sizes_of(splits: Splits) -> list[tuple[int, int]]:
    """Height and width of a few training photos, read from the heads of their files."""
    return [size for photo in evenly(splits.train, LOOKED_AT) if (size := _size(photo))]


def typical_size(splits: Splits) -> tuple[int, int] | None:
    """Median height and width of a few training photos."""
    found = sizes_of(splits)
    if not found:
        return None
    height, width = np.median(np.array(found), axis=0)
    return int(height), int(width)


def _crops(spec: Spec) -> list[int]:
    return list(dict.fromkeys(plan.options.crop for plan in stage_plans(spec.distill)))


def _filled(size: tuple[int, int], asked: tuple[int, int]) -> float:
    """The share of an area that a photo at its top left corner covers."""
    return min(1.0, size[0] / asked[0]) * min(1.0, size[1] / asked[1])


def _size(photo: Photo) -> tuple[int, int] | None:
    """Height and width; None of a file that cannot be read, which is told elsewhere."""
    if photo.array is not None:
        return photo.array.shape[0], photo.array.shape[1]
    source = photo.path if photo.encoded is None else io.BytesIO(photo.encoded)
    try:
        assert source is not None, "a photo has a path, an array or encoded bytes"
        with Image.open(source) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return image.size if turned else image.size[::-1]
    except Exception:  # decoders raise nearly anything on arbitrary bytes
        return None


def asked_of(spec: Spec) -> Asked:
    """What a spec asks of the hardware."""
    return Asked(
        precision=spec.quantize.precision,
        dla=spec.compile.dla,
        tf32=spec.compile.tf32,
        optimization_level=spec.compile.optimization_level,
        is_dynamic=spec.export.is_dynamic,
    )


def met_by(plan: Plan, network: Network | None = None) -> list[Violation]:
    """The rules that a plan meets; those on operators only where the network is known."""
    return violations(plan.target, asked_of(plan.spec), network)


def student_network(plan: Plan, made: Mapping[str, Artifact], precision: str) -> Network | None:
    """The student's operators: of its exported file, else as the search has them, else None.

    Args:
        plan: for the shape.
        made: the finished artifacts of its build.
        precision: what it is expected to run at.
    """
    if "export" in made:
        import onnx

        from kdcompile.latency_model.kernels import operators_of
        from kdcompile.onnx_graph.opset import opset_of

        model = onnx.load(made["export"].file("student.onnx"))
        operators = operators_of(model, plan.spec.export.profile[1])
        return Network(operators, precision, opset_of(model), model.ir_version)
    if "search" in made and OPERATORS in made["search"].files:
        rows = made["search"].json(OPERATORS)
        return Network([Operator.from_json(row) for row in rows], precision)
    return None
