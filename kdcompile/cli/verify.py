"""Command `verify`: the gates of a spec, or the integrity and parity of a bundle."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import click

from kdcompile.cli.ci import (
    CiCommand,
    ci_options,
    ci_place,
    ci_stream,
    name_of,
    outcomes_of_bundle,
    outcomes_of_ladder,
    title_of,
)
from kdcompile.cli.options import (
    as_json,
    is_bundle,
    open_trusted,
    previous_option,
    require_option,
    spec_options,
    spec_or_bundle,
    trusted_option,
    via,
    with_previous,
)
from kdcompile.cli.terminal import echo_json, echo_text, show
from kdcompile.core.errors import EXIT_GATE, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdcompile.bundle.manifest import Bundle
    from kdcompile.bundle.trust import Trust
    from kdcompile.ci.outcome import Outcome
    from kdcompile.passes.inputs import Inputs

Verified: TypeAlias = "tuple[list[Outcome], tuple[str, int]]"  # its verdict and exit code


@click.command(cls=CiCommand)
@spec_options
@via("Build, measure or load the engine there")
@require_option
@click.option(
    "--parity",
    is_flag=True,
    help="Compare each variant of the network with the one before it: PyTorch, exported program, "
    "ONNX, Q/DQ or fp16, engine.",
)
@previous_option
@trusted_option
@ci_options
@as_json
def verify(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    via: str | None,
    require: str | None,
    parity: bool,
    baseline: Path | None,
    trusted: "Trust | None",
    ci: bool,
    ci_folder: Path | None,
    as_json: bool,
) -> None:
    """Measure a spec's gates, or check a BUNDLE: every hash, and its network's outputs here."""
    from kdcompile.ci.report import in_ci, report_ci

    folder, stream = ci_place(ci, ci_folder), ci_stream(as_json)
    title, device = title_of("verify", spec, target), require == "device"
    with in_ci(folder, "verify", name_of(spec), title=title, stream=stream):
        if parity:
            for name, value in (("--require", require), ("--baseline", baseline)):
                if value is not None:
                    raise click.UsageError(f"{name} is of the gates: leave it or --parity out")
            named = spec_or_bundle(spec, target, sets, trusted)
            outcomes, verdict = verify_parity(named, as_json, via=via, target=target, sets=sets)
        elif is_bundle(spec, target, sets):
            if baseline is not None:
                raise click.UsageError("--baseline is of a spec, whose test images both see")
            outcomes, verdict = verify_bundle(Path(str(spec)), via, trusted, device, as_json)
        else:
            outcomes, verdict = verify_spec(
                spec,
                via,
                device,
                as_json,
                trusted,
                target=target,
                sets=with_previous(sets, baseline),
            )
    if folder is not None:
        report_ci(outcomes, folder, title, verdict=verdict, stream=stream)
    sys.exit(verdict[1])


def verify_spec(
    spec: str | None,
    via: str | None,
    device: bool,
    as_json: bool,
    trusted: "Trust | None",
    **inputs: Unpack["Inputs"],
) -> Verified:
    """Measure and print the gates of a spec.

    Raises:
        KDError: any of the stages'.
    """
    from kdcompile import api
    from kdcompile.bundle.text import text_summary
    from kdcompile.ci.outcome import outcomes_of_report
    from kdcompile.core.report import overall

    key, expect = (None, None) if trusted is None else (trusted.key, trusted.expect)
    report = api.verify(spec, via=via, require_device=device, trusted=key, expect=expect, **inputs)
    verdict = overall(report.gates, require_device=device)[0]
    if as_json:
        echo_json(report.to_json())
    else:
        echo_text(text_summary(report))
        click.echo(plain(verdict))
    return outcomes_of_report(report, require_device=device), (verdict, report.exit_code)


def verify_bundle(
    folder: Path, via: str | None, trusted: "Trust | None", device: bool, as_json: bool
) -> Verified:
    """Check and print a bundle.

    Raises:
        KDError: of `open_trusted`, before an engine of it is opened; those of `check_bundle`.
    """
    from kdcompile import api
    from kdcompile.ci.outcome import overall_of
    from kdcompile.core.report import overall

    bundle, signature = open_trusted(folder, trusted)
    found = replace(api.check_bundle(bundle, via=via), signature=signature)
    report = bundle.report()
    if device and found.exit_code != EXIT_GATE:
        verdict, code = overall(report.gates, require_device=True)
        found = replace(found, verdict=verdict, exit_code=code)
    if as_json:
        echo_json(found.to_json())
    else:
        for key, value in found.to_json().items():
            click.echo(f"{key}: {plain(value if key != 'parity' else _in_words(value))}")
    outcomes = outcomes_of_bundle(report, found, require_device=device)
    words = overall_of(outcomes)[0] if found.exit_code == EXIT_GATE else found.verdict
    return outcomes, (words, found.exit_code)


def _in_words(parity: "str | Mapping[str, Any]") -> str:
    """The agreement with the reference outputs as text."""
    if isinstance(parity, str):
        return parity
    least, sqnr = parity["min_sqnr_db"], parity["pooled_sqnr_db"]
    return (
        f"{'failed' if sqnr < least else 'passed'}, {sqnr:.1f} dB over {parity['n']} reference "
        f"outputs, at least {least:g} dB wanted; the worst of them {parity['sqnr_db']:.1f} dB, "
        f"largest relative error {parity['max_rel_error']:.2g}"
    )


def verify_parity(named: "str | Bundle | None", as_json: bool, **inputs: Any) -> Verified:
    """Print the parity ladder; the exit code is 3 where a rung failed.

    Raises:
        KDError: what `kdcompile.api.parity` raises.
    """
    from kdcompile import api
    from kdcompile.ci.outcome import overall_of

    found = api.parity(named, **inputs)
    show(found, as_json, lambda found: [*found.text(), found.verdict()])
    outcomes = outcomes_of_ladder(found)
    return outcomes, (overall_of(outcomes)[0], found.exit_code)
