"""`device.json` as a board wrote it, or as anybody may have: only what has the form is let in."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from kdcompile.config.deploy import Precision
from kdcompile.core.errors import KDError
from kdcompile.remote.answer_types import Form, Power, Resident, Sha, Unread
from kdcompile.remote.answers import cleaned
from kdcompile.remote.process import BadAnswer

FORMAT = 1
MOST_PHOTOS, MOST_BLOCKS, MOST_TEXT = 1_000_000, 10_000, 10_000
MIN_BLOCKS = 6

Text = Annotated[str, Field(max_length=MOST_TEXT)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Ms = Annotated[FiniteFloat, Field(gt=0, lt=1e9)]
PartMs = Annotated[FiniteFloat, Field(ge=0, lt=1e9)]
Number = Annotated[FiniteFloat, Field(ge=-1e12, le=1e12)]


Setting = Text | FiniteFloat | bool | None


class Part(Form):
    """A part of the record; what kdcompile does not read is left out, as of another version's."""

    model_config = ConfigDict(extra="ignore")


class Gpu(Part):
    """The GPU of the board."""

    name: Text
    compute_capability: Text


class Memory(Part):
    """Of the board, in MiB."""

    total: Annotated[FiniteFloat, Field(gt=0, lt=1e9)] | None


class Environment(Part):
    """The worker's `hello`."""

    backend: Text
    backend_version: Annotated[str, Field(pattern=r"^\d{1,6}(\.\d{1,6}){1,3}\S{0,40}$")]
    platform: Text
    python: Text
    module: Text | None
    power_mode: Text | None
    l4t: Text | None
    gpu: Gpu | None
    memory_mb: Memory | None = None
    machine: dict[Text, Setting | list[Setting] | dict[Text, Setting | dict[Text, Setting]]] = (
        Field(default_factory=dict)
    )


class Engine(Part):
    """A built engine."""

    sha256: Sha
    bytes: Annotated[int, Field(gt=0, lt=2**50)]


class Outputs(Part):
    """The file of a candidate's outputs on the test pack, beside the record."""

    file: FileName
    sha256: Sha


class Candidate(Part):
    """One precision on the board; without `engine` it was not built, and `why` says so."""

    precision: Precision
    verdict: Text
    why: Text
    engine: FileName | None = None
    build: Engine | None = None
    sqnr_db: Annotated[FiniteFloat, Field(ge=-200, le=200)] | None = None
    max_rel_error: Annotated[FiniteFloat, Field(ge=0, le=1e30)] | None = None
    predictions: Annotated[list[Number], Field(max_length=MOST_PHOTOS)] | None = None
    outputs: Outputs | None = None


class Teacher(Part):
    """The teacher's engine in one precision; without `engine` it was not built."""

    engine: FileName | None = None
    why: Text = ""


class Times(Part):
    """Latency of one network in one mode: percentiles over `n` calls, the medians of blocks."""

    clock: Literal["device", "wall", "end_to_end"]
    p50_ms: Ms
    p90_ms: Ms
    p99_ms: Ms
    n: Annotated[int, Field(gt=0, lt=2**40)]
    blocks: Annotated[list[Ms], Field(min_length=MIN_BLOCKS, max_length=MOST_BLOCKS)]


class Failed(Part):
    """A mode that does not work there."""

    error: Text


