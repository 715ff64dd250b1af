"""The choice of a launch configuration: measured once per shape class and card, then kept.

Triton's own autotuner, cached or not, chooses inside the launch of one kernel, when its buffers are
allocated. Here most calls launch several kernels, and their partial sums are as many as the blocks
of the configuration. It also measures wherever the first call happens to be, in a captured CUDA
graph too; hence this small one.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from kdcompile.kernels._runtime import triton

Config = Mapping[str, int]
Result = TypeVar("Result")

_known: dict[tuple[object, ...], int] = {}  # found in this process: the way without a string
_kept: dict[str, dict[str, int]] = {}
_loaded: set[str] = set()
_forced: list[int] = []


def shape_class(*sizes: int) -> tuple[int, ...]:
    """Sizes rounded up to powers of two: shapes of one class share a configuration."""
    return tuple(1 << max(size - 1, 0).bit_length() for size in sizes)


def best(
    kernel: str,
    key: Sequence[object],
    configs: Sequence[Config],
    device: torch.device,
    run: Callable[[Config], Result],
) -> Result:
    """`run` with the configuration that is fastest on this card.

    The first of `configs` is the default: it serves on a CPU (Triton's interpreter), inside the
    capture of a CUDA graph, where nothing can be timed, and everywhere under KDCOMPILE_TUNE=0.
    `run` must give the same result whenever it is called. `key` holds hashable values that print
    the same in every process.
    """
    return run(configs[_choice(kernel, key, configs, device, run)])


@contextmanager
def config(index: int) -> Iterator[None]:
    """Use the configuration of that index everywhere (modulo their number): for tests."""
    _forced.append(index)
    try:
        yield
    finally:
        _forced.pop()


def tuned_path(card: str) -> Path:
    """Where the choices for a card are kept; nowhere for a user without a home folder."""
    base = os.environ.get("KDCOMPILE_CACHE") or os.path.expanduser("~/.cache/kdcompile")
    if base.startswith("~"):
        base = os.devnull  # in which nothing lies and nothing can be put
    safe = "".join(c if c.isalnum() else "-" for c in card).lower()
    return Path(base) / f"tuned-{safe}-triton-{triton.__version__}.json"


def _choice(
    kernel: str,
    key: Sequence[object],
    configs: Sequence[Config],
    device: torch.device,
    run: Callable[[Config], Any],
) -> int:
    known = (kernel, *key, device, len(configs))
    found = _known.get(known)  # on a CPU too: a key that cannot be looked up fails there already
    if _forced:
        return _forced[-1] % len(configs)
    if len(configs) == 1 or device.type != "cuda" or os.environ.get("KDCOMPILE_TUNE") == "0":
        return 0
    if found is not None:
        return found
    card = torch.cuda.get_device_name(device)
    kept = _load(card)
    place = f"{kernel} {' '.join(map(str, key))} {json.dumps([dict(c) for c in configs])}"
    if place not in kept:
        if torch.cuda.is_current_stream_capturing():
            return 0
        times = [_time_ms(run, config) for config in configs]
        if min(times) == float("inf"):
            return 0  # let the default say what is wrong
        kept[place] = times.index(min(times))
        _save(card, kept)
    _known[known] = kept[place] % len(configs)
    return _known[known]


def _time_ms(run: Callable[[Config], Any], config: Config) -> float:
    """Median time; infinite for a configuration that this card has no room for."""
    errors = triton.runtime.errors
    try:
        return float(triton.testing.do_bench(lambda: run(config), return_mode="median"))
    except (errors.OutOfResources, errors.PTXASError, torch.OutOfMemoryError):
        return float("inf")


def _load(card: str) -> dict[str, int]:
    kept = _kept.setdefault(card, {})
    if card not in _loaded:
        _loaded.add(card)
        kept.update(_read(tuned_path(card)))
    return kept


def _read(path: Path) -> dict[str, int]:
    """What a file holds; nothing where it is missing or broken: the next `_save` replaces it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {place: choice for place, choice in items if type(choice) is int}


def _save(card: str, kept: Mapping[str, int]) -> None:
    """Merge with what other processes kept, and replace the file in one step."""
    path = tuned_path(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_read(path), **kept}, indent=0, sort_keys=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        warnings.warn(f"kernels will be tuned anew in each process: {error}", stacklevel=2)
