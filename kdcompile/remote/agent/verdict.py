"""What ships, the gates' verdicts, and how both are told."""

from __future__ import annotations

import math
from typing import Any

from kdcompile.remote.agent.candidates import Build, teacher_of
from kdcompile.remote.agent.judging import Number, choose, decided, speedup
from kdcompile.remote.usage import Absent, energy_of, memory_of

MEGABYTE = 1e6
HOW = (
    "needs the test photos: at home `kdcompile bundle --test-pack FOLDER`, copy FOLDER here, "
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
