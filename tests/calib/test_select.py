"""Choice of calibration images: k-centre against brute force, and embeddings that keep counts."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdcompile.calib.select import GRID, embedding, k_centre, select_images
from kdcompile.data.photo import Photo

PHOTOS = [Photo(str(i)) for i in range(12)]


def names(photos: Sequence[Photo]) -> list[str]:
    return [photo.name for photo in photos]


def no_outputs(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
    raise AssertionError("even and random need no outputs")


def own_number(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
    return (np.array([[float(photo.name)]], np.float32) for photo in photos)


def radius(points: np.ndarray, centres: Sequence[int]) -> float:
    """The largest distance from a point to its nearest centre."""
    away = np.linalg.norm(points[:, None] - points[list(centres)][None], axis=2)
    return float(away.min(axis=1).max())


@given(
    arrays(np.float64, st.tuples(st.integers(3, 8), st.integers(1, 3)), elements=st.floats(-9, 9)),
    st.integers(1, 3),
    st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_k_centre_is_within_twice_the_best(points: np.ndarray, n: int, first: int) -> None:
    chosen = k_centre(points, n, first)
    assert chosen[0] == first
    assert len(set(chosen)) == n
    best = min(radius(points, centres) for centres in combinations(range(len(points)), n))
    assert radius(points, chosen) <= 2 * best + 1e-9


@given(arrays(np.float64, st.tuples(st.integers(2, 9), st.just(2)), elements=st.floats(-9, 9)))
@settings(max_examples=60, deadline=None)
def test_k_centre_is_the_greedy_choice(points: np.ndarray) -> None:
    """Each centre by a search over all points, with all distances computed anew."""
    n = len(points)
    chosen = k_centre(points, n, 0)
    for size in range(1, n):
        away = {
            i: min(float(np.square(points[i] - points[c]).sum()) for c in chosen[:size])
            for i in range(n)
            if i not in chosen[:size]
        }
        assert away[chosen[size]] == max(away.values())


def test_twins_are_chosen_last() -> None:
    points = np.array([[0.0], [0.0], [5.0], [0.0], [5.0], [9.0]])
    assert k_centre(points, 6, 0) == [0, 5, 2, 1, 3, 4]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 40), (1, 2, 72, 96), (1, 1, 17, 8)])
def test_a_map_keeps_its_count_and_its_places(shape: tuple[int, ...]) -> None:
    density = np.random.default_rng(0).random(shape, np.float32)
    found = embedding(density)
    assert found.shape == (shape[1] * GRID * GRID,)
    assert found.sum() == pytest.approx(density.sum(dtype=np.float64))
    if shape == (1, 2, 72, 96):
        grid = found.reshape(2, GRID, GRID)
        assert grid[1, 2, 3] == pytest.approx(density[0, 1, 18:27, 36:48].sum(), rel=1e-5)


def test_logits_become_probabilities() -> None:
    logits = np.array([[1000.0, 1000.0, 998.0]], np.float32)
    weights = np.exp([0.0, 0.0, -2.0])
    np.testing.assert_allclose(embedding(logits), weights / weights.sum())
    assert embedding(np.array([[7.5]], np.float32)).tolist() == [7.5]


def test_even_and_random_compute_nothing() -> None:
    assert names(select_images(PHOTOS, "even", 4, 0, no_outputs)) == ["0", "3", "6", "9"]
    drawn = names(select_images(PHOTOS, "random", 5, 3, no_outputs))
    assert len(set(drawn)) == 5
    assert drawn == sorted(drawn, key=int)
    assert drawn == names(select_images(PHOTOS, "random", 5, 3, no_outputs))
    assert drawn != names(select_images(PHOTOS, "random", 5, 4, no_outputs))


@pytest.mark.parametrize("how", ["even", "random", "pcoreset"])
def test_all_photos_where_there_are_no_more(how: str) -> None:
    assert select_images(PHOTOS, how, 99, 0, no_outputs) == PHOTOS


def test_pcoreset_covers_the_outputs() -> None:
    chosen = names(select_images(PHOTOS, "pcoreset", 3, 0, own_number))
    numbers = np.array([[float(name)] for name in names(PHOTOS)])
    assert radius(numbers, [int(name) for name in chosen]) <= 4  # the best three leave 2
    assert chosen == names(select_images(PHOTOS, "pcoreset", 5, 0, own_number))[:3]
    starts = {names(select_images(PHOTOS, "pcoreset", 1, seed, own_number))[0] for seed in range(9)}
    assert len(starts) > 1
