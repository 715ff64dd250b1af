import numpy as np
import pytest

from kdcompile.gates.margin import smallest_margin


def test_the_margin_of_182_photos_is_about_15_percent() -> None:
    assert smallest_margin(182, 73.5, 97) == pytest.approx(0.154, abs=0.001)


def test_four_times_the_photos_halve_the_margin() -> None:
    assert smallest_margin(728, 73.5, 97) == pytest.approx(smallest_margin(182, 73.5, 97) / 2)
    assert smallest_margin(182, 73.5, 97, correlation=1.0) == 0


def test_the_power_is_as_promised_on_normal_errors() -> None:
    n, std, metric = 100, 10.0, 40.0
    margin = smallest_margin(n, metric, std) * metric
    rng = np.random.default_rng(0)
    covariance = std**2 * np.array([[1, 0.8], [0.8, 1]])
    draws = rng.multivariate_normal([metric, metric], covariance, (2000, n))
    differences = draws[..., 1] - draws[..., 0]
    bound = differences.mean(1) + 1.645 * differences.std(1, ddof=1) / np.sqrt(n)
    assert (bound <= margin).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "arguments", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (1, 1, 1, 2), (1, 1, 1, 0.8, 1)]
)
def test_arguments_out_of_range_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match="out of range"):
        smallest_margin(*arguments)
