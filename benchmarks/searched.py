"""Is a searched student faster than the uniform ones that count as well? Digits, on this CPU.

    python benchmarks/searched.py train|time|report [--seeds 5] [--work FOLDER] [-o FILE]

The uniform students are the teacher at each of `WIDTHS`, fixed before any was trained. The searched
student is what `student.family = "search"` gives with seed 0 under `BUDGET`. All are trained alike:
recipe kd, `STEPS` steps, from what each inherits, once for each seed, through the stages of a build
up to the exported ONNX, which is judged on the test canvases and timed, all side by side.
"""

import argparse
import json
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from paired import SEEDS, paired

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
WIDTHS = (0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5, 0.75, 1.0)
STEPS = 600
BUDGET = "latency_ms=0.25"
ROUNDS, CALLS = 60, 20
SETS = ("distill.recipe=kd", f"distill.steps={STEPS}", "distill.evaluations=4")
GOAL = 1.5


def arms() -> dict[str, tuple[str, ...]]:
    """What each arm says of its student."""
    uniform = {f"width {w:g}": (f"student.budget={{width={w}}}",) for w in WIDTHS}
    return uniform | {"searched": ("student.family=search", f"student.budget={{{BUDGET}}}")}


def trained(work: Path, arm: str, seed: int) -> Path:
    """The folder of the exported student of an arm; made where it is not there yet."""
    from kdcompile.pipeline.plan import make_plan
    from kdcompile.spec_file import load_spec

    sets = [*SETS, *arms()[arm], f"seed={seed}"]
    spec = load_spec(work / "kdcompile.toml", sets, "cpu")
    return make_plan(spec).make("export").path


def judged(folder: Path, part: str) -> float:
    """MAE of an exported student on the canvases of a split."""
    from kdcompile.data.prepare import Preprocess
    from kdcompile.data.splits import load_splits
    from kdcompile.data.task import find_task
    from kdcompile.export.session import cpu_session
    from kdcompile.spec_file import load_spec

    spec = load_spec(EXAMPLE / "kdcompile.toml", [], "cpu")
    photos = getattr(load_splits(spec.data, EXAMPLE), part)
    prepare = Preprocess.from_json(json.loads((folder / "preprocess.json").read_text()))
    session = cpu_session(folder / "student.onnx")
    name = session.get_inputs()[0].name
    task = find_task("counting")
    counts = [
        float(session.run(None, {name: prepare(p.pixels(prepare.channels))})[0].sum())
        for p in photos
    ]
    return statistics.mean(abs(c - task.truth(p)) for c, p in zip(counts, photos, strict=True))


def train(work: Path, seeds: int) -> None:
    """Train and judge what is missing; keep it arm by arm."""
    kept = work / "mae.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in range(seeds):
        for arm in arms():
            if str(seed) in found.get(arm, {}):
                continue
            start = time.perf_counter()
            folder = trained(work, arm, seed)
            mae = judged(folder, "test")
            found.setdefault(arm, {})[str(seed)] = {"mae": mae, "folder": folder.name}
            print(f"seed {seed}  {arm:<14} MAE {mae:.4f}  {time.perf_counter() - start:.0f} s")
            kept.write_text(json.dumps(found, indent=1))


def timed(work: Path) -> None:
    """Median latency of every arm's seed 0, all taken in turns in a new order each round."""
    import numpy as np

    from kdcompile.export.session import cpu_session

    found = json.loads((work / "mae.json").read_text())
    sessions, image = {}, np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    for arm, seeds in found.items():
        session = cpu_session(
            work / ".kdcompile" / "export" / seeds["0"]["folder"] / "student.onnx"
        )
        sessions[arm] = (session, {session.get_inputs()[0].name: image})
    samples: dict[str, list[float]] = {arm: [] for arm in sessions}
    order, shuffled = list(sessions), random.Random(0)
    for number in range(ROUNDS + 1):
        shuffled.shuffle(order)
        for arm in order:
            session, feed = sessions[arm]
            start = time.perf_counter()
            for _ in range(CALLS):
                session.run(None, feed)
            if number:  # the first round warms up
                samples[arm].append(1e3 * (time.perf_counter() - start) / CALLS)
    (work / "ms.json").write_text(json.dumps(samples))


def summary(work: Path) -> dict[str, Any]:
    """Each arm's mean MAE and median latency, and the comparison that counts."""
    found = json.loads((work / "mae.json").read_text())
    samples = json.loads((work / "ms.json").read_text())
    mae = {arm: {int(s): row["mae"] for s, row in rows.items()} for arm, rows in found.items()}
    rows = [
        {
            "arm": arm,
            "mae": statistics.mean(mae[arm].values()),
            "ms": statistics.median(samples[arm]),
            "difference": paired(mae["searched"], mae[arm], higher=False),
        }
        for arm in arms()
    ]
    own = next(row for row in rows if row["arm"] == "searched")
    as_good = [r for r in rows if r is not own and r["mae"] <= own["mae"]]
    rival = min(as_good, key=lambda row: row["ms"], default=None)
    ratio = None
    if rival is not None:
        pairs = zip(samples[rival["arm"]], samples["searched"], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        cut = len(ratios) // 20
        ratio = [ratios[cut], statistics.median(ratios), ratios[-1 - cut]]
    met = rival is None or (ratio is not None and ratio[1] >= GOAL)
    return {"rows": rows, "rival": rival and rival["arm"], "ratio": ratio, "met": met}


def report(found: dict[str, Any]) -> None:
    """Print the table and the verdict."""
    print("student         mean MAE     ms   MAE minus the searched one's, 95 % over seeds")
    for row in found["rows"]:
        low, high = row["difference"]["interval"]
        note = "" if row["arm"] == "searched" else f"{low:+.4f} to {high:+.4f}"
        print(f"{row['arm']:<14} {row['mae']:9.4f} {row['ms']:7.3f}   {note}")
    if found["rival"] is None:
        print("no uniform student counts as well as the searched one")
    else:
        low, middle, high = found["ratio"]
        print(
            f"the fastest uniform student that counts as well is {found['rival']}: "
            f"{middle:.2f} times slower (90 % of rounds {low:.2f} to {high:.2f}); "
            f"goal {GOAL}: {'met' if found['met'] else 'missed'}"
        )


def main() -> None:
    """Do the named parts in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=("train", "time", "report"))
    parser.add_argument("--seeds", type=int, default=5, choices=SEEDS)
    parser.add_argument("--work", type=Path, default=Path(".kdcompile/searched"))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if not args.work.is_dir():
        shutil.copytree(EXAMPLE, args.work)
    if "train" in args.parts:
        train(args.work, args.seeds)
    if "time" in args.parts:
        timed(args.work)
    if "report" in args.parts:
        found = summary(args.work)
        report(found)
        if args.output:
            whole = {**found, "steps": STEPS, "budget": BUDGET}
            args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
