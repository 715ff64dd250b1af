"""Distillation on ShanghaiTech A, measured: speed, result and ablation; best on a CUDA GPU.

    python benchmarks/distill.py PART... --data PATH/shanghaitech_a --teacher PATH/w.safetensors

`speed` times a step of plain training, of distillation in plain PyTorch, and through the kernels.
`result` trains `skt` and then, for as long, `none` from the same inherited start, for each seed.
`ablation` trains both starts with each set of terms. `report` prints the tables and draws the plot.

Everything goes on where it was left. Students are selected on the validation split; the test split
is read once an arm, after its end. Exit code 0: all done. 5: something remains, run it again.
1: an arm failed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distill_arms import STARTS, TERMS, Arm, Source, ablation, card, progressive
from distill_files import Results, key
from distill_report import report
from distill_speed import contenders, measure
from distill_train import Clock, Judge, OutOfTimeError, run_arm
from kernel_rows import commit

from kdcompile.core.errors import KDError
from kdcompile.kernels import _runtime

ROOT = Path(__file__).parents[1]
PARTS = ("speed", "result", "ablation", "report")
SPEC = ROOT / "examples" / "shanghaitech" / "kdcompile.toml"
WORK = ROOT / "build" / "distill"
LEAST_SECONDS = 45.0  # to load everything and come to a first checkpoint
ABLATION_SEED = 0
Job = tuple[str, Callable[[], bool], Callable[[], None]]


class Benchmark:
    """The jobs of the parts asked for; each knows whether it is done and how to be done."""

    def __init__(self, options: argparse.Namespace) -> None:
        sets = [*options.sets]
        if options.data is not None:
            sets += [f"data.root={options.data}", f"teacher.weights={options.teacher}"]
        self.options, self.clock = options, Clock(options.budget_minutes)
        self.source = Source(options.spec, tuple(sets), options.photos, options.work)
        self.results, self.card = Results(options.out), card()
        triton = _runtime.triton
        self.provenance = {
            "commit": commit(ROOT, options.out / "distill.*"), "torch": torch.__version__,
            "triton": None if triton is None else triton.__version__, "sets": list(options.sets),
            "photos": options.photos,
        }  # fmt: skip

    def jobs(self) -> Iterator[Job]:
        """What is to be done, in order."""
        asked = self.options.parts
        if "speed" in asked:
            yield "speed", self._is_timed, self._time
        if "result" in asked:
            yield "teacher", partial(self._has, "teacher", 0), self._judge_teacher
            for seed in self.options.seeds:
                for recipe in ("skt", "none"):
                    yield self._job(recipe, seed, partial(self._train_result, recipe, seed))
        if "ablation" in asked:
            base = self.source.spec(ABLATION_SEED).distill
            given = self.options
            for arm in ablation(
                base, ABLATION_SEED, given.steps, given.starts, given.terms, given.seconds
            ):
                yield self._job(arm.name, arm.seed, partial(self._train, arm))

    def run(self) -> list[str]:
        """Do what time allows; the names of what remains."""
        remaining: list[str] = []
        for name, is_done, do in self.jobs():
            if is_done():
                continue
            if not remaining and not self.clock.is_over(LEAST_SECONDS):
                try:
                    print(f"{name}: {self.card}", flush=True)
                    do()
                    continue
                except OutOfTimeError:
                    print(f"{name}: stopped and kept")
            remaining.append(name)
        return remaining

    def _job(self, name: str, seed: int, do: Callable[[], None]) -> Job:
        return f"{name}, seed {seed}", partial(self._has, name, seed), do

    def _has(self, name: str, seed: int) -> bool:
        return self.results.row(name, seed, self.card) is not None

    def _train(self, arm: Arm) -> None:
        run_arm(arm, self.source, self.results, self.clock, self.provenance)

    def _train_result(self, recipe: str, seed: int) -> None:
        """`skt` has the minutes asked for, `none` as many as `skt` then trained."""
        seconds = self.options.minutes * 60
        if recipe == "none":
            seconds = self.results.records()[key("skt", seed, self.card)]["trained_s"]
        distill = progressive(self.source.spec(seed).distill, recipe)
        self._train(Arm(recipe, seed, "inherit", distill, seconds=seconds, curve=True))

    def _is_timed(self) -> bool:
        return all(self._has(one.name, 0) for one in contenders())

    def _time(self) -> None:
        options = self.options
        measure(self.source, self.results, options.rounds, options.round_steps, self.provenance)

    def _judge_teacher(self) -> None:
        judge, teacher, splits = Judge(self.source), self.source.teacher(), self.source.splits
        val, _ = judge(teacher, splits.val)
        test, errors = judge(teacher, splits.test)
        row = {
            "arm": "teacher", "seed": 0, "steps": 0, "minutes": 0.0, "steps_per_s": None,
            "val_mae": val["mae"], "test_mae": test["mae"], "card": self.card,
        }  # fmt: skip
        self.results.add(row, {"val": val, "test": test, "test_errors": errors} | self.provenance)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--data", type=Path, help="folder of the data set")
    add("--teacher", type=Path, help="the teacher's weights")
    add("--work", type=Path, default=WORK, help="what is under way (%(default)s)")
    add("--out", type=Path, default=ROOT / "benchmarks", help="distill.csv and the rest")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of result")
    add("--minutes", type=float, default=16.0, help="training of an arm of result")
    add("--steps", type=int, default=2000, help="of an arm of ablation")
    add("--starts", nargs="+", choices=STARTS, default=[*STARTS], help="of ablation")
    add("--terms", nargs="+", choices=TERMS, default=[*TERMS], help="of ablation")
    add("--seconds", type=float, help="training of an arm of ablation beside the equal steps")
    add("--rounds", type=int, default=7, help="turns of speed")
    add("--round-steps", type=int, default=50, help="steps of a turn of speed")
    add("--budget-minutes", type=float, help="stop after so many, and keep everything")
    add("--photos", type=int, help="at most so many of each split")
    add("--spec", type=Path, default=SPEC, help="the task (%(default)s)")
    add("--set", dest="sets", action="append", default=[], help="key=value of the spec")
    options = parser.parse_args(arguments)
    if set(options.parts) != {"report"} and (options.data is None or options.teacher is None):
        parser.error("give --data and --teacher")
    for name in ("data", "teacher", "work", "out", "spec"):
        if getattr(options, name) is not None:
            setattr(options, name, Path(os.path.abspath(getattr(options, name))))
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the parts; the exit code is in the module's docstring."""
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(options)
    try:
        remaining = benchmark.run()
    except KDError as error:
        print(error, file=sys.stderr)
        return 1
    if "report" in options.parts:
        print(report(benchmark.results))
    if remaining:
        print(f"remains: {'; '.join(remaining)}")
    return 5 if remaining else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
