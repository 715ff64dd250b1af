"""Numbers for GitLab's metrics report: OpenMetrics text, compared between branches by GitLab."""

import math
from collections.abc import Sequence
from typing import Any

from kdcompile.ci.outcome import Outcome
from kdcompile.core.escape import metric_label


def metrics(outcomes: Sequence[Outcome]) -> str:
    """Whether each gate passed, the ratios of latency comparisons, and what gates measured.

    Args:
        outcomes: in the order of the report.
    """
    passed = [({"gate": o.name}, float(o.verdict == "passed")) for o in outcomes]
    ratios = [
        ({"artifact": o.name, "quantile": r["quantile"]}, r["value"])
        for o in outcomes
        for r in o.details.get("ratios") or ()
    ]
    measured = [
        ({"gate": o.name, "name": m["name"], "unit": m["unit"]}, m["value"])
        for o in outcomes
        for m in o.details.get("measurements") or ()
    ]
    families = {
        "kdcompile_gate_passed": passed,
        "kdcompile_latency_ratio": ratios,
        "kdcompile_measured": measured,
    }
    lines = []
    for name, samples in families.items():
        # a label set may occur once: of two alike, the later is what was measured last
        found = {_labels(labels): value for labels, value in samples}
        if found:
            lines.append(f"# TYPE {name} gauge")
        lines += [f"{name}{labels} {_number(value)}" for labels, value in found.items()]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _labels(labels: dict[str, Any]) -> str:
    pairs = (f'{key}="{metric_label(str(value))}"' for key, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.6g}" if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")
