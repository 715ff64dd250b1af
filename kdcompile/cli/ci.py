"""Options `--ci` and `--ci-folder` of commands that end in a verdict, and their outcomes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from kdcompile.cli.options import PATH, options
from kdcompile.cli.terminal import to_json

if TYPE_CHECKING:
    from kdcompile.ci.outcome import Outcome
    from kdcompile.core.report import Report
    from kdcompile.debug.network import BundleCheck
    from kdcompile.debug.show import Parity
    from kdcompile.debug.variants import Step
    from kdcompile.latency.benchmark import Benchmark

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


# parameters `ci` and `ci_folder`, which `ci_place` reads
ci_options = options(
    click.option(
        "--ci",
        is_flag=True,
        help="Write JUnit XML, a Markdown summary, metrics and JSON; annotate where GitHub runs.",
    ),
    click.option(
        "--ci-folder",
        type=PATH,
        metavar="DIR",
        help=f"Folder of the reports of --ci; {FOLDER} by default.",
    ),
)


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
    found: "Benchmark", folder: Path, command: str, name: str, seconds: float, as_json: bool
) -> None:
    """Hand a latency's verdict to the CI reports; without a baseline there is none to fail."""
    from kdcompile.ci.outcome import Outcome, outcome_of_comparison
    from kdcompile.ci.report import report_ci
    from kdcompile.latency.report import how

    judged, details = found.compared, to_json(found.document())
    if judged is None:
        made = Outcome(
            name, "latency", "skipped", required=False,
            observed=f"p50 {details['candidate']['p50_ms']} ms",
            reason="no baseline was named: nothing to compare with", seconds=seconds,
            details={"candidate": details["candidate"]},
        )  # fmt: skip
    else:
        notes = [how(judged.comparison, judged.looks)]
        notes += [f"allowed to differ: {difference}" for difference in judged.allowed]
        made = outcome_of_comparison(
            judged.comparison, name, seconds=seconds, notes=(*notes, *judged.notes),
            details=details,
        )  # fmt: skip
    final = ("measured; no baseline to compare with", 0) if judged is None else None
    report_ci([made], folder, f"kdcompile {command}", verdict=final, stream=ci_stream(as_json))


def outcomes_of_bundle(
    report: "Report", found: "BundleCheck", *, require_device: bool
) -> "list[Outcome]":
    """The bundle's gates, its files and, where it has reference outputs, those of its network.

    Args:
        report: of the build.
        found: of `check_bundle`.
        require_device: a gate that waits for the board counts as undecided.
    """
    from kdcompile.ci.outcome import Outcome, outcomes_of_report

    signature = f"signature: {found.signature}"
    files = Outcome(
        "bundle files", "integrity", "passed", observed=found.files,
        threshold="every hash is the manifest's", reason=signature,
    )  # fmt: skip
    return [*outcomes_of_report(report, require_device=require_device), files, _outputs(found)]


def _outputs(found: "BundleCheck") -> "Outcome":
    from kdcompile.ci.outcome import Outcome

    name, numbers = "bundle outputs", found.parity
    if isinstance(numbers, str):
        return Outcome(name, "parity", "skipped", required=False, reason=numbers)
    least, sqnr = numbers["min_sqnr_db"], numbers["pooled_sqnr_db"]
    return Outcome(
        name, "parity", "failed" if sqnr < least else "passed",
        observed=f"{sqnr:.1f} dB over {numbers['n']} inputs", threshold=f"at least {least:g} dB",
        reason=found.engine or "its ONNX file, run here", details={"parity": numbers},
    )  # fmt: skip


def outcomes_of_ladder(parity: "Parity") -> "list[Outcome]":
    """One outcome per rung that is compared with another; those that are absent are skipped."""
    return [_rung(parity, step) for step in parity.rungs if step.verdict != "reference"]


def _rung(parity: "Parity", step: "Step") -> "Outcome":
    from kdcompile.ci.outcome import Outcome

    details = to_json(step)
    if step.verdict not in ("passed", "failed"):
        return Outcome(
            step.name, "parity", "skipped", required=False, reason=step.reason, details=details
        )
    return Outcome(
        step.name, "parity", step.verdict,
        observed=f"{step.sqnr_db:.1f} dB, predictions move by {step.noise:.2g}",
        threshold=f"as {step.against}, within {parity.tolerance:.2g} of its predictions",
        reason=step.reason, details=details,
    )  # fmt: skip
