"""Compile the kernels for a GPU before there is one, into a cache folder that travels.

    python benchmarks/gpu_warm.py rows --folder F [--kernel NAME]...   # what the benchmark launches
    python benchmarks/gpu_warm.py gate --folder F FILE... [-k EXPRESSION]   # what tests launch
    python benchmarks/gpu_warm.py fill --folder F --jobs N             # compile what F lists
    python benchmarks/gpu_warm.py adopt --folder F                     # on the other machine

A stand-in for Triton's driver answers "compute capability 9.0", so that Triton itself specialises
and compiles every launch that was listed; the tests run in the interpreter meanwhile. Triton's key
of a compiled kernel holds a hash of its own files, its library for this Python among them: the same
Triton for another Python finds nothing. So the other parts of each key are kept beside the cache,
and `adopt` renames its entries by the Triton that it runs in and the folder where they lie. `fill`
then says how many were found and compiles the rest, the launchers too.
"""

import argparse
import base64
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib import import_module
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LISTED, KEYS = "launches.jsonl", "keys.jsonl"
ARCH = 90
CONFIGURATIONS = 16  # more than any kernel is tuned over


class StandIn:
    """What Triton asks of a driver until it launches."""

    launcher_cls = staticmethod(lambda *_: None)
    utils = SimpleNamespace(load_binary=None)

    def get_current_target(self) -> Any:
        """The GPU that is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


class Pointer:
    """A tensor of which Triton sees the type and whether it is aligned."""

    def __init__(self, dtype: str, offset: int) -> None:
        import torch

        self.dtype, self._offset = getattr(torch, dtype), offset

    def data_ptr(self) -> int:
        """An address of the same alignment."""
        return 256 + self._offset


class Listing:
    """The launches so far, as far as they decide what is compiled: a line of JSON, each once.

    Kept without anything of the Triton that ran, which may be another than the one that compiles.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LISTED
        self.lines = set(self.path.read_text().splitlines()) if self.path.is_file() else set()
        self._constants: dict[Any, set[str]] = {}

    def add(self, function: Any, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """One launch; the function may be one of the interpreter. What JSON cannot hold is left."""
        source = function.fn
        if source not in self._constants:
            notes = signature(source).parameters.values()
            self._constants[source] = {p.name for p in notes if "constexpr" in str(p.annotation)}
        fixed = self._constants[source]
        told = {n: v if n in fixed else _classed(v) for n, v in arguments.items()}
        place = {"module": source.__module__, "function": source.__name__}
        with suppress(TypeError):
            line = {**place, "arguments": told, "options": dict(options)}
            self.lines.add(json.dumps(line, sort_keys=True))

    def save(self) -> int:
        """Replace the file; how many there are."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in sorted(self.lines)))
        temporary.replace(self.path)
        return len(self.lines)


def _classed(value: Any) -> Any:
    """An argument by what Triton specialises on: 1, multiples of 16, more than 32 bits."""
    if hasattr(value, "data_ptr"):
        return {"type": str(value.dtype).removeprefix("torch."), "offset": value.data_ptr() % 16}
    if isinstance(value, float):
        return 0.5
    if isinstance(value, bool) or not isinstance(value, int) or value == 1:
        return value
    return (0 if -(2**31) <= value < 2**31 else 2**40) + (16 if value % 16 == 0 else 7)


def _given(told: Any) -> Any:
    return Pointer(told["type"], told["offset"]) if isinstance(told, dict) else told


def list_rows(folder: Path, names: Sequence[str], most: int | None = None) -> int:
    """What the rows of the benchmark launch, with every configuration that tuning tries."""
    from kernel_rows import rows_of
    from static_launches import recorded

    from kdcompile.kernels import _tune

    listing = Listing(folder)
    for row in rows_of(names):
        for index in range(CONFIGURATIONS):
            before = len(listing.lines)
            with _tune.config(index):
                for step in recorded(row):
                    for launch in step.launches:
                        listing.add(launch.function, launch.arguments, launch.options)
            if len(listing.lines) == before:
                break
    if most is not None:
        listing.lines = set(sorted(listing.lines)[:most])
    return listing.save()


def list_gate(folder: Path, arguments: Sequence[str]) -> int:
    """What the tests launch; they run in the interpreter meanwhile."""
    import pytest
    from triton.runtime.interpreter import InterpretedFunction

    listing, interpret = Listing(folder), InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        arguments = {k: v for k, v in named.items() if k in self.arg_names}
        options = {k: v for k, v in named.items() if k not in arguments and k != "warmup"}
        listing.add(self, arguments, options)
        return interpret(self, *args, grid=grid, **kwargs)

    InterpretedFunction.run = run
    try:
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments])
    finally:
        InterpretedFunction.run = interpret
    if code != pytest.ExitCode.OK:
        print(f"the tests ended with {code}: what they launched is listed all the same")
    return listing.save()


def compiled(task: tuple[str, bool]) -> dict[str, Any]:
    """One line of the list: whether it was in the cache, and the parts of its key.

    `launchers`: also build what Triton 3.6 calls it with, for which a driver's library must be
    there.
    """
    line, launchers = task
    from triton import knobs
    from triton.compiler import compiler
    from triton.runtime import driver

    entry, found, parts = json.loads(line), [], []
    make_key = compiler.get_cache_key

    def key_of(source: Any, backend: Any, options: Any, env_vars: Any) -> str:
        key: str = make_key(source, backend, options, env_vars)
        rest = [source.hash(), options.hash(), str(sorted(env_vars.items()))]
        parts.append({"entry": _folder_name(key), "parts": rest})
        return key

    driver.set_active(StandIn())
    compiler.get_cache_key = key_of
    knobs.compilation.listener = lambda **told: found.append(told["cache_hit"])
    name = f"{entry['module']}.{entry['function']}"
    try:
        function = getattr(import_module(entry["module"]), entry["function"])
        arguments = {n: _given(told) for n, told in entry["arguments"].items()}
        kernel = function.run(**arguments, **entry["options"], grid=(1,), warmup=True)
        if launchers:
            from triton.backends.nvidia.driver import CudaLauncher

            CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:  # one that does not compile must not hide the others
        return {"name": name, "problem": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        compiler.get_cache_key, knobs.compilation.listener = make_key, None
    return {"name": name, "found": found == [True], **parts[0]}


def fill(folder: Path, jobs: int, launchers: bool = False) -> dict[str, Any]:
    """Compile what is listed and not yet there, in processes; the kept keys grow as they come."""
    lines = (folder / LISTED).read_text().splitlines()
    keys = {row["entry"]: row["parts"] for row in _kept(folder)}
    begun, problems, found = time.perf_counter(), [], 0
    with (folder / KEYS).open("a") as file:
        for row in _mapped(compiled, [(line, launchers) for line in lines], jobs):
            if "problem" in row:
                problems.append(f"{row['name']}: {row['problem']}")
                continue
            found += row["found"]
            if row["entry"] not in keys:
                file.write(json.dumps({n: row[n] for n in ("entry", "parts")}) + "\n")
                file.flush()
    seconds = time.perf_counter() - begun
    return {"listed": len(lines), "found": found, "problems": problems, "seconds": seconds}


def _mapped(function: Callable[[Any], Any], tasks: Sequence[Any], jobs: int) -> Iterator[Any]:
    if jobs <= 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, tasks)


def adopt(folder: Path) -> int:
    """Rename the entries by this machine's Triton and this folder; how many had another name.

    Their code stays that of the Triton that compiled them, which must be of the same version.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.cache import triton_key

    own, backend = triton_key(), make_backend(GPUTarget("cuda", ARCH, 32)).hash()
    rows, renamed = [], 0
    for row in _kept(folder):
        source, options, variables = row["parts"]
        name = _folder_name(f"{own}-{source}-{backend}-{options}-{variables}")
        old, new = folder / row["entry"], folder / name
        if name != row["entry"] and old.is_dir() and not new.is_dir():
            old.rename(new)
            renamed += 1
        for group in new.glob("__grp__*"):  # Triton lists an entry's files by their whole paths
            files = json.loads(group.read_text())["child_paths"]
            group.write_text(json.dumps({"child_paths": {n: str(new / n) for n in files}}))
        rows.append({**row, "entry": name})
    (folder / KEYS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return renamed


def _kept(folder: Path) -> list[dict[str, Any]]:
    path = folder / KEYS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _folder_name(key: str) -> str:
    """Triton's name of the folder of a key."""
    digest = hashlib.sha256(key.encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=")


def main(arguments: Sequence[str]) -> int:
    """Do one part; exit code 1: something did not compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("rows", "gate", "fill", "adopt"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kernel", action="append", default=[])
    parser.add_argument("--most", type=int, help="so many launches of those listed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--launchers", action="store_true", help="needs the driver's library")
    options, rest = parser.parse_known_args(arguments)
    folder = options.folder.absolute()
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    os.environ["TRITON_INTERPRET"] = "1" if options.part == "gate" else "0"
    if options.part == "rows":
        print(f"{list_rows(folder, options.kernel, options.most)} launches listed")
    elif options.part == "gate":
        print(f"{list_gate(folder, rest)} launches listed")
    elif options.part == "adopt":
        print(f"{adopt(folder)} entries renamed, {len(_kept(folder))} known")
    else:
        done = fill(folder, options.jobs, options.launchers)
        print("\n".join(done["problems"]))
        print(f"{done['found']} of {done['listed']} were compiled, {done['seconds']:.0f} s")
        return int(bool(done["problems"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
