"""`verify`: the gates of a spec, or the integrity and parity of a bundle."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from kdcompile.cli.build import planned
from kdcompile.cli.ci import CiCommand, ci_options, ci_place, ci_stream, name_of, title_of
from kdcompile.cli.network import backend_of, open_network
from kdcompile.cli.options import as_json, echo_json, spec_options, via_option
from kdcompile.cli.parity import is_bundle, open_ladder, show_ladder
from kdcompile.cli.previous import check_previous, previous_option, with_previous
from kdcompile.cli.terminal import echo_text
from kdcompile.cli.trust import open_trusted, trusted_option
from kdcompile.core.backends import is_served
from kdcompile.core.errors import EXIT_GATE, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from kdcompile.bundle.manifest import Bundle
    from kdcompile.ci.outcome import Outcome
    from kdcompile.cli.network import Floats
    from kdcompile.passes.manager import Plan

Verified: TypeAlias = "tuple[list[Outcome], tuple[str, int]]"  # its verdict and exit code
REFERENCES = {"kit": "reference.npz", "parity": "outputs.npz"}  # in a bundle, by its folder
NO_REFERENCE = {"parity": "not checked: this bundle carries no reference outputs"}


@click.command(cls=CiCommand)
@spec_options
@via_option
@click.option("--require", type=click.Choice(["device"]), help="Pending gates are exit 5.")
@click.option(
    "--parity",
    is_flag=True,
    help="Hold each form of the network against the one before it: PyTorch, exported program, "
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
    trusted: Path | None,
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
            outcomes, verdict = climb_ladder(spec, target, sets, via, trusted, as_json)
        elif spec is not None and is_bundle(spec):
            if baseline is not None:
                raise click.UsageError("--baseline is of a spec, whose test images both see")
            if target is not None or sets:
                raise click.UsageError("--target and --set are of a spec: a bundle is built")
            outcomes, verdict = verify_bundle(Path(spec), via, trusted, device, as_json)
        else:
            if trusted is not None:
                raise click.UsageError("--trusted is of a BUNDLE: name its folder")
            work = planned(spec, target, with_previous(sets, baseline), via)
            outcomes, verdict = verify_spec(work, device, as_json)
    if folder is not None:
        report_ci(outcomes, folder, title, verdict=verdict, stream=stream)
    sys.exit(verdict[1])


def verify_spec(work: "Plan", device: bool, as_json: bool) -> Verified:
    """Measure and print the gates of a plan.

    Raises:
        KDError: any of the stages'.
    """
    from kdcompile.bundle.text import text_summary
    from kdcompile.ci.outcome import outcomes_of_report
    from kdcompile.core.report import Report, overall

    check_previous(work.spec)
    # made by the folder that this one is a copy of, perhaps
    report = replace(Report.from_json(work.make("verify").json("report.json")), name=work.spec.name)
    verdict, code = overall(report.gates, require_device=device)
    if as_json:
        echo_json({**report.to_json(), "exit_code": code})
    else:
        echo_text(text_summary(report))
        click.echo(verdict)
    return outcomes_of_report(report, require_device=device), (verdict, code)


def verify_bundle(
    folder: Path, via: str | None, trusted: Path | None, device: bool, as_json: bool
) -> Verified:
    """Check and print a bundle.

    Raises:
        KDError: of `open_trusted`, before an engine of it is opened; those of `check_bundle`.
    """
    from kdcompile.ci.outcome import overall_of
    from kdcompile.cli.verify_ci import outcomes_of_bundle
    from kdcompile.core.report import overall

    bundle, signature = open_trusted(folder, trusted)
    found = check_bundle(bundle, via) | {"signature": signature}
    report = bundle.report()
    if device and found["exit_code"] != EXIT_GATE:
        found["verdict"], found["exit_code"] = overall(report.gates, require_device=True)
    if as_json:
        echo_json(found)
    else:
        for key, value in found.items():
            click.echo(f"{key}: {plain(value if key != 'parity' else _in_words(value))}")
    outcomes = outcomes_of_bundle(report, found, require_device=device)
    words = overall_of(outcomes)[0] if found["exit_code"] == EXIT_GATE else found["verdict"]
    return outcomes, (words, found["exit_code"])


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


def climb_ladder(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    via: str | None,
    trusted: Path | None,
    as_json: bool,
) -> Verified:
    """Print the parity ladder; the exit code is 3 where a rung failed.

    Raises:
        KDError: what `open_ladder` and the rungs raise.
    """
    from kdcompile.ci.outcome import overall_of
    from kdcompile.cli.verify_ci import outcomes_of_ladder
    from kdcompile.debug.variants import climb

    with open_ladder(spec, target, sets, via, trusted) as ladder:
        steps = climb(ladder)
        code = show_ladder(ladder, steps, as_json)
        outcomes = outcomes_of_ladder(ladder, steps)
    return outcomes, (overall_of(outcomes)[0], code)


def check_bundle(bundle: "Bundle", via: str | None = None) -> dict[str, Any]:
    """The network's outputs against the recorded ones.

    The exit code is the bundle's own verdict, or 3 when the outputs differ more than the parity
    gate allows.

    Args:
        bundle: whose files are intact.
        via: where its engine is loaded and run; None for this machine: the engine of a backend that
            kdcompile serves here, else the ONNX file.

    Raises:
        KDError: of an engine that does not load there `engine-mismatch` and its kin.
    """
    result: dict[str, Any] = {
        "bundle": str(bundle.folder),
        "files": f"{len(bundle.manifest['files'])} intact",
        "verdict": bundle.manifest["verdict"],
        "exit_code": bundle.manifest["exit_code"],
    }
    if via is None and _carries(bundle) is None:
        return result | NO_REFERENCE
    served = bundle.engine is not None and is_served(backend_of(bundle))
    with open_network(bundle, via, onnx=via is None and not served) as network:
        if via is not None or served:
            result["engine"] = f"loads at {via or 'this machine'}"
        # an engine is held against fp32, as on its board, in whichever precision a merge put it
        precision = bundle.manifest["precision"] if via is None else "fp32"
        return _parity(bundle, network, result, precision)


def _carries(bundle: "Bundle") -> str | None:
    """The folder of a bundle that has its reference outputs: a kit's, or of another target."""
    found = (base for base, name in REFERENCES.items() if (bundle.folder / base / name).is_file())
    return next(found, None)


