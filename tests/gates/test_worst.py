"""The list of the worst photos, and which of them are drawn."""

import numpy as np

from kdcompile.gates.evaluate import pick_examples
from kdcompile.gates.summary import worst_rows
from kdcompile.tasks.task import find_task


def test_the_worst_come_first_with_what_the_teacher_said(make_context):
    true = np.full(30, 100.0)
    student = true + np.arange(30) * np.where(np.arange(30) % 2, 1, -1)
    outcomes = make_context("counting", true, true + 5, student).outcomes
    rows = worst_rows(find_task("counting"), outcomes, np.abs(student - true), None)
    assert len(rows) == 10
    assert [row["name"] for row in rows[:3]] == ["29.jpg", "28.jpg", "27.jpg"]
    assert rows[1] == {
        "name": "28.jpg", "true": 100, "student": 72, "teacher": 105, "difficulty": 28, "grew": 23,
    }  # fmt: skip


def test_classes_are_named_and_flips_are_marked(make_context):
    outcomes = make_context("classification", [0, 1, 1], [0, 1, 0], [1, 1, 0]).outcomes
    rows = worst_rows(
        find_task("classification"), outcomes, np.array([0.9, 0.1, 0.7]), ["cat", "dog"]
    )
    assert [(row["name"], row["student"], row["grew"]) for row in rows] == [
        ("0.jpg", "dog", 1), ("2.jpg", "cat", 0), ("1.jpg", "dog", 0),
    ]  # fmt: skip


def test_each_photo_is_drawn_once():
    many = pick_examples(np.array([3.0, 1, 2, 5, 4, 0, 6]))
    assert many == {"best": 5, "median": 0, "worst": 6, "worst_2": 3, "worst_3": 4}
    nine = pick_examples(np.arange(9.0))
    assert nine == {"best": 0, "median": 4, "worst": 8, "worst_2": 7, "worst_3": 6}
    assert pick_examples(np.array([2.0, 1.0])) == {"best": 1, "median": 0, "worst": 0}
    assert set(pick_examples(np.array([1.0])).values()) == {0}
