"""Which learning rate leaves an inherited start whole, and still learns from there?

The arms of a seed share everything but the learning rate and its warm-up: the same inherited
student, the same crops in the same order, the same number of steps. Validated are the moving
averages, as in a build.

The rule, fixed before any arm was run: an arm breaks a start where, in the mean over the seeds, the
validation metric after 30 steps or at the end is worse than before the first step by more than 5 %
of it (MAE, or the share of wrong classes). The default is the largest rate that breaks none; of two
arms with that rate, the one with the better metric at the end.

    python benchmarks/inherit_rate.py --data FOLDER [--tasks digits cifar10 csrnet] [--seeds 3]
        [-o FILE]

FOLDER holds `cifar10/`, `shanghaitech_a/`, and, for CSRNet, `../teachers/csrnet_sha/`.
"""

import argparse
import copy
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired import run

EXAMPLES = Path(__file__).parents[1] / "examples"
ARMS = {
    "1e-3": ("1e-3", "0.05"),  # the default of every start until now
    "1e-3, warm-up 0.3": ("1e-3", "0.3"),
    "3e-4": ("3e-4", "0.05"),
    "1e-4": ("1e-4", "0.05"),
    "3e-5": ("3e-5", "0.05"),
}
EARLY, BREAKS = 30, 0.05
SIDE, N_VAL = 256, 24  # CSRNet is validated on so many crops from the middle of photos
TASKS = {
    "digits": ("distill.steps=150", "distill.evaluations=5"),
    "cifar10": ("distill.steps=60", "distill.evaluations=2"),
    "csrnet": (
        "distill.steps=60",
        "distill.evaluations=2",
        "distill.recipe=none",  # the teacher's share of a step is most of it on a CPU
        "distill.crop=256",  # as large as what it is validated on
        "distill.batch=2",
        "student.crops=16",
    ),
}


@dataclass(frozen=True)
class Job:
    """The arms of a seed."""

    task: str
    seed: int
    data: Path
    arms: tuple[str, ...]
    sets: tuple[str, ...]


def train(job: Job) -> dict[str, Any]:
    """Train every arm from one start; the curves of validation by arm."""
    import torch

    from kdcompile.config.load import load_spec
    from kdcompile.data.images import ImageStore
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.start import start_student
    from kdcompile.distill.train import Trainer
    from kdcompile.distill.training_context import training_device
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.search.spaces.pruned import architectures
    from kdcompile.targets import load
    from kdcompile.tasks.task import task_of

    torch.set_num_threads(1)
    path, places = _place(job)
    sets = (f"seed={job.seed}", *places, *TASKS[job.task], *job.sets)
    spec = load_spec(path, sets)
    teacher, splits = load_teacher(spec), load_splits(spec.data, spec.folder)
    val = _middles(splits.val) if job.task == "csrnet" else splits.val
    ratio = spec.student.budget.width
    assert ratio is not None, "the examples fix the width"
    tile, shape = load(spec.target).channel_tile, spec.export.profile[1]
    architecture = architectures(teacher, shape, tile, spec.seed, [ratio])[0]
    start = student_from_architecture(teacher, architecture, spec.folder)
    store = ImageStore(splits.train, shape[1], training_device())
    start_student(spec, teacher, start, architecture, store)
    metric = task_of(spec).metric.name
    curves = {}
    for name in job.arms:
        lr, warmup = ARMS[name]
        own = load_spec(path, (*sets, f"distill.lr={lr}", f"distill.warmup={warmup}"))
        with tempfile.TemporaryDirectory() as work:
            student = copy.deepcopy(start)
            trainer = Trainer(own, teacher, student, splits.train, val, Path(work), store=store)
            rows = trainer.run().metrics
        curves[name] = {row["step"]: row[f"val_{metric}"] for row in rows if f"val_{metric}" in row}
    return {"task": job.task, "seed": job.seed, "metric": metric, "curves": curves}


def _place(job: Job) -> tuple[Path, tuple[str, ...]]:
    """The spec file of a task, and where its data lie."""
    if job.task == "csrnet":
        weights = job.data.parent / "teachers" / "csrnet_sha" / "weights.safetensors"
        root = job.data / "shanghaitech_a"
        sets = (f"data.root={root}", f"teacher.weights={weights}")
        return EXAMPLES / "shanghaitech" / "kdcompile.toml", sets
    root = EXAMPLES / "digits" if job.task == "digits" else job.data / "cifar10"
    return EXAMPLES / job.task / "kdcompile.toml", (f"data.root={root}",)


def _middles(photos: Any) -> list[Any]:
    """A crop from the middle of each of the first photos, with the points in it."""
    import numpy as np

    from kdcompile.data.photo import Photo

    found = []
    for photo in photos[:N_VAL]:
        pixels = photo.pixels(3)
        corner = np.array([(pixels.shape[1] - SIDE) // 2, (pixels.shape[0] - SIDE) // 2]).clip(0)
        left, top = corner.tolist()
        points = photo.points - corner.astype(np.float32)
        inside = ((points >= 0) & (points < SIDE)).all(1)
        crop = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
        found.append(Photo(photo.name, points[inside], array=crop))
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds by task and arm, as errors (less is better), and what breaks."""
    told: dict[str, Any] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        told[task] = {name: _arm(own, name) for name in own[0]["curves"]}
    return told


def _arm(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    def mean(step: int) -> float:
        values = [row["curves"][name][step] for row in rows]
        return statistics.mean(
            1 - v if row["metric"] == "top1" else v for v, row in zip(values, rows, strict=True)
        )

    last = max(rows[0]["curves"][name])
    start, early, end = mean(0), mean(EARLY), mean(last)
    best = min(mean(step) for step in rows[0]["curves"][name])
    worse = max(early, end) / start - 1
    return {
        "start": start, f"after {EARLY}": early, f"after {last}": end, "best": best,
        "breaks": worse > BREAKS,
    }  # fmt: skip


def main() -> None:
    """Run the arms, print the table, keep the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--set", dest="sets", action="append", default=[])
    options.add_argument("-o", "--output", type=Path)
    args = options.parse_args()
    data = args.data.resolve()
    arms, sets = tuple(args.arms), tuple(args.sets)
    jobs = [Job(task, seed, data, arms, sets) for task in args.tasks for seed in range(args.seeds)]
    rows = []
    for row in run(train, jobs, args.jobs):
        print(json.dumps(row), flush=True)
        rows.append(row)
    told = summary(rows)
    print(json.dumps(told, indent=1))
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "summary": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