def _references(
    bundle: "Bundle", base: str, precision: str
) -> tuple[list["Floats"], list["Floats"]]:
    """Inputs, and the outputs that are recorded of them; fp32's where there are none of its own."""
    import numpy as np

    from kdcompile.data.preprocess import Preprocess

    with (
        bundle.reading(f"{base}/{REFERENCES[base]}") as path,
        np.load(path, allow_pickle=False) as arrays,
    ):
        there = f"output_{precision}_0" in arrays.files
        expected = _arrays(arrays, f"output_{precision if there else 'fp32'}_")
        if base == "kit":
            inputs = _arrays(arrays, "input_")
            if len(inputs) != len(expected):
                raise ValueError(f"{len(inputs)} inputs, {len(expected)} outputs of them")
            return inputs, expected
    prepare = Preprocess.from_json(bundle.preprocess)
    with (
        bundle.reading("parity/photos.npz") as path,
        np.load(path, allow_pickle=False) as photos,
    ):
        return [prepare(photos[name]) for name in photos.files[: len(expected)]], expected


def _arrays(arrays: "Mapping[str, NDArray[Any]]", start: str) -> "list[Floats]":
    """The float arrays of an archive whose names start so.

    Raises:
        ValueError: one is there twice, is not of finite floats, or there is none.
    """
    import numpy as np

    names = [name for name in arrays if name.startswith(start)]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"no {start}0, or one of them twice")
    found = [arrays[name] for name in names]
    for name, array in zip(names, found, strict=True):
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} is not of finite floats")
    return found


def _parity(
    bundle: "Bundle",
    network: "Callable[[Floats], Floats]",
    result: dict[str, Any],
    precision: str,
) -> dict[str, Any]:
    """The result with the agreement of the network with the reference outputs, where there are.

    Args:
        bundle: checked against its manifest.
        network: what is verified.
        result: what is known so far.
        precision: of the reference outputs; fp32's, where the kit could not run it.
    """
    from kdcompile.tasks.agreement import agreement, pooled_sqnr

    base = _carries(bundle)
    if base is None:
        return result | NO_REFERENCE
    inputs, expected = _references(bundle, base, precision)
    outputs = [network(image) for image in inputs]
    # the worst image is told; over all of them together it is judged, as by the gate
    found = agreement(expected, outputs) | {"pooled_sqnr_db": pooled_sqnr(expected, outputs)}
    with bundle.reading(f"{base}/gates.json") as path:
        least = float(json.loads(path.read_bytes())["parity"]["min_sqnr_db"])
    found["min_sqnr_db"] = least
    if found["pooled_sqnr_db"] < least:
        result["exit_code"] = EXIT_GATE
    return result | {"parity": found}
