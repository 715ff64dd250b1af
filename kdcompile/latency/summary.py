"""Latencies in a few numbers, for people and for a baseline's history."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdcompile.stats.samples import Samples

QUANTILES = (50, 90, 99)


def summary(samples: Samples) -> dict[str, Any]:
    """Quantiles of all undisturbed inferences, and how many there are.

    Args:
        samples: at least one block.

    Returns:
        `p50_ms`, `p90_ms`, `p99_ms` in milliseconds; None where every block was disturbed.
        `inferences`, `blocks` and `runs` are counts; `disturbed` counts the blocks left out.
    """
    kept = list(samples.blocks())
    every = sum(1 for _ in samples.blocks(disturbed=True))
    ms = np.array([value for block in kept for value in block.ms])
    found = np.percentile(ms, QUANTILES).tolist() if len(ms) else [None] * len(QUANTILES)
    return {
        **{
            f"p{q}_ms": None if value is None else round(value, 6)
            for q, value in zip(QUANTILES, found, strict=True)
        },
        "inferences": len(ms),
        "blocks": len(kept),
        "disturbed": every - len(kept),
        "runs": len(samples.runs),
    }


def usage(samples: Samples) -> Mapping[str, Any]:
    """Energy and memory as `power.usage` has them; empty where no run read them."""
    states = (run.environment.get("state", {}) for run in samples.runs)
    found: Mapping[str, Any] = next((s["usage"] for s in states if "usage" in s), {})
    return found


def disturbances(samples: Samples) -> dict[str, int]:
    """How many blocks each reason disturbed, the most frequent first."""
    counts: dict[str, int] = {}
    for block in samples.blocks(disturbed=True):
        if block.disturbed is not None:
            counts[block.disturbed] = counts.get(block.disturbed, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
