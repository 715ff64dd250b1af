"""The bias of a student: which way it is wrong on the whole, with its interval, and the verdict."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.gates.bias import Bias, BiasGate, bias, bias_measurements, find_bias
from kdcompile.stats.bootstrap import t_quantile


def test_the_interval_is_no_narrower_than_students():
    errors = np.random.default_rng(0).normal(2.0, 3.0, 40)
    found = find_bias(errors, 0)
    reach = t_quantile(0.975, 39) * errors.std(ddof=1) / np.sqrt(40)
    assert found.value == pytest.approx(errors.mean())
    assert found.low <= found.value - 0.999 * reach
    assert found.high >= found.value + 0.999 * reach


@pytest.mark.parametrize(
    ("offset", "most", "verdict"),
    [
        (0.0, "5%", "passed"),
        (10.0, "5%", "failed"),
        (-10.0, "5%", "failed"),
        (5.0, "5%", "inconclusive"),
        (-5.0, "5%", "inconclusive"),
        (10.0, "15%", "passed"),
        (-10.0, "15%", "passed"),
    ],
)
def test_the_whole_interval_decides(make_context, offset, most, verdict):
    random = np.random.default_rng(1)
    true = random.uniform(50, 150, 200)
    true *= 100 / true.mean()
    noise = random.normal(0, 5, 200)
    student = true + noise - noise.mean() + offset
    context = make_context("counting", true, true, student)
    result = bias(BiasGate(max=most), context)
    assert result.verdict == verdict
    assert result.observed.startswith(f"{offset:+.4g} [" if offset else "")
    teacher, own = bias_measurements(context)
    assert (teacher.name, own.name) == ("teacher bias", "student bias")
    assert (teacher.value, teacher.low, teacher.high) == (0, 0, 0)
    assert own.value == pytest.approx(offset, abs=1e-9)
    assert own.low < own.value < own.high


def test_one_image_has_no_interval(make_context):
    one = np.array([3.0])
    context = make_context("counting", one, one, one)
    assert bias(BiasGate(max="5%"), context).verdict == "inconclusive"
    assert bias_measurements(context)[0].low is None


def test_two_images_have_one(make_context):
    two = np.array([3.0, 4.0])
    student = two + np.array([0.0, 1.0])
    own = bias_measurements(make_context("counting", two, two, student))[1]
    assert -np.inf < own.low < own.value == 0.5 < own.high < np.inf


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-1.0, 1.0, "passed"),
        (-1.1, 1.0, "inconclusive"),
        (-1.0, 1.1, "inconclusive"),
        (1.0, 2.0, "inconclusive"),
        (-2.0, -1.0, "inconclusive"),
        (1.1, 2.0, "failed"),
        (-2.0, -1.1, "failed"),
    ],
)
def test_an_end_at_the_limit_is_within_it(low, high, verdict):
    assert Bias((low + high) / 2, low, high).judge(1.0) == verdict


@pytest.mark.parametrize(("kind", "unit"), [("counting", " count"), ("regression", "")])
def test_the_limit_is_told_in_the_unit_of_the_task(make_context, kind, unit):
    true = np.array([3.0, 5.0])
    found = bias(BiasGate(max="50%"), make_context(kind, true, true, true))
    assert found.reason.startswith(f"at most 2{unit} in either direction")


def test_classes_have_no_direction(make_context):
    true = np.arange(9) % 3.0
    context = make_context("classification", true, true, true)
    assert bias_measurements(context) == []
    with pytest.raises(KDError) as found:
        bias(BiasGate(max="5%"), context)
    assert found.value.code == "gate-task"
    assert found.value.fix == "leave gates.bias out"
