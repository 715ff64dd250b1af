"""Optional libraries, imported when they are needed and never before."""

import importlib
from types import ModuleType

from kdcompile.errors import ToolMissingError


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of kdcompile brings it.

    Raises:
        ToolMissingError: it is not installed, or its own libraries do not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ToolMissingError(
            "tool-missing",
            f"{purpose} needs {module}, which does not import: {error}",
            fix=f"pip install 'kdcompile[{extra}]', then kdcompile doctor",
        ) from error
