"""Is a searched student faster than the uniform ones that count as well? Digits, on this CPU.

    python benchmarks/searched.py calibrate train time report [--seeds 5] [--work FOLDER] [-o FILE]

The uniform students are the teacher at each of `WIDTHS`, fixed beforehand. The searched ones are
what `student.family = "search"` gives under each of `BUDGETS`, fixed after a pilot of seed 0 with
2.5 and 6.5, after `kdcompile targets calibrate cpu`; each seed searches anew. All are trained the
same way: recipe kd, `STEPS` steps, from what each inherits, through the stages of a build up to
the exported ONNX, which is judged on the test canvases and timed, all in turns. A searched
student's rival is the fastest uniform one whose mean MAE is not worse.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from canvases_64 import AT_64
from paired import SEEDS, paired

from kdcompile.stats.latency_interval import PairedTimes, ratio_interval

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
WIDTHS = (0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5, 0.75, 1.0)
BUDGETS = (2.5, 4.0, 6.5)  # predicted speed-ups over the teacher
STEPS = 600
ROUNDS, CALLS = 60, 20
SETS = ("distill.recipe=kd", f"distill.steps={STEPS}", "distill.evaluations=4")
SEARCH = (
    "student.family=search", "quantize.precision=fp32", "search.space=layers", "search.finalists=4",
    "search.finalist_steps=300",
)  # fmt: skip
GOAL = 1.5
PARTS = ("calibrate", "train", "time", "report")


def arms() -> dict[str, tuple[str, ...]]:
    """What each arm says of its student."""
    uniform = {f"width {w:g}": (f"student.budget={{width={w}}}",) for w in WIDTHS}
    searched = {f"searched {s:g}x": (*SEARCH, f"student.budget={{speedup={s}}}") for s in BUDGETS}
    return uniform | searched


def calibrate(work: Path) -> None:
    """The efficiencies of this machine, kept beside the work and not for the user."""
    command = [sys.executable, "-m", "kdcompile", "targets", "calibrate", "cpu"]
    subprocess.run(command, check=True, env=os.environ | {"XDG_CONFIG_HOME": str(_config(work))})


def _config(work: Path) -> Path:
    return (work / "config").absolute()


def trained(work: Path, arm: str, seed: int) -> Path:
    """The folder of the exported student of an arm; made where it is not there yet."""
    from kdcompile.config.load import load_spec
    from kdcompile.passes.manager import make_plan

    # uniform students keep the channel tile that the target has before it is calibrated
    known = _config(work) if arm.startswith("searched") else work / "uncalibrated"
    os.environ["XDG_CONFIG_HOME"] = str(known)
    sets = [*AT_64, *SETS, "distill.lr=4e-3", *arms()[arm], f"seed={seed}"]
    spec = load_spec(work / "kdcompile.toml", sets, "cpu")
    return make_plan(spec).make("export").path


def judged(folder: Path, part: str) -> float:
    """MAE of an exported student on the canvases of a split."""
    from kdcompile.config.load import load_spec
    from kdcompile.data.preprocess import Preprocess
    from kdcompile.data.splits import load_splits
    from kdcompile.onnx_graph.session import cpu_session
    from kdcompile.tasks.task import find_task

    spec = load_spec(EXAMPLE / "kdcompile.toml", AT_64, "cpu")
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
    """Latency of every exported student, all taken in turns in a new order each round."""
    from kdcompile.onnx_graph.session import cpu_session

    found = json.loads((work / "mae.json").read_text())
    sessions, image = {}, np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    for arm, seeds in found.items():
        for row in seeds.values() if arm.startswith("searched") else [seeds["0"]]:
            file = work / ".kdcompile" / "export" / row["folder"] / "student.onnx"
            session = cpu_session(file)
            sessions[arm, row["folder"]] = (session, {session.get_inputs()[0].name: image})
    samples: dict[str, dict[str, list[float]]] = {}
    order, shuffled = list(sessions), random.Random(0)
    for number in range(ROUNDS + 1):
        shuffled.shuffle(order)
        for arm, folder in order:
            session, feed = sessions[arm, folder]
            start = time.perf_counter()
            for _ in range(CALLS):
                session.run(None, feed)
            if number:  # the first round warms up
                taken = 1e3 * (time.perf_counter() - start) / CALLS
                samples.setdefault(arm, {}).setdefault(folder, []).append(taken)
    (work / "ms.json").write_text(json.dumps(samples))


def summary(work: Path) -> dict[str, Any]:
    """Each arm's mean MAE and median latency, and what each searched one is compared with."""
    found = json.loads((work / "mae.json").read_text())
    samples = json.loads((work / "ms.json").read_text())
    mae = {arm: {int(s): row["mae"] for s, row in rows.items()} for arm, rows in found.items()}
    # a searched arm's latency in a round is the mean over its seeds' students
    ms = {a: [statistics.mean(r) for r in zip(*samples[a].values(), strict=True)] for a in arms()}
    rows = {
        arm: {
            "mae": statistics.mean(mae[arm].values()),
            "mae_by_seed": list(mae[arm].values()),
            "ms": statistics.median(ms[arm]),
            "ms_by_student": [statistics.median(taken) for taken in samples[arm].values()],
        }
        for arm in arms()
    }
    return {
        "rows": rows,
        "comparisons": {a: _compared(a, rows, mae, ms) for a in arms() if a.startswith("searched")},
    }


