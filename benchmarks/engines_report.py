"""The tables of the engine benchmark, from its file alone, and what they say of the promises."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distill_report import Table, markdown
from engines_files import read

from kdcompile.tasks.metric import METRICS, Metric

WITHIN = 0.03  # of back-to-back enqueueing: what the runner may add
LOSS = 0.01  # of the fp32 engine's metric: what an int8 engine may lose
HALF = 0.5  # of the multiply-accumulates: what makes an int8 engine
RESAMPLES = 4000
WHO, ORDER = ("teacher", "student"), ("fp32", "bf16", "fp16", "fp8", "int8", "mixed")
Record = Mapping[str, Any]


def report(path: Path) -> str:
    """Markdown of every record of the file."""
    parts = []
    for name, record in read(path).items():
        parts.append(f"## {name}")
        parts += [f"### {title}\n\n{text}" for title, text in _sections(record) if text]
    return "\n\n".join(parts) + "\n"


def _sections(record: Record) -> Iterator[tuple[str, str]]:
    engines = {n: e for n, e in _ordered(record.get("engines", {})) if "refused" not in e}
    yield "Conditions", _list(conditions(record.get("conditions", {})))
    yield "Engines", _table(engine_table(record, engines))
    yield "Latency in ms, p50 / p90", _table(latency_table(record))
    title = "Runner against back-to-back enqueueing, medians' ratio with 95 % over the turns"
    yield title, _table(runner_table(record))
    yield "Not built", _list(refused(record))
    yield "What follows", _list(findings(record, engines))
    yield "Builds", _builds(record.get("builds", {}))


def _ordered(named: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By network, and there from the widest precision to the narrowest."""
    return sorted(
        named.items(),
        key=lambda one: (WHO.index(one[0].split()[0]), ORDER.index(one[0].split()[1])),
    )


def conditions(known: Record) -> list[str]:
    """What the numbers depend on, in words."""
    if not known:
        return []
    about, size = known["about"], "x".join(map(str, known["profile"][1]))
    gpu = about["gpu"] or {"name": "no GPU"}
    return [
        f"place {known['place']}: {about['backend']} {about['backend_version']}, {gpu['name']}, "
        f"Python {about['python']}, {about['platform']}; evidence `{known['evidence']}` of "
        f"{known['target']}",
        f"host: {known['host']['cpu']}, {known['host']['usable_cores']} cores, ONNX Runtime "
        f"{known['host']['libraries'].get('onnxruntime')}",
        f"{known['spec']} with {', '.join(known['sets']) or 'its spec'}; "
        f"{', '.join(known['weights'])}; commit {known['commit']}",
        f"batch 1, timed at {size}; {known['turns']} turns of {known['iterations']} inferences, "
        "all engines loaded together, every other turn backwards",
        f"{known['test_photos']} test photos by each engine, {known['compared_photos']} of them "
        f"compared with ONNX Runtime; teacher calibrated on {known['teacher_images']}",
    ]


def engine_table(record: Record, engines: Mapping[str, Record]) -> Table:
    """Size, share in int8, accuracy and parity."""
    metric = metric_of(record)
    table: Table = [("engine", "MB", "int8 MACs", metric.name, "worse than fp32, 95 %",
                     "dB of fp32", "rel. error", "dB of same file", "rel. error")]  # fmt: skip
    for name, found in engines.items():
        share = f"{found['int8_macs_share']:.0%} ({found['int8_basis']})"
        value = value_of(found, metric)
        told = "not finite" if value is None else metric.text(value)
        loss = loss_of(engines, name, metric)
        worse = "" if loss is None else f"{loss[0]:+.2%} ({loss[1]:+.2%} to {loss[2]:+.2%})"
        alike = [c for k in ("parity_fp32", "parity_same_file") for c in _parity(found[k])]
        size = f"{found['engine']['bytes'] / 1e6:.3f}"
        table.append((name, size, share, told, worse, *alike))
    return table


def metric_of(record: Record) -> Metric:
    """The metric that the task's accuracy gate judges."""
    return METRICS[record.get("conditions", {}).get("metric", "mae")]


def value_of(found: Record, metric: Metric) -> float | None:
    """The metric of an engine; None where an output is not finite."""
    value: float | None = found["accuracy"].get(metric.name)
    return value


def loss_of(
    engines: Mapping[str, Record], name: str, metric: Metric
) -> tuple[float, float, float] | None:
    """How much worse than the same network's fp32 engine, as a share of its metric, and 95 %.

    The interval is a percentile bootstrap over photos, each drawn with both of its errors. In
    points, not a share, for a metric that is a rate. None where either is not known.
    """
    base = engines.get(f"{name.split()[0]} fp32")
    if base is None or any("errors" not in e["accuracy"] for e in (base, engines[name])):
        return None
    a, b = (np.array(e["accuracy"]["errors"]) for e in (engines[name], base))
    draws = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))

    def worse(one: Any, other: Any) -> Any:
        scale = 1.0 if metric.points else np.maximum(other, 1e-30)
        return metric.worse_by(one, other) / scale

    low, high = np.quantile(worse(metric.of(a[draws]), metric.of(b[draws])), [0.025, 0.975])
    return float(worse(metric(a), metric(b))), float(low), float(high)


