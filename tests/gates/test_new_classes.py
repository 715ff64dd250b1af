"""A student with more classes than its teacher: judged on those that both have."""

from dataclasses import replace

import numpy as np
from played_board import GATES, KIT, host_report, record

from kdcompile.core.report import GateResult
from kdcompile.gates.accuracy import AccuracyGate, accuracy
from kdcompile.gates.from_board import judge_board
from kdcompile.tasks.reference import changes, taught
from kdcompile.tasks.task import find_task

TRUE = np.repeat([0, 1, 2], 40)  # the teacher has 0 and 1
TEACHER = np.where(TRUE == 2, 0, TRUE)


def test_what_is_new_does_not_hide_what_is_forgotten(make_context):
    """Half of the old photos lost, all of the new ones won: more are right than before."""
    student = np.where((TRUE < 2) & (np.arange(120) % 2 == 0), 2, TRUE)
    known = taught(find_task("classification"), TRUE, 2)
    judged = make_context("classification", TRUE, TEACHER, student, taught=known)
    found = accuracy(AccuracyGate(), judged)
    assert found.verdict == "failed"
    assert "50.00%" in found.observed
    assert "on 120 test images, the 80 of the teacher's classes" in found.reason
    assert found.measurements[0].n == 80
    assert accuracy(AccuracyGate(), replace(judged, outcomes=replace(
        judged.outcomes, taught=None))).measurements[0].n == 120  # fmt: skip


def test_without_an_old_photo_nothing_is_decided(make_context):
    context = make_context("classification", [2, 2], [0, 1], [2, 2], taught=np.zeros(2, bool))
    found = accuracy(AccuracyGate(), context)
    assert (found.verdict, found.observed) == ("inconclusive", "no number")
    assert "data.test" in found.reason


def test_a_board_judges_the_same_photos():
    report = host_report()
    rows = [row | {"taught": i >= 5} for i, row in enumerate(report.details["predictions"])]
    gates = [GateResult("accuracy@device", "pending", "device", True, "", "", "")]
    report = replace(report, gates=tuple(gates), details={**report.details, "predictions": rows})
    merged, _ = judge_board(report, KIT, GATES, record("0" * 64), "device.json")
    assert f"the {len(rows) - 5} of the teacher's classes" in merged.gates[0].reason


def test_every_output_but_a_class_is_known_to_all():
    assert taught(find_task("counting"), [3, 900], 1).all()
    assert taught(find_task("regression"), [3.5, -2], 1).all()


def test_better_is_the_mirror_of_worse():
    task, before = find_task("counting"), np.array([1.0, -2.0, 3.0])  # mean size 2
    found = changes(task, before, np.array([-4.0, 1.0, 0.5]), 1.0)
    assert (found.worse.tolist(), found.better.tolist()) == (
        [True, False, False], [False, False, True],
    )  # fmt: skip
    assert changes(task, before, before, 0.0).worse.sum() == 0
