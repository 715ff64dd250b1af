"""Optional libraries, imported when they are needed and never before."""

import importlib
import os
from types import ModuleType

from kdcompile.core.errors import ToolMissingError

# ONNX Runtime 1.29 and newer send usage data and write below ~/.cache, while networks are timed
# too. They read this when their library loads: disable_telemetry_events() comes too late for it.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}


def keep_caches_together() -> None:
    """Have Matplotlib write below kdcompile's own cache, unless the environment names a folder.

    It writes into `~/.config` and `~/.cache/matplotlib` otherwise; also, no figure of a report
    then depends on the user's own settings for figures. Call it before Matplotlib loads.
    """
    base = os.environ.get("KDCOMPILE_CACHE") or os.path.expanduser("~/.cache/kdcompile")
    if os.path.isabs(base):  # else there is no home folder
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(base, "matplotlib"))


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of kdcompile brings it.

    ONNX Runtime sends no usage data from here, whatever the environment said before.

    Raises:
        ToolMissingError: it is not installed, or its own libraries do not load.
    """
    os.environ.update(NO_TELEMETRY)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ToolMissingError(
            "tool-missing",
            f"{purpose} needs {module}, which does not import: {error}",
            fix=f"pip install 'kdcompile[{extra}]', then kdcompile doctor",
        ) from error
