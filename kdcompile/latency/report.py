"""Reports of latencies and comparisons: quantiles, JSON values, and tables for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.core.backends import library
from kdcompile.core.errors import KDError
from kdcompile.latency.compatibility import Difference
from kdcompile.stats.comparison import Comparison, Ratio
from kdcompile.stats.samples import Samples

if TYPE_CHECKING:
    from rich.table import Table

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


COLOURS = {"regressed": "red", "inconclusive": "yellow", "improved": "green", "equivalent": "green"}


def latencies(samples: Samples) -> "Table":
    """The quantiles of one artifact, in milliseconds."""
    table = _table()
    table.add_column("ms", justify="right")
    found = summary(samples)
    for q in QUANTILES:
        table.add_row(f"p{q}", _ms(found[f"p{q}_ms"]))
    return table


def verdict(judged: "Judged") -> "Table":
    """Both sides, and the ratio with its interval and decision at each quantile."""
    comparison = judged.comparison
    table = _table()
    for name in ("reference ms", "candidate ms", "ratio", "interval", "margin"):
        table.add_column(name, justify="right")
    table.add_column("decision")
    before, after = summary(judged.reference), summary(judged.candidate)
    for ratio in comparison.ratios:
        key = f"{ratio.quantile}_ms"
        colour = COLOURS[ratio.decision]
        table.add_row(
            ratio.quantile, _ms(before[key]), _ms(after[key]), f"{ratio.value:.4f}",
            _interval(ratio), f"{100 * ratio.margin:.3g} %", f"[{colour}]{ratio.decision}[/]",
        )  # fmt: skip
    return table


def remarks(judged: "Judged") -> list[str]:
    """The lines below the table: the verdict and why, then whatever qualifies it."""
    comparison = judged.comparison
    lines = [f"{comparison.decision}: {comparison.reason}", how(comparison, judged.looks)]
    for side, samples in (("reference", judged.reference), ("candidate", judged.candidate)):
        lines += in_flight(samples, f"{side}: ")
        lines += disturbed(samples, f"{side}: ", left_out=comparison.left_out > 0)
        lines += takes(samples, f"{side}: ")
    lines += [f"allowed to differ: {difference}" for difference in judged.allowed]
    lines += [f"note: {note}" for note in judged.notes]
    return lines


def how(comparison: Comparison, looks: int) -> str:
    """How many samples there are and what chance of a false alarm was spent."""
    spent = f", {looks} looks, each at its share of the level" if looks > 1 else ""
    return f"{comparison.blocks} blocks a side, level {100 * comparison.level:g} %{spent}"


def in_flight(samples: Samples, prefix: str = "") -> list[str]:
    """One line on the throughput where several inferences were in flight at once."""
    run = samples.runs[-1]
    rate = run.environment.get("state", {}).get("inferences_per_s")
    if rate is None:
        return []
    shown = f"{rate:.4g}" if rate < 9999.5 else f"{rate:.0f}"
    return [f"{prefix}{run.mode['streams']} in flight: {shown} inferences a second"]


def disturbed(samples: Samples, prefix: str = "", *, left_out: bool = True) -> list[str]:
    """One line on the blocks that something disturbed; none where nothing did."""
    found = disturbances(samples)
    if not found:
        return []
    total = sum(1 for _ in samples.blocks(disturbed=True))
    reasons = ", ".join(f"{reason} ({count})" for reason, count in found.items())
    what = f"{sum(found.values())} of {total} blocks were disturbed"
    return [f"{prefix}{what}, {'left out' if left_out else 'not left out'}: {reasons}"]


def takes(samples: Samples, prefix: str = "") -> list[str]:
    """Energy of an inference and peak memory, each where its device told it."""
    found = usage(samples)
    energy, memory, lines = found.get("energy", {}), found.get("memory", {}), []
    if "mj" in energy:
        lines.append(
            f"{prefix}{energy['mj']:.3g} mJ an inference ({energy['low']:.3g} to "
            f"{energy['high']:.3g}), {energy['above_idle_mj']:.3g} mJ of it above idle; by "
            f"{energy['source']} {' + '.join(energy['judged'])}"
        )
    if "mb" in memory:
        lines.append(f"{prefix}peak memory {memory['mb']:.4g} MB: {memory['what']}")
    return lines


def title(candidate: Samples, reference: Samples | None) -> str:
    """The line above the table."""
    if reference is None:
        return candidate.name
    if candidate.name == reference.name:
        return f"{candidate.name} ({candidate.sha256[:8]}) against {reference.sha256[:8]}"
    return f"{candidate.name} against {reference.name}"


def places(candidate: Samples, reference: Samples | None, target: str | None) -> list[str]:
    """Where and how it was measured, in a line, or in two where the sides differ.

    Args:
        candidate: what was measured.
        reference: what it is held against, if anything.
        target: the device that a bundle is for; a last line says where this was not it.
    """
    lines = [f"measured on {place(candidate)}"]
    if reference is not None and place(reference) != place(candidate):
        lines.append(f"the reference was measured on {place(reference)}")
    if target is not None and _is_another(target, candidate.runs[-1].environment.get("facts", {})):
        lines.append(f"this is not {target}: to measure on it, name it with --via PLACE")
    return lines


def place(samples: Samples) -> str:
    """The machine, the backend with its version, threads and input of the last run."""
    run = samples.runs[-1]
    facts, mode = run.environment.get("facts", {}), run.mode
    board = [str(facts[key]) for key in ("module", "power_mode") if facts.get(key)]
    machine = " ".join(board) or facts.get("gpu") or facts.get("cpu") or facts.get("platform")
    backend = str(facts.get("backend") or "an unnamed backend")
    version = facts.get(f"{library(backend)}_version")
    threads = mode.get("threads")
    parts = [
        str(machine or "an unnamed machine"),
        backend if version is None else f"{backend} {version}",
        "" if threads is None else f"{threads} thread{'s'[: threads != 1]}",
        f"input {mode['input']}" if mode.get("input") else "",
    ]
    return ", ".join(part for part in parts if part)


def _is_another(target: str, facts: Mapping[str, Any]) -> bool:
    """Whether a measurement is of another kind of device than a target."""
    from kdcompile.targets import load

    try:
        wanted = load(target)
    except KDError:  # of a later kdcompile
        return False
    if wanted.kind == "cpu":
        return facts.get("gpu") is not None
    if wanted.kind == "jetson":
        return facts.get("gpu") is None or facts.get("module") is None
    return facts.get("compute_capability") != wanted.compute_capability


def _table() -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    return table


def _interval(ratio: Ratio) -> str:
    return f"{ratio.low:.4f} to {ratio.high:.4f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@dataclass(frozen=True)
class Judged:
    """A comparison of two artifacts, and what it was made from.

    Args:
        comparison: the verdict.
        candidate: what was judged.
        reference: against what.
        allowed: conditions that differ and were allowed by name.
        notes: what a reader must know, such as that no reference ran here.
        looks: how often the verdict was looked at; each spent an equal share of the level.
    """

    comparison: Comparison
    candidate: Samples
    reference: Samples
    allowed: Sequence[Difference] = ()
    notes: Sequence[str] = ()
    looks: int = 1


def described(samples: Samples) -> Mapping[str, Any]:
    """Samples as a report has them: numbers in place of the latencies."""
    last = samples.runs[-1]
    return {
        "name": samples.name,
        "sha256": samples.sha256,
        **summary(samples),
        "disturbances": disturbances(samples),
        "usage": dict(usage(samples)) or None,
        "started": [run.started for run in samples.runs],
        "environment": dict(last.environment),
        "mode": dict(last.mode),
    }
