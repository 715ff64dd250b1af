"""Code that a spec names: a file in the spec's folder or an installed package, nothing else."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from kdcompile.errors import KDError


def load_factory(name: str, folder: Path) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names.

    Raises:
        KDError: `factory-syntax`, `factory-outside`, `factory-missing` or `factory-broken`.
    """
    module_name, mark, function = name.partition(":")
    if not mark or not module_name or not function:
        raise KDError(
            "factory-syntax", f"{name!r} is not file.py:function or package.module:function"
        )
    module = _module(module_name, folder)
    found = getattr(module, function, None)
    if not callable(found):
        raise KDError(
            "factory-missing",
            f"{module_name} has no function {function!r}",
            where=str(module.__file__),
            fix=f"define {function}() there, or name another function in the spec",
        )
    return found  # type: ignore[no-any-return]


def factory_sources(name: str, folder: Path) -> list[Path]:
    """The source files that a factory may run: every .py of the folder, or the installed module."""
    module_name = name.partition(":")[0]
    if module_name.endswith(".py"):
        _inside(module_name, folder)
        return sorted(p for p in folder.glob("*.py") if p.is_file())
    found = importlib.util.find_spec(module_name)
    return [Path(found.origin)] if found is not None and found.origin else []


def _inside(name: str, folder: Path) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise KDError(
            "factory-outside",
            f"{name} lies outside the spec's folder",
            where=str(path),
            fix=f"copy the file into {folder}, or install it as a package",
        )
    if not path.is_file():
        raise KDError("factory-missing", f"there is no {name}", str(path), "correct the name")
    return path


def _module(name: str, folder: Path) -> ModuleType:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = _inside(name, folder)
        # a name of its own per file, so that two specs with a model.py each do not meet
        unique = f"_kdcompile_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None, "a .py file has a loader"
        assert spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        spec.loader.exec_module(module)
    except KDError:
        raise
    except Exception as error:
        raise KDError(
            "factory-broken",
            f"{name} does not import: {type(error).__name__}: {error}",
            where=name,
            fix=f"python -c 'import runpy; runpy.run_path(\"{name}\")' shows the full trace",
        ) from error
    return module
