"""Copies of a stage's files for `-o`: its main file, or all of them; never over an input."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing

if TYPE_CHECKING:
    from kdcompile.config.spec import Spec
    from kdcompile.core.store import Artifact

# the file of a stage's artifact that `-o FILE` asks for; the others go into a folder
MAIN_FILE = {
    "search": "architecture.json",
    "distill": "student.safetensors",
    "export": "student.onnx",
    "calibrate": "student_int8.onnx",
    "compile": "model.onnx",
}


def refuse_input(output: Path, spec: "Spec") -> None:
    """Refuse a place that the spec reads: its own file, weights, or anything among its data.

    Raises:
        KDError: `output-input`.
    """
    from kdcompile.delta.file import inputs_of

    there = output.resolve()  # a link leads to what would be lost
    root = spec.data.root.resolve()
    beside = spec.folder.resolve().is_relative_to(root)  # what lies there may be any file
    is_read = any(one is not None and one.resolve() == there for one in inputs_of(spec))
    if is_read or (there.exists() and there.is_relative_to(root) and not beside):
        raise KDError(
            "output-input",
            f"{output.name} is read by the build: writing here would destroy it",
            where=str(output.absolute()),
            fix="name another path with -o",
        )


def copy_out(artifact: "Artifact", output: Path) -> str:
    """Copy the main file to a name with a suffix, or all files into a folder.

    Raises:
        KDError: `output-exists`, when the folder holds something else.
    """
    main = MAIN_FILE.get(artifact.stage)
    if main is not None and output.suffix == Path(main).suffix:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            shutil.copyfile(artifact.file(main), temporary)
        return str(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise KDError(
            "output-exists",
            f"{output} is not an empty folder",
            where=str(output.absolute()),
            fix=f"name a new folder, or a {Path(main or 'x.json').suffix} file",
        )
    shutil.copytree(artifact.path, output, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return str(output)
