"""Does a recipe help? Each on the tasks that it fits, paired over seeds, against `none` and `kd`.

All arms of a seed start from the same student weights and see the same crops in the same order;
the weights that validated best are judged on the test split. Beside the same number of steps a
recipe is compared with a `kd` that trains as long by the clock: `kd` is trained at several
lengths, and the shortest that takes no less time than the recipe is the rival.

    python benchmarks/recipes.py [--seeds 8] [--jobs 2] [--only NAME ...] [-o FILE]
    python benchmarks/recipes.py --photos FOLDER   # of examples/cifar10: that task alone, on a GPU
    python benchmarks/recipes.py --page docs/recipes.md

Every run is kept at once, so that an interrupted benchmark goes on. Default weights were chosen
on seeds from 100 on and the validation split, never on these.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired import SEEDS, run
from recipes_page import page
from recipes_tasks import CHECKS, CLASSES, OLD, TASKS, make_networks

RESULTS = Path(__file__).with_suffix(".json")
OF_PHOTOS = RESULTS.with_stem("recipes_photos")
PHOTOS = "KDCOMPILE_BENCHMARK_PHOTOS"  # the folder, for the processes that train
LENGTHS = (1.25, 1.5, 2.0, 2.5, 3.0)  # of kd, beside its own
ROUNDS, STEPS_A_ROUND = 5, 4


@dataclass(frozen=True)
class Job:
    """One training: `kind` is "task" or "check", `length` multiplies the steps."""

    kind: str
    name: str
    arm: str
    seed: int
    length: float = 1.0

    @property
    def key(self) -> str:
        """What the run is kept under."""
        return f"{self.kind}/{self.name}/{self.arm}/{self.seed}/{self.length:g}"


def settings(job: Job) -> tuple[Path, list[str]]:
    """The spec's folder and the fields that a run sets."""
    if job.kind == "task":
        task = next(t for t in TASKS if t.name == job.name)
        folder, sets = task.folder, [*task.sets, f"distill.recipe={job.arm}"]
    else:
        check = next(c for c in CHECKS if c.recipe == job.name)
        folder, sets = CLASSES, [*check.sets, *dict(check.arms)[job.arm]]
    words = {"{seed}": str(job.seed), "{photos}": os.environ.get(PHOTOS, "")}
    for word, value in words.items():
        sets = [text.replace(word, value) for text in sets]
    return folder, [f"seed={job.seed}", *sets]


def at_rest(job: Job, work: Path) -> Any:
    """The trainer of a run and its spec."""
    from kdcompile.config.load import load_spec
    from kdcompile.data.images import ImageStore
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.registry import refuse_recipes
    from kdcompile.distill.start import start_student
    from kdcompile.distill.train import Trainer
    from kdcompile.distill.training_context import training_device
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.search.spaces.pruned import architectures
    from kdcompile.targets import load

    folder, sets = settings(job)
    spec = load_spec(folder / "kdcompile.toml", sets)
    if job.length != 1:
        steps = round((spec.distill.steps or 0) * job.length)
        spec = load_spec(folder / "kdcompile.toml", [*sets, f"distill.steps={steps}"])
    refuse_recipes(spec)
    teacher = load_teacher(spec)
    if ":" in spec.student.family:
        architecture: Mapping[str, Any] = {"family": spec.student.family, "seed": spec.seed}
    else:
        tile = load(spec.target).channel_tile
        width = spec.student.budget.width or 1.0
        shape = spec.export.profile[1]
        architecture = architectures(teacher, shape, tile, spec.seed, [width])[0]
    student = student_from_architecture(teacher, architecture, folder)
    splits = load_splits(spec.data, folder)
    if spec.student.init == "file":
        store = ImageStore(splits.train, spec.export.profile[1][1], training_device())
        start_student(spec, teacher, student, architecture, store)
    return Trainer(spec, teacher, student, splits.train, splits.val, work), spec, splits


def train(job: Job) -> dict[str, Any]:
    """Train one arm and judge it; or say why it is refused."""
    import torch

    from kdcompile.core.errors import KDError

    torch.set_num_threads(1)
    row: dict[str, Any] = asdict(job)
    with tempfile.TemporaryDirectory() as work:
        try:
            trainer, spec, splits = at_rest(job, Path(work))
            began = time.process_time()
            state = trainer.run()
        except KDError as error:
            return row | {"refused": error.message}
    row["s"] = time.process_time() - began
    last = job.kind == "check" and next(c for c in CHECKS if c.recipe == job.name).last
    trainer.student.load_state_dict(trainer.setting.ema.state_dict() if last else state.best)
    return row | {"values": judged(job, trainer, spec, splits)}


def judged(job: Job, trainer: Any, spec: Any, splits: Any) -> dict[str, float]:
    """The test metric; for checks also what was lost, and the accuracy by group."""
    import numpy as np

    from kdcompile.data.splits import load_splits
    from kdcompile.tasks.task import task_of

    task = task_of(spec)
    told = _answers(trainer.student, splits.test, spec, trainer.device)
    true = [task.truth(photo) for photo in splits.test]
    values = {task.metric.name: float(task.metric(task.errors(told, true)))}
    if job.kind == "task":
        return values
    right = np.array(told) == np.array(true)
    old = np.isin(true, OLD)
    values |= {"old": float(right[old].mean()), "new": float(right[~old].mean())}
    values["balanced"] = (values["old"] + values["new"]) / 2
    if job.name == "partitioned":
        first = load_start(spec)
        known = np.array(_answers(first, splits.test, spec, trainer.device)) == np.array(true)
        values["flips"] = float((known & ~right).sum() / known.sum())
        data = spec.data.model_copy(update={"test": "shifted-test"})
        there = load_splits(data, CLASSES).test
        told = _answers(trainer.student, there, spec, trainer.device)
        values["shifted"] = float(np.mean(np.array(told) == [p.labelled() for p in there]))
    return values


