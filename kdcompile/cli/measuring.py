"""The options with which latency is measured, and what they say together."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdcompile.cli.options import via_option
from kdcompile.core.errors import KDError, nearest

if TYPE_CHECKING:
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.settings import Effort, Mode
    from kdcompile.latency.subject import Subject

F = TypeVar("F", bound=Callable[..., Any])
BACKENDS = ("tensorrt", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
COPIES = ("none", "in", "out", "both")
MODE_KEYS = ("copies", "graph", "spin", "threads")

_OPTIONS = (
    via_option,
    click.option("--backend", type=click.Choice(BACKENDS), help="That runs an ONNX file there."),
    click.option("--shape", metavar="NxCxHxW", help="Of the input, where the artifact leaves it."),
    click.option("--batch", type=int, help="Images of one inference."),
    click.option("--streams", type=int, help="Inferences in flight at once (1)."),
    click.option(
        "--mode",
        "modes",
        multiple=True,
        metavar="KEY=VALUE",
        help="copies=none|in|out|both, graph=true|false, spin=true|false, threads=N of a CPU (1); "
        "repeatable.",
    ),
    click.option("--seconds", type=float, help="That one measuring run may take (60)."),
    click.option("--processes", type=int, help="Of one measuring run (3)."),
    click.option("--builds", type=int, help="Engines built of each ONNX file (1)."),
    click.option("--samples", type=int, help="Inferences of each side in all, and no more."),
)
_JUDGING = (
    click.option("--margin", default="3%", show_default=True, help="What counts as no change."),
    click.option(
        "--allow",
        multiple=True,
        metavar="KEY",
        help="Compare although this environment fact or mode key differs; repeatable.",
    ),
    click.option("--until-decided", is_flag=True, help="Go on while it is inconclusive."),
    click.option(
        "--limit", type=float, metavar="SECONDS", help="At which --until-decided ends (300)."
    ),
)


def measuring_options(command: F) -> F:
    """Place, shape, mode and effort, for a `Measuring`."""
    return _added(command, _OPTIONS)


def judging_options(command: F) -> F:
    """Margin, allowed differences and going on, for `Measuring.plan`."""
    return _added(command, _JUDGING)


def _added(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Measuring:
    """`measuring_options` as they were given; None where one was not."""

    via: str | None
    backend: str | None
    shape: str | None
    batch: int | None
    streams: int | None
    modes: tuple[str, ...]
    seconds: float | None
    processes: int | None
    builds: int | None
    samples: int | None

    def subject(self, path: Path, baseline: "Baseline | None" = None) -> "Subject":
        """The artifact at a path; what it leaves open is as in the baseline.

        Raises:
            KDError: `shape-invalid`, those of `find_subject`.
        """
        from kdcompile.latency.subject import find_subject

        shape = None if self.shape is None else parse_shape(self.shape)
        found = find_subject(path, self.backend, shape=shape)
        if baseline is None or found.kind == "engine":
            return found
        kept = baseline.environment.get("facts", {}).get("backend")
        backend = self.backend or (kept if kept in BACKENDS else None)
        kept_shape = found.input_shape or shape_of(baseline.mode)
        return replace(found, backend=backend, input_shape=kept_shape)

    def effort(self) -> "Effort":
        """How much is measured."""
        from kdcompile.latency.settings import Effort

        wanted = {"seconds": self.seconds, "processes": self.processes, "builds": self.builds,
                  "samples": self.samples}  # fmt: skip
        given: dict[str, Any] = {key: v for key, v in wanted.items() if v is not None}
        effort = Effort(**given)
        effort.check()  # before anything else is spent
        return effort

    def mode(self, kept: Mapping[str, Any] | None = None) -> "Mode":
        """How it is measured; what was not said is as in a baseline's mode.

        Raises:
            KDError: `mode-invalid`.
        """
        from kdcompile.latency.settings import Mode

        wanted: dict[str, Any] = {"batch": self.batch}
        if kept is not None:
            wanted |= _as_kept(kept, self.batch)
        if self.streams is not None:
            wanted["streams"] = self.streams
        for text in self.modes:
            key, value = parse_mode(text)
            wanted[key] = value
            if key == "threads":
                wanted["kept"] = False
        return Mode(**wanted)

    def plan(
        self,
        margin: str,
        allow: Sequence[str] = (),
        until_decided: bool = False,
        limit: float | None = None,
        kept: Mapping[str, Any] | None = None,
        runs: int = 1,
    ) -> "Plan":
        """How artifacts are measured and judged.

        Args:
            margin: a percentage.
            allow: keys that may differ.
            until_decided: go on while it is inconclusive.
            limit: seconds in which to.
            kept: the mode of the baseline.
            runs: measuring runs.

        Raises:
            KDError: `margin-invalid`, `limit-invalid`, `mode-invalid`, `effort-refused`.
        """
        from kdcompile.latency.compare import LIMIT_S, Plan

        if until_decided and self.samples is not None:
            raise click.UsageError("--samples says how many; --until-decided as many as it takes")
        if limit is not None and not until_decided:
            raise click.UsageError("--limit is that of --until-decided")
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise KDError(
                "limit-invalid", f"a limit of {limit:g} seconds leaves no time to measure",
                where="--limit", fix=f"give a time above 0, such as --limit {LIMIT_S:g}",
            )  # fmt: skip
        return Plan(
            self.via, self.effort(), self.mode(kept), runs, parse_margin(margin),
            allow=tuple(allow), limit=(limit or LIMIT_S) if until_decided else None,
            with_usage=True,
        )  # fmt: skip


def parse_margin(text: str) -> float:
    """0.03 of `3%`.

    Raises:
        KDError: `margin-invalid`.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    value = float(found[1]) / 100 if found else 0.0
    if not 0 < value < 1:
        raise KDError(
            "margin-invalid",
            f"{text!r} is no percentage above 0 % and below 100 %",
            where="--margin",
            fix="write it with its sign, such as --margin 3%",
        )
    return value


