"""How often the accuracy gate passes a student that is worse by exactly the margin.

The promise is 5 %. Per-image errors of teacher and student are drawn with a correlation, the
student's 1.15 times as large, once normal and once with a spread that varies over images as a
crowd's size does (log-normal, deviation 0.9 of the logarithm); the margin is what a million images
have. The table compares the BCa bootstrap alone with the gate's own bound.

    python benchmarks/accuracy_bounds.py [DRAWS]
"""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdcompile.data.metric import MAE, RMSE, Metric
from kdcompile.gates import bootstrap
from kdcompile.gates.noninferior import bounds

Floats = NDArray[np.float64]
IMAGES = (5, 6, 8, 10, 12, 16, 24, 40, 100)
WORSE, SPREAD, RESAMPLES = 1.15, 0.9, 999


def errors(
    rng: np.random.Generator, n: int, kind: str, correlation: float
) -> tuple[Floats, Floats]:
    """Errors of teacher and student on n images."""
    one, other = rng.standard_normal((2, n))
    student = correlation * one + np.sqrt(1 - correlation**2) * other
    scale = np.exp(rng.normal(0, SPREAD, n)) if kind == "crowd" else np.ones(n)
    return one * scale, WORSE * student * scale


def bca_high(metric: Metric, teacher: Floats, student: Floats, seed: int) -> float:
    """The one-sided 95 % bound by BCa alone."""
    found = stats.bootstrap(
        (teacher, student),
        lambda t, s, axis: metric.of(s, axis) - metric.of(t, axis),
        paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=0.9,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.high)


def rows(draws: int) -> Iterator[tuple[str, ...]]:
    """A row for each metric, kind and correlation: per cent by BCa and by the gate."""
    for metric in (MAE, RMSE):
        for kind in ("normal", "crowd"):
            for correlation in (0.8, 0.95):
                many = errors(np.random.default_rng(9), 1_000_000, kind, correlation)
                margin = metric(many[1]) - metric(many[0])
                rng, cells = np.random.default_rng(0), []
                for n in IMAGES:
                    passed = np.zeros(2)
                    for seed in range(draws):
                        teacher, student = errors(rng, n, kind, correlation)
                        alone = bca_high(metric, teacher, student, seed)
                        high = bounds(metric, teacher, student, seed)[1]
                        passed += alone <= margin, high is not None and high <= margin
                    cells.append(" / ".join(f"{100 * share:.0f}" for share in passed / draws))
                yield metric.name, kind, f"{correlation:g}", *cells


def main() -> None:
    """Print the table as Markdown."""
    bootstrap.RESAMPLES = RESAMPLES
    heads = ("metric", "errors", "correlation", *(f"n = {n}" for n in IMAGES))
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 400):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