def load_start(spec: Any) -> Any:
    """The deployed student."""
    from kdcompile.models.factory import build_model, load_weights

    network = build_model(spec.student.family, CLASSES)
    load_weights(network, spec.student.weights)
    return network.eval()


def _answers(network: Any, photos: Sequence[Any], spec: Any, device: Any) -> list[float]:
    from kdcompile.distill.evaluate import predict
    from kdcompile.tasks.task import preprocess_of, task_of

    preprocess = preprocess_of(spec)
    return predict(network, photos, preprocess, device, task_of(spec))


def cost(job: Job) -> dict[str, Any]:
    """Processor time of a step (on a GPU wall time) over that of `kd`, in turns; medians."""
    import torch

    from kdcompile.core.errors import KDError

    torch.set_num_threads(1)
    row: dict[str, Any] = asdict(job) | {"kind": "cost"}
    rounds: dict[str, list[float]] = {job.arm: [], "kd": []}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        runs = {}
        for arm, work in ((job.arm, first), ("kd", second)):
            try:
                trainer, *_ = at_rest(Job(job.kind, job.name, arm, job.seed), Path(work))
                runs[arm] = trainer._enter(0, trainer._plans[0], 10**4, 0)
                clock = _clock(trainer.device)
            except KDError as error:
                return row | {"refused": error.message}
        for turn in range(ROUNDS + 1):
            for arm, stage in runs.items():
                began = clock()
                for step in range(STEPS_A_ROUND):
                    stage.step(turn * STEPS_A_ROUND + step)
                if turn:
                    rounds[arm].append((clock() - began) / STEPS_A_ROUND * 1e3)
    medians = {arm: statistics.median(times) for arm, times in rounds.items()}
    ratios = [a / b for a, b in zip(rounds[job.arm], rounds["kd"], strict=True)]
    return row | {"ms": medians[job.arm], "ratio": statistics.median(ratios)}


def _clock(device: Any) -> Callable[[], float]:
    import torch

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized if device.type == "cuda" else time.process_time


def jobs_of(args: argparse.Namespace) -> tuple[list[Job], list[Job]]:
    """All trainings and all costs, by seed, so that an early end leaves whole seeds."""
    from kdcompile.distill.registry import AUTO, recipes

    known = [n for n in recipes() if n != AUTO]  # which trains as one of the others
    wanted = [n for n in known if not args.only or n in args.only or n in ("none", "kd")]
    tasks = [task for task in TASKS if task.has_photos == (args.photos is not None)]
    checks = [c for c in CHECKS if not args.photos and (not args.only or c.recipe in args.only)]
    trainings: list[Job] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        trainings += [
            Job("task", task.name, arm, seed) for task in tasks for arm in wanted if task.suits(arm)
        ]
        trainings += [Job("task", t.name, "kd", seed, more) for t in tasks for more in LENGTHS]
        trainings += [Job("check", c.recipe, arm, seed) for c in checks for arm, _ in c.arms]
    costs = [
        Job("task", t.name, arm, 0) for t in tasks for arm in wanted if arm != "kd" and t.suits(arm)
    ]
    return trainings, costs


def kept(path: Path) -> dict[str, Any]:
    """The runs that a file has; none where there is no file."""
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    return rows


def perform(todo: Sequence[Job], work: Any, rows: dict[str, Any], jobs: int, path: Path) -> None:
    """Run what is not kept yet; keep each row."""
    import torch

    on = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread a run"
    environment = {"torch_version": version("torch"), "device": on}
    keys = [job.key if work is train else f"cost/{job.name}/{job.arm}" for job in todo]
    left = [(key, job) for key, job in zip(keys, todo, strict=True) if key not in rows]
    for (key, _), row in zip(left, run(work, [job for _, job in left], jobs), strict=True):
        rows[key] = row
        path.write_text(json.dumps({"rows": rows, "environment": environment}, indent=0) + "\n")
        shown = row.get("refused") or row.get("values") or f"{row['ratio']:.2f} of kd"
        print(f"{key}: {shown}", flush=True)


def main() -> None:
    """Run what is missing and keep it; or write the page."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seeds", type=int, default=8, choices=SEEDS)
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--only", nargs="*", default=[])
    made.add_argument("--page", type=Path)
    made.add_argument("--photos", type=Path)
    made.add_argument("-o", "--output", type=Path)
    args = made.parse_args()
    if args.page:
        args.page.write_text(page(kept(RESULTS) | kept(OF_PHOTOS)))
        return
    output = args.output or (OF_PHOTOS if args.photos else RESULTS)
    if args.photos:
        os.environ[PHOTOS] = str(args.photos.resolve())
    else:
        make_networks(range(args.first_seed, args.first_seed + args.seeds))
    rows, (trainings, costs) = kept(output), jobs_of(args)
    perform(costs, cost, rows, args.jobs, output)
    perform(trainings, train, rows, args.jobs, output)


if __name__ == "__main__":
    main()