def parse_shape(text: str) -> tuple[int, ...]:
    """(1, 3, 576, 768) of `1x3x576x768`.

    Raises:
        KDError: `shape-invalid`.
    """
    sizes = text.lower().split("x")
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise KDError(
            "shape-invalid",
            f"{text!r} is no shape",
            where="--shape",
            fix="write sizes of at least 1 with an x between them, such as --shape 1x3x576x768",
        )
    return tuple(map(int, sizes))


def parse_mode(text: str) -> tuple[str, Any]:
    """Key and value of `graph=false`.

    Raises:
        KDError: `mode-invalid`.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if key == "copies" and value in COPIES:
        return key, value
    if key in ("graph", "spin") and value.lower() in TRUTH:
        return key, TRUTH[value.lower()]
    if key == "threads" and value.isascii() and value.isdigit():
        return key, int(value)
    known = key in MODE_KEYS
    message = f"{key} cannot be {value!r}" if known else f"no mode key {key!r}"
    raise KDError(
        "mode-invalid",
        message if known and equals else f"{message}{nearest(key, MODE_KEYS)}",
        where=f"--mode {text}",
        fix="write copies=none, copies=in, copies=out, copies=both, graph=true, graph=false, "
        "spin=true, spin=false or threads=1",
    )


def _as_kept(kept: Mapping[str, Any], batch: int | None) -> dict[str, Any]:
    """The wishes that give a baseline's mode again, as far as a wish can."""
    wanted: dict[str, Any] = {}
    first = {part.split("x")[0] for part in str(kept.get("input", "")).split(", ")}
    if batch is None and first == {str(kept.get("batch"))}:  # of every input alike
        wanted["batch"] = int(kept["batch"])
    if kept.get("copies") in COPIES:
        wanted["copies"] = kept["copies"]
    if kept.get("graph") is False:
        wanted["graph"] = False
    if isinstance(kept.get("streams"), int):
        wanted["streams"] = kept["streams"]
    if isinstance(kept.get("threads"), int):
        wanted |= {"threads": kept["threads"], "kept": True}
    return wanted


def shape_of(mode: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The one input's shape that a mode records, such as `1x3x576x768 float32`."""
    found = re.fullmatch(r"(\d+(?:x\d+)*) \w+", str(mode.get("input", "")))
    return None if found is None else tuple(map(int, found[1].split("x")))