def _parity(found: Record | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    if not found.get("finite", True):
        return "not finite", ""
    return f"{found['sqnr_db']:.1f}", f"{found['max_rel_error']:.2g}"


def latency_table(record: Record) -> Table:
    """Every kind of every engine, and the judged kind's share of fp16's."""
    timed = _timed(record)
    kinds = _kinds(timed)
    table: Table = [("engine", *kinds, "of fp16")]
    for name, found in timed.items():
        cells = [f"{found[k]['p50_ms']:.4g} / {found[k]['p90_ms']:.4g}" for k in kinds]
        share = of_fp16(timed, name)
        table.append((name, *cells, "" if share is None else f"{share:.3f}"))
    return table


def _timed(record: Record) -> dict[str, Any]:
    return dict(_ordered(record.get("latency", {}).get("engines", {})))


def _kinds(timed: Mapping[str, Any]) -> list[str]:
    order = ("graph", "device", "enqueue", "enqueue_graph", "end_to_end")
    first: Mapping[str, Any] = next(iter(timed.values()), {})
    return [kind for kind in order if kind in first]


def of_fp16(timed: Mapping[str, Any], name: str) -> float | None:
    """The judged latency of an engine over that of its network's fp16 engine."""
    half = timed.get(f"{name.split()[0]} fp16")
    if half is None:
        return None
    judged = _kinds(timed)[0]
    return float(timed[name][judged]["p50_ms"] / half[judged]["p50_ms"])


def runner_table(record: Record) -> Table:
    """Each ratio with its interval; empty where the backend enqueues nothing."""
    timed = _timed(record)
    names = list(dict.fromkeys(ratio for found in timed.values() for ratio in found["ratios"]))
    if not names:
        return []
    table: Table = [("engine", *(name.replace("_", " ") for name in names), "within 3 %")]
    for name, found in timed.items():
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*found["ratios"][ratio]) for ratio in names]
        table.append((name, *cells, "yes" if adds_nothing(found["ratios"]) else "NO"))
    return table


def adds_nothing(ratios: Mapping[str, Sequence[float]]) -> bool:
    """Whether the judged way takes at most 3 % longer than the same engine enqueued."""
    return next(iter(ratios.values()))[0] <= 1 + WITHIN


def refused(record: Record) -> list[str]:
    """The engines that there are not, with the reasons."""
    every = _ordered(record.get("engines", {}))
    return [f"{name}: {found['refused']}" for name, found in every if "refused" in found]


def findings(record: Record, engines: Mapping[str, Record]) -> list[str]:
    """The promises of int8, of the choice and of the runner, held against the numbers."""
    timed, metric = _timed(record), metric_of(record)
    found, paying = [], []
    for name, engine in engines.items():
        loss, share = loss_of(engines, name, metric), of_fp16(timed, name) if timed else None
        if engine["int8_macs_share"] < HALF:
            continue
        keeps = loss is not None and loss[0] <= LOSS
        if keeps and share is not None and share < 1:
            paying.append(name)
        worse = "no metric" if loss is None else f"{metric.name} {loss[0]:+.2%} against fp32"
        speed = "" if share is None else f", {share:.3f} of fp16's latency"
        found.append(
            f"{name}: {engine['int8_macs_share']:.0%} of its MACs in int8, {worse} "
            f"(at most +1 %: {_met(keeps)}){speed}"
        )
    found += _choice(record, paying)
    ratios = [one["ratios"] for one in timed.values() if one["ratios"]]
    if ratios:
        good = sum(adds_nothing(one) for one in ratios)
        found.append(f"runner within 3 % of enqueueing: {good} of {len(ratios)} engines")
    return found


def _choice(record: Record, paying: Sequence[str]) -> list[str]:
    """What `auto` chose, and whether that fits what was measured here."""
    choice = record.get("choice")
    if not choice:
        return []
    told = [f"`auto` chose {choice['precision']} ({choice['basis']}): {choice['why']}"]
    if not _timed(record):
        return told
    if any(name.startswith("student ") for name in paying):
        told.append(f"int8 engines that keep 1 % and beat fp16: {', '.join(paying)}")
    else:
        name = f"student {choice['precision']}"
        share, faster = _share(record, name), (of_fp16(_timed(record), name) or 1.0) < 1
        fits = choice["precision"] == "fp16" or (share < HALF and faster)
        told.append(
            "no student engine with half its MACs in int8 keeps 1 % and is faster than fp16; "
            f"`auto` must choose fp16, or what is faster without that: {_met(fits)}"
        )
    return told


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def _share(record: Record, name: str) -> float:
    return float(record["engines"].get(name, {}).get("int8_macs_share", 0.0))


def _builds(builds: Mapping[str, Record]) -> str:
    return "\n\n".join(_build(found) for found in builds.values())


def _build(found: Record) -> str:
    least, code = f"{found['least']:g}", found["exit_code"]
    head = f"`gates.speedup.min={least}`: exit {code}, {found['seconds']:.0f} s"
    if "verdict" not in found:
        return f"{head}, no report"
    rows = [[g["name"], g["verdict"], g["evidence"], g["threshold"], g["observed"]]
            for g in found["gates"]]  # fmt: skip
    table: Table = [("gate", "verdict", "evidence", "threshold", "observed"), *rows]
    choice = found["choice"]
    return (
        f"{head}, {found['verdict']}; {choice['precision']} ({choice['basis']}): {choice['why']}"
        f"\n\n{markdown(table)}"
    )


def _table(table: Table) -> str:
    return markdown(table) if len(table) > 1 else ""


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
