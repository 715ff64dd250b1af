import numpy as np

from kdcompile.tasks.task import by_class, by_value, stratum_text


def test_thirds_hold_every_image_once_from_low_to_high():
    true = np.array([5.0, 1, 9, 1, 7, 3, 2])
    parts = by_value(true)
    assert sorted(np.concatenate([where for _, where in parts])) == list(range(7))
    assert [about for about, _ in parts] == [
        {"low": 1, "high": 2}, {"low": 3, "high": 5}, {"low": 7, "high": 9},
    ]  # fmt: skip
    assert len(by_value(true[:2])) == 2


def test_classes_hold_their_images():
    parts = by_class(np.array([2.0, 0, 2]), lambda value: "abc"[int(value)])
    assert [(about["class"], where.tolist()) for about, where in parts] == [
        ("a", [1]), ("c", [0, 2]),
    ]  # fmt: skip


def test_a_stratum_in_words():
    assert stratum_text({"low": 1.0, "high": 2.5}) == "1 to 2.5"
    assert stratum_text({"class": "cat"}) == "class cat"
