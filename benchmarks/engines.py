"""Teacher and student as engines, measured in one run: latency, size, accuracy, parity.

    python benchmarks/engines.py [measure] [build] [report] --via python:PATH/bin/python ...

`measure` makes the student's build up to `compile` and the teacher's int8 and mixed networks by
the same calibration, builds the engines of both in every precision at the place, runs each over
the test photos, and times all of them in turns. `build` runs `kdcompile build` at the same place
with two limits of the speed-up. `report` prints the tables. Without a part: measure and report.

Each result is in the file as soon as it is there, and the same command goes on with what is
missing; what depends on something that changed is measured again. Exit code 0: all done. 5:
something remains, run it again. 1: an error, which is printed.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines_build import run_build
from engines_files import Results
from engines_networks import Source, Teacher
from engines_report import report
from engines_run import Engines
from kernel_rows import commit

from kdcompile.config.load import find_spec, load_spec
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.store import Store, digest
from kdcompile.data.splits import evenly
from kdcompile.latency.environment import fingerprint
from kdcompile.passes.manager import Plan, make_plan
from kdcompile.passes.stages import upstream
from kdcompile.remote.open import Place, open_place

ROOT = Path(__file__).parents[1]
PARTS = ("measure", "build", "report")
SPEC = ROOT / "examples" / "shanghaitech"


class OutOfTimeError(Exception):
    """The minutes of this call are over; everything that is done is kept."""


class Benchmark:
    """The jobs; each does nothing where its result is there and of the same things."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        minutes = options.budget_minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        spec = load_spec(find_spec(str(options.spec)), options.sets, options.target)
        self.plan: Plan = make_plan(spec, options.via)
        board = self.plan.board
        assert board is not None, "with a place there is a board"
        self.board = board
        self.store = Store(options.work)
        name = f"{spec.name} on {board.machine}, {board.backend} {board.version}"
        self.results = Results(options.out, name)
        print(name, flush=True)

    def start(self, job: str) -> None:
        """Say what comes, if there is time.

        Raises:
            OutOfTimeError: there is none.
        """
        if self._end is not None and time.monotonic() >= self._end:
            raise OutOfTimeError(job)
        print(job, flush=True)

    def measure(self) -> None:
        """The student's build, the teacher's networks, and what their engines are worth."""
        for stage in upstream("compile"):
            if stage not in self.plan.found():
                self.start(f"stage {stage}")
                self.plan.make(stage)
        source = Source(self.plan)
        teacher = Teacher(source, self.store, self.options.images)
        self.start("teacher, calibration")
        teacher.calibrated()
        with open_place(self.options.via, self.board.backend) as place:
            self.results.put("conditions", self._conditions(source, place))
            self.start("teacher, mixed precision")
            engines = Engines(source, place, self.store, self.results, self.options, self.start)
            both = (teacher.networks(place), source.student())
            for networks in both:
                engines.judge(networks)
            engines.time(both)

    def _conditions(self, source: Source, place: Place) -> dict[str, Any]:
        options, spec = self.options, source.spec
        test = evenly(source.splits.test, spec.data.max_test)
        return {
            "commit": commit(ROOT, options.out), "host": fingerprint(), "place": place.label,
            "about": {k: v for k, v in place.about.items() if k != "precisions"},
            "evidence": self.board.evidence, "target": self.plan.target.full_name,
            "spec": spec.name, "sets": list(options.told), "weights": _weights(spec),
            "compile": spec.compile.model_dump(),
            "profile": spec.export.profile, "test_photos": len(test),
            "compared_photos": min(options.photos, len(test)), "teacher_images": options.images,
            "turns": options.turns, "iterations": options.iterations,
            "metric": source.task.find_metric(spec.gates.accuracy.metric).name,
        }  # fmt: skip

    def build(self) -> bool:
        """One `kdcompile build` for each limit of the speed-up; whether each gave a report."""
        told = True
        for least in self.options.speedups:
            key = digest([self.plan.parts, least, list(self.options.told)])
            name = f"{least:g}"
            known = self.results.get("builds", name)
            if known.get("key") == key and "verdict" in known:
                continue
            self.start(f"build, speed-up {name}")
            found = run_build(self.options, least)
            self.results.put("builds", {"key": key, **found}, name)
            told = told and "verdict" in found
        return told


def _weights(spec: Spec) -> list[str]:
    """The files of weights, by name and content."""
    files = {"teacher": spec.teacher.weights, "student": spec.student.weights}
    return [
        f"{who} {path.name} (SHA-256 {file_sha256(path)[:12]})"
        for who, path in files.items()
        if path is not None
    ]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; measure and report")
    add("--via", help="the place, as kdcompile has it; this interpreter")
    add("--backend", help="of the worker there: tensorrt, onnxruntime, ...; the spec's")
    add("--spec", type=Path, default=SPEC, help="the task (%(default)s)")
    add("--target", help="device name; the spec's")
    add("--data", type=Path, help="folder of the data set")
    add("--teacher", type=Path, help="the teacher's weights")
    add("--student", type=Path, help="weights of a trained student, taken as they are")
    add("--set", dest="told", action="append", default=[], help="key=value of the spec")
    add("--images", type=int, default=64, help="that calibrate the teacher (%(default)s)")
    add("--photos", type=int, default=24, help="compared with ONNX Runtime (%(default)s)")
    add("--turns", type=int, default=15, help="samples of each latency (%(default)s)")
    add("--iterations", type=int, default=50, help="inferences of a sample (%(default)s)")
    add("--speedups", type=float, nargs="+", default=[2.5, 6.5], help="limits of build's gate")
    add("--budget-minutes", type=float, help="start nothing after so many")
    add("--work", type=Path, default=ROOT / "build" / "engines", help="what is under way")
    add("--out", type=Path, default=ROOT / "benchmarks" / "engines.json", help="the results")
    options = parser.parse_args(arguments)
    options.parts = options.parts or ["measure", "report"]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]}; there are {', '.join(PARTS)}")
    options.work, options.out = (Path(os.path.abspath(p)) for p in (options.work, options.out))
    options.via = options.via or f"python:{sys.executable}"
    options.sets = [*_sets(options), *options.told]
    return options


def _sets(options: argparse.Namespace) -> list[str]:
    """Fields of the spec that have an option."""
    fields = {"data.root": options.data, "teacher.weights": options.teacher,
              "compile.backend": options.backend}  # fmt: skip
    found = [f"{field}={value}" for field, value in fields.items() if value is not None]
    if options.student is not None:
        found += ["student.init=file", f"student.weights={options.student}", "distill.steps=0"]
    return found


def main(arguments: Sequence[str]) -> int:
    """Do the parts; the exit code is in the module's docstring."""
    options = parsed(arguments)
    remains, code = "", 0
    try:
        if {"measure", "build"} & set(options.parts):
            benchmark = Benchmark(options)
            if "measure" in options.parts:
                benchmark.measure()
            if "build" in options.parts and not benchmark.build():
                code = 1
    except OutOfTimeError as stopped:
        remains, code = str(stopped), 5
    except KDError as error:
        print(error, file=sys.stderr)
        return 1
    if "report" in options.parts:
        print(report(options.out))
    if remains:
        print(f"remains: {remains} and what follows it")
    return code


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
