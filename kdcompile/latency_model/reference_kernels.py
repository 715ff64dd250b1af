"""The kernels of the networks that the fixtures were measured on, kept with the package.

`targets/reference_kernels.json.gz` is written by `benchmarks/fit_latency.py` from the rebuilt
networks, so that validation needs neither PyTorch nor their files.
"""

import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kdcompile import targets
from kdcompile.core.errors import KDError
from kdcompile.latency_model.workload import Kernel

FILE = Path(targets.__file__).with_name("reference_kernels.json.gz")
_TUPLES = ("shape", "kernel_size", "stride", "dilation", "nodes")


def key_of(network: str, shape: Sequence[int], precision: str) -> str:
    """How the file names one of them."""
    return f"{network} {'x'.join(map(str, shape))} {precision}"


def reference_kernels(network: str, shape: Sequence[int], precision: str) -> list[Kernel]:
    """The kernels of a fixture's network at its shape, built at its precision.

    Raises:
        KDError: `reference-unknown`.
    """
    known, key = _read(), key_of(network, shape, precision)
    if key not in known:
        raise KDError(
            "reference-unknown",
            f"no kernels are kept of {key}",
            where=FILE.name,
            fix="python benchmarks/fit_latency.py, after its network is added there",
        )
    kernels = []
    for row in known[key]:
        fields: dict[str, Any] = {n: tuple(v) if n in _TUPLES else v for n, v in row.items()}
        kernels.append(Kernel(**fields))
    return kernels


def reference_gmac(network: str, shape: Sequence[int]) -> float:
    """1e9 multiply-adds of a network at a shape, at any precision.

    Raises:
        KDError: `reference-unknown`.
    """
    start = key_of(network, shape, "")
    for key, rows in _read().items():
        if key.startswith(start):
            return float(sum(row["macs"] for row in rows)) / 1e9
    return float(sum(k.macs for k in reference_kernels(network, shape, "any"))) / 1e9


@cache
def _read() -> dict[str, list[dict[str, Any]]]:
    with gzip.open(FILE, "rt", encoding="utf-8") as stream:
        known: dict[str, list[dict[str, Any]]] = json.load(stream)
    return known
