"""The options `--ci` and `--ci-folder`, which every command that ends in a verdict may have."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from kdcompile.latency.report import Judged
    from kdcompile.stats.samples import Samples

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = "kdcompile-ci"


class CiCommand(click.Command):
    """A command with `ci_options`: a command line that it cannot read is reported too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's."""
        words = list(args)  # click takes them out one by one
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            folder = asked_folder(words)
            if folder is None:
                raise
            from kdcompile.ci.report import in_ci

            name = str(self.name)
            with in_ci(folder, name, name, stream=ci_stream("--json" in words)):
                raise


def asked_folder(words: Sequence[str]) -> Path | None:
    """What `ci_place` gives, of a command line that may be wrong elsewhere."""
    words = words[: words.index("--")] if "--" in words else words
    found = None
    for word, after in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option == "--ci-folder":
            found = value if equals else after
    return ci_place("--ci" in words, Path(found) if found else None)


def ci_options(command: F) -> F:
    """`--ci` and `--ci-folder`, as parameters `ci` and `ci_folder`; `ci_place` reads them."""
    command = click.option(
        "--ci-folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"Folder of the reports of --ci; {FOLDER} by default.",
    )(command)
    return click.option(
        "--ci",
        is_flag=True,
        help="Write JUnit XML, a Markdown summary, metrics and JSON; annotate where GitHub runs.",
    )(command)


def ci_place(ci: bool, folder: Path | None) -> Path | None:
    """Where the reports go; None without `--ci`. A folder alone asks for them too."""
    if folder is not None:
        return folder
    return Path(FOLDER) if ci else None


def ci_stream(as_json: bool) -> TextIO:
    """Where annotations go: not between the lines of a JSON document."""
    return sys.stderr if as_json else sys.stdout


def name_of(spec: str | None) -> str:
    """The name of a spec's or a bundle's folder, also of one that is not there."""
    path = Path(os.path.abspath(spec or "."))
    return (path.parent if path.suffix == ".toml" and not path.is_dir() else path).name or "/"


def title_of(command: str, spec: str | None, target: str | None) -> str:
    """The reports' title, of the command line alone: the same whether the command breaks or not."""
    return f"kdcompile {command}: {name_of(spec)}" + (f" for {target}" if target else "")


def ci_report(
    judged: "Judged | None",
    samples: "Samples",
    folder: Path,
    name: str,
    seconds: float,
    as_json: bool,
    command: str = "bench",
) -> None:
    """Hand a latency's verdict to the CI reports; without a baseline there is none to fail."""
    from kdcompile.ci.outcome import Outcome, outcome_of_comparison
    from kdcompile.ci.report import report_ci
    from kdcompile.latency.report import described, how

    if judged is None:
        numbers = described(samples)
        made = Outcome(
            name, "latency", "skipped", required=False, observed=f"p50 {numbers['p50_ms']} ms",
            reason="no baseline was named: nothing to compare with", seconds=seconds,
            details={"candidate": dict(numbers)},
        )  # fmt: skip
    else:
        notes = [how(judged.comparison, judged.looks)]
        notes += [f"allowed to differ: {difference}" for difference in judged.allowed]
        made = outcome_of_comparison(
            judged.comparison, name, seconds=seconds, notes=(*notes, *judged.notes),
            details=judged.to_json(),
        )  # fmt: skip
    final = ("measured; no baseline to compare with", 0) if judged is None else None
    report_ci([made], folder, f"kdcompile {command}", verdict=final, stream=ci_stream(as_json))
