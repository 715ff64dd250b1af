"""The form of a worker's answer to each operation: its fields, all of them, and their types."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcompile.core.errors import plain

MOST_VALUES = 1 << 28  # of one input: 1 GiB in float32
MOST_READINGS = 100_000
CLOCKS = ("device", "wall", "end_to_end")

Text = Annotated[str, Field(max_length=4000)]
Version = Annotated[str, Field(max_length=100, pattern=r"^\d{1,6}\.\d{1,6}(\.[\w.+-]*)?$")]
Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Number = Annotated[float, Field(gt=-1e18, lt=1e18)]  # no NaN either
Positive = Annotated[Number, Field(gt=0)]
Amount = Annotated[Number, Field(ge=0)]
Setting = Count | Text
Shapes = list[list[Count]]
Side = Annotated[int, Field(ge=-1, lt=1 << 31)]


class Form(BaseModel):
    """An answer's fields; a field without a default is read, and no other may come.

    The agent is sent with each connection, so no earlier one's answers are met.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Failure(Form):
    """The error of any operation."""

    code: Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,60}$")]
    message: str
    fix: str


class Boot(Form):
    """Of the first lines: the work folder."""

    work: Annotated[str, Field(min_length=1, max_length=4000)]


class Gpu(Form):
    """The GPU of hello."""

    name: Text
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}$")]
    memory_mb: Amount | None = None
    free_mb: Amount | None = None


class Plan(Form):
    """How a precision is built."""

    onnx: Text
    flags: list[Text]
    network: list[Text] = []


class Memory(Form):
    """The memory of hello."""

    total: Amount | None
    free: Amount | None


class Machine(Form):
    """Settings of the machine, which are compared and shown as they are."""

    driver_version: Text | None
    cpu: Text | None = None
    cores: Count | None = None
    usable_cores: Count | None = None
    threads: dict[Text, Text] | None = None
    cpu_boost: bool | None = None
    cpu_quota: Text | None = None
    clock_limits: dict[Text, Setting | dict[Text, Setting]] | None = None
    governor: Setting | list[Setting] | None = None
    cpu_min_hz: Setting | list[Setting] | None = None
    cpu_max_hz: Setting | list[Setting] | None = None
    gpu_power_limit_w: Text | None = None
    gpu_max_clock_mhz: Text | None = None


class Hello(Form):
    """Versions, machine and GPU."""

    protocol: Literal[3]
    backend: Text
    backend_version: Version
    python: Text
    numpy: Text
    platform: Text
    module: Text | None
    l4t: Text | None
    power_mode: Text | None
    machine: Machine
    clocks: dict[str, Amount]
    memory_mb: Memory
    disk_mb: Amount | None
    modes: list[Text]
    streams: Annotated[int, Field(ge=1)]
    gpu: Gpu | None
    precisions: dict[str, Plan]

    @model_validator(mode="after")
    def _has_a_mode(self) -> "Hello":
        if "device" not in self.modes:
            raise ValueError("modes lack device, which every worker has")
        return self


class Signals(Form):
    """Counters, clocks and sensors; what nothing tells is absent."""

    busy_s: Number | None = None
    total_s: Number | None = None
    steal_s: Number | None = None
    own_s: Number | None = None
    wait_s: Number | None = None
    switches: Number | None = None
    quota_s: Number | None = None
    throttle_events: Number | None = None
    cooling: Number | None = None
    cpu_hz: Number | None = None
    gpu_hz: Number | None = None
    gpu_flags: int | None = None
    os_version: Text | None = None
    load_average: list[Number] | None = None
    celsius: dict[str, Number] | None = None
    clocks_hz: dict[str, Number] | None = None
    throttling: list[Text] | None = None
    power_w: dict[str, Number] | None = None
    gpu_busy_percent: Number | None = None


class Stat(Form):
    """A file there."""

    exists: bool
    bytes: Count
    sha256: Sha | None

    @model_validator(mode="after")
    def _has_a_hash(self) -> "Stat":
        if self.exists and self.sha256 is None:
            raise ValueError("a file without its SHA-256")
        return self


class Layer(Form):
    """One layer of an engine."""

    name: str
    precision: Text | None
    onnx: list[str] | None
    type: Text | None = None


