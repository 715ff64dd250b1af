"""How often the latency gate is wrong, beside two rules that are in use: simulated comparisons.

    python benchmarks/gates_simulated.py -o benchmarks/gates_simulated.json
    python benchmarks/gates_simulated.py --record gpu --via ssh://user@board --backend tensorrt

Every noise is drawn with no change and with changes of the candidate by known factors, and all
three rules see the same samples. A noise that is in the output with the same settings is not
simulated again. `--record NAME` records a trace `noise/NAME.json` instead, here or at a place; a
trace that is there is simulated with the others. None of a GPU has been recorded yet.
"""

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gates_noise as noise
import gates_record
import numpy as np
from numpy.typing import NDArray

from kdcompile.core.files import write_json
from kdcompile.stats.latency_test import compare

LEVEL, MARGIN = 0.005, 0.03
CHANGES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, -0.03)
FEW = (0.0, 0.03, 0.05)  # of the noises that count in no claim
EACH = 250  # comparisons of each noise that counts in the claim, 2,000 together
MORE = 400  # of the others
USUAL, RESTLESS = (0.001, 0.006), (0.005, 0.015)  # deviation of a process, log ratio
TAILS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3)  # shares of inferences
# which stand in the way of no claim: harder than what a gate is meant for, or with less to go by
KNOWN = ("cpu-small", "cpu-large", "cpu-runs", "cpu-contended")


def in_turns() -> dict[str, noise.Noise]:
    """What the claim is of: two sides measured in turns."""
    found = {name: noise.recorded(name) for name in KNOWN[:2]}
    found |= {
        "drift": noise.in_turns(noise.drift, USUAL),
        "bursts": noise.in_turns(noise.bursts, USUAL),
        "orin-nx-maxq": noise.in_turns(noise.mixture(noise.ORIN_NX_MAXQ), USUAL),
        "agx-orin-maxq": noise.in_turns(noise.mixture(noise.AGX_ORIN_MAXQ), USUAL),
        "agx-orin-maxq, 5 processes": noise.in_turns(
            noise.mixture(noise.AGX_ORIN_MAXQ), RESTLESS, processes=5
        ),
        "drift, 3 builds": noise.in_turns(noise.drift, USUAL, builds=3, build_sd=0.003),
    }
    return found


def others() -> dict[str, tuple[noise.Noise, str]]:
    """Harder ones; with how they are measured: in turns, alone, or alone on a day for each run."""
    nx = noise.mixture(noise.ORIN_NX_MAXQ)
    found = {
        "cpu-contended": (noise.recorded("cpu-contended"), "turns"),
        "restless processes": (noise.in_turns(noise.bursts, RESTLESS), "turns"),
        "processes of 2 %": (noise.in_turns(noise.bursts, (0.02, 0.02)), "turns"),
        "1 process": (noise.in_turns(noise.bursts, USUAL, processes=1), "turns"),
        "1 restless process": (noise.in_turns(noise.bursts, RESTLESS, processes=1), "turns"),
        "3 builds of 1 %": (noise.in_turns(noise.bursts, USUAL, builds=3, build_sd=0.01), "turns"),
        "alone: cpu-runs": (noise.recorded_runs("cpu-runs"), "alone"),
        "alone: cpu-runs, 8 runs": (noise.recorded_runs("cpu-runs", 8), "alone"),
        "alone: runs of 0.3 %": (noise.apart(nx, 0.003, 0.003), "alone"),
        "alone: runs of 1 %": (noise.apart(nx, 0.01, 0.005), "alone"),
        "alone: runs of 3 %": (noise.apart(nx, 0.03, 0.01), "alone"),
        "days of 2 %, 1 against 1": (noise.apart(nx, 0.02, 0.003, 1), "days"),
        "days of 2 %, 1 against 8": (noise.apart(nx, 0.02, 0.003, 8), "days"),
        "days of 0.5 %, 1 against 8": (noise.apart(nx, 0.005, 0.003, 8), "days"),
        "days of 4 %, 1 against 1": (noise.apart(nx, 0.04, 0.003, 1), "days"),
    }
    extra = sorted({path.stem for path in noise.HERE.glob("*.json")} - set(KNOWN))
    return found | {name: (noise.recorded(name), "turns") for name in extra}


