"""The build kit: what a board needs to build its own engine and prove it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile import __version__
from kdcompile.config.deploy import Profile
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json, write_text
from kdcompile.core.ports import Ports
from kdcompile.remote import archive, frame
from kdcompile.targets import Target
from kdcompile.tasks.task import Task

TEMPLATES = Path(__file__).parent / "kit"
SCRIPT, FRAME, README = "build_engine.py", "frame.py", "README.md"
INPUT = "image"
MAX_REFERENCES = 4
SETTINGS = (
    "workspace_mb", "optimization_level", "deterministic", "dla", "tf32",
)  # fmt: skip  # of [compile]
Reference = tuple[
    Sequence[NDArray[np.float32]], Mapping[str, Sequence[NDArray[np.float32]]]
]  # inputs, and outputs by precision


def write_kit(
    folder: Path,
    target: Target,
    onnx_by_precision: Mapping[str, Path],
    calibration: Path,
    preprocess: Path,
    gates: tuple[Mapping[str, Any], Mapping[str, Sequence[str]]],
    reference: Reference,
    task: Task,
    *,
    profile: Profile,
    predicted: str,
    settings: Mapping[str, Any] | None = None,
    inputs: Ports | None = None,
    teacher: Path | None = None,
    sample: str | None = None,
    code: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write `folder/kit/`; `kit.json` lists every other file with its SHA-256.

    Args:
        folder: where `kit/` is made.
        target: the board.
        onnx_by_precision: the student's files; fp32 must be among them. Any precision that the
            worker knows may be: fp16, bf16, int8, fp8, mixed.
        calibration: the table of int8 ranges.
        preprocess: how images become inputs.
        gates: the `gates` section of the spec as JSON values, and what a board decides of it
            (`Gates.board_limits`).
        reference: 1 to 4 inputs, and the outputs of ONNX Runtime for them: fp32's, which the
            board compares with, and those of other precisions that run here.
        task: what the outputs mean.
        profile: smallest, typical and largest input shape.
        predicted: the precision that was chosen without the board.
        settings: the `compile` section of the spec: what `build_engine.py` does unless told
            otherwise.
        inputs: of networks that run on rows, all of them.
        teacher: its ONNX file, which a test pack must have too.
        sample: the text of `infer.py`, where the board times it on photos too.
        code: files of the user's decode, which it runs then, by their names in the kit.

    Returns:
        What `kit.json` says.

    Raises:
        KDError: `kit-reference`, the reference does not hold what the board compares with.
    """
    _check(onnx_by_precision, reference)
    kit = folder / "kit"
    kit.mkdir(parents=True)
    for precision, path in onnx_by_precision.items():
        shutil.copyfile(path, kit / f"student_{precision}.onnx")
    shutil.copyfile(calibration, kit / "calibration.json")
    shutil.copyfile(preprocess, kit / "preprocess.json")
    write_json(kit / "gates.json", dict(gates[0]))
    _save(kit / "reference.npz", reference)
    (kit / archive.NAME).write_bytes(archive.agent_zip())
    shutil.copyfile(TEMPLATES / SCRIPT, kit / SCRIPT)
    for name, path in (code or {}).items():
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kit / name)
    if sample is not None:
        if task.settings():
            write_json(kit / frame.TASK, task.settings())
        write_text(kit / frame.SAMPLE, sample)
        shutil.copyfile(frame.__file__, kit / FRAME)
    about = _about(target, list(onnx_by_precision), task, profile, predicted, inputs)
    about["limits"] = dict(gates[1])
    if teacher is not None:
        about["teacher"] = file_sha256(teacher)
    about["compile"] = {key: (settings or {}).get(key) for key in SETTINGS}
    write_text(kit / README, _readme(target, about))
    inside = sorted(path for path in kit.rglob("*") if path.is_file())
    files = {path.relative_to(kit).as_posix(): file_sha256(path) for path in inside}
    meta = {**about, "files": files}
    write_json(kit / "kit.json", meta)
    return meta


def _save(path: Path, reference: Reference) -> None:
    """`input_I`, and `output_PRECISION_I` for each precision."""
    inputs, outputs = reference
    arrays = {f"input_{i}": image for i, image in enumerate(inputs)}
    for precision, found in outputs.items():
        arrays |= {f"output_{precision}_{i}": output for i, output in enumerate(found)}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _check(onnx_by_precision: Mapping[str, Path], reference: Reference) -> None:
    inputs, outputs = reference
    whole = all(len(found) == len(inputs) for found in outputs.values())
    if not {"fp32"} <= set(onnx_by_precision) & set(outputs) or not whole:
        raise KDError(
            "kit-reference",
            f"the kit needs fp32 and as many outputs as inputs; it has {sorted(onnx_by_precision)}"
            f" and outputs { ({p: len(o) for p, o in outputs.items()}) } for {len(inputs)} inputs",
            where="the build kit",
            fix="report it: the compile stage makes both",
        )
    if not 1 <= len(inputs) <= MAX_REFERENCES:
        raise ValueError(f"a kit takes 1 to {MAX_REFERENCES} reference inputs, got {len(inputs)}")


def _about(
    target: Target,
    precisions: Sequence[str],
    task: Task,
    profile: Profile,
    predicted: str,
    inputs: Ports | None,
) -> dict[str, Any]:
    board = (
        "name", "title", "compute_capability", "jetpack", "tensorrt", "power_mode", "python",
        "memory_gb",
    )  # fmt: skip
    return {
        "kdcompile_version": __version__,
        "target": {name: getattr(target, name) for name in board},
        "precisions": list(precisions),
        "profile": [list(shape) for shape in profile],
        "predicted": predicted,
        "input": INPUT,
        "output": task.output,
        "task": task.like,
        **({} if inputs is None else {"inputs": inputs.to_json()}),
    }


def _readme(target: Target, about: Mapping[str, Any]) -> str:
    text = (TEMPLATES / README).read_text(encoding="utf-8")
    return Template(text).substitute(
        title=target.title,
        jetpack=target.jetpack,
        tensorrt=target.tensorrt,
        power_mode=target.power_mode,
        precisions=", ".join(about["precisions"]),
        predicted=about["predicted"],
    )