class Engine(Form):
    """The record of a built engine, which lies beside it there too."""

    sha256: Sha
    bytes: Count
    precision: Text
    platform: Text
    compute_capability: Text | None
    flags: list[Text]
    layers: list[Layer] | None
    seconds: Amount
    backend: Text | None = None
    tensorrt: Text | None = None
    onnxruntime: Text | None = None
    provider: Text | None = None
    gpu: Text | None = None
    onnx_sha256: Sha | None = None
    profile: Shapes | dict[str, Shapes] | None = None
    timing_cache: Text | None = None
    deterministic: Text | None = None
    dla: int | None = None
    dla_fallback: list[str] | None = None
    workspace_mb: Count | None = None
    optimization_level: int | None = None
    tf32: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, value: Any) -> Any:
        """A backend of a plug-in tells its version under its own name."""
        name = value.get("backend") if isinstance(value, dict) else None
        if not isinstance(name, str) or name in cls.model_fields:
            return value
        if not isinstance(value.get(name), str):
            raise ValueError(f"no version of {plain(name)[:100]}")
        return {key: found for key, found in value.items() if key != name}


class Tensor(Form):
    """An input or output; -1 is a free size."""

    dtype: Annotated[str, Field(pattern="^[a-z]+[0-9]{0,3}$")]
    shape: Annotated[list[Side], Field(max_length=16)]

    @model_validator(mode="after")
    def _is_of_a_size(self) -> "Tensor":
        if math.prod(max(1, side) for side in self.shape) > MOST_VALUES:
            raise ValueError("a tensor that no board holds")
        return self


class Load(Form):
    """A loaded network."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    name: Text | None = None
    device_memory_mb: Amount | None = None


class Run(Form):
    """The shapes of the outputs in the file that was asked for."""

    outputs: dict[str, list[Count]] = {}


class Clock(Form):
    """A clock's milliseconds in short."""

    p50_ms: Amount
    p90_ms: Amount | None = None
    p99_ms: Amount | None = None
    n: Count | None = None


class Time(Form):
    """Latency."""

    device: Clock | None = None
    wall: Clock | None = None
    end_to_end: Clock | None = None
    per_second: Amount | None = None
    samples: dict[str, list[Amount]] | None = None
    mode: Text | None = None
    graph: bool | None = None

    @model_validator(mode="after")
    def _has_a_clock(self) -> "Time":
        if not any(getattr(self, clock) for clock in CLOCKS):
            raise ValueError(f"none of {', '.join(CLOCKS)}")
        return self


class LayerTime(Layer):
    """A layer's milliseconds."""

    ms: Amount
    provider: Text | None = None


class Profile(Form):
    """Milliseconds of each layer."""

    layers: list[LayerTime]
    total_ms: Amount


# JSON has no tuples, which strictness asks for
Reading = Annotated[tuple[Number, dict[Text, Number]], Field(strict=False)]


class Looks(Form):
    """Readings of the power, one after the other: seconds, and values by rail."""

    samples: Annotated[list[Reading], Field(max_length=MOST_READINGS)]

    @model_validator(mode="after")
    def _in_order(self) -> "Looks":
        if any(now[0] <= last[0] for last, now in pairwise(self.samples)):
            raise ValueError("readings that go back in time")
        return self


class Busy(Looks):
    """The readings while inferences followed each other."""

    seconds: Positive
    inferences: Annotated[int, Field(ge=1)]


class Unread(Form):
    """Nothing tells the power."""

    unavailable: Text


class Power(Form):
    """Readings of the power."""

    source: Text
    unit: Literal["mW", "mJ"]
    mode: Literal["graph", "device", "end_to_end"]
    idle: Looks
    busy: Busy
    graph: bool | None = None


class Resident(Form):
    """Memory of the worker's process and of the machine."""

    resident_mb: Amount | None
    peak_mb: Amount | None
    available_mb: Amount | None
    gpu_mb: Amount | None
    gpu_used_mb: Amount | None
    restarted: bool
    unified: bool


FORMS: Mapping[str, type[Form]] = {
    "start": Boot, "hello": Hello, "signals": Signals, "stat": Stat, "build": Engine, "load": Load,
    "run": Run, "time": Time, "profile": Profile, "power": Power, "memory": Resident,
}  # fmt: skip  # the others have nothing to tell
