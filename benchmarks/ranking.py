"""Does the calibrated latency model rank students as the device does?

Students of two families (the digits example's teacher and CSRNet, with one width for all layers
or one for each, at several input sizes; random weights) are measured in turns at a place and
predicted with the target's efficiencies. None of them is in the micro-benchmark that
`kdcompile targets calibrate` fits.

    kdcompile targets calibrate cpu
    python benchmarks/ranking.py [--target cpu] [--via PLACE] [--seconds 120] [--precision P ...]
        [--models FOLDER] [-o FILE]

Prints predicted against measured, and for each precision Spearman's rank correlation, the median
error and how many latencies lie in the model's 90 % interval.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from onnx import ModelProto
from reference_export import randomise, write_onnx
from scipy.stats import spearmanr
from torch import nn

from kdcompile.config.step import Board
from kdcompile.core.files import write_json
from kdcompile.latency.environment import fingerprint
from kdcompile.latency_model.device_check import check_device
from kdcompile.latency_model.microbench import OPSET, SIDES
from kdcompile.latency_model.microbench_timing import Case, TimedNetwork, measure
from kdcompile.latency_model.parameters import efficiencies_of
from kdcompile.latency_model.predict import estimate
from kdcompile.remote.open import evidence_of, facts_of, open_place
from kdcompile.targets import Target, load

GOAL, LEAST, SPAN = 0.95, 20, 5.0

# input side at scale 1, and widths of six layers, a pooling after the second and the fourth
DIGITS = (
    (64, (32, 32, 64, 64, 96, 96)),
    (64, (24, 24, 48, 48, 72, 72)),
    (64, (16, 16, 32, 32, 48, 48)),
    (64, (8, 8, 16, 16, 24, 24)),
    (96, (16, 16, 32, 32, 48, 48)),
    (128, (8, 8, 16, 16, 24, 24)),
    (64, (8, 16, 24, 64, 96, 32)),
    (64, (32, 8, 64, 16, 32, 96)),
    (80, (16, 8, 16, 48, 64, 64)),
    (96, (24, 8, 32, 24, 40, 16)),
    (48, (40, 40, 40, 40, 40, 40)),
    (64, (8, 8, 32, 64, 128, 128)),
)
# likewise, widths of CSRNet's four stages and of its six dilated layers
CSRNET = (
    (64, (8, 16, 32, 64), (64, 64, 64, 32, 16, 8)),
    (64, (16, 32, 64, 128), (128, 128, 128, 64, 32, 16)),
    (64, (12, 24, 48, 96), (96, 96, 96, 48, 24, 12)),
    (96, (4, 8, 16, 32), (32, 32, 32, 16, 8, 4)),
    (96, (8, 16, 32, 64), (64, 64, 64, 32, 16, 8)),
    (64, (16, 16, 48, 64), (96, 32, 64, 64, 16, 16)),
    (64, (8, 32, 32, 160), (32, 32, 32, 32, 32, 32)),
    (80, (8, 8, 64, 64), (128, 64, 32, 32, 32, 32)),
    (80, (16, 24, 32, 48), (48, 48, 48, 48, 48, 48)),
    (48, (8, 16, 32, 64), (64, 64, 64, 32, 16, 8)),
    (48, (16, 32, 64, 128), (64, 32, 16, 16, 8, 8)),
    (48, (8, 16, 96, 192), (192, 96, 96, 48, 24, 16)),
)


def digits(widths: Sequence[int]) -> nn.Module:
    """The digits example's teacher with these widths."""
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(zip((1, *widths), widths, strict=False)):
        if number in (2, 4):
            layers.append(nn.MaxPool2d(2))
        layers += _layer(before, width, 2 if number >= 4 else 1)
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))


def csrnet(front: Sequence[int], back: Sequence[int]) -> nn.Module:
    """CSRNet with these widths."""
    layers: list[nn.Module] = []
    before = 3
    for place, (width, depth) in enumerate(zip(front, (2, 2, 3, 3), strict=True)):
        if place:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += _layer(before, width, 1)
            before = width
    for width in back:
        layers += _layer(before, width, 2)
        before = width
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 1))


def _layer(before: int, width: int, dilation: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation)
    return [convolution, nn.ReLU()]