def fixed_mean(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """A fixed threshold: the mean is more than 5 % above the reference's."""
    return bool(ours.mean() > 1.05 * theirs.mean())


def pytest_benchmark(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """`pytest-benchmark --benchmark-compare-fail=median:5%`.

    It fails where (now - stored) / stored * 100 of the medians of all rounds is above 5.
    """
    now, stored = float(np.median(ours)), float(np.median(theirs))
    return (now - stored) / stored * 100 > 5


RULES: Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64]], bool]] = {
    "mean 5 %": fixed_mean,
    "pytest-benchmark median:5%": pytest_benchmark,
}


def simulate(
    draw: noise.Noise, changes: Sequence[float], *, how: str = "turns", count: int, seed: int
) -> dict[str, Any]:
    """Counts of verdicts by change, of the gate and of the other rules.

    Returns:
        `verdicts`: by change, of the gate; `tails`: how many of its `regressed` came from p90 or
        p99 alone; `alarms`: by rule and change.
    """
    random, paired = np.random.default_rng(seed), how == "turns"
    day, later = (1, 2) if how == "days" else (None, None)
    verdicts = {change: Counter[str]() for change in changes}
    tails, alarms = Counter[float](), {rule: Counter[float]() for rule in RULES}
    for number in range(count):
        ours, theirs = draw(random)
        pools = [np.concatenate([a.ravel() for r in s for b in r for a in b])
                 for s in (ours, theirs)]  # fmt: skip
        reference = noise.samples(theirs, "reference", day=later)
        for change in changes:
            candidate = noise.samples(ours, "candidate", 1 + change, day)
            found = compare(
                candidate, reference, paired=paired, margin=MARGIN, level=LEVEL, seed=number
            )
            verdicts[change][found.decision] += 1
            alone = found.decision == "regressed" and found.ratios[0].decision != "regressed"
            tails[change] += alone
            for rule, says in RULES.items():
                alarms[rule][change] += says(pools[0] * (1 + change), pools[1])
    return {
        "paired": paired,
        "comparisons": count,
        "verdicts": {f"{c:+.3f}": dict(verdicts[c]) for c in changes},
        "tails": {f"{c:+.3f}": tails[c] for c in changes},
        "alarms": {rule: {f"{c:+.3f}": n[c] for c in changes} for rule, n in alarms.items()},
    }


def slower_tail(course: Callable[..., NDArray[np.float64]], count: int) -> dict[str, Any]:
    """Verdicts where a share of the candidate's inferences takes 1.5 times as long, by share."""
    random, found = np.random.default_rng(0), {}
    draw = noise.in_turns(course, USUAL)
    for share in TAILS:
        verdicts = Counter[str]()
        for number in range(count):
            ours, theirs = draw(random)
            ours = [
                [[np.where(random.random(a.shape) < share, 1.5 * a, a) for a in b] for b in run]
                for run in ours
            ]
            pair = noise.samples(ours, "candidate"), noise.samples(theirs, "reference")
            verdict = compare(*pair, paired=True, margin=MARGIN, level=LEVEL, seed=number)
            regressed = [r.quantile for r in verdict.ratios if r.decision == "regressed"]
            verdicts["+".join(regressed) or verdict.decision] += 1
        found[f"{share:g}"] = dict(verdicts)
    return found


