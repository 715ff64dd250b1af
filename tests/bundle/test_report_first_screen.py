"""What a report says first, its paired table, and bundles side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdcompile.bundle import facts
from kdcompile.bundle.report import charts, compared, paired
from kdcompile.bundle.report.tiles import tiles, what_is_open
from kdcompile.bundle.text import WIDTH, table, text_summary
from kdcompile.core.errors import KDError
from kdcompile.core.report import Measurement, Report

FIXTURE = Path(__file__).parents[1] / "fixtures" / "report_cells.json"
COMMAND = "kdcompile build --target jetson-orin-nano-8gb --via ssh://user@board"


@pytest.fixture(scope="module")
def report():
    return Report.from_json(json.loads(FIXTURE.read_text())["report"])


def decided(report, **verdicts):
    """The report with other verdicts of some gates, and `passed` of the others."""
    gates = tuple(replace(g, verdict=verdicts.get(g.name, "passed")) for g in report.gates)
    return replace(report, gates=gates)


def test_four_tiles_tell_accuracy_latency_size_and_work(report):
    accuracy, latency, size, work = tiles(report)
    assert (accuracy.title, accuracy.teacher, accuracy.student) == ("mAP50", "0.878", "0.8682")
    assert accuracy.change == "-1.1%; map50 decrease 0.0099 (95 %: 0.0000 to 0.0211)"
    assert (accuracy.evidence, accuracy.verdict) == ("host", "passed")
    assert (latency.student, latency.evidence) == ("0.4554 ms", "predicted")
    assert latency.change == "3.97x faster (band 3.11 to 5.07)"
    assert (size.student, size.gate) == ("0.325 MB", "at most 1.5 MB")
    assert (work.title, work.student, work.evidence) == ("Multiply-adds", "997 M", "")


def test_a_model_that_nothing_validates_is_said_to_be_so(report):
    speed = {**report.details["target_speed"], "validated": False}
    made = replace(report, details={**report.details, "target_speed": speed})
    assert tiles(made)[1].note == "fp16 → mixed; the model is not validated for such a network"
    assert tiles(report)[1].note == "fp16 → mixed"


def test_energy_comes_before_memory_before_multiply_adds(report):
    memory = Measurement("peak memory", 41.5, "MB", "device", mode="of the process")
    energy = Measurement("energy of an inference", 2.5, "mJ", "device")
    told = tiles(replace(report, measurements=(*report.measurements, memory)))[3]
    assert (told.title, told.student, told.evidence) == ("Peak memory", "41.5 MB", "device")
    both = tiles(replace(report, measurements=(*report.measurements, memory, energy)))[3]
    assert (both.title, both.student) == ("Energy of an inference", "2.5 mJ")


def test_what_is_open_is_the_worst_first_with_one_command(report):
    waits = what_is_open(report)
    assert (waits.sentence, waits.command) == ("3 gates wait for the device.", COMMAND)
    assert all(gate.verdict == "pending" for gate in waits.gates)
    failed = what_is_open(decided(report, accuracy="failed", parity="inconclusive"))
    assert (failed.sentence, failed.command) == ("1 gate failed: do not ship.", "")
    assert [gate.name for gate in failed.gates] == ["accuracy"]
    unsure = what_is_open(decided(report, parity="inconclusive", speedup="skipped"))
    assert unsure.sentence == "2 gates could not decide."
    assert what_is_open(decided(report)).gates == ()


def test_a_metric_is_a_row_of_teacher_fp32_and_what_ships(report):
    assert paired.heads(report) == ("teacher", "student fp32", "student mixed")
    rows = {row.metric: row for row in paired.rows(report)}
    assert [c.value for c in rows["mAP50"].cells] == ["0.878", "0.867", "0.8682"]
    assert rows["mAP50"].basis == "host, n = 72"
    target = rows["Latency on the target"]
    assert target.basis == "predicted, teacher in fp16"
    assert [c.value for c in target.cells] == ["1.809 ms", "0.7654 ms", "0.4554 ms"]
    assert target.cells[2].interval.startswith("band: 0.34")
    assert [c.value for c in rows["Size"].cells] == ["7.29 MB", "1.182 MB", "0.325 MB"]


def test_where_fp32_ships_it_has_one_column(report):
    choice = {**report.details["choice"], "precision": "fp32"}
    made = replace(report, details={**report.details, "choice": choice})
    assert paired.heads(made) == ("teacher", "student fp32")
    assert all(len(row.cells) == 2 for row in paired.rows(made))


def test_the_plot_is_of_the_metric_that_chose(report, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts.figures, "svg", lambda figure, label: drawn.append(figure))
    charts.speed_and_accuracy(report)
    (axes,) = drawn[0].axes
    words = axes.get_ylabel().replace("\n", " ")
    assert words == f"validation {facts.METRICS[report.details['choice']['metric']]}"
    assert axes.get_xlabel() == "latency, ms, predicted"
    labels = {line.get_label() for line in axes.lines if not line.get_label().startswith("_")}
    assert labels == {"accuracy limit", "teacher fp16", "fp32", "fp16", "int8", "mixed (ships)"}


def test_the_time_of_both_networks_is_drawn_on_one_scale(report, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts.figures, "svg", lambda figure, label: drawn.append(figure))
    charts.where_time_goes(report)
    (axes,) = drawn[0].axes
    total = sum(patch.get_width() for patch in axes.patches)
    time = report.details["time"]
    assert total == pytest.approx(sum(row["ms"] for w in ("teacher", "student") for row in time[w]))
    assert charts.where_time_goes(replace(report, details={})) is None


def test_the_terminal_tells_the_same_story_in_80_columns(report):
    text = text_summary(report)
    places = [text.index(part) for part in ("pending", "mAP50", "  verdict", "open: 3 gates")]
    assert places == sorted(places)
    assert f"  {COMMAND}\n" in text
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= WIDTH


def test_a_long_last_column_is_broken_between_words():
    lines = table([("a", "b"), ("first", "word " * 40)])
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(lines).split().count("word") == 40


def test_bundles_are_compared_in_the_same_words(report):
    speed = {**report.details["target_speed"], "evidence": "device"}
    other = replace(report, details={**report.details, "target_speed": speed}, verdict="passed")
    both = {"old": report, "new": other}
    rows = {name: texts for name, *texts in compared.side_by_side(both)}
    assert rows["Accuracy"] == ["mAP50 0.878 → 0.8682, -1.1% [host]"] * 2
    assert rows["Target latency"][0].endswith("3.97x faster (band 3.11 to 5.07) [predicted]")
    assert rows["Target latency"][1].endswith("3.97x faster (95 %: 3.11 to 5.07) [device]")
    assert rows["gate speedup@device"] == ["… pending"] * 2
    assert compared.differences(both) == ["Latencies have different evidence: device, predicted."]
    lines = compared.text(both).splitlines()
    assert lines[0].split() == ["old", "new"]
    assert max(map(len, lines)) <= WIDTH
    page = compared.html(both)
    assert page.count('class="tiles"') == 2
    assert "Latencies have different evidence" in page


def test_more_bundles_than_fit_are_below_each_other(report):
    lines = compared.text(dict.fromkeys("abcde", report)).splitlines()
    heads = [line.split() for line in lines if line.split() and set(line.split()) <= set("abcde")]
    assert [name for head in heads for name in head] == list("abcde")
    assert len(heads) > 1


def test_other_images_and_targets_are_said(report):
    data = {"test": {"photos_sha256": "0" * 64}}
    environment = {**report.environment, "target": "another"}
    other = replace(report, details={**report.details, "data": data}, environment=environment)
    told = compared.differences({"a": report, "b": other})
    assert told[0].startswith("They were tested on different images")
    assert told[1].startswith("Latencies are of different targets: jetson")


def test_names_are_short_where_they_differ():
    assert compared.named(["x/a", "y/b/"]) == ["a", "b"]
    assert compared.named(["x/a", "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(KDError, match="named twice"):
        compared.named(["a", "a"])
