"""The exact interval of a share of images."""


def share_bounds(count: int, n: int, confidence: float = 0.9) -> tuple[float, float]:
    """The two-sided exact interval (Clopper and Pearson, 1934) of a share of images.

    Each end is wrong no more often than it says, for any number of images: of none in n the upper
    one at 95 % is 1 - 0.05^(1/n), about 3/n.

    Args:
        count: images that have a property.
        n: images, at least 1.
        confidence: of the interval; each end of one at 90 % is a one-sided 95 % bound.
    """
    from scipy.special import betaincinv  # here: a plan loads the gates, and no SciPy

    tail = (1 - confidence) / 2
    low = betaincinv(count, n - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return float(low), float(high)
