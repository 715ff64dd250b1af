"""Do soft targets help? `kd` against `none` on the cifar10 example, paired over seeds.

Both arms of a seed start from the same student and see the same crops in the same order for the
same number of steps; the weights that validated best are judged on the test split. One pair of
arms starts from a student that inherited from the teacher, another from random weights. A seed
changes the random start, the crops that are inherited from, and order and augmentation.

    python benchmarks/cifar10.py --data FOLDER [--seeds 3] [--first-seed 0] [--part test]
        [--jobs 1] [-o FILE]

FOLDER holds the archive that the example's spec names. Seeds 0 to 2 on the test split are the
reported ones.
"""

import copy
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired import keep, paired, parser, run

EXAMPLE = Path(__file__).parents[1] / "examples" / "cifar10"
STARTS, RECIPES = ("inherit", "random"), ("none", "kd")
EPOCHS = 4


@dataclass(frozen=True)
class Job:
    """The two arms of a seed that share a start."""

    seed: int
    start: str
    part: str
    sets: tuple[str, ...]


def train(job: Job) -> list[dict[str, Any]]:
    """Train both arms and judge them and the teacher."""
    import torch

    from kdcompile.config.load import load_spec
    from kdcompile.data.images import ImageStore
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.evaluate import predict
    from kdcompile.distill.start import start_student
    from kdcompile.distill.train import Trainer
    from kdcompile.distill.training_context import training_device
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.search.spaces.pruned import architectures
    from kdcompile.targets import load
    from kdcompile.tasks.task import preprocess_of, task_of

    torch.set_num_threads(1)
    sets = [f"seed={job.seed}", f"student.init={job.start}", f"distill.epochs={EPOCHS}"]
    sets += ["distill.lr=2e-3", *job.sets]  # that of the recorded runs
    specs = {
        name: load_spec(EXAMPLE / "kdcompile.toml", [*sets, f"distill.recipe={name}"])
        for name in RECIPES
    }
    spec = specs["none"]
    teacher, splits, device = load_teacher(spec), load_splits(spec.data, EXAMPLE), training_device()
    ratio = spec.student.budget.width
    assert ratio is not None, "the example fixes the width"
    tile = load(spec.target).channel_tile
    architecture = architectures(teacher, spec.export.profile[1], tile, spec.seed, [ratio])[0]
    start = student_from_architecture(teacher, architecture, EXAMPLE)
    store = ImageStore(splits.train, spec.export.profile[1][1], device)
    start_student(spec, teacher, start, architecture, store)
    photos = splits.test if job.part == "test" else splits.val
    preprocess, task = preprocess_of(spec), task_of(spec)
    true = [task.truth(photo) for photo in photos]

    def top1(network: torch.nn.Module) -> float:
        predicted = predict(network.to(device), photos, preprocess, device, task)
        return task.scores(predicted, true)["top1"]

    shared = {"seed": job.seed, "start": job.start, "teacher": top1(teacher)}
    rows = []
    for name, own in specs.items():
        student = copy.deepcopy(start)
        with tempfile.TemporaryDirectory() as work:
            trainer = Trainer(own, teacher, student, splits.train, splits.val, Path(work))
            state = trainer.run()
        trainer.student.load_state_dict(state.best)
        found = {"top1": top1(trainer.student), "val_top1": state.value}
        found |= {"val_top1_at_start": state.metrics[0]["val_top1"], "best_step": state.best_step}
        found |= {"steps": state.step}
        rows.append({**shared, "recipe": name, **found, "s": state.seconds})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each start the means over the seeds, and the paired difference."""
    told: dict[str, Any] = {"teacher": statistics.mean(row["teacher"] for row in rows)}
    for start in STARTS:
        own = [row for row in rows if row["start"] == start]
        arms = {n: {r["seed"]: r["top1"] for r in own if r["recipe"] == n} for n in RECIPES}
        told[start] = {
            "val_top1_at_start": statistics.mean(row["val_top1_at_start"] for row in own),
            **{name: statistics.mean(arm.values()) for name, arm in arms.items()},
            **paired(arms["none"], arms["kd"], higher=True),
        }
    return told


def main() -> None:
    """Run the arms, print the table, keep the result."""
    options = parser(__doc__, seeds=3)
    options.add_argument("--data", type=Path, required=True)
    args = options.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    sets = (f"data.root={args.data}", *args.sets)
    jobs = [Job(seed, start, args.part, sets) for seed in seeds for start in STARTS]
    rows = []
    for pair in run(train, jobs, args.jobs):
        for row in pair:
            print(
                f"seed {row['seed']:3d}  {row['start']:7s}  {row['recipe']:4s}"
                f"  top-1 {row['top1']:.4f}  {row['s']:.0f} s",
                flush=True,
            )
        rows += pair
    keep({"rows": rows, "summary": summary(rows), "epochs": EPOCHS}, args)


if __name__ == "__main__":
    main()
