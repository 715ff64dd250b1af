"""The audit against planted faults: twins, blanks, missing strata, drift, unstable scales."""

from collections.abc import Sequence

import numpy as np
import pytest

from kdcompile.calib import audit
from kdcompile.calib.audit import jensen_shannon, scale_spread, usual_drift
from kdcompile.calib.calibrate import table_of
from kdcompile.calib.chosen import ChosenImages
from kdcompile.calib.collect import pooled
from kdcompile.calib.histogram import Histogram
from kdcompile.calib.observers import minmax
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.tasks.task import find_task

PREPARE = Preprocess(1, (0.0,), (1.0,), (4, 4), (4, 4))


def photo(name: str, seed: int, points: int = 0) -> Photo:
    array = np.random.default_rng(seed).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    return Photo(name, np.zeros((points, 2), np.float32), array=array)


def blank(name: str, value: int = 7) -> Photo:
    return Photo(name, array=np.full((4, 4, 1), value, np.uint8))


def histogram(values: np.ndarray) -> Histogram:
    result = Histogram()
    result.add(values.astype(np.float32))
    return result


def half_normal(seed: int, size: int = 20_000) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).standard_normal(size))


def refused(photos: Sequence[Photo]) -> KDError:
    with pytest.raises(KDError) as error:
        list(ChosenImages(photos, PREPARE).inputs())
    return error.value


def test_one_image_many_times_is_refused() -> None:
    error = refused([photo("a", 0), photo("b", 0), photo("c", 0)])
    assert error.code == "calib-duplicate"
    assert "quantize.images = 1" in error.fix
    assert len(list(ChosenImages([photo("a", 0)], PREPARE).inputs())) == 1


def test_images_of_one_colour_are_refused() -> None:
    assert refused([blank("a", 1), blank("b", 2)]).code == "calib-constant"
    assert refused([blank("a", 1)]).code == "calib-constant"


def test_padding_does_not_hide_a_blank_image() -> None:
    small = Photo("a", array=np.full((2, 3, 1), 9, np.uint8))
    assert refused([small]).code == "calib-constant"


def test_some_twins_and_blanks_are_named() -> None:
    chosen = ChosenImages([photo("a", 0), photo("b", 1), photo("c", 0), blank("d")], PREPARE)
    for _ in range(2):
        assert len(list(chosen.inputs())) == 4
        assert chosen.constant == ["d"]
    assert chosen.duplicates == [["a", "c"]]
    assert chosen.distinct == 3
    record = audit.record(audit.about_images(chosen, "even", 9, 0), [], [], {}, 4)
    codes = [warning["code"] for warning in record["warnings"]]
    assert codes == ["calib-duplicate", "calib-constant", "calib-fewer", "calib-few"]
    assert record["images"]["images"][1] == {"name": "b", "sha256": photo("b", 1).sha256()}


def test_held_out_images_are_neither_chosen_nor_twins() -> None:
    train = [photo(str(i), i % 8) for i in range(12)]
    held = audit.held_out(train, ChosenImages(train[:3], PREPARE))
    assert [p.name for p in held] == ["3", "4", "5", "6", "7", "11"]
    many = [photo(str(i), i) for i in range(80)]
    assert len(audit.held_out(many, ChosenImages(many[:3], PREPARE))) == audit.HELD_OUT
    assert audit.held_out(train, ChosenImages(train, PREPARE)) == []


def test_strata_of_counts() -> None:
    train = [photo(str(i), i, points=i) for i in range(30)]
    parts = audit.strata(train, train[20:], find_task("counting"), None)
    assert [(p["low"], p["high"], p["train"], p["chosen"]) for p in parts] == [
        (0, 9, 10, 0),
        (10, 19, 10, 0),
        (20, 29, 10, 10),
    ]
    record = audit.record(about(10), parts, [], {}, len(train))
    assert [w["message"] for w in record["warnings"]] == [
        "calibration images of 0 to 9: 0, where 3 are due",
        "calibration images of 10 to 19: 0, where 3 are due",
    ]


@pytest.mark.parametrize("classes", [("cat", "dog"), None])
def test_strata_of_classes(classes: tuple[str, ...] | None) -> None:
    train = [Photo(str(i), label=float(i % 2)) for i in range(20)]
    parts = audit.strata(train, train[::2], find_task("classification"), classes)
    names = classes or ("0", "1")
    assert parts == [
        {"class": names[0], "train": 10, "chosen": 10},
        {"class": names[1], "train": 10, "chosen": 0},
    ]
    (warning,) = audit.record(about(10), parts, [], {}, len(train))["warnings"]
    assert names[1] in warning["message"]


def about(n: int) -> audit.Record:
    """Images without a fault."""
    return {"n": n, "distinct": 99, "asked": n, "duplicates": [], "constant": []}


def test_divergence_of_samples() -> None:
    a, b = histogram(half_normal(0)), histogram(half_normal(1))
    assert jensen_shannon(a, a) == 0.0
    assert 0 < jensen_shannon(a, b) < 0.01
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(b, a))
    wider = histogram(2 * half_normal(1))
    assert jensen_shannon(a, wider) > 0.05
    apart = histogram(half_normal(0) + 100)
    assert jensen_shannon(a, apart) == pytest.approx(1.0)
    zeros = histogram(np.zeros(10))
    assert jensen_shannon(zeros, zeros) == 0.0
    assert jensen_shannon(zeros, apart) == pytest.approx(1.0)


