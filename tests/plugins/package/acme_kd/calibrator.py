"""Calibrator `most`: a range that leaves out the largest tenth of what was seen."""


def most(histogram):
    """Nine tenths of the largest magnitude."""
    return 0.9 * histogram.amax
