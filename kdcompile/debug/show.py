"""Results of `verify --parity` and `bisect`: every variant of a network against the one before."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK
from kdcompile.core.report import columns
from kdcompile.debug.locate import Finding, inherited, locate
from kdcompile.debug.tolerance import NO_LIMIT
from kdcompile.debug.variant import find_rung
from kdcompile.debug.variants import Ladder, Step, climb
from kdcompile.tasks.agreement import LIMIT_DB

HEADER = ("rung", "against", "SQNR dB", "cosine", "max rel. error", "noise", "metric", "verdict")
GRADUAL = (
    "no single node is at fault: the error has built up over many; calibrate on other images, keep "
    'sensitive layers in fp16 (quantize.precision = "mixed"), or distill with qad'
)
NOTHING = "inconclusive: no rung could be compared with another; the list says why each is absent"


@dataclass(frozen=True)
class Parity:
    """The parity ladder: each variant of a network against the one before it.

    Args:
        rungs: the variants, from the trained network to the deployed one.
        images: what they were run on.
        n: number of images.
        tolerance: noise of the predictions that is tolerated.
        tolerance_why: where the tolerance is from.
        min_sqnr_db: of the parity gate.
        exit_code: 3 if a rung failed, 5 if none could be compared.
        ladder: what was compared; not part of the JSON document.
    """

    rungs: tuple[Step, ...]
    images: str
    n: int
    tolerance: float
    tolerance_why: str
    min_sqnr_db: float
    exit_code: int
    ladder: Annotated[Any, Field(exclude=True)]

    @property
    def failed(self) -> list[str]:
        """Names of the rungs that failed."""
        return [step.name for step in self.rungs if step.verdict == "failed"]

    def text(self) -> list[str]:
        """The table, what failed and why, and what the tolerance is from."""
        ladder: Ladder = self.ladder
        text = columns([HEADER, *(_cells(ladder, step) for step in self.rungs)])
        text += [f"{step.name}: {step.reason}" for step in self.rungs if step.reason]
        text.append(f"noise of predictions up to {self.tolerance:.2g} is tolerated: "
                    f"{self.tolerance_why}")  # fmt: skip
        return [*text, f"on {self.images}; the tolerance is from {ladder.tolerance.n}"]

    def verdict(self) -> str:
        """The last line of `verify --parity`."""
        passed = sum(step.verdict == "passed" for step in self.rungs)
        if self.failed:
            next_step = "kdcompile bisect names the tensor, the node and the module"
            return f"failed: {', '.join(self.failed)}; {next_step}"
        agree = "1 rung agrees" if passed == 1 else f"{passed} rungs agree"
        return f"passed: {agree} with the one before" if passed else NOTHING


@dataclass(frozen=True)
class Bisection(Parity):
    """The parity ladder, and the first tensor at which one of its rungs goes wrong.

    Args:
        finding: the tensor; None where the rung agrees with the one before it.
        rung: that was asked for; None for the first that fails.
    """

    finding: Finding | None = None
    rung: Annotated[str | None, Field(exclude=True)] = None

    def text(self) -> list[str]:
        """What was found, or that nothing was."""
        if self.finding is not None:
            step = next(step for step in self.rungs if step.name == self.finding.rung)
            text = [f"{step.name} against {step.against}: {step.reason}", *lines_of(self.finding)]
            others = [name for name in self.failed if name != self.finding.rung]
            return text + [f"failed too: {', '.join(others)}; name one with --rung"] * bool(others)
        if self.exit_code == EXIT_INCONCLUSIVE:
            return [*super().text(), NOTHING]
        which = "every rung agrees" if self.rung is None else f"the rung {self.rung} agrees"
        return [*super().text(), f"{which} with the one before it: there is nothing to search for"]


def parity(ladder: Ladder) -> Parity:
    """Compare every rung with the one before it.

    Raises:
        KDError: a rung does not run.
    """
    steps = tuple(climb(ladder))
    compared = {step.verdict for step in steps}
    code = EXIT_OK if "passed" in compared else EXIT_INCONCLUSIVE
    return Parity(
        steps, ladder.source, len(ladder.images), ladder.tolerance.noise, ladder.tolerance.why,
        ladder.min_sqnr_db, EXIT_GATE if "failed" in compared else code, ladder,
    )  # fmt: skip


def bisect(ladder: Ladder, rung: str | None = None, limit: float | None = None) -> Bisection:
    """Search for the first tensor that differs, of one rung or of the first that fails.

    Args:
        ladder: its rungs.
        rung: name of a rung.
        limit: relative error of a tensor that still agrees; by default that of the arithmetic.

    Raises:
        KDError: `rung-unknown`, `rung-absent`, `bisect-inherited`, or those of `locate`.
    """
    found = parity(ladder)
    failed = [i for i, step in enumerate(found.rungs) if step.verdict == "failed"]
    if rung is not None:
        index = find_rung(ladder, rung)
        failed = [index] if index in failed else []
    finding = None
    if failed:
        step = found.rungs[failed[0]]
        if step.inherits:
            raise inherited(found.rungs, step)
        before = next(r for r in ladder.rungs if r.name == step.against)
        finding = locate(ladder, before, ladder.rungs[failed[0]], step, limit)
    # a rung that failed and was not asked for is no finding
    code = EXIT_OK if found.exit_code == EXIT_GATE and finding is None else found.exit_code
    return Bisection(**vars(found) | {"exit_code": code}, finding=finding, rung=rung)


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


def lines_of(found: Finding) -> list[str]:
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
