"""Tables of a detection report: precision by class and size, misses and false boxes."""

import numpy as np
import pytest

from kdcompile.bundle import render
from kdcompile.core.report import Report
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.detection.task import Detection

FRAME = Frame((300, 300), (300, 300), (300, 300))
TRUTH = np.array(
    [[0, 0, 20, 20, 0], [30, 30, 80, 80, 0], [100, 100, 290, 290, 0], [0, 200, 20, 220, 1]],
    np.float32,
)


def records(found):
    """The rows of one image where these were found, [D, 6] of box, score and class."""
    photo = Photo("a", array=np.zeros((300, 300, 3), np.uint8), boxes=TRUTH)
    task = Detection(decoder="boxes", count=2)
    rows = [task.record(np.array([found], np.float64), photo, FRAME)]
    return task.errors(np.array(rows), [0.0])


@pytest.fixture(scope="module")
def tables():
    every = np.column_stack([TRUTH[:, :4], np.full(4, 0.9), TRUTH[:, 4]])
    some = every[[0, 2]].copy()
    some[1, 4] = 0.2  # too unsure to be shown
    nothing = [[200, 0, 230, 30, 0.5, 1]]
    errors = {"teacher": records(every), "student": records(np.concatenate([some, nothing]))}
    return Detection().tables(errors, ["disc", "square"])


def test_precision_is_of_each_class_and_size(tables):
    heads, rows = tables[0]["heads"], tables[0]["rows"]
    found = {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}
    assert list(found) == ["disc", "square", "all classes"]
    assert found["disc"] == pytest.approx({
        "teacher all": 1, "student all": 2 / 3, "teacher small": 1, "student small": 1,
        "teacher medium": 1, "student medium": 0, "teacher large": 1, "student large": 1,
    }, abs=0.01)  # fmt: skip
    assert found["square"]["student small"] == 0
    assert found["square"]["teacher large"] == "none"  # none is annotated
    assert found["all classes"]["student all"] == pytest.approx(1 / 3, abs=0.01)


def test_misses_and_false_boxes_are_of_what_is_shown(tables):
    heads = ["class", "annotated", "teacher found", "teacher missed", "teacher false",
             "student found", "student missed", "student false"]  # fmt: skip
    assert tables[1]["title"] == "Boxes with a score of 0.3 or more"
    assert tables[1]["heads"] == heads
    assert tables[1]["rows"] == [
        ["disc", 3, 3, 0, 0, 1, 2, 0],
        ["square", 1, 1, 0, 0, 0, 1, 1],
        ["all classes", 4, 4, 0, 0, 1, 3, 1],
    ]


def test_the_report_has_them(tables):
    values = {"task": Detection().facts(["disc", "square"]), "tables": tables}
    report = Report("a", "cpu", "passed", 0, (), (), {}, values)
    (_, note, _, rows), other = render.further(report)
    assert "32 x 32" in note
    assert rows[1][-1] == "none"
    assert other[3][-1] == ["all classes", "4", "4", "0", "0", "1", "3", "1"]


def test_there_are_none_without_records():
    assert Detection().tables({}, None) == []
