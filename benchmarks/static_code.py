"""What a launch compiles to, without a GPU: registers, shared memory, instructions of each loop.

The file is compiled with the types, constants and divisibility of the launch, as Triton would at
run time, and disassembled with line numbers. A loop is what lies between a label and a branch back
to it; it belongs to the `for` whose line its own instructions name.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from static_launches import Launch

from kdcompile.kernels._aot import _usage, read_cubin
from kdcompile.kernels._runtime import triton

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64",
    torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.bool: "*i1",
}  # fmt: skip
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')
BRANCH = re.compile(r"\(?(\.L_x_\d+)\)?")
TENSOR_CORES = ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA", "DMMA")
Line = tuple[str, int]  # file name, line number


@dataclass(frozen=True)
class Instruction:
    """One machine instruction, with the lines of source that it stands for."""

    opcode: str
    target: str  # the label that a branch goes to, or ""
    lines: frozenset[Line]


@dataclass(frozen=True)
class Loop:
    """A loop of the machine code without the loops inside it."""

    lines: Mapping[Line, int]  # how many of its own instructions name each line
    instructions: int
    tensor_cores: int
    depth: int


@dataclass(frozen=True)
class Code:
    """A compiled launch for one architecture."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    straight: int  # instructions outside loops
    tensor_cores: int  # outside loops
    loops: tuple[Loop, ...]
    barriers: int
    widest_load: int  # bits of a global load


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Triton's signature, constants and divisibility attributes of a launch's arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.function.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled(launch: Launch, arch: int) -> Code:
    """Compile a launch for a compute capability (90 means 9.0) and read the result."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.function, *specialised(launch))
    options = {k: v for k, v in launch.options.items() if k in ("num_warps", "num_stages")}
    found = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, local = _usage(found.asm["cubin"])
    code = list(instructions(read_cubin(found.asm["cubin"], "nvdisasm", "-c", "-gi")))
    return analysed(code, registers, local, found.metadata.shared)


def instructions(text: str) -> Iterable["Instruction | str"]:
    """Labels and instructions of a disassembly, in order."""
    lines: set[Line] = set()
    fresh = True
    for row in text.splitlines():
        if source := SOURCE.search(row):
            if fresh:
                lines = set()
            fresh = False
            lines.add((Path(source[1]).name, int(source[2])))
        elif named := LABEL.match(row):
            yield named[1]
        elif found := INSTRUCTION.match(row):
            fresh = True
            target = BRANCH.search(found[2]) if found[1].startswith("BRA") else None
            yield Instruction(found[1], target[1] if target else "", frozenset(lines))


def analysed(code: list["Instruction | str"], registers: int, local: int, shared: int) -> Code:
    """Find the loops; padding and the endless branch at the end are left out."""
    labels: dict[str, int] = {}
    real: list[Instruction] = []
    for item in code:
        if isinstance(item, str):
            labels[item] = len(real)
        elif item.opcode != "NOP":
            real.append(item)
    spans = sorted(
        (labels[i.target], n)
        for n, i in enumerate(real)
        if i.target and labels.get(i.target, n + 1) < n
    )
    owner = [-1] * len(real)
    depth = [0] * len(spans)
    for number, (start, end) in enumerate(spans):
        depth[number] = sum(s <= start and end <= e for s, e in spans) - 1
        for n in range(start, end + 1):
            if owner[n] < 0 or spans[owner[n]][1] - spans[owner[n]][0] > end - start:
                owner[n] = number
    loops = [
        _loop([i for n, i in enumerate(real) if owner[n] == k], depth[k]) for k in range(len(spans))
    ]
    outside = [i for n, i in enumerate(real) if owner[n] < 0 and not _trap(real, labels, n)]
    widths = [_width(i.opcode) for i in real if i.opcode.startswith("LDG")]
    return Code(
        registers, local, shared, len(outside), _tensor_cores(outside), tuple(loops),
        sum(i.opcode.startswith("BAR") for i in real), max(widths, default=0),
    )  # fmt: skip


def _trap(real: list[Instruction], labels: Mapping[str, int], n: int) -> bool:
    return bool(real[n].target) and labels.get(real[n].target) == n


def _loop(body: list[Instruction], depth: int) -> Loop:
    lines = Counter(line for i in body for line in i.lines)
    return Loop(lines, len(body), _tensor_cores(body), depth)


def _tensor_cores(body: list[Instruction]) -> int:
    return sum(i.opcode.startswith(TENSOR_CORES) for i in body)


def _width(opcode: str) -> int:
    for part in opcode.split("."):
        if part in ("64", "128"):
            return int(part)
    return 16 if ".U16" in opcode else 8 if ".U8" in opcode else 32
