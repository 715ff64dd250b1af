"""`MODEL_CARD.md`: what the network is for, what it was made of, and what nobody measured.

The sections follow Mitchell et al., Model Cards for Model Reporting, 2019, where a build has
something to say of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcompile.bundle import facts
from kdcompile.bundle.manifest import ENGINE
from kdcompile.bundle.samples import IO, fill
from kdcompile.core.files import file_sha256, write_text
from kdcompile.core.readers import read_json
from kdcompile.core.report import Report

NAME = "MODEL_CARD.md"
SPLITS = ("train", "val", "test")
NOT_RECORDED = "not recorded"
CHOICE = ("precision", "basis", "why")
TRAINING = ("recipe", "steps", "best_step", "device", "seconds", "seed")


def write_card(folder: Path, report: Report, io: IO, serving: str = "") -> None:
    """Write the card.

    Args:
        folder: the bundle, with its networks.
        report: everything that was measured.
        io: the network's inputs and outputs.
        serving: what is there for other runtimes, or why not.
    """
    from kdcompile.bundle import render  # matplotlib

    details = report.details
    teacher = details.get("teacher") or {}
    text = fill(
        "MODEL_CARD.md.j2",
        title=f"{report.name} for {report.target}",
        verdict=f"{report.verdict[0].upper()}{report.verdict[1:]}",
        meaning=facts.meaning(report),
        identity=_identity(folder, report, io),
        sample="a sample" if facts.takes_tensors(report) else "an image",
        prediction=facts.words(report).prediction,
        target=report.target,
        data=_data(details),
        scope=facts.scope(report),
        dropped=len(details.get("dropped") or ()),
        heads=render.NUMBER_HEADS,
        metrics=render.number_rows(report),
        evidence=[
            (level, text)
            for level, text in facts.EVIDENCE.items()
            if any(m.evidence == level for m in report.measurements)
        ],
        limits=list(_limits(report)),
        serving=serving,
        quantisation=_quantisation(details),
        teacher=facts.flat(
            {k: v for k, v in teacher.items() if v is not None and k not in ("dropped", "classes")}
        ),
        progress=facts.progress(report),
        training=facts.flat(_only(details.get("distill"), TRAINING)),
        unknown=NOT_RECORDED,
    )
    write_text(folder / NAME, text)


def _only(value: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value[key] for key in keys if value and key in value}


def _identity(folder: Path, report: Report, io: IO) -> Iterator[tuple[str, str]]:
    yield "task", str(facts.task(report)["kind"])
    yield "device", report.target
    yield "precision", str((report.details.get("choice") or {}).get("precision", NOT_RECORDED))
    named = zip(("input", "output"), io, strict=True)
    for what, tensor in ((what, tensor) for what, side in named for tensor in side):
        sizes = " x ".join("any" if size < 0 else str(size) for size in tensor.dims)
        yield what, f"{tensor.name}, {tensor.type.lower()} [{sizes}]"
    for name in ("model.onnx", ENGINE):
        if (folder / name).is_file():
            yield f"SHA-256 of {name}", file_sha256(folder / name)
    sidecar = folder / f"{ENGINE}.json"
    if sidecar.is_file():  # a board may have chosen another precision than the build
        built = read_json(sidecar)
        yield f"precision of {ENGINE}", str(built.get("precision", NOT_RECORDED))
    yield "made by", f"kdcompile {report.environment.get('kdcompile', NOT_RECORDED)}"


def _data(details: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(split, images, hash); counts also from the teacher's record where there is no `data`."""
    teacher, data = details.get("teacher") or {}, details.get("data") or {}
    rows = []
    for split in SPLITS:
        known = data.get(split) or {}
        count = known.get("images", teacher.get(f"n_{split}"))
        shown = NOT_RECORDED if count is None else facts.number(count)
        rows.append((split, shown, str(known.get("sha256", NOT_RECORDED))))
    return rows


def _quantisation(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        *facts.flat(_only(details.get("choice"), CHOICE)),
        *facts.flat(details.get("calibration"), "calibration: "),
    ]


def _limits(report: Report) -> Iterator[str]:
    """What a reader may not conclude."""
    undecided = [g for g in report.gates if g.verdict in ("pending", "skipped", "inconclusive")]
    for gate in undecided:
        yield f"gate {gate.name} is {gate.verdict}: {gate.reason or 'no reason given'}"
    for gate in report.gates:
        if gate.verdict == "failed":
            yield f"gate {gate.name} failed: {gate.observed} against {gate.threshold}"
    if not any(m.evidence == "device" for m in report.measurements):
        yield "nothing was measured on the device itself"
    yield from facts.warnings(report)
    yield "not measured: images unlike the test split, attacks, drift over time, energy"
    yield "not measured: differences between groups of people or places, which no split names"
