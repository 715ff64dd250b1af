"""The source files that a module of kdcompile depends on, found by following its imports."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcompile.core.files import file_sha256

ROOT = "kdcompile"
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
NEEDED = re.compile(r"\b(?:need|import_module)\(\s*\"(\w+)")
QUOTED = re.compile(r'"([^"/\s]+\.\w+)"')
FOR_TYPES = re.compile(r"^[ \t]*if TYPE_CHECKING:\n(?:[ \t]+[^\n]*\n|\n)+", re.MULTILINE)
DISTRIBUTIONS = {"PIL": "pillow", "tensorrt_rtx": "tensorrt-rtx", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Sources:
    """What a module depends on.

    Args:
        files: the Python files and data files of kdcompile, by a name that is the same anywhere.
        libraries: the distributions of other projects that these files import.
    """

    files: dict[str, Path]
    libraries: frozenset[str]


@dataclass(frozen=True)
class _Module:
    """What one file imports, of kdcompile and of others, and the names of files in it."""

    path: Path
    imports: tuple[str, ...]
    libraries: frozenset[str]
    quoted: frozenset[str]


@cache
def sources_of(module: str) -> Sources:
    """The files and libraries that a module imports, directly or not, at any place but for types.

    A package that is imported as a whole (`import kdcompile.gates`) stands for all its modules:
    that is how registries name what they load.
    """
    found: dict[str, _Module] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        one = _module(name) if name not in found else None
        if one is not None:
            found[name] = one
            waiting += one.imports
    files = {name: one.path for name, one in found.items()}
    quoted = frozenset[str]().union(*(one.quoted for one in found.values()))
    libraries = frozenset[str]().union(*(one.libraries for one in found.values()))
    return Sources(files | _data(files, quoted), libraries)


@cache
def _module(name: str) -> _Module | None:
    """A module or package, read once for all passes; None for a name that is neither."""
    path = _path(name)
    if path is None:
        return None
    text = FOR_TYPES.sub("", path.read_text(encoding="utf-8"))
    imported = list(_imported(text))
    others = {one for one in imported if one.split(".")[0] != ROOT} - sys.stdlib_module_names
    return _Module(
        path,
        tuple(one for one in imported if one.split(".")[0] == ROOT),
        frozenset(DISTRIBUTIONS.get(one, one) for one in others),
        frozenset(QUOTED.findall(text)),
    )


def source_key(module: str, version: int = 1) -> Any:
    """What a cache key holds of a module's code.

    Args:
        module: its full name, such as `__name__`.
        version: what an installed release keys by; it rises when a release changes results.

    Returns:
        In a checkout the hash of each file that the module depends on, by its path in the package;
        else the version.
    """
    if not is_checkout():
        return version
    return _hashes(module)


@cache
def _hashes(module: str) -> dict[str, str]:
    """As the files were when this process asked first: it goes on with what it has imported."""
    files = sources_of(module).files
    return {_shown(name, path): file_sha256(path) for name, path in sorted(files.items())}


def _shown(name: str, path: Path) -> str:
    """`distill/train.py` of kdcompile.distill.train; data files are named so already."""
    if "/" in name:
        return name
    inner = name.removeprefix(ROOT).strip(".").replace(".", "/")
    return f"{inner}/__init__.py".strip("/") if path.name == "__init__.py" else f"{inner}.py"


def is_checkout() -> bool:
    """Whether kdcompile runs from its repository, where sources change between versions."""
    return (_folder(ROOT).parent / "pyproject.toml").is_file()


def _imported(text: str) -> Iterator[str]:
    """Modules of kdcompile by their full names; other projects' by the first part."""
    yield from NEEDED.findall(text)
    for module, names, plain in IMPORT.findall(text):
        for whole in re.findall(r"[\w.]+", re.sub(r"\bas[ \t]+\w+", "", plain)):
            yield from _whole(whole) if whole.split(".")[0] == ROOT else [whole.split(".")[0]]
        if not module:
            continue
        if module.split(".")[0] != ROOT:
            yield module.split(".")[0]
            continue
        yield module
        names = re.sub(r"#[^\n]*|\bas[ \t]+\w+", "", names)
        for name in re.findall(r"\w+", names):
            yield from _whole(f"{module}.{name}")


def _whole(name: str) -> Iterator[str]:
    """A module, or a package with its modules; `_path` drops what is neither."""
    path = _path(name)
    yield name
    if path is not None and path.name == "__init__.py" and name != ROOT:
        yield from (f"{name}.{one.stem}" for one in sorted(path.parent.glob("[!_]*.py")))


@cache
def _folder(package: str) -> Path:
    found = find_spec(package)
    assert found is not None, f"{package} is part of kdcompile"
    assert found.submodule_search_locations, f"{package} is a package"
    return Path(found.submodule_search_locations[0])


@cache
def _path(name: str) -> Path | None:
    """The file of a module or package; None for a name that is neither."""
    first, *rest = name.split(".")[1:] or [""]
    folder = _folder(ROOT)
    if not (folder / first).exists() and first in ("calib", "examples", "kernels", "targets"):
        folder = _folder(f"{ROOT}.{first}")
    else:
        rest = [first, *rest] if first else rest
    place = folder.joinpath(*rest)
    for path in (place / "__init__.py", place.with_suffix(".py") if rest else place):
        if path.is_file():
            return path
    return None


def _data(files: dict[str, Path], quoted: frozenset[str]) -> dict[str, Path]:
    """Files that the code reads: in a folder beside it, or named in it.

    A target's own values are no source: they are in a key as values.
    """
    found = {}
    for folder in sorted({path.parent for path in files.values()}):
        for path in sorted(folder.iterdir()):
            if path.suffix not in (".py", ".typed") and path.name in quoted:
                found[f"{folder.name}/{path.name}"] = path
            if path.is_dir() and path.name != "__pycache__" and not list(path.glob("__init__.py")):
                inner = (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
                found |= {f"{folder.name}/{p.relative_to(folder).as_posix()}": p for p in inner}
    return {name: path for name, path in found.items() if path.is_file()}
