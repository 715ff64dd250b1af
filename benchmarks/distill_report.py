"""The tables and the plot of the distillation benchmark, from its files alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distill_arms import STARTS, TERMS
from distill_files import Results, Row, key

LEVELS = (85.0, 78.0)
CONFIDENCE = 0.95
COLOURS = {"skt": "#0f7b6c", "none": "#c98a1b", "kd": "#3b82c4", "intra": "#8a63c9",
           "inter": "#c2577f", "unlabelled": "#5c5470"}  # fmt: skip
Records = Mapping[str, Mapping[str, Any]]
Table = list[Sequence[str]]


def report(results: Results) -> str:
    """Write `distill.md` and `distill.png` beside the results; the text of the first."""
    rows, records = results.rows(), results.records()
    parts: list[str] = []
    for card in dict.fromkeys(row["card"] for row in rows):
        own = [row for row in rows if row["card"] == card]
        parts.append(f"## {card}")
        for title, table in _tables(own, records):
            if len(table) > 1:
                parts.append(f"### {title}\n\n{markdown(table)}")
    text = "\n\n".join(parts) + "\n"
    (results.folder / "distill.md").write_text(text, encoding="utf-8")
    plot(rows, records, results.folder / "distill.png")
    return text


def _tables(rows: Sequence[Row], records: Records) -> Iterator[tuple[str, Table]]:
    yield "Steps a second", speed_table(rows, records)
    yield "Where a step's time goes, each alone", parts_table(rows, records)
    yield "Result", result_table(rows, records)
    yield "Paired difference of the test MAE, 95 % interval over the images", pairs(rows, records)
    yield "Minutes to reach a MAE", reach_table(rows, records)
    yield "Ablation", ablation_table(rows)


def markdown(table: Table) -> str:
    """A table with aligned columns; its first row is the head."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def speed_table(rows: Sequence[Row], records: Records) -> Table:
    """Medians and spread over the turns, and how a step ran."""
    table: Table = [("training", "steps/s", "slowest to fastest", "ms", "runs as", "ms by mode")]
    for row, record in _with_records(rows, records, "speed "):
        rates, execution = record["rates"], record["stage"]["execution"]
        modes = [f"{mode} {ms:.2f}" for mode, ms in execution["ms"].items()]
        modes += [f"{mode} failed" for mode in execution["failed"]]
        spread = f"{min(rates):.3g} to {max(rates):.3g}"
        ms = f"{1e3 / float(row['steps_per_s']):.2f}"
        how = f"{execution['mode']} ({execution['why']})"
        name = row["arm"].removeprefix("speed ")
        table.append((name, row["steps_per_s"], spread, ms, how, ", ".join(modes)))
    return table


def parts_table(rows: Sequence[Row], records: Records) -> Table:
    """Milliseconds of crops and teacher by themselves."""
    table: Table = [("training", "part", "ms")]
    for row, record in _with_records(rows, records, "speed "):
        name = row["arm"].removeprefix("speed ")
        table += [(name, part, f"{ms:.3f}") for part, ms in record["parts_ms"].items()]
    return table


def result_table(rows: Sequence[Row], records: Records) -> Table:
    """The teacher and every seed of both arms."""
    head = ("arm", "seed", "steps", "minutes", "steps/s", "before", "val MAE", "test MAE", "RMSE",
            "of teacher")  # fmt: skip
    table: Table = [head]
    teacher = next((float(r["test_mae"]) for r in rows if r["arm"] == "teacher"), None)
    for row in rows:
        if row["arm"] not in ("teacher", "skt", "none"):
            continue
        record = records[_key(row)]
        before = f"{record['curve'][0]['val_mae']:.4g}" if "curve" in record else ""
        ratio = "" if teacher is None else f"{float(row['test_mae']) / teacher:.3f}"
        cells = [row[n] for n in ("arm", "seed", "steps", "minutes", "steps_per_s")]
        scores = [row["val_mae"], row["test_mae"], f"{record['test']['rmse']:.4g}"]
        table.append((*cells, before, *scores, ratio))
    return table


