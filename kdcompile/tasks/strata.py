"""Parts of images whose accuracy, or number, is worth telling apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Stratum = tuple[dict[str, Any], Ints]  # what it is, as JSON, and its images' indices
PARTS = 3


def by_value(true: Floats) -> list[Stratum]:
    """Thirds by true value, each from `low` to `high`; fewer images than that give fewer.

    Args:
        true: annotated values [N].
    """
    order: NDArray[np.int64] = np.argsort(true, kind="stable")
    return [
        ({"low": float(true[part].min()), "high": float(true[part].max())}, part)
        for part in np.array_split(order, PARTS)
        if len(part)
    ]


def by_class(true: Floats, name_of: Callable[[float], str | float]) -> list[Stratum]:
    """The images of each class, `class`, in the order of their indices.

    Args:
        true: indices of classes [N].
        name_of: a class as a report shows it.
    """
    return [
        ({"class": name_of(float(value))}, np.flatnonzero(true == value))
        for value in np.unique(true)
    ]


def by_contents(held: Sequence[Ints], name_of: Callable[[int], str]) -> list[Stratum]:
    """The images that hold something of each class, `class`, which may be in several parts.

    Args:
        held: of each image the indices of the classes that it holds.
        name_of: a class as a report shows it.
    """
    every = np.unique(np.concatenate([*held, np.zeros(0, np.int64)]))
    return [({"class": name_of(int(k))}, np.flatnonzero([k in own for own in held])) for k in every]


def stratum_text(about: Mapping[str, Any]) -> str:
    """What a stratum is, in words: its class, or from where to where its values go."""
    if "class" in about:
        return f"class {about['class']}"
    return f"{about['low']:g} to {about['high']:g}"
