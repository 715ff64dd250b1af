"""Is the latency gate right? The tables of proof: simulated comparisons, and real pairs here.

    python benchmarks/gates.py [pairs] [report] --model student.onnx [--count 100] [--seconds 8]
        [--modes MODE ...] [--minutes N] [--work FOLDER] [-o FILE]

`pairs` compares a network with itself and with a copy that is 5 % slower (`slowed.py`), again and
again: in turns, against a baseline file with its artifact at hand, and against the samples of that
file alone. The file is saved at least ten minutes before. Each comparison is one `kdcompile bench`
of so many seconds on this machine, as noisy as it is. Beside the gate's verdict: what a fixed 5 %
threshold on means and pytest-benchmark's `median:5%` say of the same latencies. Resumable.
`report` prints both tables (the simulated ones are of `gates_simulated.py`) and draws the detection
against the true change.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnx
from gates_simulated import fixed_mean, pytest_benchmark
from slowed import tuned

from kdcompile.core.files import write_json
from kdcompile.latency.baseline import make_baseline, read_baseline
from kdcompile.latency.compare import Measurement, Plan, from_samples, in_turns
from kdcompile.latency.environment import fingerprint
from kdcompile.latency.report import Judged
from kdcompile.latency.settings import Effort, Mode
from kdcompile.latency.subject import find_subject
from kdcompile.stats.samples import Samples

mpl.use("agg")
ROOT = Path(__file__).parents[1]
SIMULATED = Path(__file__).with_name("gates_simulated.json")
AGE_S = 600.0
SLOWER = 1.05
MODES = ("in turns", "baseline, artifact at hand", "baseline, samples alone")
CASES = ("itself", "slower copy")
ALARMS, FOUND = 3, 90  # of a hundred


class Pairs:
    """The real comparisons, each kept as soon as it is made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work, self.out = options, options.work, options.output
        self.work.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = json.loads(self.out.read_text()) if self.out.is_file() else {}
        self.effort = Effort(seconds=options.seconds)
        self.plan = Plan(None, self.effort, Mode())

    def run(self) -> None:
        """Make what is missing, all kinds in turn."""
        self._prepare()
        end = time.monotonic() + 60 * self.options.minutes
        made = self.found.setdefault("pairs", [])
        done = {(row["number"], row["mode"], row["case"]) for row in made}
        kinds = itertools.product(range(self.options.count), self.options.modes, CASES)
        for number, mode, case in kinds:
            young = mode != MODES[0] and self._age() < AGE_S
            if young or (number, mode, case) in done:
                continue
            if time.monotonic() > end:
                return
            row = {"number": number, "mode": mode, "case": case, **self._one(mode, case)}
            made.append(row)
            write_json(self.out, self.found)

    def _prepare(self) -> None:
        model, slow = self.work / "student.onnx", self.work / "slower.onnx"
        if not slow.is_file():
            model.write_bytes(self.options.model.read_bytes())
            made, ratio = tuned(onnx.load(model), SLOWER)
            onnx.save(made, slow)
            self.found["slower_measured"] = list(ratio)
        file = self.work / "baseline.json"
        if not file.is_file():
            plan = Plan(None, self.effort, Mode(), runs=3)
            subject = find_subject(model)
            (taken,) = Measurement([subject], plan).all_runs()
            make_baseline(taken, model, file, "benchmarks/gates.py", "three runs").write(file)
        self.found |= {"machine": fingerprint(), "seconds": self.options.seconds}
        write_json(self.out, self.found)

    def _age(self) -> float:
        return time.time() - (self.work / "baseline.json").stat().st_mtime

    def _one(self, mode: str, case: str) -> dict[str, Any]:
        start = time.monotonic()
        model = find_subject(self.work / "student.onnx")
        subject = model if case == CASES[0] else find_subject(self.work / "slower.onnx")
        file = self.work / "baseline.json"
        if mode == MODES[0]:
            judged = in_turns(subject, model, self.plan)
        elif mode == MODES[1]:
            judged = in_turns(subject, model, self.plan, read_baseline(file).record, file.name)
        else:
            judged = from_samples(subject, read_baseline(file).samples, self.plan, "alone")
        return {"seconds": round(time.monotonic() - start, 1), **_verdicts(judged)}


def _verdicts(judged: Judged) -> dict[str, Any]:
    """The gate's, and what the two common rules say of the same latencies."""
    ours, theirs = (_all(side) for side in (judged.candidate, judged.reference))
    p50 = judged.comparison.ratios[0]
    return {
        "decision": judged.comparison.decision,
        "ratio": [p50.low, p50.value, p50.high],
        "mean 5 %": fixed_mean(ours, theirs),
        "median:5%": pytest_benchmark(ours, theirs),
    }


def _all(samples: Samples) -> np.ndarray:
    return np.concatenate([block.ms for block in samples.blocks(disturbed=True)])


def table(found: Mapping[str, Any]) -> list[str]:
    """The real pairs as Markdown."""
    lines = ["| real pairs | mode | comparisons | regressed | equivalent | inconclusive | improved "
             "| fixed 5 % on means | median:5% | longest s | goal |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for mode in MODES:
        for case in CASES:
            rows = [r for r in found["pairs"] if (r["mode"], r["case"]) == (mode, case)]
            if not rows:
                continue
            told = {d: sum(r["decision"] == d for r in rows)
                    for d in ("regressed", "equivalent", "inconclusive", "improved")}  # fmt: skip
            share = 100 * told["regressed"] / len(rows)
            met = share <= ALARMS if case == CASES[0] else share >= FOUND
            rules = (sum(r[rule] for r in rows) for rule in ("mean 5 %", "median:5%"))
            cells = [case, mode, len(rows), *told.values(), *rules,
                     max(r["seconds"] for r in rows), "met" if met else "missed"]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def simulated() -> list[str]:
    """The simulated comparisons as Markdown."""
    summary = json.loads(SIMULATED.read_text())["summary"]
    rules = summary["rules"]
    lines = [
        f"| true change | the gate, of {summary['comparisons']} | {' | '.join(rules)} |",
        f"{'|---' * (2 + len(rules))}|",
    ]
    for change, share in summary["detection"].items():
        others = (f"{rule[change]:.1%}" for rule in rules.values())
        lines.append(f"| {float(change):+.1%} | {share:.1%} | {' | '.join(others)} |")
    return lines


def plot(path: Path) -> None:
    """Detection against the true change."""
    from matplotlib.figure import Figure

    summary = json.loads(SIMULATED.read_text())["summary"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, Mapping[str, float]] = {"the gate": summary["detection"], **summary["rules"]}
    for name, curve in curves.items():
        change = [100 * float(c) for c in curve]
        axes.plot(change, [100 * share for share in curve.values()], marker="o", label=name)
    axes.set(
        xlabel="true change of the latency, %",
        ylabel="called a regression, %",
        title=f"{summary['comparisons']} simulated comparisons in turns, level 0.5 %",
    )
    axes.axvline(3, color="grey", linestyle=":", label="the margin")
    axes.legend()
    figure.savefig(path, dpi=120)


def report(out: Path) -> None:
    """Print both tables and draw."""
    print("\n".join(simulated()))
    if out.is_file():
        print()
        print("\n".join(table(json.loads(out.read_text()))))
    plot(out.with_suffix(".png"))


def main() -> None:
    """Do the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "pairs": lambda options: Pairs(options).run(),
        "report": lambda options: report(options.output),
    }
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--model", type=Path, default=Path("student.onnx"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    parser.add_argument("--minutes", type=float, default=24 * 60)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gates")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "gates.json")
    options = parser.parse_args()
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main()
