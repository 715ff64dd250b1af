"""Which public backbones are made smaller: at half the width, and at twice the speed on a Jetson.

    pip install --no-deps --target FOLDER torchvision==0.28.0 timm transformers
    PYTHONPATH=FOLDER python benchmarks/backbones.py [-o FILE] [timm:NAME hf:NAME hand:NAME ...]
    python benchmarks/backbones_page.py      # docs/backbones.md, from the file

Random weights, the network's own input size, the channel tile and the latency model of `jetson` in
fp16 (predicted, never measured). Each student is untrained, has the teacher's first channels, and
is run, exported, and its file run by ONNX Runtime. A row is written when it is done and never made
again; a network whose package is not installed has a row that says so, and is tried again. Which
latency model priced a row is in its `model`: delete the line of an earlier one to make it again.
"""

import argparse
import hashlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import csv_tables
import numpy as np
import torch
from backbone_networks import names, network
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdcompile import targets
from kdcompile.config.spec import Budget, Spec
from kdcompile.core.errors import KDError
from kdcompile.distill.inherit.plan import kept_parameters, layer_plans, widths
from kdcompile.distill.inherit.slicing import slice_weights
from kdcompile.export.onnx_file import one_registry, quiet_exporter
from kdcompile.latency_model import predict
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.network_cost import Network, NetworkCost, params
from kdcompile.latency_model.predict import estimate
from kdcompile.models.blocks import fold
from kdcompile.models.channel_groups import ENDS, Channels
from kdcompile.models.channels import trace
from kdcompile.models.dropped import is_gone
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.search import frozen as table
from kdcompile.search.depth import residual_blocks
from kdcompile.search.pareto import Point
from kdcompile.search.recorded import Narrowed
from kdcompile.search.spaces.pruned import students
from kdcompile.search.uniform_search import choose_width, shallower, widest
from kdcompile.search.unshrunk import refuse_unshrunk

BUDGETS = {"width 0.5": Budget(width=0.5), "speedup 2": Budget(speedup=2.0)}
TARGET, PRECISION, NARROW_TILE = "jetson", "fp16", 8
SHOWN = 3  # frozen modules in a row
COLUMNS = (
    "network", "budget", "width", "dropped", "params_m", "student_params_m", "share",
    "share_tile_8", "share_exact", "macs_m", "student_macs_m", "ms", "student_ms", "speedup",
    "frozen", "refused", "exported", "ort", "parity", "seconds", "skipped", "model",
)  # fmt: skip


class Exported(Network):
    """A network of any tensors with the exporter's file; `refused` says why it has no other."""

    refused = ""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kernels = {}
        self.module, self.shape = fold(module), list(inputs[0].shape)
        with quiet_exporter(), one_registry():
            program = torch.onnx.export(self.module, inputs, dynamo=True, verbose=False)
        assert program is not None, "without a path the exporter returns its program"
        self.model: ModelProto = program.model_proto


def _exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Network:
    """As the compiler exports it where that is one image in and one tensor out."""
    made = tree_leaves(module(*inputs))
    image = len(inputs) == 1 and inputs[0].ndim == 4 and len(made) == 1
    if not image:
        return Exported(module, inputs)
    try:
        return Network(module, inputs[0].shape)
    except KDError as error:  # it has a price all the same
        found = Exported(module, inputs)
        found.refused = f"no: {error.code}: {error.message}"
        return found


