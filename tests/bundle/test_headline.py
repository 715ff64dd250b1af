"""The report's first table: teacher and student on the target, with the thresholds."""

import re
from dataclasses import replace

import pytest

from kdcompile.bundle import facts, headline, render
from kdcompile.bundle.report.page import html
from kdcompile.bundle.text import WIDTH, text_summary
from kdcompile.core.report import GateResult, Measurement

HOST = {
    "teacher_ms": 9.0, "student_ms": 2.0, "teacher_precision": "fp32", "precision": "fp32",
    "ratio": 4.5, "low": 4.4, "high": 4.6,
}  # fmt: skip
SPEED = {
    "evidence": "predicted", "teacher_ms": 0.5664, "student_ms": 0.2142, "ratio": 2.644,
    "low": 2.0, "high": 3.49, "teacher_precision": "fp16", "precision": "int8",
    "validated": False, "host": HOST,
}  # fmt: skip
COSTS = {
    "teacher": {"macs": 4_400_000_000, "params": 331_000, "bytes": 1_330_000},
    "student": {"macs": 292_683_776, "params": 21_041, "bytes": 44_000},
}
LIMITS = "mae at most 100% over the teacher's, 95 % bound within 120%"


def gate(name, verdict, threshold, *numbers, required=True, evidence="host"):
    return GateResult(name, verdict, evidence, required, threshold, "seen", "because", numbers)


@pytest.fixture
def report(a_report):
    """`report(**details)`: of a build for a Jetson, on another machine."""

    def make(*more, speed=SPEED, **details):
        increase = Measurement("mae increase", 0.1, "count", "host")
        gates = (
            gate("accuracy", "passed", LIMITS, increase),
            gate("accuracy@device", "pending", LIMITS, evidence="device"),
            gate("speedup", "passed", "at least 1.5x", evidence="predicted"),
            gate("speedup@device", "pending", "at least 1.5x", evidence="device"),
            gate("size_mb", "failed", "at most 0.01 MB", required=False),
        )
        numbers = (
            Measurement("teacher mae", 0.25, "count", "host", precision="fp32"),
            Measurement("student mae", 9.0, "count", "host", precision="fp32"),
            Measurement("student mae", 0.3, "count", "host", precision="int8"),
        )
        made = a_report(costs=COSTS, target_speed=speed, **details)
        return replace(made, gates=gates, measurements=(*numbers, *more))

    return make


def test_teacher_student_and_threshold_on_the_target_come_first(report):
    assert headline.rows(report()) == [
        ("target latency, predicted", "0.5664 ms", "0.2142 ms", "2.64x faster (2.00 to 3.49)",
         "at least 1.5x", "passed"),
        ("precision", "fp16", "int8", "", "", ""),
        ("MAE", "0.25", "0.3", "+20.0%", "at most +100%", "passed"),
        ("size", "1.33 MB", "0.044 MB", "30.2x smaller", "at most 0.01 MB", "failed (optional)"),
        ("parameters", "331 k", "21 k", "15.7x smaller", "", ""),
        ("multiply-adds", "4.4 G", "293 M", "15x smaller", "", ""),
    ]  # fmt: skip


def test_a_whole_frame_is_told_as_measured_or_by_its_predicted_parts(report):
    def shown(*gates, numbers=()):
        made = report(*numbers)
        found = headline.rows(replace(made, gates=(*made.gates, *gates)))
        return [row for row in found if row[0].startswith("whole frame")]

    limit = "at most 33 ms a frame"
    waiting = gate("frame_ms@device", "pending", limit, evidence="device")
    predicted = gate("frame_ms", "skipped", limit, required=False, evidence="predicted")
    here = gate("frame_ms", "passed", limit)
    assert shown() == []
    assert shown(waiting, predicted) == [
        ("whole frame, predicted parts", "", "seen", "", limit, "pending")
    ]
    failed = replace(predicted, verdict="failed", required=True)
    assert shown(waiting, failed)[0][-1] == "failed"
    number = Measurement("whole frame", 12.0, "ms", "host")
    assert shown(here, numbers=[number]) == [("whole frame", "", "12 ms", "", limit, "passed")]


def test_the_hosts_ratio_is_information_below(report):
    predicted, host = headline.notes(report())
    assert predicted.startswith("Target latency is predicted by the model of jetson, with its band")
    assert "not validated" in predicted
    assert "9 ms and 2 ms in fp32, 4.50x. It decides nothing of the target." in host


