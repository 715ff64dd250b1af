"""The registry of gates, and the verdict of those that a spec names.

A gate is one module: its settings, a function that decides, and under `@gate` what it needs:

    class SizeGate(GateSpec):
        max: float

    @gate("size_mb", SizeGate, threshold=in_words, needs=("files",), kind="size")
    def size_mb(settings: SizeGate, context: VerifyContext) -> GateResult: ...

Its name is that of its section in `[gates]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import kdcompile.gates  # noqa: F401  a cache key covers all of them
from kdcompile.config.gates import Gates, GateSpec
from kdcompile.core import plugins
from kdcompile.core.report import GateResult, Verdict
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.task import Task

Decide = Callable[[Any, VerifyContext], GateResult]
Threshold = Callable[[Any, Task], str]
Need = Literal["predictions", "outputs", "latency", "usage", "frame", "files"]


@dataclass(frozen=True)
class Decidable:
    """Whether a gate can be decided.

    Args:
        gate: its name.
        images: test images that it would be judged on.
        decides: a student that is never wrong passes on them.
        why: what the gate says of it.
        needed: with how many it would pass; None where no number does.
        each: that many in each part, and not in all.
    """

    gate: str
    images: int
    decides: bool
    why: str
    needed: int | None
    each: bool = False


Easiest = Callable[[Any, Task, Floats, Sequence[str] | None, int], Decidable]


@dataclass(frozen=True)
class Gate:
    """A registered gate; called, it decides.

    Args:
        name: its section's.
        settings: the class of its section.
        decide: settings and measurements to one verdict.
        threshold: settings and the task to the threshold in words.
        needs: what it takes of the measurements: `predictions` on the test images, `outputs` next
            to the reference's, `latency` of teacher and student, `usage` (energy and memory),
            the whole `frame`, `files`. A board measures these for it too.
        kind: what CI reports file it under, such as `latency` or `accuracy`.
        on_board: how a board decides it too, when the target cannot be built here; None where the
            host's verdict is the board's.
        host_decides: this machine's verdict holds for another device too, until the board's.
        always: it decides with its defaults where the spec does not name it.
        rank: its place in a report; gates of one rank come by name.
        easiest: whether some annotated values could decide it, of a student that is never wrong;
            None where their number is nothing to it.
    """

    name: str
    settings: type[GateSpec]
    decide: Decide
    threshold: Threshold
    needs: tuple[Need, ...] = ()
    kind: str = "gate"
    on_board: str | None = None
    host_decides: bool = True
    always: bool = False
    rank: int = 100
    easiest: Easiest | None = None

    def __call__(self, settings: Any, context: VerifyContext) -> GateResult:
        """The verdict."""
        return self.decide(settings, context)


def gate(
    name: str, settings: type[GateSpec], *, threshold: Threshold, **facts: Any
) -> Callable[[Decide], Gate]:
    """Make the decorated function a gate and register it; the arguments are `Gate`'s.

    Raises:
        KDError: `plugin-duplicate`.
    """

    def make(decide: Decide) -> Gate:
        made = Gate(name, settings, decide, threshold, **facts)
        return plugins.register("gates", name, decide.__module__)(made)

    return make


def find_gate(name: str) -> Gate:
    """The gate of that name.

    Raises:
        KDError: `gate-unknown`, or those of `plugins.find`.
    """
    found: Gate = plugins.find("gates", name, Gate, "[gates]")
    return found


def any_needs(gates: Gates, need: Need) -> bool:
    """Whether one of the named gates takes that of the measurements."""
    return any(need in find_gate(name).needs for name in gates.named())


def judge(gates: Gates, context: VerifyContext) -> list[GateResult]:
    """The verdict of every gate that the spec names, in the spec's order.

    A gate that accepts host evidence is decided here, and every gate where the engine ran on the
    target itself. For a target that cannot be built on this machine it is followed by its twin
    `NAME@device`, pending until the board answers; so is a speed that this machine cannot measure,
    of any target. A gate that asks for device evidence is that pending one only.
    """
    results = []
    for name, settings in gates.named().items():
        found = find_gate(name)
        if found.on_board is None:
            results.append(found.decide(settings, context))
            continue
        on_device = context.evidence == "device"
        if settings.evidence != "device" or on_device:
            results.append(found.decide(settings, context))
        owed = context.target.is_foreign or not (found.host_decides or context.ran_on_target)
        if not on_device and (settings.evidence == "device" or owed):
            results.append(_pending(found, settings, context))
    return results


def _pending(found: Gate, settings: GateSpec, context: VerifyContext) -> GateResult:
    if context.target.is_foreign:
        reason = f"on the board: {found.on_board}"
        own = isinstance(context.task, Recording) and context.task.is_own_code
        if own and "predictions" in found.needs:  # no merge runs it
            reason = "kdcompile build --via PLACE runs the board's engine on the test images"
    else:
        reason = f"must be measured on {context.target.title}; this build measured on its host"
    return GateResult(
        name=f"{found.name}@device",
        verdict="pending",
        evidence="device",
        required=settings.required,
        threshold=found.threshold(settings, context.task),
        observed="not yet measured",
        reason=reason,
    )


def decidable(
    gates: Gates, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> list[Decidable]:
    """Whether the test images can decide each gate of the spec that needs them, in its order.

    By the gates' own rules, before anything runs, about the pair that is easiest to decide: a
    student and a teacher (or an earlier network) that are never wrong. Where such a student does
    not pass, none does that comes out as its teacher on every image.

    Args:
        gates: of the spec.
        task: what is predicted.
        true: the annotated values of the images that would be judged, [N].
        classes: the names that the data has for them.
        seed: of the resampling.
    """
    named = gates.with_metric(task.judged.name).named()
    rules = [(find_gate(name).easiest, settings) for name, settings in named.items()]
    return [rule(settings, task, true, classes, seed) for rule, settings in rules if rule]


def of_all(name: str, images: int, rule: Callable[[int], tuple[Verdict, str]]) -> Decidable:
    """Of a gate that is decided on all images together.

    Args:
        name: of the gate.
        images: images that there are.
        rule: the verdict, and why, on so many images on which no network is wrong.
    """
    verdict, why = rule(images)
    needed = least_number(lambda n: rule(n)[0] == "passed")
    return Decidable(name, images, verdict == "passed", why, needed)
