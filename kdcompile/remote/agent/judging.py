"""Agreement, the verdicts of the gates and the choice of a precision, from a board's numbers.

The bounds and verdicts are those of kdcompile's own modules, which are in the agent's file: the
same numbers give the same verdict when `device.json` is merged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdcompile.remote.usage import Absent, energy_of, memory_of
from kdcompile.stats.latency_interval import PairedTimes, limit_verdict, ratio_interval
from kdcompile.stats.noninferiority import compare, observed_text
from kdcompile.tasks.agreement import LIMIT_DB, decibels, powers, relative_error
from kdcompile.tasks.metric import MAE, METRICS

if TYPE_CHECKING:
    from kdcompile.remote.agent.candidates import Build

AT_HOME = "home judges the outputs: kdcompile bundle --merge device.json --test-pack PACK"
OVERFLOW = 1e30  # JSON has no infinity
ORDER = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")  # from the most precise
TIE = 1.02


def prediction(output: Any, task: str) -> float:
    """One image's output [1, ...] as a number: its count, its class (-1 for none), or its value."""
    if task == "counting":
        return float(output.reshape(1, -1).sum(1, dtype=np.float64)[0])
    if task == "classification":
        return float(output[0].argmax()) if np.isfinite(output).all() else -1.0
    return float(output.reshape(-1)[0])


def errors_of(predicted: Any, true: Any, task: str) -> Any:
    """One error an image, float64 [N]: 1 for a wrong class, else signed differences."""
    if task == "classification":
        return np.not_equal(predicted, true).astype(np.float64)
    return np.subtract(predicted, true, dtype=np.float64)


def agreement(outputs: list[Any], reference: list[Any]) -> dict[str, float]:
    """SQNR in dB pooled over images, and the largest relative error."""
    pairs = list(zip(reference, outputs))
    alike = all(want.shape == output.shape for want, output in pairs)
    signal, noise = np.sum([powers(*pair) for pair in pairs], 0) if alike else (0.0, np.inf)
    if not np.isfinite(noise):  # a NaN, an overflow or another network's output
        return {"max_rel_error": OVERFLOW, "sqnr_db": -LIMIT_DB}
    worst = max(relative_error(*pair) for pair in pairs)
    return {"max_rel_error": worst, "sqnr_db": decibels(signal, noise)}


def judge_accuracy(
    gate: dict[str, Any], task: str, true: Any, teacher: Any, student: Any, seed: int
) -> dict[str, Any]:
    """The verdict of a student's predictions by the rule of the accuracy gate, as JSON values.

    Args:
        gate: `metric`, `max_increase` and `margin` (per cent, as text).
        task: the task's kind.
        true: float64 [N].
        teacher: float64 [N].
        student: float64 [N].
        seed: of the bootstrap.
    """
    found: dict[str, Any] = {"n": len(true)}
    if not len(true):
        reason = "no test image is of one of the teacher's classes"
        return dict(found, verdict="inconclusive", reason=reason)
    metric = METRICS.get(gate["metric"], MAE)
    if metric.level is not None:  # of density maps, which home has: here the count's stands for it
        metric = MAE
    errors = [errors_of(predicted, true, task) for predicted in (teacher, student)]
    margin, most = (float(gate[key].rstrip("%")) / 100 for key in ("margin", "max_increase"))
    decided = compare(metric, *errors, margin=margin, max_increase=most, seed=seed)
    numbers = {"teacher": decided.reference, "student": decided.value,
               "low": decided.low, "high": decided.high}  # fmt: skip
    for name, value in numbers.items():
        found[name] = value if value is not None and math.isfinite(value) else None
    told = observed_text(metric, decided.reference, decided.value)
    return dict(found, verdict=decided.verdict, reason=f"{told}; {decided.reason}")


class Number(NamedTuple):
    """A measured number with the ends of its interval, in words, and what to say after them."""

    text: str
    unit: str
    low: float
    high: float
    note: str = ""


