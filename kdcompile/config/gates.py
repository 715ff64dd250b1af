"""`[gates]`: the proofs that a build must bring, each with the settings of its own gate."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from kdcompile.config.distill import Closed
from kdcompile.core import plugins


def _fraction(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise ValueError('write a percentage, such as "5%"')
    return text


def _provable(text: str) -> str:
    if not fraction(text):
        raise PydanticCustomError(
            "unprovable",
            "no number of images proves that none got worse, for the next one may be",
            {"fix": 'give a limit over 0%: "5%" takes 59 test images of which none got worse, '
             '"1%" takes 299'},
        )  # fmt: skip
    return text


Percent = Annotated[str, AfterValidator(_fraction)]
Share = Annotated[Percent, AfterValidator(_provable)]  # of images that got worse, at most
Evidence = Literal["device", "host", "predicted"]


def fraction(percent: str) -> float:
    """0.05 of "5%"."""
    return float(percent.rstrip("%")) / 100


class GateSpec(Closed):
    """What every gate may say; a gate's own settings derive from it.

    local: fields that are paths of this machine, resolved as other paths of the spec are.
    board_limit: what `build_engine.py` decides the gate by on a board, a number of the agent
        (`remote.agent.verdict`) and the setting that limits it; None where it does not.
    """

    local: ClassVar[tuple[str, ...]] = ()
    board_limit: ClassVar[tuple[str, str] | None] = None

    required: bool = True
    evidence: Evidence = "host"

    def files(self, folder: Path) -> Mapping[str, Path]:
        """What of the files that `local` names is in a cache key, by field."""
        return {}


class MetricGate(GateSpec):
    """What a gate may say that is decided by a metric of the task: which one, else its first."""

    metric: str | None = None


@runtime_checkable
class Gate(Protocol):
    """What the schema must know of a gate; `kdcompile.gates.registry.Gate` has it."""

    name: str
    settings: type[GateSpec]
    always: bool
    rank: int


class Gates(BaseModel):
    """The proofs that the build must bring: a section for each gate, None where it is not named."""

    model_config = ConfigDict(extra="allow", frozen=True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The settings of a gate, or None."""

    @model_validator(mode="before")
    @classmethod
    def _by_their_gates(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        whole = sections(given).model_validate(given)
        return {name: getattr(whole, name) for name in type(whole).model_fields}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Of the sections of every gate that is installed."""
        return handler(sections(plugins.names("gates")).__pydantic_core_schema__)

    def named(self) -> dict[str, GateSpec]:
        """The gates that decide, with their settings, in the order of a report."""
        found: Mapping[str, GateSpec | None] = self.model_extra or {}
        return {name: settings for name, settings in found.items() if settings is not None}

    def with_metric(self, name: str) -> "Gates":
        """The same with this metric wherever none is named."""
        without = {
            gate: settings.model_copy(update={"metric": name})
            for gate, settings in self.named().items()
            if isinstance(settings, MetricGate) and settings.metric is None
        }
        return self.model_copy(update=without)

    def board_limits(self) -> dict[str, tuple[str, str]]:
        """Of each gate that a board decides too, its number and the setting that limits it."""
        limits = {name: settings.board_limit for name, settings in self.named().items()}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def check_metrics(self, kind: str, known: Iterable[str]) -> str | None:
        """Which metric is none of a task of this kind, in words, or None."""
        metrics = list(known)
        for gate, settings in self.named().items():
            metric = settings.metric if isinstance(settings, MetricGate) else None
            if metric is not None and metric not in metrics:
                return f"gates.{gate}.metric {metric!r} is not one of {kind}: {', '.join(metrics)}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The settings by gate as JSON values, without the paths of this machine."""
        where = {name: set(settings.local) for name, settings in self.named().items()}
        return self.model_dump(mode="json", exclude=where)


def sections(named: Iterable[str]) -> type[BaseModel]:
    """The closed schema of `[gates]`: of the built-in gates, and of the plug-ins that are named.

    Raises:
        KDError: a plug-in that is named is broken.
    """
    known = plugins.names("gates")
    return _sections(
        tuple(dict.fromkeys([*plugins.loaded("gates"), *(n for n in named if n in known)]))
    )


@cache
def _sections(names: tuple[str, ...]) -> type[BaseModel]:
    found = (plugins.find("gates", name, Gate) for name in names)
    gates: list[Gate] = sorted(found, key=lambda gate: (gate.rank, gate.name))
    fields: dict[str, Any] = {
        gate.name: (gate.settings, gate.settings()) if gate.always else (gate.settings | None, None)
        for gate in gates
    }
    return create_model("Gates", __base__=Closed, **fields)
