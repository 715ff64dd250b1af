"""The mixed candidate: int8 where it pays and is accurate, by measured costs where there are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from kdcompile.backends.candidate_runner import Profiles, Rig
from kdcompile.backends.choose import Limits
from kdcompile.backends.mixed_residuals import Price, Rules, weigh
from kdcompile.calib.costs import Costs, measured_costs, measured_reformat_ms, predicted_costs
from kdcompile.calib.mixed import mix, mixed_model
from kdcompile.calib.qdq import weight_storage
from kdcompile.calib.residual import residual_branches
from kdcompile.calib.sensitivity import Outcome, Sensitivity, photo_evaluator
from kdcompile.calib.table import CalibrationTable
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Input, Preprocess
from kdcompile.data.splits import evenly
from kdcompile.onnx_graph.session import ROW_AXES
from kdcompile.onnx_graph.shapes import input_shape
from kdcompile.targets import Target
from kdcompile.tasks.task import Task

if TYPE_CHECKING:
    from onnx import ModelProto

NEEDS = ("int8", "fp16")


def add_mixed(
    rig: Rig,
    paths: dict[str, Path],
    calibrated: Artifact,
    target: Target,
    judge: tuple[Sequence[Photo], Preprocess, Task, Limits],
    image: Input,
    shape: Sequence[int],
    folder: Path,
    price: Price,
) -> None:
    """Plan the mixed network, write `student_mixed.onnx` and `mixed.json`, make it ready.

    Where the target or the rig lacks int8 or fp16, or no layer is worth int8, it is refused.

    Args:
        rig: with int8 and fp16 ready, which are profiled where there is something to profile.
        paths: the network's files by precision; the mixed one is put there.
        calibrated: `calibration.json`, `sensitivity.json`.
        target: what is built for.
        judge: images, how they become inputs, what outputs mean, and what must be kept.
        image, shape: an input of the typical shape, as deployed; of the exported network's image.
        folder: the stage's.
        price: what a network's file is predicted to take on the target at a precision.

    Raises:
        KDError: what evaluating and building the network raise.
    """
    if not _is_possible(rig, calibrated, target):
        return
    model = onnx.load(paths["fp32"])
    table = CalibrationTable.read(calibrated.file("calibration.json"))
    sensitivity = Sensitivity.from_json(calibrated.json("sensitivity.json"))
    shape = _shape_of(model, image, shape)
    costs = _costs(model, rig.profiles(image), shape, target)
    rules = _rules(model, sensitivity, judge)
    plan = mix(model, table, sensitivity, costs, rules)
    write_json(folder / "mixed.json", plan.to_json())
    if not plan.quantised:
        rig.refused["mixed"] = plan.summary
        return
    paths["mixed"] = folder / "student_mixed.onnx"
    make = partial(mixed_model, model, table, weight_storage(target.software), plan.quantised)
    _make_ready(rig, paths, make(), price)
    branches = residual_branches(model, plan.quantised, table.tensors)
    if branches and "mixed" in rig.runners:
        found = weigh(rig, paths, branches, make, rules, price, image)
        if found.kept:
            _make_ready(rig, paths, make(found.branches), price)
        told = replace(plan, summary=f"{plan.summary}; {found.why}")
        write_json(folder / "mixed.json", told.to_json() | {"residuals": found.to_json()})


def _make_ready(rig: Rig, paths: Mapping[str, Path], model: "ModelProto", price: Price) -> None:
    """Write the network, make it ready, and have it priced where it is not measured."""
    path = paths["mixed"]
    onnx.save(model, path)
    rig.expect("mixed", partial(price, path, "mixed"))
    rig.add("mixed", paths)


def _is_possible(rig: Rig, calibrated: Artifact, target: Target) -> bool:
    """Whether there is what planning takes; else `refused` says so, where the target could."""
    if "sensitivity.json" in calibrated.files and all(p in rig.runners for p in NEEDS):
        return True
    if all(p in target.precisions for p in NEEDS):
        rig.refused["mixed"] = "it needs int8, fp16 and the layers' sensitivity"
    return False


def _shape_of(model: "ModelProto", image: Input, shape: Sequence[int]) -> Sequence[int]:
    """That of the network's first input, where `image` is a row of all of them."""
    return input_shape(model) if image.ndim == ROW_AXES else shape


def _rules(
    model: "ModelProto",
    sensitivity: Sensitivity,
    judge: tuple[Sequence[Photo], Preprocess, Task, Limits],
) -> Rules:
    """An evaluation on some of the images, and whether what it finds is within the limits."""
    photos, preprocess, task, limits = judge
    some = evenly(list(photos), sensitivity.images)
    evaluate = photo_evaluator(model, some, preprocess, task, limits.metric)

    def keeps(found: Outcome) -> bool:
        # some images are not the whole split: what fp32 itself does on them is allowed too
        worst = limits.metric.worse_by(limits.limit, 0.0)
        allowed = max(worst, limits.metric.worse_by(sensitivity.fp32.metric, 0.0) * 1.01)
        inside = limits.metric.worse_by(found.metric, 0.0) <= allowed
        return bool(inside) and found.sqnr_db >= limits.min_sqnr_db

    return evaluate, keeps


def _costs(model: "ModelProto", profiles: Profiles, shape: Sequence[int], target: Target) -> Costs:
    """Measured where both engines were profiled and show every layer, else predicted."""
    predicted = predicted_costs(model, shape, target)
    if not all(p in profiles for p in NEEDS):
        return predicted
    reformat = measured_reformat_ms(model, profiles["int8"])
    try:
        found = measured_costs(model, profiles["int8"], profiles["fp16"], reformat or 0.0)
        # where no engine shows a reformat, its cost is still the prediction
        return found if reformat is not None else replace(found, reformat_ms=predicted.reformat_ms)
    except KDError as error:
        if error.code != "mixed-profile":
            raise
        return predicted
