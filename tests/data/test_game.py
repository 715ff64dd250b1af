"""GAME: known values, what each level adds, and where a padded or scaled photo lies."""

import numpy as np
import pytest

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.evaluate import evaluate
from kdcompile.tasks.builtin import Frame, game_errors, predicted_cells, true_cells
from kdcompile.tasks.task import find_task

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
