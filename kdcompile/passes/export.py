"""The export stage: student and teacher as ONNX files that the target reads."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import load_student
from kdcompile.onnx_graph.fp16 import to_bf16, to_fp16
from kdcompile.onnx_graph.layers import count_macs
from kdcompile.onnx_graph.opset import at_opset, opset_of
from kdcompile.onnx_graph.session import ROW_AXES, cpu_session, run_session
from kdcompile.passes.teacher_file import is_kept, teacher_file
from kdcompile.targets import Target
from kdcompile.tasks.agreement import agreement
from kdcompile.tasks.task import preprocess_of, task_of

PARITY_IMAGES = 4
MAX_REL_ERROR = 1e-3  # float32 sums in another order stay far below
MAX_HALF_ERROR = 0.05  # of a file whose weights alone are rounded; a broken one is far beyond
Floats = NDArray[np.float32]


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Write student and teacher as ONNX with `parity.json` and `preprocess.json`.

    `student.onnx`, `teacher.onnx` and both in fp16 as `*_fp16.onnx`; for a target that has bf16,
    `student_bf16.onnx` too.

    Raises:
        KDError: the network cannot be exported for this target, or the file does not agree with
            PyTorch (`export-parity`).
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, store, target, folder))


def _build(step: Step, store: Store, target: Target, folder: Path) -> Mapping[str, Any]:
    spec, distilled = step.spec, step.inputs["distill"]
    prepare = preprocess_of(spec)
    images = prepared(load_splits(spec.data, spec.folder).val[:PARITY_IMAGES], prepare)
    teacher = load_teacher(spec)
    student = load_student(spec, distilled, teacher)

    output = task_of(spec).output
    models: dict[str, ModelProto] = {}
    report: dict[str, Any] = {}
    for name, module in (("student", student), ("teacher", teacher)):
        path = folder / f"{name}.onnx"
        if name == "teacher" and is_kept(spec, target):
            kept = teacher_file(spec, store, module)
            models[name] = at_opset(kept, target.max_opset, target.ir_version)
            onnx.save(kept, path)
        else:
            models[name] = onnx_from_module(
                module, path, spec.export.profile, target.max_opset, target.ir_version, output
            )
        report[name] = _checked(name, module, path, images)
    report["student_fp16"] = _half(student, models["student"], folder, images)
    with suppress(KDError):  # a teacher that overflows is timed in fp32
        onnx.save(to_fp16(models["teacher"]), folder / "teacher_fp16.onnx")
    if "bf16" in target.precisions:
        onnx.save(to_bf16(models["student"]), folder / "student_bf16.onnx")
    report |= {
        "opset": opset_of(models["student"]),
        "ir_version": models["student"].ir_version,
        "params": sum(p.numel() for p in student.parameters()),
        "macs": count_macs(models["student"], spec.export.profile[1]),
    }
    write_json(folder / "parity.json", report)
    write_json(folder / "preprocess.json", prepare.to_json())
    return {name: report[name] for name in ("opset", "ir_version", "params", "macs")} | {
        f"{name}_sqnr_db": report[name]["sqnr_db"] for name in ("student", "teacher")
    }


def _half(
    student: nn.Module, model: ModelProto, folder: Path, images: list[NDArray[np.float32]]
) -> dict[str, Any]:
    """Write `student_fp16.onnx` and compare it; where there is no such form, say `why`."""
    path = folder / "student_fp16.onnx"
    blank = {"finite": False, "max_rel_error": None, "sqnr_db": None, "n": len(images)}
    try:
        onnx.save(to_fp16(model), path)
        return blank | _half_agreement(student, path, images)
    except KDError as error:  # the network may still be deployed in another precision
        path.unlink(missing_ok=True)
        return blank | {"why": error.message}


def _half_agreement(
    student: nn.Module, path: Path, images: list[NDArray[np.float32]]
) -> dict[str, Any]:
    """`agreement` of float16 with float32, and `finite`; nothing where it overflows.

    Overflow is recorded, not raised: the network may still be deployed in another precision. That
    the file itself runs is checked with ONNX Runtime.
    """
    outputs = half_outputs(student, images)
    if not all(np.isfinite(output).all() for output in outputs):
        return {}
    reference = torch_outputs(student, images)
    file = agreement(reference, onnx_outputs(path, images))
    found = agreement(reference, outputs)
    if file["max_rel_error"] > MAX_HALF_ERROR:
        raise KDError(
            "export-parity",
            f"the float16 file differs by {file['max_rel_error']:.2g} of the largest output "
            f"(allowed {MAX_HALF_ERROR:g})",
            where=path.name,
            fix='set quantize.precision = "fp32" or "int8", and report the network',
        )
    return {"finite": True, **found}


def prepared(photos: list[Photo], prepare: Preprocess) -> list[NDArray[np.float32]]:
    """The photos as network inputs."""
    return [prepare.input_of(photo) for photo in photos]


def _checked(
    name: str, module: nn.Module, path: Path, images: list[NDArray[np.float32]]
) -> dict[str, float]:
    found = parity(module, path, images)
    if found["max_rel_error"] > MAX_REL_ERROR:
        raise KDError(
            "export-parity",
            f"the {name}'s ONNX differs from PyTorch by {found['max_rel_error']:.2g} of the "
            f"largest output (allowed {MAX_REL_ERROR:g})",
            where=path.name,
            fix="look for operators whose ONNX form differs, such as a custom autograd function",
        )
    return found


def torch_outputs(module: nn.Module, images: Iterable[Floats]) -> list[Floats]:
    """The module's float32 output for each image [1, C, H, W]."""
    with torch.inference_mode():
        return [module(torch.from_numpy(image)).numpy() for image in images]


def half_outputs(module: nn.Module, images: Iterable[Floats]) -> list[Floats]:
    """The same with weights, and what each layer gives, rounded to float16; sums stay float32.

    This is what a GPU stores. ONNX Runtime on a CPU removes the casts of a float16 file and keeps
    activations in float32, so it can show neither their rounding nor an overflow.
    """
    rounded = copy.deepcopy(module).half().float()

    def round_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.half().float(), output)

    for layer in rounded.modules():
        if not list(layer.children()):
            layer.register_forward_hook(round_output)
    # a row holds whole numbers too, which half precision would change
    rows_apart = (x if x.ndim == ROW_AXES else _halved(x) for x in images)
    return torch_outputs(rounded, rows_apart)


def _halved(image: Floats) -> Floats:
    found: Floats = torch.from_numpy(image).half().float().numpy()
    return found


def onnx_outputs(path: Path, images: Iterable[Floats]) -> list[Floats]:
    """The same of an ONNX file, by ONNX Runtime on the CPU."""
    session = cpu_session(path)
    return [run_session(session, image) for image in images]


def parity(module: nn.Module, path: Path, images: Sequence[Floats]) -> dict[str, float]:
    """`agreement` of an ONNX file with the PyTorch module that it was made from."""
    return agreement(torch_outputs(module, images), onnx_outputs(path, images))
