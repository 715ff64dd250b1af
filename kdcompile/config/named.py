"""Fields of a spec that name something of the plug-in registry."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from kdcompile.core import plugins
from kdcompile.core.errors import nearest

MISSPELT = 0.7  # alike enough to be a slip; resolution and regression are 0.6


@dataclass(frozen=True)
class Named:
    """Annotates a text: the name of something of a kind that is built in or a plug-in brings.

    Args:
        kind: as `core.plugins` has it.
        code: what else is accepted, such as `file.py:Class`; nothing else where it is empty.
    """

    kind: str
    code: str = ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The text's schema with a check of the name after it; nothing is imported before."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The known names, and what else is accepted."""
        known: dict[str, Any] = {"enum": sorted(plugins.names(self.kind))}
        return handler(schema) | ({"anyOf": [known, {"pattern": ":"}]} if self.code else known)

    def _known(self, name: str) -> str:
        known = sorted(plugins.names(self.kind))  # not as they happened to be imported
        if name in known or (self.code and ":" in name):
            return name
        known = [*known, f'"{self.code}"'] if self.code else known
        shown = f"use one of {', '.join(known)}"
        fix = shown + nearest(name, known, MISSPELT)
        raise PydanticCustomError("name_unknown", "{shown}", {"shown": shown, "fix": fix})
