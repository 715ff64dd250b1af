"""The rows of the kernel benchmark: what they are, their floor, their file and their table.

Nothing here needs a GPU; `kernels.py` measures.
"""

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from kdcompile.kernels._docs import LAYOUTS
from kdcompile.kernels._registry import Case, Kernel, Setting, kernels

COLUMNS = (
    "kernel", "setting", "dtype", "layout", "impl", "p20_ms", "p50_ms", "p80_ms", "floor_ms",
    "peak_mb", "card", "torch", "triton", "commit",
)  # fmt: skip
FIGURES = ("p20 ms", "p50", "p80", "spread", "floor", "/ floor", "eager /", "compile /", "MB",
           "differs")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting of one kernel at one type and memory format."""

    kernel: Kernel
    setting: Setting
    dtype: torch.dtype
    layout: torch.memory_format

    @property
    def names(self) -> tuple[str, str, str, str]:
        """What the table and the file call it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return self.kernel.name, self.setting.name, dtype, LAYOUTS[self.layout]

    def case(self, device: str) -> Case:
        """The tensors and the functions to time; without memory on the device "meta"."""
        return self.setting.make(torch.device(device), self.dtype, self.layout)


@dataclass(frozen=True)
class Ceilings:
    """What this card reaches, measured in this run."""

    bytes_per_s: float
    flops_per_s: Mapping[str, float]  # dense products by "float16", "bfloat16" and "tf32"

    def floor(self, case: Case, dtype: str, precision: str) -> "Floor":
        """The least time for a case; float32 accuracy takes three TF32 products for one."""
        peak = self.flops_per_s.get(dtype, self.flops_per_s["tf32"])
        if dtype == "float32" and precision == "highest":
            peak /= 3
        traffic, products = case.floor_bytes / self.bytes_per_s, case.floor_flops / peak
        return Floor(1e3 * max(traffic, products), products > traffic)


@dataclass(frozen=True)
class Floor:
    """The time of the traffic or of the products, whichever is longer."""

    ms: float
    by_products: bool = False


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of each quantile, or why there are none."""

    impl: str
    quantiles_ms: tuple[float, ...] = ()
    floor: Floor = Floor(0.0)
    peak_mb: float = 0.0
    spread: float = 0.0  # of the median between rounds, relative
    differs: float | None = None  # relative RMS to the eager reference, where that ran
    problem: str = ""

    @property
    def median_ms(self) -> float:
        """The p50."""
        return self.quantiles_ms[1]


def rows_of(names: Sequence[str]) -> list[Row]:
    """The rows of these kernels, of all for no name."""
    found = kernels()
    if unknown := set(names) - set(found):
        raise SystemExit(f"no kernel {sorted(unknown)}; there are {', '.join(found)}")
    return [
        Row(kernel, setting, dtype, layout)
        for kernel in found.values()
        if not names or kernel.name in names
        for setting in kernel.settings
        for dtype in setting.dtypes
        for layout in setting.layouts
    ]


def records(
    row: Row, timings: Sequence[Timing], provenance: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows of the CSV file; what failed has empty figures."""
    found = []
    for timing in timings:
        impl = f"{timing.impl} (failed)" if timing.problem else timing.impl
        figures = ("", "", "", "", "")
        if not timing.problem:
            times = (*timing.quantiles_ms, timing.floor.ms)
            figures = (*(f"{ms:.4f}" for ms in times), f"{timing.peak_mb:.1f}")
        values = (*row.names, impl, *figures)
        found.append({**dict(zip(COLUMNS, values, strict=False)), **provenance})
    return found


def append(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Add rows to the CSV file, which must have these very columns if it is there."""
    kept = path.is_file() and path.stat().st_size > 0
    if kept:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if tuple(header) != COLUMNS:
            raise SystemExit(f"{path} has the columns {header}, not {list(COLUMNS)}: move it away")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not kept:
            writer.writeheader()
        writer.writerows(rows)


def measured(path: Path, provenance: Mapping[str, str]) -> set[tuple[str, ...]]:
    """The rows of the file whose kernel was timed on this card at this commit."""
    if not path.is_file():
        return set()
    with path.open(newline="") as file:
        return {
            tuple(line[name] for name in COLUMNS[:4])
            for line in csv.DictReader(file)
            if line["impl"] == "kernel" and all(line[n] == v for n, v in provenance.items())
        }


def verdict(row: Row, timings: Sequence[Timing], card: str) -> str:
    """Whether the kernel's median reaches what was asked of it, on the H100 where that was said."""
    by = {timing.impl: timing for timing in timings if not timing.problem}
    ours, reach = by["kernel"], row.setting.reach_ms.get(row.dtype)
    if reach is not None and "H100" not in card:
        return f"{reach} ms on an H100"
    if reach is not None:
        goals = {f"{reach} ms": ours.median_ms <= reach}
    else:
        goals = {"1.4 x floor": ours.median_ms <= 1.4 * ours.floor.ms}
        if compiled := by.get("torch.compile"):
            leeway = 1.05 if ours.floor.by_products else 1.0
            goals["torch.compile"] = ours.median_ms < leeway * compiled.median_ms
    return ", ".join(f"{name} {'met' if met else 'missed'}" for name, met in goals.items())


def table(title: str, body: Sequence[tuple[Row, Sequence[Timing]]], card: str) -> Table:
    """What was measured, for the eye."""
    found = Table(title=title, title_justify="left")
    for name in ("setting", "type", "layout", "implementation"):
        found.add_column(name, overflow="fold")
    for name in FIGURES:
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("goal", overflow="fold")
    for row, timings in body:
        medians = {t.impl: t.median_ms for t in timings if not t.problem}
        others = [medians.get(name) for name in ("eager", "torch.compile")]
        for timing in timings:
            cells = [escape(cell) for cell in (*row.names[1:], timing.impl)]
            if timing.problem:
                found.add_row(*cells, *[""] * len(FIGURES), escape(f"failed: {timing.problem}"))
                continue
            ours = timing.median_ms
            goal = verdict(row, timings, card) if timing.impl == "kernel" else ""
            found.add_row(
                *cells, *(f"{ms:.4f}" for ms in timing.quantiles_ms), f"{timing.spread:.1%}",
                f"{timing.floor.ms:.4f}", f"{ours / timing.floor.ms:.2f}",
                *("" if other is None else f"{other / ours:.2f}" for other in others),
                f"{timing.peak_mb:.1f}", "" if timing.differs is None else f"{timing.differs:.0e}",
                goal,
            )  # fmt: skip
        found.add_section()
    return found


def commit(root: Path, out: Path) -> str:
    """The commit that is measured, "+dirty" if anything but the results differs from it."""
    if given := os.environ.get("KDCOMPILE_COMMIT"):
        return given
    inside = out.resolve().is_relative_to(root)
    spared = [f":(exclude){out.resolve().relative_to(root)}"] if inside else []
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", *spared)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
