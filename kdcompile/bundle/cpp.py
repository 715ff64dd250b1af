"""`cpp/`: the sample for a device that runs the engine without Python."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdcompile.bundle.fill import fill
from kdcompile.bundle.network_io import Tensor
from kdcompile.core.files import write_text

FOLDER = "cpp"
SOURCES = ("infer.cpp", "image.hpp", "sha256.hpp", "CMakeLists.txt")


def write_cpp(
    folder: Path,
    preprocess: Mapping[str, Any],
    io: tuple[Tensor, Tensor],
    task: str,
    classes: Sequence[str] | None,
) -> None:
    """Write the sources, and `preprocess.hpp` with this network's constants.

    Args:
        folder: the bundle.
        preprocess: `preprocess.json`.
        io: the network's input and output.
        task: the task kind.
        classes: names of the classes, where they have any.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    templates = files("kdcompile.bundle").joinpath("templates")
    for name in SOURCES:
        text = templates.joinpath(name).read_text(encoding="utf-8")
        write_text(folder / FOLDER / name, text)
    header = fill(
        "preprocess.hpp.j2",
        pre=preprocess,
        task=task,
        input=io[0].name,
        output=io[1].name,
        classes=classes or (),
    )
    write_text(folder / FOLDER / "preprocess.hpp", header)
