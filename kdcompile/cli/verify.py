"""`verify`: the gates of a spec, or the integrity and parity of a bundle."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.build import planned
from kdcompile.cli.network import open_network
from kdcompile.cli.options import as_json, echo_json, spec_options, via_option
from kdcompile.cli.parity import is_bundle, open_ladder, show_ladder
from kdcompile.cli.previous import check_previous, previous_option, with_previous
from kdcompile.cli.trust import check_trust, trusted_option
from kdcompile.errors import EXIT_GATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdcompile.bundle.manifest import Bundle
    from kdcompile.cli.network import Floats

NO_REFERENCE = {"parity": "not checked: this bundle carries no reference outputs"}


@click.command()
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
    as_json: bool,
) -> None:
    """Measure a spec's gates, or check a BUNDLE: every hash, and its network's outputs here."""
    if parity:
        for name, value in (("--require", require), ("--baseline", baseline)):
            if value is not None:
                raise click.UsageError(f"{name} is of the gates: leave it or --parity out")
        sys.exit(climb_ladder(spec, target, sets, via, trusted, as_json))
    if spec is not None and is_bundle(spec):
        if baseline is not None:
            raise click.UsageError("--baseline is of a spec, whose test images both are judged on")
        signature = check_trust(Path(spec), trusted)  # before an engine of it is opened
        result = check_bundle(Path(spec), via) | {"signature": signature}
        if as_json:
            echo_json(result)
        else:
            for key, value in result.items():
                click.echo(f"{key}: {value}")
        sys.exit(result["exit_code"])
    if trusted is not None:
        raise click.UsageError("--trusted is of a BUNDLE: name its folder")
    from kdcompile.bundle.text import text_summary
    from kdcompile.report import Report, overall

    work = planned(spec, target, with_previous(sets, baseline), via)
    check_previous(work.spec)
    artifact = work.make("verify")
    report = Report.from_json(artifact.json("report.json"))
    verdict, code = overall(report.gates, require_device=require == "device")
    if as_json:
        echo_json({**report.to_json(), "exit_code": code})
    else:
        click.echo(text_summary(report))
        click.echo(verdict)
    sys.exit(code)


def climb_ladder(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    via: str | None,
    trusted: Path | None,
    as_json: bool,
) -> int:
    """Print the parity ladder; the exit code is 3 where a rung failed.

    Raises:
        KDError: what `open_ladder` and the rungs raise.
    """
    from kdcompile.parity.ladder import climb

    with open_ladder(spec, target, sets, via, trusted) as ladder:
        return show_ladder(ladder, climb(ladder), as_json)


def check_bundle(folder: Path, via: str | None = None) -> dict[str, Any]:
    """Hashes of every file, then the network's outputs against the recorded ones.

    The exit code is the bundle's own verdict, or 3 when the outputs differ more than the parity
    gate allows.

    Args:
        folder: the bundle.
        via: where its engine is loaded and run; None for its ONNX file, here.

    Raises:
        KDError: `bundle-corrupt` and its kin; of an engine that does not load there
            `engine-mismatch` and its kin.
    """
    from kdcompile.bundle.manifest import read_bundle

    bundle = read_bundle(folder)
    result: dict[str, Any] = {
        "bundle": str(folder),
        "files": f"{len(bundle.manifest['files'])} intact",
        "verdict": bundle.manifest["verdict"],
        "exit_code": bundle.manifest["exit_code"],
    }
    if via is None and not _reference(bundle).is_file():
        return result | NO_REFERENCE
    with open_network(bundle, via, onnx=via is None) as network:
        if via is not None:
            result["engine"] = f"loads at {via}"
        # an engine is held against fp32, as on its board, in whichever precision a merge put it
        precision = bundle.manifest["precision"] if via is None else "fp32"
        return _parity(bundle, network, result, precision)


def _reference(bundle: "Bundle") -> Path:
    return bundle.folder / "kit" / "reference.npz"


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
    import numpy as np

    from kdcompile.data.agreement import agreement, pooled_sqnr

    reference = _reference(bundle)
    if not reference.is_file():
        return result | NO_REFERENCE
    with np.load(reference) as arrays:
        there = f"output_{precision}_0" in arrays.files
        kind = f"output_{precision if there else 'fp32'}_"
        inputs = [arrays[name] for name in arrays.files if name.startswith("input_")]
        expected = [arrays[name] for name in arrays.files if name.startswith(kind)]
    outputs = [network(image) for image in inputs]
    # the worst image is told; over all of them together it is judged, as by the gate
    found = agreement(expected, outputs) | {"pooled_sqnr_db": pooled_sqnr(expected, outputs)}
    least = json.loads((bundle.folder / "kit" / "gates.json").read_text())["parity"]["min_sqnr_db"]
    if found["pooled_sqnr_db"] < least:
        result["exit_code"] = EXIT_GATE
    return result | {"parity": found}
