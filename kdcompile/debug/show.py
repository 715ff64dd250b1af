"""The ladder and what `bisect` found, as text."""

from collections.abc import Sequence

from kdcompile.core.report import columns
from kdcompile.debug.locate import Finding
from kdcompile.debug.tolerance import NO_LIMIT
from kdcompile.debug.variants import Ladder, Step
from kdcompile.tasks.agreement import LIMIT_DB

HEADER = ("rung", "against", "SQNR dB", "cosine", "max rel. error", "noise", "metric", "verdict")
GRADUAL = (
    "no single node is at fault: the error has built up over many; calibrate on other images, keep "
    'sensitive layers in fp16 (quantize.precision = "mixed"), or distill with qad'
)


def ladder_lines(ladder: Ladder, steps: Sequence[Step]) -> list[str]:
    """The table, what failed and why, and what the tolerance is from."""
    text = columns([HEADER, *(_cells(ladder, step) for step in steps)])
    text += [f"{step.name}: {step.reason}" for step in steps if step.reason]
    limit = ladder.tolerance
    text.append(f"noise of predictions up to {limit.noise:.2g} is tolerated: {limit.why}")
    text.append(f"on {ladder.source}; the tolerance is from {limit.n}")
    return text


def _cells(ladder: Ladder, step: Step) -> tuple[str, ...]:
    metric = (
        "" if step.metric is None else f"{ladder.metric.name} {ladder.metric.text(step.metric)}"
    )
    head = step.name, step.against or ""
    if step.sqnr_db is None or step.cosine is None or step.noise is None:
        return (*head, "", "", "", "", metric, step.verdict)
    equal = "equal" if step.sqnr_db >= LIMIT_DB else f"{step.sqnr_db:.1f}"
    worst = "none" if step.sqnr_db <= -LIMIT_DB else equal
    errors = (_number(value) for value in (step.max_rel_error or 0.0, step.noise))
    return (*head, worst, f"{step.cosine:.6f}", *errors, metric, step.verdict)


def _number(value: float) -> str:
    return "unbounded" if value >= NO_LIMIT else f"{value:.2g}"


def finding_lines(found: Finding) -> list[str]:
    """Where two rungs part, in words."""
    stands = "" if found.tensor == found.reference else f" (stands for {found.reference})"
    named = found.named
    text = [
        f"{found.rung} leaves {found.against} at the tensor {found.tensor}{stands}",
        f"  error   {_number(found.error)} relative, over {found.limit:.2g}; "
        f"what it is computed from is within {found.before:.2g}",
        f"  module  {named.module or 'unknown: the exporter left no name'}",
        f"  node    {' '.join(part for part in (named.operator, named.node) if part) or 'none'}",
    ]
    if named.layers:
        text.append(f"  layer   {', '.join(named.layers)}")
    text += [f"  why     {reason}" for reason in found.why]
    if not found.sudden:
        text.append(f"  why     {GRADUAL}")
    text += [f"  note    {note}" for note in found.notes]
    text.append(
        f"{found.runs} runs on {found.images} image{'s'[: found.images > 1]}, "
        f"{found.tensors} tensors could be compared"
    )
    return text
