"""Profile the rows that are farthest from their floor with Nsight Compute.

    python benchmarks/gpu_ncu.py --rows kernels.csv --out ncu.csv [--worst 4]

Each row is run once under `ncu`, which writes a line a metric and launch of our own kernels.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats",
            "MemoryWorkloadAnalysis")  # fmt: skip


def worst(path: Path, count: int) -> list[tuple[str, ...]]:
    """The rows by how many floors their kernel takes; of a row that is there twice the last."""
    ratios: dict[tuple[str, ...], float] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["impl"] == "kernel" and float(line["floor_ms"]) > 0:
                names = tuple(line[n] for n in ("kernel", "setting", "dtype", "layout"))
                ratios[names] = float(line["p50_ms"]) / float(line["floor_ms"])
    return sorted(ratios, key=lambda names: -ratios[names])[:count]


def once(names: Sequence[str]) -> None:
    """One step of a row, warmed up; the profiler sees nothing else."""
    import torch
    from kernel_rows import rows_of

    step = import_module("kernels").step  # the script beside this one

    (row,) = (r for r in rows_of([names[0]]) if r.names == tuple(names))
    case = row.case("cuda")
    run = step(case.kernel, case.leaves)
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main(arguments: Sequence[str]) -> int:
    """Profile; exit code 1: `ncu` failed for a row, of which it says why."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worst", type=int, default=4)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        once(json.loads(options.once))
        return 0
    code = 0
    for names in worst(options.rows, options.worst):
        command = ["ncu", "--csv", "--page", "raw", "--profile-from-start", "off",
                   "--clock-control", "none", *(w for s in SECTIONS for w in ("--section", s)),
                   sys.executable, __file__, "--once", json.dumps(names)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        with options.out.open("a") as file:
            file.write(f"# {' | '.join(names)}\n{done.stdout}")
        if done.returncode:
            print(f"{' '.join(names)}: {done.stdout[-500:]}{done.stderr[-500:]}")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