@cache
def latency_model() -> str:
    """Which latency model prices a row: a digest of its sources and of what the target says."""
    folder = Path(predict.__file__).parent
    parts = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    parts.append(json.dumps(targets.load(TARGET).to_json(), sort_keys=True, default=str).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def parity(found: Network, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference between PyTorch and ONNX Runtime, of the largest output."""
    session = cpu_session(found.model, threads=1)
    given = {i.name: v.numpy() for i, v in zip(session.get_inputs(), inputs, strict=True)}
    wanted = [value.numpy() for value in tree_leaves(found.module(*inputs))]
    pairs = list(zip(session.run(None, given), wanted, strict=True))
    largest = max(1e-30, *(float(np.abs(value).max()) for _, value in pairs))
    return max(float(np.abs(a - b).max()) for a, b in pairs) / largest


def _chosen(
    teacher: Network, channels: Channels, inputs: tuple[Tensor, ...], budget: Budget
) -> tuple[Mapping[str, Any], str]:
    """The student of a budget, and what the compiler refuses it for."""
    target, module = targets.load(TARGET), teacher.module
    tile = target.channel_tile
    if budget.width is not None:
        made = students(channels, tile, 0, [budget.width])[0]
        try:
            refuse_unshrunk(module, channels, made, budget.width, tile, budget)
        except KDError as error:
            return made, error.message
        return made, ""
    try:
        if not isinstance(teacher, Exported):
            return choose_width(_spec(teacher, budget), Narrowed(teacher), target)[0], ""

        def price(architecture: Mapping[str, Any], given: nn.Module | None = None) -> Point:
            own = given or student_from_architecture(module, architecture, Path()).eval()
            cost = Exported(own, inputs).cost(target, PRECISION)
            nothing = math.nan
            return Point(dict(architecture), cost.estimate, nothing, nothing, "proxy", cost.macs, 0)

        whole = {PRECISION: price({"width": 1.0}, module)}
        options = students(channels, tile, 0)
        try:
            return widest(options, price, budget, whole).architecture, ""
        except KDError:
            blocks = residual_blocks(module, inputs)
            if not blocks:
                raise
            return shallower(options, blocks, price, budget, whole).architecture, ""
    except KDError as error:
        return students(channels, tile, 0)[-1], f"{error.code}: {error.message}"


def _spec(teacher: Network, budget: Budget) -> Spec:
    return Spec(
        target=TARGET,
        teacher={"model": "model.py:build", "weights": "w.safetensors"},
        data={"format": "npz", "root": "."},
        export={"shape": teacher.shape},
        student={"budget": budget},
        quantize={"precision": PRECISION},
    )


def frozen(teacher: nn.Module, channels: Channels) -> str:
    """The first modules that keep the teacher's width, with the reason, and how many more."""
    found = [r for r in table.frozen(teacher, channels) if r["reason"] != ENDS]
    shown = [f"{r['module']} ({r['reason']})" for r in found[:SHOWN]]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join([*shown, *more])


def _priced(found: Network) -> tuple[str, str, float]:
    """Multiply-adds in millions, predicted milliseconds, and these as a number."""
    try:
        kernels = kernels_of(found.model, found.shape, PRECISION)
        cost = NetworkCost(kernels, estimate(kernels, targets.load(TARGET), PRECISION), found.shape)
    except KDError as error:
        return "", error.code, math.nan
    return f"{cost.macs / 1e6:.2f}", f"{cost.estimate.ms:.4f}", cost.estimate.ms


def row(name: str, budget: str) -> dict[str, object]:
    """One line of the table."""
    begun = time.perf_counter()
    module, inputs = network(name)
    teacher = _exported(module, inputs)
    channels = trace(module, inputs)
    macs, ms, whole = _priced(teacher)
    architecture, refused = _chosen(teacher, channels, inputs, BUDGETS[budget])
    student = student_from_architecture(module, architecture, Path()).eval()
    _slice(module, student, channels, architecture.get("dropped", []))
    sizes = [[v.shape for v in tree_leaves(net(*inputs))] for net in (module, student)]
    if sizes[0] != sizes[1]:
        raise SystemExit(f"{name}: the student's output has another size")
    narrow = students(channels, NARROW_TILE, 0, [float(architecture["width"])])[0]
    at_8 = params(student_from_architecture(module, narrow, Path()))
    full, kept = params(module), params(student)
    asked = BUDGETS[budget].width
    made = {
        "network": name,
        "budget": budget,
        "width": f"{architecture['width']:.3f}",
        "dropped": len(architecture.get("dropped", ())),
        "params_m": f"{full / 1e6:.3f}",
        "student_params_m": f"{kept / 1e6:.3f}",
        "share": f"{kept / full:.3f}",
        "share_tile_8": f"{at_8 / full:.3f}",
        "share_exact": f"{_unrounded(module, channels, asked) / full:.3f}" if asked else "",
        "macs_m": macs,
        "ms": ms,
        "frozen": frozen(module, channels),
        "refused": refused,
        **_run(student, inputs, whole),
        "model": latency_model(),
    }
    seconds = f"{time.perf_counter() - begun:.1f}"
    return dict.fromkeys(COLUMNS, "") | made | {"seconds": seconds}


def _unrounded(teacher: nn.Module, channels: Channels, width: float) -> int:
    """The parameters of a student of which every width but those of the ends is exactly so."""
    ends = {root for root in channels.frozen if channels.why.get(root) == ENDS}
    (made,) = students(replace(channels, frozen=ends), 1, 0, [width])
    return params(student_from_architecture(teacher, made, Path()))


def _slice(teacher: nn.Module, student: nn.Module, channels: Channels, gone: list[str]) -> None:
    """Give a student the teacher's first channels: values as large as the teacher's."""
    of = {n: layer for n, layer in channels.layers.items() if not is_gone(n, gone)}
    loose = {n: value for n, value in channels.parameters.items() if not is_gone(n, gone)}
    left = replace(channels, layers=of, parameters=loose)
    first = {root: torch.arange(keep) for root, keep in widths(left, student).items()}
    plans = layer_plans(left, first, student)
    slice_weights(teacher, student, plans, kept_parameters(left, first))


def _run(student: nn.Module, inputs: tuple[Tensor, ...], whole: float) -> dict[str, object]:
    """A student's file: exported, priced, run."""
    found = _exported(student, inputs)
    macs, ms, own = _priced(found)
    return {
        "exported": getattr(found, "refused", "") or "yes",
        "student_macs_m": macs,
        "student_ms": ms,
        "speedup": f"{whole / own:.2f}",
        "parity": f"{parity(found, inputs):.1e}",
        "ort": "yes",
    }


def main() -> None:
    """Write the table line by line; what is in the file already is left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=names())
    parser.add_argument("-o", type=Path, default=Path("benchmarks/backbones.csv"))
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    kept = csv_tables.kept(given.o, COLUMNS[:2])
    done: dict[Any, Any] = {key: line for key, line in kept.items() if not line["skipped"]}
    for budget, name in ((b, n) for b in BUDGETS for n in given.names):
        if (name, budget) in done:
            continue
        try:
            line = row(name, budget)
        except ImportError as error:
            line = dict.fromkeys(COLUMNS, "") | {"network": name, "budget": budget}
            line["skipped"] = f"no package {error.name}"
        done[name, budget] = line
        sys.stderr.write(json.dumps(line) + "\n")
        csv_tables.write(given.o, COLUMNS, done.values())


if __name__ == "__main__":
    main()
