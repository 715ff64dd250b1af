"""`rules.toml`: what hardware and TensorRT can do, as rules and tables of a closed schema."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kdcompile.core.errors import nearest
from kdcompile.core.readers import parse_toml
from kdcompile.targets.schema import WRONG, invalid, keys

FILE = Path(__file__).with_name("rules.toml")
OPTIONS = ("dla", "optimization_level", "tf32")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")
NEEDS = {
    "capability", "also", "tensorrt", "not_tensorrt", "known", "dla", "dla_precisions",
    "fixed_shape",
}  # fmt: skip
RANGES = {"kernel", "stride", "padding", "dilation", "groups", "channels", "factor"}
LIMITS = RANGES | {"axes", "constant", "capability", "source"}


@dataclass(frozen=True)
class Rule:
    """One limit of the hardware or of TensorRT.

    Attributes:
        code: a short stable name, unique.
        text: the limit, in one sentence.
        fix: what a user can do.
        source: where it is written.
        effect: refused, there will be no such engine; wasted, it is built and gains nothing.
        precisions: those that it is about; empty for all.
        option: of `[compile]` that it is about; empty for none.
        needs: what must be there, else it binds (see `rules.toml`).
        operators: it is about the network's operators.
    """

    code: str
    text: str
    fix: str
    source: str
    effect: Literal["refused", "wasted"]
    precisions: tuple[str, ...] = ()
    option: str = ""
    needs: Mapping[str, Any] = field(default_factory=dict)
    operators: bool = False


@dataclass(frozen=True)
class Tables:
    """The file: its rules, and what those on operators compare with."""

    rules: tuple[Rule, ...]
    onnx: tuple[Mapping[str, Any], ...]
    tiles: Mapping[str, Any]
    dla: Mapping[str, Any]


@cache
def tables() -> Tables:
    """The package's own file.

    Raises:
        KDError: `target-invalid`, see `parse`.
    """
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> Tables:
    """The rules that a TOML text of this schema gives.

    Raises:
        KDError: `target-invalid`: not TOML, or an entry that breaks the schema.
    """
    try:
        return _tables(parse_toml(text))
    except WRONG as error:
        raise invalid("rules", "file", f"a value of another type: {error}") from error


def _tables(table: Mapping[str, Any]) -> Tables:
    _keys("top level", table, {"sources", "rules", "onnx", "tiles", "dla"})
    sources = table["sources"]
    rules = tuple(_rule(entry, sources) for entry in table["rules"])
    codes = [rule.code for rule in rules]
    if len(set(codes)) < len(codes):
        raise invalid("rules", "rules", "a code is there twice")
    for step in table["onnx"]:
        _keys("onnx", step, {"tensorrt", "opset", "ir"})
    _keys("tiles", table["tiles"], {"least_waste", "channels"})
    _keys("dla", table["dla"], {"batch", "size", "operators"})
    for name, limits in table["dla"]["operators"].items():
        _limits(f"dla.operators.{name}", limits, sources)
    return Tables(rules, tuple(table["onnx"]), table["tiles"], table["dla"])


def _rule(entry: Mapping[str, Any], sources: Mapping[str, str]) -> Rule:
    where = str(entry.get("code", "a rule without code"))
    needed = {"code", "text", "fix", "source", "effect"}
    _keys(where, entry, needed | {"precisions", "option", "needs", "operators"}, needed)
    _known(where, entry["source"], sources)
    _known(where, entry["effect"], ("refused", "wasted"))
    for precision in entry.get("precisions", ()):
        _known(where, precision, PRECISIONS)
    if "option" in entry:
        _known(where, entry["option"], OPTIONS)
    for need in entry.get("needs", {}):
        _known(where, need, NEEDS)
    fields = {**entry, "source": sources[entry["source"]]}
    return Rule(**{**fields, "precisions": tuple(entry.get("precisions", ()))})


def _limits(where: str, limits: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    _keys(where, limits, LIMITS, {"source"})
    _known(where, limits["source"], sources)
    for key in RANGES & set(limits):
        low, high = limits[key]
        if low > high:
            raise invalid("rules", where, f"{key} {limits[key]} is no range")


def _keys(
    where: str, found: Mapping[str, Any], known: set[str], needed: set[str] | None = None
) -> None:
    keys("rules", where, found, known, known if needed is None else needed)


def _known(where: str, value: str, known: Any) -> None:
    if value not in known:
        raise invalid("rules", where, f"{value!r} is not known{nearest(value, known)}")
