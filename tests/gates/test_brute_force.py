"""Accuracy gates against slow computations that share no code with them."""

import numpy as np
import pytest
from scipy import optimize, stats

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.data.splits import judged
from kdcompile.gates.churn import find_flips, share_bounds
from kdcompile.gates.subgroups import StrataGate, strata
from kdcompile.gates.summary import part_rows
from kdcompile.stats.noninferiority import bounds, compare, decrease_interval
from kdcompile.tasks.builtin import game_errors
from kdcompile.tasks.metric import GAMES, MAE, RMSE
from kdcompile.tasks.task import find_task


def cells_one_by_one(density, points, frame, level):
    """GAME by cutting each cell of the map into so many pieces that none crosses a border."""
    side = 2**level
    pieces = [side * length for length in frame.plane]  # of one cell, along each axis

    def part(index, axis):
        cell = density.shape[axis] * pieces[axis]  # of the whole plane
        place = (index + 0.5) / cell * frame.plane[axis]  # in pixels of the plane
        return min(int(place * side / frame.seen[axis]), side - 1)

    where = [[part(i, axis) for i in range(density.shape[axis] * pieces[axis])] for axis in (0, 1)]
    counts = np.zeros((side, side))
    for (i, j), value in np.ndenumerate(density):
        rows, columns = (
            np.bincount(where[axis][at * pieces[axis] : (at + 1) * pieces[axis]], minlength=side)
            for axis, at in ((0, i), (1, j))
        )
        counts += value * np.outer(rows, columns) / (pieces[0] * pieces[1])
    for x, y in points:
        row = min(max(int(np.floor(y * side / frame.photo[0])), 0), side - 1)
        column = min(max(int(np.floor(x * side / frame.photo[1])), 0), side - 1)
        counts[row, column] -= 1
    return np.abs(counts).sum()


@pytest.mark.parametrize(
    ("shape", "frame"),
    [
        ((7, 9), Frame((50, 70), (50, 70), (50, 70))),
        ((5, 3), Frame((41, 23), (41, 23), (48, 24))),
        ((1, 11), Frame((90, 33), (30, 11), (32, 16))),
        ((6, 6), Frame((7, 7), (7, 7), (64, 64))),
    ],
)
def test_game_of_sizes_that_no_power_of_two_divides(shape, frame):
    rng = np.random.default_rng(shape[0])
    density = rng.exponential(1, shape)
    points = rng.uniform(-0.1, 1.1, (17, 2)) * (frame.photo[1], frame.photo[0])
    wanted = [cells_one_by_one(density, points, frame, level) for level in (1, 2, 3)]
    assert game_errors(density, points, frame) == pytest.approx(np.array(wanted))


