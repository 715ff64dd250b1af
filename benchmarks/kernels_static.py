"""What is known of each kernel without a GPU: bytes, instructions, launches, and a time from these.

    python benchmarks/kernels_static.py [--kernel NAME]... [--setting ROW] [--arch 87 90] [--check]

Each row of the benchmark is recorded at its full size (`static_launches`), a sample of its programs
counted in Triton's interpreter (`static_traffic`), its launches compiled and disassembled
(`static_code`). The time is a prediction, never a measurement: for each launch the longer of its
bytes over the bandwidth and its warp instructions over the issue slots, and a microsecond for the
launch in a CUDA graph. Bytes come from memory, or
through the L2 cache at 1.6 times its speed where programs share a tensor that fits there (H100:
5.5 TB/s). `--check` compares with the file and exits 1 where a count of a checked
row has grown by more than 5 %.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import csv_tables
import static_traffic
from kernel_rows import Row, rows_of
from static_code import Code, Loop, compiled, specialised
from static_launches import Launch, Step, recorded

FOLDER = Path(__file__).parent
OUT = FOLDER / "kernels_static.csv"
GROWTH = 1.05
LAUNCH_US = 1.0  # a node of a CUDA graph
COLUMNS = (
    "kernel", "setting", "dtype", "layout", "arch", "launches_forward", "launches_backward",
    "floor_mb", "moved_mb", "cached_mb", "atomics_m", "warp_instructions_m",
    "tensor_core_instructions_m",
    "registers", "spilled_bytes", "shared_bytes", "blocks_per_sm", "traffic_ms", "issue_ms",
    "predicted_ms", "bound_by", "triton",
)  # fmt: skip
COUNTS = ("launches_forward", "launches_backward", "moved_mb")
COMPILED = ("warp_instructions_m", "registers")  # those that another Triton changes


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet, and the share of it that simple kernels reach."""

    multiprocessors: int
    clock_hz: float
    bytes_per_s: float
    registers: int = 65536
    warps: int = 64
    shared_bytes: int = 0
    cache_bytes: float = 0.0  # of the L2 cache
    cache_speed: float = 1.6  # times that of the memory
    bandwidth_share: float = 0.88
    issue_share: float = 0.65

    def traffic_ms(self, count: float) -> float:
        """Time of moving so many bytes."""
        return 1e3 * count / (self.bytes_per_s * self.bandwidth_share)

    def from_memory(self, own: Mapping[str, Any]) -> float:
        """Bytes from memory; once, of a tensor that half of the cache holds."""
        rows = own["tensors"].values()
        return sum(min(r[0], r[1]) if r[1] <= self.cache_bytes / 2 else r[0] for r in rows)

    def issue_ms(self, count: float, blocks: float) -> float:
        """Time of issuing so many warp instructions from a grid of so many blocks."""
        slots = 4 * min(self.multiprocessors, blocks) * self.clock_hz * self.issue_share
        return 1e3 * count / slots

    def blocks(self, code: Code, warps: int) -> int:
        """Blocks that a multiprocessor holds at once."""
        by_registers = self.registers // (max(code.registers, 1) * 32 * warps)
        by_shared = self.shared_bytes // code.shared_bytes if code.shared_bytes else 32
        return max(min(by_registers, by_shared, self.warps // warps, 32), 0)


CARDS = {
    87: Card(
        16, 1.3e9, 204.8e9, warps=48, shared_bytes=167936, cache_bytes=4e6
    ),  # Jetson AGX Orin 64 GB
    90: Card(132, 1.755e9, 3.35e12, shared_bytes=233472, cache_bytes=5e7),  # H100 SXM
}


def executed(code: Code, trips: Mapping[static_traffic.Line, float]) -> tuple[float, float]:
    """Instructions that a warp executes, and those of the tensor cores: loops by their trips."""
    total, cores = float(code.straight), float(code.tensor_cores)
    claimed: set[static_traffic.Line] = set()
    for loop in sorted(code.loops, key=lambda found: -found.depth):
        line = _line_of(loop, trips, claimed)
        count = trips[line] if line else 1.0
        claimed |= {line} if line else set()
        total += loop.instructions * count
        cores += loop.tensor_cores * count
    return total, cores


def _line_of(
    loop: Loop, trips: Mapping[static_traffic.Line, float], claimed: set[static_traffic.Line]
) -> static_traffic.Line | None:
    """The `for` that a loop of the code comes from: most of its instructions name that line."""
    named = [line for line in loop.lines if line in trips]
    free = [line for line in named if line not in claimed]
    return max(free or named, key=lambda line: (loop.lines[line], line), default=None)


def counted(row: Row) -> list[dict[str, Any]]:
    """The traffic of every launch of a row; runs under TRITON_INTERPRET=1."""
    forward, backward = recorded(row)
    found = []
    for launch in (*forward.launches, *backward.launches):
        own = static_traffic.traffic(launch)
        trips = [[*line, count / own.programs] for line, count in own.trips.items()]
        found.append({**asdict(own), "trips": trips})
    return found


@dataclass
class Totals:
    """Sums over the launches of a step, for one architecture."""

    moved: float = 0.0  # bytes from and to memory
    cached: float = 0.0  # bytes through the L2 cache
    atomics: float = 0.0
    instructions: float = 0.0  # of warps
    tensor_cores: float = 0.0
    traffic_ms: float = 0.0
    issue_ms: float = 0.0
    longer_ms: float = 0.0  # of each launch the longer of the two

    def move(self, card: Card, count: float) -> None:
        """What PyTorch's own operators move: so many bytes."""
        self.moved += count
        self.cached += count
        self.traffic_ms += card.traffic_ms(count)
        self.longer_ms += card.traffic_ms(count)

    def add(self, card: Card, launch: Launch, code: Code, own: Mapping[str, Any]) -> None:
        """One launch: its code, and its traffic as `counted` gives it."""
        trips = {(name, line): count for name, line, count in own["trips"]}
        warps = launch.warps * launch.programs
        each, cores = executed(code, trips)
        moved = card.from_memory(own)
        traffic = max(card.traffic_ms(moved), card.traffic_ms(own["sectors"]) / card.cache_speed)
        times = traffic, card.issue_ms(each * warps, launch.programs)
        self.moved += moved
        self.cached += own["sectors"]
        self.atomics += own["atomics"]
        self.instructions += each * warps
        self.tensor_cores += cores * warps
        self.traffic_ms += times[0]
        self.issue_ms += times[1]
        self.longer_ms += max(times)


def combined(
    row: Row, steps: tuple[Step, Step], arch: int, traffic: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One line of the file; `steps` are the recorded passes of the row."""
    from triton import __version__

    card, (forward, backward) = CARDS[arch], steps
    launches = [*forward.launches, *backward.launches]
    codes = [_compiled(launch, arch) for launch in launches]
    sums = Totals()
    sums.move(card, sum(step.torch_bytes for step in steps))
    for launch, code, own in zip(launches, codes, traffic, strict=True):
        sums.add(card, launch, code, own)
    counts = [len(step.launches) + len(step.torch_operators) for step in steps]
    launch_ms = sum(counts) * LAUNCH_US / 1e3
    bounds = {"traffic": sums.traffic_ms, "issue": sums.issue_ms, "launches": launch_ms}
    blocks = [card.blocks(code, launch.warps) for code, launch in zip(codes, launches, strict=True)]
    values = (
        *row.names, arch, *counts, f"{row.case('meta').floor_bytes / 1e6:.1f}",
        f"{sums.moved / 1e6:.1f}", f"{sums.cached / 1e6:.1f}", f"{sums.atomics / 1e6:.2f}",
        f"{sums.instructions / 1e6:.3f}",
        f"{sums.tensor_cores / 1e6:.3f}", max(code.registers for code in codes),
        max(code.spilled_bytes for code in codes), max(code.shared_bytes for code in codes),
        min(blocks), f"{sums.traffic_ms:.4f}", f"{sums.issue_ms:.4f}",
        f"{sums.longer_ms + launch_ms:.4f}", max(bounds, key=lambda name: bounds[name]),
        __version__,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


_known: dict[Any, Code] = {}


def _compiled(launch: Launch, arch: int) -> Code:
    key = (launch.function.fn, repr(specialised(launch)), repr(launch.options), arch)
    if key not in _known:
        _known[key] = compiled(launch, arch)
    return _known[key]


def _child(row: Row) -> list[dict[str, Any]]:
    """The traffic of a row, from a process in which Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "KDCOMPILE_TUNE": "0"}
    command = [sys.executable, __file__, "--traffic", json.dumps(row.names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row.names}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def grown(before: Mapping[str, str], now: Mapping[str, Any]) -> list[str]:
    """Counts that are more than GROWTH times what the file has; compiled ones by its Triton."""
    names = COUNTS + COMPILED if before["triton"] == now["triton"] else COUNTS
    return [
        f"{' '.join(str(now[n]) for n in COLUMNS[:5])}: {name} {before[name]} to {now[name]}"
        for name in names
        if float(now[name]) > GROWTH * float(before[name])
    ]


def main(arguments: Sequence[str]) -> int:
    """Count, keep or compare; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", default=[], help="this one alone; repeats")
    parser.add_argument("--setting", help="this row's setting alone")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(CARDS), default=sorted(CARDS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--traffic", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["KDCOMPILE_TUNE"] = "0"
    rows = [r for r in rows_of(options.kernel) if options.setting in (None, r.setting.name)]
    if options.traffic:
        (row,) = (r for r in rows if list(r.names) == json.loads(options.traffic))
        print(json.dumps(counted(row)))
        return 0
    lines: dict[tuple[str, ...], Mapping[str, Any]] = {**csv_tables.kept(options.out, COLUMNS[:5])}
    problems: list[str] = []
    for row in rows:
        steps, traffic = recorded(row), _child(row)
        for arch in options.arch:
            now = combined(row, steps, arch, traffic)
            place = tuple(str(now[n]) for n in COLUMNS[:5])
            print("  ".join(f"{now[n]}" for n in COLUMNS), flush=True)
            if options.check:
                before = lines.get(place)
                problems += (
                    [f"not in {options.out}: {place}"] if before is None else grown(before, now)
                )
            lines[place] = now
        if not options.check:
            csv_tables.write(options.out, COLUMNS, (lines[place] for place in sorted(lines)))
    if options.check:
        print("\n".join(problems) or "no count has grown")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
