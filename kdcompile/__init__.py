"""kdcompile: a compression compiler that turns a trained teacher into a proven edge bundle.

The verbs of `kdcompile.api` are here by name, imported when they are first called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcompile.api import (
        bench,
        build,
        calibrate,
        compare,
        distill,
        export,
        load_bundle,
        plan,
        search,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "bench",
    "build",
    "calibrate",
    "compare",
    "distill",
    "export",
    "load_bundle",
    "plan",
    "search",
    "verify",
]
PACKAGES = ("distill", "export", "search")  # whose names are verbs too


def __getattr__(name: str) -> Any:
    """A verb, or the module `api`, imported when it is first asked for."""
    if name == "api" or name in PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verb(ModuleType):
    """A package that has the name of a verb, such as `kdcompile.search`: calling it is the verb."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(import_module("kdcompile.api"), verb)(*args, **named)


class _Package(ModuleType):
    """This package, which makes those of `PACKAGES` callable as they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
