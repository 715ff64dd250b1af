"""The registry of what can be added from outside: recipes, tasks, formats, gates, targets and more.

A package brings an object by an entry point of the group `kdcompile.KIND`, and code that is already
imported by `register(KIND, NAME)`. The built-in ones register in the modules that `BUILT_IN` names.
An entry point is imported when its name is asked for, so that a broken one breaks nothing else; so
is a backend or tracker of `BUILT_IN`, so that a list of their names stays light.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from kdcompile import __version__
from kdcompile.core.errors import KDError, nearest

ROOT = "kdcompile"
ONNXRUNTIME = "kdcompile.backends.onnxruntime_"
# the module, or package of modules, that registers the built-in ones, or the module of each name
BUILT_IN: dict[str, str | dict[str, str]] = {
    "recipes": "kdcompile.distill.recipes",
    "tasks": "kdcompile.tasks",
    "formats": "kdcompile.data.formats",
    "gates": "kdcompile.gates",
    "targets": "kdcompile.targets",
    "backends": {
        "tensorrt": "kdcompile.backends.tensorrt_",
        "onnxruntime": ONNXRUNTIME,
        "onnxruntime-cuda": ONNXRUNTIME,
        "onnxruntime-tensorrt": ONNXRUNTIME,
        "openvino": "kdcompile.backends.openvino_",
    },
    "calibrators": "kdcompile.calib.observers",
    "trackers": {
        "mlflow": "kdcompile.trackers.mlflow_",
        "tensorboard": "kdcompile.trackers.tensorboard_",
        "wandb": "kdcompile.trackers.wandb_",
    },
}
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """A registered object.

    Args:
        kind: a key of `BUILT_IN`.
        name: that a spec or a command calls it by.
        value: the object; what it must be depends on the kind.
        distribution: the installed distribution that brings it; empty for code of no distribution.
        version: of the distribution.
        source: the module that defines it, or its file.
    """

    kind: str
    name: str
    value: Any
    distribution: str
    version: str
    source: str


_known: dict[tuple[str, str], Plugin] = {}
_loading: list[tuple[str, str]] = []  # the distribution whose entry point is being imported


def register(kind: str, name: str, source: str = "") -> Callable[[T], T]:
    """Register the decorated object, or the one that the returned function is called with.

    Args:
        kind: a key of `BUILT_IN`.
        name: of the object.
        source: the module that defines it, for an object that does not know its own.

    Raises:
        KDError: `plugin-duplicate`, another object has the name.
    """

    def add(value: T) -> T:
        module = source or str(getattr(value, "__module__", ""))
        distribution, version = _loading[-1] if _loading else ("", "")
        if module.split(".")[0] == ROOT:  # also where a plug-in is the first to import it
            distribution, version = ROOT, __version__
        _add(Plugin(kind, name, value, distribution, version, module))
        return value

    return add


def find(kind: str, name: str, form: Any, where: str = "", fix: str = "") -> Any:
    """The object of that kind and name.

    Args:
        kind: a key of `BUILT_IN`.
        name: as a user wrote it.
        form: the type that it must be an instance or a subclass of, such as `Recipe`.
        where: the field that names it, for the error.
        fix: what to do about an unknown name; by default, to use a known one.

    Raises:
        KDError: `KIND-unknown`, `plugin-broken`, `plugin-duplicate` or `plugin-invalid`.
    """
    found = plugin(kind, name)
    if found is None:
        known = names(kind)
        raise KDError(
            f"{kind[:-1]}-unknown",
            f"there is no {kind[:-1]} {name!r}{nearest(name, known)}",
            where=where,
            fix=fix or f"use one of {', '.join(known)}",
        )
    value = found.value
    if isinstance(value, form) or (isinstance(value, type) and issubclass(value, form)):
        return value
    wanted = getattr(form, "__name__", str(form))
    raise KDError(
        "plugin-invalid",
        f"{kind[:-1]} {name!r} of {_by(found)} is no {wanted}: {value!r}",
        where=found.source,
        fix=f"correct the entry point, or uninstall {found.distribution or found.source}",
    )


def plugin(kind: str, name: str) -> Plugin | None:
    """The registered object with where it is from; None where the name is not known.

    Raises:
        KDError: `plugin-broken` or `plugin-duplicate`.
    """
    built_in = BUILT_IN[kind]
    module = built_in if isinstance(built_in, str) else built_in.get(name)
    if module is not None:
        _load_built_in(module)
    for entry in entries(kind):
        if entry.name == name:
            _load(kind, entry)
    return _known.get((kind, name))


def brought_by(kind: str, name: str) -> str:
    """The distribution and version that a plug-in is of, or its module; empty for built-in ones.

    Nothing is imported for it, so that a plan stays light.
    """
    for entry in entries(kind):
        if entry.name == name:
            return " ".join(_distribution(entry))
    found = _known.get((kind, name))
    return "" if found is None or found.distribution == ROOT else _by(found)


def names(kind: str) -> list[str]:
    """Every known name of a kind, the built-in ones first; no entry point is imported."""
    return list(dict.fromkeys([*loaded(kind), *(entry.name for entry in entries(kind))]))


def loaded(kind: str) -> list[str]:
    """The names of the built-in objects of a kind, and of what else is imported already."""
    built_in = BUILT_IN[kind]
    if isinstance(built_in, str):
        _load_built_in(built_in)
        built_in = {}
    return list(dict.fromkeys([*built_in, *(name for of, name in _known if of == kind)]))


def listing(kind: str) -> list[tuple[Plugin, KDError | None]]:
    """Every object of a kind, with the error of one that cannot be used; its value is None."""
    found: list[tuple[Plugin, KDError | None]] = []
    for name in names(kind):
        try:
            one = plugin(kind, name)
            assert one is not None, "a name that is listed is known"
            found.append((one, None))
        except KDError as error:
            entry = next(entry for entry in entries(kind) if entry.name == name)
            found.append((Plugin(kind, name, None, *_distribution(entry), entry.value), error))
    return found


@cache
def _load_built_in(module: str) -> None:
    package = importlib.import_module(module)
    for inner in pkgutil.iter_modules(getattr(package, "__path__", ())):
        importlib.import_module(f"{module}.{inner.name}")


@cache
def entries(kind: str) -> tuple[EntryPoint, ...]:
    """The entry points of a kind that are installed; none of them is imported."""
    return tuple(entry_points(group=f"{ROOT}.{kind}"))


@cache
def _load(kind: str, entry: EntryPoint) -> None:
    """Import an entry point and register its object with its distribution."""
    name, version = _distribution(entry)
    _loading.append((name, version))
    try:
        value = entry.load()
    except KDError:
        raise
    except (Exception, SystemExit) as error:
        raise KDError(
            "plugin-broken",
            f"{kind[:-1]} {entry.name!r} of {name} {version} does not import: "
            f"{type(error).__name__}: {error}",
            where=f"{entry.value}, entry point of {name}",
            fix=f"install another version of {name}, or uninstall it: pip uninstall {name}",
        ) from error
    finally:
        _loading.pop()
    _add(Plugin(kind, entry.name, value, name, version, entry.value))


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    assert entry.dist is not None, "an entry point that is found knows its distribution"
    return entry.dist.name, entry.dist.version


def _add(new: Plugin) -> None:
    old = _known.get((new.kind, new.name))
    # the same object again, as a decorator and an entry point name it, or a module that is reloaded
    again = old is None or old.value is new.value
    if not again and old is not None:
        written = (getattr(one.value, "__qualname__", one.source) for one in (old, new))
        again = old.source == new.source and len(set(written)) == 1
    if old is not None and not again:
        remove = new.distribution or old.distribution
        raise KDError(
            "plugin-duplicate",
            f"{new.kind[:-1]} {new.name!r} is defined by {_by(old)} and by {_by(new)}",
            where=f"{old.source} and {new.source}",
            fix=f"uninstall one of them, such as pip uninstall {remove}, or rename the "
            f"{new.kind[:-1]}",
        )
    if old is None or new.distribution:
        _known[new.kind, new.name] = new


def _by(found: Plugin) -> str:
    return f"{found.distribution} {found.version}" if found.distribution else found.source
