"""What each part of the search is worth: an ablation on a CPU, digits and CIFAR-10.

    python benchmarks/search_ablation.py EXAMPLE [--data FOLDER] [--seeds 5] [--finished] [-o FILE]

EXAMPLE is `digits` or `cifar10`; of CIFAR-10, FOLDER holds the archive that the example's spec
names. All arms have one budget of predicted speed-up, the same final training, and the defaults of
`[search]`:

- `width`: the widest uniform student within the budget; nothing is searched for.
- `width, longer`: the same student, trained for as many steps more as `search` spends on finalists.
- `capacity`: searched for, ordered by multiply-adds and dropped parts, no finalist is distilled.
- `short`: finalists drawn at random within the budget; what they become after a short training
  decides.
- `search`: both, as the product does it.

Errors are those of the exported networks on the test split, latencies are timed in turns. An arm
is kept when it is done: a stopped run goes on.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from canvases_64 import AT_64
from paired import SEEDS, paired

EXAMPLES = Path(__file__).parents[1] / "examples"
ROUNDS, CALLS = 60, 20
FINALISTS, FINALIST_STEPS = 3, 200  # the defaults


@dataclass(frozen=True)
class Subject:
    """An example: its settings, the budget and the steps of the final training."""

    sets: tuple[str, ...]
    speedup: float
    steps: int
    metric: str
    higher: bool
    image: tuple[int, ...]


SUBJECTS = {
    "digits": Subject(
        (*AT_64, "distill.recipe=kd", "distill.evaluations=4", "distill.lr=4e-3"),
        4.0, 600, "mae", False, (1, 1, 64, 64),
    ),
    "cifar10": Subject(
        ("distill.recipe=kd", "distill.evaluations=4", "distill.lr=2e-3"),
        2.5, 600, "top1", True, (1, 3, 32, 32),
    ),
}  # fmt: skip


def arms(subject: Subject) -> dict[str, tuple[str, ...]]:
    """What each arm sets."""
    budget = f"student.budget={{speedup={subject.speedup}}}"
    steps = f"distill.steps={subject.steps}"
    longer = f"distill.steps={subject.steps + 2 * FINALISTS * FINALIST_STEPS}"
    searched = (budget, steps, "student.family=search", f"search.finalist_steps={FINALIST_STEPS}")
    return {
        "width": (budget, steps),
        "width, longer": (budget, longer),
        "capacity": (*searched, "search.finalists=0"),
        "short": (*searched, f"search.finalists={FINALISTS}"),
        "search": (*searched, f"search.finalists={FINALISTS}"),
    }


@contextmanager
def drawn_finalists(seed: int) -> Iterator[None]:
    """Finalists are drawn at random from the candidates within the budget, the order is ignored."""
    from kdcompile.search import candidate_pool
    from kdcompile.search.candidate_pool import CandidatePool
    from kdcompile.search.pareto import keeps

    points, choose = CandidatePool.points, CandidatePool._choose_finalists
    chance = random.Random(seed)

    def drawn(pool: Any, teacher: Any, known: Any = (), factor: float = 1.0) -> Any:
        within = [c for c in pool._found if keeps(pool.problem.spec.student.budget, c, teacher)]
        taken = chance.sample(within, min(FINALISTS, len(within)))
        return [pool._point(c.architecture) for c in taken]

    def first(pool: Any, found: Any, teacher: Any) -> Any:
        return list(found)[: pool.problem.spec.search.finalists]

    candidate_pool.CandidatePool.points = drawn  # type: ignore[method-assign]
    candidate_pool.CandidatePool._choose_finalists = first  # type: ignore[method-assign]
    try:
        yield
    finally:
        CandidatePool.points, CandidatePool._choose_finalists = points, choose  # type: ignore[method-assign]


def trained(work: Path, sets: tuple[str, ...], seed: int) -> Path:
    """The folder of an exported student; made where it is not there yet."""
    from kdcompile.config.load import load_spec
    from kdcompile.passes.manager import make_plan

    both = [*sets, "quantize.precision=fp32", f"seed={seed}"]
    return make_plan(load_spec(work / "kdcompile.toml", both, "cpu")).make("export").path


def judged(work: Path, subject: Subject, data: tuple[str, ...], folder: Path) -> float:
    """The metric of an exported student on the test split."""
    from kdcompile.config.load import load_spec
    from kdcompile.data.preprocess import Preprocess
    from kdcompile.data.splits import load_splits
    from kdcompile.onnx_graph.session import cpu_session
    from kdcompile.tasks.task import task_of

    spec = load_spec(work / "kdcompile.toml", [*subject.sets, *data], "cpu")
    task, photos = task_of(spec), load_splits(spec.data, work).test
    prepare = Preprocess.from_json(json.loads((folder / "preprocess.json").read_text()))
    session = cpu_session(folder / "student.onnx")
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: prepare(p.pixels(prepare.channels))})[0][0] for p in photos]
    if subject.metric == "mae":
        errors = [abs(float(v.sum()) - task.truth(p)) for v, p in zip(found, photos, strict=True)]
        return statistics.mean(errors)
    right = [int(v.argmax()) == task.truth(p) for v, p in zip(found, photos, strict=True)]
    return 100 * statistics.mean(right)


def train(work: Path, subject: Subject, data: tuple[str, ...], seeds: int) -> None:
    """Train and judge what is missing."""
    kept = work / "found.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in range(seeds):
        for arm, own in arms(subject).items():
            if str(seed) in found.get(arm, {}):
                continue
            start = time.perf_counter()
            sets = (*subject.sets, *data, *own)
            if arm == "short":
                # a store of its own: the search's key does not know how finalists were chosen
                with drawn_finalists(seed):
                    folder = trained(_beside(work, "short"), sets, seed)
            else:
                folder = trained(work, sets, seed)
            value = judged(work, subject, data, folder)
            seconds = time.perf_counter() - start
            found.setdefault(arm, {})[str(seed)] = {
                "value": value, "folder": str(folder), "seconds": seconds,
            }  # fmt: skip
            print(
                f"seed {seed}  {arm:<14} {subject.metric} {value:.4f}  {seconds:.0f} s", flush=True
            )
            kept.write_text(json.dumps(found, indent=1))


def _beside(work: Path, name: str) -> Path:
    other = work / name
    if not other.is_dir():
        shutil.copytree(work, other, ignore=shutil.ignore_patterns(".kdcompile", name, "*.json"))
    return other


def timed(work: Path, subject: Subject) -> dict[str, float]:
    """Each arm's median latency over the teacher's, all students taken in turns."""
    from kdcompile.onnx_graph.session import cpu_session

    found = json.loads((work / "found.json").read_text())
    image = np.random.default_rng(0).normal(size=subject.image).astype(np.float32)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for arm, seeds in found.items():
        for seed, row in seeds.items():
            session = cpu_session(Path(row["folder"]) / "student.onnx")
            feed = {session.get_inputs()[0].name: image}
            runs[arm, seed] = lambda session=session, feed=feed: session.run(None, feed)  # type: ignore[misc]
    samples: dict[str, list[list[float]]] = {}
    order, shuffled = list(runs), random.Random(0)
    for number in range(ROUNDS + 1):
        shuffled.shuffle(order)
        taken: dict[str, list[float]] = {}
        for arm, seed in order:
            start = time.perf_counter()
            for _ in range(CALLS):
                runs[arm, seed]()
            taken.setdefault(arm, []).append(1e3 * (time.perf_counter() - start) / CALLS)
        for arm, values in taken.items() if number else ():  # the first round warms up
            samples.setdefault(arm, []).append(values)
    return {a: statistics.median(statistics.mean(v) for v in rows) for a, rows in samples.items()}


def summary(work: Path, subject: Subject) -> dict[str, Any]:
    """Each arm's mean, and what it is better by than the uniform width, over seeds."""
    found = json.loads((work / "found.json").read_text())
    ms = timed(work, subject)
    values = {a: {int(s): r["value"] for s, r in rows.items()} for a, rows in found.items()}
    shared = sorted(set.intersection(*(set(v) for v in values.values())))
    by_seed = {a: {s: v[s] for s in shared} for a, v in values.items()}
    rows = {
        arm: {
            subject.metric: statistics.mean(v.values()),
            "by_seed": list(v.values()),
            "ms": ms[arm],
            "seconds": statistics.median(found[arm][str(s)]["seconds"] for s in shared),
        }
        for arm, v in by_seed.items()
    }
    against = {
        base: {
            arm: paired(by_seed[base], by_seed[arm], higher=subject.higher)
            for arm in rows
            if arm != base and len(shared) in SEEDS
        }
        for base in ("width", "width, longer", "search")
    }
    return {"speedup": subject.speedup, "steps": subject.steps, "rows": rows, "against": against}


def main() -> None:
    """Train, time and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", choices=SUBJECTS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=SEEDS)
    parser.add_argument("--work", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--finished", action="store_true", help="report the seeds that are done")
    args = parser.parse_args()
    work = args.work or Path(".kdcompile") / f"ablation-{args.example}"
    subject = SUBJECTS[args.example]
    data = (f"data.root={args.data.absolute()}",) if args.data else ()
    if not work.is_dir():
        shutil.copytree(EXAMPLES / args.example, work)
        own = work / "kdcompile.toml"
        own.write_text(re.sub(r"^epochs = .*\n", "", own.read_text(), flags=re.M))  # steps instead
    if not args.finished:
        train(work, subject, data, args.seeds)
    found = summary(work, subject)
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
