"""The Python sample of a task's bundles, as a module."""

import importlib.util
from pathlib import Path
from types import ModuleType

from kdcompile.bundle import python_sample


def sample_of(kind: str, folder: Path) -> ModuleType:
    """`infer.py` of a task, written to a folder and imported from there."""
    path = folder / "infer.py"
    path.write_text(python_sample.text(kind))
    spec = importlib.util.spec_from_file_location("_joined_sample", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
