"""Rebuild the reference networks' kernels and fit the latency model's efficiencies on the fixtures.

    python benchmarks/fit_latency.py [--fit-only]

Writes `targets/reference_kernels.json.gz` and `targets/latency.toml` of this checkout, and the
tables of `docs/latency-model.md`.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import latency_tables
import onnx
from reference_networks import NETWORKS, write
from torch import nn

from kdcompile.core.files import replacing, write_text
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model import reference_kernels
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.observations import observations
from kdcompile.latency_model.parameters import Efficiencies, elsewhere, fit, priors
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.csrnet import CSRNet
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures
from kdcompile.targets.fixtures import load_fixtures

TARGETS = Path(__file__).parents[1] / "targets"
OPSET = 17
HEAD = (
    "# Efficiencies of the latency model, fitted on fixtures.toml by benchmarks/fit_latency.py:\n"
    "# not written by hand. `covariance` is of the logarithms, in the order of `values`.\n"
)


def build(network: str, shape: Sequence[int], folder: Path) -> onnx.ModelProto:
    """The ONNX file of a fixture's network, at batch 1 where MLPerf measured it."""
    if network in NETWORKS:
        return onnx.load(write(NETWORKS[network], folder))  # Split has no form in opset 17
    module: nn.Module = CSRNet()
    if network == "CSRNet-1/4":
        quarter = architectures(module, (1, 3, 64, 64), 16, 0, [0.25])[0]
        module = student_from_architecture(module, quarter, folder)
    size = tuple(shape)
    return onnx_from_module(module.eval(), folder / "network.onnx", (size, size, size), OPSET)


def tables(networks: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """The kernels of every usable fixture's network (or of these), by the file's keys."""
    built: dict[str, onnx.ModelProto] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for fixture in load_fixtures():
            name, shape, precision = fixture.network, fixture.shape, fixture.precision
            if not fixture.usable or (networks and name not in networks):
                continue
            if name not in built:
                built[name] = build(name, shape, Path(folder))
            key = reference_kernels.key_of(name, shape, precision)
            if key not in found:
                kernels = kernels_of(built[name], shape, float32_as=cast(Precision, precision))
                found[key] = compact(kernels)
    return found


def compact(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Rows of the file; tensors are numbered, and kernels named by their index."""
    numbers: dict[str, str] = {}
    rows = []
    for index, kernel in enumerate(kernels):
        row = asdict(kernel) | {"name": f"kernel {index}", "nodes": []}
        for table in ("reads", "writes"):
            row[table] = {
                numbers.setdefault(tensor, f"t{len(numbers)}"): size
                for tensor, size in row[table].items()
            }
        rows.append(json.loads(json.dumps(row)))
    return rows


def write_reference(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write the file; the same tables give the same bytes."""
    text = json.dumps(tables, separators=(",", ":"))
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _short(value: float) -> str:
    """Six digits; what is zero but for rounding is zero."""
    return "0" if abs(value) < 1e-9 else f"{value:.6g}"


def to_toml(fitted: dict[str, Efficiencies]) -> str:
    """The file of fitted efficiencies."""
    lines = [HEAD]
    for group, values in fitted.items():
        rows = ",\n".join("  [" + ", ".join(map(_short, row)) + "]" for row in values.covariance)
        lines += [f"[{group}]", f'source = "{values.source}"', f"residual = {values.residual:.4f}"]
        lines += [f"covariance = [\n{rows},\n]", f"[{group}.values]"]
        lines += [f'"{name}" = {values.values[name]:.6g}' for name in values.names] + [""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fit-only", action="store_true", help="keep the kernels that are there")
    options = parser.parse_args(arguments)
    if not options.fit_only:
        write_reference(tables(), TARGETS / reference_kernels.FILE.name)
    gpu, cpu = (fit(observations(group), priors(group)) for group in ("gpu", "cpu"))
    write_text(TARGETS / "latency.toml", to_toml({"gpu": gpu, "cpu": elsewhere(cpu)}))
    return latency_tables.main()  # which reads the new file


if __name__ == "__main__":
    sys.exit(main())
