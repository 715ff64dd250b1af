"""Options of latency measurements and comparisons, and what they mean together."""

import re
from collections.abc import Mapping
from typing import Any

import click

from kdcompile.cli.options import options, trust_words, trusted_option, via
from kdcompile.core.backends import names
from kdcompile.core.errors import KDError, nearest
from kdcompile.latency.request import COPIES

TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MODE_KEYS = ("copies", "graph", "spin", "threads")

measuring_options = options(
    via("Measure there"),
    click.option("--backend", type=click.Choice(names()), help="Runtime for ONNX files."),
    click.option(
        "--shape", metavar="NxCxHxW", help="Input shape, if the model has dynamic dimensions."
    ),
    click.option("--batch", type=int, help="Images per inference."),
    click.option("--streams", type=int, help="Inferences in flight at once (default 1)."),
    click.option(
        "--mode",
        "modes",
        multiple=True,
        metavar="KEY=VALUE",
        help="copies=none|in|out|both, graph=true|false, spin=true|false, threads=N of a CPU (1); "
        "repeatable.",
    ),
    click.option("--seconds", type=float, help="Time limit per run in seconds (default 60)."),
    click.option("--processes", type=int, help="Processes per run (default 3)."),
    click.option("--builds", type=int, help="Engines built of each ONNX file (default 1)."),
    click.option("--samples", type=int, help="Exact number of inferences of each side."),
    trusted_option,
)
judging_options = options(
    click.option(
        "--margin", default="3%", show_default=True, help="Change that counts as no change."
    ),
    click.option(
        "--allow",
        multiple=True,
        metavar="KEY",
        help="Compare although this environment fact or mode key differs; repeatable.",
    ),
    click.option("--until-decided", is_flag=True, help="Measure on while it is inconclusive."),
    click.option(
        "--limit", type=float, metavar="SECONDS", help="Limit of --until-decided (default 300)."
    ),
)


def request_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as `kdcompile.api` takes them.

    Raises:
        KDError: `margin-invalid`, `shape-invalid`, `mode-invalid`.
        click.UsageError: options that do not go together.
    """
    from kdcompile.latency.compare import LIMIT_S

    found = {key: value for key, value in given.items() if value is not None}
    found |= trust_words(found.pop("trusted", None))
    if found.pop("until_decided", False):
        if "samples" in found:
            raise click.UsageError("--samples and --until-decided exclude each other")
        found.setdefault("limit", LIMIT_S)
    elif "limit" in found:
        raise click.UsageError("--limit needs --until-decided")
    for key, parse in (("shape", parse_shape), ("margin", parse_margin)):
        if key in found:
            found[key] = parse(found[key])
    return found | {"mode": dict(map(parse_mode, found.pop("modes")))}


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
