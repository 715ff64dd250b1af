"""What every command imports and reads of kdcompile itself, done once before a server forks.

It is half of what a short command takes, and no soak of files below a project sees it.
"""

import importlib
import pkgutil
from contextlib import suppress

from killed_builds import HEAVY

import kdcompile
from kdcompile.core.errors import ToolMissingError
from kdcompile.core.sources import sources_of
from kdcompile.passes.stages import STAGES

NOT = ("kdcompile.remote.agent", "kdcompile.examples", "kdcompile.kernels", "__main__")

for name in HEAVY:
    importlib.import_module(name)
for found in pkgutil.walk_packages(kdcompile.__path__, "kdcompile."):
    if not any(part in found.name for part in NOT):
        with suppress(ImportError, ToolMissingError):  # of what is not installed here
            importlib.import_module(found.name)
for stage in STAGES.values():
    sources_of(stage.module)
