"""PCoreSet: k-center against brute force and the best cover, and what outputs say."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from kdcompile.core.errors import KDError
from kdcompile.data.coreset import BLOCK, GRID, cells, described, k_center, mean_of, space

NONE = np.zeros((0, 2))
numbers = st.integers(-9, 9).map(float)  # whole: ties are exact


def radius(points, centres):
    """The largest distance from a point to its nearest centre."""
    away = np.linalg.norm(points[:, None] - centres[None], axis=2)
    return float(away.min(axis=1).max())


def by_brute_force(points, labelled, count):
    """Each choice by all distances, computed anew."""
    chosen, distances = [], []
    for _ in range(min(count, len(points))):
        centres = [*labelled, *points[chosen]]
        away = [
            -1.0 if i in chosen
            else min((float(np.square(point - c).sum()) for c in centres), default=np.inf)
            for i, point in enumerate(points)
        ]  # fmt: skip
        chosen.append(away.index(max(away)))
        distances.append(max(away) ** 0.5)
    return chosen, distances


@given(
    arrays(np.float64, st.tuples(st.integers(1, 9), st.just(2)), elements=numbers),
    arrays(np.float64, st.tuples(st.integers(0, 4), st.just(2)), elements=numbers),
    st.integers(1, 10),
)
@settings(max_examples=150)
def test_it_is_the_greedy_choice(points, labelled, count):
    chosen, distances = k_center(points, labelled, count)
    slow, away = by_brute_force(points, labelled, count)
    assert chosen == slow
    np.testing.assert_allclose(distances, away, rtol=1e-12)


@given(
    arrays(np.float64, st.tuples(st.integers(3, 8), st.integers(1, 3)), elements=st.floats(-9, 9)),
    st.integers(1, 3),
)
@settings(max_examples=100)
def test_it_is_within_twice_the_best(points, count):
    chosen, _ = k_center(points, points[:0], count)
    best = min(radius(points, points[list(c)]) for c in combinations(range(len(points)), count))
    assert radius(points, points[chosen]) <= 2 * best + 1e-9


def test_more_labelled_points_than_are_held_at_once():
    random = np.random.default_rng(0)
    points, labelled = random.random((40, 2)), random.random((BLOCK + 9, 2))
    assert k_center(points, labelled, 40)[0] == by_brute_force(points, labelled, 40)[0]


def test_twins_come_last_and_each_point_once():
    points = np.array([[0.0], [0.0], [5.0], [0.0], [5.0], [9.0]])
    assert k_center(points, points[:0], 9)[0] == [0, 5, 2, 1, 3, 4]
    assert k_center(np.zeros((3, 2)), np.zeros((1, 2)), 3) == ([0, 1, 2], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    bad = np.array([[0.0, 0.0], [value, 1.0]])
    for points, labelled in ((bad, NONE), (np.zeros((2, 2)), bad)):
        with pytest.raises(KDError) as error:
            k_center(points, labelled, 1)
        assert error.value.code == "output-nonfinite"


def picks_until_every_class(order, labels):
    return next(n for n in range(1, len(order) + 1) if len(set(labels[order[:n]])) == 10)


def test_it_meets_every_digit_earlier_than_chance():
    """Eight halves of the digits; a weak teacher, which 60 of the other half taught."""
    images, labels = load_digits(return_X_y=True)
    own, chance = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        order = random.permutation(len(images))
        known, pool = order[:60], order[898:]
        teacher = LogisticRegression(max_iter=300).fit(images[known] / 16, labels[known])
        told = teacher.predict_proba(images[pool] / 16)
        own.append(picks_until_every_class(k_center(told, told[:0], 200)[0], labels[pool]))
        chance.append(picks_until_every_class(random.permutation(len(pool)), labels[pool]))
    assert np.mean(own) < 0.75 * np.mean(chance), (own, chance)
    assert max(own) < max(chance)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 1, 3, 40), (3, 2, 72, 96), (1, 1, 17, 8)])
def test_a_map_is_its_count_and_where_it_lies(shape):
    density = np.random.default_rng(0).random(shape, np.float32)
    density[0, 0, 0, 0] += 1
    counts, shares = described(density)
    assert shares.shape == (shape[0], shape[1] * GRID * GRID)
    np.testing.assert_allclose(counts, density.sum((2, 3), dtype=np.float64))
    np.testing.assert_allclose(cells(density).sum((2, 3)), counts)
    totals = shares.reshape(*counts.shape, -1).sum(2)
    np.testing.assert_allclose(totals, np.minimum(counts, 1.0))
    if shape == (3, 2, 72, 96):
        cell = shares.reshape(3, 2, GRID, GRID)[2, 1, 2, 3]
        part = density[2, 1, 18:27, 36:48].sum(dtype=np.float64)
        assert cell == pytest.approx(part / counts[2, 1])


def test_an_empty_map_has_no_places():
    noise = np.full((1, 1, 8, 8), -0.01, np.float32)
    counts, shares = described(noise)
    assert counts[0, 0] == pytest.approx(-0.64)
    assert not shares.any()


def test_logits_are_probabilities_and_values_themselves():
    logits = np.array([[1000.0, 1000.0, 998.0], [0.0, 0.0, 0.0]], np.float32)
    weights = np.exp([0.0, 0.0, -2.0])
    (found,) = described(logits)
    np.testing.assert_allclose(found, [weights / weights.sum(), [1 / 3] * 3])
    (value,) = described(np.array([[7.5], [-1.0]], np.float32))
    assert value.tolist() == [[7.5], [-1.0]]


def test_neither_count_nor_place_dominates():
    """A thousand heads more or less weigh as much as where they are."""
    random = np.random.default_rng(1)
    maps = random.random((50, 1, 16, 16)) * random.uniform(1, 100, (50, 1, 1, 1))
    points = space([described(maps[:20]), described(maps[20:])])
    assert points.shape == (50, 1 + GRID * GRID)
    assert points[:, :1].var(axis=0).sum() == pytest.approx(1)
    assert points[:, 1:].var(axis=0).sum() == pytest.approx(1)


def test_one_part_keeps_its_scale_and_equal_maps_are_no_error():
    told = np.array([[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(space([[told[:1]], [told[1:]]]), told)
    assert np.isfinite(space([described(np.ones((3, 1, 8, 8)))])).all()


def test_two_networks_are_heard_alike():
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    (mean,) = mean_of([[first], [second]])
    assert mean.tolist() == [[0.5, 0.5]]
    (mean,) = mean_of([[first], [np.array([[0.25, 0.25, 0.5]])]])
    assert mean.tolist() == [[0.625, 0.125, 0.25]]
