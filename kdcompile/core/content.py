"""A description of Python objects by their content, for cache keys: values, code and arrays.

Equal objects have equal descriptions in every process of the same Python version. Code of a user's
own is described by its bytecode and by what that refers to by global names; code of an installed
library by its name and the library's version.
"""

import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
SITES = {"site-packages", "dist-packages"}  # folders of installed libraries
Seen = dict[int, tuple[int, Any]]
WRAPPING = ("__func__", "fget", "fset")  # of class methods, static methods and properties


def described(value: Any, seen: Seen | None = None) -> Any:
    """JSON values that differ where two objects differ in what they compute.

    Args:
        value: anything; of an object of a foreign type that has no `__dict__` the type alone.
        seen: the objects so far, by `id`, each with its number: it is described once.
    """
    seen = {} if seen is None else seen
    if isinstance(value, PLAIN):
        return repr(value)
    name = f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if id(value) in seen:
        return seen[id(value)][0]
    seen[id(value)] = len(seen), value  # held, so that no other object gets its id
    if isinstance(value, MethodType):
        return [described(value.__func__, seen), described(value.__self__, seen)]
    if isinstance(value, ModuleType):
        return _library(value.__name__) or [value.__name__, _file_digest(value)]
    if isinstance(value, FunctionType):
        return _library(value.__module__, value.__qualname__) or _function(value, seen)
    if isinstance(value, type):
        return _library(value.__module__, value.__qualname__) or _class(value, seen)
    if isinstance(value, Mapping):
        pairs = [[described(k, seen), described(v, seen)] for k, v in value.items()]
        return [name, sorted(pairs, key=str)]
    if isinstance(value, list | tuple):
        return [name, [described(one, seen) for one in value]]
    if isinstance(value, set | frozenset):
        return [name, sorted(str(described(one, seen)) for one in sorted(value, key=repr))]
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return [name, *_array(value)]
    if isinstance(value, functools.partial):
        return [name, *(described(one, seen) for one in (value.func, value.args, value.keywords))]
    attributes = getattr(value, "__dict__", None)
    text = repr(value) if attributes is None else ""
    own = described(attributes, seen) if attributes else "" if " at 0x" in text else text
    return [name, described(type(value), seen), own]


def _array(value: Any) -> list[Any]:
    """Type, shape and hash of a tensor or an array."""
    if hasattr(value, "detach"):
        import torch  # numpy has no bfloat16

        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        flat = value
    return [str(value.dtype), list(value.shape), hashlib.sha256(flat.tobytes()).hexdigest()]


def _library(module: str | None, name: str = "") -> str | None:
    """Name and version of what an installed library or Python has; None for a user's own."""
    name = f"{module}.{name}" if name else str(module)
    first, found = (sys.modules.get(m) for m in (str(module).partition(".")[0], str(module)))
    file = getattr(found, "__file__", None)
    standard = str(module).partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    if not standard and not (file and SITES & set(Path(file).parts)):
        return None
    return f"{name} {getattr(first, '__version__', '')}"


def _function(function: FunctionType, seen: Seen) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != type(cell)()]
    known = function.__globals__
    found = {name: known[name] for name in sorted(_names(function.__code__)) if name in known}
    parts = (function.__defaults__, function.__kwdefaults__, cells, found)
    return [_code(function.__code__), *(described(part, seen) for part in parts)]


def _names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names, *(name for one in inner for name in _names(one))}


def _code(code: CodeType) -> list[Any]:
    consts = [_code(c) if isinstance(c, CodeType) else described(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, consts]


def _class(kind: type, seen: Seen) -> list[Any]:
    """A class by its bases and its methods, properties and constants."""
    found: dict[str, Any] = {}
    for name, value in vars(kind).items():
        wrapped = [inner for part in WRAPPING if (inner := getattr(value, part, None)) is not None]
        if wrapped or isinstance(value, FunctionType) or not name.startswith("__"):
            found[name] = described(wrapped or value, seen)
    return [kind.__qualname__, [described(base, seen) for base in kind.__bases__], found]


def _file_digest(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
