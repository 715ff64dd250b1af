"""`sbom.cdx.json`: CycloneDX 1.5 of what built a bundle, and of the networks in it.

cyclonedx-python-lib, by which the tests validate the document, has no model card (11.12), and the
networks' task and measurements are in theirs; so the document is written here.

The same content gives the same bytes: the serial number is derived from it, and there is a
timestamp only where SOURCE_DATE_EPOCH names one.
"""

import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdcompile.bundle import facts
from kdcompile.bundle.distributions import UNKNOWN, Used
from kdcompile.bundle.manifest import ENGINE, created
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.readers import read_json
from kdcompile.core.report import Report
from kdcompile.core.store import canonical

NAME = "sbom.cdx.json"
MODEL = "machine-learning-model"
NETWORKS = ("model.onnx", ENGINE)
Component = dict[str, Any]


def write_sbom(folder: Path, report: Report, packages: Sequence[Used]) -> None:
    """Write the document; call it when the networks are in the folder.

    Args:
        folder: the bundle.
        report: gives the name, the target, the task and the measurements.
        packages: `distributions.used()`.
    """
    components = [_package(one) for one in packages]
    links = {purl(one): [purl(_find(packages, n)) for n in one.needs] for one in packages}
    _write(folder, report, components, links)


def refresh_sbom(folder: Path, report: Report) -> None:
    """Describe the networks anew and leave the libraries of the build as they were.

    For a bundle that a board's results have been merged into.
    """
    before = read_json(folder / NAME)
    components = [c for c in before["components"] if c["type"] == "library"]
    known = {c["bom-ref"] for c in components}
    links = {d["ref"]: d["dependsOn"] for d in before["dependencies"] if d["ref"] in known}
    _write(folder, report, components, links)


def purl(one: Used) -> str:
    """The package URL of a distribution."""
    return f"pkg:pypi/{one.name}@{quote(one.version, safe='.')}"


def _find(packages: Sequence[Used], name: str) -> Used:
    return next(one for one in packages if one.name == name)


def _write(
    folder: Path, report: Report, libraries: Iterable[Component], links: dict[str, list[str]]
) -> None:
    libraries = list(libraries)
    networks = [_network(folder, name, report) for name in NETWORKS if (folder / name).is_file()]
    subject = {
        "bom-ref": "bundle",
        "type": "application",
        "name": f"{report.name}-{report.target}",
        "description": "A student network distilled and compiled for a device, with its proofs.",
    }
    roots = [c["bom-ref"] for c in libraries if c["name"] == "kdcompile"]
    links = {"bundle": [n["bom-ref"] for n in networks], **links}
    links |= {network["bom-ref"]: roots for network in networks}
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": subject},
        "components": [*networks, *libraries],
        "dependencies": [{"ref": ref, "dependsOn": sorted(to)} for ref, to in links.items()],
    }
    if "SOURCE_DATE_EPOCH" in os.environ:
        document["metadata"]["timestamp"] = created()
    serial = uuid.uuid5(uuid.NAMESPACE_URL, canonical(document).decode())
    write_json(folder / NAME, {**document, "serialNumber": f"urn:uuid:{serial}"})


def _package(one: Used) -> Component:
    found: Component = {
        "bom-ref": purl(one),
        "type": "library",
        "name": one.name,
        "version": one.version,
        "purl": purl(one),
    }
    if one.licence_source == "License-Expression":
        found["licenses"] = [{"expression": one.licence}]
    elif one.licence != UNKNOWN:
        found["licenses"] = [{"license": {"name": one.licence}}]
    if one.wheel_sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": one.wheel_sha256}]
    if one.files_sha256:
        name = "kdcompile:installed-files-sha256"
        found["properties"] = [{"name": name, "value": one.files_sha256}]
    return found


def _network(folder: Path, name: str, report: Report) -> Component:
    """The component of a network's file, with a small model card."""
    sha = file_sha256(folder / name)
    precision = (report.details.get("choice") or {}).get("precision", UNKNOWN)
    properties = {"precision": precision, "target": report.target, "verdict": report.verdict}
    sidecar = folder / f"{name}.json"
    if name == ENGINE and sidecar.is_file():
        built = read_json(sidecar)
        about = ("precision", "tensorrt", "compute_capability", "platform")
        properties |= {key: str(built[key]) for key in about if built.get(key)}
    return {
        "bom-ref": f"sha256:{sha}",
        "type": MODEL,
        "name": name,
        "version": f"sha256:{sha[:12]}",
        "hashes": [{"alg": "SHA-256", "content": sha}],
        "properties": [{"name": f"kdcompile:{k}", "value": str(v)} for k, v in properties.items()],
        "modelCard": {
            "modelParameters": {"task": str(facts.task(report)["kind"])},
            "quantitativeAnalysis": {"performanceMetrics": _metrics(report)},
        },
    }


def _metrics(report: Report) -> list[dict[str, Any]]:
    found = []
    for one in report.measurements:
        row: dict[str, Any] = {
            "type": one.name,
            "value": f"{one.value:.6g} {one.unit}".removesuffix(" 1"),
            "slice": f"{one.evidence}: {one.machine}, {facts.backend(one)}",
        }
        if one.low is not None and one.high is not None:
            row["confidenceInterval"] = {
                "lowerBound": f"{one.low:.6g}", "upperBound": f"{one.high:.6g}",
            }  # fmt: skip
        found.append(row)
    return found