def tango_score(difference, lost, won, n):
    """Tango's statistic by maximising the likelihood of a trinomial, numerically."""

    def misfit(only_student):
        chances = (only_student + difference, only_student, 1 - 2 * only_student - difference)
        counts = (lost, won, n - lost - won)
        return -sum(k * np.log(p) for k, p in zip(counts, chances, strict=True) if k)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = optimize.minimize_scalar(
        misfit, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = (2 * found + difference - difference**2) / n
    return ((lost - won) / n - difference) / np.sqrt(variance)


@pytest.mark.parametrize(("lost", "won", "n"), [(3, 1, 20), (0, 4, 30), (9, 2, 11), (0, 0, 15)])
def test_the_score_interval_is_where_the_maximised_likelihood_puts_it(lost, won, n):
    low, high = decrease_interval(lost, won, n, 0.9)
    z = stats.norm.ppf(0.95)
    assert tango_score(high, lost, won, n) == pytest.approx(-z, rel=2e-3)
    assert tango_score(low, lost, won, n) == pytest.approx(z, rel=2e-3)


def allowed_ratios(teacher, student, metric):
    """The least and the largest ratio of the metrics that a one-sided t test at 5 % leaves."""
    power = 2 if metric is RMSE else 1
    grid = np.linspace(0.5, 2, 15_001)
    apart = student**power - grid[:, None] ** power * teacher**power
    kept = np.abs(stats.ttest_1samp(apart, 0, axis=1).statistic) <= stats.t.ppf(0.95, 7)
    return grid[kept].min(), grid[kept].max()


def ratio(reference, errors, metric):
    return metric(errors) / metric(reference)


@pytest.mark.parametrize("metric", [MAE, RMSE, GAMES[0]], ids=lambda m: m.name)
def test_a_bound_is_that_of_all_resamples_of_pairs(metric):
    """Of BCa and of the t tests of every ratio the wider; pairs stay together."""
    rng = np.random.default_rng(3)
    teacher = np.array([5.0, 9, 4, 7, 6, 8, 5, 9])
    student = teacher * rng.uniform(0.9, 1.2, 8)
    low, high = bounds(metric, teacher, student, 0)
    draws = np.array(
        [ratio(teacher[pick], student[pick], metric)
         for pick in np.random.default_rng(1).integers(0, 8, (40_000, 8))]
    )  # fmt: skip
    point = ratio(teacher, student, metric)
    without = np.array([ratio(np.delete(teacher, i), np.delete(student, i), metric)
                        for i in range(8)])  # fmt: skip
    pull = without.mean() - without
    skew = (pull**3).sum() / 6 / (pull**2).sum() ** 1.5
    bias = stats.norm.ppf(((draws < point).mean() + (draws <= point).mean()) / 2)
    moved = [bias + (bias + z) / (1 - skew * (bias + z)) for z in stats.norm.ppf([0.05, 0.95])]
    bca = np.quantile(draws, stats.norm.cdf(moved))
    allowed = allowed_ratios(teacher, student, metric)
    whole = metric(teacher)
    wanted = (min(bca[0], allowed[0]) - 1) * whole, (max(bca[1], allowed[1]) - 1) * whole
    assert (low, high) == pytest.approx(wanted, abs=0.004 * whole)
    unpaired = bounds(metric, teacher, student[::-1].copy(), 0)
    assert unpaired[1] - unpaired[0] > 2 * (high - low)


@pytest.mark.parametrize("metric", [MAE, RMSE], ids=lambda m: m.name)
def test_a_bound_does_not_depend_on_the_unit(metric):
    rng = np.random.default_rng(0)
    teacher, student = rng.exponential(1, (2, 12))
    found = bounds(metric, teacher, student, 0)
    for factor in (1e-9, 1e9):
        assert bounds(metric, factor * teacher, factor * student, 0) == pytest.approx(
            (factor * found[0], factor * found[1])
        )


def test_errors_that_are_all_equal_and_one_that_is_all_of_them():
    same = np.full(20, 3.0)
    assert bounds(MAE, same, same, 0) == (0, 0)
    low, high = bounds(MAE, same, 2 * same, 0)
    assert (low, high) == (pytest.approx(3), pytest.approx(3))
    one = np.eye(20)[4] * 50  # one such in 20 tells little of how often either has one
    for student in (one, one[::-1].copy()):
        found = compare(MAE, one, student, margin=0.5, seed=0)
        assert found.verdict == "inconclusive"
        assert "of any size" in found.reason


def test_a_teacher_that_is_never_wrong_leaves_no_share():
    right, wrong = np.zeros(20), np.ones(20)
    assert compare(MAE, right, right, margin=0.1, seed=0).verdict == "passed"
    assert compare(MAE, right, wrong, margin=9.0, seed=0).verdict == "failed"
    assert compare(MAE, right, np.eye(20)[0], margin=9.0, seed=0).verdict == "inconclusive"


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_exact_bounds_are_the_binomial_tails(n):
    for count in range(n + 1):
        low, high = share_bounds(count, n)
        chances = [stats.binom.sf(count - 1, n, low), stats.binom.cdf(count, n, high)]
        wanted = [1.0 if count == 0 else 0.05, 1.0 if count == n else 0.05]
        assert chances == pytest.approx(wanted, rel=1e-6)


def test_flips_are_counted_one_by_one():
    rng = np.random.default_rng(2)
    teacher, student = rng.normal(0, 10, (2, 50))
    found = find_flips(find_task("regression"), teacher, student, 0.4)
    allowed = 0.4 * sum(abs(e) for e in teacher) / 50
    wanted = [abs(s) - abs(t) > allowed for t, s in zip(teacher, student, strict=True)]
    assert found.worse.tolist() == wanted


def test_tables_of_parts_are_counted_one_by_one(make_context):
    rng = np.random.default_rng(4)
    true, teacher, student = (rng.integers(0, 3, 60).astype(float) for _ in range(3))
    context = make_context("classification", true, teacher, student, ("a", "b", "c"))
    rows = part_rows(context.task, context.outcomes, ("a", "b", "c"))
    for index, row in enumerate(rows):
        own = [(t, s) for c, t, s in zip(true, teacher, student, strict=True) if c == index]
        assert row["class"] == "abc"[index]
        assert row["n"] == len(own)
        assert row["teacher_top1"] == pytest.approx(sum(t == index for t, _ in own) / len(own))
        assert row["student_top1"] == pytest.approx(sum(s == index for _, s in own) / len(own))


@pytest.mark.parametrize("n", range(1, 8))
def test_thirds_of_few_photos_have_no_empty_part(make_context, n):
    true = np.arange(n) * 10.0
    context = make_context("counting", true, true, true)
    rows = part_rows(context.task, context.outcomes)
    assert [row["n"] for row in rows] == [len(p) for p in np.array_split(true, 3) if len(p)]
    result = strata(StrataGate(), context)
    assert (result.verdict, len(result.measurements)) == ("inconclusive", min(n, 3))


def test_photos_of_one_value_are_three_parts_all_the_same(make_context):
    true = np.full(30, 5.0)
    result = strata(StrataGate(), make_context("counting", true, true, true))
    assert result.verdict == "passed"
    assert [m.n for m in result.measurements] == [10, 10, 10]


def test_a_copy_of_a_test_photo_counts_once():
    """Eight copies of one photo prove no more than one does."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 1), dtype=np.uint8)
    photos = [Photo(f"{i}", array=pixels[i % 5], label=0.0) for i in range(13)]
    assert [photo.name for photo in judged(photos, None)] == ["0", "1", "2", "3", "4"]
    assert [photo.name for photo in judged(photos, 3)] == ["0", "1", "3"]
    assert len(judged(photos[::5], None)) == 1


@pytest.mark.parametrize("kind", ["counting", "regression", "classification"])
def test_a_prediction_that_is_no_number_never_passes(make_context, kind):
    true = np.arange(40) % 3.0
    for wrong in (np.nan, np.inf):
        student = true.copy()
        student[7] = wrong
        errors = [find_task(kind).errors(p, true) for p in (true, student)]
        if kind == "classification":  # it is a wrong class
            assert errors[1].tolist() == np.eye(40)[7].tolist()
            continue
        with pytest.raises(Exception, match="NaN or infinite"):
            compare(MAE, *errors, margin=9.0, seed=0)
