"""The part of docs/kernels.md that the kernels say themselves.

    python -m kdcompile.kernels._docs docs/kernels.md --csv benchmarks/kernels.csv
        --static benchmarks/kernels_static.csv --cpu benchmarks/kernels_cpu.csv [--check]

writes everything below the marker of the file anew; `--check` writes nothing and exits 1 where
that would change the file. What is above the marker is written by hand.
"""

import argparse
import csv
import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdcompile.kernels._registry import Case, Kernel, Setting, kernels
from kdcompile.kernels._runtime import DTYPES, OLDEST

MARKER = "<!-- below: python -m kdcompile.kernels._docs -->"
LAYOUTS = {torch.contiguous_format: "contiguous", torch.channels_last: "channels_last"}
Measured = Mapping[tuple[str, ...], Mapping[str, Mapping[str, str]]]
Counts = Mapping[str, Sequence[Mapping[str, str]]]


def measured(path: Path) -> Measured:
    """The last rows of the benchmark's file by kernel, setting, type and layout; then by impl.

    Rows of another card or commit than the kernel's own last row are left out.
    """
    found: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = {}
    for row in _rows(path):
        found.setdefault(_place(row), {})[row["impl"].removesuffix(" (failed)")] = row
    return {
        place: {impl: row for impl, row in own.items() if _origin(row) == _origin(own["kernel"])}
        for place, own in found.items()
        if "kernel" in own
    }


def predicted(path: Path, cpu: Path) -> Counts:
    """The rows of the counts without a GPU by kernel, with the CPU time of a step beside them.

    A row is that of sm_90; what it has of sm_87 is named `sm_87 ...`.
    """
    times = {_place(row): row for row in _rows(cpu)}
    small = {_place(row): row for row in _rows(path) if row["arch"] == "87"}
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in _rows(path):
        if row["arch"] == "90":
            board = {f"sm_87 {n}": value for n, value in small.get(_place(row), {}).items()}
            time = times.get(_place(row), {"cpu_ms": "", "cpu": ""})
            found.setdefault(row["kernel"], []).append({**row, **board, **time})
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _place(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("kernel", "setting", "dtype", "layout"))


def _origin(row: Mapping[str, str]) -> tuple[str, ...]:
    return row["card"], row["commit"]


