"""What two arms differ by that share everything but one thing, seed by seed."""

import statistics
from collections.abc import Mapping
from typing import Any

# the 97.5 % quantile of Student's t by degrees of freedom
T_975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    11: 2.201,
    15: 2.131,
}
SEEDS = [degrees + 1 for degrees in T_975]


def paired(
    base: Mapping[int, float], other: Mapping[int, float], *, higher: bool
) -> dict[str, Any]:
    """The mean of `other` - `base` with its 95 % interval over seeds (Student's t).

    Args:
        base, other: a value by seed, the same seeds, as many as `SEEDS` names.
        higher: larger values are better, which the last key's name says too.

    Returns:
        `difference`, `standard_error`, `interval`, and `higher_in` or `lower_in`: in how many
        seeds `other` is better.
    """
    differences = [other[seed] - base[seed] for seed in sorted(base)]
    count = len(differences)
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / count**0.5
    half = T_975[count - 1] * error
    better = sum(d > 0 if higher else d < 0 for d in differences)
    return {
        "difference": mean,
        "standard_error": error,
        "interval": [mean - half, mean + half],
        "higher_in" if higher else "lower_in": f"{better} of {count}",
    }
