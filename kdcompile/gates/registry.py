"""The gates by name, and how a build is judged by those that its spec names.

A gate is one module of this package with one function:

    @gate("size_mb", threshold=in_words)
    def size_mb(settings: SizeGate, context: VerifyContext) -> GateResult: ...

Its name is that of its section in `[gates]`, which `kdcompile.config.spec.Gates` declares.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kdcompile.gates
from kdcompile.config.gates import Gates, GateSpec
from kdcompile.core.report import GateResult
from kdcompile.gates.context import VerifyContext

Decide = Callable[[Any, VerifyContext], GateResult]


@dataclass(frozen=True)
class Gate:
    """A registered gate.

    Args:
        name: its section's.
        decide: settings and measurements to one verdict.
        threshold: settings to the threshold in words.
        on_board: how a board judges it too, when the target cannot be built here; None where the
            host's verdict is the board's.
        host_decides: this machine's verdict holds for another device too, until the board's.
    """

    name: str
    decide: Decide
    threshold: Callable[[Any], str]
    on_board: str | None
    host_decides: bool = True


GATES: dict[str, Gate] = {}


def gate(
    name: str,
    *,
    threshold: Callable[[Any], str],
    on_board: str | None = None,
    host_decides: bool = True,
) -> Callable[[Decide], Decide]:
    """Register the decorated function as the gate `name`.

    Args:
        name: its section's.
        threshold: settings to the threshold in words, for the gate that waits for a board.
        on_board: how a board judges it too, for the gate that waits for it.
        host_decides: as `Gate` has it.

    Raises:
        ValueError: the name is taken by another module.
    """

    def register(decide: Decide) -> Decide:
        known = GATES.get(name)
        if known is not None and known.decide.__module__ != decide.__module__:
            raise ValueError(f"gate {name!r} is defined in {known.decide.__module__} too")
        GATES[name] = Gate(name, decide, threshold, on_board, host_decides)
        return decide

    return register


def load_gates() -> dict[str, Gate]:
    """Import every module of this package, so that all of its gates are in `GATES`."""
    for module in pkgutil.iter_modules(kdcompile.gates.__path__):
        importlib.import_module(f"kdcompile.gates.{module.name}")
    return GATES


def judge(gates: Gates, context: VerifyContext) -> list[GateResult]:
    """The verdict of every gate that the spec names, in the spec's order.

    A gate that accepts host evidence is decided here, and every gate where the engine ran on the
    target itself. For a target that cannot be built on this machine it is followed by its twin
    `NAME@device`, pending until the board answers; so is a speed that this machine cannot measure,
    of any target. A gate that asks for device evidence is that pending one only.
    """
    known = load_gates()
    results = []
    for name in type(gates).model_fields:
        settings: GateSpec | None = getattr(gates, name)
        if settings is None:
            continue
        found = known[name]
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
    else:
        reason = f"must be measured on {context.target.title}; this build measured on its host"
    return GateResult(
        name=f"{found.name}@device",
        verdict="pending",
        evidence="device",
        required=settings.required,
        threshold=found.threshold(settings),
        observed="not yet measured",
        reason=reason,
    )