def pairs(rows: Sequence[Row], records: Records) -> Table:
    """skt - none and skt - teacher by seed, and with the errors averaged over the seeds."""
    errors = {
        (row["arm"], row["seed"]): np.array(records[_key(row)]["test_errors"])
        for row in rows
        if row["arm"] in ("skt", "none", "teacher")
    }
    seeds = [seed for arm, seed in errors if arm == "skt" and ("none", seed) in errors]
    groups = [(seed, [seed]) for seed in seeds]
    if len(seeds) > 1:
        groups.append(("mean of " + ", ".join(seeds), seeds))
    table: Table = [("seed", "difference", "MAE", "low", "high")]
    for name, group in groups:
        skt = np.mean([errors["skt", seed] for seed in group], axis=0)
        others = {"none": np.mean([errors["none", seed] for seed in group], axis=0)}
        if ("teacher", "0") in errors:
            others["teacher"] = errors["teacher", "0"]
        for other, theirs in others.items():
            low, high = difference(skt, theirs)
            cells = (f"{value:+.2f}" for value in (skt.mean() - theirs.mean(), low, high))
            table.append((name, f"skt - {other}", *cells))
    return table


def difference(ours: Any, theirs: Any) -> tuple[float, float]:
    """The interval of the mean of `ours` - `theirs`, image by image."""
    from kdcompile.stats.bootstrap import interval

    def statistic(a: Any, b: Any, axis: int) -> Any:
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    return interval((ours, theirs), statistic, confidence=CONFIDENCE, seed=0)


def reach_table(rows: Sequence[Row], records: Records) -> Table:
    """When the validated student first was as good as each level."""
    names = {"val_mae": "val", "test_mae": "test"}
    head = [f"{name} {level:g}" for name in names.values() for level in LEVELS]
    table: Table = [("arm", "seed", *head)]
    for row in rows:
        if row["arm"] in ("skt", "none"):
            curve = records[_key(row)]["curve"]
            times = [reached(curve, name, level) for name in names for level in LEVELS]
            cells = ("never" if time is None else f"{time:.2f}" for time in times)
            table.append((row["arm"], row["seed"], *cells))
    return table


def reached(curve: Sequence[Mapping[str, float]], name: str, level: float) -> float | None:
    """Minutes of training until the first validation at or below a level, or None."""
    return next((p["minutes"] for p in curve if p.get(name, np.inf) <= level), None)


def ablation_table(rows: Sequence[Row]) -> Table:
    """Both starts beside each other, a line for each set of terms."""
    by = {row["arm"]: row for row in rows}
    head = [f"{start} {name}" for start in STARTS for name in ("val MAE", "test MAE", "minutes")]
    table: Table = [("terms", *head)]
    timed = [arm.partition(" ")[2] for arm in by if arm.startswith(STARTS) and arm.endswith(" s")]
    for terms in dict.fromkeys((*TERMS, *timed)):
        found = [by.get(f"{start} {terms}") for start in STARTS]
        cells = [
            "" if row is None else row[name]
            for row in found
            for name in ("val_mae", "test_mae", "minutes")
        ]
        if any(found):
            table.append((terms, *cells))
    return table


def plot(rows: Sequence[Row], records: Records, path: Path) -> None:
    """Validation MAE over minutes: the result's arms, and the ablation's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(10, 5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for row, record in _with_records(rows, records, ""):
        if "curve" not in record:
            continue
        name, _, limit = row["arm"].partition(", ")  # of equal time has one
        start, _, terms = name.rpartition(" ")
        points = [(p["minutes"], p["val_mae"]) for p in record["curve"]]
        line = ":" if start == "random" else "--" if limit else "-"
        axes[int(start != "")].plot(
            *zip(*points, strict=True), color=COLOURS[terms], linewidth=1.2,
            linestyle=line, label=f"{row['arm']}, seed {row['seed']}",
        )  # fmt: skip
    for axis, title in zip(axes, ("Result", "Ablation"), strict=True):
        axis.set(title=title, xlabel="minutes of training", ylabel="validation MAE", yscale="log")
        axis.grid(visible=True, which="both", linewidth=0.4, alpha=0.5)
        for kind in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            kind(ScalarFormatter())
        if axis.get_lines():
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.savefig(path)


def _key(row: Row) -> str:
    return key(row["arm"], row["seed"], row["card"])


def _with_records(
    rows: Sequence[Row], records: Records, prefix: str
) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    return ((row, records[_key(row)]) for row in rows if row["arm"].startswith(prefix))
