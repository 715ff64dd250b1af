"""Does distillation pay on real photos? The examples' students against controls, paired by seed.

    python benchmarks/task_controls.py SPEC [--data FOLDER] [--seeds 3] [--steps N] [--work FOLDER]
        [-o FILE]

SPEC is an example's, as `examples/cells/detect.toml`. All arms of a seed start from the same
inherited student and train for the same processor time, which SPEC's recipe takes for `--steps`:

- `start`: what was inherited, not trained at all;
- `none`: the labels alone;
- `generic`: task `generic`, which knows of no task and no label: the teacher's outputs alone;
- the recipe that SPEC names, with what its task and its settings add.

The weights that validated best are judged on the test split, at fp32. The metric, the seeds and
the interval (Student's t over seeds) are fixed before anything is run. An arm is kept when it is
done: a stopped run goes on.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paired import SEEDS, paired

ROUNDS, STEPS_A_ROUND = 4, 2


class Subject:
    """A spec in a copy of its example, with a store of its own."""

    def __init__(self, spec: Path, data: Path | None, work: Path) -> None:
        """What all arms share."""
        folder = work / "example"
        if not folder.is_dir():
            shutil.copytree(spec.parent, folder, ignore=shutil.ignore_patterns(".kdcompile"))
        self.spec, self.work = folder / spec.name, work
        text = self.spec.read_text()
        for field in ("decode", "accuracy", "recipe"):  # what only the task itself has
            text = re.sub(rf"^{field} = .*\n", "", text, flags=re.M)
        self.generic = self.spec.with_stem(f"{spec.stem}-generic")
        self.generic.write_text(re.sub(r"^kind = .*$", 'kind = "generic"', text, flags=re.M))
        self.sets = ["distill.calibrate_output=false"]
        self.sets += [f"data.root={data.absolute()}"] if data else []

    def plan(self, arm: str = "start", *sets: str) -> Any:
        """Of the spec, as it is built; `start` is that of its own recipe."""
        from kdcompile.config.load import load_spec
        from kdcompile.passes.manager import make_plan

        if arm == "generic":
            return make_plan(load_spec(self.generic, [*self.sets, *sets]))
        own = [] if arm == "start" else [f"distill.recipe={arm}"]
        return make_plan(load_spec(self.spec, [*self.sets, *own, *sets]))

    def arms(self) -> list[str]:
        """What is trained, the spec's own recipe last."""
        return ["none", "generic", str(self.plan().spec.distill.recipe)]


def at_rest(plan: Any, work: Path) -> Any:
    """The trainer of a plan, before its first step."""
    from kdcompile.config.step import Step
    from kdcompile.passes.distill import make_trainer
    from kdcompile.passes.stages import STAGES

    inputs = {name: plan.make(name) for name in STAGES["distill"].inputs}
    work.mkdir()
    return make_trainer(Step("distill", "0", plan.spec, inputs), work)[0]


def costs(subject: Subject) -> dict[str, float]:
    """Seconds of processor time of a step of each arm: medians of rounds taken in turns."""
    taken: dict[str, list[float]] = {arm: [] for arm in subject.arms()}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for arm in taken:
            trainer = at_rest(subject.plan(arm, "seed=0"), Path(folder) / arm)
            runs[arm] = trainer._enter(0, trainer._plans[0], 10**4, 0)
        for turn in range(ROUNDS + 1):
            for arm, run in runs.items():
                began = time.process_time()
                for step in range(STEPS_A_ROUND):
                    run.step(turn * STEPS_A_ROUND + step)
                if turn:  # the first round warms up
                    taken[arm].append((time.process_time() - began) / STEPS_A_ROUND)
    return {arm: statistics.median(times) for arm, times in taken.items()}


def judged(plan: Any, network: torch.nn.Module) -> float:
    """The metric on the test split."""
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.evaluate import predict
    from kdcompile.distill.training_context import training_device
    from kdcompile.tasks.task import preprocess_of, task_of

    spec, task = plan.spec, task_of(plan.spec)
    photos = load_splits(spec.data, spec.folder).test
    found = predict(network, photos, preprocess_of(spec), training_device(), task)
    return float(task.metric(task.errors(found, [task.truth(photo) for photo in photos])))


def student(plan: Any, untrained: bool) -> torch.nn.Module:
    """The trained student, or as it starts."""
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.models.weights import read_weights

    if untrained:
        with tempfile.TemporaryDirectory() as folder:
            network: torch.nn.Module = at_rest(plan, Path(folder) / "start").student
        return network.eval()
    made = plan.make("distill")
    network = student_from_architecture(
        load_teacher(plan.spec), made.json("architecture.json"), plan.spec.folder
    )
    network.load_state_dict(read_weights(made.file("student.safetensors"))[0])
    return network.eval()


def train(subject: Subject, found: dict[str, Any], seeds: int, steps: int) -> None:
    """What is missing, kept as it is done."""
    kept = subject.work / "found.json"
    if "costs" not in found:
        found["costs"] = costs(subject)
    own = subject.arms()[-1]
    for seed in range(seeds):
        for arm in ("start", *subject.arms()):
            if str(seed) in found.setdefault("values", {}).setdefault(arm, {}):
                continue
            length = round(steps * found["costs"][own] / found["costs"].get(arm, 1))
            plan = subject.plan(arm, f"distill.steps={length}", f"seed={seed}")
            began = time.process_time()
            value = judged(subject.plan(), student(plan, untrained=arm == "start"))
            seconds = time.process_time() - began
            found["values"][arm][str(seed)] = value
            print(f"seed {seed}  {arm:<8} {value:.4f}  {seconds:.0f} s", flush=True)
            kept.write_text(json.dumps(found, indent=1))


def summary(subject: Subject, found: dict[str, Any], steps: int) -> dict[str, Any]:
    """Means, and what the spec's recipe is better by than each other arm."""
    from kdcompile.models.factory import load_teacher
    from kdcompile.tasks.task import task_of

    plan, own = subject.plan(), subject.arms()[-1]
    metric = task_of(plan.spec).metric
    if "teacher" not in found:
        found["teacher"] = judged(plan, load_teacher(plan.spec))
    shared = sorted(set.intersection(*(set(v) for v in found["values"].values())))
    values = {a: {int(s): v[s] for s in shared} for a, v in found["values"].items()}
    against = {
        arm: paired(v, values[own], higher=metric.higher)
        for arm, v in values.items()
        if arm != own and len(shared) in SEEDS
    }
    return {
        "metric": metric.name,
        "teacher": found["teacher"],
        "recipe": own,
        "steps": steps,
        "seconds_a_step": found["costs"],
        "values": {arm: list(v.values()) for arm, v in values.items()},
        "means": {arm: statistics.mean(v.values()) for arm, v in values.items()},
        "against": against,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3, choices=SEEDS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--work", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(words)
    work = args.work or Path(".kdcompile") / f"controls-{args.spec.parent.name}-{args.spec.stem}"
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "found.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    subject = Subject(args.spec.absolute(), args.data, work.absolute())
    train(subject, found, args.seeds, args.steps)
    made = summary(subject, found, args.steps)
    print(json.dumps(made, indent=1))
    if args.output:
        args.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