def decided(number: Number, setting: str, limit: float) -> tuple[str, str]:
    """The verdict of a number against the limit that a gate's setting `max` or `min...` is."""
    is_least = setting.startswith("min")
    verdict = limit_verdict(number.low, number.high, limit, is_least=is_least)
    words = "at least" if is_least else "at most"
    return verdict, f"{number.text}, {words} {limit:g}{number.unit} wanted{number.note}"


def speedup(teacher: Any, student: Any, seed: int, note: str = "") -> Number:
    """The speed-up from the blocks of both, ms a call, neighbours in time."""
    times = PairedTimes(np.asarray(teacher, np.float64), np.asarray(student, np.float64), 1)
    ratio, low, high = ratio_interval(times, seed)
    return Number(f"{ratio:.2f}x ({low:.2f} to {high:.2f})", "x", low, high, note)


def choose(passing: list[tuple[str, float]], others: list[tuple[str, float]]) -> tuple[str, str]:
    """The fastest precision, the more precise one where two are within 2 %, and why.

    Args:
        passing: at least one (precision, ms).
        others: those that ran and did not pass.
    """
    least = min(ms for _, ms in passing)
    level = [p for p, ms in passing if ms <= TIE * least]
    best = min(level, key=ORDER.index)
    ms_of = dict(passing)
    first = "is the fastest" if ms_of[best] == least else "is as fast as any"
    told = [f"{best} {first} that passes"]
    for name, ms in sorted(passing, key=lambda c: c[1]):
        pair = f"{name} {ms:.3g} ms", f"{best} {ms_of[best]:.3g} ms"
        if name != best and name in level:
            told.append(f"{pair[0]} is within 2 % of {pair[1]}, which is more precise")
        elif name != best:
            told.append(f"{pair[0]} is slower than {pair[1]}")
    told += [f"{name} {ms:.3g} ms does not pass" for name, ms in others]
    return best, "; ".join(told)


MEGABYTE = 1e6
HOW = (
    "needs the test images: at home `kdcompile bundle --test-pack FOLDER`, copy FOLDER here, "
    "then build_engine.py --test FOLDER"
)


