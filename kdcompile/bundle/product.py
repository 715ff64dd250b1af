"""What a bundle has beside its network and report: samples, a server's folder, papers."""

import json
import shutil
from pathlib import Path

from kdcompile.bundle import facts
from kdcompile.bundle.card import write_card
from kdcompile.bundle.cpp import write_cpp
from kdcompile.bundle.distributions import used
from kdcompile.bundle.licences import write_licences
from kdcompile.bundle.manifest import ENGINE
from kdcompile.bundle.network_io import network_io
from kdcompile.bundle.sbom import refresh_sbom, write_sbom
from kdcompile.bundle.serving import write_triton
from kdcompile.core.report import Report
from kdcompile.core.store import Artifact
from kdcompile.remote.archive import NAME, agent_zip
from kdcompile.targets import load


def copy_engine(folder: Path, compiled: Artifact) -> None:
    """Copy the engine, its record and the agent that runs it, where `compile` built an engine."""
    if ENGINE not in compiled.files:
        return
    for name in (ENGINE, f"{ENGINE}.json"):
        shutil.copyfile(compiled.file(name), folder / name)
    if f"kit/{NAME}" not in compiled.files:
        (folder / NAME).write_bytes(agent_zip())


def write_product(folder: Path, report: Report) -> None:
    """Write `cpp/`, `triton/`, `MODEL_CARD.md`, `sbom.cdx.json` and `LICENCES.md`.

    Args:
        folder: the bundle, with `model.onnx`, `preprocess.json` and an engine if there is one.
        report: of the build.

    Raises:
        KDError: `onnx-refused`, `triton-type`, `not-installed`.
    """
    packages = used()
    _write_from_network(folder, report)
    write_sbom(folder, report, packages)
    write_licences(folder, packages)


def refresh_product(folder: Path, report: Report) -> None:
    """Write again what a board's engine and verdicts change; the build's libraries stay."""
    _write_from_network(folder, report)
    refresh_sbom(folder, report)


def _write_from_network(folder: Path, report: Report) -> None:
    io = network_io(folder / "model.onnx")
    preprocess = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    task = facts.task(report)
    write_cpp(folder, preprocess, io, task["kind"], task["classes"])
    write_triton(folder, report.name, report.target, load(report.target).kind, io)
    write_card(folder, report, io)
