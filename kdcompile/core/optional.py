"""Optional libraries, imported when they are needed and never before."""

import importlib
import os
import sys
from types import ModuleType

from kdcompile.core.errors import ToolMissingError

# ONNX Runtime 1.29 and newer send usage data and write below ~/.cache, while networks are timed
# too. They read this when their library loads: disable_telemetry_events() comes too late for it.
# The others are of libraries that a user's own model or data code may load.
NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and by it timm, transformers, datasets
    "DO_NOT_TRACK": "1",  # consoledonottrack.com
    "ALBUMENTATIONS_NO_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
# OpenVINO and NNCF ask it to send usage data as they load; no variable turns that off
SENDER = "openvino_telemetry"


def silence() -> None:
    """Turn libraries' telemetry off, here and in the processes that are started from here.

    Call it before they load; whatever the environment said before.
    """
    os.environ.update(NO_TELEMETRY)
    sys.modules[SENDER] = None  # type: ignore[assignment]  # importing it fails, as if absent


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

    It sends no usage data from here (`silence`).

    Raises:
        ToolMissingError: it is not installed, or its own libraries do not load.
    """
    silence()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ToolMissingError(
            "tool-missing",
            f"{purpose} needs {module}, which does not import: {error}",
            fix=f"pip install 'kdcompile[{extra}]', then kdcompile doctor",
        ) from error
