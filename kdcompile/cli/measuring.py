"""The options with which latency is measured, and what they say together."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from kdcompile.cli.options import via_option
from kdcompile.core.errors import KDError, nearest
from kdcompile.latency.request import BACKENDS, COPIES

if TYPE_CHECKING:
    from kdcompile.latency.request import Measuring

F = TypeVar("F", bound=Callable[..., Any])
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
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
    """Device, shape, mode and effort, for `request_of`."""
    return _added(command, _OPTIONS)


def judging_options(command: F) -> F:
    """Margin, allowed differences and going on, for the plan of a comparison."""
    return _added(command, _JUDGING)


def _added(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def request_of(measuring: Mapping[str, Any]) -> "Measuring":
    """What `measuring_options` ask for, as `kdcompile.api.bench` takes it.

    Raises:
        KDError: `shape-invalid`, `mode-invalid`.
    """
    given = {key: value for key, value in measuring.items() if value is not None}
    if "shape" in given:
        given["shape"] = parse_shape(given["shape"])
    return cast("Measuring", given | {"mode": dict(map(parse_mode, given.pop("modes")))})


def limit_of(until_decided: bool, limit: float | None, samples: int | None) -> float | None:
    """Seconds in which to go on until there is a decision; None to measure once.

    Raises:
        click.UsageError: options that do not go together.
    """
    from kdcompile.latency.compare import LIMIT_S

    if until_decided and samples is not None:
        raise click.UsageError("--samples says how many; --until-decided as many as it takes")
    if limit is not None and not until_decided:
        raise click.UsageError("--limit is that of --until-decided")
    return (LIMIT_S if limit is None else limit) if until_decided else None


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