def _compared(
    own: str,
    rows: dict[str, dict[str, Any]],
    mae: dict[str, dict[int, float]],
    ms: dict[str, list[float]],
) -> dict[str, Any]:
    """The fastest uniform student that is not worse, and how much slower it is."""
    uniform = [arm for arm in rows if not arm.startswith("searched")]
    as_good = [arm for arm in uniform if rows[arm]["mae"] <= rows[own]["mae"]]
    rival = min(as_good, key=lambda arm: rows[arm]["ms"], default=None)
    differences = {arm: paired(mae[own], mae[arm], higher=False)["interval"] for arm in uniform}
    ratio = None
    if rival is not None:
        times = PairedTimes(np.array(ms[rival]), np.array(ms[own]), CALLS)
        middle, low, high = ratio_interval(times, 0)
        ratio = [low, middle, high]
    met = ratio is None or ratio[1] >= GOAL
    return {"rival": rival, "ratio": ratio, "met": met, "mae_of_uniform_minus_own": differences}


def report(found: dict[str, Any]) -> None:
    """Print the table and the verdicts."""
    print("student          mean MAE       ms")
    for arm, row in found["rows"].items():
        print(f"{arm:<15} {row['mae']:9.4f}  {row['ms']:7.3f}")
    for arm, compared in found["comparisons"].items():
        rival = compared["rival"]
        if rival is None:
            print(f"{arm}: no uniform student counts as well")
            continue
        low, middle, high = compared["ratio"]
        less, more = compared["mae_of_uniform_minus_own"][rival]
        print(
            f"{arm}: the fastest uniform student that counts as well is {rival}: {middle:.2f} "
            f"times slower (95 % {low:.2f} to {high:.2f}), its MAE {less:+.4f} to "
            f"{more:+.4f} (95 % over seeds); goal {GOAL}: {'met' if compared['met'] else 'missed'}"
        )


def main() -> None:
    """Do the named parts in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=5, choices=SEEDS)
    parser.add_argument("--work", type=Path, default=Path(".kdcompile/searched"))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if not args.work.is_dir():
        shutil.copytree(EXAMPLE, args.work)
    if "calibrate" in args.parts:
        calibrate(args.work)
    if "train" in args.parts:
        train(args.work, args.seeds)
    if "time" in args.parts:
        timed(args.work)
    if "report" in args.parts:
        found = summary(args.work)
        report(found)
        if args.output:
            whole = {**found, "steps": STEPS, "search": SEARCH}
            args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
