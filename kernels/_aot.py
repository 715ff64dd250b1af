"""Ahead-of-time compilation of every kernel for the cards we name: needs no GPU.

    python -m kdcompile.kernels._aot [--arch 87 ...] [--dtype float16 ...] [--kernel NAME ...]
        [--all] [--aligned] [--jobs N] [--table]

prints one JSON object, or with `--table` one line, a compilation: registers, spilled bytes, shared
memory. Exit 1 if one spills, asks for more shared memory than the GPU has or does not compile. It
must run without TRITON_INTERPRET.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kdcompile.kernels._registry import Compilation, kernels
from kdcompile.kernels._runtime import triton, triton_problem

SHARED_BYTES = {80: 166_912, 86: 101_376, 87: 166_912, 90: 232_448, 120: 101_376}  # per block
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TABLE = "{public:20} {kernel:30} {label:28} {dtype:9} {arch:>3} {registers:>5} {spilled_bytes:>6} "
TABLE += "{shared_bytes:>7}  {problem}"
TITLES = {"public": "kernel", "kernel": "jitted function", "label": "variant", "dtype": "type",
          "arch": "sm", "registers": "regs", "spilled_bytes": "spills", "shared_bytes": "shared",
          "problem": ""}  # fmt: skip
Task = tuple[int, str, bool, bool, int]  # GPU, type, aligned, everything, place in `selected`


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers a thread, bytes of local and shared memory."""

    kernel: str
    label: str
    dtype: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int

    @property
    def problem(self) -> str | None:
        """Why it would run badly or not at all, or None."""
        if self.spilled_bytes:
            return f"spills {self.spilled_bytes} bytes a thread"
        if self.shared_bytes > SHARED_BYTES[self.arch]:
            return f"needs {self.shared_bytes} bytes of shared memory of {SHARED_BYTES[self.arch]}"
        return None


def compile_for(
    compilation: Compilation, dtype: str, arch: int, aligned: bool = False
) -> Resources:
    """Compile one configuration for one compute capability (87 means 8.7).

    `aligned` takes every integer for a multiple of 16, as Triton does at run time with those that
    are: loads get wider then, and registers change.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = compilation.kernel.arg_names
    constants = dict(compilation.constants)
    signature = {n: "constexpr" if n in constants else compilation.types[n] for n in names}
    multiples = "*i" if aligned else "*"
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and signature[n][0] in multiples
    }
    source = ASTSource(compilation.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=dict(compilation.launch))
    registers, local = _usage(compiled.asm["cubin"])
    return Resources(
        compilation.kernel.__name__.strip("_"),
        compilation.label,
        dtype,
        arch,
        registers,
        local,
        compiled.metadata.shared,
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack a thread, from the compiled file."""
    text = read_cubin(cubin, "cuobjdump", "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump does not name the registers: {text}")
    return int(found[1]), int(found[2]) + int(found[3])


def read_cubin(cubin: bytes, tool: str, *options: str) -> str:
    """What one of the tools that come with Triton prints of a compiled file."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(path), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def selected(dtype: str, arch: int, everything: bool) -> list[tuple[str, Compilation]]:
    """The configurations of all kernels for one type, with the public function each serves.

    All of them; or one for each jitted function in float16, on sm_87 in float32 those that float16
    has not, and elsewhere one for each public function.
    """
    found = [(k.name, c) for k in kernels().values() for c in k.compilations(TYPES[dtype])]
    if everything:
        return found
    quick = [(name, c) for name, c in found if c.quick]
    if dtype == "float16":
        return quick
    if dtype == "float32" and arch == 87:
        others = {c.kernel for _, c in selected("float16", arch, False)}
        return [(name, c) for name, c in quick if c.kernel not in others]
    firsts = dict(reversed(quick))
    return sorted(firsts.items(), key=lambda item: item[0])


def _row(task: Task) -> dict[str, Any]:
    """What one compilation takes, or the problem with it."""
    arch, dtype, aligned, everything, index = task
    public, compilation = selected(dtype, arch, everything)[index]
    try:
        resources = compile_for(compilation, dtype, arch, aligned)
    except Exception as error:  # one that does not compile must not hide the others
        traceback.print_exc()
        name = compilation.kernel.__name__.strip("_")
        resources = Resources(name, compilation.label, dtype, arch, 0, 0, 0)
        problem: str | None = f"does not compile: {type(error).__name__}"
    else:
        problem = resources.problem
    return {"public": public, **asdict(resources), "problem": problem}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compile each selected configuration, several at a time; rows in the order of the tasks."""
    tasks = [
        (arch, dtype, options.aligned, options.all, index)
        for arch in options.arch
        for dtype in options.dtype
        for index, (public, _) in enumerate(selected(dtype, arch, options.all))
        if not options.kernel or public in options.kernel
    ]
    if options.jobs == 1:
        yield from map(_row, tasks)
        return
    fork = multiprocessing.get_context("fork")  # torch and the kernels are there already
    with fork.Pool(options.jobs) as pool:
        yield from pool.imap(_row, tasks)


def _text(row: Mapping[str, Any]) -> str:
    return TABLE.format_map({**row, "problem": row["problem"] or ""}).rstrip()


def main(arguments: Sequence[str]) -> int:
    """Compile and print; the exit code is 1 if a kernel has a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    archs, types = sorted(SHARED_BYTES), sorted(TYPES)
    parser.add_argument("--arch", type=int, choices=archs, nargs="+", default=archs)
    parser.add_argument("--dtype", choices=types, nargs="+", default=types)
    parser.add_argument("--kernel", choices=sorted(kernels()), nargs="+", default=[])
    parser.add_argument("--aligned", action="store_true", help="sizes are multiples of 16")
    parser.add_argument("--all", action="store_true", help="every configuration")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--table", action="store_true", help="lines to read, problems last")
    options = parser.parse_args(arguments)
    if reason := triton_problem():
        parser.error(reason)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: unset it, the interpreter compiles nothing")
    if options.table:
        print(_text(TITLES))  # noqa: T201
    count, problems = 0, []
    for row in rows(options):
        count += 1
        problems += [row] if row["problem"] else []
        print(_text(row) if options.table else json.dumps(row), flush=True)  # noqa: T201
    if options.table:
        summary = f"{count} compilations, {len(problems)} with a problem"
        print("\n".join([summary, *map(_text, problems)]))  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
