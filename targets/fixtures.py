"""Measured latencies for the latency model: `fixtures.toml`, each with its source and conditions.

The file's schema is closed, so that a figure cannot come in without what makes it comparable.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError, nearest
from kdcompile.core.readers import parse_toml
from kdcompile.targets import Target, load, names, resolve

FILE = Path(__file__).with_name("fixtures.toml")
KINDS = ("measured", "published", "secondary")
QUANTILES = ("min", "p50", "p90", "p95", "p99", "p99.9", "max")
TYPICAL = ("p50", "mean", "unstated")  # best first

_OPTIONAL = {"gmac", "excluded", "graph", "held_out"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "shape": list, "ms": dict, "exact": bool, "graph": bool, "held_out": bool, "gmac": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Fixture:
    """One measured latency.

    Attributes:
        name: unique in the file.
        target: a module of `targets.names()`.
        mode: its power mode.
        clocks: what is known of them.
        network: as its authors call it.
        shape: of the input, batch first; -1 where it varies (only if excluded).
        precision: the engine's, one of the target's.
        ms: statistic to milliseconds per batch, as the source gives them.
        software: JetPack, TensorRT, or what else ran it.
        conditions: what else bears upon the time.
        source: where the figures are written.
        kind: measured (by this project), published (a submitter's log), secondary (a report, or
            with more than the engine in it).
        exact: whether the layers can be rebuilt as they were timed.
        structure: what is known and not known of them.
        gmac: 1e9 multiply-adds per batch, where a source gives them.
        excluded: why the model is not held against it; empty if it is.
        graph: whether one CUDA graph replayed the inference; else kernels were enqueued one by one.
        held_out: the model is held against it, and never fitted on it.
    """

    name: str
    target: str
    mode: str
    clocks: str
    network: str
    shape: tuple[int, ...]
    precision: str
    ms: Mapping[str, float]
    software: str
    conditions: str
    source: str
    kind: str
    exact: bool
    structure: str
    gmac: float | None = None
    excluded: str = ""
    graph: bool = False
    held_out: bool = False

    @property
    def batch(self) -> int:
        """Inputs per inference."""
        return self.shape[0]

    @property
    def statistic(self) -> str:
        """The name of `measured_ms`: p50, else mean, else unstated."""
        return next(key for key in TYPICAL if key in self.ms)

    @property
    def measured_ms(self) -> float:
        """The typical latency of a batch."""
        return self.ms[self.statistic]

    @property
    def usable(self) -> bool:
        """Whether the model is held against it, and fitted on it unless it is held out."""
        return not self.excluded

    @property
    def secondary(self) -> bool:
        """Whether it is somebody's report: no prediction is validated by it."""
        return self.kind == "secondary"


def load_fixtures() -> tuple[Fixture, ...]:
    """Every fixture of the package's file, in its order.

    Raises:
        KDError: `fixtures-invalid`, see `parse_fixtures`.
    """
    return parse_fixtures(FILE.read_text(encoding="utf-8"))


def parse_fixtures(text: str) -> tuple[Fixture, ...]:
    """The fixtures that a TOML text of this schema gives.

    Raises:
        KDError: `fixtures-invalid`: not TOML, or an entry that breaks the schema.
    """
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise _invalid("file", str(error), "correct the TOML there") from error
    _keys("top level", table, {"sources", "fixtures"}, {"sources", "fixtures"})
    if not isinstance(table["sources"], dict) or not isinstance(table["fixtures"], list):
        raise _invalid("top level", "wrong type", "write [sources] and [[fixtures]]")
    for key, source in table["sources"].items():
        if not isinstance(source, str) or not source:
            raise _invalid("sources", f"{key} is not written out", f'write {key} = "where it is"')
    known = tuple(_fixture(entry, table["sources"]) for entry in table["fixtures"])
    seen: set[str] = set()
    for fixture in known:
        if fixture.name in seen:
            raise _invalid(fixture.name, "the name is there twice", "give each its own name")
        seen.add(fixture.name)
    return known


def fixtures_of(target: str) -> tuple[Fixture, ...]:
    """The fixtures of a target in every power mode, the excluded ones among them.

    Raises:
        KDError: `target-unknown`.
    """
    module = resolve(target)
    return tuple(fixture for fixture in load_fixtures() if fixture.target == module)


def uncovered(fixtures: Iterable[Fixture] | None = None) -> dict[str, tuple[str, ...]]:
    """Module to those of its precisions at which no usable fixture exists but secondary ones."""
    known = load_fixtures() if fixtures is None else fixtures
    have = {(f.target, f.precision) for f in known if f.usable and not f.secondary}
    return {
        name: tuple(p for p in _shipped(name).precisions if (name, p) not in have)
        for name in names()
    }


def describe_gaps(fixtures: Iterable[Fixture] | None = None) -> tuple[str, ...]:
    """Sentences that say where predictions rest on no measurement.

    First the precisions that no Jetson has a usable fixture at, then each module that lacks some.
    """
    known = tuple(load_fixtures() if fixtures is None else fixtures)
    missing = uncovered(known)
    jetsons = [target for target in map(_shipped, names()) if target.is_foreign]
    said = [
        f"no Jetson has a fixture at {precision}: predictions at it are unvalidated on all of them"
        for precision in dict.fromkeys(p for target in jetsons for p in target.precisions)
        if all(precision not in t.precisions or precision in missing[t.name] for t in jetsons)
    ]
    gaps = (_gap(_shipped(name), lacks, known) for name, lacks in missing.items() if lacks)
    return (*said, *gaps)


