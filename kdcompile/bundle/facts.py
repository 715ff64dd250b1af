"""Words for verdicts, numbers and tables that all renderers of a report share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcompile.core.errors import EXIT_GATE, EXIT_OK
from kdcompile.core.report import GateResult, Measurement, Report

UNKNOWN = "not measured"
MARKS: Mapping[str, str] = {
    "passed": "✓",
    "failed": "✗",
    "inconclusive": "?",
    "skipped": "-",
    "pending": "…",
}
EVIDENCE: Mapping[str, str] = {
    "device": "measured on the target itself",
    "host": "measured on the machine of the build, teacher and student in one run",
    "predicted": "from the target's latency model",
}
LONGEST_LIST = 8


def tone(report: Report) -> str:
    """`good`, `bad` or `unsure`, for colour; the words say the same."""
    return {EXIT_OK: "good", EXIT_GATE: "bad"}.get(report.exit_code, "unsure")


def meaning(report: Report) -> str:
    """What the verdict allows the reader to do, in a sentence or two."""
    pending = sum(gate.verdict == "pending" for gate in report.gates)
    if report.exit_code == EXIT_GATE:
        return "A required gate failed. This student is not proven fit to ship."
    if report.exit_code != EXIT_OK:
        waits = "Gates wait for the board. " if pending else ""
        return (
            f"{waits}The measurements do not decide every required gate: too few samples, too "
            "much noise, or a gate that could not run. This is not a pass."
        )
    if pending:
        predicted = any(g.evidence == "predicted" and g.verdict == "passed" for g in report.gates)
        return (
            "Every required gate that can be decided on the machine of the build passed"
            f"{', the speed by prediction only' * predicted}. The pending gates are for the device "
            "to decide; each says how."
        )
    return "Every required gate passed, at the evidence that it accepts."


def optional(gate: GateResult) -> str:
    """The mark of a gate that does not decide the verdict."""
    return "" if gate.required else " (optional)"


def number(value: Any) -> str:
    """A value for a person: four significant digits, thousands apart, yes or no, or its text."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def amount(measurement: Measurement) -> str:
    """The value, its unit, and its interval where it has one; a rate is in per cent."""
    unit, text = "" if measurement.unit == "1" else f" {measurement.unit}", number
    if measurement.unit == "1" and is_rate(measurement.name):
        change = "crease" in measurement.name  # of a rate, in percentage points
        unit, text = (" points", lambda v: f"{100 * v:.2f}") if change else ("", percent)
    value = text(measurement.value) + unit
    if measurement.low is None or measurement.high is None:
        return value
    what = "band" if measurement.evidence == "predicted" else "95 %"
    return f"{value} ({what}: {text(measurement.low)} to {text(measurement.high)})"


def is_rate(name: str) -> bool:
    """Whether a metric of that name, as in `val_top1` or `student top1`, is a share of 1."""
    return "top1" in name


def percent(value: float) -> str:
    """A share of 1 for a person."""
    return f"{value:.2%}"


def backend(measurement: Measurement) -> str:
    """The backend with its version."""
    return f"{measurement.backend} {measurement.backend_version}".strip()


def label(key: str) -> str:
    """A JSON key as words."""
    return key.replace("_", " ")


