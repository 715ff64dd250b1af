"""What outputs mean: predictions, errors, metrics and what is better."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.evaluate import evaluate
from kdcompile.tasks.builtin import Frame, game_errors, predicted_cells, true_cells
from kdcompile.tasks.metric import MAE, RMSE, TOP1
from kdcompile.tasks.strata import by_class, by_value, stratum_text
from kdcompile.tasks.task import find_task

LOGITS = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [np.nan, 1.0, 0.0]], np.float32)
COUNTING, CLASSES, VALUES = (find_task(k) for k in ("counting", "classification", "regression"))


def test_a_count_is_the_sum_of_the_map_in_float64():
    maps = np.full((2, 1, 300, 300), 0.1, np.float32)
    maps[1] = 0
    assert COUNTING.predictions(maps).tolist() == pytest.approx([9000, 0], rel=1e-7)
    assert COUNTING.describe(maps[:1], None)["count"] == pytest.approx(9000)


def test_a_class_is_the_largest_logit_and_none_where_one_is_no_number():
    assert CLASSES.predictions(LOGITS).tolist() == [1, 0, -1]
    assert CLASSES.errors([1, 0, -1], [1, 1, 0]).tolist() == [0, 1, 1]
    found = CLASSES.describe(LOGITS[:1], ["a", "b", "c"])
    powers = np.exp([0, 2, 1])
    assert found == {"class": "b", "probability": pytest.approx(powers[1] / powers.sum())}
    assert CLASSES.describe(LOGITS[:1], None)["class"] == "1"
    assert CLASSES.name_of(-1, ["a"]) == "none"
    large = CLASSES.describe(np.float32([[1000, 0]]), None)
    assert large["probability"] == 1


def test_a_value_is_the_output():
    assert VALUES.predictions(np.float32([[1.5], [-2]])).tolist() == [1.5, -2]
    assert VALUES.describe(np.float32([[1.5]]), None) == {"value": 1.5}


def test_scores_and_the_best_constant():
    assert COUNTING.scores([1, 5], [2, 2]) == {"mae": 2, "rmse": pytest.approx(5**0.5)}
    assert CLASSES.scores([0, 1, 2, 2], [0, 1, 2, 0]) == {"top1": 0.75}
    assert VALUES.constant([1, 2, 9]) == 2
    assert CLASSES.constant([2, 0, 2]) == 2


def test_difficulty_grows_with_the_error():
    assert COUNTING.difficulty(np.ones((1, 1, 2, 2), np.float32), 7) == 3
    easy, hard = (CLASSES.difficulty(LOGITS[:1], true) for true in (1, 0))
    assert 0 < easy < 0.5 < hard < 1


@pytest.mark.parametrize(
    ("metric", "student", "worse", "limit"),
    [(MAE, 11.0, 1.0, 10.5), (RMSE, 9.0, -1.0, 10.5), (TOP1, 0.8, 0.1, 0.85)],
)
def test_metrics_know_what_is_worse(metric, student, worse, limit):
    teacher = 0.9 if metric.points else 10.0
    assert metric.worse_by(student, teacher) == pytest.approx(worse)
    assert metric.is_better(student, teacher) == (worse < 0)
    assert metric.limit(teacher, 0.05) == pytest.approx(limit)
    assert metric.limit(teacher, 99.0) == (0.0 if metric.points else 1000.0), "no rate is below 0"
    assert metric.is_better(teacher, float("nan"))
    assert not metric.is_better(float("nan"), teacher)
    assert metric.is_better(teacher, metric.worst)


def test_metrics_know_what_is_possible():
    assert [TOP1.possible(v) for v in (1.03, 0.97, -0.2)] == [1.0, 0.97, 0.0]
    assert [MAE.possible(v) for v in (103.0, -0.2)] == [103.0, 0.0]
    assert np.isnan(TOP1.possible(np.nan))


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        (COUNTING, (1, 1, 4, 4), (1, 2, 4, 4)),
        (CLASSES, (1, 2), (1, 1)),
        (VALUES, (1, 1), (1, 2)),
        (VALUES, (1, 1), (1,)),
    ],
)
def test_shapes_of_outputs(task, good, bad):
    assert task.check_output(good) is None
    assert "needs" in task.check_output(bad)


@pytest.mark.parametrize(
    ("task", "labels", "classes", "problem"),
    [
        (CLASSES, [0, 2], None, None),
        (CLASSES, [0, 2], ["a", "b", "c"], None),
        (CLASSES, [3], None, "a label of 3 is no index"),
        (CLASSES, [0.5], None, "0.5"),
        (CLASSES, [-1], None, "-1"),
        (CLASSES, [0], ["a", "b"], "2 classes, the network 3 outputs"),
        (VALUES, [0.5], None, None),
        (VALUES, [0.5], ["a"], "classes, not values"),
        (COUNTING, [7], None, None),
    ],
)
def test_labels_must_suit_the_network(task, labels, classes, problem):
    found = task.check_labels(labels, 3, classes)
    assert found is None if problem is None else problem in found


def test_a_photo_without_a_label_is_named():
    with pytest.raises(KDError, match="bare has no label") as caught:
        CLASSES.truth(Photo("bare"))
    assert caught.value.code == "label-missing"
    assert COUNTING.truth(Photo("bare")) == 0


def test_an_unknown_task_or_metric_names_the_nearest():
    with pytest.raises(KDError, match="did you mean 'counting'"):
        find_task("countin")
    with pytest.raises(KDError, match="has no metric 'top1'"):
        COUNTING.find_metric("top1")
    assert {task.find_metric(None).name for task in (COUNTING, CLASSES, VALUES)} == {"mae", "top1"}


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


PLAIN = Frame((80, 160), (80, 160), (80, 160))


def test_a_count_in_the_wrong_quarter_costs_twice_at_every_level():
    density = np.zeros((8, 16))
    density[0, 0] = 1.0
    points = np.array([[159.0, 79.0]])
    assert game_errors(density, points, PLAIN).tolist() == [2, 2, 2]
    assert game_errors(density, np.array([[3.0, 3.0]]), PLAIN).tolist() == [0, 0, 0]


def test_the_level_at_which_a_shift_is_seen():
    density = np.zeros((8, 16))
    density[0, 0] = 1.0  # of cells that are 10 pixels wide
    points = np.array([[45.0, 5.0]])  # another sixteenth of the width, the same half
    assert game_errors(density, points, PLAIN).tolist() == [0, 2, 2]
    points = np.array([[25.0, 5.0]])
    assert game_errors(density, points, PLAIN).tolist() == [0, 0, 2]


def test_no_level_is_less_than_the_one_before_and_the_first_not_than_the_count():
    rng = np.random.default_rng(0)
    for _ in range(20):
        density = rng.exponential(0.2, (rng.integers(1, 19), rng.integers(1, 23)))
        frame = Frame((50, 70), (25, 35), (32, 64))
        points = rng.uniform(0, 1, (rng.integers(0, 40), 2)) * (70, 50)
        found = game_errors(density, points, frame, (0, 1, 2, 3))
        assert found[0] == pytest.approx(abs(density.sum() - len(points)))
        assert (np.diff(found) >= -1e-9).all()


def test_a_cell_across_a_border_is_shared_and_none_of_the_count_is_lost():
    density = np.ones((3, 3))
    cells = predicted_cells(density, Frame((30, 30), (30, 30), (30, 30)), 2)
    assert cells == pytest.approx(np.full((2, 2), 2.25))
    padded = predicted_cells(density, Frame((20, 30), (20, 30), (30, 30)), 2)
    assert padded == pytest.approx(np.array([[1.5, 1.5], [3.0, 3.0]]))  # the padding is below


def test_points_beyond_the_border_belong_to_the_last_cell():
    points = np.array([[160.0, 80.0], [-1.0, -0.5], [1e9, 0.0]])
    cells = true_cells(points, PLAIN, 2)
    assert cells.tolist() == [[1, 1], [0, 1]]
    assert true_cells(np.zeros((0, 2)), PLAIN, 2).sum() == 0


@pytest.mark.parametrize("size", [(24, 16), (96, 64), (20, 30)])
def test_a_network_that_counts_where_the_points_are_has_no_error(size):
    """Smaller photos are padded, larger ones scaled: the points go along."""
    height, width = size
    rng = np.random.default_rng(height)
    points = np.float32(rng.uniform(0.05, 0.95, (12, 2)) * (width, height))
    photo = Photo("a", points, array=np.zeros((height, width, 1), np.uint8))
    preprocess = Preprocess(1, (0.0,), (1.0,), (48, 32), (48, 32))
    scale = min(1.0, 48 / height, 32 / width)

    def network(image):
        density = np.zeros((1, 1, *image.shape[2:]), np.float32)
        for x, y in points * scale:
            density[0, 0, int(y), int(x)] += 1
        return density

    runners = {"teacher": lambda image: 0 * network(image), "student": network}
    found = evaluate(runners, ("teacher", "student"), [photo], preprocess, find_task("counting"))
    # a pixel on the border of two parts is shared by them; the map cannot say more
    assert (found.maps["student"] <= 4).all()
    assert found.maps["teacher"].tolist() == [[12, 12, 12]]
    assert found.maps["student"].shape == (1, 3)
