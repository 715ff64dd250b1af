"""Calibrator `most`: nine tenths of the largest observed magnitude."""


def most(histogram):
    """The magnitude that int8 is to reach."""
    return 0.9 * histogram.amax