def test_it_is_the_first_table_of_every_report(report, tmp_path):
    made = report()
    text, page, marked = text_summary(made), html(made, tmp_path, []), render.markdown(made)
    assert text.splitlines()[2].split("  ")[1].strip() == "quantity"
    assert "0.5664 ms" in text.splitlines()[3]
    page = page.replace("band ", "").replace("\N{NO-BREAK SPACE}", " ")
    for told, table, gates in (
        (page, 'id="compared"', 'id="gates"'), (marked, "| quantity", "## Gates"),
    ):  # fmt: skip
        first = told[told.index(table) : told.index(gates)]
        assert "2.64x faster (2.00 to 3.49)" in first
        assert "at least 1.5x" in first
        assert "0.25" in first


def test_a_terminal_of_80_columns_cuts_no_word(report):
    made = report()
    long = gate("strata", "passed", LIMITS)
    long = replace(long, reason=" ".join(["a reason that goes on for quite a while"] * 9))
    lines = text_summary(replace(made, gates=(*made.gates, long))).splitlines()
    assert max(map(len, lines[1:])) <= WIDTH
    assert " ".join(" ".join(lines).split()).count("for quite a while") == 9


def test_a_devices_numbers_replace_the_predicted_ones(report):
    on_board = Measurement("student mae", 0.5, "count", "device", precision="fp16")
    speed = {**SPEED, "evidence": "device", "ratio": 3.0, "low": 2.9, "high": 3.1}
    made = report(on_board, speed=speed)
    decided = gate("speedup@device", "failed", "at least 4x", evidence="device")
    made = replace(made, gates=(*made.gates[:2], decided))
    rows = headline.rows(made)
    assert rows[0] == ("target latency", "0.5664 ms", "0.2142 ms", "3.00x faster (2.90 to 3.10)",
                       "at least 4x", "failed")  # fmt: skip
    assert rows[2][2:4] == ("0.5", "+100.0%")
    assert headline.notes(made)[0] == "Target latency was measured on the device."


def test_what_nothing_predicts_is_not_taken_from_the_host(report):
    made = report(speed={"evidence": "predicted", "host": HOST})
    assert headline.rows(made)[0][:4] == ("target latency", "no estimate", "no estimate", "")
    assert "no estimate" in headline.notes(made)[0]


def test_an_older_report_has_no_such_table(a_report, tmp_path):
    old = replace(a_report(), measurements=())
    assert headline.rows(old) == []
    assert 'id="compared"' not in html(old, tmp_path, [])
    assert "Teacher and student" not in render.markdown(old)


def test_a_rate_is_one_number_in_every_place(report, tmp_path):
    task = {"kind": "classification", "metric": "top1", "is_rate": True, "classes": ["a", "b"]}
    low = {"low": 0.2, "high": 0.3}
    numbers = (
        Measurement("teacher top1", 0.9, "1", "host"),
        Measurement("student top1", 0.2333, "1", "host", precision="int8", **low),
        Measurement("top1 decrease", 0.6667, "1", "host", low=0.6, high=0.7),
    )
    increase = Measurement("top1 decrease", 0.6667, "1", "host")
    threshold = "top1 at most 5 points under the teacher's, 95 % bound within 8 points"
    made = report(
        *numbers, task=task, by_density=None, predictions=[], teacher={"val_top1": 0.9},
        distill={"val_top1": 0.2333, "best_step": 1},
        choice={"precision": "int8", "metric": "top1", "teacher_metric": 0.9, "limit": 0.85,
                "candidates": []},
    )  # fmt: skip
    made = replace(made, gates=(gate("accuracy", "failed", threshold, increase),))
    row = headline.rows(made)[2]
    assert row == ("top-1 accuracy", "90.00%", "23.33%", "-66.67 points", "at most -5 points",
                   "failed")  # fmt: skip
    told = render.markdown(made) + re.sub("<[^>]+>", " ", html(made, tmp_path, []))
    assert "0.2333" not in told
    assert "0.85" not in told.replace("0.854", "")
    assert "| 23.33% (95 %: 20.00% to 30.00%) |" in told
    assert "66.67 points (95 %: 60.00 to 70.00)" in told
    assert facts.amount(Measurement("max relative error", 0.04, "1", "host")) == "0.04"


def test_a_gates_name_is_not_broken(report, tmp_path):
    page = html(report(), tmp_path, [])
    assert "overflow-wrap: anywhere" not in page[page.index("table {") : page.index("</style>")]
