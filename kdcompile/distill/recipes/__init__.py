"""The built-in recipes, one module each, which are registered by the name in their `about`."""

import importlib
import pkgutil
from dataclasses import replace

from kdcompile.core.plugins import register
from kdcompile.distill.recipe import Recipe

EVIDENCE = "tests/distill/recipes/test_{}.py; docs/recipes.md"

for _module in pkgutil.iter_modules(__path__):
    for _kind in vars(importlib.import_module(f"{__name__}.{_module.name}")).values():
        if isinstance(_kind, type) and issubclass(_kind, Recipe) and "about" in vars(_kind):
            if not _kind.about.evidence:
                _kind.about = replace(_kind.about, evidence=EVIDENCE.format(_module.name))
            register("recipes", _kind.about.name)(_kind)
