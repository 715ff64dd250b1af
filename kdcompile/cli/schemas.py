"""JSON Schemas of what `--json` prints, each derived from the dataclass that the command prints.

Where a document has `dict[str, Any]`, its keys depend on the device or on the stage.
"""

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from kdcompile.api import Built
from kdcompile.cli.plugins import Plugins, Recipe, RecipeLine
from kdcompile.cli.run import Failed
from kdcompile.cli.targets import Targets
from kdcompile.cli.tools import Removed, Written
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.report import Report
from kdcompile.debug.network import BundleCheck
from kdcompile.debug.show import Bisection, Parity
from kdcompile.delta.applying import Applied, Made
from kdcompile.environment.doctor import Check
from kdcompile.latency.benchmark import Compared, Measured
from kdcompile.latency.keep_baseline import Baselines, Kept
from kdcompile.latency_model.calibrate import Calibration
from kdcompile.latency_model.validate import Validation
from kdcompile.passes.label import ToLabel
from kdcompile.passes.show import Planned
from kdcompile.targets import Target
from kdcompile.targets.fixtures import Fixture
from kdcompile.targets.rules_file import Rule

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NamedTarget(Target):
    """A target with the name that its power mode and JetPack are in."""

    full_name: str = field()


@dataclass(frozen=True, kw_only=True)
class NamedPlan(Planned):
    """`kdcompile plan`, whose target bears its full name."""

    target: NamedTarget


class Staged(TypedDict):
    """One stage: what it made, where, and what it found."""

    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012
    stage: str
    path: str


class Explained(TypedDict):
    """`kdcompile distill --explain`."""

    minutes: float | None
    stages: list[Json]
    student: Json
    task: str
    to_try: Json | None
    tried: Json | None
    metric: str


@dataclass(frozen=True, kw_only=True)
class ShownTarget(Target):
    """`kdcompile targets show`."""

    rules: list[Rule] = field()  # type: ignore[assignment]
    fixtures: list[Fixture]


DOCUMENTS: dict[str, Any] = {
    "init": Written,
    "plan": NamedPlan | ToLabel,
    "build": Built,
    "search": Staged,
    "distill": Staged | Explained,
    "export": Staged,
    "calibrate": Staged,
    "compile": Staged,
    "bundle": Staged | Built,
    "verify": Report | BundleCheck | Parity,
    "bisect": Bisection,
    "bench": Measured | Compared,
    "compare": Compared,
    "baseline init": Kept,
    "baseline update": Kept,
    "baseline show": Baselines,
    "delta make": Made,
    "delta apply": Applied,
    "run": Failed | Json,  # of each line; a result has the keys of its task
    "targets": Targets,
    "targets show": ShownTarget,
    "targets validate": Validation,
    "targets calibrate": Calibration,
    "plugins": Plugins,
    "recipes": dict[str, RecipeLine],
    "recipes show": Recipe,
    "report": Report,
    "doctor": list[Check],
    "clean": Removed,
    "schema": Json,
}


def schema_of(command: str) -> Json:
    """The JSON Schema of what a command prints.

    Raises:
        KDError: `command-unknown`.
    """
    if command not in DOCUMENTS:
        raise KDError(
            "command-unknown",
            f"there is no command {command!r} that prints JSON{nearest(command, DOCUMENTS)}",
            where="--of",
            fix=f"name one of {', '.join(DOCUMENTS)}",
        )
    found = TypeAdapter(DOCUMENTS[command]).json_schema(mode="serialization", by_alias=True)
    _close(found)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"kdcompile {command} --json",
    } | {key: value for key, value in found.items() if key != "title"}


def _close(schema: Any) -> None:
    """Let objects have the fields that they name and no others, where nothing else is said."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)