def sized(setting: Setting, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    """The case without its memory: only its sizes can be asked for."""
    return setting.make(torch.device("meta"), dtype, layout)


def rendered(found: Mapping[str, Kernel], results: Measured, counts: Counts | None = None) -> str:
    """Everything below the marker."""
    kinds = ", ".join(_name(dtype) for dtype in DTYPES)
    lines = [
        f"Kernels run on CUDA tensors of {kinds} with Triton {OLDEST[0]}.{OLDEST[1]} or newer; all"
        " else runs the reference, and `kdcompile.kernels._runtime.ran()` says which and why.",
        "",
    ]
    lines += [f"- [`{name}`](#{name})" for name in found]
    for kernel in found.values():
        own = (counts or {}).get(kernel.name, [])
        lines += ["", *_section(kernel, results), *_predictions(own)]
    return "\n".join(lines) + "\n"


def _section(kernel: Kernel, results: Measured) -> list[str]:
    source = f"[source](../kernels/{kernel.name}.py)"
    lines = [f"## {kernel.name}", "", "```text", kernel.formula.strip(), "```", ""]
    lines += [f"Traffic: {kernel.traffic.rstrip('.')}. Full formula: {source}.", ""]
    for note in _notes(kernel):
        lines += [note, ""]
    lines += [
        "| setting | type | layout | traffic | products | floor | kernel | share of the floor"
        " | eager | torch.compile |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    origins: dict[tuple[str, ...], None] = {}
    for setting in kernel.settings:
        for dtype in setting.dtypes:
            for layout in setting.layouts:
                place = (kernel.name, setting.name, _name(dtype), LAYOUTS[layout])
                own = results.get(place, {})
                lines.append(_line(place[1:], sized(setting, dtype, layout), own))
                if own:
                    origins[_origin(own["kernel"])] = None
    for card, commit in origins:
        lines += ["", f"Measured on {card} at commit {commit}."]
    return lines


def _predictions(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The table of what is counted without a GPU; a time of a GPU in it is no measurement."""
    if not rows:
        return []
    cpus = sorted({row["cpu"] for row in rows if row["cpu"]})
    host = f" The CPU time of a step without its launches is measured ({', '.join(cpus)})."
    lines = [
        "", "Counted without a GPU, for sm_90 and, in the last two columns, sm_87. The time in a"
        f" CUDA graph is predicted, good to perhaps 30 %.{host if cpus else ''}", "",
        "| setting | type | layout | launches | CPU time | moved / floor | warp instructions"
        " | registers | blocks per SM | predicted | bound by | predicted, sm_87 | spills |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        launches = f"{row['launches_forward']} + {row['launches_backward']}"
        moved = f"{float(row['moved_mb']) / float(row['floor_mb']):.2f}"
        host = f"{row['cpu_ms']} ms" if row["cpu_ms"] else ""
        cells = [row["setting"], row["dtype"], row["layout"], launches, host, moved]
        cells += [f"{float(row['warp_instructions_m']):.1f} M", row["registers"]]
        cells += [row["blocks_per_sm"], f"{float(row['predicted_ms']):.3f} ms", row["bound_by"]]
        board = row.get("sm_87 predicted_ms")
        cells += [f"{float(board):.2f} ms" if board else "", _spills(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spills(row: Mapping[str, str]) -> str:
    """Bytes a thread of either architecture, or nothing where neither spills."""
    found = {"sm_90": row["spilled_bytes"], "sm_87": row.get("sm_87 spilled_bytes", "0")}
    return ", ".join(f"{arch}: {count} B" for arch, count in found.items() if count != "0")


def _line(place: Sequence[str], case: Case, own: Mapping[str, Mapping[str, str]]) -> str:
    products = f"{case.floor_flops / 1e9:.1f} GFLOP" if case.floor_flops else "-"
    cells = [*place, f"{case.floor_bytes / 1e6:.1f} MB", products]
    if not own:
        return f"| {' | '.join([*cells, 'not measured yet', '', '', '', ''])} |"
    kernel = own["kernel"]
    share = float(kernel["floor_ms"]) / float(kernel["p50_ms"]) if kernel["p50_ms"] else 0
    ours = _time(own, "kernel")
    if "kernel (tf32)" in own:
        ours += f", TF32 {_time(own, 'kernel (tf32)')}"
    cells += [f"{kernel['floor_ms']} ms" if share else "", ours, f"{share:.0%}" if share else ""]
    cells += [_time(own, name) for name in ("eager", "torch.compile")]
    return f"| {' | '.join(cells)} |"


def _time(own: Mapping[str, Mapping[str, str]], impl: str) -> str:
    if impl not in own:
        return ""
    return f"{own[impl]['p50_ms']} ms" if own[impl]["p50_ms"] else "failed"


def _notes(kernel: Kernel) -> list[str]:
    """What the public function says of where it runs and how far its bits repeat."""
    module = importlib.import_module(f"{__package__}.{kernel.name}")
    text = inspect.getdoc(getattr(module, kernel.name)) or ""
    head, *_ = re.split(r"\n(?:Raises|Returns):\n", text)
    paragraphs = [" ".join(part.split()) for part in head.split("\n\n")]
    told = [p for p in paragraphs if not p.startswith("Args:")]
    return [p for p in told if re.search(r"[Dd]eterminis|\breference\b", p)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(arguments: Sequence[str]) -> int:
    """Write or check the file; the exit code is 1 where a check finds it out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="docs/kernels.md")
    parser.add_argument("--csv", type=Path, required=True, help="the benchmark's results, if any")
    parser.add_argument("--static", type=Path, default=Path(), help="counts without a GPU, if any")
    parser.add_argument("--cpu", type=Path, default=Path(), help="host times of a step, if any")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    before = options.page.read_text(encoding="utf-8")
    head, marker, _ = before.partition(MARKER)
    if not marker:
        parser.error(f"{options.page} has no line {MARKER}")
    tables = rendered(kernels(), measured(options.csv), predicted(options.static, options.cpu))
    after = f"{head}{marker}\n\n{tables}"
    if options.check:
        if after != before:
            print(f"{options.page} is out of date: run `make kernels-docs`")  # noqa: T201
        return int(after != before)
    options.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
