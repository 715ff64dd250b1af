"""How often the accuracy gate passes a student that is worse by exactly the margin, 15 %.

The promise is 5 %. An image's error is a normal deviate, correlated between teacher and student,
times a spread that is

    normal  the same for all images
    t3      that of Student's t of 3 degrees of freedom
    crowd   that of a crowd's size: log-normal, deviation 0.9 of the logarithm
    dense   as crowd; the student is worse in the largest fifth of the crowds only
    rare    as crowd; the student is worse on one image in 20 only

In the first three the student's errors are 1.15 times as large everywhere. The verdict is that of
`noninferior.compare`, without a limit on the point estimate, which would only fail more.

    python benchmarks/accuracy_bounds.py [DRAWS]
"""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdcompile.stats import bootstrap
from kdcompile.stats.bootstrap import t_quantile
from kdcompile.stats.noninferiority import compare
from kdcompile.tasks.metric import MAE, RMSE, Metric

Floats = NDArray[np.float64]
IMAGES, KINDS = (8, 20, 100, 500), ("normal", "t3", "crowd", "dense", "rare")
MARGIN, SPREAD, RESAMPLES = 0.15, 0.9, 999
DENSE, RARE = 0.2, 0.05  # shares of images


def errors(
    rng: np.random.Generator, n: int, kind: str, correlation: float, power: int
) -> tuple[Floats, Floats]:
    """Absolute errors of teacher and student on n images.

    The mean of the student's to the power is 1.15 to the power times the teacher's.
    """
    one, other = rng.standard_normal((2, n))
    student = correlation * one + np.sqrt(1 - correlation**2) * other
    scale = np.ones(n)
    if kind == "t3":
        scale = np.sqrt(3 / rng.chisquare(3, n))
    elif kind != "normal":
        scale = np.exp(rng.normal(0, SPREAD, n))
    teacher, student = np.abs(one * scale), np.abs(student * scale)
    grown = (1 + MARGIN) ** power
    if kind == "dense":
        edge = stats.norm.ppf(1 - DENSE)
        share = stats.norm.sf(edge - power * SPREAD)  # of the error that is in these images
        worse = (1 + (grown - 1) / share) ** (1 / power)
        return teacher, np.where(scale > np.exp(SPREAD * edge), worse, 1.0) * student
    if kind == "rare":
        mean = np.sqrt(2 / np.pi) * np.exp(SPREAD**2 / 2)
        more = (grown - 1) * mean / RARE
        if power == 2:  # of the mean of (error + more)^2 over the images that are worse
            square = np.exp(2 * SPREAD**2)
            more = np.sqrt(mean**2 + (grown - 1) * square / RARE) - mean
        return teacher, student + more * (rng.random(n) < RARE)
    return teacher, (1 + MARGIN) * student


def cannot_pass(metric: Metric, teacher: Floats, student: Floats) -> bool:
    """Whether the t test alone, which the gate's bound is never inside of, rules a pass out."""
    apart = student**metric.power - (1 + MARGIN) ** metric.power * teacher**metric.power
    return bool(apart.mean() + 0.99 * t_quantile(0.95, len(apart) - 1) * stats.sem(apart) > 0)


def passed(metric: Metric, kind: str, correlation: float, n: int, draws: int) -> float:
    """The share of draws that pass."""
    rng, count = np.random.default_rng(n), 0
    for seed in range(draws):
        teacher, student = errors(rng, n, kind, correlation, metric.power)
        if not cannot_pass(metric, teacher, student):  # saves the resampling
            found = compare(metric, teacher, student, margin=MARGIN, seed=seed)
            count += found.verdict == "passed"
    return count / draws


def rows(draws: int) -> Iterator[tuple[str, ...]]:
    """A row for each metric, kind and correlation, in per cent."""
    for metric in (MAE, RMSE):
        for kind in KINDS:
            for correlation in (0.8, 0.95):
                cells = [f"{100 * passed(metric, kind, correlation, n, draws):.1f}" for n in IMAGES]
                yield metric.name, kind, f"{correlation:g}", *cells


def main() -> None:
    """Print the table as Markdown."""
    bootstrap.RESAMPLES = RESAMPLES
    heads = ("metric", "errors", "correlation", *(f"n = {n}" for n in IMAGES))
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 2000):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
