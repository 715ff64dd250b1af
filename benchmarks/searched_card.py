"""Is a searched CSRNet faster on a card, and does it count as well as the quarter-width one?

    python benchmarks/searched_card.py [search] [train] [time] [report] --target h100 --via PLACE \
        --data PATH/shanghaitech_a --teacher PATH/weights.safetensors [--set key=value ...]

Two students of the shanghaitech example: the teacher at a quarter of its width, and what
`student.family = "search"` gives under a speed-up of `SPEEDUP`. Both are distilled alike, recipe
and steps, from what each inherits or was assembled from, and judged on the test photos; teacher and
students are timed at fp16 in one run, in turns, as CUDA graphs. Each part goes on where an earlier
call stopped, the training at its last checkpoint. Without a part: all of them.
"""

import argparse
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from engines import SPEC
from kernel_rows import commit

from kdcompile.config.load import find_spec, load_spec
from kdcompile.core.files import write_json
from kdcompile.data.splits import evenly, load_splits
from kdcompile.distill.evaluate import predict
from kdcompile.distill.training_context import training_device
from kdcompile.latency.environment import fingerprint
from kdcompile.models.factory import load_teacher, load_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.passes.manager import Plan, make_plan
from kdcompile.search.on_device import measure
from kdcompile.search.report import arch_string
from kdcompile.tasks.task import preprocess_of, task_of

ROOT = Path(__file__).parents[1]
PARTS = ("search", "train", "time", "report")
SPEEDUP, WORSE = 6.5, 1.03
# the taps of the example are names of the teacher, which a student of new blocks has not
SETS = ("distill.batch=16", "distill.crop=512", "distill.taps=auto")
SEARCH = ("student.family=search",)
ARMS = {"quarter": ("student.budget={width=0.25}",), "searched": SEARCH}
DRAWN, RESAMPLES = 0, 10_000


class Card:
    """The students of a place, each made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.plans = {arm: self._plan(sets) for arm, sets in ARMS.items()}
        self.out: Path = options.out
        self.found: dict[str, Any] = json.loads(self.out.read_text()) if self.out.is_file() else {}

    def _plan(self, sets: Sequence[str]) -> Plan:
        options = self.options
        given = {"data.root": options.data, "teacher.weights": options.teacher}
        fields = [f"{name}={value}" for name, value in given.items() if value is not None]
        own = [f"distill.steps={options.steps}", f"quantize.precision={options.precision}"]
        sets = [*SETS, *own, *sets, *self._budget(sets), *fields, *options.told]
        return make_plan(load_spec(find_spec(str(options.spec)), sets, options.target), options.via)

    def _budget(self, sets: Sequence[str]) -> list[str]:
        """The limit that a search is under."""
        return [f"student.budget={{speedup={self.options.speedup}}}"] if sets == SEARCH else []

    def _keep(self, part: str, values: Any) -> None:
        self.found[part] = values
        write_json(self.out, self.found)

    @cached_property
    def students(self) -> dict[str, Any]:
        """Untrained, by arm."""
        made = {}
        for arm, plan in self.plans.items():
            architecture = plan.make("search").json("architecture.json")
            teacher = load_teacher(plan.spec)
            made[arm] = student_from_architecture(teacher, architecture, plan.spec.folder)
        return made

    def search(self) -> None:
        """Both architectures, and why."""
        rows = {}
        for arm, plan in self.plans.items():
            made = plan.make("search")
            architecture = made.json("architecture.json")
            rows[arm] = {
                "short": arch_string(architecture),
                "architecture": architecture,
                "estimate": made.json("estimate.json")["student"],
                "explanation": made.json("explanation.json"),
            }
        self._keep("students", rows)

    def train(self) -> None:
        """Each arm's errors on the test photos."""
        spec = self.plans["quarter"].spec
        photos = evenly(load_splits(spec.data, spec.folder).test, spec.data.max_test)
        task, device = task_of(spec), training_device()
        prepare = preprocess_of(spec)
        true = [task.truth(photo) for photo in photos]
        errors = {}
        for arm, plan in self.plans.items():
            student = self.students[arm].to(device)
            load_weights(student, plan.make("distill").file("student.safetensors"))
            made = predict(student.eval(), photos, prepare, device, task)
            errors[arm] = [float(e) for e in task.errors(made, true)]
        self._keep("errors", errors)

    def time(self) -> None:
        """Teacher and students in one run."""
        plan = self.plans["searched"]
        folder = self.out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        timing = measure(
            load_teacher(plan.spec), list(self.students.values()),
            self.options.precision, plan.spec, plan.target, plan.board, folder,
        )  # fmt: skip
        about = {"host": fingerprint(), "commit": commit(ROOT, self.out), "arms": list(ARMS)}
        self._keep("latency", timing.to_json() | about)

    def report(self) -> None:
        """Print what is known."""
        for arm, row in self.found.get("students", {}).items():
            print(f"{arm}: {row['short']}")
        goal = self.options.speedup
        if "latency" in self.found:
            timing = self.found["latency"]
            print(f"{timing['label']}, {timing['mode']}, teacher {timing['teacher_ms']:.4f} ms")
            for arm, ms in zip(timing["arms"], timing["ms"], strict=True):
                ratio = "refused" if ms is None else f"{ms:.4f} ms, {timing['teacher_ms'] / ms:.2f}"
                print(f"{arm}: {ratio} times faster (goal of the searched: {goal:g})")
        if "errors" in self.found:
            self._report_errors(self.found["errors"])

    def _report_errors(self, errors: dict[str, list[float]]) -> None:
        first, second = (np.abs(np.array(errors[arm])) for arm in ("quarter", "searched"))
        draw = np.random.default_rng(DRAWN).integers(len(first), size=(RESAMPLES, len(first)))
        ratios = second[draw].mean(1) / first[draw].mean(1)
        low, high = np.quantile(ratios, (0.025, 0.975))
        print(
            f"test MAE: quarter {first.mean():.2f}, searched {second.mean():.2f}, ratio "
            f"{second.mean() / first.mean():.3f} (95 % over {len(first)} photos {low:.3f} to "
            f"{high:.3f}); goal at most {WORSE}"
        )


def main() -> None:
    """Do the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    add("--via", help="the place, as kdcompile has it")
    add("--spec", type=Path, default=SPEC, help="the task (%(default)s)")
    add("--target", help="device name; the spec's")
    add("--data", type=Path, help="folder of the data set")
    add("--teacher", type=Path, help="the teacher's weights")
    add("--set", dest="told", action="append", default=[], help="key=value of the spec")
    add("--precision", default="fp16", help="of the engines (%(default)s)")
    add("--speedup", type=float, default=SPEEDUP, help="that is searched under (%(default)s)")
    add("--steps", type=int, default=5000, help="of each training (%(default)s)")
    add("--out", type=Path, default=ROOT / "benchmarks" / "searched_card.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]}; there are {', '.join(PARTS)}")
    card = Card(options)
    for part in options.parts or PARTS:
        getattr(card, part)()


if __name__ == "__main__":
    main()
