"""Execution of a training step on a GPU: eagerly, compiled, or as a captured CUDA graph.

Which one pays depends on the networks and the GPU, so `auto` times them and keeps the fastest.
The report names what failed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from kdcompile.core.errors import KDError

log = logging.getLogger("kdcompile")
T = TypeVar("T")
Mode = Literal["eager", "compile", "graph"]
MODES: tuple[Mode, ...] = ("eager", "compile", "graph")
WARM, TIMED, ROUNDS = 3, 8, 3


@dataclass
class Execution:
    """The chosen mode, milliseconds a step of each that ran, and why others did not."""

    mode: Mode
    ms: dict[Mode, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {"mode": self.mode, "ms": self.ms, "failed": self.failed, "why": self.why}


class Steppable(Protocol):
    """What execution needs of a stage: a body that can be run, compiled and undone."""

    device: torch.device

    def body(self) -> None:
        """One step on what lies in the static tensors."""

    def compile(self, on: bool) -> None:
        """Take compiled networks for the body, or the plain ones."""

    def persistent(self) -> Sequence[Tensor]:
        """Every tensor that outlives a step."""


def prepare(
    stage: Steppable, asked: str, known: Mode | None, *, alone: bool = True
) -> tuple[Callable[[], None], Execution]:
    """The function that runs a step, and how it was chosen.

    Args:
        stage: at rest; its weights are the same afterwards.
        asked: `distill.execution`.
        known: what an earlier part of this run chose; kept, so that a resumed run is the same.
        alone: there is one process; several talk within a step, which is not captured.

    Raises:
        KDError: `execution-failed`, the mode that the spec asks for does not run.
    """
    on_cpu = stage.device.type != "cuda"
    refused = ("compile", "graph") if on_cpu else () if alone else ("graph",)
    why = "on a CPU" if on_cpu else "with several processes"
    if asked in refused:
        raise KDError(
            "execution-failed",
            f"distill.execution = {asked!r} cannot be had {why}",
            where="[distill] execution",
            fix='use "auto", which is "eager" there',
        )
    if on_cpu or (not alone and asked == "auto"):
        return stage.body, Execution("eager", why=why)
    torch._dynamo.reset()  # each stage compiles anew; PyTorch's limit is for the whole process
    if known is not None or asked != "auto":
        mode: Mode = known or asked  # type: ignore[assignment]
        try:
            return _make(stage, mode), Execution(mode, why="kept" if known else "asked for")
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            raise KDError(
                "execution-failed",
                f"a step does not run as {mode}: {_first_line(error)}",
                where="[distill] execution",
                fix='use "eager", and report the network',
            ) from error
    return _fastest(stage)


def _fastest(stage: Steppable) -> tuple[Callable[[], None], Execution]:
    """Time every mode, and make the fastest one anew."""
    found = Execution("eager", why="the fastest of those timed")
    run: Callable[[], None] | None
    for mode in MODES:
        try:
            run = _make(stage, mode)
            found.ms[mode] = undone(stage, partial(milliseconds, run, stage.device))
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            if mode == "eager":
                raise
            found.failed[mode] = _first_line(error)
            log.warning("distill: a step does not run as %s: %s", mode, found.failed[mode])
        run = None  # the memory of a graph, before the next one
    found.mode = min(found.ms, key=lambda mode: found.ms[mode])
    shown = ", ".join(f"{mode} {ms:.2f} ms" for mode, ms in found.ms.items())
    log.info("distill: a step takes %s", shown)
    return _make(stage, found.mode), found


def _make(stage: Steppable, mode: Mode) -> Callable[[], None]:
    """The step in a mode; compilation and capture run it a few times, which is undone."""
    stage.compile(mode != "eager")
    if mode == "graph":
        return undone(stage, lambda: _captured(stage))
    undone(stage, lambda: _repeat(stage.body, WARM))
    return stage.body


def _captured(stage: Steppable) -> Callable[[], None]:
    side = torch.cuda.Stream(stage.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(stage.device))
    with torch.cuda.stream(side):
        _repeat(stage.body, WARM)
    torch.cuda.current_stream(stage.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stage.body()
    return graph.replay


def undone(stage: Steppable, action: Callable[[], T]) -> T:
    """What an action returns, with every persistent tensor put back in place afterwards."""
    tensors = list(stage.persistent())
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        return action()
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """The best of a few rounds of the mean time of a step, after a warm-up."""
    _repeat(run, WARM)
    rounds = []
    for _ in range(ROUNDS):
        _wait(device)
        start = time.perf_counter()
        _repeat(run, TIMED)
        _wait(device)
        rounds.append((time.perf_counter() - start) / TIMED * 1e3)
    return min(rounds)


def _repeat(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}"