def describe_structures(fixtures: Iterable[Fixture] | None = None) -> tuple[str, ...]:
    """A sentence for each network of a usable fixture that is not known exactly: what is not."""
    known = load_fixtures() if fixtures is None else fixtures
    said = {f.network: f.structure for f in known if f.usable and not f.exact}
    return tuple(f"{network} is not rebuilt exactly: {why}" for network, why in said.items())


def _shipped(name: str) -> Target:
    """A target as the package has it: a calibration, perhaps broken, has no say in fixtures."""
    return load(name, calibrated=False)


def _gap(target: Target, lacks: tuple[str, ...], known: Iterable[Fixture]) -> str:
    """What one module lacks, and what it has."""
    own = [fixture for fixture in known if fixture.target == target.name]
    has = sorted({f"{f.precision} in {f.mode}" for f in own if f.usable and not f.secondary})
    if has:
        text = f"{target.name}: none at {', '.join(lacks)}, unvalidated there; has "
        text += ", ".join(has)
    else:
        text = f"{target.name}: no fixture that can be used, every prediction is unvalidated"
    unused = [f"{f.network} {f.precision} ({f.kind})" for f in own if not f.usable or f.secondary]
    return text + (f"; known but not used: {', '.join(unused)}" if unused else "")


def _fixture(entry: Any, sources: Mapping[str, str]) -> Fixture:
    if not isinstance(entry, dict):
        raise _invalid("fixtures", "an entry is not a table", "write it as [[fixtures]]")
    name = str(entry.get("name", "(without a name)"))
    known = {field.name for field in fields(Fixture)}
    _keys(name, entry, known, known - _OPTIONAL)
    for key, value in entry.items():
        wanted = _TYPES.get(key, str)
        fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not fits or value in ("", [], {}) or (key == "gmac" and not 0 < value < math.inf):
            raise _invalid(
                name, f"{key} = {value!r} is not a value for it", "write it as another entry does"
            )
    _one_of(name, "kind", entry["kind"], KINDS)
    _one_of(name, "source", entry["source"], sources)
    _one_of(name, "target", entry["target"], names())
    target = _shipped(entry["target"])
    _one_of(name, "precision", entry["precision"], target.precisions)
    excluded = "excluded" in entry
    if not excluded:
        _one_of(name, "mode", entry["mode"], target.power_modes)
    if entry["kind"] == "secondary" and not excluded and not entry.get("held_out"):
        raise _invalid(
            name,
            "a secondary figure is not fitted on",
            "add held_out = true, or say in `excluded` why it cannot be predicted",
        )
    _shape(name, entry["shape"], -1 if excluded else 1)
    _statistics(name, entry["ms"])
    return Fixture(**{**entry, "shape": tuple(entry["shape"]), "source": sources[entry["source"]]})


def _shape(name: str, shape: list[Any], least: int) -> None:
    if not all(type(size) is int and size >= least and size for size in shape):
        raise _invalid(
            name,
            f"shape {shape} is not all sizes",
            "give positive sizes, batch first; -1, one that varies, only with `excluded`",
        )


def _statistics(name: str, ms: Mapping[str, Any]) -> None:
    """Milliseconds: known names, a typical one among them, positive, quantiles ascending."""
    for key in ms:
        _one_of(name, "ms", key, (*QUANTILES, *TYPICAL[1:]))
    if not set(ms) & set(TYPICAL):
        raise _invalid(name, "ms has no typical latency", "give one of " + ", ".join(TYPICAL))
    if not all(type(value) in (int, float) and 0 < value < math.inf for value in ms.values()):
        raise _invalid(name, f"ms {ms} is not all milliseconds", "give positive numbers")
    quantiles = [ms[key] for key in QUANTILES if key in ms]
    if quantiles != sorted(quantiles):
        raise _invalid(
            name, f"ms {ms}: the quantiles do not ascend", "compare them with the source"
        )


def _one_of(name: str, key: str, value: str, known: Iterable[str]) -> None:
    if value not in (choices := list(known)):
        raise _invalid(
            name,
            f"{key} {value!r} is not known{nearest(value, choices)}",
            "use one of " + ", ".join(choices),
        )


def _keys(name: str, found: Mapping[str, Any], known: set[str], needed: set[str]) -> None:
    for key in sorted(set(found) - known):
        raise _invalid(
            name,
            f"unknown key {key!r}{nearest(key, known)}",
            "use one of " + ", ".join(sorted(known)),
        )
    for key in sorted(needed - set(found)):
        raise _invalid(name, f"key {key!r} is missing", f"add {key} = ..., as another entry has it")


def _invalid(name: str, message: str, fix: str) -> KDError:
    return KDError(
        "fixtures-invalid", f"{name}: {message}", where=f"targets/{FILE.name}, {name}", fix=fix
    )