class BoardPower(Power):
    """The worker's `power`; no rail gives energy back."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        """A counter that fell would make energy out of nothing."""
        last: dict[str, float] = {}
        for _, rails in [*self.idle.samples, *self.busy.samples]:
            if any(value < last.get(rail, 0.0) for rail, value in rails.items()):
                raise ValueError("a rail's value is negative, or a counter of energy fell")
            last |= rails if self.unit == "mJ" else {}
        return self


class Usage(Part):
    """Readings of the chosen engine, alone in its process."""

    precision: Precision
    before: Resident
    after: Resident
    power: Unread | BoardPower


class NoUsage(Part):
    """Why there are no readings."""

    absent: Text


class FrameRecord(Part):
    """Whole frames of the sample on the board: medians of blocks, and of the parts."""

    precision: Precision
    blocks: Annotated[list[Ms], Field(min_length=MIN_BLOCKS, max_length=MOST_BLOCKS)]
    parts: dict[Literal["decode", "preprocess", "inference", "postprocess"], PartMs]
    images: Annotated[int, Field(gt=0, le=MOST_PHOTOS)]
    sizes: Text


class Tested(Part):
    """Which images the board ran: `digest` is of their names, values and teacher predictions.

    `pack` is the hash of the test pack's `pack.json`.
    """

    digest: Sha
    pack: Sha | None = None
    n: Annotated[int, Field(gt=0, le=MOST_PHOTOS)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class BoardRecord(Part):
    """The raw numbers of `device.json`; the board's own verdicts are not among them."""

    format: Literal[1]
    kit: Sha
    worker: Sha
    environment: Environment
    shape: Annotated[list[Annotated[int, Field(gt=0, lt=2**31)]], Field(min_length=2, max_length=8)]
    judged_mode: Literal["", "device", "graph", "end_to_end"]
    latency: dict[Literal["device", "graph", "end_to_end"], Failed | dict[FileName, Times]]
    candidates: Annotated[list[Candidate], Field(min_length=1, max_length=16)]
    teachers: dict[Precision, Teacher]
    references: Annotated[int, Field(gt=0, lt=1000)]
    test: Tested | None
    usage: NoUsage | Usage | None = None
    frame: FrameRecord | None = None
    chosen: Precision | None
    why: Text

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """What is chosen was built, compared and timed."""
        if self.chosen is not None:
            found = [c for c in self.candidates if c.precision == self.chosen]
            if len(found) != 1:
                raise ValueError(f"{len(found)} candidates are the chosen {self.chosen}")
            if None in (found[0].engine, found[0].build, found[0].sqnr_db, found[0].max_rel_error):
                raise ValueError(f"the chosen {self.chosen} was not built or not compared")
            if self.chosen not in self.times(self.judged_mode):
                raise ValueError(f"the chosen {self.chosen} was not timed")
        if isinstance(self.usage, Usage) and self.usage.precision != self.chosen:
            raise ValueError(f"the readings are of {self.usage.precision}, not of the chosen")
        if self.frame is not None and self.frame.precision != self.chosen:
            raise ValueError(f"the frames are of {self.frame.precision}, not of the chosen")
        for mode in self.latency:
            if len({len(times.blocks) for times in self.times(mode).values()}) > 1:
                raise ValueError(f"networks have different numbers of blocks in mode {mode}")
        return self

    def times(self, mode: str) -> Mapping[str, Times]:
        """Latencies by network in a mode; empty where it did not work."""
        found = dict(self.latency).get(mode)  # type: ignore[call-overload]
        return found if isinstance(found, dict) else {}

    @property
    def winner(self) -> Candidate | None:
        """The candidate that ships."""
        return next((c for c in self.candidates if c.precision == self.chosen), None)

    def told(self) -> dict[str, Any]:
        """What the report's environment says of the board and of its choice."""
        about = self.environment.model_dump()
        choice = {"chosen": self.chosen, "why": self.why, "judged_mode": self.judged_mode}
        return {**about, **choice, "candidates": [
            {"precision": c.precision, "verdict": c.verdict, "why": c.why} for c in self.candidates
        ]}  # fmt: skip


def read_record(value: Any, where: str) -> BoardRecord:
    """The validated record.

    Raises:
        KDError: `device-invalid`, it has not the form; `device-version`, another format.
    """
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise KDError(
            "device-version",
            f"device.json has format {found}, this kdcompile reads {FORMAT}",
            where=where,
            fix="run build_engine.py of this bundle's own kit, or merge with the kdcompile of it",
        )
    try:
        return BoardRecord.model_validate(cleaned(value))
    except BadAnswer as error:
        raise _invalid(str(error), where) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise _invalid(f"{place}: {first['msg']}{more}", where) from error


def _invalid(why: str, where: str) -> KDError:
    fix = "copy out/device.json from the board again, as build_engine.py wrote it"
    return KDError("device-invalid", why, where=where, fix=fix)
