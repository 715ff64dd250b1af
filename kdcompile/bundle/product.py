"""Files of a bundle next to its network and report: samples, model card, SBOM and licences."""

import shutil
from pathlib import Path
from typing import Any

from kdcompile.bundle import deepstream, facts, form
from kdcompile.bundle.card import write_card
from kdcompile.bundle.distributions import used, write_licences
from kdcompile.bundle.manifest import ENGINE, Bundle
from kdcompile.bundle.samples import network_io, write_cpp, write_triton
from kdcompile.bundle.sbom import refresh_sbom, write_sbom
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.optional import need
from kdcompile.core.readers import hold, parse_json, read_json
from kdcompile.core.report import Report
from kdcompile.core.store import Artifact
from kdcompile.data import tiles
from kdcompile.remote.archive import NAME, agent_zip
from kdcompile.targets import load

OPENER, TILES, TILING = "opener.py", "tiles.py", "tiles.json"


def copy_engine(folder: Path, compiled: Artifact) -> None:
    """Copy the engine, its record and what runs it, where `compile` built an engine.

    That is the opener of the engine's backend, or the agent.
    """
    if ENGINE not in compiled.files:
        return
    for name in (ENGINE, f"{ENGINE}.json"):
        shutil.copyfile(compiled.file(name), folder / name)
    if OPENER in compiled.files:
        shutil.copyfile(compiled.file(OPENER), folder / OPENER)
    elif f"kit/{NAME}" not in compiled.files:
        (folder / NAME).write_bytes(agent_zip())


def write_tiles(folder: Path) -> None:
    """Write `tiles.py` and `tiles.json`, by which `infer.py` and `run` run large photos in tiles.

    Args:
        folder: the bundle, with `model.onnx`.
    """
    onnx = need("onnx", "cpu", "reading the network")
    from kdcompile.onnx_graph.receptive import tiling  # which loads onnx: a cached build does not

    shutil.copyfile(tiles.__file__, folder / TILES)
    write_json(folder / TILING, tiling(onnx.load(folder / "model.onnx", load_external_data=False)))


def tiling_of(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of its network's tiles.

    Raises:
        KDError: `tiles-refused`, its output is no map, or it was made before there were tiles.
    """
    if TILING not in bundle.manifest["files"]:
        raise KDError(
            "tiles-refused",
            "the bundle has no tiles: its output is no map, or it is of an earlier kdcompile",
            where=str(bundle.folder / TILING),
            fix="leave --tiles out, or build a network that counts with this kdcompile",
        )
    with bundle.reading(TILING) as content:
        found: dict[str, Any] = parse_json(content)
        hold(form.Tiles, found)
    return found


def write_product(folder: Path, report: Report) -> None:
    """Write `cpp/`, `triton/`, `deepstream/`, `MODEL_CARD.md`, `sbom.cdx.json` and `LICENCES.md`.

    `deepstream/` is of networks that need no parser of the user's; of others the card says why not.

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
    preprocess = read_json(folder / "preprocess.json")
    task = facts.task(report)
    write_cpp(folder, preprocess, io, task["kind"], task["classes"], task.get("settings"))
    write_triton(folder, report.name, report.target, load(report.target).kind, io)
    why_not = deepstream.refusal(preprocess, io, task["kind"])
    if why_not is None:
        precision = str((report.details.get("choice") or {}).get("precision", "fp32"))
        deepstream.write_deepstream(
            folder, preprocess, io, task["classes"], precision, report.target
        )
    write_card(folder, report, io, deepstream.told(why_not) + _suppression_told(folder, report))


def _suppression_told(folder: Path, report: Report) -> str:
    """What `nms/` is, where the bundle has it."""
    path = folder / "nms" / "nms.json"
    if not path.is_file():
        return ""
    about = read_json(path)
    more = about["predicted_ms"]
    cost = "" if more is None else f" Predicted for {report.target}: {more:.3g} ms more."
    return (
        " `nms/model.onnx` is the network with its boxes decoded and suppressed inside: corners in "
        f"pixels of its input, score and class, [1, D, 6]. On {about['images']} validation images "
        f"{about['apart']} of {about['boxes']} boxes are other ones than those of the decode "
        f"outside.{cost} Latencies and gates of the report are of model.onnx."
    )
