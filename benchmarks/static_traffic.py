"""Bytes that a launch moves, counted in Triton's interpreter over a sample of its programs.

Counted at the full size: memory that was never written takes no room, and reads as noise where
floats are loaded (zeros would skip what depends on values). Two counts of each load and store:
bytes of the elements, and of the 32-byte sectors that they touch, each once a program and
direction, which is what a cache that holds one program's data would fetch. They are kept for each
tensor apart: one that fits into the L2 cache comes from memory once, however many programs read it.
"""

import bisect
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from static_launches import Launch

Array = np.ndarray[Any, Any]
Line = tuple[str, int]  # file name, line number
SECTOR = 32
SAMPLE = 6  # programs of a launch, spread evenly, the first and the last among them


@dataclass
class Traffic:
    """Sums over a launch, scaled from the sampled programs to all."""

    loaded: float = 0.0  # bytes of elements
    stored: float = 0.0
    sectors: float = 0.0  # bytes of distinct sectors of each program, loads and stores
    tensors: dict[int, list[float]] = field(default_factory=dict)  # sectors, and bytes in all
    atomics: float = 0.0  # elements
    trips: Counter[Line] = field(default_factory=Counter)  # of each `for`, over the sample
    programs: int = 0  # of the sample


def sampled(launch: Launch, count: int = SAMPLE) -> list[tuple[int, int, int]]:
    """Indices of programs, spread evenly over the grid."""
    total = launch.programs
    chosen = sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})
    nx, ny, _ = launch.grid
    return [(i % nx, i // nx % ny, i // (nx * ny)) for i in chosen]


def traffic(launch: Launch, count: int = SAMPLE) -> Traffic:
    """Run a sample of the programs in the interpreter and count."""
    from triton.runtime import interpreter

    found = Traffic()
    programs = sampled(launch, count)
    found.programs = len(programs)
    with _counting(found, _spans(launch)), _loops(found), np.errstate(all="ignore"):
        for program in programs:
            _run(interpreter, launch, program)
    scale = launch.programs / len(programs)
    for name in ("loaded", "stored", "sectors", "atomics"):
        setattr(found, name, getattr(found, name) * scale)
    for row in found.tensors.values():
        row[0] *= scale
    return found


def _spans(launch: Launch) -> list[tuple[int, int]]:
    """Address and bytes of each tensor that a launch is given, ascending."""
    tensors = [t for t in launch.arguments.values() if hasattr(t, "untyped_storage")]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sorted(storages.items())


def _run(interpreter: Any, launch: Launch, program: tuple[int, int, int]) -> None:
    """One program of a launch."""
    executor = interpreter.GridExecutor(launch.function.fn, launch.function.arg_names, (1, 1, 1))
    executor._init_args_hst = lambda args, kwargs: (args, kwargs)
    executor._restore_args_dev = lambda *_: None
    builder = interpreter.interpreter_builder
    own = builder.set_grid_dim, builder.set_grid_idx
    builder.set_grid_dim = lambda *_: own[0](*launch.grid)
    builder.set_grid_idx = lambda *_: own[1](*program)
    try:
        executor(**launch.arguments)
    finally:
        del builder.set_grid_dim, builder.set_grid_idx


@contextmanager
def _counting(found: Traffic, spans: list[tuple[int, int]]) -> Iterator[None]:
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    names = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "set_grid_idx")
    before = {name: getattr(builder, name) for name in names}
    read: set[int] = set()  # sectors of the program that runs
    written: set[int] = set()

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        value = before["create_masked_load"](self, ptrs, mask, other, *rest)
        size = value.data.dtype.itemsize
        found.loaded += _seen(found, spans, read, ptrs.data, mask.data, size)
        if value.data.dtype.kind == "f" or "bf16" in str(ptrs.get_element_ty()):
            value.data = _noise(value.data, ptrs.data, mask.data)
        return value

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        size = value.data.dtype.itemsize
        found.stored += _seen(found, spans, written, ptrs.data, mask.data, size)
        return before["create_masked_store"](self, ptrs, value, mask, *rest)

    def atomic(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        found.atomics += int(np.count_nonzero(mask.data))
        return before["create_atomic_rmw"](self, op, ptr, val, mask, *rest)

    def start(self: Any, *index: int) -> None:
        read.clear()
        written.clear()
        before["set_grid_idx"](self, *index)

    try:
        for name, function in zip(names, (load, store, atomic, start), strict=True):
            setattr(builder, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(builder, name, function)


def _seen(
    found: Traffic,
    spans: list[tuple[int, int]],
    kept: set[int],
    addresses: Array,
    mask: Array,
    size: int,
) -> float:
    """Bytes of the elements that are asked for; new sectors are added to the program's."""
    wanted = np.broadcast_to(addresses, np.broadcast(addresses, mask).shape)
    wanted = wanted[np.broadcast_to(mask, wanted.shape).astype(bool)]
    sectors = set(np.unique(wanted // np.uint64(SECTOR)).tolist()) - kept
    kept |= sectors
    found.sectors += SECTOR * len(sectors)
    if sectors:
        at = bisect.bisect_right(spans, (int(wanted.flat[0]), 1 << 62)) - 1
        start, held = spans[max(at, 0)] if spans else (0, 1 << 62)
        found.tensors.setdefault(start, [0.0, float(held)])[0] += SECTOR * len(sectors)
    return float(size * wanted.size)


def _noise(values: Array, addresses: Array, mask: Array) -> Array:
    """Values that were never written, as noise that depends on the address alone."""
    fresh = (values == 0) & mask.astype(bool)
    if not fresh.any():
        return values
    bits = (addresses * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    noise = bits.astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    if values.dtype.kind != "f":  # bfloat16 is kept as its 16 bits
        noise = (noise.view(np.uint32) >> 16).astype(values.dtype)
    return np.where(fresh, noise.astype(values.dtype), values)


@contextmanager
def _loops(found: Traffic) -> Iterator[None]:
    """Count the iterations of each `for` over a `range` in the kernels, by file and line."""
    modules = [m for name, m in sys.modules.items() if name.startswith("kdcompile.kernels.")]

    def counted(*arguments: Any) -> Iterator[int]:
        frame = sys._getframe(1)
        line = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        for value in range(*(int(_plain(a)) for a in arguments)):
            found.trips[line] += 1
            yield value

    for module in modules:
        vars(module)["range"] = counted
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["range"]


def _plain(value: Any) -> Any:
    handle = getattr(value, "handle", None)
    return handle.data.item() if handle is not None else getattr(value, "value", value)
