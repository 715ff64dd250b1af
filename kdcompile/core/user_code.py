"""Code that a spec names: a file in the spec's folder or an installed package, nothing else."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os.path import isfile
from pathlib import Path
from types import ModuleType
from typing import Any

from kdcompile.core.errors import KDError, nearest

_opened: set[str] = set()  # the folder that is open to imports


def load_factory(name: str, folder: Path) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names.

    Raises:
        KDError: `factory-syntax`, `factory-outside`, `factory-missing` or `factory-broken`.
    """
    module_name, mark, function = name.partition(":")
    if not mark or not module_name or not function:
        raise KDError(
            "factory-syntax",
            f"{name!r} is not file.py:function or package.module:function",
            where=f"a factory that the spec in {folder} names",
            fix='write it as "model.py:build", or as "package.module:build" if it is installed',
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
    """The source files that a factory may run.

    Of a file beside the spec: every .py of the spec's folder and of the packages in it, which a
    bundle that a build put there is none of. Of an installed module: every .py of its package; of
    kdcompile's own the module, as the packages that a stage uses are in its key.

    Raises:
        KDError: `factory-outside` or `factory-missing`.
    """
    module_name = name.partition(":")[0]
    if module_name.endswith(".py"):
        _inside(module_name, folder)
        manifests = (path.parent for path in folder.glob("*/manifest.json"))
        bundles = {path for path in manifests if (path / "infer.py").is_file()}
        packages = {path.parent for path in folder.glob("*/*.py")} - bundles
        return sorted({*folder.glob("*.py"), *_sources_below(packages)})
    try:
        found = importlib.util.find_spec(module_name)
        package = importlib.util.find_spec(module_name.partition(".")[0])
    except Exception:  # a part of its name is no package, or one that does not import
        found = package = None
    if found is None or package is None:
        raise _not_installed(module_name, name, folder)
    own = package.name == "kdcompile"
    places = map(Path, () if own else package.submodule_search_locations or ())
    return sorted({*_sources_below(places), *([Path(found.origin)] if found.origin else [])})


def _not_installed(module: str, name: str, folder: Path) -> KDError:
    top = module.partition(".")[0]
    return KDError(
        "factory-missing",
        f"there is no installed module {module!r}",
        where=f"{name} of the spec in {folder}",
        fix=f"install its package here, pip install {top}, or name a file next to the spec, such "
        "as model.py:build",
    )


def _sources_below(folders: Iterable[Path]) -> set[Path]:
    return {path for folder in set(folders) for path in folder.rglob("*.py") if path.is_file()}


def _inside(name: str, folder: Path) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise KDError(
            "factory-outside",
            f"{name} lies outside the spec's folder",
            where=str(path),
            fix=f"copy the file into {folder}, or install it as a package",
        )
    if not isfile(path):
        known = sorted(p.name for p in folder.glob("*.py"))
        raise KDError(
            "factory-missing",
            f"there is no {name}{nearest(name, known)}",
            where=str(path),
            fix=f"put the file into {folder}, or correct its name in the spec",
        )
    return path


@contextmanager
def users_code(code: str, what: str, where: str, fix: str) -> Iterator[None]:
    """Run what a user wrote: whatever it raises becomes an error block."""
    try:
        yield
    except KDError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{what}: {type(error).__name__}: {error}"
        raise KDError(code, text, where=where, fix=fix) from error


def _module(name: str, folder: Path) -> ModuleType:
    fix = "fix the error in it; kdcompile --debug plan shows the full trace"
    where = f"{name} of the spec in {folder}"
    with users_code("factory-broken", f"{name} does not import", where, fix):
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
        _open_to_imports(folder)
        with _no_bytecode():
            spec.loader.exec_module(module)
    return module


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """None is written beside a user's files, where one of the same second and size would be run."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _open_to_imports(folder: Path) -> None:
    """Let code import what lies beside the spec, and no longer what lay beside another one.

    The folder is the last place where Python looks: a file there hides no installed module.
    """
    place = str(folder.resolve())
    for other in _opened - {place}:
        _opened.discard(other)
        sys.path.remove(other)
        for name, module in list(sys.modules.items()):
            if _file_of(module).startswith(other) and _lies_at(module, name, Path(other)):
                del sys.modules[name]
    if place not in sys.path:
        _opened.add(place)
        sys.path.append(place)
        importlib.invalidate_caches()


def _lies_at(module: ModuleType, name: str, folder: Path) -> bool:
    """Whether a module was imported from under a folder by its name."""
    base = folder.joinpath(*name.split("."))
    own = name.partition(".")[0] == "kdcompile"
    return not own and _file_of(module) in (f"{base}.py", str(base / "__init__.py"))


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ""
