"""How many photos would decide."""

from collections.abc import Callable

MOST = 10_000_000  # photos; more are no advice


def least_number(enough: Callable[[int], bool], more_than: int = 0) -> int | None:
    """The least n for which a condition holds that stays true once it is; None over `MOST`.

    Where it may turn false again for a while, as by rounding, an n for which it holds.

    Args:
        enough: of a number of photos.
        more_than: a number, at least 0, that is known to be too few.
    """
    few, many = more_than, more_than + 1
    while not enough(many):
        if many >= MOST:
            return None
        few, many = many, min(2 * many, MOST)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many
