"""What `--json` prints: the type of each command's one document, and its JSON Schema.

Types of kdcompile's own are taken as they are, so that a field which is added there is published.
Where a document says `dict[str, Any]`, its keys depend on the device or on the stage.
"""

from dataclasses import dataclass, field
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from kdcompile.api import Built
from kdcompile.cli.plugins import Plugins
from kdcompile.cli.recipes import Recipe, RecipeLine
from kdcompile.cli.run import Failed
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.report import Report
from kdcompile.debug.reference_outputs import BundleCheck
from kdcompile.delta.result import Applied, Made
from kdcompile.environment.doctor import Check
from kdcompile.latency.compatibility import Difference
from kdcompile.latency_model.validate import Row
from kdcompile.passes.label import ToLabel
from kdcompile.passes.show import Planned
from kdcompile.stats.comparison import Comparison
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


class Ladder(TypedDict):
    """`kdcompile verify --parity`, and `bisect`, which adds what it found."""

    rungs: list[Json]
    images: Any
    n: int
    tolerance: float
    tolerance_why: str
    min_sqnr_db: float
    finding: NotRequired[Json | None]
    exit_code: int


class Measured(TypedDict):
    """`kdcompile bench` of one artifact alone."""

    candidate: Json
    decision: None
    exit_code: int
    saved: str | None


@dataclass(frozen=True, kw_only=True)
class Compared(Comparison):
    """`kdcompile bench` against a reference, and `compare`."""

    exit_code: int = field()
    candidate: Json
    reference: Json
    allowed: list[Difference]
    notes: list[str]
    looks: int
    to_decide: str | None
    saved: str | None


class Kept(TypedDict):
    """A baseline."""

    file: str
    name: str
    reference: str | None
    kdcompile_version: str
    samples: Json
    history: list[Json]


Baseline = TypedDict("Baseline", {**Kept.__annotations__, "class": str})  # type: ignore[misc]


class Baselines(TypedDict):
    """`kdcompile baseline show`."""

    baselines: list[Baseline]


class Targets(TypedDict):
    """`kdcompile targets`: titles by name, and names by alias."""

    targets: dict[str, str]
    aliases: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ShownTarget(Target):
    """`kdcompile targets show`."""

    rules: list[Rule] = field()  # type: ignore[assignment]
    fixtures: list[Fixture]


class Validated(TypedDict):
    """`kdcompile targets validate`."""

    fixtures: list[Row]
    median_error: float
    worst_error: float
    coverage: float
    goals: Json
    held_out: list[Row]
    held_out_apart: list[Row]
    unvalidated: list[str]
    inexact: list[str]


class Calibrated(TypedDict):
    """`kdcompile targets calibrate`."""

    path: str
    calibration: Json
    before: Json
    after: Json
    refused: Any
    left_out: Any
    notes: list[str]


class Written(TypedDict):
    """`kdcompile init`."""

    written: list[str]


class Removed(TypedDict):
    """`kdcompile clean`."""

    removed: list[str]


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
    "verify": Report | BundleCheck | Ladder,
    "bisect": Ladder,
    "bench": Measured | Compared,
    "compare": Compared,
    "baseline init": Baseline,
    "baseline update": Baseline,
    "baseline show": Baselines,
    "delta make": Made,
    "delta apply": Applied,
    "run": list[Failed | Json],  # a result has the keys of its task
    "targets": Targets,
    "targets show": ShownTarget,
    "targets validate": Validated,
    "targets calibrate": Calibrated,
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
    found = TypeAdapter(DOCUMENTS[command]).json_schema(mode="serialization")
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