def flat(value: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (name, text) rows; a long list is cut and says so."""
    rows: list[tuple[str, str]] = []
    for key, item in (value or {}).items():
        name = f"{prefix}{label(str(key))}"
        if isinstance(item, Mapping):
            rows += flat(item, f"{name}: ")
        elif isinstance(item, list | tuple):
            rows.append((name, _listed(item)))
        elif isinstance(item, float) and is_rate(str(key)):
            rows.append((name, percent(item)))
        else:
            rows.append((name, number(item)))
    return rows


def _listed(items: Sequence[Any]) -> str:
    if not items:
        return "none"
    if any(isinstance(item, Mapping) for item in items):
        texts = [", ".join(f"{k} {v}" for k, v in flat(item)) for item in items[:LONGEST_LIST]]
    else:
        texts = [number(item) for item in items[:LONGEST_LIST]]
    more = len(items) - LONGEST_LIST
    separator = "; " if isinstance(items[0], Mapping) else ", "
    return separator.join(texts) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Words:
    """How a report speaks of a task.

    prediction: what is predicted; parts: the key of the accuracy by parts, its title, and what a
    part is; examples: how the best and the worst image are told.
    """

    prediction: str
    parts: tuple[str, str, str]
    examples: str


WORDS: Mapping[str, Words] = {
    "counting": Words(
        "count",
        ("by_density", "By crowd density", "true count"),
        "By the student's absolute error. Colour is the density that each network saw, count per "
        "cell; teacher and student share one scale.",
    ),
    "classification": Words(
        "class",
        ("by_class", "By class", "class"),
        "By the probability that the student gives to the true class.",
    ),
    "regression": Words(
        "value", ("by_value", "By true value", "true value"), "By the student's absolute error."
    ),
    "segmentation": Words(
        "error",
        ("by_class", "By class", "class"),
        "By the student's error, 1 less the mean IoU of the classes in the image's mask. Colour is "
        "the class of each pixel; grey is not judged.",
    ),
    "detection": Words(
        "error",
        ("by_class", "By class", "class"),
        "By the student's error, 1 less the F1 score of the boxes that are sure enough, at an "
        "overlap of 0.5. Colour is the class of each box.",
    ),
    "generic": Words(
        "outputs",
        ("by_error", "By part", "part"),
        "By the error relative to the teacher's outputs.",
    ),
}
OWN_ERROR = "By the student's error, as the task computes it."
METRICS: Mapping[str, str] = {
    "mae": "mean absolute error",
    "game1": "grid average mean absolute error in 4 cells",
    "game2": "grid average mean absolute error in 16 cells",
    "game3": "grid average mean absolute error in 64 cells",
    "rmse": "root mean square error",
    "rel_error": "mean error relative to the teacher's outputs",
    "disagreement": "mean share of positions whose top-1 is not the teacher's",
    "top1": "top-1 accuracy",
    "map": "mean average precision, overlaps of 0.50 to 0.95",
    "map50": "mean average precision at an overlap of 0.50",
    "miou": "mean intersection over union",
    "pixel_accuracy": "share of pixels with the right class",
}
COUNTING: Mapping[str, Any] = {
    "kind": "counting", "metric": "mae", "is_rate": False, "classes": None,
}  # fmt: skip


def task(report: Report) -> Mapping[str, Any]:
    """What the network predicts; reports from before there was a choice are of counting."""
    return report.details.get("task") or COUNTING


def words(report: Report) -> Words:
    """The words for the report's task."""
    about = task(report)
    if about["kind"] == "generic" and is_of_records(report):  # a task of the user's
        return replace(WORDS["detection"], examples=str(about.get("examples") or OWN_ERROR))
    return WORDS[about["kind"]]


def takes_tensors(report: Report) -> bool:
    """Whether the network takes named tensors, and not photos."""
    return task(report)["kind"] == "generic" and not is_of_records(report)


def metric_text(report: Report, value: float | None) -> str:
    """A value of the task's metric: a rate in per cent."""
    if value is None or not task(report)["is_rate"]:
        return number(value)
    return percent(value)


def part_rows(report: Report) -> list[tuple[str, int, float | None, float | None]]:
    """Accuracy by parts of the images: (part, images, the teacher's metric, the student's)."""
    rows, metric = [], task(report)["metric"]
    for row in report.details.get(words(report).parts[0]) or []:
        name = row.get("class") or f"{number(row['low'])} to {number(row['high'])}"
        values = (row.get(f"{who}_{metric}") for who in ("teacher", "student"))
        rows.append((str(name), row["n"], *values))
    return rows


WORST_HEADS = ("image", "true", "student", "teacher", "student's error", "beside the teacher's")
WORST_KEYS = ("true", "student", "teacher", "difficulty")
WORST_ERRORS = ("image", "student's error", "teacher's error", "beside the teacher's")


def worst_heads(report: Report) -> tuple[str, ...]:
    """The heads of the worst images; of records there is no prediction but the error."""
    return WORST_ERRORS if is_of_records(report) else WORST_HEADS


def is_of_records(report: Report) -> bool:
    """Whether an image's prediction is its error."""
    return bool(task(report).get("of_records"))


def worst(report: Report) -> list[tuple[str, ...]]:
    """The images that the student has worst, as texts, in the order of `worst_heads`.

    The error of a class is 1 less the probability of the true one.
    """
    is_class = task(report)["kind"] == "classification"
    keys = ("student", "teacher") if is_of_records(report) else WORST_KEYS
    beside = {1.0: "the teacher is right", -1.0: "the teacher is wrong"}
    rows = []
    for row in report.details.get("worst") or []:
        values = (number(row[key]) for key in keys)
        grew = beside.get(row["grew"], "the same") if is_class else f"{row['grew']:+.4g}"
        rows.append((row["name"], *values, grew))
    return rows


def warnings(report: Report) -> list[str]:
    """What the training and the calibration warn of."""
    parts = (report.details.get(name) or {} for name in ("distill", "calibration"))
    return [text for part in parts for text in part.get("warnings") or []]


def layers(report: Report) -> list[tuple[str, str]]:
    """The slowest layers of the engine that ships, each with its time, share and precision."""
    rows = []
    for layer in report.details.get("layers") or []:
        share = "" if layer["share"] is None else f", {layer['share']:.0%}"
        precision = f", {layer['precision']}" if layer["precision"] else ""
        rows.append((layer["name"], f"{number(layer['ms'])} ms{share}{precision}"))
    return rows


def sensitivity(report: Report) -> list[tuple[str, str]]:
    """What int8 costs in each layer: the SQNR with it alone quantised, and with it left out."""
    return [
        (
            row["layer"],
            f"{row['alone_sqnr_db']:.1f} dB alone, {row['without_sqnr_db']:.1f} dB without it, "
            f"{row['macs_share']:.0%} of the MACs",
        )
        for row in report.details.get("sensitivity") or []
    ]


def progress(report: Report) -> str:
    """From where to where the training went, in a sentence; empty where that is not known."""
    distill, metric = report.details.get("distill") or {}, task(report)["metric"]
    key = f"val_{metric}"
    teacher = (report.details.get("teacher") or {}).get(key)
    values = (
        ((distill.get("initial") or {}).get(key), "{} before the first step"),
        (distill.get(key), f"{{}} at best (step {number(distill.get('best_step'))})"),
        (teacher, "the teacher's {}"),
    )
    known = [how.format(metric_text(report, v)) for v, how in values if v is not None]
    return f"Validation {METRICS.get(metric, metric)}: {', '.join(known)}." if known else ""


def candidates(report: Report) -> list[dict[str, str]]:
    """The precisions that were weighed, as texts; `chosen` marks the one that ships."""
    choice = report.details.get("choice") or {}
    return [
        {
            "precision": row["precision"],
            "latency": number(row.get("latency_ms")),
            "evidence": row.get("evidence") or "",
            "metric": metric_text(report, row.get("val_metric")),
            "passed": number(row["passed"]) if row.get("passed") is not None else "not judged",
            "why": row.get("why") or "",
            "chosen": "yes" if row["precision"] == choice.get("precision") else "",
        }
        for row in choice.get("candidates") or []
    ]


def predictions(report: Report) -> list[Mapping[str, Any]]:
    """The test images for which both networks gave a prediction."""
    rows = report.details.get("predictions") or []
    return [
        row for row in rows if row.get("teacher") is not None and row.get("student") is not None
    ]


def scope(report: Report) -> str:
    """On how many test images the verdict rests."""
    count = len(report.details.get("predictions") or [])
    total, limit = report.details.get("test_photos"), report.details.get("max_test")
    if not count:
        return f"Accuracy: {UNKNOWN}."
    copies = report.details.get("test_copies") or 0
    once = f", each once: {copies} are copies of others" if copies else ""
    if limit is None or total == count + copies:
        return f"Judged on all {count} test images{once}."
    whole = "" if total is None else f" of {total}"
    return f"Judged on {count}{whole} test images only (data.max_test = {limit}){once}."
