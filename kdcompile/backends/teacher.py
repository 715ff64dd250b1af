"""The teacher's engine, which the student's is timed against."""

from pathlib import Path

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import BoardRig
from kdcompile.core.store import Artifact

FILES = {"fp32": "teacher.onnx", "fp16": "teacher_fp16.onnx"}


def teacher_precision(student: str) -> str:
    """What the teacher computes in beside a student: fp32 beside fp32, else fp16.

    A teacher is not calibrated; fp16 is what one would deploy without compressing it.
    """
    return "fp32" if student == "fp32" else "fp16"


def keep_teacher(rig: BoardRig, export: Artifact, student: str, folder: Path) -> None:
    """Build the teacher's engine where the student's is; `teacher.engine` and its sidecar.

    Raises:
        KDError: what the worker says of the network.
    """
    paths = {p: export.file(name) for p, name in FILES.items() if name in export.files}
    precision = teacher_precision(student)
    plan = rig.place.about["precisions"].get(precision)
    if plan is None or plan["onnx"] not in paths:
        precision = "fp32"  # the GPU has no fp16, or the teacher's weights overflow in it
    onnx, profile = rig.onnx(precision, paths), rig.spec.export.profile
    built = engine.build(rig.place, rig.board, onnx, precision, rig.spec.compile, profile)
    engine.bring(rig.place, built, folder / "teacher.engine")
