"""The paired table: a row a metric, with teacher, student in fp32 and the precision that ships."""

from collections.abc import Iterable
from dataclasses import dataclass

from kdcompile.bundle import facts, headline
from kdcompile.core.report import Measurement, Report

WHO = ("teacher", "student")
FP32 = "fp32"
UNPAIRED = ("latency", "size", "speed-up")  # which depend on where, and have rows of their own


@dataclass(frozen=True)
class Cell:
    """A value, its interval as small text, and the evidence where it is not the row's."""

    value: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """A metric, what it was measured on, and the cells in the order of `heads`."""

    metric: str
    basis: str
    cells: tuple[Cell, ...]


def heads(report: Report) -> tuple[str, ...]:
    """The columns after the metric: both networks, and the student as it ships."""
    ships = _ships(report)
    students = ("student fp32",) if ships in ("", FP32) else ("student fp32", f"student {ships}")
    return ("teacher", *students)


def rows(report: Report) -> list[Row]:
    """Every metric that both networks have, then latency on the target, size and work."""
    names = dict.fromkeys(_metric(m.name) for m in report.measurements if _metric(m.name))
    found = [_row(report, name) for name in names]
    found += _latencies(report)
    found += [_sizes(report), *_costs(report)]
    return [row for row in found if row is not None and row.cells[0].value]


def _metric(name: str) -> str:
    """`mae` of `teacher mae`; empty of what is no metric of a network."""
    who, _, metric = name.partition(" ")
    return metric if who in WHO and metric and metric not in UNPAIRED else ""


def _ships(report: Report) -> str:
    return str((report.details.get("choice") or {}).get("precision") or "")


def _row(report: Report, metric: str) -> Row | None:
    numbers = [headline.last(report, f"teacher {metric}", None)]
    numbers += [_of(report, f"student {metric}", p) for p in (FP32, _ships(report))]
    numbers = numbers[: len(heads(report))]
    if numbers[0] is None or not any(numbers[1:]):
        return None
    label = headline.LABELS.get(metric, metric.upper() if metric in facts.METRICS else metric)
    return Row(label, _basis(numbers), tuple(map(_cell, numbers)))


def _of(report: Report, name: str, precision: str) -> Measurement | None:
    found = [m for m in report.measurements if m.name == name and m.precision == precision]
    known = [m for m in found if m.evidence == "device"] or found
    return known[-1] if known else None


def _cell(found: Measurement | None) -> Cell:
    if found is None:
        return Cell()
    value, _, interval = facts.amount(found).partition(" (")
    return Cell(value, interval.rstrip(")"))


def _basis(numbers: Iterable[Measurement | None]) -> str:
    """The evidence, and how many images."""
    known = [m for m in numbers if m is not None]
    evidence = " and ".join(dict.fromkeys(m.evidence for m in known))
    count = next((m.n for m in known if m.n is not None), None)
    return evidence if count is None else f"{evidence}, n = {facts.number(count)}"


def _latencies(report: Report) -> list[Row]:
    """On the target, then on the machine of the build where that is another one."""
    found = []
    for evidence, where in (("device", "target"), ("predicted", "target"), ("host", "build")):
        numbers = [m for m in report.measurements if m.evidence == evidence]
        students = {m.precision: m for m in numbers if m.name == "student latency"}
        teachers = [m for m in numbers if m.name == "teacher latency"]
        if not teachers or not students:
            continue
        own = [m for m in teachers if m.mode.endswith(f"beside {_ships(report)}")]
        teacher = (own or teachers)[-1]
        shown = [teacher, students.get(FP32), students.get(_ships(report))]
        cells = tuple(_cell(m) for m in shown[: len(heads(report))])
        what = "Latency on the target" if where == "target" else "Latency on the build machine"
        basis = f"{evidence}, teacher in {teacher.precision}" if teacher.precision else evidence
        found.append(Row(what, basis, cells))
    return found


def _sizes(report: Report) -> Row | None:
    sizes = {m.mode: Cell(facts.amount(m)) for m in report.measurements if m.name == "size"}
    costs = report.details.get("costs")
    if not sizes or not costs:
        return None
    ships = Cell(headline.megabytes(costs["student"]["bytes"]))
    cells = (Cell(headline.megabytes(costs["teacher"]["bytes"])),
             sizes.get("student.onnx", Cell()), ships)  # fmt: skip
    return Row("Size", "host, as ONNX", cells[: len(heads(report))])


def _costs(report: Report) -> list[Row]:
    found = []
    for what in ("parameters", "multiply-adds"):
        texts = headline.cost(report, what)
        if texts is not None:
            both = Cell(texts[0]), *[Cell(texts[1])] * (len(heads(report)) - 1)
            found.append(Row(what.capitalize(), "counted", both))
    return found