def students(folder: Path, target: Target, most: int | None = None) -> list[Case]:
    """All of them as files, or the first so many; those that are there already as they are.

    Their sides grow with the kind of device, as the micro-benchmark's do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = SIDES[target.kind][0] // SIDES["cpu"][0]
    nets: list[tuple[str, nn.Module, int, int, Sequence[int]]]
    nets = [("digits", digits(w), 1, side, w) for side, w in DIGITS]
    nets += [("csrnet", csrnet(f, b), 3, side, (*f, *b)) for side, f, b in CSRNET]
    found = []
    for family, network, channels, side, widths in nets[:most]:
        shape = (1, channels, side * scale, side * scale)
        name = f"{family}-{'-'.join(map(str, widths))}-{side * scale}"
        path = folder / f"{name}.onnx"
        if not path.exists():
            write_onnx(randomise(network), path, shape, ("density",), OPSET)
        found.append(Case(name, shape, partial(_load, path, min(target.ir_version, 8))))
    return found


def _load(path: Path, ir_version: int) -> ModelProto:
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, ir_version)
    return model


def row_of(timed: TimedNetwork, target: Target) -> dict[str, Any]:
    """Predicted and measured of one student in one precision."""
    found = estimate(timed.kernels, target, timed.precision, efficiencies_of(target))
    return {
        "name": timed.network,
        "precision": timed.precision,
        "gmac": sum(kernel.macs for kernel in timed.kernels) / 1e9,
        "measured_ms": timed.ms,
        "predicted_ms": found.ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "error": found.ms / timed.ms - 1,
        "inside": found.low_ms <= timed.ms <= found.high_ms,
        "spread": timed.spread,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one precision."""
    measured, predicted, gmac = (
        [row[key] for row in rows] for key in ("measured_ms", "predicted_ms", "gmac")
    )
    rank = float(spearmanr(predicted, measured).statistic)
    span = max(measured) / min(measured)
    return {
        "students": len(rows),
        "span": span,
        "spearman": rank,
        "spearman_of_gmac": float(spearmanr(gmac, measured).statistic),
        "median_error": median(abs(row["error"]) for row in rows),
        "worst_error": max(abs(row["error"]) for row in rows),
        "coverage": sum(row["inside"] for row in rows) / len(rows),
        "goal_met": rank >= GOAL and len(rows) >= LEAST and span >= SPAN,
    }


def run(
    name: str,
    via: str | None,
    seconds: float,
    models: Path | None,
    precisions: Sequence[str],
    most: int | None = None,
) -> dict[str, Any]:
    """Measure and predict."""
    target = load(name)
    backend = "tensorrt" if target.tensorrt else "onnxruntime"
    with tempfile.TemporaryDirectory() as folder, open_place(via, backend) as place:
        check_device(place.about, target, place.label)
        if target.kind == "workstation":
            target = target.with_backend(str(place.about["backend_version"]))
        evidence = evidence_of(place.about, target, place.label)
        board = Board(via, backend, place.label, facts_of(place.about), evidence)
        networks = students(models or Path(folder), target, most)
        asked = tuple(p for p in target.precisions if p in precisions or not precisions)
        asked_for = replace(target, precisions=asked)
        times = measure(
            place, board, asked_for, networks, seconds, lambda t: print(t, file=sys.stderr)
        )
    rows = [row_of(timed, target) for timed in times.undisturbed]
    kinds = dict.fromkeys(row["precision"] for row in rows)
    return {
        "target": target.full_name,
        "efficiencies": efficiencies_of(target).source,
        "calibration": (target.calibration or {}).get("source"),
        "board": {"label": board.label, **board.facts},
        "machine": fingerprint() if via is None else None,
        "refused": times.refused,
        "left_out": times.left_out,
        "busy": len(times.noisy),
        "disturbed": [timed.name for timed in times.timed if timed.is_disturbed],
        "precisions": {p: summary([r for r in rows if r["precision"] == p]) for p in kinds},
        "students": rows,
    }


def text(found: dict[str, Any]) -> str:
    """The tables."""
    lines = [f"{found['target']}, {found['calibration'] or found['efficiencies']}", ""]
    for precision, said in found["precisions"].items():
        rows = [row for row in found["students"] if row["precision"] == precision]
        lines.append(f"{precision:<62} {'GMAC':>7} {'measured':>9} {'predicted':>10} {'90 %':>16}")
        for row in sorted(rows, key=lambda row: float(row["measured_ms"])):
            band = f"{row['low_ms']:.3f} to {row['high_ms']:.3f}"
            lines.append(
                f"{row['name']:<62} {row['gmac']:>7.4f} {row['measured_ms']:>9.3f} "
                f"{row['predicted_ms']:>10.3f} {band:>16}{'' if row['inside'] else '  outside'}"
            )
        lines.append(
            f"{said['students']} students over {said['span']:.1f}x: Spearman {said['spearman']:.3f}"
            f" (of multiply-adds {said['spearman_of_gmac']:.3f}), median error "
            f"{said['median_error']:.0%}, worst {said['worst_error']:.0%}, {said['coverage']:.0%} "
            f"inside; goal {'met' if said['goal_met'] else 'not met'}\n"
        )
    if found["busy"]:
        lines.append(f"{found['busy']} latencies vary: a busy device")
    lines += [f"disturbed, not counted: {name}" for name in found["disturbed"]]
    return "\n".join(lines)


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--via", default=None)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--precision", action="append", default=[], help="by default every one")
    parser.add_argument("--most", type=int, help="so many students, for a dry run")
    parser.add_argument("--models", type=Path, help="a folder to keep the ONNX files in")
    options = parser.parse_args()
    found = run(
        options.target, options.via, options.seconds, options.models, options.precision,
        options.most,
    )  # fmt: skip
    print(text(found))
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
