"""The devices that kdcompile knows: one TOML each, every value with its source.

A name is `MODULE`, or `MODULE@POWER_MODE`, `MODULE@jpJETPACK`, or with both parts in either order;
MODULE may be an alias. Peaks are dense (never the sparse headline), in TFLOP/s, for int8 in TOPS.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kdcompile.core import plugins
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.core.readers import LARGEST_TOML, read_text
from kdcompile.targets import user
from kdcompile.targets.rules import limits_of
from kdcompile.targets.rules_file import Rule, tables
from kdcompile.targets.schema import BACKENDS, invalid, parse, vendors
from kdcompile.targets.schema import version as _version

FOLDER = Path(__file__).parent
EXPORT_OPSET = 18
ONNXRUNTIME_IR = 10  # ONNX Runtime 1.20, the oldest that the package accepts, reads IR version 10
NO_TARGETS = {"fixtures", "latency", "rules"}  # what else lies in the folder


@dataclass(frozen=True)
class Target:
    """One device in one power mode with one software generation.

    `runtime` is the backend that a build for it uses by default, and `vendor` what another vendor's
    table has. NVIDIA's facts are fields: `sm_count` (of a CPU its cores), `dla`, `tensorrt`, which
    is a version for a Jetson, a range `MIN..MAX` for a workstation and None for a CPU, and
    `backend`, the version found on a workstation (`with_backend`). `sources` gives, for each
    fact, `kind: where it is from`, with kind one of measured, derived, datasheet. `calibration` is
    what the user measured (`targets.user`): it replaces the latency model's own efficiencies.
    `tf32`: engines may multiply fp32 in TF32, as TensorRT does unless `compile.tf32` is false.
    """

    name: str
    title: str
    kind: str
    compute_capability: str | None
    power_mode: str
    power_modes: tuple[str, ...]
    jetpack: str | None
    jetpacks: tuple[str, ...]
    l4t: str | None
    tensorrt: str | None
    backend: str | None
    cuda: str | None
    python: str | None
    precisions: tuple[str, ...]
    channel_tile: int
    sm_count: int
    gpu_mhz: float | None
    peak_tflops: Mapping[str, float]
    bandwidth_gbs: float
    launch_us: float
    memory_gb: float
    l2_mb: float
    dla: int
    max_opset: int
    ir_version: int
    sources: Mapping[str, str]
    calibration: Mapping[str, Any] | None = None
    runtime: str = "onnxruntime"
    tf32: bool = True
    vendor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def software(self) -> str | None:
        """The version of TensorRT, as far as it is known; None where there is none."""
        return self.backend or self.tensorrt

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What this device or its software cannot do, whatever asks for it (`targets.rules`)."""
        return tuple(limits_of(self))

    @property
    def fp32_in(self) -> str:
        """What products of fp32 are computed in, `tf32` or `fp32`, as far as its peak is known."""
        return "tf32" if self.tf32 and "tf32" in self.peak_tflops else "fp32"

    @property
    def is_foreign(self) -> bool:
        """Whether the engine must be built on the board itself."""
        return self.kind == "jetson"

    @property
    def full_name(self) -> str:
        """The name with power mode and JetPack, which `load` reads back."""
        parts = [self.name]
        if len(self.power_modes) > 1:
            parts.append(self.power_mode)
        if self.jetpack:
            parts.append(f"jp{self.jetpack}")
        return "@".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON values."""
        plain = asdict(self)
        for key in ("power_modes", "jetpacks", "precisions"):
            plain[key] = list(plain[key])
        return plain

    def with_backend(self, version: str) -> "Target":
        """This workstation with the TensorRT version found there; opset and IR follow from it.

        Raises:
            KDError: the target names no range of versions, or the version lies outside it.
        """
        if self.kind != "workstation" or self.tensorrt is None:
            raise KDError(
                "target-backend",
                f"{self.name} has no range of TensorRT versions to choose from",
                where=f"targets/{self.name}.toml",
                fix="only workstation targets take the TensorRT that is found",
            )
        low, high = self.tensorrt.split("..")
        if not _version(low) <= _version(version)[:2] <= _version(high):
            raise KDError(
                "target-backend",
                f"TensorRT {version} is outside {self.tensorrt}, the range of {self.name}",
                where=f"targets/{self.name}.toml [nvidia] tensorrt_min, tensorrt_max",
                fix=f"install a TensorRT in {self.tensorrt}, or choose another target",
            )
        opset, ir = onnx_limits(version)
        return replace(self, backend=version, max_opset=opset, ir_version=ir)


def onnx_limits(tensorrt: str) -> tuple[int, int]:
    """The highest ONNX opset and IR version given to this TensorRT, such as `10.3` or `8.6.2`.

    Raises:
        KDError: older than the oldest TensorRT that kdcompile writes for.
    """
    known = [step for step in tables().onnx if _version(step["tensorrt"]) <= _version(tensorrt)]
    if not known:
        raise KDError(
            "target-backend",
            f"TensorRT {tensorrt} is older than 8.5, the oldest that kdcompile writes for",
            fix="use a JetPack or TensorRT that is newer",
        )
    return known[-1]["opset"], known[-1]["ir"]


def names() -> list[str]:
    """The modules, without their aliases: the shipped ones sorted, then those of plug-ins."""
    return plugins.names("targets")


def aliases() -> dict[str, str]:
    """Alias to module."""
    return {alias: name for name in names() for alias in _read(name).get("aliases", ())}


def resolve(name: str) -> str:
    """The module behind a name or an alias; what follows an `@` is dropped.

    Raises:
        KDError: no such target.
    """
    module = name.split("@", 1)[0]
    if module in names():
        return module
    for known in names():  # a plug-in is imported only where no shipped target has the alias
        if module in _read(known).get("aliases", ()):
            return known
    raise KDError(
        "target-unknown",
        f"there is no target {module!r}{nearest(module, [*names(), *aliases()])}",
        where=name,
        fix="kdcompile targets lists the known ones",
    )


def load(name: str, calibrated: bool = True) -> Target:
    """The target of this name (see the module's first lines for its form).

    Without a power mode it is the module's default, or, where the JetPack asked for does not have
    that mode, the fastest that it has; `power_mode` says which.

    Args:
        name: of a module or an alias, with what follows it.
        calibrated: with the user's calibration, where there is one.

    Raises:
        KDError: no such target, power mode or JetPack, or a file that breaks the schema;
            `calibration-invalid`, see `targets.user`.
    """
    module = resolve(name)
    table = _read(module)
    mode, jetpack = _parts(table, name)
    jetpack = jetpack or table.get("default_jetpack")
    mode = mode or _usable_mode(table, jetpack)
    minimum = table["modes"][mode].get("min_jetpack")
    if minimum and jetpack and _version(jetpack) < _version(minimum["value"]):
        raise KDError(
            "target-mode",
            f"power mode {mode} of {module} needs JetPack {minimum['value']}, not {jetpack}",
            where=name,
            fix=f"{module}@{mode}, or {module}@jp{jetpack} in another mode",
        )
    target = _target(table, mode, jetpack)
    found = user.read(module) if calibrated else None
    return target if found is None else _calibrated(target, found)


def _calibrated(target: Target, found: Mapping[str, Any]) -> Target:
    """With what the user measured; of a CPU that may be another vector's width."""
    if "channel_tile" not in found:
        return replace(target, calibration=found)
    sources = {**target.sources, "channel_tile": f"measured: {found['source']}"}
    tile = int(found["channel_tile"])
    return replace(target, calibration=found, channel_tile=tile, sources=sources)


def _parts(table: Mapping[str, Any], name: str) -> tuple[str | None, str | None]:
    """Power mode and JetPack written behind the `@`s of a name."""
    mode = jetpack = None
    for part in name.split("@")[1:]:
        by_case = {key.lower(): key for key in table["modes"]}
        if part.lower() in by_case and mode is None:
            mode = by_case[part.lower()]
        elif part.lower().startswith("jp") and part[2:] in _jetpacks(table) and not jetpack:
            jetpack = part[2:]
        else:
            known = [*table["modes"], *(f"jp{key}" for key in _jetpacks(table))]
            second = part.lower() in {key.lower() for key in known}
            fault = f"has no {part!r}{nearest(part, known)}"
            if second:
                fault = f"takes one power mode and one JetPack, not also {part!r}"
            raise KDError(
                "target-jetpack" if part.lower().startswith("jp") else "target-mode",
                f"{table['name']} {fault}",
                where=name,
                fix="one of " + ", ".join(f"{table['name']}@{key}" for key in known),
            )
    return mode, jetpack


def _usable_mode(table: Mapping[str, Any], jetpack: str | None) -> str:
    """The default power mode, or the first listed (fastest) that this JetPack has."""
    for mode in (table["default_mode"], *table["modes"]):
        minimum = table["modes"][mode].get("min_jetpack")
        if not minimum or not jetpack or _version(jetpack) >= _version(minimum["value"]):
            return str(mode)
    raise invalid(table["name"], "modes", f"none can be used with JetPack {jetpack}")


def _target(table: Mapping[str, Any], mode: str, jetpack: str | None) -> Target:
    nvidia = {k: v for k, v in table.get("nvidia", {}).items() if k != "jetpacks"}
    sheet = {
        **table["facts"],
        **nvidia,
        **table["modes"][mode],
        **_jetpacks(table).get(jetpack or "", {}),
    }
    if "cores" in sheet:
        sheet["sm_count"] = sheet.pop("cores")
    peaks = sheet.pop("peak_tflops")
    value = {key: fact["value"] for key, fact in sheet.items()}
    others = {k: f for name in vendors(table) if name != "nvidia" for k, f in table[name].items()}
    facts = {
        **sheet,
        **{f"peak_tflops.{p}": fact for p, fact in peaks.items()},
        **{f"vendor.{key}": fact for key, fact in others.items()},
    }
    tensorrt = value.get("tensorrt")
    if table["kind"] == "workstation":
        tensorrt = f"{value['tensorrt_min']}..{value['tensorrt_max']}"
    opset, ir = EXPORT_OPSET, ONNXRUNTIME_IR
    if tensorrt:
        opset, ir = onnx_limits(tensorrt.split("..")[0])
    return Target(
        name=table["name"], title=table["title"], kind=table["kind"],
        compute_capability=value.get("compute_capability"),
        power_mode=mode, power_modes=tuple(table["modes"]),
        jetpack=jetpack, jetpacks=tuple(_jetpacks(table)), l4t=value.get("l4t"),
        tensorrt=tensorrt, backend=None, cuda=value.get("cuda"), python=value.get("python"),
        precisions=tuple(value["precisions"]), channel_tile=value["channel_tile"],
        sm_count=value["sm_count"], gpu_mhz=value.get("gpu_mhz"),
        peak_tflops={p: float(fact["value"]) for p, fact in peaks.items()},
        bandwidth_gbs=float(value["bandwidth_gbs"]), launch_us=float(value["launch_us"]),
        memory_gb=value["memory_gb"], l2_mb=float(value["l2_mb"]), dla=value.get("dla", 0),
        max_opset=opset, ir_version=ir,
        sources={k: f"{f['kind']}: {table['sources'][f['source']]}" for k, f in facts.items()},
        runtime=table.get("backend", BACKENDS[table["kind"]]),
        vendor={key: fact["value"] for key, fact in others.items()},
    )  # fmt: skip


def _jetpacks(table: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = table.get("nvidia", {}).get("jetpacks", {})
    return found


@cache
def _read(module: str) -> dict[str, Any]:
    """One file, parsed and held against the schema."""
    found: Path | ModuleType = plugins.find("targets", module, Path | ModuleType)
    path = Path(found.__file__ or "").parent if isinstance(found, ModuleType) else found
    path = path if path.suffix == ".toml" else path / f"{module}.toml"
    try:
        text = read_text(path, LARGEST_TOML)
    except (OSError, ValueError) as error:
        raise invalid(module, "file", f"it cannot be read: {error}") from error
    return parse(text, module)


for _path in sorted(FOLDER.glob("*.toml")):
    if _path.stem not in NO_TARGETS:
        register("targets", _path.stem, __name__)(_path)
