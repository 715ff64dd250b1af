"""Arms that share everything but one thing: how they are run, and what they differ by, by seed."""

import argparse
import json
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

J, R = TypeVar("J"), TypeVar("R")

# the 97.5 % quantile of Student's t by degrees of freedom
T_975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    11: 2.201,
    15: 2.131,
}
SEEDS = [degrees + 1 for degrees in T_975]


def paired(
    base: Mapping[int, float], other: Mapping[int, float], *, higher: bool
) -> dict[str, Any]:
    """The mean of `other` - `base` with its 95 % interval over seeds (Student's t).

    Args:
        base, other: a value by seed, the same seeds, as many as `SEEDS` names.
        higher: larger values are better, which the last key's name says too.

    Returns:
        `difference`, `standard_error`, `interval`, and `higher_in` or `lower_in`: in how many
        seeds `other` is better.
    """
    differences = [other[seed] - base[seed] for seed in sorted(base)]
    count = len(differences)
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / count**0.5
    half = T_975[count - 1] * error
    better = sum(d > 0 if higher else d < 0 for d in differences)
    return {
        "difference": mean,
        "standard_error": error,
        "interval": [mean - half, mean + half],
        "higher_in" if higher else "lower_in": f"{better} of {count}",
    }


def parser(doc: str | None, seeds: int) -> argparse.ArgumentParser:
    """The options of a paired benchmark; `seeds` is how many are reported."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--seeds", type=int, default=seeds, choices=SEEDS)
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--part", choices=("val", "test"), default="test")
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--set", dest="sets", action="append", default=[])
    made.add_argument("-o", "--output", type=Path)
    return made


def run(train: Callable[[J], R], jobs: Sequence[J], processes: int) -> Iterator[R]:
    """What `train` gives for each job, in order, each in a fresh process of a pool."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(train, jobs)


def keep(result: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Print the summary of a result, and write it all where `-o` says, with what it ran on."""
    environment = {"machine": platform.machine(), "torch_version": version("torch")}
    whole = {**result, "sets": args.sets, "part": args.part, "environment": environment}
    print(json.dumps(result["summary"], indent=1))
    if args.output:
        args.output.write_text(json.dumps(whole, indent=1) + "\n")