def test_divergence_against_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    a, b = histogram(half_normal(0)), histogram(1.3 * half_normal(1))
    span = max(a.span, b.span)
    p, q = (h.over(span).reshape(128, -1).sum(1) for h in (a, b))
    assert jensen_shannon(a, b) == pytest.approx(jensenshannon(p, q, base=2) ** 2)


def test_spread_of_a_scale() -> None:
    """A largest value that one of eight folds has is drawn in 1 - (7/8)^8 of the sets."""
    folds = [histogram(np.array([1.0])) for _ in range(7)] + [histogram(np.array([3.0]))]
    share = 1 - (7 / 8) ** 8
    expected = 2 * np.sqrt(share * (1 - share)) / (1 + 2 * share)
    found = [scale_spread(folds, minmax, seed) for seed in range(60)]
    assert np.mean(found) == pytest.approx(expected, abs=0.03)
    assert scale_spread(folds, minmax, 0) == scale_spread(folds, minmax, 0)
    assert scale_spread(folds[:1], minmax) is None
    assert scale_spread(folds[:7], minmax) == 0.0
    assert scale_spread([histogram(np.zeros(3))] * 4, minmax) == 0.0


def test_usual_drift_is_the_oddest_fold() -> None:
    folds = [histogram(half_normal(i)) for i in range(4)]
    usual = usual_drift(folds)
    odd = usual_drift([*folds[:3], histogram(3 * half_normal(3))])
    assert usual is not None
    assert odd is not None
    assert 0 < usual < 0.01 < odd
    assert usual_drift(folds[:1]) is None


@pytest.mark.parametrize("calibrator", plugins.names("calibrators"))
def test_tensors_without_a_fault_give_no_warning(calibrator: str) -> None:
    folds = [{"a": histogram(half_normal(i, 100_000))} for i in range(8)]
    table = table_of(pooled(folds), "f", [("x", "y")], calibrator)
    tensors = audit.about_tensors(table, folds, {"a": histogram(half_normal(9, 100_000))})
    assert audit.record(about(64), [], [], tensors, 64)["warnings"] == []
    assert 0 < tensors["a"]["drift"] < tensors["a"]["usual_drift"] * audit.DRIFT_FACTOR
    assert tensors["a"]["scale"] == table.tensors["a"].scale


def test_planted_faults_are_found() -> None:
    folds = [
        {
            "drifted": histogram(half_normal(i)),
            "unstable": histogram(half_normal(i) * (10 if i == 3 else 1)),
            "zero": histogram(np.zeros(9)),
        }
        for i in range(8)
    ]
    table = table_of(pooled(folds), "f", [("x", "y")], "minmax")
    held = {
        "drifted": histogram(3 * half_normal(9)),
        "unstable": histogram(half_normal(9)),
        "zero": histogram(np.zeros(9)),
    }
    tensors = audit.about_tensors(table, folds, held)
    record = audit.record(about(64), [], [], tensors, 64)
    found = {w["code"]: w["message"] for w in record["warnings"]}
    assert set(found) == {"calib-drift", "calib-unseen", "calib-spread", "calib-zero"}
    assert "drifted" in found["calib-drift"]
    assert "drifted" in found["calib-unseen"]
    assert "unstable" in found["calib-spread"]
    made = audit.summary(record)
    assert made["worst_drift"] == tensors["drifted"]["drift"]
    assert made["worst_saturation"] == 0.0
    assert made["warnings"] == list(found.values())


def test_without_others_drift_is_unknown() -> None:
    folds = [{"a": histogram(half_normal(0))}]
    table = table_of(pooled(folds), "f", [("x", "y")], "minmax")
    tensors = audit.about_tensors(table, folds, None)
    unknown = ("drift", "usual_drift", "scale_spread", "held_out_saturation")
    assert [tensors["a"][key] for key in unknown] == [None] * 4
    made = audit.summary(audit.record(about(64), [], [], tensors, 64))
    assert made["worst_drift"] is None


def test_strata_of_boxes_overlap_and_leave_crowds_out() -> None:
    def boxes(*kinds: int) -> np.ndarray:
        return np.array([[1, 1, 9, 9, kind] for kind in kinds], np.float32).reshape(-1, 5)

    rows = [boxes(0), boxes(0, 1, 1), boxes(), boxes(-2)] * 5
    train = [Photo(str(i), boxes=own) for i, own in enumerate(rows)]
    parts = audit.strata(train, train[::4], find_task("detection"), ("cat", "dog"))
    assert parts == [
        {"class": "cat", "train": 10, "chosen": 5},
        {"class": "dog", "train": 5, "chosen": 0},
    ]
    (warning,) = audit.record(about(10), parts, [], {}, len(train))["warnings"]
    assert warning["message"] == "calibration images of dog: 0, where 2 are due"


def test_strata_of_masks_leave_void_out() -> None:
    masks = [np.full((4, 6), 255, np.uint8) for _ in range(8)]
    for number, mask in enumerate(masks):
        mask[0] = 2 * (number % 2)
    masks[0][1] = 7
    train = [Photo(str(i), mask=mask, ignored=7) for i, mask in enumerate(masks)]
    assert audit.strata(train, train[:2], find_task("segmentation"), None) == [
        {"class": "0", "train": 4, "chosen": 1},
        {"class": "2", "train": 4, "chosen": 1},
    ]