def summary(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The claim: false alarms of all rows at no change, and what was found of +3 %."""

    def total(change: str, verdict: str = "regressed") -> int:
        return sum(row["verdicts"][change].get(verdict, 0) for row in rows.values())

    count = sum(row["comparisons"] for row in rows.values())
    return {
        "comparisons": count,
        "false_alarms": total("+0.000"),
        "equivalent_at_no_change": total("+0.000", "equivalent"),
        "found_of_3": total("+0.030"),
        "detection": {f"{c:+.3f}": total(f"{c:+.3f}") / count for c in CHANGES},
        "rules": {
            rule: {
                f"{c:+.3f}": sum(row["alarms"][rule][f"{c:+.3f}"] for row in rows.values()) / count
                for c in CHANGES
            }
            for rule in RULES
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row a noise; regressed at no change and at +3 %, by the three rules."""
    lines = [
        "| noise | comparisons | gate: alarms at 0 | equivalent at 0 | +3 % found | +5 % found "
        "| mean 5 %: at 0 | at +3 % | at +5 % | median:5%: at 0 | at +3 % | at +5 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part in ("in_turns", "others"):
        for name, row in result[part].items():
            verdicts, count = row["verdicts"], row["comparisons"]
            shown = [str(verdicts["+0.000"].get("regressed", 0))]
            shown += [f"{verdicts['+0.000'].get('equivalent', 0) / count:.1%}"]
            shown += [
                f"{verdicts[c].get('regressed', 0) / count:.1%}" for c in ("+0.030", "+0.050")
            ]
            for rule in RULES:
                alarms = row["alarms"][rule]
                shown += [str(alarms["+0.000"])]
                shown += [f"{alarms[c] / count:.1%}" for c in ("+0.030", "+0.050")]
            lines.append(f"| {name} | {count} | {' | '.join(shown)} |")
    return "\n".join(lines)


def run(output: Path | None, each: int, more: int) -> dict[str, Any]:
    """Simulate what is not in `output` yet, keeping each row as it is there."""
    settings = {
        "level": LEVEL, "margin": MARGIN, "changes": list(CHANGES), "tails": list(TAILS),
        "each": each, "more": more,
        "processes": noise.PROCESSES, "blocks": noise.BLOCKS, "inferences": noise.INFERENCES,
    }  # fmt: skip
    result: dict[str, Any] = {"settings": settings, "in_turns": {}, "others": {}}
    if output and output.is_file():
        old = json.loads(output.read_text())
        result = old if old["settings"] == settings else result
    jobs = [("in_turns", name, draw, "turns", each) for name, draw in in_turns().items()]
    jobs += [("others", name, draw, how, more) for name, (draw, how) in others().items()]
    for part, name, draw, how, count in jobs:
        if name in result[part]:
            continue
        seed = zlib.crc32(name.encode())
        result[part][name] = simulate(
            draw, CHANGES if part == "in_turns" else FEW, how=how, count=count, seed=seed
        )
        found = result[part][name]["verdicts"]
        print(f"{name}: {found['+0.000']} at 0, {found['+0.030']} at +3 %", file=sys.stderr)
        if output:
            write_json(output, result)
    if "slower_tail" not in result:
        result["slower_tail"] = slower_tail(noise.mixture(noise.ORIN_NX_MAXQ), more)
    result["summary"] = summary(result["in_turns"])
    if output:
        write_json(output, result)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--each", type=int, default=EACH, help="comparisons of each noise")
    parser.add_argument("--more", type=int, default=MORE, help="of each that counts in no claim")
    parser.add_argument("--record", metavar="NAME", help="record a trace noise/NAME.json instead")
    parser.add_argument("--network", choices=gates_record.NETWORKS, default="small")
    parser.add_argument("--processes", type=int, default=40)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between runs")
    parser.add_argument("--via", help="a place, as for kdcompile bench")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--mode", default="device")
    args = parser.parse_args()
    if args.record:
        gates_record.record(
            noise.HERE / f"{args.record}.json", args.network, args.processes, runs=args.runs,
            pause_s=args.pause, via=args.via, backend=args.backend, mode=args.mode,
        )  # fmt: skip
        return
    result = run(args.output, args.each, args.more)
    print(table(result))
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
