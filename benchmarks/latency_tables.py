"""The tables of docs/latency-model.md, from the code.

    python benchmarks/latency_tables.py

`benchmarks/fit_latency.py` writes them too. A section lies between `<!-- begin NAME -->` and
`<!-- end NAME -->`. The searched student's columns come of `models/searched_csrnet.json`, an
architecture that a search gave, where it is there.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from kdcompile.core.files import write_text
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.network_cost import Network
from kdcompile.latency_model.predict import estimate
from kdcompile.latency_model.reference_kernels import reference_kernels
from kdcompile.latency_model.validate import Row, Validation, validate
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.csrnet import build as csrnet
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.targets import Target, load, names

DOCS = Path(__file__).parents[1] / "docs" / "latency-model.md"
SEARCHED = Path(__file__).with_name("models") / "searched_csrnet.json"
SHAPE = (1, 3, 576, 768)
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
Made = Callable[[Precision], Sequence[Kernel]]  # of a network, its kernels at a precision


def sections(network: Validation, module: Validation) -> dict[str, str]:
    """The generated text of each section.

    Args:
        network: `validate("network")`.
        module: `validate("module")`.
    """
    return {
        "validation": f"{_fixtures(network.rows)}\n\n{_verdict(network)}",
        "ratios": _ratios(network),
        "held": f"{_fixtures(network.held)}\n\nAs shipped: {_held(network)}",
        "secondary": f"{_fixtures(network.secondary)}\n\n{_spread(network.secondary)}",
        "module": "The same, leaving out a whole *module*: "
        f"median {module.median_error:.1%}, worst {module.worst_error:.1%}, "
        f"{module.coverage:.0%} inside.",
        "family": family(),
    }


def _fixtures(found: Sequence[Row]) -> str:
    rows = [
        "| fixture | predicted ms | 90 % interval | measured ms | error |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        outside = "" if row.inside else ", outside"
        rows.append(
            f"| {row.name} | {row.predicted_ms:.4g} | {row.low_ms:.3g} .. {row.high_ms:.3g} "
            f"| {row.measured_ms:.4g} | {row.error:+.1%}{outside} |"
        )
    return "\n".join(rows)


def _verdict(found: Validation) -> str:
    return "\n".join(f"- {line}" for line in found.verdict())


def _ratios(found: Validation) -> str:
    rows = [
        "| slower | faster | predicted | 90 % interval | measured | error |",
        "|---|---|---|---|---|---|",
    ]
    for ratio in found.ratios:
        outside = "" if ratio.inside else ", outside"
        rows.append(
            f"| {ratio.slower} | {ratio.faster} | {ratio.predicted:.3g} | {ratio.low:.3g} .. "
            f"{ratio.high:.3g} | {ratio.measured:.3g} | {ratio.error:+.1%}{outside} |"
        )
    verdict = "\n".join(f"- {line}" for line in found.ratio_verdict())
    return "\n".join(rows) + "\n\n" + verdict


def _held(found: Validation) -> str:
    return f"{_spread(found.held)}\nFitted without their networks too: {_spread(found.apart)}"


def _spread(rows: Sequence[Row]) -> str:
    errors, inside = [abs(row.error) for row in rows], sum(row.inside for row in rows)
    return (
        f"median absolute error {median(errors):.1%}, worst {max(errors):.1%}, "
        f"{inside} of {len(rows)} inside the interval."
    )


def family() -> str:
    """The networks on every Jetson in every power mode: median, interval, whether validated."""
    known = networks()
    heads = [f"{name} {precision}" for name in known for precision in PRECISIONS]
    rows = [f"| module and mode | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for target in (load(name, calibrated=False) for name in names()):
        for mode in target.power_modes if target.kind == "jetson" else ():
            name = f"{target.name}@{mode}"
            at = load(name, calibrated=False)
            cells = [_cell(made, at, p) for made in known.values() for p in PRECISIONS]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def networks() -> dict[str, Made]:
    """The columns of the family's table."""
    known: dict[str, Made] = {
        name: partial(reference_kernels, name, SHAPE) for name in ("CSRNet", "CSRNet-1/4")
    }
    if SEARCHED.exists():
        table = json.loads(SEARCHED.read_text(encoding="utf-8"))
        architecture = table.get("architecture", table)
        known["searched"] = _made_of(architecture)
    return known


def _made_of(architecture: Mapping[str, Any]) -> Made:
    """The kernels of a student of CSRNet."""
    student = student_from_architecture(csrnet(), architecture, DOCS.parent)
    model = Network(student.eval(), SHAPE).model
    return lambda precision: kernels_of(model, SHAPE, precision)


def _cell(made: Made, target: Target, precision: Precision) -> str:
    if precision not in target.precisions or precision not in target.peak_tflops:
        return "-"
    found = estimate(made(precision), target, precision)
    unvalidated = "" if found.validated else " *u*"
    return f"{found.ms:.3g} ({found.low_ms:.3g} .. {found.high_ms:.3g}){unvalidated}"


def rewritten(text: str, made: Mapping[str, str]) -> str:
    """A document with each section's text replaced.

    Raises:
        ValueError: it lacks a section's marks.
    """
    for name, section in made.items():
        begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
        head, begun, rest = text.partition(begin)
        _, ended, tail = rest.partition(end)
        if not begun or not ended:
            raise ValueError(f"there is no section {name}: write its begin and end there")
        text = head + begin + section + end + tail
    return text


def main() -> int:
    """Rewrite the document."""
    made = sections(validate("network"), validate("module"))
    write_text(DOCS, rewritten(DOCS.read_text(encoding="utf-8"), made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