def pick(ran: list[dict[str, Any]], gates: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The candidate that ships, and why: the fastest of those that pass parity and accuracy.

    Where none passes for sure, one whose accuracy is undecided; where accuracy is not required,
    one that fails it.
    """
    agreeing = [c for c in ran if c["parity"] == "passed"]
    tiers = ["passed", "inconclusive"] + ([] if gates["accuracy"]["required"] else ["failed"])
    for tier in tiers:
        good = [c for c in agreeing if c["verdict"] == tier]
        if good:
            others = [(c["precision"], c["ms"]) for c in ran if c not in good]
            name, why = choose([(c["precision"], c["ms"]) for c in good], others)
            note = "" if tier == "passed" else f" (accuracy {tier})"
            return next(c for c in good if c["precision"] == name), why + note
    return None, "no candidate passes"


def verdicts(run: Build, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each gate of the bundle, decided here or with the reason why it is not.

    `limits` of `kit.json` has of each gate that a board decides its number and the setting that
    limits it.
    """
    numbers = _numbers(run, record)
    found = []
    for name, gate in run.gates.items():
        if gate is None:
            continue
        number, setting = run.kit["limits"].get(name, ("", ""))
        known = numbers.get(number, ("skipped", "not decided by this script"))
        if isinstance(known, Number):
            known = decided(known, setting, gate[setting])
        verdict, reason = known
        found.append({
            "name": name, "verdict": verdict, "required": gate["required"], "reason": reason
        })  # fmt: skip
    return found


def _numbers(run: Build, record: dict[str, Any]) -> dict[str, Any]:
    """What was measured, by name: a `Number`, or the verdict that it has already and why."""
    ran = [c for c in record["candidates"] if "engine" in c]
    chosen = next((c for c in ran if c["precision"] == record["chosen"]), None)
    judged = chosen or max(ran, key=lambda c: c["sqnr_db"], default=None)
    energy, memory = read_usage(record["usage"])
    found: dict[str, Any] = {"size_mb": ("skipped", "no engine was chosen")}
    if chosen is not None:
        size = chosen["build"]["bytes"] / MEGABYTE
        found["size_mb"] = Number(f"engine {size:.2f} MB", " MB", size, size)
    for name, usage in (("energy_mj", energy), ("memory_mb", memory)):
        if isinstance(usage, Absent):
            found[name] = "skipped", usage.reason
        elif name == "energy_mj":
            text = f"{usage.mj:.3g} mJ ({usage.low:.3g} to {usage.high:.3g})"
            found[name] = Number(text, " mJ", usage.low, usage.high)
        else:
            found[name] = Number(f"{usage.mb:.4g} MB", " MB", usage.mb, usage.mb)
    found["sqnr_db"] = found["accuracy"] = "failed", "no engine was built"
    if judged is not None:
        named = judged["precision"]
        found["sqnr_db"] = judged["parity"], f"{named}: {judged['parity_why']}"
        if run.pack is not None:
            told = judged["accuracy"]
            found["accuracy"] = told["verdict"], f"{named}: {told['reason']}"
    found["speedup"] = _speedup(run, record, chosen)
    if run.pack is None:
        found["accuracy"] = found["speedup"] = "skipped", HOW
    return found


def read_usage(usage: dict[str, Any] | None) -> tuple[Any, Any]:
    """Energy and peak memory that the readings amount to, either `Absent` where nothing tells."""
    if usage is None or "absent" in usage:
        nothing = Absent("no engine was chosen" if usage is None else usage["absent"])
        return nothing, nothing
    return energy_of(usage["power"]), memory_of(usage["before"], usage["after"])


def told(usage: dict[str, Any] | None) -> list[str]:
    """Energy and peak memory, a line each."""
    energy, memory = read_usage(usage)
    lines = []
    if isinstance(energy, Absent):
        lines.append(f"  energy: {energy.reason}")
    else:
        lines.append(f"  energy {energy.mj:.3g} mJ an inference ({energy.low:.3g} to "
                     f"{energy.high:.3g}) by {energy.source} {' + '.join(energy.judged)}, "
                     f"{energy.above_idle_mj:.3g} mJ of it above idle")  # fmt: skip
    known = not isinstance(memory, Absent)
    text = f"{memory.mb:.4g} MB, {memory.what}" if known else memory.reason
    return [*lines, f"  peak memory: {text}"]


def _speedup(run: Build, record: dict[str, Any], chosen: dict[str, Any] | None) -> Any:
    if chosen is None or run.pack is None:
        return "skipped", "no engine was chosen"
    precision = teacher_of(chosen["precision"])
    teacher = record["teachers"][precision]
    if "why" in teacher:
        return "skipped", teacher["why"]
    mode = record["judged_mode"]
    times = record["latency"][mode]
    a, b = (times[name]["blocks"] for name in (teacher["engine"], chosen["precision"]))
    return speedup(a, b, run.pack.about["seed"], f"; teacher in {precision}, mode {mode}")


def exit_code(record: dict[str, Any]) -> int:
    """3 where a required gate failed or nothing ships, 5 where one is undecided, else 0."""
    decided = {g["verdict"] for g in record["gates"] if g["required"]}
    if "failed" in decided or record["chosen"] is None:
        return 3
    return 5 if "inconclusive" in decided else 0


def table(candidates: list[dict[str, Any]], chosen: str | None) -> str:
    """The candidates, one a line, the chosen one marked."""
    lines = [f"{'':2}{'precision':<10}{'latency':>12}{'size':>11}{'SQNR':>10}  verdict"]
    for c in candidates:
        numbers = f"{'-':>12}{'-':>11}{'-':>10}"
        if "ms" in c:
            size = c["build"]["bytes"] / MEGABYTE
            numbers = f"{c['ms']:>9.3f} ms{size:>8.2f} MB{c['sqnr_db']:>7.1f} dB"
        mark = "> " if c["precision"] == chosen else "  "
        lines.append(f"{mark}{c['precision']:<10}{numbers}  {c['verdict']}: {c['why']}")
    return "\n".join(lines)


def finite(value: Any) -> Any:
    """JSON has no infinities: they become words."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def teacher_of(precision: str) -> str:
    """The teacher's precision beside a student's: what it would be deployed in without one."""
    return "fp32" if precision == "fp32" else "fp16"
